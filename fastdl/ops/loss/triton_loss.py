"""Cross-entropy in Triton: the scores are read once forward, and once backward; no probabilities are stored."""

import triton
import triton.language as tl

from ..triton_rows import row_starts


@triton.jit
def cross_entropy(x, target, weight, loss, lse, counted, rows, n, inner, ignore, smoothing,
                  WEIGHT: tl.constexpr, SMOOTH: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, ONE: tl.constexpr):
    """For each row: its loss, the logarithm of its sum of exponentials, and its weight in a mean, float32.

    A label out of range that is not ``ignore`` makes the loss NaN.
    """
    r, in_r, start = row_starts(BR, rows, n, inner)
    label = tl.load(target + r, mask=in_r, other=0).to(tl.int64)
    high = tl.full((BR, BN), float("-inf"), tl.float32)
    total = tl.zeros((BR, BN), tl.float32)
    weighted = tl.zeros((BR, BN), tl.float32)
    weights = tl.zeros((BN,), tl.float32)
    for k0 in range(0, BN if ONE else n, BN):
        k = k0 + tl.arange(0, BN)
        in_k = k < n
        v = tl.load(x + start[:, None] + (k.to(tl.int64) * inner)[None, :], mask=in_r[:, None] & in_k[None, :], other=float("-inf"))
        v = v.to(tl.float32)
        new = tl.where((v > high) | (v != v), v, high)
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(high - safe) + tl.exp(v - safe)
        high = new
        if SMOOTH:
            if WEIGHT:
                w = tl.load(weight + k, mask=in_k, other=0.0).to(tl.float32)
                weighted += tl.where(in_k[None, :], v * w[None, :], 0.0)
                weights += w
            else:
                weighted += tl.where(in_k[None, :], v, 0.0)
                weights += tl.where(in_k, 1.0, 0.0)
    top = tl.max(high, 1)
    safe_top = tl.where(top == float("-inf"), 0.0, top)
    whole = safe_top + tl.log(tl.sum(total * tl.exp(high - safe_top[:, None]), 1))
    legal = (label >= 0) & (label < n)
    picked = tl.load(x + start + label * inner, mask=in_r & legal, other=float("nan")).to(tl.float32)
    if WEIGHT:
        of_label = tl.load(weight + label, mask=in_r & legal, other=float("nan")).to(tl.float32)
    else:
        of_label = tl.where(legal, 1.0, float("nan"))
    result = (1.0 - smoothing) * of_label * (whole - picked)
    if SMOOTH:
        result += smoothing / n * (tl.sum(weights, 0) * whole - tl.sum(weighted, 1))
    ignored = label == ignore
    tl.store(loss + r, tl.where(ignored, 0.0, result), mask=in_r)
    tl.store(lse + r, whole, mask=in_r)
    tl.store(counted + r, tl.where(ignored, 0.0, of_label), mask=in_r)


@triton.jit
def cross_entropy_backward(x, target, weight, lse, factor, weight_sum, dx, rows, n, inner, ignore, smoothing,
                           WEIGHT: tl.constexpr, SMOOTH: tl.constexpr, EACH: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
                           ONE: tl.constexpr):
    """dx = factor * (softmax(x) * sum(q) - q), q the target distribution; factor is one number, or one for EACH row."""
    r, in_r, start = row_starts(BR, rows, n, inner)
    label = tl.load(target + r, mask=in_r, other=0).to(tl.int64)
    whole = tl.load(lse + r, mask=in_r, other=0.0)
    if EACH:
        f = tl.load(factor + r, mask=in_r, other=0.0).to(tl.float32)
    else:
        f = tl.load(factor).to(tl.float32) + tl.zeros((BR,), tl.float32)
    counts = label != ignore
    legal = (label >= 0) & (label < n)
    if WEIGHT:
        of_label = tl.load(weight + label, mask=in_r & legal, other=float("nan")).to(tl.float32)
    else:
        of_label = tl.where(legal, 1.0, float("nan"))
    at_label = tl.where(counts, f * (1.0 - smoothing) * of_label, 0.0)
    spread = tl.where(counts, f * smoothing / n, 0.0)
    sum_q = at_label
    if SMOOTH:
        sum_q += spread * tl.load(weight_sum)
    for k0 in range(0, BN if ONE else n, BN):
        k = k0 + tl.arange(0, BN)
        in_k = k < n
        at = start[:, None] + (k.to(tl.int64) * inner)[None, :]
        inside = in_r[:, None] & in_k[None, :]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        d = tl.where(counts[:, None], tl.exp(v - whole[:, None]) * sum_q[:, None], 0.0)
        if SMOOTH:
            if WEIGHT:
                d -= spread[:, None] * tl.load(weight + k, mask=in_k, other=0.0).to(tl.float32)[None, :]
            else:
                d -= spread[:, None]
        d -= tl.where(k[None, :] == label[:, None], at_label[:, None], 0.0)
        tl.store(dx + at, d.to(dx.dtype.element_ty), mask=inside)
