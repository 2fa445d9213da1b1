"""Products of 8-bit floats: operands scaled row by row (and column by column) to e4m3's range, rounded, and multiplied.

P. Micikevicius et al., "FP8 formats for deep learning", arXiv:2209.05433 (2022).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...gpu import configs, device
from ...gpu.launch import launch
from .triton_gemm import gemm

LARGEST = 448.0  # of e4m3


@triton.jit
def quantise(x, q, scale, n, stride_row, stride, LARGEST: tl.constexpr, BN: tl.constexpr):
    """A row of q (rows, n) is that of x, divided by scale (rows,): its largest magnitude over e4m3's. A row of zeros has scale 1."""
    row = tl.program_id(0).to(tl.int64)
    high = tl.zeros((BN,), tl.float32)
    for k0 in range(0, n, BN):
        k = k0 + tl.arange(0, BN)
        v = tl.abs(tl.load(x + row * stride_row + k.to(tl.int64) * stride, mask=k < n, other=0.0).to(tl.float32))
        high = tl.where((v > high) | (v != v), v, high)
    top = tl.max(tl.where(high != high, float("inf"), high), 0)  # NaN and infinity make the scale infinite, the row NaN
    s = tl.where(top == 0.0, 1.0, top / LARGEST)
    tl.store(scale + row, s)
    for k0 in range(0, n, BN):
        k = k0 + tl.arange(0, BN)
        v = tl.load(x + row * stride_row + k.to(tl.int64) * stride, mask=k < n, other=0.0).to(tl.float32) / s
        tl.store(q + row * n + k, v.to(q.dtype.element_ty, fp_downcast_rounding="rtne"), mask=k < n)


def _quantised(x):
    """(x's rows as e4m3, contiguous, and their scales)."""
    rows, n = x.shape
    q = torch.zeros((rows, n), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    launch(quantise, (rows,), x, x, q, scale, n, *x.stride(), LARGEST=LARGEST, **configs.pick("quantise", device.of(x), n=n))
    return q, scale


def product_fp8(a, b, **last_step):
    """(y, z) as gemm answers them, in a's dtype, from a (m, k) and b (k, n)."""
    qa, scale_a = _quantised(a)
    qb, scale_b = _quantised(b.mT)
    return gemm(qa, qb.mT, scales=(scale_a, scale_b), dtype=a.dtype, **last_step)
