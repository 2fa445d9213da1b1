"""Running convolutions over planes: which kernel cells meet which places, for the kernels of numba_direct.py and
numba_groups.py. Any number of dimensions and groups."""

from __future__ import annotations

import functools
import math

import numpy as np

from ...cpu import parallel
from ...cpu.blocking import LANES
from ...cpu.features import caches
from ...cpu.microkernel import TILE_ROWS
from ...cpu.thresholds import MULTIPLY_ADDS
from ...cpu.workspace import NOTHING, workspace
from ...packing import prepared
from ..layout import empty_in_layout, is_channels_last
from ..numba_activation import kernel_arguments
from . import reference
from .numba_direct import WIDE, correlate, weight_gradient
from .numba_groups import CELLS, convolve_groups, gradient_depthwise, row_tiles, scratch_elements
from .numba_planes import make_planes

ROWS = 16 * TILE_ROWS  # output channels in a block
PLANES = 64 << 20  # bytes of planes at a time: a batch is done in as many parts as that takes
FEW_WEIGHTS = 1 << 12  # elements: so many are picked one by one faster than cut up and put together
SMALL_GROUP = 4  # channels of a group, in and out, up to which sliding windows beat tiles of a matrix product


class _Problem:
    """One correlation over planes: which kernel cells, where they lie, which outputs they make."""

    def __init__(self, cells, offsets, outputs):
        self.cells = cells  # indices of kernel cells, flat
        self.offsets = offsets  # int64: one for each (channel, cell)
        self.outputs = outputs  # a slice of each spatial dimension of y


