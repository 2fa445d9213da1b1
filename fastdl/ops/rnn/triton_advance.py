"""Large hidden states: programs share out the batch and the hidden units, and each step wants what all of them made of the last.

A program multiplies the whole state by its units' weights and finishes its units' step at once. With ONE_LAUNCH it goes on to the
next step when all programs of its rows have arrived (:func:`wait_for_all`), which needs all programs to run at the same time: a
cooperative launch. Else every step is a launch of its own. The backward step begins with the product of the step after it, whose
gradients at all gates are then complete. Buffers as in triton_sequence.py.

Forward, a unit's gates lie side by side (PACK columns a unit; those that a cell lacks are zeros), so that one product serves them all.
RESIDENT: the program's weights are loaded once and stay in registers or shared memory.
"""

import triton
import triton.language as tl

from ...gpu.math import dot
from .triton_steps import backward_step, forward_step, keep_step, kept_of_step, store_gates


@triton.jit
def wait_for_all(counter, arrivals):
    """Return when ``counter`` has been raised ``arrivals`` times: what was stored before, by any of those programs, can then be read.

    Every thread's stores precede the first barrier, that precedes the release by one thread; the acquire (of the last to arrive its
    own addition, of the others a look), again by one thread, precedes the second barrier: so causality is transitive, as the memory
    model of PTX defines it.
    """
    tl.debug_barrier()
    seen = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") + 1
    while seen < arrivals:
        seen = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")  # a plain load, where it is compiled
    tl.debug_barrier()


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
    for s in tl.range(first, last, num_stages=1):
        t = tl.where(direction == 0, s, T - 1 - s)
        state = states + (s % 2) * size + direction.to(tl.int64) * B * H
        next_state = states + ((s + 1) % 2) * size + direction.to(tl.int64) * B * H
        for b0 in tl.range(part * BB, B, parts * BB, num_stages=1):
            b = b0 + tl.arange(0, BB)
            acc = tl.zeros((BB, BN * PACK), tl.float32)
            if RESIDENT:
                x = load_state(state, b, tl.arange(0, BK), B, H)
                for j in tl.static_range(CHUNKS):
                    following = x
                    if j + 1 < CHUNKS:  # on its way while this chunk is multiplied
                        following = load_state(state, b, (j + 1) * BK + tl.arange(0, BK), B, H)
                    acc = dot(x, kept[j], acc, PRECISION)
                    x = following
            else:
                for k0 in range(0, H, BK):
                    k = k0 + tl.arange(0, BK)
                    acc = dot(load_state(state, b, k, B, H), packed_weights(w, k, u0, H, PACK, GATES, BN), acc, PRECISION)
            a0, a1, a2, a3 = unpacked(acc, PACK, BB, BN)
            in_b = b < B
            mask = in_b[:, None] & (u < H)[None, :]
            row = b.to(tl.int64) * H
            here = row[:, None] + u[None, :]
            h = tl.load(state + here, mask=mask, other=0.0).to(tl.float32)
            c = h
            cell_at = cell + direction.to(tl.int64) * B * H + here if MODE == "lstm" else here
            if MODE == "lstm":
                c = tl.load(cell_at, mask=mask, other=0.0)
            step = (t.to(tl.int64) * B + b) * R + direction
            new, new_c, g0, g1, g2, g3, m = forward_step(gates, step * (GATES * H), u, H, mask, a0, a1, a2, a3, extra, h, c, MODE)
            place = step[:, None] * H + u[None, :]
            shown = new
            if LENGTHS:
                live = (t < tl.load(lengths + b, mask=in_b, other=0))[:, None]
                new = tl.where(live, new, h)
                new_c = tl.where(live, new_c, c)
                shown = tl.where(live, new, 0.0)
            tl.store(y + place, shown.to(y.dtype.element_ty), mask=mask)
            tl.store(next_state + here, new.to(states.dtype.element_ty), mask=mask)
            if MODE == "lstm":
                tl.store(cell_at, new_c, mask=mask)
            if TRAIN:
                keep_step(gates, before, cells, inner, step * (GATES * H), place, u, H, mask, h, new_c, g0, g1, g2, g3, m, MODE)
        if ONE_LAUNCH:
            wait_for_all(counters + (direction * parts + part) * 32, (s - first + 1) * tl.num_programs(1))


