"""Statistics of pixels (samples, positions, channels), and their normalisation: vectors along the channels.

A segment of positions, few enough for L2, is the unit of work; its sums are rows of scratch memory that stay in L1. Rows are taken
eight at a time, so that a sum, or what a column is multiplied by and added to, is loaded once for eight of them.
"""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import fma, lanes, load, load_n, number, offset, pointer, read, splat, store, store_n, write

GROUP = 8  # rows


@inline
def _clear(p, count):
    for j in range(0, count, lanes(p)):
        store(p, j, splat(p, 0.0))


@inline
def _column(x, j, left):
    """A vector of a row, or the ``left`` columns that there are: the branch is always the same but for a row's end."""
    return load(x, j) if left >= lanes(x) else load_n(x, j, left)


@inline
def _sums(x, n, width, total):
    """total[j] = the sum of n rows; whole vectors."""
    V = lanes(x)
    _clear(total, width)
    for r in range(0, n, GROUP):
        p, rows = offset(x, r * width), min(GROUP, n - r)
        for j in range(0, width, V):
            left = width - j
            a, b = load(total, j), splat(x, 0.0)
            if rows == GROUP:
                for k in range(0, GROUP, 2):
                    a, b = a + _column(p, j + k * width, left), b + _column(p, j + (k + 1) * width, left)
            else:
                for k in range(rows):
                    b = b + _column(p, j + k * width, left)
            store(total, j, a + b)


@inline
def _deviations(x, n, width, shift, total, squares):
    """The sums of x - shift and of its square over n rows."""
    V = lanes(x)
    _clear(total, width)
    _clear(squares, width)
    for r in range(0, n, GROUP):
        p, rows = offset(x, r * width), min(GROUP, n - r)
        for j in range(0, width, V):
            left, m = width - j, load(shift, j)
            a, s, b = load(total, j), load(squares, j), splat(x, 0.0)
            t = b
            if rows == GROUP:
                for k in range(0, GROUP, 2):
                    d, e = _column(p, j + k * width, left) - m, _column(p, j + (k + 1) * width, left) - m
                    a, b, s, t = a + d, b + e, fma(d, d, s), fma(e, e, t)
            else:
                for k in range(rows):
                    d = _column(p, j + k * width, left) - m
                    b, t = b + d, fma(d, d, t)
            store(total, j, a + b)
            store(squares, j, s + t)


@inline
def _moments_chunk(slot, chunk, x, positions, width, rows, segments, parts, plane, scratch, pitch):
    V = lanes(x)
    sample, first = chunk // segments, chunk % segments * rows
    p, n = offset(x, (sample * positions + first) * width), min(rows, positions - first)
    total = offset(scratch, slot * 3 * pitch)
    shift, squares = offset(total, pitch), offset(total, 2 * pitch)
    _sums(p, n, width, total)
    inverse = 1.0 / n
    share = splat(x, inverse)
    for j in range(0, width, V):
        store(shift, j, load(total, j) * share)
    _deviations(p, n, width, shift, total, squares)
    at = offset(parts, chunk * width)
    for j in range(width):
        deviation, near = np.float64(read(total, j)), np.float64(read(shift, j))
        lost = deviation * inverse
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
    for r in range(0, n, GROUP):
        p, q, rows = offset(x, at + r * width), offset(y, at + r * width), min(GROUP, n - r)
        for j in range(0, width, V):
            left = width - j
            a, b, c = _column(shift, j, left), _column(scale, j, left), _column(add, j, left)
            if left >= V and rows == GROUP:
                for k in range(GROUP):
                    store(q, j + k * width, fma(load(p, j + k * width) - a, b, c))
            else:
                for k in range(rows):
                    store_n(q, j + k * width, fma(load_n(p, j + k * width, left) - a, b, c), left)


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
    by_x = offset(total, pitch)
    _clear(total, width)
    _clear(by_x, width)
    for r in range(0, n, GROUP):
        p, q, rows = offset(g, at + r * width), offset(x, at + r * width), min(GROUP, n - r)
        for j in range(0, width, V):
            left = width - j
            m, a, s, b = _column(shift, j, left), load(total, j), load(by_x, j), splat(x, 0.0)
            t = b
            if rows == GROUP:
                for k in range(0, GROUP, 2):
                    u, v = _column(p, j + k * width, left), _column(p, j + (k + 1) * width, left)
                    a, b = a + u, b + v
                    s, t = fma(u, _column(q, j + k * width, left) - m, s), fma(v, _column(q, j + (k + 1) * width, left) - m, t)
            else:
                for k in range(rows):
                    u = _column(p, j + k * width, left)
                    b, t = b + u, fma(u, _column(q, j + k * width, left) - m, t)
            store(total, j, a + b)
            store(by_x, j, s + t)
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
    for r in range(0, n, GROUP):
        p, q, t = offset(g, at + r * width), offset(x, at + r * width), offset(dx, at + r * width)
        rows = min(GROUP, n - r)
        for j in range(0, width, V):
            left = width - j
            m, a, b, c = _column(shift, j, left), _column(by_g, j, left), _column(by_x, j, left), _column(add, j, left)
            if left >= V and rows == GROUP:
                for k in range(GROUP):
                    i = j + k * width
                    store(t, i, fma(a, load(p, i), fma(b, load(q, i) - m, c)))
            else:
                for k in range(rows):
                    i = j + k * width
                    store_n(t, i, fma(a, load_n(p, i, left), fma(b, load_n(q, i, left) - m, c)), left)


@kernel("i R3 R3 i R3 R3 W3")
def combine_pixels(pool, g, x, rows, shifts, coefs, dx):
    """dx = p * g + q * (x - shift) + r for each column. shifts: coefs of normalise_pixels; coefs: (3, samples, width): p, q, r."""
    samples, positions, width = x.shape
    segments = (positions + rows - 1) // rows
    parallel_for(pool, _combine_chunk, samples * segments,
                 (pointer(g), pointer(x), positions, width, rows, segments, coefs.shape[1] > 1, pointer(shifts), pointer(coefs),
                  coefs.shape[1] * width, pointer(dx)))
