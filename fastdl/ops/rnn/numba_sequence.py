"""Whole sequences, forward: every step of a layer in one call of a compiled function.

The rows of a batch stand sorted by length, longest first, so the rows alive at a step are the first ``counts[t]`` of
the batch, and what belongs to step t, in x, y and everything kept, is rows ``offsets[t]`` and following: packed, without
padding. A range of rows goes through all steps on its own; where rows are few and hidden units many, the units of each
step are split over threads instead (see numba_team.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import lanes, load, load_n, offset, pointer, read, store, store_n
from .numba_beside import FEWEST_FEATURES, PANELS, finish_work, product_beside
from .numba_input import (
    ask_for_input,
    behind_gates,
    first_steps,
    gates_at,
    gates_of,
    lowest,
    next_steps,
    project_input,
    time,
    work_of_step,
)
from .numba_product import PANEL, ZERO, product, product_on, stream_on
from .numba_steps import (
    GRU,
    LSTM,
    RESET_FIRST,
    Places,
    Units,
    advance_rows,
    after_reset_row,
    fill_row,
    reset_row,
    up_to_block,
)
from .numba_team import finish, place, take, wait_for_all

# What lies one after the other in a layer's scratch memory, each part for each direction: what is made of weights, where
# that is not kept (see numba_weights.py), states, whose rows are as long as the blocks of their units, and the rest.
W_X, W_H, W_R, BIAS, PEEPHOLE, H, C, SCRATCH = range(8)


# Rows from which on the states are not copied to y but only there, and the input is asked for ahead. With fewer a step is so short that
# it would wait for what the last one has just written to unaligned memory.
_SEVERAL = 4


class Layer(NamedTuple):
    """One direction of a layer: its sizes and where its memory is."""

    units: Any  # Units
    backwards: int
    gates: int
    batch: int
    steps: int
    together: int  # the input's share of the gates is computed for so many steps at a time; 0: with each step's blocks
    beside: int  # whether that is done for fewer, a part at each of the steps before; see numba_beside.py
    features: int
    output: int  # the state's size: hidden, or the projection's
    state: int  # the same, up to the end of its last block
    projection: int
    counts: Any
    offsets: Any
    order: Any  # where in the batch a row's last states go
    x: Any
    x_row: int
    bias: Any  # what sums of the input's share begin with; behind it the state's; see fill_biases
    w_x: Any  # packed, as w_h and w_r
    w_h: Any
    streams: int  # whether w_h lies as streams, and there is one row
    w_r: Any  # the projection; where the reset gate is first, n's weight of the state
    y: Any
    y_row: int
    h: Any  # (2, batch, state): the states before and after a step take turns
    in_output: int  # whether the states after a step are only in y, which the next one reads
    c: Any  # (batch, padded)
    h_n: Any  # (batch, output)
    c_n: Any  # (batch, hidden)
    kept_gates: Any  # (rows, gates of all blocks), the units' activated gates, where training
    kept: Any  # (rows, padded), where training
    scratch: Any  # the input's share of the gates, where not training; the state's share; operands of products within a step


@inline
def _blocks(layer):
    return layer.units.padded // (PANEL * lanes(layer.x))


# ------------------------------------------------------------------------------------------------ a step
@inline
def _advance(layer, n, t, first, last, first_block, last_block, x_gates, h_gates, work):
    """Step t, the n-th, of rows first to last - 1 and a range of unit blocks."""
    units, W = layer.units, PANEL * lanes(layer.x)
    rows, padded, state = last - first, units.padded, layer.state
    here = read(layer.offsets, t) + first
    before, before_row = offset(layer.h, (n % 2 * layer.batch + first) * state), state
    after, after_row = offset(layer.h, ((n + 1) % 2 * layer.batch + first) * state), state
    if layer.in_output:
        if n > 0:
            before, before_row = offset(layer.y, (read(layer.offsets, time(layer, n - 1)) + first) * layer.y_row), layer.y_row
        after, after_row = offset(layer.y, here * layer.y_row), layer.y_row
    if units.mode == RESET_FIRST:
        product(before, state, rows, layer.output, layer.w_h, ZERO, 2 * _blocks(layer), h_gates, 2 * padded)
        _advance_reset_first(layer, rows, x_gates, h_gates, before, after)
    elif layer.projection > 0:
        answer = offset(h_gates, rows * layer.gates * padded)  # what is to be projected
        _advance_blocks(layer, n, here, first, rows, first_block, last_block, x_gates, h_gates, before, before_row, answer, padded, work)
        product(answer, padded, rows, units.hidden, layer.w_r, ZERO, state // W, after, state)
    else:
        _advance_blocks(layer, n, here, first, rows, first_block, last_block, x_gates, h_gates, before, before_row, after, after_row, work)
    if layer.in_output:
        return
    start, end = first_block * W, min(last_block * W, layer.output)
    if layer.projection > 0:
        start, end = 0, layer.output
    for i in range(rows):
        copy(offset(after, i * state), offset(layer.y, (here + i) * layer.y_row), start, end)


@inline
def _advance_blocks(layer, n, here, first, rows, first_block, last_block, x_gates, h_gates, before, before_row, answer, length, work):
    """The units of some blocks, a few at a time: products, then activations, which a processor begins while the next products
    are under way. Every other step goes through the blocks the other way: the weights that were read last are in the caches."""
    units, W, gates = layer.units, PANEL * lanes(layer.x), layer.gates
    padded = units.padded
    h_gates = offset(h_gates, rows * first_block * gates * W)  # where other threads do not write
    together, kept = 4 if gates == 1 else 1, here if units.train else 0
    groups = (last_block - first_block + together - 1) // together
    x = offset(layer.x, here * layer.x_row)
    later = n + max(1, layer.together)
    asking = rows >= _SEVERAL and later < layer.steps
    tile = work.first
    for g in range(groups):
        if asking:
            ask_for_input(layer, later, first, rows, g, groups)
        low = first_block + (groups - 1 - g if n % 2 else g) * together
        high = min(low + together, last_block)
        column, width = low * gates * W, (high - low) * gates * W
        share, share_row = offset(x_gates, column), gates * padded
        if layer.together == 0:
            share, share_row = x_gates, width
            bias = offset(layer.bias, column)
            product_on(bias, ZERO, x, layer.x_row, rows, layer.features, layer.w_x, low * gates, high * gates, share, share_row)
        start, start_row = share, share_row
        if units.mode == GRU:
            start, start_row = offset(layer.bias, gates * padded + column), ZERO
        if tile < work.last and (high - low) * gates == PANELS:
            tile = product_beside(work, tile, start, before, layer.output, layer.w_h, low * gates, h_gates)
        elif layer.streams:
            stream_on(start, before, layer.output, layer.w_h, low, gates, h_gates)
        else:
            product_on(start, start_row, before, before_row, rows, layer.output, layer.w_h, low * gates, high * gates, h_gates, width)
        advance_rows(units, rows, low, high, Places(
            offset(share, -column), share_row, offset(h_gates, -column), width, gates * W, W, before, before_row, answer, length,
            offset(layer.c, first * padded), offset(layer.kept_gates, kept * gates * padded), offset(layer.kept, kept * padded)))
    finish_work(work, tile)


@inline
def _advance_reset_first(layer, rows, x_gates, h_gates, before, after):
    units, padded = layer.units, layer.units.padded
    reset = offset(h_gates, rows * 2 * padded)
    inner = offset(reset, rows * padded)
    for i in range(rows):
        at = i * padded
        reset_row(units, offset(x_gates, 3 * at), offset(h_gates, 2 * at), offset(before, at), offset(reset, at))
    bias = offset(layer.bias, 3 * padded)
    product_on(bias, ZERO, reset, padded, rows, units.hidden, layer.w_r, ZERO, _blocks(layer), inner, padded)
    for i in range(rows):
        at = i * padded
        after_reset_row(units, offset(x_gates, 3 * at), offset(h_gates, 2 * at), offset(inner, at), offset(before, at), offset(after, at))


@inline
def copy(source, target, start, end):
    """target[start:end] = source[start:end]."""
    V = lanes(source)
    j = start
    while j + V <= end:
        store(target, j, load(source, j))
        j += V
    if j < end:
        store_n(target, j, load_n(source, j, end - j), end - j)


@inline
def _last_states(layer, first, last):
    """h_n, and lstm's c_n, of rows first to last - 1, all of whose steps are done."""
    t, padded, hidden = layer.steps - 1, layer.units.padded, layer.units.hidden
    for i in range(first, last):
        row = i
        if not layer.backwards:
            while read(layer.counts, t) <= i:
                t -= 1
            row += read(layer.offsets, t)
        place = read(layer.order, i)
        copy(offset(layer.y, row * layer.y_row), offset(layer.h_n, place * layer.output), ZERO, layer.output)
        if layer.units.mode == LSTM:
            copy(offset(layer.c, i * padded), offset(layer.c_n, place * hidden), ZERO, hidden)