class Plan:
    """What does not depend on the data: the planes' geometry and the problems over them."""

    def __init__(self, before, stride, places):
        self.before, self.stride, self.places = before, stride, places
        self.plane = math.prod(stride) * math.prod(places)  # elements of a channel
        self.problems = []
        self.transpose = False

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def forward(x_shape, w_shape, params, out=None):
        """Planes of x, one problem: y[o] meets cell k at phase k d mod s, place o + k d div s."""
        out = out or params.out
        kernel, stride, dilation = w_shape[2:], params.stride, params.dilation
        places = tuple(o + ((k - 1) * d) // s for o, k, d, s in zip(out, kernel, dilation, stride, strict=True))
        plan = Plan(tuple(p[0] for p in params.padding), stride, places)
        offsets = []
        for cell in np.ndindex(kernel):
            shift = [k * d for k, d in zip(cell, dilation, strict=True)]
            offsets.append(
                _place(
                    [a % s for a, s in zip(shift, stride, strict=True)],
                    [a // s for a, s in zip(shift, stride, strict=True)],
                    stride,
                    places,
                )
            )
        plan.problems = [_Problem(None, _with_channels(offsets, w_shape[1], plan.plane), tuple(slice(0, o) for o in out))]
        return plan

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def transposed(y_shape, w_shape, params, x_shape):
        """Planes of y with room for the kernel around them, one problem for each phase of the stride.

        x[i] with i + before = s t + phase gets w[k] y[t - k d div s] from every cell k with k d mod s = phase.
        """
        kernel, stride, dilation = w_shape[2:], params.stride, params.dilation
        reach = [((k - 1) * d) // s for k, d, s in zip(kernel, dilation, stride, strict=True)]
        size = x_shape[2:]
        last = [(n - 1 + p[0]) // s for n, p, s in zip(size, params.padding, stride, strict=True)]  # the largest t
        places = tuple(t + 1 + r for t, r in zip(last, reach, strict=True))
        plan = Plan(tuple(reach), (1, 1, 1), places)
        plan.transpose = True
        for phase in np.ndindex(stride):
            cells, offsets = [], []
            for flat, cell in enumerate(np.ndindex(kernel)):
                shift = [k * d for k, d in zip(cell, dilation, strict=True)]
                if all(a % s == f for a, s, f in zip(shift, stride, phase, strict=True)):
                    cells.append(flat)
                    offsets.append([r - a // s for r, a, s in zip(reach, shift, stride, strict=True)])
            # the first i >= 0 of this phase, and its t
            first = [(f - p[0]) % s for f, p, s in zip(phase, params.padding, stride, strict=True)]
            start = [(i + p[0]) // s for i, p, s in zip(first, params.padding, stride, strict=True)]
            if any(i >= n for i, n in zip(first, size, strict=True)):
                continue
            flat_offsets = [_place((0, 0, 0), [o + t for o, t in zip(offset, start, strict=True)], (1, 1, 1), places) for offset in offsets]
            outputs = tuple(slice(i, n, s) for i, n, s in zip(first, size, stride, strict=True))
            plan.problems.append(
                _Problem(np.array(cells, np.intp), _with_channels(flat_offsets, w_shape[0] // params.groups, plan.plane), outputs)
            )
        return plan


def _place(phase, place, stride, places):
    """Where a place of a phase lies within a plane."""
    index = 0
    for f, s in zip(phase, stride, strict=True):
        index = index * s + f
    for p, n in zip(place, places, strict=True):
        index = index * n + p
    return index


def _with_channels(offsets, channels, plane):
    return (np.arange(channels, dtype=np.int64)[:, None] * plane + np.array(offsets, np.int64)[None, :]).reshape(-1)


# ------------------------------------------------------------------------------------------------ running
def pool_for(work, team=None, least=MULTIPLY_ADDS):
    """(pool, threads) for so many multiply-adds; from ``least`` on they are shared."""
    return (team or parallel.team()) if work > least else (0, 1)


def _planes(plan, x, start, stop, pool, block):
    """x[start:stop] as planes in ``block``; the slack after them, read and dropped, is zero."""
    used = (stop - start) * x.shape[1] * plan.plane
    make_planes[x.dtype.char](pool, x[start:stop], *plan.before, *plan.stride, *plan.places, block)
    block[used:] = 0
    return block


def _images(plan, x):
    """How many images' planes fit the bound."""
    return max(1, min(x.shape[0], PLANES // max(1, x.itemsize * x.shape[1] * plan.plane)))


def planned(plan, x, w, shape, groups, act, last, team):
    """``run(x, w, bias)`` makes y of ``shape`` by a plan over x. last: y's memory is channels-last."""
    dtype, char, lanes, channels = x.dtype, x.dtype.char, LANES[x.dtype.char], x.shape[1]
    if not x.size or not math.prod(shape):
        return functools.partial(_nothing, shape, dtype, last)
    pool, slots = pool_for((x.size if plan.transpose else math.prod(shape)) * math.prod(w.shape[1:]), team)
    if small_groups(channels, shape[1], groups):
        return _planned_groups(plan, 0, x, w.shape, shape, groups, act, last, pool, slots)
    step = _images(plan, x)
    block = 16 * WIDE * lanes // 4
    kg = shape[1] // groups
    kb = min(ROWS, kg)
    if pool:
        others = shape[0] * groups * -(-math.prod(plan.places) // block)
        while kb > 2 * TILE_ROWS and others * -(-kg // kb) < 2 * slots:
            kb = -(-kb // 2 // TILE_ROWS) * TILE_ROWS
    scratch_size = slots * kb * block
    elements = step * channels * plan.plane + WIDE * lanes * 4 + scratch_size
    code, slope = kernel_arguments(act)

    def run(x, w, bias):
        y = empty_in_layout(shape, dtype, last)
        memory = workspace(elements, dtype)
        scratch, planes = memory[:scratch_size], memory[scratch_size:]
        weights = [_weight_matrix(w, problem, plan.transpose, groups) for problem in plan.problems]
        bias = NOTHING[char] if bias is None else np.ascontiguousarray(bias)
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            _planes(plan, x, start, stop, pool, planes)
            for problem, matrix in zip(plan.problems, weights, strict=True):
                target = y[(slice(start, stop), slice(None), *problem.outputs)]
                correlate[char](pool, groups, matrix, problem.offsets, planes, channels * plan.plane, channels // groups * plan.plane,
                                plan.places[1], plan.places[2], kb, bias, code, slope, target, scratch)
        return y

    return run


def _nothing(shape, dtype, last, x, w, bias):
    y = empty_in_layout(shape, dtype, last)
    y[...] = 0
    return y


def _weight_matrix(w, problem, transpose, groups):
    """(K, T): a row for each output channel, its columns (channel, kernel cell)."""
    flat = np.ascontiguousarray(w).reshape(w.shape[0], w.shape[1], -1)
    if not transpose:
        return flat.reshape(w.shape[0], -1)
    chosen = flat[:, :, problem.cells].reshape(groups, w.shape[0] // groups, w.shape[1], -1)
    return np.ascontiguousarray(chosen.transpose(0, 2, 1, 3)).reshape(groups * w.shape[1], -1)


def weights_from(x, dy, w, params):
    """The gradient of w: dy's planes (zero where q stands for no output) against x's."""
    char = x.dtype.char
    dw = np.zeros((w.shape[0], math.prod(w.shape[1:])), w.dtype)
    if not x.size or not dy.size or not dw.size:
        return dw.reshape(w.shape)
    plan = Plan.forward(x.shape, w.shape, params, dy.shape[2:])
    problem = plan.problems[0]
    if w.shape[1] == 1 and params.groups > 1 and w.shape[0] <= SMALL_GROUP * params.groups:
        return _depthwise_gradient(plan, x, dy, w)
    pool, _ = pool_for(dy.size * w[0].size)
    step = _images(plan, x)
    K, TD, (_, Hs, Ws) = w.shape[0], dy.shape[2], plan.places
    # dy on the planes' pitch: rows of Ws with zeros after TW, planes of Hs rows with zeros after TH
    Q = TD * Hs * Ws
    memory = workspace(step * (x.shape[1] * plan.plane + K * Q) + Q + WIDE * LANES[char] * 4, x.dtype)
    gradient, planes = memory[: step * K * Q], memory[step * K * Q :]
    for start in range(0, x.shape[0], step):
        stop = min(start + step, x.shape[0])
        _planes(plan, x, start, stop, pool, planes)
        make_planes[char](pool, dy[start:stop], 0, 0, 0, 1, 1, 1, TD, Hs, Ws, gradient)
        weight_gradient[char](
            pool,
            params.groups,
            stop - start,
            K,
            Q,
            gradient,
            planes,
            x.shape[1] * plan.plane,
            x.shape[1] // params.groups * plan.plane,
            problem.offsets,
            dw,
            start > 0,
        )
    if not np.isfinite(dw).all():
        # an infinity in x times a position that is no output would be NaN in cells it has nothing to do with
        return reference._weight_gradient(x, dy, w, params)
    return dw.reshape(w.shape)


# ------------------------------------------------------------------------------------------------ small groups
def small_groups(channels, outputs, groups) -> bool:
    return groups > 1 and max(channels, outputs) <= SMALL_GROUP * groups


def serves_few(x, w, params) -> bool:
    """Whether numba_groups.py serves a convolution in one group: few channels, planes in memory, at most two dimensions."""
    return x.size > 0 and params.ndim < 3 and params.groups == 1 and w.shape[1] <= SMALL_GROUP <= w.shape[0] and not is_channels_last(x)


def planned_groups(x, w, params, shape, act, last, team):
    """``run(x, w, bias)``: a convolution of few channels in a group, a band of rows at a time."""
    if not x.size or not math.prod(shape):
        return functools.partial(_nothing, shape, x.dtype, last)
    pool, slots = pool_for(math.prod(shape) * math.prod(w.shape[1:]), team)
    plan, band = _banded(x.shape, w.shape, params, slots)
    return _planned_groups(plan, band, x, w.shape, shape, params.groups, act, last, pool, slots)


def _banded(x_shape, w_shape, params, slots):
    """(plan, rows of y in a band): a group's planes share L2 with what is read and written beside them, and every thread
    has a few bands."""
    depth, height, width = params.out
    jobs = x_shape[0] * params.groups
    band = height
    while True:
        plan = Plan.forward(x_shape, w_shape, params, (depth, band, width))
        small = plan.plane * w_shape[1] * 4 <= caches()[1] // 4
        if band <= 4 or (small and (slots == 1 or jobs * -(-height // band) >= 4 * slots)):
            return plan, band
        band = -(-band // 2)


def _planned_groups(plan, band, x, w_shape, shape, groups, act, last, pool, slots):
    dtype, char = x.dtype, x.dtype.char
    share = scratch_elements(x.shape[1] // groups, plan.plane, plan.places[2], LANES[char])
    code, slope = kernel_arguments(act)
    problems = [(problem, ("rows", None if problem.cells is None else problem.cells.tobytes())) for problem in plan.problems]
    tiles = row_tiles(shape[1] // groups)
    flat_tiles = np.array([*tiles, (sum(rows for _, rows in tiles), 0)] if tiles else [], np.int64).reshape(-1)

    def laid_out(w, problem):
        return _tiled(_weight_matrix(w, problem, plan.transpose, groups), groups, tiles)

    few = math.prod(w_shape) <= FEW_WEIGHTS
    numbers = np.arange(math.prod(w_shape)).reshape(w_shape) if few else None
    picked = {kind: laid_out(numbers, problem) for problem, kind in problems} if few else {}

    def made(w, problem, kind):
        return w.reshape(-1)[picked[kind]] if few else laid_out(w, problem)

    def run(x, w, bias):
        y = empty_in_layout(shape, dtype, last)
        scratch = workspace(slots * share, dtype)
        bias = zeros(shape[1], char) if bias is None else np.ascontiguousarray(bias)
        for problem, kind in problems:
            weights = prepared(w, kind, functools.partial(made, w, problem, kind))
            part = y[(slice(None), slice(None), *problem.outputs)] if plan.transpose else y
            convolve_groups[char](pool, groups, band or part.shape[3], x, *plan.before, *plan.stride, *plan.places, problem.offsets,
                                  weights, flat_tiles, bias, code, slope, part, scratch, share)
        return y

    return run


def _tiled(matrix, groups, tiles):
    """The rows of each tile of each group, side by side."""
    if not tiles:
        return matrix.reshape(-1)
    of_groups = matrix.reshape(groups, len(matrix) // groups, matrix.shape[1])  # a phase may have no tap at all
    return np.concatenate([np.ascontiguousarray(group[k : k + rows].T).reshape(-1) for group in of_groups for k, rows in tiles])


def _depthwise_gradient(plan, x, dy, w):
    char = x.dtype.char
    cells = plan.problems[0].offsets
    offsets = np.concatenate([cells, np.repeat(cells[-1:], -len(cells) % CELLS)])
    pool, slots = pool_for(dy.size * len(cells))
    dw = np.zeros((w.shape[0], len(offsets)), w.dtype)
    gradient_depthwise[char](pool, x, dy, *plan.before, *plan.stride, *plan.places, offsets, dw,
                             workspace(slots * plan.plane, x.dtype), plan.plane)
    return np.ascontiguousarray(dw[:, : len(cells)]).reshape(w.shape)


@functools.lru_cache(maxsize=64)
def zeros(count, char):
    """Read-only."""
    made = np.zeros(count, char)
    made.flags.writeable = False
    return made
