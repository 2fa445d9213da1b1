"""Matrix products on the CPU: which way through cpu/gemm.py a product takes."""

from __future__ import annotations

import functools
import math

import numpy as np

from ...cpu import parallel
from ...cpu.blocking import LANES, LINE
from ...cpu.features import caches
from ...cpu.gemm import few_elements, scratch_elements
from ...cpu.in_place import row_parts
from ...cpu.narrow import turned_row
from ...cpu.panels import panel_elements
from ...cpu.thresholds import MULTIPLY_ADDS
from ...cpu.workspace import NOTHING, workspace
from ...packing import aligned, is_packed, keeper, prepared
from ..activation import activate, needs_input
from ..numba_activation import code_of, kernel_arguments
from ..numba_sums import row_of_sums
from ..pointwise.numba_backend import activation_gradient
from . import numba_nonzeros
from .numba_gemm import (
    BY_COLUMN,
    BY_ELEMENT,
    DIRECT,
    DOTS,
    FEW,
    FEW_COLUMNS,
    NARROW,
    PACKED,
    READY,
    ROW,
    gemm,
    gemm_turned,
    multiply_batch,
    pack_weight,
    product_at_once,
)
from .reference import _sum_to

# Measured (python -m bench.matmul and its rows one by one): up to so many rows of a
DOT_ROWS = 32  # dot products with b's columns, contiguous, beat panels
NARROW_ROWS = 32  # more rows of a than so many, b has fewer columns than a vector: dot products with b turned
FEW_ROWS = 64  # each thread copies panels for itself; and where there are many more columns, while all of a stays in L2
FEW_ROWS_WIDE, FEW_SIZE_WIDE = 8, 1 << 16
DIRECT_ROWS = 10  # reading b in place beats copying it; while b stays in L2 or nearly in L1, up to
DIRECT_ROWS_L2, DIRECT_SIZE_L2 = 16, 1 << 16
DIRECT_ROWS_L1, DIRECT_SIZE_L1 = 64, 1 << 14
BATCH_WORK, BATCH_ROWS = 128**3, 1 << 17  # of one product of a batch, and elements of its a, up to which each is one thread's


