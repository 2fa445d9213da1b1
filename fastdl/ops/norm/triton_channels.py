"""batch_norm in Triton: moments of each channel by parts, which are merged in a fixed order.

Element (position, channel) of a batch lies at n * sn + s * ss + c * sc, position = n * size + s: both memory layouts. A part is a
chunk of positions; its moments are taken about its own mean and merged by T. Chan, G. Golub, R. LeVeque (1983), so no digits are
lost where the mean is large.
"""

import triton
import triton.language as tl


@triton.jit
def place(r, c, size, sn, ss, sc):
    return (r // size).to(tl.int64)[:, None] * sn + (r % size).to(tl.int64)[:, None] * ss + c.to(tl.int64)[None, :] * sc


@triton.jit
def merge(count, mean, square, n, m, q):
    """The moments (count, mean, sum of squares about it) of two samples together."""
    both = count + n
    share = tl.where(both > 0, n / tl.maximum(both, 1.0), 0.0)
    difference = m - mean
    return both, mean + difference * share, square + q + difference * difference * count * share


@triton.jit
def moments(x, means, squares, R, C, size, sn, ss, sc, chunk, BR: tl.constexpr, BC: tl.constexpr):
    """For each part its mean and its sum of squares about it, (parts, C) float32."""
    part = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    count = tl.zeros((BC,), tl.float32)
    mean = tl.zeros((BC,), tl.float32)
    square = tl.zeros((BC,), tl.float32)
    stop = tl.minimum((part + 1) * chunk, R)
    for r0 in range(part * chunk, stop, BR):
        r = r0 + tl.arange(0, BR)
        inside = (r < stop)[:, None] & (c < C)[None, :]
        v = tl.load(x + place(r, c, size, sn, ss, sc), mask=inside, other=0.0).to(tl.float32)
        n = tl.minimum(stop - r0, BR).to(tl.float32)
        m = tl.sum(v, 0) / n
        d = tl.where(inside, v - m[None, :], 0.0)
        count, mean, square = merge(count, mean, square, n, m, tl.sum(d * d, 0))
    tl.store(means + part * C + c, mean, mask=c < C)
    tl.store(squares + part * C + c, square, mask=c < C)


@triton.jit
def merge_moments(means, squares, mean, inverse_std, running_mean, running_var, R, C, parts, chunk, eps, momentum,
                  UPDATE: tl.constexpr, BC: tl.constexpr):
    """The parts' moments merged, first to last; the running statistics updated."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    in_c = c < C
    count = tl.zeros((BC,), tl.float32)
    m = tl.zeros((BC,), tl.float32)
    q = tl.zeros((BC,), tl.float32)
    for p in range(parts):
        n = tl.minimum(R - p * chunk, chunk).to(tl.float32)
        at = tl.full((), p, tl.int64) * C + c
        count, m, q = merge(count, m, q, n, tl.load(means + at, mask=in_c, other=0.0), tl.load(squares + at, mask=in_c, other=0.0))
    tl.store(mean + c, m, mask=in_c)
    tl.store(inverse_std + c, 1.0 / tl.sqrt(q / R + eps), mask=in_c)
    if UPDATE:
        old = tl.load(running_mean + c, mask=in_c, other=0.0).to(tl.float32)
        tl.store(running_mean + c, (old * (1.0 - momentum) + momentum * m).to(running_mean.dtype.element_ty), mask=in_c)
        old = tl.load(running_var + c, mask=in_c, other=0.0).to(tl.float32)
        tl.store(running_var + c, (old * (1.0 - momentum) + momentum * (q / (R - 1))).to(running_var.dtype.element_ty), mask=in_c)


@triton.jit
def normalise(x, y, mean, inverse_std, weight, bias, R, C, size, sn, ss, sc, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
              BR: tl.constexpr, BC: tl.constexpr):
    """y = (x - mean) * inverse_std * weight + bias."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = c < C
    inside = (r < R)[:, None] & in_c[None, :]
    at = place(r, c, size, sn, ss, sc)
    scale = tl.load(inverse_std + c, mask=in_c, other=0.0)
    if WEIGHT:
        scale = scale * tl.load(weight + c, mask=in_c, other=0.0).to(tl.float32)
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - tl.load(mean + c, mask=in_c, other=0.0)[None, :]
    v = v * scale[None, :]
    if BIAS:
        v = v + tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gradient_sums(grad, x, mean, inverse_std, dweight, dbias, R, C, size, sn, ss, sc, chunk, BR: tl.constexpr, BC: tl.constexpr):
    """For each part the sums of grad * normalised x and of grad, (parts, C) float32."""
    part = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = c < C
    m = tl.load(mean + c, mask=in_c, other=0.0)[None, :]
    dw = tl.zeros((BR, BC), tl.float32)
    db = tl.zeros((BR, BC), tl.float32)
    stop = tl.minimum((part + 1) * chunk, R)
    for r0 in range(part * chunk, stop, BR):
        r = r0 + tl.arange(0, BR)
        inside = (r < stop)[:, None] & in_c[None, :]
        at = place(r, c, size, sn, ss, sc)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.where(inside, tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - m, 0.0)
        dw += g * v
        db += g
    s = tl.load(inverse_std + c, mask=in_c, other=0.0)
    tl.store(dweight + part * C + c, tl.sum(dw, 0) * s, mask=in_c)
    tl.store(dbias + part * C + c, tl.sum(db, 0), mask=in_c)


@triton.jit
def input_gradient(grad, x, mean, inverse_std, weight, dweight, dbias, dx, R, C, size, sn, ss, sc, WEIGHT: tl.constexpr,
                   TRAINING: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """dx = scale * (grad - mean(grad) - normalised x * mean(grad * normalised x)); without the means where the statistics were given."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = c < C
    inside = (r < R)[:, None] & in_c[None, :]
    at = place(r, c, size, sn, ss, sc)
    s = tl.load(inverse_std + c, mask=in_c, other=0.0)
    d = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if TRAINING:
        normal = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - tl.load(mean + c, mask=in_c, other=0.0)[None, :]) * s[None, :]
        d = d - (tl.load(dbias + c, mask=in_c, other=0.0) / R)[None, :] - normal * (tl.load(dweight + c, mask=in_c, other=0.0) / R)[None, :]
    if WEIGHT:
        s = s * tl.load(weight + c, mask=in_c, other=0.0).to(tl.float32)
    tl.store(dx + at, (d * s[None, :]).to(dx.dtype.element_ty), mask=inside)
