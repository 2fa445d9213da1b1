"""softmax and log_softmax in Triton: rows that fit a tile are read once, longer ones twice."""

import triton
import triton.language as tl

from ..triton_rows import row_starts


@triton.jit
def softmax(x, y, rows, n, inner, LOG: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, ONE: tl.constexpr):
    r, in_r, start = row_starts(BR, rows, n, inner)
    if ONE:
        k = tl.arange(0, BN)
        at = start[:, None] + (k.to(tl.int64) * inner)[None, :]
        inside = in_r[:, None] & (k < n)[None, :]
        v = tl.load(x + at, mask=inside, other=float("-inf")).to(tl.float32)
        z = v - tl.max(v, 1)[:, None]
        e = tl.where((k < n)[None, :], tl.exp(z), 0.0)
        total = tl.sum(e, 1)[:, None]
        tl.store(y + at, ((z - tl.log(total)) if LOG else e / total).to(y.dtype.element_ty), mask=inside)
    else:
        high = tl.full((BR, BN), float("-inf"), tl.float32)
        total = tl.zeros((BR, BN), tl.float32)
        for k0 in range(0, n, BN):
            k = k0 + tl.arange(0, BN)
            at = start[:, None] + (k.to(tl.int64) * inner)[None, :]
            v = tl.load(x + at, mask=in_r[:, None] & (k < n)[None, :], other=float("-inf")).to(tl.float32)
            new = tl.where((v > high) | (v != v), v, high)
            safe = tl.where(new == float("-inf"), 0.0, new)
            total = total * tl.exp(high - safe) + tl.exp(v - safe)
            high = new
        top = tl.max(tl.where(high != high, float("nan"), high), 1)
        scaled = total * tl.exp(high - tl.where(top == float("-inf"), 0.0, top)[:, None])
        whole = tl.sum(scaled, 1)
        for k0 in range(0, n, BN):
            k = k0 + tl.arange(0, BN)
            at = start[:, None] + (k.to(tl.int64) * inner)[None, :]
            inside = in_r[:, None] & (k < n)[None, :]
            z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - top[:, None]
            result = (z - tl.log(whole)[:, None]) if LOG else tl.exp(z) / whole[:, None]
            tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def softmax_backward(grad, y, dx, rows, n, inner, LOG: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, ONE: tl.constexpr):
    """dx = y * (grad - sum(grad * y)), or for LOG grad - exp(y) * sum(grad)."""
    r, in_r, start = row_starts(BR, rows, n, inner)
    if ONE:
        k = tl.arange(0, BN)
        at = start[:, None] + (k.to(tl.int64) * inner)[None, :]
        inside = in_r[:, None] & (k < n)[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        total = tl.sum(g if LOG else g * v, 1)[:, None]
        tl.store(dx + at, ((g - tl.exp(v) * total) if LOG else v * (g - total)).to(dx.dtype.element_ty), mask=inside)
    else:
        sums = tl.zeros((BR, BN), tl.float32)
        for k0 in range(0, n, BN):
            k = k0 + tl.arange(0, BN)
            at = start[:, None] + (k.to(tl.int64) * inner)[None, :]
            inside = in_r[:, None] & (k < n)[None, :]
            g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
            if LOG:
                sums += g
            else:
                sums += g * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        total = tl.sum(sums, 1)[:, None]
        for k0 in range(0, n, BN):
            k = k0 + tl.arange(0, BN)
            at = start[:, None] + (k.to(tl.int64) * inner)[None, :]
            inside = in_r[:, None] & (k < n)[None, :]
            g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
            v = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(dx + at, ((g - tl.exp(v) * total) if LOG else v * (g - total)).to(dx.dtype.element_ty), mask=inside)