def _is_narrow(m, n, k, a, b):
    """Whether b has fewer columns than a tile and stays in L2, turned, while the rows of a, which lie as they are read, pass it."""
    size = a.itemsize
    return (1 < n <= LANES[a.dtype.char] and m > NARROW_ROWS and a.strides[1] == size and size in b.strides
            and n * turned_row(k) * size <= caches()[1] // 2)


def _way(m, n, k, a, b):
    size = a.itemsize
    b_row, b_col = b.strides
    if b_row == size and (b_col != size or n == 1) and a.strides[1] == size and (m <= DOT_ROWS or n < FEW_COLUMNS):
        return DOTS
    if m == 1 and b_col == size:
        return ROW
    if b_col == size:
        rows = DIRECT_ROWS_L1 if n * k <= DIRECT_SIZE_L1 else DIRECT_ROWS_L2 if n * k <= DIRECT_SIZE_L2 else DIRECT_ROWS
        if m <= rows or m * n * k <= MULTIPLY_ADDS:
            return DIRECT
    return FEW if m <= FEW_ROWS or (FEW_ROWS_WIDE * m <= n and m * k <= FEW_SIZE_WIDE) else PACKED


def multiply(a, b, out=None, bias=None, what=0, slope=0.0):
    """activation(a @ b + bias) for two-dimensional arrays; what: see numba_gemm.gemm."""
    m, k = a.shape
    n = b.shape[1]
    dtype = a.dtype
    char = dtype.char
    work = m * n * k
    if work <= MULTIPLY_ADDS and what == 0 and out is None and (c := product_at_once[char](a, b)) is not None:
        return c
    c = np.empty((m, n), dtype) if out is None else out
    narrow = _is_narrow(m, n, k, a, b)
    if n * FEW_COLUMNS < m and n < FEW_COLUMNS and what == 0 and not narrow:
        # in the transposed product a's rows are the columns, which threads share
        c[...] = multiply(np.ascontiguousarray(b.T), a.T).T
        return c
    pool, slots = parallel.team() if work > MULTIPLY_ADDS else (0, 1)
    way = NARROW if narrow else _way(m, n, k, a, b)
    scratch = _scratch(way, m, n, k, slots, dtype)
    gemm[char](pool, slots, way, a, b, c, scratch, NOTHING[char] if bias is None else bias, what, slope)
    return c


def _scratch(way, m, n, k, slots, dtype):
    elements = _scratch_elements(way, m, n, k, slots, dtype.char)
    return workspace(elements, dtype) if elements else NOTHING[dtype.char]


@functools.lru_cache(maxsize=1024)
def _scratch_elements(way, m, n, k, slots, char):
    lanes = LANES[char]
    if way in (DOTS, DIRECT):
        return 0
    if way == ROW:
        return n * row_parts(n, k, np.dtype(char).itemsize)
    if way == NARROW:
        return n * turned_row(k)
    return slots * few_elements(m, k, lanes) if way == FEW else scratch_elements(n, k, slots, lanes, way == READY)


def multiply_packed_weight(a, w, out=None, bias=None, what=0, slope=0.0):
    """activation(a @ w.T + bias); the panels of a packed weight are kept with it."""
    if not is_packed(w):
        return multiply(a, w.T, out, bias, what, slope)
    if a.shape[0] == 1:
        if numba_nonzeros.serves(w):
            c = np.empty((1, w.shape[0]), a.dtype) if out is None else out
            given = NOTHING[a.dtype.char] if bias is None else bias
            if numba_nonzeros.row(a, w, lambda: prepared(w, "nonzeros", lambda: numba_nonzeros.panels_of(w)), c, given, what, slope):
                return c
        return multiply(a, w.T, out, bias, what, slope)
    (m, k), n, char = a.shape, w.shape[0], a.dtype.char
    if _is_narrow(m, n, k, a, w.T):
        return multiply(a, w.T, out, bias, what, slope)
    pool, slots = parallel.team() if m * n * k > MULTIPLY_ADDS else (0, 1)
    panels = prepared(w, "gemm", lambda: _panels(w, pool))
    c = np.empty((m, n), a.dtype) if out is None else out
    scratch = _scratch(READY, m, n, k, slots, a.dtype)
    gemm[char](pool, slots, READY, a, panels, c, scratch, NOTHING[char] if bias is None else bias, what, slope)
    return c


def multiply_packed_weight_turned(a, w, out, bias=None, what=0, slope=0.0):
    """multiply_packed_weight's answer turned, to ``out`` (contiguous rows); a bias is one BY_COLUMN."""
    (m, k), n, char = a.shape, w.shape[0], a.dtype.char
    pool, slots = parallel.team() if m * n * k > MULTIPLY_ADDS else (0, 1)
    panels = prepared(w, "gemm", lambda: _panels(w, pool))
    row = (-(-n // LINE) | 1) * LINE  # an odd number of cache lines: a part of the product has its rows in all sets of L1
    rest = _scratch_elements(READY, m, n, k, slots, char)
    scratch = workspace(rest + m * row, a.dtype)
    product = scratch[rest : rest + m * row].reshape(m, row)
    gemm_turned[char](pool, slots, a, panels, product, out, scratch, NOTHING[char] if bias is None else bias, what, slope)


def _panels(w, pool):
    out = aligned((1, panel_elements(*w.shape, LANES[w.dtype.char])), w.dtype)
    pack_weight[w.dtype.char](pool, w.T, out[0])
    return out


def linear_bound(arrays, params):
    """See op.py."""
    a, w, bias = arrays
    code, slope = kernel_arguments(params.activation)
    if code_of(params.activation) is None or not a.size or not w.size or (bias is not None and not bias.flags.c_contiguous):
        return None
    (m, k), n, dtype, char = a.shape, w.shape[0], a.dtype, a.dtype.char
    what = code + (0 if bias is None else BY_COLUMN)
    run, empty, shape, shared, nothing = gemm[char], np.empty, (m, n), m * n * k > MULTIPLY_ADDS, NOTHING[char]
    narrow = _is_narrow(m, n, k, a, w.T)
    ready = is_packed(w) and m > 1 and not narrow
    if ready:
        panels, way = keeper(w, "gemm", lambda: _panels(w, parallel.team()[0] if shared else 0)), READY
    else:
        way = NARROW if narrow else _way(m, n, k, a, w.T)
    rows = None
    if m == 1 and is_packed(w) and numba_nonzeros.serves(w):
        rows = keeper(w, "nonzeros", functools.partial(numba_nonzeros.panels_of, w))

    def product(a, w, bias):
        if rows is not None:
            c = empty(shape, dtype)
            if numba_nonzeros.row(a, w, rows, c, nothing if bias is None else bias, what, slope):
                return c
        pool, slots = parallel.team() if shared else (0, 1)
        elements = 0 if way == DOTS else _scratch_elements(way, m, n, k, slots, char)
        c = empty(shape, dtype)
        scratch = workspace(elements, dtype) if elements else nothing
        run(pool, slots, way, a, panels() if ready else w.T, c, scratch, nothing if bias is None else bias, what, slope)
        return c

    return product


matmul_at_once = product_at_once


def matmul(arrays, params, train):
    a, b = arrays
    return (multiply if a.ndim == 2 and b.ndim == 2 else _batched)(a, b), None


def matmul_bound(arrays, params):
    """See op.py."""
    a, b = arrays
    return None if a.ndim == 2 and b.ndim == 2 else _planned_batch(a, b)


def _batched(a, b):
    return _planned_batch(a, b)(a, b)


def _planned_batch(a, b):
    """``run(a, b)`` for batches of matrices of these shapes, strides and dtype."""
    if b.ndim == 2 and a.flags.c_contiguous:  # one weight for the whole batch: one tall product
        rows, columns = (math.prod(a.shape[:-1]), a.shape[-1]), (*a.shape[:-1], b.shape[-1])
        return lambda a, b: multiply(a.reshape(rows), b).reshape(columns)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (m, k), n, items, dtype = a.shape[-2:], b.shape[-1], math.prod(lead), a.dtype
    alike = a.shape[:-2] == lead == b.shape[:-2]
    shape, as_batch, of_a, of_b = (*lead, m, n), (items, m, n), (*lead, m, k), (*lead, k, n)
    if items == 0:
        return lambda a, b: np.empty(shape, dtype)
    if m * n * k > BATCH_WORK or m * k > BATCH_ROWS:  # threads share each

        def each(a, b):
            y, a, b = np.empty(shape, dtype), np.broadcast_to(a, of_a), np.broadcast_to(b, of_b)
            for index in np.ndindex(lead):
                multiply(a[index], b[index], y[index])
            return y

        return each
    if not alike:
        a, b = np.broadcast_to(a, of_a), np.broadcast_to(b, of_b)
    first = (0,) * len(lead)
    way = _way(m, n, k, a[first], b[first])
    if way in (ROW, PACKED):
        way = DIRECT if way == ROW else FEW
    size, shared, run = a.itemsize, items * m * n * k > MULTIPLY_ADDS, multiply_batch[dtype.char]
    a_at, b_at = _places(lead, a.strides, size), _places(lead, b.strides, size)

    def together(a, b):
        pool, slots = parallel.team() if shared else (0, 1)
        y = np.empty(as_batch, dtype)
        if not alike:
            a, b = np.broadcast_to(a, of_a), np.broadcast_to(b, of_b)
        run(pool, slots, way, a[first], a_at, b[first], b_at, y, _scratch(way, m, n, k, slots, dtype))
        return y.reshape(shape) if len(lead) != 1 else y

    return together


@functools.lru_cache(maxsize=32)
def _places(lead, strides, itemsize):
    """Elements from the first matrix of a batch to each."""
    places = np.zeros(lead, np.int64)
    for axis, (size, stride) in enumerate(zip(lead, strides, strict=False)):
        places += (np.arange(size) * (stride // itemsize)).reshape(size, *(1,) * (len(lead) - axis - 1))
    return places.reshape(-1)


def matmul_backward(grad, arrays, saved, params, needs):
    a, b = arrays
    product = multiply if a.ndim == 2 and b.ndim == 2 else _batched
    da = _sum_to(product(grad, b.swapaxes(-1, -2)), a.shape) if needs[0] else None
    db = _sum_to(product(a.swapaxes(-1, -2), grad), b.shape) if needs[1] else None
    return da, db


def addmm(arrays, params, train):
    x, a, b = arrays
    m, n = a.shape[0], b.shape[1]
    if params.alpha != 1:  # of the two, the one with fewer elements
        a, b = (a * a.dtype.type(params.alpha), b) if a.size <= b.size else (a, b * b.dtype.type(params.alpha))
    if params.beta == 0:
        return multiply(a, b), None
    if params.beta != 1:
        x = x * x.dtype.type(params.beta)
    if x.ndim and x.shape[-1] == n and x.size == n:
        return multiply(a, b, None, np.ascontiguousarray(x.reshape(n)), BY_COLUMN), None
    x = np.ascontiguousarray(x if x.shape == (m, n) else np.broadcast_to(x, (m, n)))
    return multiply(a, b, None, x.reshape(m * n), BY_ELEMENT), None


def addmm_backward(grad, arrays, saved, params, needs):
    x, a, b = arrays
    dz = grad if params.alpha == 1 or not any(needs[1:]) else grad * grad.dtype.type(params.alpha)
    return (_sum_to(grad * grad.dtype.type(params.beta), x.shape) if needs[0] else None,
            multiply(dz, b.T) if needs[1] else None,
            multiply(a.T, dz) if needs[2] else None)


def linear(arrays, params, train):
    x, w, bias = arrays
    act = params.activation
    code, slope = kernel_arguments(act)
    what = code + (0 if bias is None else BY_COLUMN)
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    y = multiply_packed_weight(x, w, None, bias, what, slope)
    z = y
    if code_of(act) is None:
        y = activate(act, z)
    return y, (y, z if needs_input(act) else None) if train else None


def linear_backward(grad, arrays, saved, params, needs):
    x, w, bias = arrays
    dz = activation_gradient(params.activation, grad, *saved)
    return (multiply(dz, w) if needs[0] else None,
            multiply(dz.T, x) if needs[1] else None,
            (row_of_sums(dz) if dz.size else dz.sum(axis=0)) if needs[2] else None)
