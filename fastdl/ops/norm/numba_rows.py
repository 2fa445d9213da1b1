"""Normalisation of rows of memory by their own mean and variance: layer_norm, and group_norm where there is one position.

A row is read from memory once; the passes after the first find it in a core's cache. weight and bias are (kinds, n): row r has
those of r % kinds.
"""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import fma, hsum, lanes, load, load_n, number, offset, pointer, read, splat, store, store_n, write
from .numba_moments import inverse_root, moments

SHARE = 1 << 14  # elements that a thread takes at a time, in whole rows


@inline
def _forward_chunk(slot, chunk, x, rows, n, share, kinds, w, b, eps, y, stats):
    V = lanes(x)
    for r in range(chunk * share, min(rows, (chunk + 1) * share)):
        p, q, k = offset(x, r * n), offset(y, r * n), r % kinds * n
        u, v, i = offset(w, k), offset(b, k), 0
        mean, squares = moments(p, n)
        near, inverse = number(x, mean), inverse_root(squares / n, eps)
        write(stats, r, near)
        write(stats, rows + r, inverse)
        write(stats, 2 * rows + r, -(mean - np.float64(near)) * inverse)
        shift, scale, rest = splat(x, near), splat(x, inverse), splat(x, read(stats, 2 * rows + r))
        while i + V <= n:
            store(q, i, fma(fma(load(p, i) - shift, scale, rest), load(u, i), load(v, i)))
            i += V
        if i < n:
            m = n - i
            store_n(q, i, fma(fma(load_n(p, i, m) - shift, scale, rest), load_n(u, i, m), load_n(v, i, m)), m)


@kernel("i R2 R2 R2 T W2 W2")
def normalise_rows(pool, x, w, b, eps, y, stats):
    """y = normal * w + b with normal = (x - mean) / sqrt(var + eps) for each row of x (rows, n).

    stats: (3, rows): shift, scale and rest of normal = (x - shift) * scale + rest.
    """
    rows, n = x.shape
    share = max(1, SHARE // max(1, n))
    parallel_for(pool, _forward_chunk, (rows + share - 1) // share,
                 (pointer(x), rows, n, share, w.shape[0], pointer(w), pointer(b), eps, pointer(y), pointer(stats)))


@inline
def _backward_chunk(slot, chunk, g, x, rows, n, share, kinds, w, stats, need_x, need_w, dx, parts):
    V = lanes(x)
    size = kinds * n
    dw = offset(parts, chunk * 2 * size)
    if need_w:
        i = 0
        while i < 2 * size:
            store_n(dw, i, splat(x, 0.0), min(V, 2 * size - i))
            i += V
    for r in range(chunk * share, min(rows, (chunk + 1) * share)):
        p, q, t, k = offset(g, r * n), offset(x, r * n), offset(dx, r * n), r % kinds * n
        u, by_normal, by_one = offset(w, k), offset(dw, k), offset(dw, size + k)
        shift, scale, rest = splat(x, read(stats, r)), splat(x, read(stats, rows + r)), splat(x, read(stats, 2 * rows + r))
        a, i = splat(x, 0.0), 0
        b = a
        if need_w and need_x:
            while i + V <= n:
                d, normal = load(p, i), fma(load(q, i) - shift, scale, rest)
                store(by_normal, i, fma(d, normal, load(by_normal, i)))
                store(by_one, i, load(by_one, i) + d)
                h = d * load(u, i)
                a, b = a + h, fma(h, normal, b)
                i += V
        elif need_x:
            while i + V <= n:
                normal, h = fma(load(q, i) - shift, scale, rest), load(p, i) * load(u, i)
                a, b = a + h, fma(h, normal, b)
                i += V
        while i < n:
            m = min(V, n - i)
            d, normal = load_n(p, i, m), fma(load_n(q, i, m) - shift, scale, rest)
            if need_w:
                store_n(by_normal, i, fma(d, normal, load_n(by_normal, i, m)), m)
                store_n(by_one, i, load_n(by_one, i, m) + d, m)
            h = d * load_n(u, i, m)
            a, b = a + h, fma(h, normal, b)
            i += V
        if need_x:
            c1, c2, i = splat(x, -np.float64(hsum(a)) / n), splat(x, -np.float64(hsum(b)) / n), 0
            while i + V <= n:
                normal = fma(load(q, i) - shift, scale, rest)
                store(t, i, scale * (fma(load(p, i), load(u, i), fma(normal, c2, c1))))
                i += V
            if i < n:
                m = n - i
                normal = fma(load_n(q, i, m) - shift, scale, rest)
                store_n(t, i, scale * (fma(load_n(p, i, m), load_n(u, i, m), fma(normal, c2, c1))), m)


@kernel("i i R2 R2 R2 R2 i i W2 W3")
def normalise_rows_gradient(pool, share, g, x, w, stats, need_x, need_w, dx, parts):
    """dx, and for each chunk of ``share`` rows its sums of g * normal and of g: parts (chunks, 2 * kinds, n)."""
    rows, n = x.shape
    parallel_for(pool, _backward_chunk, (rows + share - 1) // share,
                 (pointer(g), pointer(x), rows, n, share, w.shape[0], pointer(w), pointer(stats), need_x, need_w, pointer(dx),
                  pointer(parts)))
