"""The rows of a batch of sequences as the compiled kernels want them: packed, without padding."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ...cpu.workspace import recycled


class Rows(NamedTuple):
    """Every step of every sequence, step by step, the longest sequences first; see numba_sequence.py."""

    counts: np.ndarray  # sequences alive at each step
    offsets: np.ndarray  # the first row of each step
    total: int
    order: np.ndarray  # the batch's sequences, longest first
    where: tuple | None  # (step, sequence of the batch) of each row; None: every step has the whole batch
    previous: tuple | None  # for each direction: of each row, the row of the step before, -1 where there is none
    sequence: np.ndarray | None  # of each row, the sequence, in order

    @property
    def batch(self) -> int:
        return int(self.counts[0])


@functools.lru_cache(maxsize=64)
def rows_of(steps, batch, lengths, batch_sizes) -> Rows:
    if lengths is None and batch_sizes is None:
        return Rows(np.full(steps, batch, np.int64), np.arange(steps) * batch, steps * batch, np.arange(batch), None, None, None)
    if batch_sizes is not None:
        counts = np.array(batch_sizes, np.int64)
        order = np.arange(counts[0])
    else:
        sizes = np.array(lengths, np.int64)
        order = np.argsort(-sizes, kind="stable")
        counts = (np.arange(sizes.max(initial=1))[:, None] < sizes).sum(axis=1)
    offsets = counts.cumsum() - counts
    step, sequence = np.nonzero(np.arange(counts[0]) < counts[:, None])
    row, ends = np.arange(len(step)), (np.arange(counts[0]) < counts[:, None]).sum(axis=0) - 1
    before = np.where(step > 0, row - counts[step - 1], -1)
    after = np.where(step < ends[sequence], row + counts[step], -1)
    return Rows(counts, offsets, len(row), order, (step, order[sequence]), (before, after), sequence)


# ------------------------------------------------------------------------------------------------ to rows and back
def gather(x, rows, params):
    """(rows, features) of (steps, batch, features) or of packed data: a view where that is possible."""
    if params.batch_sizes is not None:
        return x
    if rows.where is not None:
        return x[rows.where]
    return x.reshape(rows.total, x.shape[2])


def scatter(values, rows, params, steps, batch):
    """The inverse, in the caller's layout."""
    if params.batch_sizes is not None:
        return values
    if rows.where is None:
        y = values.reshape(steps, batch, values.shape[1])
    else:
        y = np.zeros((steps, batch, values.shape[1]), values.dtype)
        y[rows.where] = values
    return y.swapaxes(0, 1) if params.batch_first else y


def in_order(states, rows):
    """States (..., batch, size) with the longest sequences first."""
    return states if rows.where is None or states is None else states[..., rows.order, :]


def put_back(states, rows, out):
    """out = states, each sequence's where it stands in the batch."""
    if rows.where is None:
        out[...] = states
    else:
        out[..., rows.order, :] = states


def states_before(values, start, rows, direction):
    """Of values of all rows, for each row those of the step before; start's (in order; None: zeros) where there is none."""
    out = recycled(values.shape, values.dtype)
    if rows.where is None:
        cut = rows.batch if direction == 0 else rows.total - rows.batch
        if direction == 0:
            out[cut:], first = values[:rows.total - cut], out[:cut]
        else:
            out[:cut], first = values[rows.batch:], out[cut:]
        first[...] = 0 if start is None else start
        return out
    previous = rows.previous[direction]
    np.take(values, previous, axis=0, out=out, mode="clip")
    fresh = np.flatnonzero(previous < 0)
    out[fresh] = 0 if start is None else start[rows.sequence[fresh]]
    return out
