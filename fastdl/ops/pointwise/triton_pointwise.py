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
def philox(c0, c1, k0, k1):
    """Philox 4x32-10 of counters (c0, c1, 0, 0) and key (k0, k1): four words of 32 bits each. J. Salmon et al., SC 2011."""
    multiplier0, multiplier1 = tl.full((), 0xD2511F53, tl.uint32), tl.full((), 0xCD9E8D57, tl.uint32)
    weyl0, weyl1 = tl.full((), 0x9E3779B9, tl.uint32), tl.full((), 0xBB67AE85, tl.uint32)
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, multiplier0 + tl.zeros_like(c0)), c0 * multiplier0
        high1, low1 = tl.umulhi(c2, multiplier1 + tl.zeros_like(c2)), c2 * multiplier1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += weyl0
        k1 += weyl1
    return c0, c1, c2, c3


@triton.jit(do_not_specialize=["seed_low", "seed_high", "least", "scale"])
def dropout(x, y, n, seed_low, seed_high, least, scale, COUNTERS: tl.constexpr):
    """y = x * scale where an element's 32 random bits are at least ``least``, else x * 0; see the operator for which bits.

    seed_low, seed_high, least: 32 bits each, given as signed integers. Sixteen counters, a multiple of which COUNTERS is, serve
    64 elements: word w of counter c that of element 16 w + c.
    """
    first = tl.program_id(0).to(tl.int64) * COUNTERS
    counter = first + tl.arange(0, COUNTERS)
    w0, w1, w2, w3 = philox((counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32),
                            seed_low.to(tl.uint32, bitcast=True), seed_high.to(tl.uint32, bitcast=True))
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (COUNTERS // 16, 16, 4))
    bits = tl.reshape(tl.permute(words, (0, 2, 1)), (COUNTERS * 4,))
    at = first * 4 + tl.arange(0, COUNTERS * 4)
    v = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    kept = bits >= least.to(tl.uint32, bitcast=True)
    tl.store(y + at, (v * tl.where(kept, scale, 0.0)).to(y.dtype.element_ty), mask=at < n)
