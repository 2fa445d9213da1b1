"""Mean and variance, exact to a few units in the last place however large the mean.

By blocks that stay in L1: the block's mean, rounded, is taken off, and the deviations' sum makes good what the rounding
lost (the corrected two-pass algorithm). Blocks and segments are merged in float64 by their means. So a mean of 1e4 standard
deviations costs no digits; a result's error is that of the deviations' sum of squares, about eps * sqrt(block / lanes).

A mean is kept as two numbers, ``shift`` and ``lost``: their sum is the mean, and x - shift is exact for x near it.

Source: T. Chan, G. Golub, R. LeVeque, "Algorithms for computing the sample variance", The American Statistician 37 (1983).
"""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import first_lanes, fma, hsum, lanes, load, load_n, number, offset, pointer, read, select, splat, write

BLOCK = 1 << 12  # elements


@inline
def block_sum(x, n):
    """The sum of n elements, four partial sums of vectors."""
    V, i = lanes(x), 0
    a = splat(x, 0.0)
    b = c = d = a
    while i + 4 * V <= n:
        a, b, c, d = a + load(x, i), b + load(x, i + V), c + load(x, i + 2 * V), d + load(x, i + 3 * V)
        i += 4 * V
    while i + V <= n:
        a = a + load(x, i)
        i += V
    if i < n:
        b = b + load_n(x, i, n - i)
    return hsum((a + b) + (c + d))


@inline
def block_deviations(x, n, shift):
    """The sums of x - shift and of its square."""
    V, i, m = lanes(x), 0, splat(x, shift)
    a = splat(x, 0.0)
    b = p = q = a
    while i + 2 * V <= n:
        d, e = load(x, i) - m, load(x, i + V) - m
        a, b, p, q = a + d, b + e, fma(d, d, p), fma(e, e, q)
        i += 2 * V
    while i < n:
        d = select(first_lanes(x, n - i), load_n(x, i, min(V, n - i)) - m, splat(x, 0.0))
        a, p = a + d, fma(d, d, p)
        i += V
    return hsum(a + b), hsum(p + q)


@inline
def moments(x, n):
    """(mean, sum of squared deviations from it) of n elements side by side, float64."""
    mean, squares, done = 0.0, 0.0, 0
    while done < n:
        p, count = offset(x, done), min(BLOCK, n - done)
        shift = number(x, np.float64(block_sum(p, count)) / count)
        deviation, square = block_deviations(p, count, shift)
        lost = np.float64(deviation) / count
        away = np.float64(shift) + lost - mean
        share = count / (done + count)
        squares += np.float64(square) - lost * np.float64(deviation) + (away * away * done * share if done else 0.0)
        mean += away * share
        done += count
    return mean, squares


@inline
def inverse_root(variance, eps):
    return 1.0 / np.sqrt(variance + eps)


# ------------------------------------------------------------------------------------------------ merging
@inline
def _merge_chunk(slot, unit, parts, plane, samples, segments, columns, rows, positions, fold, wide, w, b, channels, eps, stats, coefs):
    groups = columns // wide
    sample, group = unit // groups, unit % groups
    base = sample * segments * columns + group * wide
    total = np.float64(positions * wide)
    mean, squares = 0.0, 0.0
    left, k = positions // fold, base
    for _ in range(0, segments, fold):
        weight = np.float64(min(rows, left))
        for _ in range(fold):
            for c in range(k, k + wide):
                mean += weight * (np.float64(read(parts, c)) + np.float64(read(parts, plane + c)))
            k += columns
        left -= rows
    mean /= total
    left, k = positions // fold, base
    for _ in range(0, segments, fold):
        weight = np.float64(min(rows, left))
        for _ in range(fold):
            for c in range(k, k + wide):
                away = np.float64(read(parts, c)) + np.float64(read(parts, plane + c)) - mean
                squares += np.float64(read(parts, 2 * plane + c)) + weight * (away * away)
            k += columns
        left -= rows
    shift = number(parts, mean)
    lost, inverse = mean - np.float64(shift), inverse_root(squares / total, eps)
    at = samples * groups
    write(stats, unit, shift)
    write(stats, at + unit, lost)
    write(stats, 2 * at + unit, inverse)
    write(stats, 3 * at + unit, squares / total)
    per_group, size = channels // groups, samples * channels
    for c in range(group * per_group, (group + 1) * per_group):
        scale, k = inverse * np.float64(read(w, c)), sample * channels + c
        write(coefs, k, shift)
        write(coefs, size + k, scale)
        write(coefs, 2 * size + k, np.float64(read(b, c)) - lost * scale)


