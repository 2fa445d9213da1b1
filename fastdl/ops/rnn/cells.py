"""One step of a recurrent network: rnn_tanh_cell, rnn_relu_cell, gru_cell, lstm_cell."""

from __future__ import annotations

from typing import NamedTuple

from ... import check
from ...op import Call, operator
from .arguments import check_exact, check_pair
from .layout import GATES


class CellParams(NamedTuple):
    """What the kernels ``rnn_cell`` and ``rnn_cell_backward`` know besides the arrays.

    The arrays are x (batch, features), h (batch, hidden), for lstm c, then w_ih, w_hh, b_ih, b_hh. The answer is
    h' (batch, hidden), for lstm the tuple (h', c').
    """

    mode: str  # rnn_tanh, rnn_relu, gru, lstm
    linear_before_reset: bool = True  # a sequence's option, which its steps share with the cells


def _prepare(op, mode, input, hx, w_ih, w_hh, b_ih, b_hh) -> Call:
    x = check.array(op, "input", input, (1, 2))
    dtype, features, lead = x.dtype, x.shape[-1], x.shape[:-1]
    recurrent = check.array(op, "w_hh", w_hh, 2)
    check.same_dtype(op, "w_hh", recurrent, "input", x)
    hidden, gates = recurrent.shape[1], GATES[mode]
    rows, times = gates * hidden, "" if gates == 1 else f"{gates}*"
    if hidden < 1 or recurrent.shape[0] != rows:
        raise ValueError(f"{op}: w_hh has shape {recurrent.shape}; the rule is ({times}hidden, hidden) = {(rows, hidden)}, "
                         "hidden at least 1")
    weights = (check_exact(op, "w_ih", w_ih, dtype, (rows, features), f"({times}hidden, input features)"), recurrent,
               None if b_ih is None else check_exact(op, "b_ih", b_ih, dtype, (rows,), f"({times}hidden,)"),
               None if b_hh is None else check_exact(op, "b_hh", b_hh, dtype, (rows,), f"({times}hidden,)"))
    rule = "(batch, hidden)" if lead else "(hidden,)"
    if mode == "lstm":
        check_pair(op, hx)
        states = (check_exact(op, "hx[0] (h)", hx[0], dtype, (*lead, hidden), rule),
                  check_exact(op, "hx[1] (c)", hx[1], dtype, (*lead, hidden), rule))
    else:
        states = (check_exact(op, "hx", hx, dtype, (*lead, hidden), rule),)
    if lead:
        return Call((x, *states, *weights), CellParams(mode))
    shape = (hidden,)
    return Call((x[None, :], *(s[None, :] for s in states), *weights), CellParams(mode), (shape, shape) if mode == "lstm" else shape)


@operator("rnn", "rnn_cell", "input hx w_ih w_hh b_ih b_hh", by_form=True)
def rnn_tanh_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """One step of an Elman network, ``tanh(input @ w_ih.T + b_ih + hx @ w_hh.T + b_hh)``. As :func:`torch.rnn_tanh_cell`.

    input: (batch, features) or (features,). hx: (batch, hidden) or (hidden,). w_ih: (hidden, features).
    w_hh: (hidden, hidden). b_ih, b_hh: (hidden,) or None. Returns the new hidden state, of hx's shape.

    Source: J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).
    Raises TypeError (not arrays of float32 or float64, several dtypes) or ValueError (shapes that do not fit).
    """
    return _prepare("rnn_tanh_cell", "rnn_tanh", input, hx, w_ih, w_hh, b_ih, b_hh)


@operator("rnn", "rnn_cell", "input hx w_ih w_hh b_ih b_hh", by_form=True)
def rnn_relu_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """One step of an Elman network with relu, ``relu(input @ w_ih.T + b_ih + hx @ w_hh.T + b_hh)``.

    As :func:`torch.rnn_relu_cell`; arguments, result and errors as of :func:`rnn_tanh_cell`.
    """
    return _prepare("rnn_relu_cell", "rnn_relu", input, hx, w_ih, w_hh, b_ih, b_hh)


@operator("rnn", "rnn_cell", "input hx w_ih w_hh b_ih b_hh", by_form=True)
def gru_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """One step of a gated recurrent unit. As :func:`torch.gru_cell`.

    With the rows of the weights in three blocks r, z, n::

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    input: (batch, features) or (features,). hx: (batch, hidden) or (hidden,). w_ih: (3*hidden, features).
    w_hh: (3*hidden, hidden). b_ih, b_hh: (3*hidden,) or None. Returns h', of hx's shape.

    Source: K. Cho et al., "Learning phrase representations using RNN encoder-decoder" (2014), in cuDNN's variant.
    Raises as :func:`rnn_tanh_cell` does.
    """
    return _prepare("gru_cell", "gru", input, hx, w_ih, w_hh, b_ih, b_hh)


@operator("rnn", "rnn_cell", "input hx w_ih w_hh b_ih b_hh", by_form=True)
def lstm_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """One step of a long short-term memory. As :func:`torch.lstm_cell`.

    With the rows of the weights in four blocks i, f, g, o::

        i, f, o = sigmoid(W_i. x + b_i. + W_h. h + b_h.), each with its own block; g = tanh(the same)
        c' = f * c + i * g
        h' = o * tanh(c')

    input: (batch, features) or (features,). hx: the tuple (h, c), each (batch, hidden) or (hidden,).
    w_ih: (4*hidden, features). w_hh: (4*hidden, hidden). b_ih, b_hh: (4*hidden,) or None. Returns (h', c').

    Source: S. Hochreiter, J. Schmidhuber, "Long short-term memory" (1997), with F. Gers et al.'s forget gate (2000).
    Raises as :func:`rnn_tanh_cell` does.
    """
    return _prepare("lstm_cell", "lstm", input, hx, w_ih, w_hh, b_ih, b_hh)
