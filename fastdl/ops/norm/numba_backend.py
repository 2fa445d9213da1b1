"""Normalisation on the CPU: what memory holds, as rows, planes or pixels, and the kernels for it.

    rows     what a mean is over lies side by side, with a weight for each element: layer_norm
    planes   (samples, channels, positions): batch_norm and group_norm of contiguous memory
    pixels   (samples, positions, channels): of channels-last memory

batch_norm's planes count as segments of one sample, whose means are merged; its pixels are one sample's. Every sum has an order
that the shapes alone decide, so the answer has the same bits for any number of threads.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from ...cpu import parallel
from ...cpu.thresholds import FUNCTIONS
from ...cpu.workspace import workspace
from . import reference
from .numba_moments import from_running, merge, merge_gradients, update_running
from .numba_pixels import combine_pixels, normalise_pixels, pixel_moments, pixel_products
from .numba_planes import combine_planes, normalise_planes, plane_moments, plane_products
from .numba_rows import normalise_rows, normalise_rows_gradient

_SMALL, _SEGMENT = 1 << 14, 1 << 16  # elements of a segment of pixels: small where there would be few to share
_LEAST_ROWS = 128  # for what follows a segment costs as much as some of them
_NARROW = 64  # columns; narrower pixels are taken several at a time
_MOST_PARTS = 64  # of the sums of a weight's gradient over rows


_CHANNELS_LAST = {n: (0, *range(2, n), 1) for n in range(2, 33)}  # the order of axes, by how many there are
_CHANNELS_FIRST = {n: (0, n - 1, *range(1, n - 1)) for n in range(2, 33)}


class Memory(NamedTuple):
    """x (N, C, ...) as kernels see it."""

    array: np.ndarray  # planes (N * C, positions) or pixels (samples, positions, columns), without gaps
    last: bool  # pixels
    shape: tuple  # of x in the order of memory
    fold: int  # pixels side by side in a row of columns
    rows: int  # rows of a segment of pixels


def _memory(x, samples, last=None):
    """x, or a copy without gaps; last: the layout to have, None for x's own."""
    if last is None:
        last = prod(x.shape[2:]) == 1 or (not x.flags.c_contiguous and x.shape[1] > 1 and x.strides[1] == x.itemsize)
    if not last:
        x = np.ascontiguousarray(x)
        return Memory(x.reshape(x.shape[0] * x.shape[1], -1), False, x.shape, 1, 0)
    x = np.ascontiguousarray(x.transpose(_CHANNELS_LAST[x.ndim]))
    channels, positions, fold = x.shape[-1], x.size // x.shape[-1] // samples, 1
    while fold * channels < _NARROW and positions % (2 * fold) == 0:
        fold *= 2
    width, segment = fold * channels, min(_SEGMENT, max(_SMALL, x.size // 8))
    return Memory(x.reshape(samples, positions // fold, width), True, x.shape, fold, max(_LEAST_ROWS, segment // width))


def _empty(m: Memory):
    """(an array like x, without gaps and not set; the same as kernels see it)."""
    y = np.empty(m.shape, m.array.dtype)
    return y.transpose(_CHANNELS_FIRST[y.ndim]) if m.last else y, y.reshape(m.array.shape)


def _team(m):
    return parallel.team() if m.array.size > FUNCTIONS else (0, 1)


def _of_channels(value, channels, dtype, default):
    return np.full(channels, default, dtype) if value is None else np.ascontiguousarray(value)


def _for_columns(coefs, m):
    return np.tile(coefs, m.fold) if m.fold > 1 else coefs


# ------------------------------------------------------------------------------------------------ in any layout
def _moments(m: Memory, samples, wide, w, b, eps):
    """(stats, coefs) as ``merge`` gives them. wide: channels of a group."""
    dtype, char, channels = m.array.dtype, m.array.dtype.char, len(w)
    pool, slots = _team(m)
    stats, coefs = np.empty((4, samples, channels // wide), dtype), np.empty((3, samples, channels), dtype)
    if m.last:
        _, positions, width = m.array.shape
        segments = -(-positions // m.rows)
        parts = np.empty((3, samples * segments, width), dtype)
        pixel_moments[char](pool, m.array, m.rows, workspace(slots * 3 * (width + 16), dtype), parts)
        parts = parts.reshape(3, samples * segments * m.fold, channels)
        merge[char](pool, parts, segments * m.fold, m.rows, positions * m.fold, m.fold, wide, w, b, eps, stats, coefs)
        return stats, coefs
    planes, positions = m.array.shape
    if planes > samples * channels:  # planes of a channel are its segments
        parts = np.empty((3, planes // channels, channels), dtype)
        plane_moments[char](pool, m.array, parts)
        merge[char](pool, parts, planes // channels, positions, planes // channels * positions, 1, 1, w, b, eps, stats, coefs)
    else:  # a group's planes lie side by side
        parts = np.empty((3, samples, channels // wide), dtype)
        plane_moments[char](pool, m.array.reshape(-1, wide * positions), parts)
        merge[char](pool, parts, 1, wide * positions, wide * positions, 1, 1, w, b, eps, stats, coefs)
    return stats, coefs


def _normalise(m: Memory, coefs):
    y, out = _empty(m)
    pool, _ = _team(m)
    if m.last:
        normalise_pixels[out.dtype.char](pool, m.array, m.rows, _for_columns(coefs, m), out)
    else:
        normalise_planes[out.dtype.char](pool, m.array, coefs, out)
    return y


def _products(g: Memory, m: Memory, samples, wide, w, stats, coefs, total):
    """(coefficients of the input's gradient, gradients of weight and bias) as ``merge_gradients`` gives them."""
    dtype, char, channels = m.array.dtype, m.array.dtype.char, len(w)
    pool, slots = _team(m)
    if m.last:
        _, positions, width = m.array.shape
        segments = -(-positions // m.rows)
        parts = np.empty((2, samples * segments, width), dtype)
        pixel_products[char](pool, g.array, m.array, m.rows, _for_columns(coefs, m), workspace(slots * 2 * (width + 16), dtype), parts)
        segments *= m.fold
    else:
        segments = m.array.shape[0] // (samples * channels)
        parts = np.empty((2, samples * segments, channels), dtype)
        plane_products[char](pool, g.array, m.array, coefs, parts)
    out, dw = np.empty((3, samples, channels), dtype), np.empty((2, samples, channels), dtype)
    merge_gradients[char](pool, parts.reshape(2, samples * segments, channels), segments, total, w, stats, out, dw)
    return out, dw.sum(axis=1)


def _combine(g: Memory, m: Memory, shifts, coefs):
    dx, out = _empty(m)
    pool, _ = _team(m)
    if m.last:
        combine_pixels[out.dtype.char](pool, g.array, m.array, m.rows, _for_columns(shifts, m), _for_columns(coefs, m), out)
    else:
        combine_planes[out.dtype.char](pool, g.array, m.array, shifts, coefs, out)
    return dx


class Saved(NamedTuple):
    memory: Memory
    w: Any
    stats: np.ndarray
    coefs: np.ndarray


# ------------------------------------------------------------------------------------------------ batch_norm
def batch_norm(arrays, params, train):
    x, running_mean, running_var, weight, bias = arrays
    if not x.size:
        return reference.batch_norm(arrays, params, train)
    channels, m = x.shape[1], _memory(x, 1)
    w, b = _of_channels(weight, channels, x.dtype, 1), _of_channels(bias, channels, x.dtype, 0)
    if params.training:
        stats, coefs = _moments(m, 1, 1, w, b, params.eps)
        if running_mean is not None:
            n = x.size // channels
            update_running[x.dtype.char](running_mean, running_var, stats, params.momentum, n / (n - 1))
    else:
        stats, coefs = np.empty((4, 1, channels), x.dtype), np.empty((3, 1, channels), x.dtype)
        from_running[x.dtype.char](running_mean, running_var, w, b, params.eps, stats, coefs)
    return _normalise(m, coefs), Saved(m, w, stats, coefs) if train else None


def batch_norm_backward(grad, arrays, saved, params, needs):
    if type(saved) is not Saved:
        return reference.batch_norm_backward(grad, arrays, saved, params, needs)
    m, w, stats, coefs = saved
    g = _memory(grad, 1, m.last)
    dx, dw = None, (None, None)
    if needs[3] or needs[4] or (needs[0] and params.training):
        out, dw = _products(g, m, 1, 1, w, stats, coefs, grad.size // len(w))
    if needs[0] and params.training:
        dx = _combine(g, m, coefs, out)
    elif needs[0]:
        dx = _normalise(g, np.stack([np.zeros_like(coefs[1]), coefs[1], np.zeros_like(coefs[1])]))
    return dx, None, None, dw[0] if needs[3] else None, dw[1] if needs[4] else None


# ------------------------------------------------------------------------------------------------ rows
def _rows(x, w, b, eps):
    """The rows of x (rows, n), normalised, with w and b (kinds, n); and their statistics."""
    y, stats = np.empty(x.shape, x.dtype), np.empty((3, len(x)), x.dtype)
    normalise_rows[x.dtype.char](parallel.pool() if x.size > FUNCTIONS else 0, x, w, b, eps, y, stats)
    return y, stats


def _rows_gradient(g, x, w, stats, needs):
    """(dx, dw, db), those that are not needed not set."""
    kinds, n = w.shape
    rows, need_w = len(x), needs[1] or needs[2]
    share = max(-(-rows // _MOST_PARTS), _SMALL // n, 1)
    dx = np.empty(x.shape if needs[0] else (0, 0), x.dtype)
    parts = np.empty((-(-rows // share) if need_w else 0, 2 * kinds, n), x.dtype)
    pool = parallel.pool() if x.size > FUNCTIONS else 0
    normalise_rows_gradient[x.dtype.char](pool, share, g, x, w, stats, needs[0], need_w, dx, parts)
    total = parts.sum(axis=0)
    if n == 1 and needs[0]:  # a value is its own mean: 0, or NaN where something is not finite
        dx = (g - g) + (x - x)
    return dx, total[:kinds], total[kinds:]


def layer_norm(arrays, params, train):
    x, weight, bias = arrays
    if not x.size:
        return reference.layer_norm(arrays, params, train)
    n = prod(x.shape[x.ndim - params.ndim:])
    rows = np.ascontiguousarray(x).reshape(-1, n)
    w, b = _of_rows(weight, 1, n, x.dtype, 1), _of_rows(bias, 1, n, x.dtype, 0)
    y, stats = _rows(rows, w, b, params.eps)
    return y.reshape(x.shape), (rows, w, stats) if train else None


def layer_norm_bound(arrays, params):
    """See op.py."""
    x, weight, bias = arrays
    if not all(a is None or (a.size and a.flags.c_contiguous) for a in arrays):
        return None
    n, shape, dtype = prod(x.shape[x.ndim - params.ndim:]), x.shape, x.dtype
    rows, row = (x.size // n, n), (1, n)
    default_w, default_b = _of_rows(None, 1, n, dtype, 1), _of_rows(None, 1, n, dtype, 0)
    run, shared, eps, as_it_is, empty = normalise_rows[dtype.char], x.size > FUNCTIONS, params.eps, shape == rows, np.empty

    def normalise(x, weight, bias):
        y, stats = empty(rows, dtype), empty((3, rows[0]), dtype)
        run(parallel.pool() if shared else 0, x if as_it_is else x.reshape(rows), default_w if weight is None else weight.reshape(row),
            default_b if bias is None else bias.reshape(row), eps, y, stats)
        return y if as_it_is else y.reshape(shape)

    return normalise


def layer_norm_backward(grad, arrays, saved, params, needs):
    if not grad.size:
        return reference.layer_norm_backward(grad, arrays, saved, params, needs)
    return _given(_rows_gradient(np.ascontiguousarray(grad).reshape(saved[0].shape), *saved, needs), arrays, needs)


def _of_rows(value, kinds, n, dtype, default):
    return np.full((kinds, n), default, dtype) if value is None else np.ascontiguousarray(value).reshape(kinds, n)


def _given(found, arrays, needs):
    return tuple(f.reshape(a.shape) if n else None for f, a, n in zip(found, arrays, needs, strict=True))


# ------------------------------------------------------------------------------------------------ group_norm
def group_norm(arrays, params, train):
    x, weight, bias = arrays
    if not x.size:
        return reference.group_norm(arrays, params, train)
    samples, channels, wide = x.shape[0], x.shape[1], x.shape[1] // params.num_groups
    if x.size == samples * channels:
        rows = np.ascontiguousarray(x).reshape(-1, wide)
        w, b = (_of_rows(v, params.num_groups, wide, x.dtype, d) for v, d in ((weight, 1), (bias, 0)))
        y, stats = _rows(rows, w, b, params.eps)
        return y.reshape(x.shape), (rows, w, stats) if train else None
    m = _memory(x, samples)
    w, b = _of_channels(weight, channels, x.dtype, 1), _of_channels(bias, channels, x.dtype, 0)
    stats, coefs = _moments(m, samples, wide, w, b, params.eps)
    return _normalise(m, coefs), Saved(m, w, stats, coefs) if train else None


def group_norm_backward(grad, arrays, saved, params, needs):
    if not grad.size:
        return reference.group_norm_backward(grad, arrays, saved, params, needs)
    if type(saved) is not Saved:
        return _given(_rows_gradient(np.ascontiguousarray(grad).reshape(saved[0].shape), *saved, needs), arrays, needs)
    m, w, stats, coefs = saved
    samples, channels = grad.shape[:2]
    wide = channels // params.num_groups
    g = _memory(grad, samples, m.last)
    out, dw = _products(g, m, samples, wide, w, stats, coefs, grad.size // (samples * params.num_groups))
    return _combine(g, m, coefs, out) if needs[0] else None, dw[0] if needs[1] else None, dw[1] if needs[2] else None