# ------------------------------------------------------------------------------------------------ all steps of some rows
@inline
def _steps_of_rows(layer, first, last, scratch):
    width, rows = layer.gates * layer.units.padded, last - first
    if layer.together == 0:
        nothing = work_of_step(layer, scratch, ZERO, ZERO, layer.steps, ZERO)
        for n in range(layer.steps):
            t = time(layer, n)
            end = min(last, read(layer.counts, t))
            if end > first:
                _advance(layer, n, t, first, end, ZERO, _blocks(layer), scratch, offset(scratch, rows * width), nothing)
        return
    n, many, half = ZERO, first_steps(layer), ZERO
    while many > 0:
        low = lowest(layer, n, many)
        x_gates, h_gates = gates_of(layer, scratch, low, first, rows, half), behind_gates(layer, scratch, rows)
        if n == 0 or not layer.beside:
            project_input(layer, low, low + many, first, last, ZERO, _blocks(layer), x_gates)
        for i in range(many):
            t = time(layer, n + i)
            end = min(last, read(layer.counts, t))
            if end > first:
                work = work_of_step(layer, scratch, i, n, many, half)
                _advance(layer, n + i, t, first, end, ZERO, _blocks(layer), gates_at(layer, x_gates, low, t, rows), h_gates, work)
        n, many, half = n + many, next_steps(layer, n, many), layer.beside - half


