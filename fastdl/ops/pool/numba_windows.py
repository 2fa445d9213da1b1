"""Where windows lie, as numbers and tables that compiled code reads, and which way through them is the fastest.

A plan is one int64 array: a head of named fields, three numbers each (depth, height, width), then tables. The fields
FIRST, COUNT, SKIPPED and ORIGIN say where in the array the table of a dimension starts:

    FIRST    the first element of the input that cell o looks at
    COUNT    how many it looks at, each DILATION after the one before
    SKIPPED  how many offsets of its window lie before the input
    ORIGIN   where its window starts, maybe before the input

and those of the way back, with a number for each element i of the input:

    SEEN     entries SEEN[i] to SEEN[i + 1] - 1 of the next two tables are the cells that look at i
    CELL     the cell
    OFFSET   the offset of its window at which i lies
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ...cpu.features import vector_bits

OUT, SIZE, WINDOW, STRIDE, DILATION, BEFORE, FIRST, COUNT, SKIPPED, ORIGIN, SEEN, CELL, OFFSET = range(0, 39, 3)
WIDE = 39  # 1 where places of maxima take eight bytes, see numba_lanes.py
PLACES = 40  # where the table stands that says how far from its origin each offset of a window lies in the plane; not if WIDE
HEAD = 41
SLACK = 16  # a vector may be read from the last entry of a table on

PAIRS, EVENLY, CELLS, THREES = range(4)  # ways along a row of windows, see numba_rows.py
LONG_ROW = 2048  # elements of a row at a time
BLOCK = 4096  # elements in scratch memory: half of L1


class Axis(NamedTuple):
    """The windows along one dimension. ``stride`` is 0 where they are not evenly spaced and of equal length."""

    size: int
    out: int
    window: int
    stride: int
    dilation: int
    before: int
    first: np.ndarray
    count: np.ndarray
    skipped: np.ndarray
    origin: np.ndarray
    divisor: np.ndarray  # a factor of what a window's sum is divided by

    @property
    def whole(self) -> bool:
        """One window, and it holds every element once."""
        return self.out == 1 and self.size == self.window == self.count[0]

    @property
    def trivial(self) -> bool:
        """Windows that are the elements themselves."""
        return self.size == self.out and self.window == self.stride == 1 and self.before == 0

    @property
    def clipped(self) -> bool:
        """Whether any window reaches beyond the input."""
        return self.out > 0 and int(self.count.min()) < self.window

    @property
    def pairs(self) -> bool:
        """Two elements wide, side by side, none of them clipped."""
        return self.window == self.stride == 2 and self.dilation == 1 and not self.clipped

    @property
    def threes(self) -> bool:
        """Three elements wide and two apart, with at most one element of padding before them."""
        return self.window == 3 and self.stride == 2 and self.dilation == 1 and self.before <= 1


def windows(size, out, window, stride, before, dilation) -> Axis:
    origin = np.arange(out) * stride - before
    skipped = np.maximum(0, -(origin // dilation))
    count = np.maximum(0, np.minimum(window, (size - 1 - origin) // dilation + 1) - skipped)
    first = np.where(count > 0, origin + skipped * dilation, 0)
    return Axis(size, out, window, stride, dilation, before, first, count, skipped, origin, count)


def adaptive_windows(size, out) -> Axis:
    cell = np.arange(out)
    first = cell * size // max(out, 1)
    count = -(-(cell + 1) * size // max(out, 1)) - first
    window = int(count.max(initial=1))
    steps = np.unique(np.diff(first))
    even = out > 0 and count.min() == window and len(steps) <= 1
    stride = (int(steps[0]) if len(steps) else 1) if even else 0
    return Axis(size, out, window, stride, 1, 0, first, count, np.zeros_like(first), first, count)


class Plan:
    """The windows of one pooling over one size of input, for arrays of type ``char``."""

    def __init__(self, axes: tuple[Axis, Axis, Axis], char: str):
        d, h, w = self.axes = axes
        self.char = char
        self.lanes = vector_bits() // 8 // np.dtype(char).itemsize
        self.out = tuple(a.out for a in axes)
        self.cells = d.window * h.window * w.window
        head, tables = np.zeros(HEAD, np.int64), []
        fields = {OUT: "out", SIZE: "size", WINDOW: "window", STRIDE: "stride", DILATION: "dilation", BEFORE: "before"}
        for field, name in fields.items():
            head[field : field + 3] = [getattr(a, name) for a in axes]
        self.wide = head[WIDE] = self.cells > 255
        _append(head, tables, {FIRST: [a.first for a in axes], COUNT: [a.count for a in axes], SKIPPED: [a.skipped for a in axes],
                               ORIGIN: [a.origin for a in axes], PLACES: [[] if self.wide else _places(axes)]})
        self.head = head
        self.forward = np.concatenate([head, *tables])
        self.identity = all(a.trivial and (a.divisor == 1).all() for a in axes)
        self.is_line = d.trivial and h.trivial and d.size == h.size == 1
        self._upright: dict[int, Plan] = {}
        # each element has one place in one window of 2 x 2
        self.pairs = d.trivial and h.pairs and w.pairs

    @functools.cached_property
    def backward(self) -> np.ndarray:
        """The plan with the tables of the way back too."""
        seen, cells, offsets = zip(*map(_looked_at_by, self.axes), strict=True)
        head, tables = self.head.copy(), [self.forward[HEAD:]]
        _append(head, tables, {SEEN: seen, CELL: cells, OFFSET: offsets})
        return np.concatenate([head, *tables])

    @functools.cached_property
    def empty(self) -> np.ndarray | None:
        """Which cells (D, H, W) meet no element; None where there are none."""
        mask = np.logical_or.outer(np.logical_or.outer(*(a.count == 0 for a in self.axes[:2])), self.axes[2].count == 0)
        return mask if mask.any() else None

    @functools.cached_property
    def divisors(self) -> np.ndarray:
        """Of windows' sums, as three factors: those of all depths, then of all heights, then of all widths."""
        return self._packed([a.divisor for a in self.axes])

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """1 / divisors. One rounding, not three, where all windows of a dimension count as many."""
        rows = [np.asarray(a.divisor, np.float64) for a in self.axes]
        for axis in (0, 1):
            if len(rows[axis]) and (rows[axis] == rows[axis][0]).all():
                rows[2] = rows[2] * rows[axis][0]
                rows[axis] = np.ones_like(rows[axis])
        return self._packed([1 / r for r in rows])

    def _packed(self, rows):
        return np.concatenate([*rows, np.ones(SLACK)]).astype(self.char)

    # ---- the same windows over another view of the same memory
    @functools.cached_property
    def flat(self) -> Plan | None:
        """For a plane taken as one row, where one window holds all of it."""
        if not all(a.whole for a in self.axes) or self.axes[2].size == self.cells:
            return None
        one, row = windows(1, 1, 1, 1, 0, 1), windows(self.cells, 1, self.cells, 1, 0, 1)
        return Plan((one, one, row._replace(divisor=np.prod([a.divisor for a in self.axes], axis=0))), self.char)

    def upright(self, channels) -> Plan:
        """For planes of one row, channels taken as their height: a kernel then has many rows of a plane to take at once."""
        plan = self._upright.get(channels)
        if plan is None:
            d, h, w = self.axes
            rows = windows(channels, channels, 1, 1, 0, 1)
            plan = Plan((d, rows._replace(divisor=rows.divisor * h.divisor[0]), w), self.char)
            self._upright[channels] = plan
        return plan

    # ---- ways: which, how many cells of a row at a time, how many rows in scratch memory, and the elements of one there
    @functools.cached_property
    def reduce_way(self) -> tuple[int, int, int, int]:
        """For maxima and sums."""
        d, h, w = self.axes
        if w.pairs:
            return PAIRS, w.out, h.out, 0
        if w.threes:
            return THREES, w.out, h.out, 0
        if not self._by_cells():
            return EVENLY, *self._even_rows(LONG_ROW, BLOCK)
        segment = max(1, min(w.out, LONG_ROW * w.out // w.size))
        if d.window == h.window == 1 and h.stride > 0:  # read in place
            return CELLS, segment, h.out, 0
        starts = np.arange(0, w.out, segment)
        ends = np.minimum(starts + segment, w.out) - 1
        pitch = int((w.first[ends] + w.count[ends] - w.first[starts]).max()) + self.lanes
        return CELLS, segment, _rows(h.out, BLOCK // pitch), pitch

    @functools.cached_property
    def search_way(self) -> tuple[int, int, int, int]:
        """For maxima with their places, which keep all rows of a window."""
        d, h, w = self.axes
        if self.wide or self._by_cells():
            return CELLS, w.out, h.out, 0
        lines = d.window * h.window
        return EVENLY, *self._even_rows(max(LONG_ROW // lines, 4 * self.lanes), 2 * BLOCK // lines)

    @functools.cached_property
    def spread_way(self) -> tuple[int, int, int, int]:
        """For the way back of a sum, with elements of the input in place of cells."""
        _, h, w = self.axes
        if self._by_cells() or w.stride > 2:
            pitch = w.out + self.lanes
            return CELLS, w.size, _rows(h.size, BLOCK // pitch), pitch
        segment = min(LONG_ROW, -(-w.size // (2 * self.lanes)) * 2 * self.lanes)
        pitch = segment // w.stride + w.window + 6 * self.lanes
        return EVENLY, segment, _rows(h.size, BLOCK // pitch, segment >= w.size), pitch

    @functools.cached_property
    def collect_way(self) -> tuple[int, int, int, int, int] | None:
        """For the way back of maxima, evenly: elements of a row, rows, and the elements in scratch memory of one row of cells, of
        all such rows of a slice, and of all slices. None where that is not possible."""
        _, h, w = self.axes
        if self.wide or self.alone or self._by_cells() or w.stride > 2 or w.dilation > 1 or 4 * w.out < 3 * w.stride * self.lanes:
            return None
        segment = min(LONG_ROW, -(-w.size // (2 * self.lanes)) * 2 * self.lanes)
        pitch = segment // w.stride + w.window + 4 + 8 * self.lanes  # a vector of places, one byte each, may go beyond the row
        slices = self._most_cells[0]

        def rows(block):  # of cells, that look at a block of rows of the input
            return h.out if h.stride == 0 else min(h.out, (block - 1 + (h.window - 1) * h.dilation) // h.stride + 2)

        block = _rows(h.size, h.size, segment >= w.size)
        while block > 1 and slices * rows(block) * pitch > BLOCK:
            block = -(-block // 2)
        if slices * rows(block) * pitch > 16 * BLOCK:
            return None
        return segment, block, pitch, rows(block) * pitch, slices * rows(block) * pitch

    @functools.cached_property
    def alone(self) -> bool:
        """Whether no two windows share an element."""
        return max(self._most_cells) <= 1

    @functools.cached_property
    def _most_cells(self) -> list[int]:
        """How many cells look at one element, at most, in each dimension."""
        return [int(np.diff(_looked_at_by(a)[0]).max()) for a in self.axes]

    def _by_cells(self) -> bool:
        """Whether a row's windows are taken one by one: uneven ones, and long ones of which there are few."""
        w = self.axes[2]
        return w.stride == 0 or (w.dilation == 1 and w.window >= max(self.lanes, 8) and (w.stride > 2 or w.out < self.lanes // 2))

    def _even_rows(self, elements, block):
        w, lanes = self.axes[2], self.lanes
        segment = max(1, min(-(-w.out // lanes), elements // (w.stride * lanes))) * lanes
        pitch = (segment - 1) * w.stride + (w.window - 1) * w.dilation + 1 + 5 * lanes
        return segment, _rows(self.axes[1].out, block // pitch, segment >= w.out), pitch


def _rows(available, wanted, whole=True):
    """How many rows to take at once: one where not whole rows are, for whole vectors go beyond a row's end into the next."""
    return max(1, min(available, wanted)) if whole else 1


def _append(head, tables, fields):
    """Add tables, and where they stand to the head."""
    at = HEAD + sum(map(len, tables))
    for field, rows in fields.items():
        for axis, row in enumerate(rows):
            head[field + axis] = at
            tables.append(np.concatenate([np.asarray(row, np.int64), np.zeros(SLACK, np.int64)]))
            at += len(tables[-1])


def _places(axes):
    d, h, w = (np.arange(a.window) * a.dilation for a in axes)
    return ((d[:, None, None] * axes[1].size + h[:, None]) * axes[2].size + w).reshape(-1)


def _looked_at_by(axis):
    """SEEN, CELL and OFFSET of a dimension."""
    cell = np.repeat(np.arange(axis.out), axis.count)
    place = np.arange(len(cell)) - np.repeat(np.cumsum(axis.count) - axis.count, axis.count)
    element = axis.first[cell] + place * axis.dilation
    order = np.argsort(element, kind="stable")
    seen = np.concatenate([[0], np.cumsum(np.bincount(element, minlength=axis.size))])
    return seen, cell[order], (axis.skipped[cell] + place)[order]
