"""Whole sequences, backward: every step of a layer in one call of a compiled function.

Goes through the steps the other way. A step takes the gradient at its state, from y and from the step that came after it,
to the gradients at its gates; the product of these with the state's weights is the next one's. What is left, one product
over all steps for each weight, is not done here. Rows, units and blocks are as in numba_sequence.py and numba_steps.py.

The gradients at the gates lie without padding, for those products: rows of gates * hidden; gru's are n', r, z, n with n' at
the state's share of n and n at the input's, so that the state's gates, n' r z, stand side by side, and the input's, r z n,
do too. Where the reset gate comes first both n are the same, and its product lies between the gradients of n and r.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import lanes, load, load_n, offset, pointer, read, select, splat, store, store_n
from ...cpu.vector_math import gate_tanh
from .numba_product import PANEL, ZERO, product
from .numba_sequence import copy
from .numba_steps import GRU, LSTM, RELU, RESET_FIRST, up_to_block
from .numba_team import finish, place, take, wait_for_all


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
    w_r: Any  # the same: the projection; where the reset gate is first, n's weight of the state
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
    d: Any  # (rows, d_width): at the gates
    d_width: int
    into: Any  # (rows, output): at the projected state, where there are projections
    scratch: Any  # (batch, padded): the product within a step


@inline
def _is_gru(trace):
    return trace.mode == GRU or trace.mode == RESET_FIRST


# ------------------------------------------------------------------------------------------------ one row
@inline
def _load_first(p, i, n):
    return load(p, i) if n >= lanes(p) else load_n(p, i, n)


@inline
def _elman_row(trace, first, last, dh, gates, d):
    zero, one = splat(d, 0.0), splat(d, 1.0)
    for u in range(first, last, lanes(d)):
        y, g = load(gates, u), load(dh, u)
        g = select(y <= zero, zero, g) if trace.mode == RELU else g * (one - y * y)
        store_n(d, u, g, trace.hidden - u)


@inline
def _gru_row(trace, first, last, dh, gates, inner, before, carried, d):
    V, W, H = lanes(d), PANEL * lanes(d), trace.hidden
    one = splat(d, 1.0)
    for u in range(first, last, V):
        at, rest, g = u // W * 3 * W + u % W, H - u, load(dh, u)
        r, z, n = load(gates, at), load(gates, at + W), load(gates, at + 2 * W)
        dn = g * (one - z) * (one - n * n)
        store(carried, u, g * z)
        store_n(d, u, dn * r, rest)
        store_n(d, H + u, dn * load(inner, u) * r * (one - r), rest)
        store_n(d, 2 * H + u, g * (_load_first(before, u, rest) - n) * z * (one - z), rest)
        store_n(d, 3 * H + u, dn, rest)


@inline
def _reset_row(trace, dh, gates, before, carried, d):
    """n and z, where the reset gate comes first."""
    V, W, H = lanes(d), PANEL * lanes(d), trace.hidden
    one = splat(d, 1.0)
    for u in range(0, H, V):
        at, rest, g = u // W * 3 * W + u % W, H - u, load(dh, u)
        z, n = load(gates, at + W), load(gates, at + 2 * W)
        dn = g * (one - z) * (one - n * n)
        store(carried, u, g * z)
        store_n(d, u, dn, rest)
        store_n(d, 2 * H + u, g * (_load_first(before, u, rest) - n) * z * (one - z), rest)
        store_n(d, 3 * H + u, dn, rest)


@inline
def _after_reset_row(trace, at_reset, gates, before, carried, d):
    """r, from the gradient at r * h."""
    V, W, H = lanes(d), PANEL * lanes(d), trace.hidden
    one = splat(d, 1.0)
    for u in range(0, H, V):
        r, g = load(gates, u // W * 3 * W + u % W), load(at_reset, u)
        store(carried, u, load(carried, u) + g * r)
        store_n(d, H + u, g * _load_first(before, u, H - u) * r * (one - r), H - u)


@inline
def _lstm_row(trace, first, last, dh, gates, after, before, carried, d):
    V, W, H, P = lanes(d), PANEL * lanes(d), trace.hidden, trace.padded
    one = splat(d, 1.0)
    for u in range(first, last, V):
        at, rest, at_m = u // W * 4 * W + u % W, H - u, load(dh, u)
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
        store_n(d, u, di, rest)
        store_n(d, H + u, df, rest)
        store_n(d, 2 * H + u, dc * i * (one - g * g), rest)
        store_n(d, 3 * H + u, do, rest)


@inline
def _before(trace, i, there, there_row):
    """lstm's cell state, else the hidden state, before a step: at the step before it, or where the sequence began."""
    if i >= there:
        return offset(trace.before, i * trace.padded)
    if trace.mode == LSTM:
        return offset(trace.kept, (there_row + i) * trace.padded)
    return offset(trace.y, (there_row + i) * trace.y_row)


