"""layer_norm in Triton: a row is one tile, read once forward and once backward."""

import triton
import triton.language as tl


@triton.jit
def layer_norm(x, weight, bias, y, mean, inverse_std, rows, n, eps, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
               BR: tl.constexpr, BN: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    k = tl.arange(0, BN)
    in_k = k < n
    at = r[:, None] * n + k[None, :]
    inside = (r < rows)[:, None] & in_k[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.sum(v, 1) / n
    v = tl.where(in_k[None, :], v - m[:, None], 0.0)
    s = 1.0 / tl.sqrt(tl.sum(v * v, 1) / n + eps)
    v = v * s[:, None]
    if WEIGHT:
        v = v * tl.load(weight + k, mask=in_k, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        v = v + tl.load(bias + k, mask=in_k, other=0.0).to(tl.float32)[None, :]
    tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)
    tl.store(mean + r, m, mask=r < rows)
    tl.store(inverse_std + r, s, mask=r < rows)


@triton.jit
def layer_norm_backward(grad, x, weight, mean, inverse_std, dx, dweight, dbias, rows, n, chunk, WEIGHT: tl.constexpr,
                        NEED_X: tl.constexpr, NEED_WEIGHT: tl.constexpr, NEED_BIAS: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr):
    """dx, and for each program's chunk of rows its sums for weight and bias: (programs, n) float32."""
    part = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BN)
    in_k = k < n
    if WEIGHT:
        w = tl.load(weight + k, mask=in_k, other=0.0).to(tl.float32)[None, :]
    dw = tl.zeros((BR, BN), tl.float32)
    db = tl.zeros((BR, BN), tl.float32)
    for r0 in range(part * chunk, tl.minimum((part + 1) * chunk, rows), BR):
        r = r0 + tl.arange(0, BR)
        at = r[:, None].to(tl.int64) * n + k[None, :]
        inside = (r < rows)[:, None] & in_k[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(inverse_std + r, mask=r < rows, other=0.0)[:, None]
        m = tl.load(mean + r, mask=r < rows, other=0.0)[:, None]
        normal = tl.where(inside, (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - m) * s, 0.0)
        if NEED_WEIGHT:
            dw += g * normal
        if NEED_BIAS:
            db += g
        if NEED_X:
            h = g * w if WEIGHT else g
            d = (h - tl.sum(h, 1)[:, None] / n - normal * (tl.sum(h * normal, 1)[:, None] / n)) * s
            tl.store(dx + at, d.to(dx.dtype.element_ty), mask=inside)
    if NEED_WEIGHT:
        tl.store(dweight + part * n + k, tl.sum(dw, 0), mask=in_k)
    if NEED_BIAS:
        tl.store(dbias + part * n + k, tl.sum(db, 0), mask=in_k)
