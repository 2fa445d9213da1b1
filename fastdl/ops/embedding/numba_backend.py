"""Table look-up on the CPU."""

from __future__ import annotations

import numpy as np

from ...cpu import parallel
from ...cpu.thresholds import ELEMENTS
from ...cpu.workspace import KINDS
from .numba_embedding import add_rows, copy_at_once, copy_rows

_PARTS = 4  # of the table for each thread: words are not named evenly


class _AtOnce(dict):
    """Small look-ups, checks and all, by the indices' dtype; see op.Operator."""

    arity = 2  # input, weight

    def __init__(self):
        def serve(index, weight):
            char = weight.dtype.char if type(weight) is np.ndarray else None
            return copy_at_once[char](index, weight) if char and char in KINDS else None

        super().__init__({np.dtype(np.int64).char: serve})


embedding_at_once = _AtOnce()


def _index(index):
    index = np.ascontiguousarray(index)
    return index if index.flags.writeable else index.copy()  # kernels declare integers as arrays that they write to


def _rows(x):
    return x if x.strides[1] == x.itemsize or x.shape[1] == 1 else np.ascontiguousarray(x)


def embedding(arrays, params, train):
    index, weight = arrays
    y = np.empty((len(index), weight.shape[1]), weight.dtype)
    if y.size:
        copy_rows[y.dtype.char](parallel.pool() if y.size > ELEMENTS else 0, _index(index), _rows(weight), y)
    return y, None


def embedding_backward(grad, arrays, saved, params, needs):
    index, weight = arrays
    if not needs[1]:
        return None, None
    dweight = np.zeros(weight.shape, weight.dtype)  # memory that no index names is never touched
    if grad.size:
        pool, slots = parallel.team() if grad.size > ELEMENTS else (0, 1)
        padding = -1 if params.padding_idx is None else params.padding_idx
        add_rows[grad.dtype.char](pool, _PARTS * slots if slots > 1 else 1, _index(index), padding, _rows(grad), dweight)
    return None, dweight
