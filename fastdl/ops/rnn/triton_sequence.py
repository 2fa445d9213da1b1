"""Whole sequences in one launch: a program takes a tile of the batch through all steps of one direction.

The state and the recurrent weights stay with the program, and rows of a batch know nothing of each other, so nothing waits for another
program. For hidden sizes whose weights fit; triton_advance.py serves the others.

What takes time is a step's latency, so everything here is (units, rows): the weights are a product's first operand, whose tiles of units
the warps share out, and a tile of 8 rows suffices for the second: more programs, each with less to do. What a step reads of memory is
loaded a step ahead. The loops are ``while``: of a ``for`` the compiler moves the weights' reading from shared memory inside, to every
step, to save the registers that they are to stay in.

Buffers, with R = directions: gates (T, B, R * G * H); y and its like (T, B, R * H); states (R, B, H); weights (R, G * H, H).
"""

import triton
import triton.language as tl

from ...gpu.math import dot
from .triton_steps import backward_step, forward_step, keep_step, kept_of_step


@triton.jit
def load_weight(w, m, k, number, H, FORWARD: tl.constexpr):
    """A gate's weights as the first operand of a product: (unit, h) forward, (h, unit) backward."""
    if FORWARD:
        at = (number * H + m)[:, None] * H + k[None, :]
    else:
        at = (number * H + k)[None, :] * H + m[:, None]
    return tl.load(w + at, mask=(m < H)[:, None] & (k < H)[None, :], other=0.0)


@triton.jit
def place_of(s, direction, b, T, B, R: tl.constexpr):
    """Which row of (T * B * R, ...) is of a direction's step number s and batch row b."""
    t = tl.where(direction == 0, s, T - 1 - s)
    return (t.to(tl.int64) * B + b) * R + direction


@triton.jit
def by_gates(packed, PACK: tl.constexpr, HB: tl.constexpr, BB: tl.constexpr):
    """(gate * HB + unit, rows) as four tiles (unit, rows), those of the cell's gates; a thread has the same places of each."""
    if PACK == 1:
        return packed, packed, packed, packed
    else:
        even, odd = tl.split(tl.permute(tl.reshape(packed, (2, 2, HB, BB)), (2, 3, 0, 1)))
        g0, g2 = tl.split(even)
        g1, g3 = tl.split(odd)
        return g0, g1, g2, g3


@triton.jit
def packed(g0, g1, g2, g3, PACK: tl.constexpr, HB: tl.constexpr, BB: tl.constexpr):
    """The inverse of by_gates."""
    if PACK == 1:
        return g0
    else:
        return tl.reshape(tl.permute(tl.join(tl.join(g0, g2), tl.join(g1, g3)), (2, 3, 0, 1)), (PACK * HB, BB))


@triton.jit
def packed_weights(w, v, k, H, GATES: tl.constexpr, HB: tl.constexpr):
    """The weights as the first operand of a product: (gate * HB + unit, h)."""
    unit, gate = v % HB, v // HB
    mask = ((unit < H) & (gate < GATES))[:, None] & (k < H)[None, :]
    return tl.load(w + (gate * H + unit)[:, None] * H + k[None, :], mask=mask, other=0.0)


@triton.jit
def sum_of_products(w0, w1, w2, w3, d0, d1, d2, d3, past, PRECISION: tl.constexpr, GATES: tl.constexpr):
    """past + what the gates' gradients give to the state's. Each gate's sum by itself: chains of products that do not wait for another."""
    zero = tl.zeros_like(past)
    total = dot(w0, d0.to(w0.dtype), past, PRECISION)
    if GATES > 1:
        one = dot(w1, d1.to(w0.dtype), zero, PRECISION)
        two = dot(w2, d2.to(w0.dtype), zero, PRECISION)
        if GATES > 3:
            total = (total + one) + (two + dot(w3, d3.to(w0.dtype), zero, PRECISION))
        else:
            total = total + (one + two)
    return total


