"""Recurrent layers over whole sequences (RNN, GRU, LSTM) and one step at a time (the cells)."""

from __future__ import annotations

import math

import numpy as np

from .. import check
from .. import functional as F
from . import init
from .module import Module
from .parameter import accumulate, is_tensor, wants_gradient


def _check_needs(layer, needs, given):
    """Whether x's and hx's gradients are wanted, from one answer for both or one for each that was given."""
    if isinstance(needs, (tuple, list)):
        if len(needs) != given:
            raise ValueError(f"{type(layer).__name__}: needs has {len(needs)} entries, the layer was given {given} arguments")
        return tuple(map(bool, needs)) if given == 2 else (bool(needs[0]), False)
    return bool(needs), bool(needs) and given == 2


class _Recurrent(Module):
    """The base of RNN, GRU and LSTM: parameters by torch's names, one call of a sequence operator."""

    gates: int
    operator: str

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
                 proj_size=0, *, checkpoint=None, dtype=np.float32, rng=None):
        name = type(self).__name__
        self.input_size = check.integer(name, "input_size", input_size, 1)
        self.hidden_size = check.integer(name, "hidden_size", hidden_size, 1)
        self.num_layers = check.integer(name, "num_layers", num_layers, 1)
        self.bias = bool(bias)
        self.batch_first = bool(batch_first)
        self.dropout = check.number(name, "dropout", dropout, 0, 1)
        self.bidirectional = bool(bidirectional)
        self.proj_size = check.integer(name, "proj_size", proj_size, 0)
        if self.proj_size >= hidden_size:
            raise ValueError(f"{name}: proj_size is {proj_size}; the rule is below hidden_size ({hidden_size})")
        self.checkpoint = None if checkpoint is None else check.integer(name, "checkpoint", checkpoint, 1)
        dtype, rng = init.check_dtype(name, dtype), init.generator(rng)
        rows, output = self.gates * hidden_size, self.proj_size or hidden_size
        self._names = []
        for layer in range(num_layers):
            features = output * (1 + self.bidirectional) if layer else input_size
            shapes = {"weight_ih": (rows, features), "weight_hh": (rows, output)}
            if self.bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            if self.proj_size:
                shapes["weight_hr"] = (self.proj_size, hidden_size)
            for direction in ("", "_reverse")[: 1 + self.bidirectional]:
                for kind, shape in shapes.items():
                    self._names.append(f"{kind}_l{layer}{direction}")
                    setattr(self, self._names[-1], init.uniform(shape, 1 / math.sqrt(hidden_size), dtype, rng))

    def _call(self, lengths, batch_sizes):
        """The operator, the parameters and the options of a call."""
        options = {name: given for name, given in (("lengths", lengths), ("batch_sizes", batch_sizes)) if given is not None}
        if self.training and self.dropout and self.num_layers > 1:
            options["seed"] = init.draw_seed()
        where = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional, self.batch_first)
        return getattr(F, self.operator), [getattr(self, name) for name in self._names], where, options

    def step(self, x, hx=None):
        """One step of a stream, without gradients: ``y, hx = layer.step(x, hx)``.

        x: (batch, input_size) or (input_size,). hx: None at the first step, then what the last one answered: the layer's states,
        (num_layers, batch, hidden_size), or (num_layers, hidden_size) where x has one axis. Answers y, (batch, output) or
        (output,), and the new states. Dropout does nothing. The same numbers come out as for the whole sequence at once.

        Raises ValueError where the layer is bidirectional, and as the operator does.
        """
        bound = self.__dict__.get("_bound")  # dropped when an attribute is set
        if bound is None:
            bound = self.__dict__["_bound"] = self._bind_step()
        operator, parameters = bound
        if getattr(x, "ndim", 0) not in (1, 2):
            check.array(type(self).__name__, "input", x, (1, 2))
        answer = operator(x[None], hx, [p._packed for p in parameters], self.bias, self.num_layers, 0.0, False, False, False)
        y, hx = self._nest(answer)
        return y[0], hx

    def _bind_step(self):
        """The operator and the parameters of a step."""
        if self.bidirectional:
            raise ValueError(f"{type(self).__name__}: step goes forwards only; the layer is bidirectional")
        return getattr(F, self.operator), [getattr(self, name) for name in self._names]

    def forward(self, x, hx=None, *, lengths=None, batch_sizes=None):
        operator, parameters, where, options = self._call(lengths, batch_sizes)
        return self._nest(operator(x, hx, [p.packed for p in parameters], *where, **options))

    def vjp(self, x, hx=None, *, lengths=None, batch_sizes=None):
        """``(y, h), pullback``. The pullback takes gradients of the same form, ``(dy, None)`` where h has none, and
        answers dx; ``(dx, dhx)`` where hx was given."""
        operator, parameters, where, options = self._call(lengths, batch_sizes)
        if self.checkpoint is not None:
            options["checkpoint"] = self.checkpoint
        answer, operator_pullback = operator.vjp(x, hx, [p.data for p in parameters], *where, **options)

        def pullback(gradient, needs=True):
            gradient = self._flat(gradient)
            needs_x, needs_hx = _check_needs(self, needs, 1 if hx is None else 2)
            wanted = wants_gradient(parameters)
            if not (needs_x or needs_hx or any(wanted)):
                return None if hx is None else (None, None)
            dx, dhx, dparameters = operator_pullback(gradient, needs=(needs_x, needs_hx, wanted))
            accumulate(parameters, dparameters, dx, dhx, gradient)
            return dx if hx is None else (dx, dhx)

        return self._nest(answer), pullback

    def _nest(self, answer):
        return answer

    def _flat(self, gradient):
        if not isinstance(gradient, (tuple, list)) or len(gradient) != 2:
            raise TypeError(f"{type(self).__name__}: the layer answers (y, h), so the pullback takes (dy, dh), with None for no gradient")
        return tuple(gradient)

    def extra_repr(self):
        parts = [f"{self.input_size}, {self.hidden_size}"]
        usual = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        parts += [f"{name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value]
        return ", ".join(parts)


class RNN(_Recurrent):
    """Elman networks over whole sequences, nonlinearity "tanh" or "relu".

    x: (steps, batch, input_size), (batch, steps, input_size) with batch_first, or (steps, input_size); hx, optional:
    (num_layers * directions, batch, hidden_size). ``lengths`` (one a row) for padded batches, ``batch_sizes`` for packed
    ones: see :func:`fastdl.functional.rnn_tanh`. Answers (y, h_n).

    weights are named as torch names them (weight_ih_l0, weight_hh_l0_reverse, ...) and start uniform within
    1 / sqrt(hidden_size). dropout, between layers, acts in training only. checkpoint: for training on long sequences; see
    :func:`fastdl.functional.rnn_tanh`. ``step`` takes a stream one step at a time.
    """

    gates = 1

    def __init__(self, input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False, dropout=0.0,
                 bidirectional=False, *, checkpoint=None, dtype=np.float32, rng=None):
        self.nonlinearity = check.choice("RNN", "nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, checkpoint=checkpoint,
                         dtype=dtype, rng=rng)

    @property
    def operator(self):
        return f"rnn_{self.nonlinearity}"


class GRU(_Recurrent):
    """Gated recurrent units over whole sequences; shapes and weights as :class:`RNN`, gates in torch's order r, z, n."""

    gates, operator = 3, "gru"

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, *,
                 checkpoint=None, dtype=np.float32, rng=None):
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, checkpoint=checkpoint,
                         dtype=dtype, rng=rng)


