"""Pooling on the CPU: from params to a plan (numba_windows.py) and the kernel for the memory at hand.

Rows (N, C, D, H, W) and pixels (N, D, H, W, C) are both taken as they are; other memory is copied into rows first.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ...cpu import parallel
from ...cpu.features import caches
from ...cpu.thresholds import POOLED
from ...cpu.workspace import NOTHING, recycled, workspace
from ..layout import empty_in_layout, is_channels_last
from . import reference
from .geometry import AdaptiveParams
from .numba_pixels import collect_pixels, max_pixels, mean_pixels, search_pixels, spread_pixels
from .numba_rows import MAX, MEAN
from .numba_scatter import collect_evenly, scatter, scatter_pairs
from .numba_search import indices, search_by_cells, search_evenly, search_pairs
from .numba_spread import spread_by_cells, spread_evenly
from .numba_windows import CELLS, SLACK, Plan, adaptive_windows, windows

NO_PLACES = np.empty(0, np.uint8), np.empty(0, np.int64)


# ------------------------------------------------------------------------------------------------ plans
def _make_plan(size, params, char):
    if isinstance(params, AdaptiveParams):
        return Plan(tuple(map(adaptive_windows, size, params.out)), char)
    before = (p[0] for p in params.padding)
    axes = map(windows, size, params.out, params.window, params.stride, before, params.dilation)
    return Plan(tuple(a._replace(divisor=_divisor(a, axis, params)) for axis, a in enumerate(axes)), char)


def _divisor(axis, number, params):
    """One dimension's factor of what a window's sum is divided by."""
    if params.divisor_override is not None:
        return np.full(axis.out, params.divisor_override if number == 2 else 1)
    if params.norm:
        # torch takes the mean times the whole window's size, so windows cut off by ceil_mode weigh as much as whole ones
        return axis.count / axis.window
    if params.count_include_pad:
        # with ceil_mode the last window may reach beyond the padding; what lies there never counts
        return np.minimum(axis.origin + axis.window, axis.size + params.padding[number][1]) - axis.origin
    return axis.count


_remembered = functools.lru_cache(maxsize=256)(_make_plan)
_remembered_long = functools.lru_cache(maxsize=4)(_make_plan)  # tables as long as a very long row are


def _plan(x, params) -> Plan:
    return _plan_for(x.shape[2:], params, x.dtype)


def _plan_for(size, params, dtype):
    return (_remembered if max(size) < 1 << 16 else _remembered_long)(size, params, dtype.char)


# ------------------------------------------------------------------------------------------------ memory
def _readable(x, channels_last):
    """x, or a copy where kernels cannot read it: the innermost dimension has gaps, or strides are no whole elements."""
    n, itemsize = x.strides, x.itemsize
    if (not channels_last and n[4] != itemsize and x.shape[4] > 1) or (n[0] | n[1] | n[2] | n[3] | n[4]) % itemsize:
        return np.array(x, order="C")
    return x


def in_memory_order(g, channels_last):
    """g without gaps, in the layout asked for."""
    if not channels_last:
        return np.ascontiguousarray(g)
    return np.ascontiguousarray(g.transpose(0, 2, 3, 4, 1)).transpose(0, 4, 1, 2, 3)


def _as_rows(x, plan):
    """A view of x that has long rows, or many of them in a plane, and the plan for it."""
    form, plan = _row_form(x, plan)
    return _seen(x, *form), plan


def _row_form(x, plan):
    """(what _seen takes beside x, the plan for what it gives)."""
    n, channels, D, H, W = x.shape
    flat = None
    if plan.flat is not None:
        _, _, sd, sh, sw = x.strides
        if sw == x.itemsize and (H == 1 or sh == W * sw) and (D == 1 or sd == H * W * sw):
            flat, plan = (n, channels, 1, 1, D * H * W), plan.flat
    return (flat, plan.is_line), plan.upright(channels) if plan.is_line else plan


def _seen(x, flat, upright):
    """Planes as rows of that shape, and channels as the rows of a plane."""
    if flat is not None:
        x = x.reshape(flat)
    return x.transpose(0, 2, 3, 1, 4) if upright else x


def _scratch(elements, dtype):
    return workspace(elements, dtype) if elements else NOTHING[dtype.char]


def _threads(elements):
    """The pool for a call on so many elements, and how many threads that is."""
    return parallel.team() if elements > POOLED else (0, 1)


def _empty(shape, dtype, last):
    """(an uninitialised answer, channels side by side if last; whether such a one is written past the caches).

    What is larger than the last of them is memory from the system, which is zeroed page by page and takes as long as writing it: it is
    used again.
    """
    elements = math.prod(shape)
    if elements * dtype.itemsize <= caches().l3:
        return empty_in_layout(shape, dtype, last), False
    y = recycled(elements, dtype)
    if not last:
        return y.reshape(shape), False
    n, channels, *size = shape
    return y.reshape(n, *size, channels).transpose(0, 4, 1, 2, 3), channels * dtype.itemsize % 16 == 0


# ------------------------------------------------------------------------------------------------ forward
def _reduce(x, plan, of_rows, of_pixels):
    dtype, last = x.dtype, is_channels_last(x)
    y, past = _empty(x.shape[:2] + plan.out, dtype, last)
    if not y.size:
        return y
    if plan.identity:
        y[...] = x
        return y
    x = _readable(x, last)
    pool, slots = _threads(x.size)
    if last:
        of_pixels[dtype.char](pool, x, plan.forward, plan.divisors, y, past)
    else:
        x, plan = _as_rows(x, plan)
        way, segment, block, pitch = plan.reduce_way
        scratch = _scratch(slots * block * pitch, dtype)
        of_rows[way][dtype.char](pool, x, plan.forward, segment, block, pitch, plan.divisors, scratch, y)
    return y


def _bound(x, plan, of_rows, of_pixels):
    """_reduce for arrays of x's form (see op.py), or None."""
    dtype, last = x.dtype, is_channels_last(x)
    shape, shared = x.shape[:2] + plan.out, x.size > POOLED
    if not math.prod(shape) or plan.identity or _readable(x, last) is not x:
        return None
    if last:
        run, table, divisors = of_pixels[dtype.char], plan.forward, plan.divisors

        def pixels(x):
            y, past = _empty(shape, dtype, True)
            run(parallel.pool() if shared else 0, x, table, divisors, y, past)
            return y

        return pixels
    (flat, upright), plan = _row_form(x, plan)
    way, segment, block, pitch = plan.reduce_way
    run, table, divisors, seen = of_rows[way][dtype.char], plan.forward, plan.divisors, flat is not None or upright

    def rows(x):
        pool, slots = parallel.team() if shared else (0, 1)
        y, _ = _empty(shape, dtype, False)
        scratch = _scratch(slots * block * pitch, dtype)
        run(pool, _seen(x, flat, upright) if seen else x, table, segment, block, pitch, divisors, scratch, y)
        return y

    return rows


