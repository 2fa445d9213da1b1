"""Running convolutions over rows of pixels: geometry, weight panels, scratch memory.

A plan says how large the padded rows are and which sums run over them. A convolution is one sum; a transposed convolution (and
so the data gradient) is one for each phase of its stride, over the cells that meet it, so no inserted zero is ever multiplied.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from ...cpu import parallel
from ...cpu.blocking import LANES, heights
from ...cpu.features import caches
from ...cpu.microkernel import TILE_ROWS, TILE_VECTORS
from ...cpu.thresholds import MOVED, MULTIPLY_ADDS
from ...cpu.workspace import NOTHING, workspace
from ...packing import prepared
from ..layout import empty_in_layout
from ..numba_activation import kernel_arguments
from .numba_pixels import SHORT_RUN, convolve_pixels, gradient_pixels, weight_panels
from .numba_rows import pixel_rows

IMAGES = 64 << 20  # bytes of padded pixel rows at a time
BLOCK = 16 * TILE_ROWS  # pixels in a chunk
PART = 16  # panels of outputs in a chunk, at most
WHOLE_PIXELS = 64  # channels up to which the weight gradient reads pixels as they are: neighbours in a row share cache lines


class Sum(NamedTuple):
    kind: tuple  # of its weight panels, beside other forms of the weight
    run_offsets: np.ndarray  # where each run starts, from an output pixel's place on
    count: int  # elements in a run
    cells: np.ndarray  # kernel cells (flat), in the order in which runs meet them
    outputs: tuple  # a slice of y's rows and one of its columns


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Made once for each geometry, so that one plan is another only where it is the same object."""

    before: tuple  # rows and columns of zeros above and left of the image
    size: tuple  # rows and columns of the padded image
    stride: tuple  # from output pixel to output pixel
    channels: int
    sums: tuple


def _sum(taps, columns, channels, outputs):
    """taps: (row, column, flat cell). Cells side by side in memory make one run."""
    taps = sorted(taps)
    runs = []
    for row, column, cell in taps:
        if runs and runs[-1][0] == row and runs[-1][1] + len(runs[-1][2]) == column:
            runs[-1][2].append(cell)
        else:
            runs.append((row, column, [cell]))
    offsets = np.array([(row * columns + column) * channels for row, column, _ in runs], np.int64)
    cells = np.array([c for *_, cells in runs for c in cells], np.int64)
    return Sum(("panels", cells.tobytes()), offsets, len(runs[0][2]) * channels if runs else 0, cells, outputs)


@functools.lru_cache(maxsize=1024)
def forward_plan(channels, w_shape, params, out) -> Plan:
    """y[o] meets cell k at o * stride + k * dilation of the padded image."""
    kernel, stride, dilation = w_shape[3:], params.stride[1:], params.dilation[1:]
    size = tuple((o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, stride, kernel, dilation, strict=True))
    taps = [(i * dilation[0], j * dilation[1], i * kernel[1] + j) for i, j in np.ndindex(kernel)]
    before = tuple(p[0] for p in params.padding[1:])
    return Plan(before, size, stride, channels, (_sum(taps, size[1], channels, (slice(0, out[0]), slice(0, out[1]))),))


