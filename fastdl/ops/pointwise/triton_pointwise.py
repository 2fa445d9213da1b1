"""Elementwise activations and dropout in Triton: a tensor's memory as one row."""

import triton
import triton.language as tl

from ...gpu.math import activate, activation_slope, sigmoid, softplus


@triton.jit
def tanh_argument(x):
    return 1.5957691216057308 * (x + 0.044715 * x * x * x)  # 2 sqrt(2 / pi), for sigmoid(2 u) = (1 + tanh(u)) / 2


@triton.jit
def forward(x, y, n, a, b, ACT: tl.constexpr, BLOCK: tl.constexpr):
    """y = ACT(x); a is the slope, or softplus's beta, b its threshold."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    if ACT == "gelu_tanh":
        r = v * sigmoid(tanh_argument(v))
    elif ACT == "softplus_beta":
        r = tl.where(v * a > b, v, softplus(v * a) / a)
    else:
        r = activate(v, ACT, a)
    tl.store(y + at, r.to(y.dtype.element_ty), mask=at < n)


@triton.jit
def backward(grad, source, dx, n, a, b, ACT: tl.constexpr, INPUT: tl.constexpr, BLOCK: tl.constexpr):
    """dx = grad * ACT'(source), from the activation's input or its output."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(grad + at, mask=at < n, other=0.0).to(tl.float32)
    v = tl.load(source + at, mask=at < n, other=0.0).to(tl.float32)
    if ACT == "gelu_tanh":
        s = sigmoid(tanh_argument(v))
        t = tl.where(v > 100.0, 100.0, tl.where(v < -100.0, -100.0, v))  # beyond, s * (1 - s) is 0, and squares would overflow
        d = g * (s + v * (s * (1.0 - s) * (1.5957691216057308 * (1.0 + 0.134145 * t * t))))
    elif ACT == "softplus_beta":
        d = tl.where(v * a > b, g, g * sigmoid(v * a))
    elif ACT == "relu":
        d = tl.where(v <= 0, 0.0, g)
    else:
        d = g * activation_slope(v, ACT, a, INPUT)
    tl.store(dx + at, d.to(dx.dtype.element_ty), mask=at < n)


@triton.jit
def philox(counter, key):
    """Philox4x64-10 of counters (counter, 0, 0, 0) and key (key, 0): four words of 64 bits each. J. Salmon et al., SC 2011."""
    multiplier0, multiplier1 = tl.full((), 0xD2E7470EE14C6C93, tl.uint64), tl.full((), 0xCA5A826395121157, tl.uint64)
    weyl0, weyl1 = tl.full((), 0x9E3779B97F4A7C15, tl.uint64), tl.full((), 0xBB67AE8584CAA73B, tl.uint64)
    c0 = counter
    c1 = tl.zeros_like(counter)
    c2 = tl.zeros_like(counter)
    c3 = tl.zeros_like(counter)
    k0 = key
    k1 = tl.full((), 0, tl.uint64)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, multiplier0 + tl.zeros_like(c0)), c0 * multiplier0
        high1, low1 = tl.umulhi(c2, multiplier1 + tl.zeros_like(c2)), c2 * multiplier1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += weyl0
        k1 += weyl1
    return c0, c1, c2, c3


@triton.jit
def low_half(word):
    return (word & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def high_half(word):
    return (word >> 32).to(tl.uint32)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "least", "scale"])
def dropout(x, y, n, seed_low, seed_high, least, scale, COUNTERS: tl.constexpr):
    """y = x * scale where an element's 32 random bits are at least ``least``, else x * 0; see the operator for which bits.

    seed_low, seed_high, least: 32 bits each, given as signed integers. Eight elements share a counter.
    """
    key = seed_low.to(tl.uint32, bitcast=True).to(tl.uint64) | (seed_high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32)
    first = tl.program_id(0).to(tl.int64) * COUNTERS
    counter = (first + tl.arange(0, COUNTERS) + 1).to(tl.uint64)
    w0, w1, w2, w3 = philox(counter, key)
    low = tl.join(tl.join(low_half(w0), low_half(w2)), tl.join(low_half(w1), low_half(w3)))
    high = tl.join(tl.join(high_half(w0), high_half(w2)), tl.join(high_half(w1), high_half(w3)))
    bits = tl.reshape(tl.join(low, high), (COUNTERS * 8,))
    at = first * 8 + tl.arange(0, COUNTERS * 8)
    v = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    kept = bits >= least.to(tl.uint32, bitcast=True)
    tl.store(y + at, (v * tl.where(kept, scale, 0.0)).to(y.dtype.element_ty), mask=at < n)
