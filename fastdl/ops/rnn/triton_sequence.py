"""Whole sequences in one launch: a program takes a tile of the batch through all steps of one direction.

The state and the recurrent weights stay with the program, in registers and shared memory, and rows of a batch know nothing of each
other, so nothing waits for another program. For hidden sizes whose weights fit; triton_advance.py serves the others.

Buffers, with R = directions: gates (T, B, R * G * H); y and its like (T, B, R * H); states (R, B, H); weights (R, G * H, H).
"""

import triton
import triton.language as tl

from ...gpu.math import dot
from .triton_steps import backward_step, forward_step, keep_step, kept_of_step, store_gates


@triton.jit
def load_weight(w, k, n, number, H, FORWARD: tl.constexpr):
    """A gate's weights as the second operand of a product: (h, unit) forward, (unit, h) backward."""
    if FORWARD:
        at = (number * H + n)[None, :] * H + k[:, None]
    else:
        at = (number * H + k)[:, None] * H + n[None, :]
    return tl.load(w + at, mask=(k < H)[:, None] & (n < H)[None, :], other=0.0)


@triton.jit
def sequence(gates, w, bias_n, h0, c0, lengths, y, h_n, c_n, before, cells, inner, T, B, H,
             MODE: tl.constexpr, TRAIN: tl.constexpr, LENGTHS: tl.constexpr, H0: tl.constexpr, C0: tl.constexpr, BIAS: tl.constexpr,
             PRECISION: tl.constexpr, GATES: tl.constexpr, R: tl.constexpr, BB: tl.constexpr, HB: tl.constexpr):
    """before: h before each step. cells: lstm's c after each step, float32; inner: gru's W_hn h + b_hn. All three where TRAIN."""
    direction = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    u = tl.arange(0, HB)
    in_b, in_u = b < B, u < H
    mask = in_b[:, None] & in_u[None, :]
    w += direction * GATES * H * H
    w0 = load_weight(w, u, u, 0, H, True)
    if GATES > 1:
        w1 = load_weight(w, u, u, 1, H, True)
        w2 = load_weight(w, u, u, 2, H, True)
    if GATES > 3:
        w3 = load_weight(w, u, u, 3, H, True)
    state = direction.to(tl.int64) * B * H + b.to(tl.int64)[:, None] * H + u[None, :]
    h = tl.zeros((BB, HB), tl.float32)
    c = tl.zeros((BB, HB), tl.float32)
    if H0:
        h = tl.load(h0 + state, mask=mask, other=0.0).to(tl.float32)
    if C0:
        c = tl.load(c0 + state, mask=mask, other=0.0).to(tl.float32)
    extra = tl.zeros((HB,), tl.float32)
    if BIAS:
        extra = tl.load(bias_n + direction * H + u, mask=in_u, other=0.0).to(tl.float32)
    if LENGTHS:
        length = tl.load(lengths + b, mask=in_b, other=0)
    zero = tl.zeros((BB, HB), tl.float32)
    for s in range(T):
        t = tl.where(direction == 0, s, T - 1 - s)
        step = (t.to(tl.int64) * B + b) * R + direction
        x = h.to(w.dtype.element_ty)
        a0 = dot(x, w0, zero, PRECISION)
        a1, a2, a3 = a0, a0, a0
        if GATES > 1:
            a1 = dot(x, w1, zero, PRECISION)
            a2 = dot(x, w2, zero, PRECISION)
        if GATES > 3:
            a3 = dot(x, w3, zero, PRECISION)
        new, new_c, g0, g1, g2, g3, m = forward_step(gates, step * (GATES * H), u, H, mask, a0, a1, a2, a3, extra, h, c, MODE)
        new = new.to(y.dtype.element_ty).to(tl.float32)  # what the next step reads is what y holds
        place = step[:, None] * H + u[None, :]
        if LENGTHS:
            live = (t < length)[:, None]
            new = tl.where(live, new, h)
            new_c = tl.where(live, new_c, c)
            tl.store(y + place, tl.where(live, new, 0.0).to(y.dtype.element_ty), mask=mask)
        else:
            tl.store(y + place, new.to(y.dtype.element_ty), mask=mask)
        if TRAIN:
            keep_step(gates, before, cells, inner, step * (GATES * H), place, u, H, mask, h, new_c, g0, g1, g2, g3, m, MODE)
        h = new
        c = new_c
    tl.store(h_n + state, h.to(h_n.dtype.element_ty), mask=mask)
    if MODE == "lstm":
        tl.store(c_n + state, c.to(c_n.dtype.element_ty), mask=mask)


