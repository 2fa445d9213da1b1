"""Large hidden states: one launch a step, in which programs share out the batch and the hidden units.

Each program multiplies the whole state by its units' weights, which the L2 cache holds, and finishes its units' step at once.
The backward step begins with the product of the step after it, whose gradients at all gates are then complete.
Buffers as in triton_sequence.py.
"""

import triton
import triton.language as tl

from ...gpu.math import dot
from .triton_steps import backward_step, forward_step, keep_gates, store_gate


@triton.jit(do_not_specialize=["s"])  # one machine code for all steps
def advance(gates, w, bias_n, lengths, state, next_state, cell, y, before, cells, inner, s, T, B, H,
            MODE: tl.constexpr, TRAIN: tl.constexpr, LENGTHS: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
            GATES: tl.constexpr, R: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Step number s of each direction: next_state (R, B, H) from state; cell (R, B, H), float32, in place."""
    direction = tl.program_id(2)
    t = tl.where(direction == 0, s, T - 1 - s)
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    u = tl.program_id(1) * BN + tl.arange(0, BN)
    in_b, in_u = b < B, u < H
    mask = in_b[:, None] & in_u[None, :]
    w += direction * GATES * H * H
    row = (direction.to(tl.int64) * B + b.to(tl.int64)) * H
    a0 = tl.zeros((BB, BN), tl.float32)
    a1 = tl.zeros((BB, BN), tl.float32)
    a2 = tl.zeros((BB, BN), tl.float32)
    a3 = tl.zeros((BB, BN), tl.float32)
    for k0 in range(0, H, BK):
        k = k0 + tl.arange(0, BK)
        x = tl.load(state + row[:, None] + k[None, :], mask=in_b[:, None] & (k < H)[None, :], other=0.0)
        at = w + u[None, :] * H + k[:, None]
        whole = (k < H)[:, None] & in_u[None, :]
        a0 = dot(x, tl.load(at, mask=whole, other=0.0), a0, PRECISION)
        if GATES > 1:
            a1 = dot(x, tl.load(at + H * H, mask=whole, other=0.0), a1, PRECISION)
            a2 = dot(x, tl.load(at + 2 * H * H, mask=whole, other=0.0), a2, PRECISION)
        if GATES > 3:
            a3 = dot(x, tl.load(at + 3 * H * H, mask=whole, other=0.0), a3, PRECISION)
    here = row[:, None] + u[None, :]
    h = tl.load(state + here, mask=mask, other=0.0).to(tl.float32)
    c = h
    if MODE == "lstm":
        c = tl.load(cell + here, mask=mask, other=0.0)
    extra = tl.zeros((BN,), tl.float32)
    if BIAS:
        extra = tl.load(bias_n + direction * H + u, mask=in_u, other=0.0).to(tl.float32)
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
    tl.store(next_state + here, new.to(next_state.dtype.element_ty), mask=mask)
    if MODE == "lstm":
        tl.store(cell + here, new_c, mask=mask)
    if TRAIN:
        tl.store(before + place, h.to(before.dtype.element_ty), mask=mask)
        keep_gates(gates, step * (GATES * H), u, H, mask, g0, g1, g2, g3, MODE)
        if MODE == "lstm":
            tl.store(cells + place, new_c, mask=mask)
        if MODE == "gru":
            tl.store(inner + place, m.to(inner.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["s"])
def retreat(gates, w, c0, lengths, dy, carry, dc_state, before, cells, inner, d_input, d_state, s, T, B, H,
            MODE: tl.constexpr, LENGTHS: tl.constexpr, C0: tl.constexpr, DY: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
            GATES: tl.constexpr, R: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Backward step number s: carry (R, B, H), float32: what of dh goes past the product; dc_state likewise.

    LAST: no step is left, only the product: carry becomes the gradient of h0.
    """
    direction = tl.program_id(2)
    t = tl.where(direction == 0, T - 1 - s, s)
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    u = tl.program_id(1) * BN + tl.arange(0, BN)
    in_b, in_u = b < B, u < H
    mask = in_b[:, None] & in_u[None, :]
    here = (direction.to(tl.int64) * B + b.to(tl.int64))[:, None] * H + u[None, :]
    w += direction * GATES * H * H
    dh = tl.load(carry + here, mask=mask, other=0.0)
    if s > 0:
        done = tl.where(direction == 0, t + 1, t - 1)
        row = ((done.to(tl.int64) * B + b) * R + direction) * (GATES * H)
        for k0 in range(0, GATES * H, BK):
            k = k0 + tl.arange(0, BK)
            in_k = k < GATES * H
            d = tl.load(d_state + row[:, None] + k[None, :], mask=in_b[:, None] & in_k[None, :], other=0.0)
            part = tl.load(w + k[:, None] * H + u[None, :], mask=in_k[:, None] & in_u[None, :], other=0.0)
            dh = dot(d, part, dh, PRECISION)
    if LAST:
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
        old, after, m = into, into, into
        if MODE == "gru":
            old = tl.load(before + place, mask=mask, other=0.0).to(tl.float32)
            m = tl.load(inner + place, mask=mask, other=0.0).to(tl.float32)
        if MODE == "lstm":
            kept_dc = tl.load(dc_state + here, mask=mask, other=0.0)
            dc = tl.where(live, kept_dc, 0.0)
            after = tl.load(cells + place, mask=mask, other=0.0)
            earlier = tl.where(direction == 0, t - 1, t + 1)
            exists = in_b[:, None] & ((earlier + b * 0) >= 0)[:, None] & ((earlier + b * 0) < T)[:, None]
            old_place = ((earlier.to(tl.int64) * B + b) * R + direction)[:, None] * H + u[None, :]
            old = tl.load(cells + old_place, mask=mask & exists, other=0.0)
            if C0:
                old = tl.where(exists, old, tl.load(c0 + here, mask=mask, other=0.0).to(tl.float32))
        row = step * (GATES * H)
        d0, d1, d2, d3, at_inner, past, old_dc = backward_step(gates, row, u, H, mask, into, dc, old, after, m, MODE)
        store_gate(d_input, row, u, 0, H, mask, d0)
        if GATES > 1:
            store_gate(d_input, row, u, 1, H, mask, d1)
            store_gate(d_input, row, u, 2, H, mask, d2)
        if GATES > 3:
            store_gate(d_input, row, u, 3, H, mask, d3)
        if MODE == "gru":
            store_gate(d_state, row, u, 0, H, mask, d0)
            store_gate(d_state, row, u, 1, H, mask, d1)
            store_gate(d_state, row, u, 2, H, mask, at_inner)
        tl.store(carry + here, tl.where(live, past, dh), mask=mask)
        if MODE == "lstm":
            tl.store(dc_state + here, tl.where(live, old_dc, kept_dc), mask=mask)
