"""Dropout between recurrent layers in Triton: the numbers that numpy's Philox gives layout.dropout_kept, so a seed has one answer.

J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): Philox 4x64-10. numpy's counter begins at 1; a counter gives four
words of 64 bits, a word two numbers of 32 bits, the low half first, of which a float has the upper 24 bits.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from ...gpu import configs, device, tape
from ...gpu.launch import cdiv, launch


@triton.jit(do_not_specialize=["key0", "key1", "first", "rate", "scale"])
def drop(x, y, n, first, key0, key1, rate, scale, BLOCK: tl.constexpr):
    """y = x * scale where number first + i of the stream is at least ``rate``, else x * 0; the keys' 64 bits as signed integers."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    number = at + first
    zero = (at * 0).to(tl.uint64)
    c0 = (number // 8 + 1).to(tl.uint64)
    c1, c2, c3 = zero, zero, zero
    k0 = zero + key0.to(tl.int64).to(tl.uint64, bitcast=True)
    k1 = zero + key1.to(tl.int64).to(tl.uint64, bitcast=True)
    multiplier0 = zero + tl.full((), 0xD2E7470EE14C6C93, tl.uint64)
    multiplier1 = zero + tl.full((), 0xCA5A826395121157, tl.uint64)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, multiplier0), c0 * multiplier0
        high1, low1 = tl.umulhi(c2, multiplier1), c2 * multiplier1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
        k1 += tl.full((), 0xBB67AE8584CAA73B, tl.uint64)
    word = number // 2 % 4
    bits = tl.where(word == 0, c0, tl.where(word == 1, c1, tl.where(word == 2, c2, c3)))
    upper = ((bits >> tl.where(number % 2 == 0, 8, 40).to(tl.uint64)) & 0xFFFFFF).to(tl.int32).to(tl.float32)
    v = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(y + at, (v * tl.where(upper * 5.9604644775390625e-08 >= rate, scale, 0.0)).to(y.dtype.element_ty), mask=at < n)


def dropped(x, before: int, params):
    """x (T, B, directions * output) after dropout, or a gradient of it; ``before``: how many such arrays came before in the stream."""
    tape.refuse("it draws random bits")
    x = x.contiguous()
    y = torch.empty_like(x)
    key0, key1 = (int(k) - (1 << 64 if k >= 1 << 63 else 0) for k in np.random.Philox(params.seed).state["state"]["key"])
    config = configs.pick("pointwise", device.of(x), bytes=4)
    rate = params.dropout
    launch(drop, (cdiv(x.numel(), config["BLOCK"]),), x, x, y, x.numel(), before * x.numel(), key0, key1, rate,
           1 / (1 - rate) if rate < 1 else 0.0, **config)
    return y
