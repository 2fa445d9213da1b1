"""group_norm in Triton: a program for each sample and group, which walks over its slice twice (the second time from the cache)."""

import triton
import triton.language as tl

from .triton_channels import merge


@triton.jit
def group_norm(x, weight, bias, y, mean, inverse_std, groups, G, S, sn, sc, ss, eps, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
               UNIT: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr):
    """x (N, groups * G, S): G channels in a group, given in UNITs, so that the compiler knows what divides it."""
    G = G * UNIT
    item = tl.program_id(0)
    n, group = item // groups, item % groups
    base = n.to(tl.int64) * sn + group.to(tl.int64) * G * sc
    count = tl.full((), 0.0, tl.float32)
    m = tl.full((), 0.0, tl.float32)
    q = tl.full((), 0.0, tl.float32)
    for c0 in range(0, G, BC):
        c = c0 + tl.arange(0, BC)
        for s0 in range(0, S, BS):
            s = s0 + tl.arange(0, BS)
            inside = (s < S)[:, None] & (c < G)[None, :]
            at = base + s.to(tl.int64)[:, None] * ss + c.to(tl.int64)[None, :] * sc
            v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            k = (tl.minimum(S - s0, BS) * tl.minimum(G - c0, BC)).to(tl.float32)
            local = tl.sum(v) / k
            d = tl.where(inside, v - local, 0.0)
            count, m, q = merge(count, m, q, k, local, tl.sum(d * d))
    r = 1.0 / tl.sqrt(q / tl.maximum(count, 1.0) + eps)
    tl.store(mean + item, m)
    tl.store(inverse_std + item, r)
    for c0 in range(0, G, BC):
        c = c0 + tl.arange(0, BC)
        in_c = c < G
        scale = tl.zeros((BC,), tl.float32) + r
        shift = tl.zeros((BC,), tl.float32)
        if WEIGHT:
            scale = scale * tl.load(weight + group * G + c, mask=in_c, other=0.0).to(tl.float32)
        if BIAS:
            shift = tl.load(bias + group * G + c, mask=in_c, other=0.0).to(tl.float32)
        for s0 in range(0, S, BS):
            s = s0 + tl.arange(0, BS)
            inside = (s < S)[:, None] & in_c[None, :]
            at = base + s.to(tl.int64)[:, None] * ss + c.to(tl.int64)[None, :] * sc
            v = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - m) * scale[None, :] + shift[None, :]
            tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def group_norm_backward(grad, x, weight, mean, inverse_std, dx, dweight, dbias, groups, G, S, sn, sc, ss, WEIGHT: tl.constexpr,
                        UNIT: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr):
    """dx, and for each sample and channel its terms of the gradients of weight and bias: (N, C) float32."""
    G = G * UNIT
    item = tl.program_id(0)
    n, group = item // groups, item % groups
    base = n.to(tl.int64) * sn + group.to(tl.int64) * G * sc
    m, r = tl.load(mean + item), tl.load(inverse_std + item)
    sum_h = tl.full((), 0.0, tl.float32)
    sum_hx = tl.full((), 0.0, tl.float32)
    for c0 in range(0, G, BC):
        c = c0 + tl.arange(0, BC)
        in_c = c < G
        dw = tl.zeros((BC,), tl.float32)
        db = tl.zeros((BC,), tl.float32)
        for s0 in range(0, S, BS):
            s = s0 + tl.arange(0, BS)
            inside = (s < S)[:, None] & in_c[None, :]
            at = base + s.to(tl.int64)[:, None] * ss + c.to(tl.int64)[None, :] * sc
            g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
            normal = tl.where(inside, (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - m) * r, 0.0)
            dw += tl.sum(g * normal, 0)
            db += tl.sum(g, 0)
        where = item.to(tl.int64) * G + c
        tl.store(dweight + where, dw, mask=in_c)
        tl.store(dbias + where, db, mask=in_c)
        if WEIGHT:
            w = tl.load(weight + group * G + c, mask=in_c, other=0.0).to(tl.float32)
            sum_h += tl.sum(db * w)
            sum_hx += tl.sum(dw * w)
        else:
            sum_h += tl.sum(db)
            sum_hx += tl.sum(dw)
    size = (G * S).to(tl.float32)
    sum_h = sum_h / size
    sum_hx = sum_hx / size
    for c0 in range(0, G, BC):
        c = c0 + tl.arange(0, BC)
        in_c = c < G
        w = tl.full((BC,), 1.0, tl.float32)
        if WEIGHT:
            w = tl.load(weight + group * G + c, mask=in_c, other=0.0).to(tl.float32)
        for s0 in range(0, S, BS):
            s = s0 + tl.arange(0, BS)
            inside = (s < S)[:, None] & in_c[None, :]
            at = base + s.to(tl.int64)[:, None] * ss + c.to(tl.int64)[None, :] * sc
            g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32) * w[None, :]
            normal = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - m) * r
            tl.store(dx + at, ((g - sum_h - normal * sum_hx) * r).to(dx.dtype.element_ty), mask=inside)