# ------------------------------------------------------------------------------------------------ steps
@inline
def _time(trace, n):
    """The n-th step of the way back."""
    return n if trace.backwards else trace.steps - 1 - n


@inline
def _through_state(trace, n, first, last, first_block, last_block):
    """dh of rows and state blocks from the gates of the (n-1)-th step back."""
    if n == 0:
        return
    t = _time(trace, n - 1)
    m = min(last, read(trace.counts, t)) - first
    if m > 0:
        d, gates = offset(trace.d, (read(trace.offsets, t) + first) * trace.d_width), trace.gates * trace.hidden
        if trace.mode == RESET_FIRST:  # n has been through
            d, gates = offset(d, trace.hidden), 2 * trace.hidden
        dh = offset(trace.dh, first * trace.state + first_block * PANEL * lanes(d))
        product(d, trace.d_width, m, gates, trace.w_h, first_block, last_block, dh, trace.state)


@inline
def _retreat(trace, n, first, last, first_block, last_block):
    """The n-th step back, for a range of rows and of unit blocks."""
    W, padded, state, t = PANEL * lanes(trace.d), trace.padded, trace.state, _time(trace, n)
    # projected states have blocks of their own, all of which are done here
    last_state_block = state // W if trace.projection > 0 else last_block
    _through_state(trace, n, first, last, first_block, last_state_block)
    end, here = min(last, read(trace.counts, t)), read(trace.offsets, t)
    start, stop = first_block * W, min(last_state_block * W, trace.output)
    for i in range(first, end):
        dh = offset(trace.dh, i * state)
        _add(dh, offset(trace.dy, (here + i) * trace.dy_row), start, stop)
        if _is_gru(trace):
            _add(dh, offset(trace.carried, i * padded), start, stop)
        if trace.projection > 0:
            copy(dh, offset(trace.into, (here + i) * trace.output), ZERO, trace.output)
    source, length = trace.dh, state
    if trace.projection > 0 and end > first:
        source, length = trace.scratch, padded
        product(offset(trace.dh, first * state), state, end - first, trace.output, trace.w_r, first_block, last_block,
                offset(source, first * length + first_block * W), length)
    # the rows that were there at the step before this one
    last_t = t + 1 if trace.backwards else t - 1
    there, there_row = 0, 0
    if 0 <= last_t < trace.steps:
        there, there_row = read(trace.counts, last_t), read(trace.offsets, last_t)
    if trace.mode == RESET_FIRST:
        _retreat_reset_first(trace, first, end, here, there, there_row)
        return
    u, v = first_block * W, min(last_block * W, trace.hidden)
    for i in range(first, end):
        dh, carried, before = offset(source, i * length), offset(trace.carried, i * padded), _before(trace, i, there, there_row)
        gates, kept = offset(trace.kept_gates, (here + i) * trace.gates * padded), offset(trace.kept, (here + i) * padded)
        d = offset(trace.d, (here + i) * trace.d_width)
        if trace.mode == LSTM:
            _lstm_row(trace, u, v, dh, gates, kept, before, carried, d)
        elif trace.mode == GRU:
            _gru_row(trace, u, v, dh, gates, kept, before, carried, d)
        else:
            _elman_row(trace, u, v, dh, gates, d)


@inline
def _add(target, source, start, end):
    """target[start:end] += source[start:end]."""
    V = lanes(target)
    j = start
    while j + V <= end:
        store(target, j, load(target, j) + load(source, j))
        j += V
    if j < end:
        store_n(target, j, load_n(target, j, end - j) + load_n(source, j, end - j), end - j)


@inline
def _retreat_reset_first(trace, first, end, here, there, there_row):
    padded, state, width = trace.padded, trace.state, trace.gates * trace.padded
    gates, d = offset(trace.kept_gates, here * width), offset(trace.d, here * trace.d_width)
    for i in range(first, end):
        before, carried = _before(trace, i, there, there_row), offset(trace.carried, i * padded)
        _reset_row(trace, offset(trace.dh, i * state), offset(gates, i * width), before, carried, offset(d, i * trace.d_width))
    if end > first:
        product(offset(d, first * trace.d_width), trace.d_width, end - first, trace.hidden, trace.w_r, ZERO, padded // (PANEL * lanes(d)),
                offset(trace.scratch, first * padded), padded)
    for i in range(first, end):
        before, carried = _before(trace, i, there, there_row), offset(trace.carried, i * padded)
        _after_reset_row(trace, offset(trace.scratch, i * padded), offset(gates, i * width), before, carried, offset(d, i * trace.d_width))


