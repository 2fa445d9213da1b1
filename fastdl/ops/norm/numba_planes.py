"""Statistics of planes (samples, channels, positions), and their normalisation, channel by channel: rows of memory."""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import fma, hsum, lanes, load, load_n, number, offset, pointer, read, splat, store, store_n, write
from .numba_moments import BLOCK, moments

SHARE = 1 << 14  # elements that a thread takes at a time, in whole planes


@inline
def _moments_chunk(slot, chunk, x, planes, n, share, parts):
    for k in range(chunk * share, min(planes, (chunk + 1) * share)):
        mean, squares = moments(offset(x, k * n), n)
        shift = number(x, mean)
        write(parts, k, shift)
        write(parts, planes + k, mean - np.float64(shift))
        write(parts, 2 * planes + k, squares)


@kernel("i R2 W3")
def plane_moments(pool, x, parts):
    """parts: (3, ...): shift, lost and sum of squared deviations of each row of x (planes, positions)."""
    planes, n = x.shape
    share = max(1, SHARE // max(1, n))
    parallel_for(pool, _moments_chunk, (planes + share - 1) // share, (pointer(x), planes, n, share, pointer(parts)))


@inline
def _normalise_chunk(slot, chunk, x, planes, n, share, channels, each, coefs, size, y):
    V = lanes(x)
    for k in range(chunk * share, min(planes, (chunk + 1) * share)):
        p, q, c = offset(x, k * n), offset(y, k * n), k if each else k % channels
        shift, scale, add, i = splat(x, read(coefs, c)), splat(x, read(coefs, size + c)), splat(x, read(coefs, 2 * size + c)), 0
        while i + V <= n:
            store(q, i, fma(load(p, i) - shift, scale, add))
            i += V
        if i < n:
            store_n(q, i, fma(load_n(p, i, n - i) - shift, scale, add), n - i)


@kernel("i R2 R3 W2")
def normalise_planes(pool, x, coefs, y):
    """y = (x - shift) * scale + add for each row of x. coefs: (3, samples, channels); one sample serves all."""
    planes, n = x.shape
    samples, channels = coefs.shape[1], coefs.shape[2]
    share = max(1, SHARE // max(1, n))
    parallel_for(pool, _normalise_chunk, (planes + share - 1) // share,
                 (pointer(x), planes, n, share, channels, samples > 1, pointer(coefs), samples * channels, pointer(y)))


@inline
def _products_chunk(slot, chunk, g, x, planes, n, share, channels, each, coefs, parts):
    V = lanes(x)
    for k in range(chunk * share, min(planes, (chunk + 1) * share)):
        shift = splat(x, read(coefs, k if each else k % channels))
        by_one, by_x, done = 0.0, 0.0, 0
        while done < n:
            p, q, count, i = offset(g, k * n + done), offset(x, k * n + done), min(BLOCK, n - done), 0
            a = splat(x, 0.0)
            b = c = d = a
            while i + 2 * V <= count:
                u, v = load(p, i), load(p, i + V)
                a, b, c, d = a + u, b + v, fma(u, load(q, i) - shift, c), fma(v, load(q, i + V) - shift, d)
                i += 2 * V
            while i < count:
                m = min(V, count - i)
                u = load_n(p, i, m)
                a, c = a + u, fma(u, load_n(q, i, m) - shift, c)
                i += V
            by_one += np.float64(hsum(a + b))
            by_x += np.float64(hsum(c + d))
            done += count
        write(parts, k, by_one)
        write(parts, planes + k, by_x)


@kernel("i R2 R2 R3 W3")
def plane_products(pool, g, x, coefs, parts):
    """parts: (2, ...): the sums of g and of g * (x - shift) over each row. coefs: of normalise_planes."""
    planes, n = x.shape
    samples, channels = coefs.shape[1], coefs.shape[2]
    share = max(1, SHARE // max(1, n))
    parallel_for(pool, _products_chunk, (planes + share - 1) // share,
                 (pointer(g), pointer(x), planes, n, share, channels, samples > 1, pointer(coefs), pointer(parts)))


@inline
def _combine_chunk(slot, chunk, g, x, planes, n, share, channels, each, shifts, coefs, size, dx):
    V = lanes(x)
    for k in range(chunk * share, min(planes, (chunk + 1) * share)):
        p, q, t, c = offset(g, k * n), offset(x, k * n), offset(dx, k * n), k if each else k % channels
        shift, i = splat(x, read(shifts, c)), 0
        by_g, by_x, add = splat(x, read(coefs, c)), splat(x, read(coefs, size + c)), splat(x, read(coefs, 2 * size + c))
        while i + V <= n:
            store(t, i, fma(by_g, load(p, i), fma(by_x, load(q, i) - shift, add)))
            i += V
        if i < n:
            m = n - i
            store_n(t, i, fma(by_g, load_n(p, i, m), fma(by_x, load_n(q, i, m) - shift, add)), m)


@kernel("i R2 R2 R3 R3 W2")
def combine_planes(pool, g, x, shifts, coefs, dx):
    """dx = p * g + q * (x - shift) + r for each row. shifts: coefs of normalise_planes; coefs: (3, samples, channels): p, q, r."""
    planes, n = x.shape
    samples, channels = coefs.shape[1], coefs.shape[2]
    share = max(1, SHARE // max(1, n))
    parallel_for(pool, _combine_chunk, (planes + share - 1) // share,
                 (pointer(g), pointer(x), planes, n, share, channels, samples > 1, pointer(shifts), pointer(coefs), samples * channels,
                  pointer(dx)))