@triton.jit(do_not_specialize=["first", "last"])
def retreat(gates, w, c0, lengths, dy, carry, dc_state, before, cells, inner, d_input, d_state, counters, first, last, T, B, H,
            MODE: tl.constexpr, LENGTHS: tl.constexpr, C0: tl.constexpr, DY: tl.constexpr, PRECISION: tl.constexpr,
            GATES: tl.constexpr, R: tl.constexpr, ONE_LAUNCH: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Backward steps number first to last - 1: carry (R, B, H), float32: what of dh goes past the product; dc_state likewise.

    Step number T is the product alone: carry becomes the gradient of h0. Grid and counters as in advance.
    """
    parts, part, direction = tl.num_programs(0), tl.program_id(0), tl.program_id(2)
    u = tl.program_id(1) * BN + tl.arange(0, BN)
    in_u = u < H
    w += direction.to(tl.int64) * GATES * H * H
    for s in tl.range(first, last, num_stages=1):
        t = tl.where(direction == 0, T - 1 - s, s)
        for b0 in tl.range(part * BB, B, parts * BB, num_stages=1):
            b = b0 + tl.arange(0, BB)
            in_b = b < B
            mask = in_b[:, None] & in_u[None, :]
            here = (direction.to(tl.int64) * B + b.to(tl.int64))[:, None] * H + u[None, :]
            dh = tl.load(carry + here, mask=mask, other=0.0)
            if s > 0:
                done = tl.where(direction == 0, t + 1, t - 1)
                row = ((done.to(tl.int64) * B + b) * R + direction) * (GATES * H)
                for k0 in range(0, GATES * H, BK):
                    k = k0 + tl.arange(0, BK)
                    in_k = k < GATES * H
                    d = tl.load(d_state + row[:, None] + k[None, :], mask=in_b[:, None] & in_k[None, :], other=0.0, cache_modifier=".cg")
                    part_w = tl.load(w + k.to(tl.int64)[:, None] * H + u[None, :], mask=in_k[:, None] & in_u[None, :], other=0.0)
                    dh = dot(d, part_w, dh, PRECISION)
            if s == T:
                tl.store(carry + here, dh, mask=mask)
            else:
                step = (t.to(tl.int64) * B + b) * R + direction
                place = step[:, None] * H + u[None, :]
                live = in_b[:, None]
                if LENGTHS:
                    live = live & (t < tl.load(lengths + b, mask=in_b, other=0))[:, None]
                into = dh
                if DY:
                    into += tl.load(dy + place, mask=mask & live, other=0.0).to(tl.float32)
                into = tl.where(live, into, 0.0)
                dc = into
                old, after, m = kept_of_step(before, cells, inner, c0, here, t, direction, b, u, T, B, H, mask, into, MODE, C0, R)
                if MODE == "lstm":
                    kept_dc = tl.load(dc_state + here, mask=mask, other=0.0)
                    dc = tl.where(live, kept_dc, 0.0)
                row = step * (GATES * H)
                d0, d1, d2, d3, at_inner, past, old_dc = backward_step(gates, row, u, H, mask, into, dc, old, after, m, MODE)
                store_gates(d_input, row, u, H, mask, d0, d1, d2, d3, MODE)
                if MODE == "gru":
                    store_gates(d_state, row, u, H, mask, d0, d1, at_inner, d3, MODE)
                tl.store(carry + here, tl.where(live, past, dh), mask=mask)
                if MODE == "lstm":
                    tl.store(dc_state + here, tl.where(live, old_dc, kept_dc), mask=mask)
        if ONE_LAUNCH:
            wait_for_all(counters + (direction * parts + part) * 32, (s - first + 1) * tl.num_programs(1))
