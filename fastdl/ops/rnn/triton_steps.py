"""One step of a recurrent cell in Triton, and its gradient: what the sequence kernels share. All values float32 tiles (rows, units).

A mode has up to four gates; those it lacks are passed and answered as the first. Names as in the operators' docstrings.
"""

import triton
import triton.language as tl

from ...gpu.math import sigmoid, tanh


@triton.jit
def load_gates(gates, at, H, mask, MODE: tl.constexpr):
    """What lies in ``gates`` for each of the cell's gates, as it is stored. at: where the first's values are."""
    z0 = tl.load(gates + at, mask=mask, other=0.0)
    z1, z2, z3 = z0, z0, z0
    if MODE == "gru" or MODE == "lstm":
        z1 = tl.load(gates + at + H, mask=mask, other=0.0)
        z2 = tl.load(gates + at + 2 * H, mask=mask, other=0.0)
    if MODE == "lstm":
        z3 = tl.load(gates + at + 3 * H, mask=mask, other=0.0)
    return z0, z1, z2, z3


@triton.jit
def forward_step(z0, z1, z2, z3, a0, a1, a2, a3, bias_n, h, c, MODE: tl.constexpr):
    """(h', c', the gates after their activations, gru's W_hn h + b_hn) from the input's share, z0 to z3, and the state's, a0 to a3."""
    z0 = z0.to(tl.float32) + a0
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
        g1 = sigmoid(z1.to(tl.float32) + a1)
        inner = a2 + bias_n
        g2 = tanh(z2.to(tl.float32) + g0 * inner)
        new = (1.0 - g1) * g2 + g1 * h
    else:
        g0 = sigmoid(z0)
        g1 = sigmoid(z1.to(tl.float32) + a1)
        g2 = tanh(z2.to(tl.float32) + a2)
        g3 = sigmoid(z3.to(tl.float32) + a3)
        c = g1 * c + g0 * g2
        new = g3 * tanh(c)
    return new, c, g0, g1, g2, g3, inner


@triton.jit
def store_gates(gates, at, H, mask, g0, g1, g2, g3, MODE: tl.constexpr):
    """A value of each of the cell's gates."""
    tl.store(gates + at, g0.to(gates.dtype.element_ty), mask=mask)
    if MODE == "gru" or MODE == "lstm":
        tl.store(gates + at + H, g1.to(gates.dtype.element_ty), mask=mask)
        tl.store(gates + at + 2 * H, g2.to(gates.dtype.element_ty), mask=mask)
    if MODE == "lstm":
        tl.store(gates + at + 3 * H, g3.to(gates.dtype.element_ty), mask=mask)


@triton.jit
def keep_step(before, cells, inner, place, mask, h, c, m, MODE: tl.constexpr):
    """What a step's gradient wants besides the gates: h before it, lstm's c after it, gru's W_hn h + b_hn."""
    tl.store(before + place, h.to(before.dtype.element_ty), mask=mask)
    if MODE == "lstm":
        tl.store(cells + place, c, mask=mask)
    if MODE == "gru":
        tl.store(inner + place, m.to(inner.dtype.element_ty), mask=mask)


@triton.jit
def kept_of_step(before, cells, inner, c0, here, place, s, direction, B, H, mask, none, MODE: tl.constexpr, C0: tl.constexpr,
                 R: tl.constexpr):
    """(lstm's c after a direction's step number s, h (gru) or c (lstm) before it, gru's W_hn h + b_hn), as stored; else ``none``.

    here: places in c0; place: in the others.
    """
    after, old, m = none, none, none
    if MODE == "gru":
        old = tl.load(before + place, mask=mask, other=0.0)
        m = tl.load(inner + place, mask=mask, other=0.0)
    if MODE == "lstm":
        after = tl.load(cells + place, mask=mask, other=0.0)
        earlier = tl.where(direction == 0, -B, B).to(tl.int64) * (R * H)
        kept = place * 0 + s > 0
        old = tl.load(cells + place + earlier, mask=mask & kept, other=0.0)
        if C0:
            old = tl.where(kept, old, tl.load(c0 + here, mask=mask & (kept == 0), other=0.0).to(tl.float32))
    return after, old, m


@triton.jit
def backward_step(g0, g1, g2, g3, dh, dc, before, after, inner, MODE: tl.constexpr):
    """(d0, d1, d2, d3 at the gates, gru's d at W_hn h, what of dh goes past the product, dc before) of one step.

    g0 to g3, as stored; before: h (gru) or c (lstm) before the step; after: c after it.
    """
    g0, g1, g2, g3 = g0.to(tl.float32), g1.to(tl.float32), g2.to(tl.float32), g3.to(tl.float32)
    past = tl.zeros_like(dh)
    d1, d2, d3, at_inner = dh, dh, dh, dh
    if MODE == "rnn_tanh":
        d0 = dh * (1.0 - g0 * g0)
    elif MODE == "rnn_relu":
        d0 = tl.where(g0 <= 0, 0.0, dh)
    elif MODE == "gru":
        d2 = dh * (1.0 - g1) * (1.0 - g2 * g2)
        d1 = dh * (before.to(tl.float32) - g2) * g1 * (1.0 - g1)
        d0 = d2 * inner.to(tl.float32) * g0 * (1.0 - g0)
        at_inner = d2 * g0
        past = dh * g1
    else:
        squashed = tanh(after)
        d3 = dh * squashed * g3 * (1.0 - g3)
        dc = dc + dh * g3 * (1.0 - squashed * squashed)
        d0 = dc * g2 * g0 * (1.0 - g0)
        d1 = dc * before * g1 * (1.0 - g1)
        d2 = dc * g0 * (1.0 - g2 * g2)
        dc = dc * g1
    return d0, d1, d2, d3, at_inner, past, dc