def _search(x, plan):
    """Maxima, and their places as a pair (narrow, wide) of flat arrays in y's order, one of them empty."""
    dtype, last = x.dtype, is_channels_last(x)
    y = empty_in_layout(x.shape[:2] + plan.out, dtype, last)
    room = y.size + SLACK
    places = (NO_PLACES[0], np.empty(room, np.int64)) if plan.wide else (np.empty(room, np.uint8), NO_PLACES[1])
    if not y.size:
        return y, places
    x = _readable(x, last)
    pool, slots = _threads(x.size)
    if last:
        search_pixels[dtype.char](pool, x, plan.forward, y, *places)
    else:
        x, view = _as_rows(x, plan)
        way, segment, block, pitch = view.search_way
        if view.pairs:
            search, scratch = search_pairs, NOTHING[dtype.char]
        else:
            search = search_by_cells if way == CELLS else search_evenly
            scratch = _scratch(slots * block * pitch * view.axes[0].window * view.axes[1].window, dtype)
        search[dtype.char](pool, x, view.forward, segment, block, pitch, scratch, y, *places)
        if plan.empty is not None:  # cells that meet no element
            y[:, :, plan.empty] = -np.inf
            for memory, nowhere in zip(places, (255, -1), strict=True):
                memory[: y.size].reshape(-1, *plan.out)[:, plan.empty] = nowhere
    return y, places


def _indices(y, plan, places, last):
    """The int64 indices that places stand for, in y's shape and layout."""
    index = empty_in_layout(y.shape, np.int64, last)
    if y.size:
        n, channels, depth, height, _ = y.shape
        rows, inner = (n * depth * height, channels) if last else (n * channels * depth * height, 1)
        indices["f"](_threads(y.size)[0], rows, inner, plan.forward, *places, index)
    return index


def _largest(x, plan, return_indices, train):
    if not (return_indices or train):
        return _reduce(x, plan, MAX, max_pixels), None
    y, places = _search(x, plan)
    if return_indices:
        y = y, _indices(y, plan, places, is_channels_last(x))
    return y, places if train else None


# ------------------------------------------------------------------------------------------------ backward
def _spread(g, x, plan):
    """Each cell's gradient, divided by what its sum was divided by, to every element of its window."""
    dtype, last = x.dtype, is_channels_last(x)
    dx = empty_in_layout(x.shape, dtype, last)
    if not g.size or plan.identity:
        dx[...] = g if g.size else 0
        return dx
    g = in_memory_order(g, last)
    pool, slots = _threads(dx.size)
    if last:
        spread_pixels[dtype.char](pool, g, plan.backward, *NO_PLACES, plan.weights, dx)
    else:
        rows, plan = _as_rows(dx, plan)
        way, segment, block, pitch = plan.spread_way
        scratch = _scratch(slots * block * pitch, dtype)
        spread = spread_by_cells if way == CELLS else spread_evenly
        spread[dtype.char](pool, g, plan.backward, segment, block, pitch, plan.weights, scratch, rows)
    return dx