class LSTM(_Recurrent):
    """Long short-term memories over whole sequences; shapes and weights as :class:`RNN`, gates in torch's order i, f, g, o.

    hx, optional, is (h_0, c_0). Answers ``y, (h_n, c_n)``; the pullback takes ``(dy, (dh, dc))`` or ``(dy, None)``.
    proj_size: h is projected to this many features; 0 for none.
    """

    gates, operator = 4, "lstm"

    def _nest(self, answer):
        y, h, c = answer
        return y, (h, c)

    def _flat(self, gradient):
        dy, dstate = super()._flat(gradient)
        if dstate is None:
            return dy, None, None
        if not isinstance(dstate, (tuple, list)) or len(dstate) != 2:
            raise TypeError("LSTM: the layer answers (y, (h, c)), so the pullback takes (dy, (dh, dc)) or (dy, None)")
        return dy, *dstate


class _Cell(Module):
    """The base of RNNCell, GRUCell and LSTMCell."""

    gates: int
    operator: str

    def __init__(self, input_size, hidden_size, bias=True, *, dtype=np.float32, rng=None):
        name = type(self).__name__
        self.input_size = check.integer(name, "input_size", input_size, 1)
        self.hidden_size = check.integer(name, "hidden_size", hidden_size, 1)
        self.bias = bool(bias)
        dtype, rng, rows, bound = init.check_dtype(name, dtype), init.generator(rng), self.gates * hidden_size, 1 / math.sqrt(hidden_size)
        self.weight_ih = init.uniform((rows, input_size), bound, dtype, rng)
        self.weight_hh = init.uniform((rows, hidden_size), bound, dtype, rng)
        self.bias_ih = init.uniform(rows, bound, dtype, rng) if bias else None
        self.bias_hh = init.uniform(rows, bound, dtype, rng) if bias else None

    def _arguments(self, hx, x):
        parameters = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if hx is None:
            if is_tensor(x):
                check.rank(type(self).__name__, "input", tuple(x.shape), (1, 2))
            else:
                check.array(type(self).__name__, "input", x, (1, 2))
            hx = self._zeros(x)
        return parameters, (hx, *[None if p is None else p.data for p in parameters])

    def _zeros(self, x):
        shape = (*x.shape[:-1], self.hidden_size)
        return x.new_zeros(shape) if is_tensor(x) else np.zeros(shape, x.dtype)

    def forward(self, x, hx=None):
        return getattr(F, self.operator)(x, *self._arguments(hx, x)[1])

    def vjp(self, x, hx=None):
        """``h, pullback``; the pullback answers dx, and ``(dx, dhx)`` where hx was given."""
        parameters, arguments = self._arguments(hx, x)
        y, operator_pullback = getattr(F, self.operator).vjp(x, *arguments)

        def pullback(gradient, needs=True):
            needs_x, needs_hx = _check_needs(self, needs, 1 if hx is None else 2)
            wanted = wants_gradient(parameters)
            if not (needs_x or needs_hx or any(wanted)):
                return None if hx is None else (None, None)
            dx, dhx, *dparameters = operator_pullback(gradient, needs=(needs_x, needs_hx, *wanted))
            accumulate(parameters, dparameters, dx, dhx, gradient)
            return dx if hx is None else (dx, dhx)

        return y, pullback

    def extra_repr(self):
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class RNNCell(_Cell):
    """One step of an Elman network: x (N, input_size), hx (N, hidden_size) or None for zeros -> (N, hidden_size)."""

    gates = 1

    def __init__(self, input_size, hidden_size, bias=True, nonlinearity="tanh", *, dtype=np.float32, rng=None):
        self.nonlinearity = check.choice("RNNCell", "nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(input_size, hidden_size, bias, dtype=dtype, rng=rng)

    @property
    def operator(self):
        return f"rnn_{self.nonlinearity}_cell"

    def extra_repr(self):
        return super().extra_repr() + ("" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}")


class GRUCell(_Cell):
    """One step of a gated recurrent unit; shapes as :class:`RNNCell`."""

    gates, operator = 3, "gru_cell"


class LSTMCell(_Cell):
    """One step of a long short-term memory: x, (h, c) or None for zeros -> (h', c'); the pullback takes (dh, dc)."""

    gates, operator = 4, "lstm_cell"

    def _zeros(self, x):
        zeros = super()._zeros(x)
        return zeros, zeros
