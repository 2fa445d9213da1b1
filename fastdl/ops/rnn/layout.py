"""How a recurrent call's arrays are laid out: what every backend of this room shares."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}


class RNNParams(NamedTuple):
    """What the kernels ``rnn`` and ``rnn_backward`` know besides the arrays.

    The arrays are x, the leaves of hx, the weights and, for lstm, the peepholes (one None where there are none);
    :func:`split` takes them apart. x is (steps, batch, features), a view where the caller's is batch-first; or, where
    ``batch_sizes`` is given, packed: (rows, features). h0 is (layers * directions, batch, output), c0 the same with
    hidden. The answer is a tuple: y, laid out as the caller's input (batch-first or packed too), h_n and, for lstm,
    c_n. The gradient of x is laid out as y is.
    """

    mode: str  # rnn_tanh, rnn_relu, gru, lstm
    layers: int
    directions: int
    hidden: int
    projection: int  # lstm's proj_size; 0: none
    biases: bool
    states: int  # the leaves of hx among the arrays: 2 for lstm's (h0, c0), else 1 (None: zeros)
    peepholes: bool
    linear_before_reset: bool  # gru: True as torch and cuDNN, False as ONNX's default
    batch_first: bool  # y, its gradient and the gradient of x are (batch, steps, ...)
    lengths: tuple[int, ...] | None  # of each row of a padded batch
    batch_sizes: tuple[int, ...] | None  # of each step of a packed one; not increasing
    dropout: float  # between layers; 0.0: none
    seed: int
    checkpoint: int = 0  # keep the states of every so many steps instead of gates; 0: keep the gates

    @property
    def output(self) -> int:
        """The size of one direction's output and hidden state."""
        return self.projection or self.hidden


class Weights(NamedTuple):
    """What belongs to one direction of one layer: arrays, their gradients, or whether those are needed."""

    w_ih: Any  # (gates * hidden, features)
    w_hh: Any  # (gates * hidden, output)
    b_ih: Any = None  # (gates * hidden,)
    b_hh: Any = None
    w_hr: Any = None  # (projection, hidden)
    peephole: Any = None  # (3 * hidden,): the input, forget and output gates'


def per_direction(params) -> int:
    """How many entries of the argument ``params`` each direction of each layer has."""
    return 2 + 2 * params.biases + (params.projection > 0)


def split(values, params):
    """(x, h0, c0, a list of Weights by layer and direction) of what is aligned with a call's arrays."""
    states = params.states
    n, per = params.layers * params.directions, per_direction(params)
    h0, c0 = values[1], values[2] if states == 2 else None
    flat, peepholes = values[1 + states:1 + states + n * per], values[1 + states + n * per:]
    weights = []
    for k in range(n):
        w_ih, w_hh, *more = flat[k * per:(k + 1) * per]
        b_ih, b_hh = more[:2] if params.biases else (None, None)
        w_hr = more[-1] if params.projection else None
        weights.append(Weights(w_ih, w_hh, b_ih, b_hh, w_hr, peepholes[k] if params.peepholes else None))
    return values[0], h0, c0, weights


def join(dx, dh0, dc0, weights, params) -> tuple:
    """The gradients, aligned with a call's arrays: the inverse of :func:`split`."""
    flat = [dx, dh0, dc0][:1 + params.states]
    for w in weights:
        flat += w[:4] if params.biases else w[:2]
        if params.projection:
            flat.append(w.w_hr)
    if params.mode == "lstm":
        flat += [w.peephole for w in weights] if params.peepholes else [None]
    return tuple(flat)


def alive(params, steps: int) -> np.ndarray | None:
    """(steps, batch): which steps are a row's own, not padding. None: all are."""
    if params.batch_sizes is not None:
        sizes = np.array(params.batch_sizes)
        return np.arange(sizes[0]) < sizes[:, None]
    if params.lengths is not None:
        return np.arange(steps)[:, None] < np.array(params.lengths, dtype=np.int64)
    return None


def time_major(x: np.ndarray, params, live: np.ndarray | None) -> np.ndarray:
    """A packed or padded x, or a gradient of y, as (steps, batch, ...) with zeros where no row is alive.

    The zeros are more than tidiness: what lies in the padding, be it NaN, must not reach a gradient.
    """
    if params.batch_sizes is not None:
        padded = np.zeros(live.shape + x.shape[1:], x.dtype)
        padded[live] = x  # packed data are the live rows, step by step
        return padded
    return x if live is None else np.where(live[:, :, None], x, x.dtype.type(0))


def as_given(y: np.ndarray, params, live: np.ndarray | None) -> np.ndarray:
    """A time-major y, or gradient of x, in the caller's layout."""
    if params.batch_sizes is not None:
        return y[live]
    return y.swapaxes(0, 1) if params.batch_first else y


def dropout_kept(params, steps: int, batch: int) -> list[np.ndarray | None]:
    """What dropout keeps of each layer's output (steps, batch, directions * output); the last layer's is untouched.

    Every backend draws the same, so a seed has one answer whatever serves the call.
    """
    between = params.layers - 1
    if not params.dropout or not between:
        return [None] * params.layers
    rng = np.random.Generator(np.random.Philox(params.seed))
    shape = (steps, batch, params.directions * params.output)
    return [rng.random(shape, dtype=np.float32) >= params.dropout for _ in range(between)] + [None]


def dropout_apply(values: np.ndarray, kept: np.ndarray | None, rate: float) -> np.ndarray:
    """Inverted dropout: what is kept grows so that the mean stays. Its gradient is the same map."""
    if kept is None:
        return values
    return values * (kept * values.dtype.type(1 / (1 - rate) if rate < 1 else 0))
