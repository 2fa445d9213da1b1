"""Statistics of pixels (samples, positions, channels), and their normalisation: vectors along the channels.

A segment of positions, few enough for L2, is the unit of work; its sums are rows of scratch memory that stay in L1. Rows are taken
in pairs, so that a sum is loaded and stored half as often.
"""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import fma, lanes, load, load_n, number, offset, pointer, read, splat, store, store_n, write


@inline
def _clear(p, count):
    for j in range(0, count, lanes(p)):
        store(p, j, splat(p, 0.0))


@inline
def _sums(x, n, width, total):
    """total[j] = the sum of n rows; whole vectors."""
    V, r = lanes(x), 0
    _clear(total, width)
    while r < n:
        p, j = offset(x, r * width), 0
        if r + 1 < n:
            q = offset(p, width)
            while j + V <= width:
                store(total, j, load(total, j) + (load(p, j) + load(q, j)))
                j += V
            if j < width:
                store(total, j, load(total, j) + (load_n(p, j, width - j) + load_n(q, j, width - j)))
        else:
            while j + V <= width:
                store(total, j, load(total, j) + load(p, j))
                j += V
            if j < width:
                store(total, j, load(total, j) + load_n(p, j, width - j))
        r += 2


@inline
def _deviations(x, n, width, shift, total, squares):
    """The sums of x - shift and of its square over n rows."""
    V, r = lanes(x), 0
    _clear(total, width)
    _clear(squares, width)
    while r < n:
        p, j = offset(x, r * width), 0
        if r + 1 < n:
            q = offset(p, width)
            while j + V <= width:
                m = load(shift, j)
                d, e = load(p, j) - m, load(q, j) - m
                store(total, j, load(total, j) + (d + e))
                store(squares, j, fma(d, d, fma(e, e, load(squares, j))))
                j += V
            if j < width:
                m = load(shift, j)
                d, e = load_n(p, j, width - j) - m, load_n(q, j, width - j) - m
                store(total, j, load(total, j) + (d + e))
                store(squares, j, fma(d, d, fma(e, e, load(squares, j))))
        else:
            while j + V <= width:
                d = load(p, j) - load(shift, j)
                store(total, j, load(total, j) + d)
                store(squares, j, fma(d, d, load(squares, j)))
                j += V
            if j < width:
                d = load_n(p, j, width - j) - load(shift, j)
                store(total, j, load(total, j) + d)
                store(squares, j, fma(d, d, load(squares, j)))
        r += 2


@inline
def _moments_chunk(slot, chunk, x, positions, width, rows, segments, parts, plane, scratch, pitch):
    V = lanes(x)
    sample, first = chunk // segments, chunk % segments * rows
    p, n = offset(x, (sample * positions + first) * width), min(rows, positions - first)
    total = offset(scratch, slot * 3 * pitch)
    shift, squares = offset(total, pitch), offset(total, 2 * pitch)
    _sums(p, n, width, total)
    share = splat(x, 1.0 / n)
    for j in range(0, width, V):
        store(shift, j, load(total, j) * share)
    _deviations(p, n, width, shift, total, squares)
    at = offset(parts, chunk * width)
    for j in range(width):
        deviation, near = np.float64(read(total, j)), np.float64(read(shift, j))
        lost = deviation / n
        mean = number(x, near + lost)
        write(at, j, mean)
        write(at, plane + j, near - np.float64(mean) + lost)
        write(at, 2 * plane + j, np.float64(read(squares, j)) - lost * deviation)


