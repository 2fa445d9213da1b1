"""One step of a recurrent cell in Triton, and its gradient: what the sequence kernels share. All values float32 tiles (rows, units).

A mode has up to four gates; those it lacks are passed and answered as the first. Names as in the operators' docstrings.
"""

import triton
import triton.language as tl

from ...gpu.math import sigmoid, tanh


@triton.jit
def load_gate(gates, row, unit, number, H, mask):
    return tl.load(gates + row[:, None] + (number * H + unit)[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_gate(gates, row, unit, number, H, mask, value):
    tl.store(gates + row[:, None] + (number * H + unit)[None, :], value.to(gates.dtype.element_ty), mask=mask)


@triton.jit
def forward_step(gates, row, unit, H, mask, a0, a1, a2, a3, bias_n, h, c, MODE: tl.constexpr):
    """(h', c', the gates after their activations, gru's W_hn h + b_hn) from the input's share ``gates`` and the state's, a0 to a3."""
    z0 = load_gate(gates, row, unit, 0, H, mask) + a0
    inner = a0
    g1, g2, g3 = a0, a0, a0
    if MODE == "rnn_tanh":
        g0 = tanh(z0)
        new = g0
    elif MODE == "rnn_relu":
        g0 = tl.where(z0 < 0, 0.0, z0)
        new = g0
    elif MODE == "gru":
        g0 = sigmoid(z0)
        g1 = sigmoid(load_gate(gates, row, unit, 1, H, mask) + a1)
        inner = a2 + bias_n[None, :]
        g2 = tanh(load_gate(gates, row, unit, 2, H, mask) + g0 * inner)
        new = (1.0 - g1) * g2 + g1 * h
    else:
        g0 = sigmoid(z0)
        g1 = sigmoid(load_gate(gates, row, unit, 1, H, mask) + a1)
        g2 = tanh(load_gate(gates, row, unit, 2, H, mask) + a2)
        g3 = sigmoid(load_gate(gates, row, unit, 3, H, mask) + a3)
        c = g1 * c + g0 * g2
        new = g3 * tanh(c)
    return new, c, g0, g1, g2, g3, inner


@triton.jit
def store_gates(gates, row, unit, H, mask, g0, g1, g2, g3, MODE: tl.constexpr):
    """A value of each of the cell's gates."""
    store_gate(gates, row, unit, 0, H, mask, g0)
    if MODE == "gru" or MODE == "lstm":
        store_gate(gates, row, unit, 1, H, mask, g1)
        store_gate(gates, row, unit, 2, H, mask, g2)
    if MODE == "lstm":
        store_gate(gates, row, unit, 3, H, mask, g3)


@triton.jit
def keep_step(gates, before, cells, inner, row, place, unit, H, mask, h, c, g0, g1, g2, g3, m, MODE: tl.constexpr):
    """What a step's gradient wants: h before it, lstm's c after it, gru's W_hn h + b_hn, and in place of the input's share the gates."""
    tl.store(before + place, h.to(before.dtype.element_ty), mask=mask)
    store_gates(gates, row, unit, H, mask, g0, g1, g2, g3, MODE)
    if MODE == "lstm":
        tl.store(cells + place, c, mask=mask)
    if MODE == "gru":
        tl.store(inner + place, m.to(inner.dtype.element_ty), mask=mask)


@triton.jit
def kept_of_step(before, cells, inner, c0, here, t, direction, b, unit, T, B, H, mask, none, MODE: tl.constexpr, C0: tl.constexpr,
                 R: tl.constexpr):
    """(h (gru) or c (lstm) before step t, c after it, gru's W_hn h + b_hn); ``none`` for what the cell has not. here: places in c0."""
    place = ((t.to(tl.int64) * B + b) * R + direction)[:, None] * H + unit[None, :]
    old, after, m = none, none, none
    if MODE == "gru":
        old = tl.load(before + place, mask=mask, other=0.0).to(tl.float32)
        m = tl.load(inner + place, mask=mask, other=0.0).to(tl.float32)
    if MODE == "lstm":
        after = tl.load(cells + place, mask=mask, other=0.0)
        earlier = tl.where(direction == 0, t - 1, t + 1)
        exists = (b < B)[:, None] & ((earlier + b * 0) >= 0)[:, None] & ((earlier + b * 0) < T)[:, None]
        old_place = ((earlier.to(tl.int64) * B + b) * R + direction)[:, None] * H + unit[None, :]
        old = tl.load(cells + old_place, mask=mask & exists, other=0.0)
        if C0:
            old = tl.where(exists, old, tl.load(c0 + here, mask=mask, other=0.0).to(tl.float32))
    return old, after, m


@triton.jit
def backward_step(gates, row, unit, H, mask, dh, dc, before, after, inner, MODE: tl.constexpr):
    """(d0, d1, d2, d3 at the gates, gru's d at W_hn h, what of dh goes past the product, dc before) of one step.

    before: h (gru) or c (lstm) before the step; after: c after it.
    """
    g0 = load_gate(gates, row, unit, 0, H, mask)
    past = tl.zeros_like(dh)
    d1, d2, d3, at_inner = dh, dh, dh, dh
    if MODE == "rnn_tanh":
        d0 = dh * (1.0 - g0 * g0)
    elif MODE == "rnn_relu":
        d0 = tl.where(g0 <= 0, 0.0, dh)
    elif MODE == "gru":
        g1 = load_gate(gates, row, unit, 1, H, mask)
        g2 = load_gate(gates, row, unit, 2, H, mask)
        d2 = dh * (1.0 - g1) * (1.0 - g2 * g2)
        d1 = dh * (before - g2) * g1 * (1.0 - g1)
        d0 = d2 * inner * g0 * (1.0 - g0)
        at_inner = d2 * g0
        past = dh * g1
    else:
        g1 = load_gate(gates, row, unit, 1, H, mask)
        g2 = load_gate(gates, row, unit, 2, H, mask)
        g3 = load_gate(gates, row, unit, 3, H, mask)
        squashed = tanh(after)
        d3 = dh * squashed * g3 * (1.0 - g3)
        dc = dc + dh * g3 * (1.0 - squashed * squashed)
        d0 = dc * g2 * g0 * (1.0 - g0)
        d1 = dc * before * g1 * (1.0 - g1)
        d2 = dc * g0 * (1.0 - g2 * g2)
        dc = dc * g1
    return d0, d1, d2, d3, at_inner, past, dc