@functools.lru_cache(maxsize=1024)
def transposed_plan(channels, w_shape, params, out) -> Plan:
    """x[i] with i + before = s t + phase gets w[k] y[t - k d div s] from every cell k with k d mod s = phase."""
    kernel, stride, dilation = w_shape[3:], params.stride[1:], params.dilation[1:]
    befores = [p[0] for p in params.padding[1:]]
    reach = [((k - 1) * d) // s for k, d, s in zip(kernel, dilation, stride, strict=True)]
    size = tuple((n - 1 + b) // s + 1 + r for n, b, s, r in zip(out, befores, stride, reach, strict=True))
    sums = []
    for phase in np.ndindex(stride):
        first = [(f - b) % s for f, b, s in zip(phase, befores, stride, strict=True)]
        start = [(i + b) // s for i, b, s in zip(first, befores, stride, strict=True)]
        if any(i >= n for i, n in zip(first, out, strict=True)):
            continue
        taps = []
        for flat, cell in enumerate(np.ndindex(kernel)):
            shift = [k * d for k, d in zip(cell, dilation, strict=True)]
            if all(a % s == f for a, s, f in zip(shift, stride, phase, strict=True)):
                row, column = (r - a // s + t for r, a, s, t in zip(reach, shift, stride, start, strict=True))
                taps.append((row, column, flat))
        sums.append(_sum(taps, size[1], channels, tuple(slice(i, n, s) for i, n, s in zip(first, out, stride, strict=True))))
    return Plan(tuple(reach), size, (1, 1), channels, tuple(sums))


def _rows(plan, x, memory, pool):
    """x as padded rows of pixels: its own memory where that is what it is, else in ``memory``."""
    n, c, _, h, w = x.shape
    dense = x.transpose(0, 2, 3, 4, 1)
    if plan.before == (0, 0) and (h, w) == plan.size and dense.flags.c_contiguous:
        return dense.reshape(-1)
    if x.strides[4] != x.itemsize and x.strides[1] != x.itemsize:
        x = np.ascontiguousarray(x)
    pixel_rows[x.dtype.char](pool, x, *plan.before, *plan.size, c, memory)
    return memory


def _panels(w, cells, outputs, channels, swapped, width):
    """The panels of a weight's ``cells``; swapped: its first axis holds the sum's channels, its second the outputs."""
    flat = np.ascontiguousarray(w).reshape(-1)
    count = math.prod(w.shape[2:])
    by_first, by_second = w.shape[1] * count, count
    sk, sc = (by_second, by_first) if swapped else (by_first, by_second)
    out = np.empty(-(-outputs // width) * len(cells) * channels * width, w.dtype)
    weight_panels[w.dtype.char](parallel.pool() if out.size > MOVED else 0, flat, 0, sk, sc, cells, channels, outputs, out)
    return out


def planned(plan, x, w, swapped, shape, act, last, team):
    """``run(x, w, bias)`` makes y of ``shape`` by a plan over x. swapped: see _panels. last: y's memory is channels-last."""
    dtype, char = x.dtype, x.dtype.char
    width, (N, K) = TILE_VECTORS * LANES[char], shape[:2]
    shapes = [tuple(len(range(n)[part]) for n, part in zip(shape[3:], s.outputs, strict=True)) for s in plan.sums]
    work = N * K * sum(math.prod(out) * s.count * len(s.run_offsets) for out, s in zip(shapes, plan.sums, strict=True))
    pool, slots = team if work > MULTIPLY_ADDS else (0, 1)
    image = plan.size[0] * plan.size[1] * plan.channels  # elements, padded
    images = max(1, min(N, IMAGES // (x.itemsize * image)))  # at a time
    panels = -(-K // width)
    most = min(PART, panels)
    # a chunk's sums, and the copied runs of a tile
    depth = max((s.count * len(s.run_offsets) for s in plan.sums if s.count < SHORT_RUN), default=0)
    share = (BLOCK + TILE_ROWS) * most * width + TILE_ROWS * depth + width
    sums = []
    for out, s in zip(shapes, plan.sums, strict=True):
        pixels = images * math.prod(out)
        blocks = max(1, -(-pixels // BLOCK))
        block = max(1, -(-pixels // (blocks * TILE_ROWS))) * TILE_ROWS
        parts = max(-(-panels // most), min(panels, -(-4 * slots // blocks)) if slots > 1 else 1)
        make = functools.partial(_panels, cells=s.cells, outputs=K, channels=plan.channels, swapped=swapped, width=width)
        sums.append((s, (s.kind, swapped), make, out == shape[3:] and images == N, block, -(-panels // parts)))
    code, slope = kernel_arguments(act)
    row, column = plan.stride[0] * plan.size[1] * plan.channels, plan.stride[1] * plan.channels

    def run(x, w, bias):
        y = empty_in_layout(shape, dtype, last)
        memory = workspace(slots * share + images * image, dtype)
        places = np.empty(slots * (BLOCK + TILE_ROWS), np.int64)
        bias = NOTHING[char] if bias is None and not last else _whole(bias, panels * width, dtype)
        made = [prepared(w, kind, functools.partial(make, w)) for _, kind, make, *_ in sums]
        for start in range(0, N, images):
            rows = _rows(plan, x if images == N else x[start : start + images], memory[slots * share :], pool)
            for (s, _, _, everything, block, part), weights in zip(sums, made, strict=True):
                target = y if everything else y[(slice(start, start + images), slice(None), slice(None), *s.outputs)]
                convolve_pixels[char](pool, rows, image, row, column, s.run_offsets, s.count, weights, block, part, bias, code, slope,
                                      target, heights().reshape(-1), memory, share, places)
        return y

    return run


def _whole(bias, count, dtype):
    """bias, or zeros, with so many elements: tiles read that many."""
    whole = np.zeros(count, dtype)
    if bias is not None:
        whole[: len(bias)] = bias
    return whole


def weight_gradient(plan, x, dy, w):
    """The gradient of w (K, C, 1, kh, kw) of the convolution of x that ``plan`` describes, from dy.

    Both operands are laid out as a matrix product wants them: dy in panels of a tile's outputs, x in slices of a tile's
    channels (all of them where they are few), so that a sum over pixels reads memory that lies close together.
    """
    char = x.dtype.char
    width, lanes = TILE_VECTORS * LANES[char], LANES[char]
    (K, C), (N, OH, OW) = w.shape[:2], (dy.shape[0], *dy.shape[3:])
    pool, slots = parallel.team() if dy.size * w[0].size > MULTIPLY_ADDS else (0, 1)
    x, dy = (a if a.strides[4] == a.itemsize or a.strides[1] == a.itemsize else np.ascontiguousarray(a) for a in (x, dy))
    panels, pixels = -(-K // width), plan.size[0] * plan.size[1]
    slice_width = C if C <= WHOLE_PIXELS else TILE_ROWS
    slices = -(-C // slice_width)
    step = max(1, min(N, IMAGES // (x.itemsize * (pixels * slices * slice_width + OH * OW * panels * width))))
    slice_size, panel_size = step * pixels * slice_width, step * OH * OW * width
    memory = workspace(slices * slice_size + panels * panel_size + lanes, x.dtype)
    gradient = memory[slices * slice_size :]
    terms, places = _terms(plan, C, slice_width, slice_size)
    row_runs = np.arange(OH, dtype=np.int64) * (plan.stride[0] * plan.size[1] * slice_width)
    group = -(-(len(terms) // TILE_ROWS) // (4 * slots))
    # what a pass over all tiles reads, a band of x and one of dy, stays in L2
    band = max(1, caches()[1] // 3 // (x.itemsize * (OW * panels * width + plan.stride[0] * plan.size[1] * C)))
    total = None
    for start in range(0, N, step):
        here, grad = x[start : start + step], dy[start : start + step]
        for i in range(slices):
            part = here[:, i * slice_width : (i + 1) * slice_width]
            pixel_rows[char](pool, part, *plan.before, *plan.size, slice_width, memory[i * slice_size :])
        for i in range(panels):
            pixel_rows[char](pool, grad[:, i * width : (i + 1) * width], 0, 0, OH, OW, width, gradient[i * panel_size :])
        dw = np.empty((len(terms), panels * width), x.dtype)
        gradient_pixels[char](pool, group, band, len(here), memory, pixels * slice_width, plan.stride[1] * slice_width, terms, gradient,
                              panel_size, panels, OH, OW, row_runs, dw.reshape(-1))
        total = dw if total is None else total + dw
    return np.ascontiguousarray(total[places, :K].transpose(2, 1, 0)).reshape(w.shape)


def _terms(plan, channels, slice_width, slice_size):
    """Where each term (kernel cell, channel) of a weight gradient starts, filled up to whole tiles by repeating the last one;
    and the term of each (flat cell, channel)."""
    taps = plan.sums[0]
    per_run = taps.count // channels
    starts = np.empty(len(taps.cells), np.int64)
    for i, cell in enumerate(taps.cells):
        starts[cell] = (taps.run_offsets[i // per_run] // channels + i % per_run) * slice_width
    slices = -(-channels // slice_width)
    terms = starts[:, None, None] + np.arange(slices)[:, None] * slice_size + np.arange(slice_width)
    places = np.arange(terms.size).reshape(len(starts), -1)[:, :channels]
    terms = terms.reshape(-1)
    return np.concatenate([terms, np.repeat(terms[-1:], -len(terms) % TILE_ROWS)]), places