@triton.jit
def sequence_backward(gates, w, c0, lengths, dy, dh_n, dc_n, before, cells, inner, d_input, d_state, dh0, dc0, T, B, H,
                      MODE: tl.constexpr, LENGTHS: tl.constexpr, C0: tl.constexpr, DY: tl.constexpr, DH: tl.constexpr, DC: tl.constexpr,
                      PRECISION: tl.constexpr, GATES: tl.constexpr, R: tl.constexpr, BB: tl.constexpr, HB: tl.constexpr):
    """d_input, d_state (as gates): the gradient at the input's and at the state's share; one buffer but for gru."""
    direction = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    u = tl.arange(0, HB)
    in_b, in_u = b < B, u < H
    mask = in_b[:, None] & in_u[None, :]
    w += direction * GATES * H * H
    w0 = load_weight(w, u, u, 0, H, False)
    if GATES > 1:
        w1 = load_weight(w, u, u, 1, H, False)
        w2 = load_weight(w, u, u, 2, H, False)
    if GATES > 3:
        w3 = load_weight(w, u, u, 3, H, False)
    state = direction.to(tl.int64) * B * H + b.to(tl.int64)[:, None] * H + u[None, :]
    dh = tl.zeros((BB, HB), tl.float32)
    dc = tl.zeros((BB, HB), tl.float32)
    if DH:
        dh = tl.load(dh_n + state, mask=mask, other=0.0).to(tl.float32)
    if DC:
        dc = tl.load(dc_n + state, mask=mask, other=0.0).to(tl.float32)
    if LENGTHS:
        length = tl.load(lengths + b, mask=in_b, other=0)
    for s in range(T):
        t = tl.where(direction == 0, T - 1 - s, s)
        step = (t.to(tl.int64) * B + b) * R + direction
        place = step[:, None] * H + u[None, :]
        into, into_c = dh, dc
        live = in_b[:, None]
        if LENGTHS:
            live = live & (t < length)[:, None]
        if DY:
            into += tl.load(dy + place, mask=mask & live, other=0.0).to(tl.float32)
        into = tl.where(live, into, 0.0)
        into_c = tl.where(live, into_c, 0.0)
        old, after, m = kept_of_step(before, cells, inner, c0, state, t, direction, b, u, T, B, H, mask, into, MODE, C0, R)
        d0, d1, d2, d3, at_inner, past, old_dc = backward_step(gates, step * (GATES * H), u, H, mask, into, into_c, old, after, m, MODE)
        row = step * (GATES * H)
        if MODE == "gru":
            store_gates(d_state, row, u, H, mask, d0, d1, at_inner, d3, MODE)
        new = past + dot(d0.to(w.dtype.element_ty), w0, tl.zeros((BB, HB), tl.float32), PRECISION)
        if GATES > 1:
            new = dot(d1.to(w.dtype.element_ty), w1, new, PRECISION)
            new = dot((at_inner if MODE == "gru" else d2).to(w.dtype.element_ty), w2, new, PRECISION)
        if GATES > 3:
            new = dot(d3.to(w.dtype.element_ty), w3, new, PRECISION)
        store_gates(d_input, row, u, H, mask, d0, d1, d2, d3, MODE)
        dh = tl.where(live, new, dh)
        dc = tl.where(live, old_dc, dc)
    tl.store(dh0 + state, dh.to(dh0.dtype.element_ty), mask=mask)
    if MODE == "lstm":
        tl.store(dc0 + state, dc.to(dc0.dtype.element_ty), mask=mask)