# ------------------------------------------------------------------------------------------------ the entry point
@inline
def _rows_chunk(slot, chunk, directions, forwards, backwards, rows):
    trace = backwards if chunk % directions == 1 else forwards
    W, first = PANEL * lanes(trace.d), chunk // directions * rows
    last = min(first + rows, trace.batch)
    for n in range(trace.steps):
        _retreat(trace, n, first, last, ZERO, trace.padded // W)
    if trace.to_first:
        _through_state(trace, trace.steps, first, last, ZERO, trace.state // W)


@inline
def _member(slot, member, members, trace, blocks, parts, words):
    """What a thread of a team does; as in numba_sequence.py."""
    last = trace.padded // (PANEL * lanes(trace.d))
    for n in range(trace.steps + trace.to_first):
        for i in range(parts):
            part = place(member, members, parts, i, n)
            if take(words, part, n):
                first_block, last_block = part * blocks, min((part + 1) * blocks, last)
                if n < trace.steps:
                    _retreat(trace, n, ZERO, trace.batch, first_block, last_block)
                else:
                    _through_state(trace, n, ZERO, trace.batch, first_block, last_block)
                finish(words, part, n)
        wait_for_all(words, parts, n)


@kernel("i i i i i i i i i i i i L1 L1 L2 R2 R2 R2 R2 R2 R2 R2 R2 W2 W2 W2 W2 W2")
def backward(pool, slots, mode, split_units, chunk, to_first, backwards, gates, hidden, output, projection, peepholes,
             counts, offsets, words, w_h, w_r, peephole, kept_gates, kept, before, y, dy, dh, carried, d, into, scratch):
    """A layer of one or two directions, which are the rows of all arrays but y and dy, and share these's columns.

    backwards: 1 where there is one direction, and it is the backward one. chunk: rows to a chunk, or unit blocks where
    ``split_units``. words: a team's for each direction, zeros. The arrays' rows are as in Trace. dh and carried go in as the
    gradients of the last states, and come out as those of the first where ``to_first`` (gru: their sum is that).
    """
    forwards = back = _trace(ZERO, backwards, mode, to_first, gates, hidden, output, projection, peepholes, counts, offsets,
                                  w_h, w_r, peephole, kept_gates, kept, before, y, dy, dh, carried, d, into, scratch)
    directions = w_h.shape[0]
    if directions == 2:
        back = _trace(ZERO + 1, 1, mode, to_first, gates, hidden, output, projection, peepholes, counts, offsets,
                           w_h, w_r, peephole, kept_gates, kept, before, y, dy, dh, carried, d, into, scratch)
    if split_units:
        for direction in range(directions):
            trace = back if direction == 1 else forwards
            parts = (trace.padded // (PANEL * lanes(trace.d)) + chunk - 1) // chunk
            parallel_for(pool, _member, slots, (slots, trace, chunk, parts, pointer(words[direction])))
    else:
        parallel_for(pool, _rows_chunk, (counts[0] + chunk - 1) // chunk * directions, (directions, forwards, back, chunk))


@inline
def _trace(k, backwards, mode, to_first, gates, hidden, output, projection, peepholes, counts, offsets,
           w_h, w_r, peephole, kept_gates, kept, before, y, dy, dh, carried, d, into, scratch):
    size, at_gates = d.itemsize, pointer(d[k])
    d_width = (gates + 1 if mode == GRU or mode == RESET_FIRST else gates) * hidden
    return Trace(
        mode, backwards, gates, hidden, up_to_block(hidden, at_gates), output, up_to_block(output, at_gates), projection, peepholes,
        counts[0], counts.shape[0], to_first, pointer(counts), pointer(offsets), pointer(w_h[k]), pointer(w_r[k]), pointer(peephole[k]),
        pointer(kept_gates[k]), pointer(kept[k]), pointer(before[k]), offset(pointer(y), k * output), y.strides[0] // size,
        offset(pointer(dy), k * output), dy.strides[0] // size, pointer(dh[k]), pointer(carried[k]), at_gates, d_width,
        pointer(into[k]), pointer(scratch[k]))
