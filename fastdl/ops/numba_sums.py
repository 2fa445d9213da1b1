"""Sums over all positions of each channel: the gradient of a bias."""

from __future__ import annotations

import numpy as np

from ..cpu._pool import parallel_for
from ..cpu.jit import inline, kernel
from ..cpu.simd import hsum, lanes, load, load_n, offset, pointer, splat, store_n, write
from .layout import is_channels_last
from .numba_maps import pool_for

SHARE = 1 << 14  # elements that a thread takes at a time
BLOCK = 1 << 11  # elements that four vectors add up before they are added in float64
LEAST_ROWS = 64  # of a share of channels-last memory: each share ends in a row of sums
SUMMED = 1 << 15  # elements from which threads share the work


@inline
def _plane_chunk(slot, chunk, x, planes, n, share, sums):
    V = lanes(x)
    for plane in range(chunk * share, min(planes, (chunk + 1) * share)):
        p, total, done = offset(x, plane * n), 0.0, 0
        while done < n:
            end, i = min(n, done + BLOCK), done
            a = splat(x, 0.0)
            b = c = d = a
            while i + 4 * V <= end:
                a, b, c, d = a + load(p, i), b + load(p, i + V), c + load(p, i + 2 * V), d + load(p, i + 3 * V)
                i += 4 * V
            while i < end:
                a = a + load_n(p, i, min(V, end - i))
                i += V
            total += np.float64(hsum((a + b) + (c + d)))
            done = end
        write(sums, plane, total)


@kernel("i R2 W1")
def plane_sums(pool, x, sums):
    """sums[i] = the sum of row i of x, which has no gaps."""
    planes, n = x.shape
    share = max(1, SHARE // max(1, n))
    parallel_for(pool, _plane_chunk, (planes + share - 1) // share, (pointer(x), planes, n, share, pointer(sums)))


@inline
def _column_chunk(slot, chunk, x, rows, n, share, sums):
    V = lanes(x)
    first, end = chunk * share, min(rows, (chunk + 1) * share)
    j = 0
    while j < n:
        a = splat(x, 0.0)
        b, m = a, min(V, n - j)
        r = first
        if m == V:
            while r + 2 <= end:
                a, b = a + load(x, r * n + j), b + load(x, (r + 1) * n + j)
                r += 2
        while r < end:
            a = a + load_n(x, r * n + j, m)
            r += 1
        store_n(sums, chunk * n + j, a + b, m)
        j += V


@kernel("i i R2 W2")
def column_sums(pool, share, x, sums):
    """sums[i] = the sum of ``share`` rows of x, which has no gaps, from row i * share on."""
    rows, n = x.shape
    parallel_for(pool, _column_chunk, sums.shape[0], (pointer(x), rows, n, share, pointer(sums)))


def row_of_sums(x: np.ndarray) -> np.ndarray:
    """The sum of x (rows, n), at least one, over its rows, of x's dtype."""
    rows, n = x.shape
    share = max(LEAST_ROWS, SHARE // max(1, n))
    parts = np.empty((-(-rows // share), n), x.dtype)
    column_sums[x.dtype.char](pool_for(x, SUMMED), share, x if x.flags.c_contiguous else np.ascontiguousarray(x), parts)
    return parts.reshape(n) if len(parts) == 1 else parts.sum(axis=0, dtype=np.float64).astype(x.dtype)


def channel_sums(x: np.ndarray) -> np.ndarray:
    """The sum of x (N, C, D, H, W) over all but its second axis, of x's dtype."""
    n, channels = x.shape[:2]
    if not x.size:
        return np.zeros(channels, x.dtype)
    if is_channels_last(x):
        return row_of_sums(np.ascontiguousarray(x.transpose(0, 2, 3, 4, 1)).reshape(-1, channels))
    parts = np.empty((n, channels), x.dtype)
    plane_sums[x.dtype.char](pool_for(x, SUMMED), np.ascontiguousarray(x).reshape(n * channels, -1), parts.reshape(-1))
    return parts.sum(axis=0, dtype=np.float64).astype(x.dtype)