@kernel("i R3 i W1 W3")
def pixel_moments(pool, x, rows, scratch, parts):
    """parts: (3, samples * segments, width): shift, lost and sum of squared deviations of each column of each segment.

    x: (samples, positions, width). rows: positions of a segment. scratch: 3 rows of whole vectors for each thread.
    """
    samples, positions, width = x.shape
    segments, V = (positions + rows - 1) // rows, lanes(pointer(x))
    parallel_for(pool, _moments_chunk, samples * segments,
                 (pointer(x), positions, width, rows, segments, pointer(parts), parts.shape[1] * width, pointer(scratch),
                  (width + V - 1) // V * V))


@inline
def _normalise_chunk(slot, chunk, x, positions, width, rows, segments, each, coefs, size, y):
    V = lanes(x)
    sample, first = chunk // segments, chunk % segments * rows
    at, n = (sample * positions + first) * width, min(rows, positions - first)
    shift = offset(coefs, sample * width if each else 0)
    scale, add = offset(shift, size), offset(shift, 2 * size)
    for r in range(n):
        p, q, j = offset(x, at + r * width), offset(y, at + r * width), 0
        while j + V <= width:
            store(q, j, fma(load(p, j) - load(shift, j), load(scale, j), load(add, j)))
            j += V
        if j < width:
            m = width - j
            store_n(q, j, fma(load_n(p, j, m) - load_n(shift, j, m), load_n(scale, j, m), load_n(add, j, m)), m)


@kernel("i R3 i R3 W3")
def normalise_pixels(pool, x, rows, coefs, y):
    """y = (x - shift) * scale + add for each column. coefs: (3, samples, width); one sample serves all."""
    samples, positions, width = x.shape
    segments = (positions + rows - 1) // rows
    parallel_for(pool, _normalise_chunk, samples * segments,
                 (pointer(x), positions, width, rows, segments, coefs.shape[1] > 1, pointer(coefs), coefs.shape[1] * width, pointer(y)))


@inline
def _products_chunk(slot, chunk, g, x, positions, width, rows, segments, each, coefs, parts, plane, scratch, pitch):
    V = lanes(x)
    sample, first = chunk // segments, chunk % segments * rows
    at, n = (sample * positions + first) * width, min(rows, positions - first)
    shift, total = offset(coefs, sample * width if each else 0), offset(scratch, slot * 2 * pitch)
    by_x, r = offset(total, pitch), 0
    _clear(total, width)
    _clear(by_x, width)
    while r < n:
        p, q, j = offset(g, at + r * width), offset(x, at + r * width), 0
        if r + 1 < n:
            p2, q2 = offset(p, width), offset(q, width)
            while j + V <= width:
                m, u, v = load(shift, j), load(p, j), load(p2, j)
                store(total, j, load(total, j) + (u + v))
                store(by_x, j, fma(u, load(q, j) - m, fma(v, load(q2, j) - m, load(by_x, j))))
                j += V
            if j < width:
                k = width - j
                m, u, v = load_n(shift, j, k), load_n(p, j, k), load_n(p2, j, k)
                store(total, j, load(total, j) + (u + v))
                store(by_x, j, fma(u, load_n(q, j, k) - m, fma(v, load_n(q2, j, k) - m, load(by_x, j))))
        else:
            while j < width:
                k = min(V, width - j)
                u = load_n(p, j, k)
                store(total, j, load(total, j) + u)
                store(by_x, j, fma(u, load_n(q, j, k) - load_n(shift, j, k), load(by_x, j)))
                j += V
        r += 2
    target, j = offset(parts, chunk * width), 0
    while j < width:
        k = min(V, width - j)
        store_n(target, j, load(total, j), k)
        store_n(target, plane + j, load(by_x, j), k)
        j += V


@kernel("i R3 R3 i R3 W1 W3")
def pixel_products(pool, g, x, rows, coefs, scratch, parts):
    """parts: (2, samples * segments, width): sums of g and of g * (x - shift). scratch: 2 rows of whole vectors a thread."""
    samples, positions, width = x.shape
    segments, V = (positions + rows - 1) // rows, lanes(pointer(x))
    parallel_for(pool, _products_chunk, samples * segments,
                 (pointer(g), pointer(x), positions, width, rows, segments, coefs.shape[1] > 1, pointer(coefs), pointer(parts),
                  parts.shape[1] * width, pointer(scratch), (width + V - 1) // V * V))


@inline
def _combine_chunk(slot, chunk, g, x, positions, width, rows, segments, each, shifts, coefs, size, dx):
    V = lanes(x)
    sample, first = chunk // segments, chunk % segments * rows
    at, n = (sample * positions + first) * width, min(rows, positions - first)
    base = sample * width if each else 0
    shift, by_g = offset(shifts, base), offset(coefs, base)
    by_x, add = offset(by_g, size), offset(by_g, 2 * size)
    for r in range(n):
        p, q, t, j = offset(g, at + r * width), offset(x, at + r * width), offset(dx, at + r * width), 0
        while j + V <= width:
            store(t, j, fma(load(by_g, j), load(p, j), fma(load(by_x, j), load(q, j) - load(shift, j), load(add, j))))
            j += V
        if j < width:
            m = width - j
            store_n(t, j, fma(load_n(by_g, j, m), load_n(p, j, m),
                              fma(load_n(by_x, j, m), load_n(q, j, m) - load_n(shift, j, m), load_n(add, j, m))), m)


@kernel("i R3 R3 i R3 R3 W3")
def combine_pixels(pool, g, x, rows, shifts, coefs, dx):
    """dx = p * g + q * (x - shift) + r for each column. shifts: coefs of normalise_pixels; coefs: (3, samples, width): p, q, r."""
    samples, positions, width = x.shape
    segments = (positions + rows - 1) // rows
    parallel_for(pool, _combine_chunk, samples * segments,
                 (pointer(g), pointer(x), positions, width, rows, segments, coefs.shape[1] > 1, pointer(shifts), pointer(coefs),
                  coefs.shape[1] * width, pointer(dx)))
