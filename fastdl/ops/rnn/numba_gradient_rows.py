"""A row's gradients at its gates, from that at its state: a step of numba_gradient.py for each kind of layer."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...cpu.jit import inline
from ...cpu.simd import lanes, load, load_n, offset, select, splat, store, store_n
from ...cpu.vector_gates import gate_tanh
from .numba_product import PANEL
from .numba_steps import GRU, LSTM, RELU, RESET_FIRST


class Trace(NamedTuple):
    """One direction of a layer: its sizes and where its memory is."""

    mode: int
    backwards: int
    gates: int
    hidden: int
    padded: int
    output: int
    state: int
    projection: int
    peepholes: int
    batch: int
    steps: int
    to_first: int  # whether dh goes on to the state before the first step
    counts: Any
    offsets: Any
    w_h: Any  # packed for the product of the gates' gradients
    w_x: Any  # the same: whole panels of the input's weight; 0 features: the input's gradient is not wanted
    w_x_rest: Any  # its columns behind those, as they lie
    w_x_row: int
    features: int
    w_r: Any  # packed: the projection; where the reset gate is first, n's weight of the state
    peephole: Any  # (3, padded)
    kept_gates: Any  # as the forward pass left them
    kept: Any
    before: Any  # (batch, padded): lstm's first cell state, gru's first hidden state
    y: Any
    y_row: int
    dy: Any
    dy_row: int
    dh: Any  # (batch, state): at the state before the step, from the gates
    carried: Any  # (batch, padded): the same past the gates: lstm's cell state's, gru's z * dh
    now: Any  # (2, together, batch, width): at the gates, of so many steps by turns, in the order of their times
    together: int  # steps that go through the input's weights together
    width: int
    d: Any  # ([gate][unit block][row][unit]): the same of all rows
    block: int  # from block to block of that; 0: it is not wanted
    into: Any  # (rows, output): at the projected state, where there are projections
    dx: Any  # (rows, features)
    scratch: Any  # (batch, padded): the product within a step


@inline
def is_gru(trace):
    return trace.mode == GRU or trace.mode == RESET_FIRST


# ------------------------------------------------------------------------------------------------ one row
@inline
def _load_first(p, i, n):
    return load(p, i) if n >= lanes(p) else load_n(p, i, n)


@inline
def _put(trace, d, kept, gate, u, g):
    """The gradients at a gate of some units: to the row of this step, and to where they are kept."""
    store_n(d, gate * trace.hidden + u, g, trace.hidden - u)
    if trace.block:
        W = PANEL * lanes(d)
        store(kept, (gate * (trace.padded // W) + u // W) * trace.block + u % W, g)


@inline
def elman_row(trace, first, last, dh, gates, d, kept):
    zero, one = splat(d, 0.0), splat(d, 1.0)
    for u in range(first, last, lanes(d)):
        y, g = load(gates, u), load(dh, u)
        g = select(y <= zero, zero, g) if trace.mode == RELU else g * (one - y * y)
        _put(trace, d, kept, 0, u, g)


@inline
def gru_row(trace, first, last, dh, gates, inner, before, carried, d, kept):
    V, W, H = lanes(d), PANEL * lanes(d), trace.hidden
    one = splat(d, 1.0)
    for u in range(first, last, V):
        at, rest, g = u // W * 3 * W + u % W, H - u, load(dh, u)
        r, z, n = load(gates, at), load(gates, at + W), load(gates, at + 2 * W)
        dn = g * (one - z) * (one - n * n)
        store(carried, u, g * z)
        _put(trace, d, kept, 0, u, dn * r)
        _put(trace, d, kept, 1, u, dn * load(inner, u) * r * (one - r))
        _put(trace, d, kept, 2, u, g * (_load_first(before, u, rest) - n) * z * (one - z))
        _put(trace, d, kept, 3, u, dn)


@inline
def reset_row(trace, dh, gates, before, carried, d, kept):
    """n and z, where the reset gate comes first."""
    V, W, H = lanes(d), PANEL * lanes(d), trace.hidden
    one = splat(d, 1.0)
    for u in range(0, H, V):
        at, rest, g = u // W * 3 * W + u % W, H - u, load(dh, u)
        z, n = load(gates, at + W), load(gates, at + 2 * W)
        dn = g * (one - z) * (one - n * n)
        store(carried, u, g * z)
        _put(trace, d, kept, 0, u, dn)
        _put(trace, d, kept, 2, u, g * (_load_first(before, u, rest) - n) * z * (one - z))
        _put(trace, d, kept, 3, u, dn)


@inline
def after_reset_row(trace, at_reset, gates, before, carried, d, kept):
    """r, from the gradient at r * h."""
    V, W, H = lanes(d), PANEL * lanes(d), trace.hidden
    one = splat(d, 1.0)
    for u in range(0, H, V):
        r, g = load(gates, u // W * 3 * W + u % W), load(at_reset, u)
        store(carried, u, load(carried, u) + g * r)
        _put(trace, d, kept, 1, u, g * _load_first(before, u, H - u) * r * (one - r))


@inline
def lstm_row(trace, first, last, dh, gates, after, before, carried, d, kept):
    V, W, P = lanes(d), PANEL * lanes(d), trace.padded
    one = splat(d, 1.0)
    for u in range(first, last, V):
        at, at_m = u // W * 4 * W + u % W, load(dh, u)
        i, f, g, o = load(gates, at), load(gates, at + W), load(gates, at + 2 * W), load(gates, at + 3 * W)
        squashed = gate_tanh(load(after, u))
        do = at_m * squashed * o * (one - o)
        dc = load(carried, u) + at_m * o * (one - squashed * squashed)
        if trace.peepholes:
            dc = dc + do * load(trace.peephole, 2 * P + u)
        di = dc * g * i * (one - i)
        df = dc * load(before, u) * f * (one - f)
        dc_before = dc * f
        if trace.peepholes:
            dc_before = dc_before + di * load(trace.peephole, u) + df * load(trace.peephole, P + u)
        store(carried, u, dc_before)
        _put(trace, d, kept, 0, u, di)
        _put(trace, d, kept, 1, u, df)
        _put(trace, d, kept, 2, u, dc * i * (one - g * g))
        _put(trace, d, kept, 3, u, do)


@inline
def state_before(trace, i, there, there_row):
    """lstm's cell state, else the hidden state, before a step: at the step before it, or where the sequence began."""
    if i >= there:
        return offset(trace.before, i * trace.padded)
    if trace.mode == LSTM:
        return offset(trace.kept, (there_row + i) * trace.padded)
    return offset(trace.y, (there_row + i) * trace.y_row)
