"""Large hidden states: programs share out the batch and the hidden units, and each step wants what all of them made of the last.

A program multiplies the whole state by its units' weights and finishes its units' step at once. With ONE_LAUNCH it goes on to the
next step, which needs all programs to run at the same time: a cooperative launch. Else every step is a launch of its own. The backward
step begins with the product of the step after it, whose gradients at all gates are then complete. Buffers as in triton_sequence.py.

What a step reads that others do not write is on its way before the program waits for them (:func:`arrive`, :func:`wait_for_all`): after
that there are the state, the product and the cell.

RESIDENT: the program's weights are loaded once and stay in registers. The loops are ``while``: of a ``for`` the compiler moves the
weights' reading from shared memory inside, to every step. The state comes in chunks, the next one on its way while one is multiplied,
each with a sum of its own, for a product that adds to another's waits for it. Forward, a unit's gates lie side by side (PACK columns a
unit; those that a cell lacks are zeros), so that one product serves them all. Backward, a sum over all units' gates is long and its tile
small: SLICES parts of each chunk, a warp's each, are added at the end.
"""

import triton
import triton.language as tl

from ...gpu.math import dot
from .triton_steps import backward_step, forward_step, keep_step, kept_of_step, load_gates, store_gates


@triton.jit
def arrive(counter):
    """Raise ``counter`` by one, after everything that this program has stored; answers what it then is.

    Every thread's stores precede the barrier, that precedes the release by one thread; the acquire of wait_for_all (of the last to arrive
    its own addition, of the others a look), again by one thread, precedes the barrier there: so causality is transitive, as the memory
    model of PTX defines it.
    """
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") + 1


@triton.jit
def wait_for_all(counter, seen, arrivals):
    """Return, what is seen of it, when ``counter`` has been raised ``arrivals`` times: what was stored before can then be read."""
    while seen < arrivals:
        seen = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")  # a plain load, where it is compiled
    tl.debug_barrier()
    return seen


@triton.jit
def packed_weights(w, k, u, H, PACK: tl.constexpr, GATES: tl.constexpr, BN: tl.constexpr):
    """(k, unit * PACK + gate): the weights between part of the state and the program's units."""
    column = tl.arange(0, BN * PACK)
    unit, gate = u + column // PACK, column % PACK
    mask = (k < H)[:, None] & ((unit < H) & (gate < GATES))[None, :]
    return tl.load(w + (gate * H + unit).to(tl.int64)[None, :] * H + k[:, None], mask=mask, other=0.0)


@triton.jit
def load_state(state, b, k, B, H):
    """Rows b of a state that other programs wrote: from the L2 cache, which all multiprocessors share."""
    return tl.load(state + b.to(tl.int64)[:, None] * H + k[None, :], mask=(b < B)[:, None] & (k < H)[None, :], other=0.0,
                   cache_modifier=".cg")


@triton.jit
def unpacked(acc, PACK: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr):
    """The four gates' tiles (BB, BN) of a packed one; the first, four times, where there is but one."""
    if PACK == 1:
        return acc, acc, acc, acc
    else:
        even, odd = tl.split(tl.reshape(acc, (BB, BN, 2, 2)))
        a0, a2 = tl.split(even)
        a1, a3 = tl.split(odd)
        return a0, a1, a2, a3