def to_maxima(g, shape, dtype, last, params, places):
    """Each cell's gradient to the element it was taken from: an array of ``shape``, channels-last if last. places: of _search."""
    return _to_maxima(g, shape, dtype, last, _plan_for(shape[2:], params, dtype), places)


def _to_maxima(g, shape, dtype, last, plan, places):
    dx = empty_in_layout(shape, dtype, last)
    if g is None or not g.size:
        dx[...] = 0
        return dx
    g = in_memory_order(g, last)
    pool, slots = _threads(dx.size)
    if last:
        collect_pixels[dtype.char](pool, g, plan.backward, *places, plan.weights, dx)
    elif plan.pairs:
        scatter_pairs[dtype.char](pool, g, plan.forward, plan.alone, *places, dx)
    elif plan.collect_way is None:
        scatter[dtype.char](pool, g, plan.forward, plan.alone, *places, dx)
    else:
        n = slots * plan.collect_way[-1]
        scratch = workspace(n + n // dtype.itemsize + SLACK, dtype)
        collect_evenly[dtype.char](pool, g, plan.backward, *plan.collect_way, places[0], dx, scratch[:n], scratch[n:].view(np.uint8))
    return dx


# ------------------------------------------------------------------------------------------------ kernels
def max_pool(arrays, params, train):
    (x,) = arrays
    plan = _plan(x, params)
    if plan.cells >= 1 << 31:  # places are counted in lanes of 32 bits
        return reference.max_pool(arrays, params, train)
    return _largest(x, plan, params.return_indices, train)


def max_pool_backward(grad, arrays, saved, params, needs):
    if not needs[0]:
        return (None,)
    if type(saved) is np.ndarray:
        return reference.max_pool_backward(grad, arrays, saved, params, needs)
    (x,) = arrays
    return (_to_maxima(grad[0] if params.return_indices else grad, x.shape, x.dtype, is_channels_last(x), _plan(x, params), saved),)


def adaptive_max_pool(arrays, params, train):
    (x,) = arrays
    plan = _plan(x, params)
    if plan.cells >= 1 << 31:
        return reference.adaptive_max_pool(arrays, params, train)
    return _largest(x, plan, params.return_indices, train)


adaptive_max_pool_backward = max_pool_backward


def max_pool_bound(arrays, params):
    (x,) = arrays
    plan = _plan(x, params)
    return None if params.return_indices or plan.cells >= 1 << 31 else _bound(x, plan, MAX, max_pixels)


adaptive_max_pool_bound = max_pool_bound


def avg_pool(arrays, params, train):
    (x,) = arrays
    return _reduce(x, _plan(x, params), MEAN, mean_pixels), None


def avg_pool_backward(grad, arrays, saved, params, needs):
    if not needs[0]:
        return (None,)
    (x,) = arrays
    return (_spread(grad, x, _plan(x, params)),)


def avg_pool_bound(arrays, params):
    (x,) = arrays
    return _bound(x, _plan(x, params), MEAN, mean_pixels)


adaptive_avg_pool, adaptive_avg_pool_bound = avg_pool, avg_pool_bound
adaptive_avg_pool_backward = avg_pool_backward


@reference._quiet
def lp_pool(arrays, params, train):
    (x,) = arrays
    plan, last = _plan(x, params), is_channels_last(x)
    if params.norm == math.inf:
        return _largest(in_memory_order(np.abs(x), last), plan, False, train)
    total = _reduce(in_memory_order(reference._power(x, params.norm), last), plan, MEAN, mean_pixels)
    y = reference._power(total, 1 / params.norm)
    if y is total and train:
        y = total.copy(order="K")
    return y, total if train else None


@reference._quiet
def lp_pool_backward(grad, arrays, saved, params, needs):
    if not needs[0]:
        return (None,)
    (x,) = arrays
    plan, p = _plan(x, params), params.norm
    if p == math.inf:
        dx = _to_maxima(grad, x.shape, x.dtype, is_channels_last(x), plan, saved)
        dx *= reference._sign(x)
        return (dx,)
    # torch's formula: its slope is 0 at a total of 0, and where the total is NaN
    dtotal = np.where(saved == 0, 0, grad * reference._power(saved, 1 / p - 1) / p * ~np.isnan(saved))
    dx = _spread(dtotal, x, plan)
    dx *= p * reference._power(x, p - 1)
    return (dx,)