@triton.jit
def sequence(gates, w, bias_n, h0, c0, lengths, y, h_n, c_n, before, cells, inner, T, B, H,
             MODE: tl.constexpr, TRAIN: tl.constexpr, LENGTHS: tl.constexpr, H0: tl.constexpr, C0: tl.constexpr, BIAS: tl.constexpr,
             PRECISION: tl.constexpr, GATES: tl.constexpr, R: tl.constexpr, BB: tl.constexpr, HB: tl.constexpr):
    """before: h before each step. cells: lstm's c after each step, float32; inner: gru's W_hn h + b_hn. All three where TRAIN."""
    direction = tl.program_id(1)
    b = (tl.program_id(0) * BB + tl.arange(0, BB))[None, :]
    u = tl.arange(0, HB)
    unit = u[:, None]
    in_b = b < B
    mask = in_b & (unit < H)
    w += direction * GATES * H * H
    PACK: tl.constexpr = 1 if GATES == 1 else 4
    v = tl.arange(0, PACK * HB)
    kept = packed_weights(w, v, u, H, GATES, HB)
    gate_unit = (v // HB * H + v % HB)[:, None]
    in_v = ((v % HB < H) & (v < GATES * HB))[:, None] & in_b
    state = direction.to(tl.int64) * B * H + b.to(tl.int64) * H + unit
    zero = tl.zeros((HB, BB), tl.float32)
    h, c = zero, zero
    if H0:
        h = tl.load(h0 + state, mask=mask, other=0.0).to(tl.float32)
    if C0:
        c = tl.load(c0 + state, mask=mask, other=0.0).to(tl.float32)
    extra = tl.zeros((HB, 1), tl.float32)
    if BIAS:
        extra = tl.load(bias_n + direction * H + unit, mask=unit < H, other=0.0).to(tl.float32)
    if LENGTHS:
        length = tl.load(lengths + b, mask=in_b, other=0)
    none = tl.zeros((PACK * HB, BB), tl.float32)
    z = tl.load(gates + place_of(0, direction, b, T, B, R) * (GATES * H) + gate_unit, mask=in_v, other=0.0)
    s = tl.full((), 0, tl.int32)
    while s < T:
        x = h.to(w.dtype.element_ty)
        ahead = in_v & (b * 0 + s + 1 < T)
        following = tl.load(gates + place_of(s + 1, direction, b, T, B, R) * (GATES * H) + gate_unit, mask=ahead, other=0.0)
        z0, z1, z2, z3 = by_gates(z.to(tl.float32), PACK, HB, BB)
        a0, a1, a2, a3 = by_gates(dot(kept, x, none, PRECISION), PACK, HB, BB)
        new, new_c, g0, g1, g2, g3, m = forward_step(z0, z1, z2, z3, a0, a1, a2, a3, extra, h, c, MODE)
        new = new.to(y.dtype.element_ty).to(tl.float32)  # what the next step reads is what y holds
        step = place_of(s, direction, b, T, B, R)
        place = step * H + unit
        shown = new
        if LENGTHS:
            live = tl.where(direction == 0, s, T - 1 - s) < length
            new = tl.where(live, new, h)
            new_c = tl.where(live, new_c, c)
            shown = tl.where(live, new, 0.0)
        tl.store(y + place, shown.to(y.dtype.element_ty), mask=mask)
        if TRAIN:
            keep_step(before, cells, inner, place, mask, h, new_c, m, MODE)
            g = packed(g0, g1, g2, g3, PACK, HB, BB).to(gates.dtype.element_ty)
            tl.store(gates + step * (GATES * H) + gate_unit, g, mask=in_v)
        h = new
        c = new_c
        z = following
        s += 1
    tl.store(h_n + state, h.to(h_n.dtype.element_ty), mask=mask)
    if MODE == "lstm":
        tl.store(c_n + state, c.to(c_n.dtype.element_ty), mask=mask)


@triton.jit
def load_kept(gates, dy, before, cells, inner, c0, here, s, direction, b, unit, gate_unit, in_v, T, B, H, mask, zero,
              MODE: tl.constexpr, C0: tl.constexpr, DY: tl.constexpr, GATES: tl.constexpr, R: tl.constexpr):
    """What the gradient of a direction's step number s reads: its gates, dy, and kept_of_step. Nothing where there is no such step."""
    exists = b * 0 + s >= 0
    mask = mask & exists
    step = place_of(s, direction, b, T, B, R)
    place = step * H + unit
    g = tl.load(gates + step * (GATES * H) + gate_unit, mask=in_v & exists, other=0.0)
    d = zero
    if DY:
        d = tl.load(dy + place, mask=mask, other=0.0)
    after, old, m = kept_of_step(before, cells, inner, c0, here, place, s, direction, B, H, mask, zero, MODE, C0, R)
    return g, d, after, old, m


@triton.jit
def sequence_backward(gates, w, c0, lengths, dy, dh_n, dc_n, before, cells, inner, d_input, d_state, dh0, dc0, T, B, H,
                      MODE: tl.constexpr, LENGTHS: tl.constexpr, C0: tl.constexpr, DY: tl.constexpr, DH: tl.constexpr, DC: tl.constexpr,
                      PRECISION: tl.constexpr, GATES: tl.constexpr, R: tl.constexpr, BB: tl.constexpr, HB: tl.constexpr):
    """d_input, d_state (as gates): the gradient at the input's and at the state's share; one buffer but for gru."""
    direction = tl.program_id(1)
    b = (tl.program_id(0) * BB + tl.arange(0, BB))[None, :]
    u = tl.arange(0, HB)
    unit = u[:, None]
    in_b = b < B
    mask = in_b & (unit < H)
    w += direction * GATES * H * H
    w0 = load_weight(w, u, u, 0, H, False)
    w1, w2, w3 = w0, w0, w0
    if GATES > 1:
        w1 = load_weight(w, u, u, 1, H, False)
        w2 = load_weight(w, u, u, 2, H, False)
    if GATES > 3:
        w3 = load_weight(w, u, u, 3, H, False)
    state = direction.to(tl.int64) * B * H + b.to(tl.int64) * H + unit
    zero = tl.zeros((HB, BB), tl.float32)
    dh, dc = zero, zero
    if DH:
        dh = tl.load(dh_n + state, mask=mask, other=0.0).to(tl.float32)
    if DC:
        dc = tl.load(dc_n + state, mask=mask, other=0.0).to(tl.float32)
    if LENGTHS:
        length = tl.load(lengths + b, mask=in_b, other=0)
    PACK: tl.constexpr = 1 if GATES == 1 else 4
    v = tl.arange(0, PACK * HB)
    gate_unit = (v // HB * H + v % HB)[:, None]
    in_v = ((v % HB < H) & (v < GATES * HB))[:, None] & in_b
    g, d, after, old, m = load_kept(gates, dy, before, cells, inner, c0, state, T - 1, direction, b, unit, gate_unit, in_v, T, B, H, mask,
                                    zero, MODE, C0, DY, GATES, R)
    s = T - 1
    while s >= 0:
        next_g, next_d, _, next_old, next_m = load_kept(gates, dy, before, cells, inner, c0, state, s - 1, direction, b, unit, gate_unit,
                                                        in_v, T, B, H, mask, zero, MODE, C0, DY, GATES, R)
        g0, g1, g2, g3 = by_gates(g.to(tl.float32), PACK, HB, BB)
        into, into_c = dh, dc
        if DY:
            into += d.to(tl.float32)
        if LENGTHS:
            live = tl.where(direction == 0, s, T - 1 - s) < length
            into = tl.where(live, into, 0.0)
            into_c = tl.where(live, into_c, 0.0)
        d0, d1, d2, d3, at_inner, past, old_dc = backward_step(g0, g1, g2, g3, into, into_c, old, after, m, MODE)
        at = place_of(s, direction, b, T, B, R) * (GATES * H) + gate_unit
        tl.store(d_input + at, packed(d0, d1, d2, d3, PACK, HB, BB).to(d_input.dtype.element_ty), mask=in_v)
        if MODE == "gru":
            tl.store(d_state + at, packed(d0, d1, at_inner, d3, PACK, HB, BB).to(d_input.dtype.element_ty), mask=in_v)
        new = sum_of_products(w0, w1, w2, w3, d0, d1, at_inner if MODE == "gru" else d2, d3, past, PRECISION, GATES)
        if LENGTHS:
            new = tl.where(live, new, dh)
            old_dc = tl.where(live, old_dc, dc)
        dh = new
        dc = old_dc
        if MODE == "lstm":
            after = old
        g, d, old, m = next_g, next_d, next_old, next_m
        s -= 1
    tl.store(dh0 + state, dh.to(dh0.dtype.element_ty), mask=mask)
    if MODE == "lstm":
        tl.store(dc0 + state, dc.to(dc0.dtype.element_ty), mask=mask)