@kernel("i R3 i i i i i R1 R1 T W3 W3")
def merge(pool, parts, segments, rows, positions, fold, wide, w, b, eps, stats, coefs):
    """Statistics of groups from those of their parts, and what each channel is multiplied by and added to.

    parts: (3, samples * segments, columns), the shift, lost and squares of each segment and column; ``wide`` neighbouring
    columns make a group. positions: in a column of a sample; segments: of ``rows`` positions, the last of fewer, each ``fold``
    times. w, b: (channels,). stats: (4, samples, groups): shift, lost, 1 / sqrt(var + eps), var. coefs: (3, samples, channels):
    shift, scale and add of y = (x - shift) * scale + add.
    """
    columns, samples = parts.shape[2], stats.shape[1]
    parallel_for(pool, _merge_chunk, samples * (columns // wide),
                 (pointer(parts), parts.shape[1] * columns, samples, segments, columns, rows, positions, fold, wide, pointer(w), pointer(b),
                  w.shape[0], eps, pointer(stats), pointer(coefs)))


# ------------------------------------------------------------------------------------------------ running statistics
@kernel("R1 R1 R1 R1 T W3 W3")
def from_running(mean, var, w, b, eps, stats, coefs):
    """stats and coefs as ``merge`` gives them, for statistics that are given."""
    for c in range(mean.shape[0]):
        stats[0, 0, c] = coefs[0, 0, c] = mean[c]
        stats[1, 0, c] = 0
        stats[3, 0, c] = var[c]
        inverse = inverse_root(np.float64(var[c]), np.float64(eps))
        stats[2, 0, c] = inverse
        coefs[1, 0, c] = inverse * np.float64(w[c])
        coefs[2, 0, c] = b[c]


@kernel("W1 W1 R3 T T")
def update_running(mean, var, stats, momentum, unbiased):
    """running = (1 - momentum) * running + momentum * new, the new variance times ``unbiased``."""
    old, new = 1.0 - np.float64(momentum), np.float64(momentum)
    for c in range(mean.shape[0]):
        mean[c] = old * np.float64(mean[c]) + new * (np.float64(stats[0, 0, c]) + np.float64(stats[1, 0, c]))
        var[c] = old * np.float64(var[c]) + new * (np.float64(stats[3, 0, c]) * np.float64(unbiased))


# ------------------------------------------------------------------------------------------------ merging gradients
@inline
def _merge_gradient_chunk(slot, unit, parts, plane, samples, segments, per_group, total, w, channels, stats, coefs, dw):
    groups, size = channels // per_group, samples * channels
    sample, group = unit // groups, unit % groups
    at = samples * groups
    lost, inverse = np.float64(read(stats, at + unit)), np.float64(read(stats, 2 * at + unit))
    first = sample * channels + group * per_group
    c1 = c2 = 0.0
    for c in range(per_group):
        by_one = by_x = 0.0
        for s in range(segments):
            k = (sample * segments + s) * channels + group * per_group + c
            by_one += np.float64(read(parts, k))
            by_x += np.float64(read(parts, plane + k))
        by_normal = inverse * (by_x - lost * by_one)
        weight = np.float64(read(w, group * per_group + c))
        write(dw, first + c, by_normal)
        write(dw, size + first + c, by_one)
        c1 += weight * by_one
        c2 += weight * by_normal
    c1 /= total
    c2 /= total
    for c in range(per_group):
        write(coefs, first + c, inverse * np.float64(read(w, group * per_group + c)))
        write(coefs, size + first + c, -inverse * inverse * c2)
        write(coefs, 2 * size + first + c, inverse * (inverse * lost * c2 - c1))


@kernel("i R3 i i R1 R3 W3 W3")
def merge_gradients(pool, parts, segments, total, w, stats, coefs, dw):
    """Gradients of weights from sums over segments, and what makes the input's gradient.

    parts: (2, samples * segments, channels), sums of g and of g * (x - shift). total: elements of a group. stats: of ``merge``.
    coefs: (3, samples, channels): p, q, r of dx = p * g + q * (x - shift) + r. dw: (2, samples, channels), sums of g times the
    normalised x, and of g.
    """
    samples, channels = coefs.shape[1], coefs.shape[2]
    groups = stats.shape[2]
    parallel_for(pool, _merge_gradient_chunk, samples * groups,
                 (pointer(parts), parts.shape[1] * channels, samples, segments, channels // groups, np.float64(total), pointer(w), channels,
                  pointer(stats), pointer(coefs), pointer(dw)))
