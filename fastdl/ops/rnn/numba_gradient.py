"""Whole sequences, backward: every step of a layer in one call of a compiled function.

Goes through the steps the other way. A step takes the gradient at its state, from y and from the step that came after it,
to the gradients at its gates; the product of these with the state's weights is the next one's, that with the input's weights
the gradient at the input. What is left, the weights' own gradients, are sums over all steps: numba_over_rows.py. Rows, units and
blocks are as in numba_sequence.py and numba_steps.py.

The gradients at the gates of a step lie in rows of gates * hidden; gru's are n', r, z, n with n' at the state's share of n and n
at the input's, so that the state's gates, n' r z, stand side by side, and the input's, r z n, do too. Where the reset gate comes
first both n are the same, and its product lies between the gradients of n and r. Those of a few steps are kept so, for these
products; those of all rows as the weights' gradients read them, ``[gate][unit block][row][unit]``.
"""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.in_place import four_rows, many_rows, one_row, rows_in_place
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import TILE_ROWS
from ...cpu.panels import pack_panel
from ...cpu.simd import lanes, load, load_n, offset, pointer, read, store, store_n, write
from ...cpu.thresholds import RECURRENT_MOVED
from .numba_gradient_rows import Trace, after_reset_row, elman_row, gru_row, is_gru, lstm_row, reset_row, state_before
from .numba_product import PANEL, ZERO, product
from .numba_sequence import copy
from .numba_steps import GRU, LSTM, RESET_FIRST, fill_row, up_to_block
from .numba_team import finish, place, take, wait_for_all

# What lies one after the other in scratch memory, each part for each direction: what is made of weights, the state with which the
# sequence began, the product within a step, gradients at the gates of some steps, those that go on from step to step.
TO_STATE, TO_INPUT, INNER, PEEPHOLES, BEFORE, WITHIN, GATES_NOW, DH, CARRIED, END = range(10)


# Narrow tiles: the latency of multiply-adds takes eight sums to hide.
_eight_rows = rows_in_place(8, 1)


# ------------------------------------------------------------------------------------------------ steps
@inline
def _time(trace, n):
    """The n-th step of the way back."""
    return n if trace.backwards else trace.steps - 1 - n