@inline
def _rows_chunk(slot, chunk, directions, forwards, backwards, rows, size):
    layer = backwards if chunk % directions == 1 else forwards
    first = chunk // directions * rows
    last = min(first + rows, layer.batch)
    _steps_of_rows(layer, first, last, offset(layer.scratch, slot * size))
    _last_states(layer, first, last)


# ------------------------------------------------------------------------------------------------ some units of each step
@inline
def _some_units(layer, n, first_block, last_block):
    """The n-th step of all rows and some units, whose input's share of the gates comes with the first of some steps."""
    start = n - n % layer.together
    many = min(layer.together, layer.steps - start)
    low = lowest(layer, start, many)
    x_gates = gates_of(layer, layer.scratch, low, ZERO, layer.batch, ZERO)
    h_gates = behind_gates(layer, layer.scratch, layer.batch)
    if n == start:
        project_input(layer, low, low + many, ZERO, layer.batch, first_block, last_block, x_gates)
    t = time(layer, n)
    x_gates, nothing = gates_at(layer, x_gates, low, t, layer.batch), work_of_step(layer, layer.scratch, ZERO, ZERO, layer.steps, ZERO)
    _advance(layer, n, t, ZERO, read(layer.counts, t), first_block, last_block, x_gates, h_gates, nothing)


@inline
def _member(slot, member, members, layer, blocks, parts, words):
    """What a thread of a team does: at each step its own parts of the units, then those that nobody has begun."""
    for n in range(layer.steps):
        for i in range(parts):
            part = place(member, members, parts, i, n)
            if take(words, part, n):
                _some_units(layer, n, part * blocks, min((part + 1) * blocks, _blocks(layer)))
                finish(words, part, n)
        wait_for_all(words, parts, n)


@inline
def _steps_by_units(pool, members, layer, blocks, words):
    """All steps of all rows, ``blocks`` unit blocks to a part of each."""
    parts = (_blocks(layer) + blocks - 1) // blocks
    parallel_for(pool, _member, members, (members, layer, blocks, parts, words))
    _last_states(layer, ZERO, layer.batch)


