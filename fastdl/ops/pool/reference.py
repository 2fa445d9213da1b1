"""Pooling in plain numpy: the specification.

A window is a box, so a sum or a maximum over it is taken one dimension after the other: window offsets cost
k_d + k_h + k_w steps and not their product. A *tap* is a pair (cells, elements): the output cells along one dimension
that have an input element at one offset of their window, and those elements, in the same order. A *pass* is
(axis, how many cells, taps).
"""

from __future__ import annotations

import math

import numpy as np

from ..layout import empty_like_layout, is_channels_last

_quiet = np.errstate(all="ignore")  # infinities and NaN pass through without a word, as they do in compiled kernels


# ------------------------------------------------------------------------------------------------ windows
def _window_taps(size, out, window, stride, before, dilation):
    taps = []
    for offset in range(window):
        shift = offset * dilation - before
        first = max(0, -(shift // stride))  # the first and the last but one cell whose element exists
        last = min(out, (size - 1 - shift) // stride + 1)
        if first < last:
            taps.append((slice(first, last), slice(first * stride + shift, (last - 1) * stride + shift + 1, stride)))
    return taps


def _adaptive_taps(size, out):
    if out == 0:
        return []
    if size % out == 0:
        return _window_taps(size, out, size // out, size // out, 0, 1)
    starts, lengths = _adaptive_windows(size, out)
    cells = [np.flatnonzero(lengths > offset) for offset in range(lengths.max())]
    return [(c, starts[c] + offset) for offset, c in enumerate(cells)]


def _adaptive_windows(size, out):
    """Where each window starts, and its length."""
    cell = np.arange(out)
    starts = cell * size // out if out else cell
    ends = -(-(cell + 1) * size // out) if out else cell
    return starts, ends - starts


def _window_passes(size, params):
    return _needed(size, [(a + 2, params.out[a], _window_taps(size[a], params.out[a], params.window[a], params.stride[a],
                                                              params.padding[a][0], params.dilation[a])) for a in (2, 1, 0)])


def _adaptive_passes(size, out):
    return _needed(size, [(a + 2, out[a], _adaptive_taps(size[a], out[a])) for a in (2, 1, 0)])


def _needed(size, passes):
    """Without the passes that would only copy; but one is left, for the result must be a new array."""
    return [p for p in passes if p[1] != (n := size[p[0] - 2]) or p[2] != [(slice(0, n), slice(0, n, 1))]] or passes[:1]


def _reversed(size, passes):
    """The passes of a sum's adjoint: every element collects from the cells that saw it. No tap holds an element twice."""
    return [(axis, size[axis - 2], [(elements, cells) for cells, elements in taps]) for axis, _, taps in passes]


def _at(axis, where):
    return (slice(None),) * axis + (where,)


def _with_size(shape, axis, size):
    return shape[:axis] + (size,) + shape[axis + 1:]


# ------------------------------------------------------------------------------------------------ sums and maxima
def _sum(x, passes, like):
    for axis, out, taps in passes:
        total = empty_like_layout(_with_size(x.shape, axis, out), x.dtype, like)
        total.fill(0)
        for cells, elements in taps:
            total[_at(axis, cells)] += x[_at(axis, elements)]
        x = total
    return x


def _max(x, passes):
    """The largest element of each window; -inf where a window (dilated, over a small input) has none."""
    like = x
    for axis, out, taps in passes:
        best = empty_like_layout(_with_size(x.shape, axis, out), x.dtype, like)
        best.fill(-np.inf)
        for cells, elements in taps:
            best[_at(axis, cells)] = np.maximum(best[_at(axis, cells)], x[_at(axis, elements)])
        x = best
    return x


def _max_with_indices(x, passes):
    """The same, and its flat index in the (D, H, W) plane, -1 where a window has no element.

    The first of equals wins and the last NaN, in row-major order. Both survive taking one dimension after the other.
    """
    like = x
    index = np.broadcast_to(np.arange(math.prod(x.shape[2:])).reshape(x.shape[2:]), x.shape)
    for axis, out, taps in passes:
        shape = _with_size(x.shape, axis, out)
        best, best_index = empty_like_layout(shape, x.dtype, like), empty_like_layout(shape, np.int64, like)
        best.fill(-np.inf)
        best_index.fill(-1)
        for cells, elements in taps:
            value, old, old_index = x[_at(axis, elements)], best[_at(axis, cells)], best_index[_at(axis, cells)]
            wins = (value > old) | np.isnan(value) | (old_index < 0)
            best[_at(axis, cells)] = np.where(wins, value, old)
            best_index[_at(axis, cells)] = np.where(wins, index[_at(axis, elements)], old_index)
        x, index = best, best_index
    return x, index


def _max_pool(x, passes, return_indices, train):
    if not (return_indices or train):
        return _max(x, passes), None
    y, index = _max_with_indices(x, passes)
    return (y, index) if return_indices else y, index


def _to_maxima(grad, index, x):
    """Each cell's gradient goes to the element it was taken from."""
    dx = np.zeros(x.shape, x.dtype)
    if grad is not None:
        planes, plane = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3] * x.shape[4]
        offset = (np.arange(planes) * plane).reshape(x.shape[0], x.shape[1], 1, 1, 1)
        has = index >= 0
        np.add.at(dx.reshape(-1), (index + offset)[has], grad[has])
    if is_channels_last(x):
        dx, contiguous = empty_like_layout(x.shape, x.dtype, x), dx
        dx[...] = contiguous
    return dx


# ------------------------------------------------------------------------------------------------ kernels
def max_pool(arrays, params, train):
    (x,) = arrays
    return _max_pool(x, _window_passes(x.shape[2:], params), params.return_indices, train)


def max_pool_backward(grad, arrays, saved, params, needs):
    if not needs[0]:
        return (None,)
    return (_to_maxima(grad[0] if params.return_indices else grad, saved, arrays[0]),)


def adaptive_max_pool(arrays, params, train):
    (x,) = arrays
    return _max_pool(x, _adaptive_passes(x.shape[2:], params.out), params.return_indices, train)


adaptive_max_pool_backward = max_pool_backward


def _divisor(x, params):
    """What each window's sum is divided by: (D, H, W) of the output, or one number."""
    if params.divisor_override is not None:
        return x.dtype.type(params.divisor_override)
    counts = []
    for axis, size in enumerate(x.shape[2:]):
        before, after = params.padding[axis]
        start = np.arange(params.out[axis]) * params.stride[axis] - before
        # with ceil_mode the last window may reach beyond the padding; what lies there never counts
        end = np.minimum(start + params.window[axis], size + after)
        counts.append(end - start if params.count_include_pad else np.minimum(end, size) - np.maximum(start, 0))
    return _outer(counts).astype(x.dtype)


def _outer(counts):
    depth, height, width = counts
    return depth[:, None, None] * height[:, None] * width


@_quiet
def avg_pool(arrays, params, train):
    (x,) = arrays
    y = _sum(x, _window_passes(x.shape[2:], params), x)
    y /= _divisor(x, params)
    return y, None


@_quiet
def avg_pool_backward(grad, arrays, saved, params, needs):
    if not needs[0]:
        return (None,)
    (x,) = arrays
    size = x.shape[2:]
    return (_sum(grad / _divisor(x, params), _reversed(size, _window_passes(size, params)), x),)


def _adaptive_divisor(x, params):
    return _outer([_adaptive_windows(n, out)[1] for n, out in zip(x.shape[2:], params.out, strict=True)]).astype(x.dtype)


@_quiet
def adaptive_avg_pool(arrays, params, train):
    (x,) = arrays
    y = _sum(x, _adaptive_passes(x.shape[2:], params.out), x)
    y /= _adaptive_divisor(x, params)
    return y, None


@_quiet
def adaptive_avg_pool_backward(grad, arrays, saved, params, needs):
    if not needs[0]:
        return (None,)
    (x,) = arrays
    # Element i lies in the windows of cells floor(i * out / in) ... ceil((i + 1) * out / in) - 1: the adjoint is the
    # adaptive sum with input and output exchanged.
    return (_sum(grad / _adaptive_divisor(x, params), _adaptive_passes(params.out, x.shape[2:]), x),)


@_quiet
def lp_pool(arrays, params, train):
    (x,) = arrays
    passes = _window_passes(x.shape[2:], params)
    if params.norm == np.inf:
        return _max_pool(np.abs(x), passes, False, train)
    total = _sum(_power(x, params.norm), passes, x)
    # torch takes the mean times the whole window's size, so windows cut off by ceil_mode weigh as much as whole ones
    total *= math.prod(params.window) / _divisor(x, params)
    y = empty_like_layout(total.shape, total.dtype, x)
    y[...] = _power(total, 1 / params.norm)
    return y, total if train else None


@_quiet
def lp_pool_backward(grad, arrays, saved, params, needs):
    if not needs[0]:
        return (None,)
    (x,) = arrays
    if params.norm == np.inf:
        dx = _to_maxima(grad, saved, x)
        dx *= _sign(x)
        return (dx,)
    size, p = x.shape[2:], params.norm
    # torch's formula holds sign(total) * relu(|total|): its slope is 0 at a total of 0, and sign(NaN) is 0
    dtotal = np.where(saved == 0, 0, grad * _power(saved, 1 / p - 1) / p * ~np.isnan(saved))
    dtotal *= math.prod(params.window) / _divisor(x, params)
    dx = _sum(dtotal, _reversed(size, _window_passes(size, params)), x)
    dx *= p * _power(x, p - 1)
    return (dx,)


def _power(x, exponent):
    """x ** exponent, as exact as the common exponents allow."""
    if exponent == 1:
        return x
    if exponent == 2:
        return x * x
    if exponent == 0.5:
        return np.sqrt(x)
    return x ** exponent


def _sign(x):
    """1, -1 or 0, with torch's 0 for NaN."""
    return ((x > 0).astype(x.dtype) - (x < 0)).astype(x.dtype, copy=False)