@inline
def _now(trace, n, i):
    """The gradients at the gates of row i of the batch at the n-th step back."""
    at = n % trace.together
    if not trace.backwards:
        at = trace.together - 1 - at
    return offset(trace.now, ((n // trace.together % 2 * trace.together + at) * trace.batch + i) * trace.width)


@inline
def _kept(trace, row):
    """Where those of a row are kept."""
    return offset(trace.d, row * (PANEL * lanes(trace.d)))


@inline
def _through_state(trace, n, first, last, first_block, last_block):
    """dh of rows and state blocks from the gates of the (n-1)-th step back."""
    if n == 0:
        return
    if trace.features and (n % trace.together == 0 or n == trace.steps):
        _through_input(trace, (n - 1) // trace.together * trace.together, n, first, last, first_block, last_block)
    m = min(last, read(trace.counts, _time(trace, n - 1))) - first
    if m > 0 and (n < trace.steps or trace.to_first):
        d, gates = _now(trace, n - 1, first), trace.gates * trace.hidden
        if trace.mode == RESET_FIRST:  # n has been through
            d, gates = offset(d, trace.hidden), 2 * trace.hidden
        dh = offset(trace.dh, first * trace.state + first_block * PANEL * lanes(d))
        product(d, trace.width, m, gates, trace.w_h, first_block, last_block, dh, trace.state)


@inline
def _through_input(trace, low, high, first, last, first_block, last_block):
    """The gradient at the input of steps low to high - 1 back, for a range of rows and a share of the columns."""
    if last - first == trace.batch and read(trace.counts, trace.steps - 1) == trace.batch:  # then these rows follow one another
        n = low if trace.backwards else high - 1
        _columns_of_input(trace, n, read(trace.offsets, _time(trace, n)), ZERO, (high - low) * trace.batch, first_block, last_block)
        return
    for n in range(low, high):
        t = _time(trace, n)
        m = min(last, read(trace.counts, t)) - first
        if m > 0:
            _columns_of_input(trace, n, read(trace.offsets, t) + first, first, m, first_block, last_block)


@inline
def _columns_of_input(trace, n, row, first, m, first_block, last_block):
    """dx's rows from ``row`` on, from the gates of row ``first`` of the batch at the n-th step back and what follows."""
    W, gates = PANEL * lanes(trace.now), trace.gates * trace.hidden
    blocks, panels = trace.state // W, trace.features // W
    low, high, rest = first_block * panels // blocks, last_block * panels // blocks, trace.features - panels * W
    d, dx, D = offset(_now(trace, n, first), trace.hidden if is_gru(trace) else 0), offset(trace.dx, row * trace.features), trace.width
    product(d, D, m, gates, trace.w_x, low, high, offset(dx, low * W), trace.features)
    if rest and last_block == blocks:
        dx, i = offset(dx, panels * W), 0
        while i < m:
            at, to = offset(d, i * D), offset(dx, i * trace.features)
            if i + TILE_ROWS <= m:
                many_rows(gates, at, D, 1, trace.w_x_rest, trace.w_x_row, to, trace.features, ZERO, rest, False)
                i += TILE_ROWS
            elif i + 8 <= m:
                _eight_rows(gates, at, D, 1, trace.w_x_rest, trace.w_x_row, to, trace.features, ZERO, rest, False)
                i += 8
            elif i + 4 <= m:
                four_rows(gates, at, D, 1, trace.w_x_rest, trace.w_x_row, to, trace.features, ZERO, rest, False)
                i += 4
            else:
                one_row(gates, at, D, 1, trace.w_x_rest, trace.w_x_row, to, trace.features, ZERO, rest, False)
                i += 1


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
        if is_gru(trace):
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
        _retreat_reset_first(trace, n, first, end, here, there, there_row)
        return
    u, v = first_block * W, min(last_block * W, trace.hidden)
    for i in range(first, end):
        dh, carried, before = offset(source, i * length), offset(trace.carried, i * padded), state_before(trace, i, there, there_row)
        gates, inner = offset(trace.kept_gates, (here + i) * trace.gates * padded), offset(trace.kept, (here + i) * padded)
        d, kept = _now(trace, n, i), _kept(trace, here + i)
        if trace.mode == LSTM:
            lstm_row(trace, u, v, dh, gates, inner, before, carried, d, kept)
        elif trace.mode == GRU:
            gru_row(trace, u, v, dh, gates, inner, before, carried, d, kept)
        else:
            elman_row(trace, u, v, dh, gates, d, kept)


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
def _retreat_reset_first(trace, n, first, end, here, there, there_row):
    padded, state, width = trace.padded, trace.state, trace.gates * trace.padded
    gates, d = offset(trace.kept_gates, here * width), _now(trace, n, 0)
    for i in range(first, end):
        before, carried, at = state_before(trace, i, there, there_row), offset(trace.carried, i * padded), offset(gates, i * width)
        reset_row(trace, offset(trace.dh, i * state), at, before, carried, offset(d, i * trace.width), _kept(trace, here + i))
    if end > first:
        product(offset(d, first * trace.width), trace.width, end - first, trace.hidden, trace.w_r, ZERO, padded // (PANEL * lanes(d)),
                offset(trace.scratch, first * padded), padded)
    for i in range(first, end):
        before, carried, at = state_before(trace, i, there, there_row), offset(trace.carried, i * padded), offset(gates, i * width)
        after_reset_row(trace, offset(trace.scratch, i * padded), at, before, carried, offset(d, i * trace.width), _kept(trace, here + i))


# ------------------------------------------------------------------------------------------------ before the first step and after the last
@inline
def _turned_chunk(slot, chunk, w, w_row, w_col, columns, first, k, out):
    """Panel ``chunk`` of w's columns: rows first to k - 1, then those before them."""
    W = PANEL * lanes(w)
    source, panel, count = offset(w, chunk * W * w_col), offset(out, chunk * W * k), columns - chunk * W
    pack_panel(offset(source, first * w_row), w_row, w_col, k - first, count, panel)
    if first > 0:
        pack_panel(source, w_row, w_col, first, count, offset(panel, (k - first) * W))


@inline
def _pack_turned(pool, w, w_row, w_col, columns, first, k, out):
    """A weight (k, columns) to panels for the product of its rows' gradients, which begin with row ``first``."""
    W = PANEL * lanes(w)
    parallel_for(pool if k * columns > RECURRENT_MOVED else 0, _turned_chunk, (columns + W - 1) // W,
                 (w, w_row, w_col, columns, first, k, out))


@inline
def _prepare(pool, trace, w_x, w_h, w_r, peephole):
    """What the steps read of weights."""
    hidden, W = trace.hidden, PANEL * lanes(trace.d)
    rows, size = trace.gates * hidden, w_h.itemsize
    row, column, w = w_h.strides[0] // size, w_h.strides[1] // size, pointer(w_h)
    if trace.mode == RESET_FIRST:
        _pack_turned(pool, w, row, column, trace.output, ZERO, 2 * hidden, trace.w_h)
        _pack_turned(pool, offset(w, 2 * hidden * row), row, column, trace.output, ZERO, hidden, trace.w_r)
    elif trace.steps > 1 or trace.to_first:
        first = 2 * hidden if trace.mode == GRU else ZERO
        _pack_turned(pool, w, row, column, trace.output, first, rows, trace.w_h)
    if trace.projection > 0:
        _pack_turned(pool, pointer(w_r), w_r.strides[0] // size, w_r.strides[1] // size, hidden, ZERO, trace.output, trace.w_r)
    if trace.features:
        whole, row = trace.features // W * W, w_x.strides[0] // size
        if whole:
            _pack_turned(pool, pointer(w_x), row, w_x.strides[1] // size, whole, ZERO, rows, trace.w_x)
    if trace.peepholes:
        for i in range(3):
            for u in range(trace.padded):
                write(trace.peephole, i * trace.padded + u, peephole[i * hidden + u] if u < hidden else peephole.dtype.type(0))


@inline
def _fill(rows, states, k, order, batch, size):
    """Rows of ``size`` elements: states[k]'s in order; empty: zeros."""
    for i in range(batch):
        if states.shape[0]:
            fill_row(offset(rows, i * size), states[k], read(order, i), size)
        else:
            fill_row(offset(rows, i * size), states[:, :, 0], ZERO, size)


@inline
def _begin(trace, k, order, before, dh_n, dc_n):
    _fill(trace.before, before, k, order, trace.batch, trace.padded)
    _fill(trace.dh, dh_n, k, order, trace.batch, trace.state)
    _fill(trace.carried, dc_n, k, order, trace.batch, trace.padded)


@inline
def _end(trace, k, order, dh0, dc0):
    """The first states' gradients, where they are wanted."""
    for i in range(trace.batch):
        row, dh, carried = read(order, i), offset(trace.dh, i * trace.state), offset(trace.carried, i * trace.padded)
        if dh0.shape[0]:
            if is_gru(trace):
                _add(dh, carried, ZERO, trace.output)
            copy(dh, offset(pointer(dh0[k]), row * trace.output), ZERO, trace.output)
        if dc0.shape[0]:
            copy(carried, offset(pointer(dc0[k]), row * trace.hidden), ZERO, trace.hidden)


# ------------------------------------------------------------------------------------------------ the entry point
@inline
def _rows_chunk(slot, chunk, directions, forwards, backwards, rows):
    trace = backwards if chunk % directions == 1 else forwards
    W, first = PANEL * lanes(trace.d), chunk // directions * rows
    last = min(first + rows, trace.batch)
    for n in range(trace.steps):
        _retreat(trace, n, first, last, ZERO, trace.padded // W)
    _through_state(trace, trace.steps, first, last, ZERO, trace.state // W)


@inline
def _member(slot, member, members, trace, blocks, parts, words):
    """What a thread of a team does; as in numba_sequence.py."""
    last = trace.padded // (PANEL * lanes(trace.d))
    for n in range(trace.steps + 1):
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


@kernel("i i i i i i i i i i i i i i L1 L1 L1 L1 L2 W1 R2 R2 R2 R1 R2 R2 R2 R1 R3 R2 R2 R2 R2 R3 R3 W2 W2 W2 W3 W3")
def backward(pool, slots, mode, split_units, chunk, together, features, backwards, directions, gates, hidden, output, projection, peepholes,
             counts, offsets, order, places, words, memory, w_x, w_h, w_r, peephole, w_x_back, w_h_back, w_r_back, peephole_back,
             before, kept_gates, kept, y, dy, dh_n, dc_n, d, into, dx, dh0, dc0):
    """A layer of one or two directions, which are the first axis of all arrays but weights, y and dy, and share these's columns.

    features: the input's, 0 where its gradient is not wanted. backwards: 1 where there is one direction, and it is the backward one.
    chunk: rows to a chunk, or unit blocks where ``split_units``. together: as in Trace. words: a team's for each direction, zeros.
    memory: scratch, of which ``places`` says where what is (places_of in numba_layer_gradient.py). before: lstm's first cell states,
    gru's first states; dh_n, dc_n: the last states' gradients; empty ones count as zeros. d, dh0, dc0: empty where they are not wanted.
    """
    forwards = back = _trace(ZERO, backwards, mode, together, features, gates, hidden, output, projection, peepholes, counts, offsets,
                             places, memory, kept_gates, kept, y, dy, d, into, dx, dh0, w_x)
    at_order = pointer(order)
    _prepare(pool, forwards, w_x, w_h, w_r, peephole)
    _begin(forwards, ZERO, at_order, before, dh_n, dc_n)
    if directions == 2:
        back = _trace(ZERO + 1, 1, mode, together, features, gates, hidden, output, projection, peepholes, counts, offsets, places, memory,
                      kept_gates, kept, y, dy, d, into, dx, dh0, w_x_back)
        _prepare(pool, back, w_x_back, w_h_back, w_r_back, peephole_back)
        _begin(back, ZERO + 1, at_order, before, dh_n, dc_n)
    if split_units:
        for direction in range(directions):
            trace = back if direction == 1 else forwards
            parts = (trace.padded // (PANEL * lanes(trace.d)) + chunk - 1) // chunk
            parallel_for(pool, _member, slots, (slots, trace, chunk, parts, pointer(words[direction])))
    else:
        parallel_for(pool, _rows_chunk, (counts[0] + chunk - 1) // chunk * directions, (directions, forwards, back, chunk))
    _end(forwards, ZERO, at_order, dh0, dc0)
    if directions == 2:
        _end(back, ZERO + 1, at_order, dh0, dc0)


@inline
def _trace(k, backwards, mode, together, features, gates, hidden, output, projection, peepholes, counts, offsets, places, memory,
           kept_gates, kept, y, dy, d, into, dx, dh0, w_x):
    size, base = y.itemsize, pointer(memory)
    padded, width = up_to_block(hidden, base), (gates + 1 if mode == GRU or mode == RESET_FIRST else gates) * hidden
    at = (places[2 * TO_STATE + k], places[2 * TO_INPUT + k], places[2 * INNER + k], places[2 * PEEPHOLES + k],
          places[2 * BEFORE + k], places[2 * DH + k], places[2 * CARRIED + k], places[2 * GATES_NOW + k], places[2 * WITHIN + k])
    rest = features // (PANEL * lanes(base)) * (PANEL * lanes(base))
    rows, to_first = d.shape[1] // (width // hidden * padded), 1 if dh0.shape[0] else 0
    return Trace(
        mode, backwards, gates, hidden, padded, output, up_to_block(output, base), projection, peepholes, counts[0], counts.shape[0],
        to_first, pointer(counts), pointer(offsets), offset(base, at[0]), offset(base, at[1]), offset(pointer(w_x), rest),
        w_x.strides[0] // size, features, offset(base, at[2]), offset(base, at[3]), pointer(kept_gates[k]), pointer(kept[k]),
        offset(base, at[4]), offset(pointer(y), k * output), y.strides[0] // size, offset(pointer(dy), k * output), dy.strides[0] // size,
        offset(base, at[5]), offset(base, at[6]), offset(base, at[7]), together, width, pointer(d[k]), rows * PANEL * lanes(base),
        pointer(into[k]), pointer(dx[k]), offset(base, at[8]))