@triton.jit(do_not_specialize=["first", "last"])  # one machine code for all steps
def advance(gates, w, bias_n, lengths, states, cell, y, before, cells, inner, counters, first, last, T, B, H,
            MODE: tl.constexpr, TRAIN: tl.constexpr, LENGTHS: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
            GATES: tl.constexpr, R: tl.constexpr, PACK: tl.constexpr, ONE_LAUNCH: tl.constexpr, RESIDENT: tl.constexpr,
            CHUNKS: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Steps number first to last - 1 of each direction: states (2, R, B, H), read and written in turn; cell (R, B, H), float32, in place.

    The grid is (parts of the batch, tiles of units, directions); a part takes every parts-th tile of rows. counters: 32 int32 apart,
    one for each direction and part.
    """
    parts, part, direction = tl.num_programs(0), tl.program_id(0), tl.program_id(2)
    u0 = tl.program_id(1) * BN
    u = u0 + tl.arange(0, BN)
    w += direction.to(tl.int64) * GATES * H * H
    extra = tl.zeros((BN,), tl.float32)
    if BIAS:
        extra = tl.load(bias_n + direction * H + u, mask=u < H, other=0.0).to(tl.float32)
    if RESIDENT:
        kept = ()
        for j in tl.static_range(CHUNKS):
            kept = kept + (packed_weights(w, j * BK + tl.arange(0, BK), u0, H, PACK, GATES, BN),)
    size = tl.full((), R, tl.int64) * B * H
    if ONE_LAUNCH:
        counter = counters + (direction * parts + part) * 32
    seen = tl.full((), 0, tl.int32)
    s = first
    while s < last:
        t = tl.where(direction == 0, s, T - 1 - s)
        state = states + (s % 2) * size + direction.to(tl.int64) * B * H
        next_state = states + ((s + 1) % 2) * size + direction.to(tl.int64) * B * H
        b0 = part * BB
        while b0 < B:
            b = b0 + tl.arange(0, BB)
            in_b = b < B
            mask = in_b[:, None] & (u < H)[None, :]
            here = b.to(tl.int64)[:, None] * H + u[None, :]
            step = (t.to(tl.int64) * B + b) * R + direction
            at = step[:, None] * (GATES * H) + u[None, :]
            z0, z1, z2, z3 = load_gates(gates, at, H, mask, MODE)
            h = tl.load(state + here, mask=mask, other=0.0).to(tl.float32)
            c = h
            cell_at = cell + direction.to(tl.int64) * B * H + here if MODE == "lstm" else here
            if MODE == "lstm":
                c = tl.load(cell_at, mask=mask, other=0.0)
            if ONE_LAUNCH:
                seen = wait_for_all(counter, seen, (s - first) * tl.num_programs(1))
            acc = tl.zeros((BB, BN * PACK), tl.float32)
            if RESIDENT:
                none = acc
                x = load_state(state, b, tl.arange(0, BK), B, H)
                for j in tl.static_range(CHUNKS):
                    following = x
                    if j + 1 < CHUNKS:
                        following = load_state(state, b, (j + 1) * BK + tl.arange(0, BK), B, H)
                    acc += dot(x, kept[j], none, PRECISION)
                    x = following
            else:
                for k0 in range(0, H, BK):
                    k = k0 + tl.arange(0, BK)
                    acc = dot(load_state(state, b, k, B, H), packed_weights(w, k, u0, H, PACK, GATES, BN), acc, PRECISION)
            a0, a1, a2, a3 = unpacked(acc, PACK, BB, BN)
            new, new_c, g0, g1, g2, g3, m = forward_step(z0, z1, z2, z3, a0, a1, a2, a3, extra[None, :], h, c, MODE)
            place = step[:, None] * H + u[None, :]
            shown = new
            if LENGTHS:
                live = (t < tl.load(lengths + b, mask=in_b, other=0))[:, None]
                new = tl.where(live, new, h)
                new_c = tl.where(live, new_c, c)
                shown = tl.where(live, new, 0.0)
            tl.store(next_state + here, new.to(states.dtype.element_ty), mask=mask)
            tl.store(y + place, shown.to(y.dtype.element_ty), mask=mask)
            if MODE == "lstm":
                tl.store(cell_at, new_c, mask=mask)
            if TRAIN:
                keep_step(before, cells, inner, place, mask, h, new_c, m, MODE)
                store_gates(gates, at, H, mask, g0, g1, g2, g3, MODE)
            b0 += parts * BB
        if ONE_LAUNCH:
            seen = arrive(counter)
        s += 1


@triton.jit
def sliced_weights(w, k, u, H, GATES: tl.constexpr):
    """(slice, unit, k): the weights from the program's units to the gates k (slices, k)."""
    mask = (k < GATES * H)[:, None, :] & (u < H)[None, :, None]
    return tl.load(w + k.to(tl.int64)[:, None, :] * H + u[None, :, None], mask=mask, other=0.0)


@triton.jit
def sliced_gradients(d_state, row, k, in_b, H, GATES: tl.constexpr):
    """(slice, k, row): the gates' gradients, which other programs wrote: from the L2 cache."""
    mask = in_b[None, None, :] & (k < GATES * H)[:, :, None]
    return tl.load(d_state + row[None, None, :] + k[:, :, None], mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def sum_of_slices(x, SLICES: tl.constexpr, BN: tl.constexpr, BB: tl.constexpr):
    """The sum of (slices, units, rows) over the slices, in halves: then a thread has its own places; after tl.sum every warp had all."""
    x = tl.permute(x, (1, 2, 0))
    for i in tl.static_range(5):
        if SLICES >> i > 1:
            even, odd = tl.split(tl.reshape(x, (BN, BB, SLICES >> (i + 1), 2)))
            x = even + odd
    return tl.reshape(x, (BN, BB))


@triton.jit(do_not_specialize=["first", "last"])
def retreat(gates, w, c0, lengths, dy, carry, dc_state, before, cells, inner, d_input, d_state, counters, first, last, T, B, H,
            MODE: tl.constexpr, LENGTHS: tl.constexpr, C0: tl.constexpr, DY: tl.constexpr, PRECISION: tl.constexpr,
            GATES: tl.constexpr, R: tl.constexpr, ONE_LAUNCH: tl.constexpr, RESIDENT: tl.constexpr, CHUNKS: tl.constexpr,
            SLICES: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Backward steps number first to last - 1: carry (R, B, H), float32: what of dh goes past the product; dc_state likewise.

    Step number T is the product alone: carry becomes the gradient of h0. Grid and counters as in advance. BK: a slice's part of a chunk.
    """
    parts, part, direction = tl.num_programs(0), tl.program_id(0), tl.program_id(2)
    u = tl.program_id(1) * BN + tl.arange(0, BN)
    in_u = u < H
    w += direction.to(tl.int64) * GATES * H * H
    slices = tl.arange(0, SLICES)[:, None] * BK + tl.arange(0, BK)[None, :]
    if RESIDENT:
        kept = ()
        for j in tl.static_range(CHUNKS):
            kept = kept + (sliced_weights(w, j * SLICES * BK + slices, u, H, GATES),)
    if ONE_LAUNCH:
        counter = counters + (direction * parts + part) * 32
    seen = tl.full((), 0, tl.int32)
    s = first
    while s < last:
        t = tl.where(direction == 0, T - 1 - s, s)
        b0 = part * BB
        while b0 < B:
            b = b0 + tl.arange(0, BB)
            in_b = b < B
            mask = in_b[:, None] & in_u[None, :]
            ready = mask & (b[:, None] * 0 + s < T)  # of the last, which is no step, there is nothing to read
            here = (direction.to(tl.int64) * B + b.to(tl.int64))[:, None] * H + u[None, :]
            step = (t.to(tl.int64) * B + b) * R + direction
            place = step[:, None] * H + u[None, :]
            at = step[:, None] * (GATES * H) + u[None, :]
            dh = tl.load(carry + here, mask=mask, other=0.0)
            g0, g1, g2, g3 = load_gates(gates, at, H, ready, MODE)
            d = dh
            if DY:
                d = tl.load(dy + place, mask=ready, other=0.0)
            after, old, m = kept_of_step(before, cells, inner, c0, here, place, T - 1 - s, direction, B, H, ready, dh, MODE, C0, R)
            kept_dc = dh
            if MODE == "lstm":
                kept_dc = tl.load(dc_state + here, mask=mask, other=0.0)
            if ONE_LAUNCH:
                seen = wait_for_all(counter, seen, (s - first) * tl.num_programs(1))
            done = tl.where(direction == 0, t + 1, t - 1)
            row = ((done.to(tl.int64) * B + b) * R + direction) * (GATES * H)
            if RESIDENT:  # not under an ``if``, where the weights would be read again; before the first step there are zeros
                there = in_b & (b * 0 + s > 0)
                none = tl.zeros((SLICES, BN, BB), tl.float32)
                total = none
                x = sliced_gradients(d_state, row, slices, there, H, GATES)
                for j in tl.static_range(CHUNKS):
                    following = x
                    if j + 1 < CHUNKS:
                        following = sliced_gradients(d_state, row, (j + 1) * SLICES * BK + slices, there, H, GATES)
                    total = dot(kept[j], x, total, PRECISION)
                    x = following
                dh += tl.trans(sum_of_slices(total, SLICES, BN, BB))
            elif s > 0:
                for k0 in range(0, GATES * H, BK):
                    k = k0 + tl.arange(0, BK)
                    in_k = k < GATES * H
                    x = tl.load(d_state + row[:, None] + k[None, :], mask=in_b[:, None] & in_k[None, :], other=0.0, cache_modifier=".cg")
                    part_w = tl.load(w + k.to(tl.int64)[:, None] * H + u[None, :], mask=in_k[:, None] & in_u[None, :], other=0.0)
                    dh = dot(x, part_w, dh, PRECISION)
            if s == T:
                tl.store(carry + here, dh, mask=mask)
            else:
                live = in_b[:, None]
                if LENGTHS:
                    live = live & (t < tl.load(lengths + b, mask=in_b, other=0))[:, None]
                into = dh
                if DY:
                    into += d.to(tl.float32)
                into = tl.where(live, into, 0.0)
                dc = tl.where(live, kept_dc, 0.0)
                d0, d1, d2, d3, at_inner, past, old_dc = backward_step(g0, g1, g2, g3, into, dc, old, after, m, MODE)
                if MODE == "gru":
                    store_gates(d_state, at, H, mask, d0, d1, at_inner, d3, MODE)
                store_gates(d_input, at, H, mask, d0, d1, d2, d3, MODE)
                tl.store(carry + here, tl.where(live, past, dh), mask=mask)
                if MODE == "lstm":
                    tl.store(dc_state + here, tl.where(live, old_dc, kept_dc), mask=mask)
            b0 += parts * BB
        if ONE_LAUNCH:
            seen = arrive(counter)
        s += 1