# ------------------------------------------------------------------------------------------------ the entry points
@kernel("i i i i i i i i i i i i i i i i L1 L1 L1 L1 L2 R2 W1 R1 R1 R1 R1 R1 R1 R1 R1 R1 R1 R3 R3 W2 W3 W3 W2 W2")
def forward(pool, slots, mode, train, split_units, chunk, together, beside, streams, backwards, directions, gates, hidden, output,
            projection, peepholes, counts, offsets, order, places, words, x, memory, w_x, w_h, w_r, bias, peephole, w_x_back, w_h_back,
            w_r_back, bias_back, peephole_back, h0, c0, y, h_n, c_n, kept_gates, kept):
    """A layer of one or two directions, which share y's columns and are the first axis of h0, c0, h_n, c_n, kept_gates and kept.

    backwards: 1 where there is one direction, and it is the backward one. chunk: rows to a chunk, or unit blocks where
    ``split_units``. beside: whether the input may be multiplied along with the state (numba_beside.py), where units are not split.
    streams: whether w_h lies as in_streams makes it. memory: scratch, of which ``places`` says where what is (see places_of in
    numba_plan.py). words: a team's for each direction, zeros (numba_team.py). w_x, w_h, w_r, bias, peephole: what numba_weights.py
    makes of weights. h0, c0: empty ones count as zeros.
    """
    forwards = back = _layer(ZERO, backwards, mode, train, together, beside, streams, gates, hidden, output, projection, peepholes, counts,
                             offsets, order, places, x, memory, w_x, w_h, w_r, bias, peephole, y, h_n, c_n, kept_gates, kept)
    _first_states(forwards, ZERO, h0, c0)
    if directions == 2:
        back = _layer(ZERO + 1, 1, mode, train, together, beside, streams, gates, hidden, output, projection, peepholes, counts, offsets,
                      order, places, x, memory, w_x_back, w_h_back, w_r_back, bias_back, peephole_back, y, h_n, c_n, kept_gates, kept)
        _first_states(back, ZERO + 1, h0, c0)
    if split_units:
        _steps_by_units(pool, slots, forwards, chunk, pointer(words[0]))
        if directions == 2:
            _steps_by_units(pool, slots, back, chunk, pointer(words[1]))
    else:
        parallel_for(pool, _rows_chunk, (counts[0] + chunk - 1) // chunk * directions,
                     (directions, forwards, back, chunk, (memory.shape[0] - places[2 * SCRATCH]) // slots))


@inline
def _first_states(layer, k, h0, c0):
    for i in range(layer.batch):
        row = read(layer.order, i)
        for half in range(2):
            h = offset(layer.h, (half * layer.batch + i) * layer.state)
            if h0.shape[0]:
                fill_row(h, h0[k], row, layer.state)
            else:
                fill_row(h, h0[:, :, 0], row, layer.state)
        if layer.units.mode == LSTM:
            c = offset(layer.c, i * layer.units.padded)
            if c0.shape[0]:
                fill_row(c, c0[k], row, layer.units.padded)
            else:
                fill_row(c, c0[:, :, 0], row, layer.units.padded)


@inline
def _layer(k, backwards, mode, train, together, beside, streams, gates, hidden, output, projection, peepholes, counts, offsets, order,
           places, x, memory, w_x, w_h, w_r, bias, peephole, y, h_n, c_n, kept_gates, kept):
    size, base = x.itemsize, pointer(memory)
    state = up_to_block(output, base)
    in_output = 1 if counts[0] >= _SEVERAL and state == output and projection == 0 and mode != RESET_FIRST else 0
    if backwards and counts[-1] < counts[0]:  # rows that begin where there is no step before
        in_output = 0
    if x.shape[1] < FEWEST_FEATURES:
        beside = 0
    units = Units(mode, train, hidden, up_to_block(hidden, base), pointer(peephole), peepholes)
    return Layer(
        units, backwards, gates, counts[0], counts.shape[0], together, beside, x.shape[1], output, state, projection,
        pointer(counts), pointer(offsets), pointer(order), pointer(x), x.strides[0] // size,
        pointer(bias), pointer(w_x), pointer(w_h), streams, pointer(w_r), offset(pointer(y), k * output), y.strides[0] // size,
        offset(base, places[2 * H + k]), in_output, offset(base, places[2 * C + k]),
        pointer(h_n[k]), pointer(c_n[k]), pointer(kept_gates[k]), pointer(kept[k]), offset(base, places[2 * SCRATCH]))
