"""Matrix products on the CPU: which way through cpu/gemm.py a product takes."""

from __future__ import annotations

import numpy as np

from ...cpu import parallel
from ...cpu.features import vector_bits
from ...cpu.gemm import packed_elements
from ...cpu.workspace import workspace
from ..activation import activate, activation_gradient, needs_input
from ..numba_activation import code_of
from .numba_gemm import DIRECT, DOTS, PACKED, finish, gemm
from .reference import _sum_to

NOTHING = {c: np.empty(0, c) for c in "fd"}
LANES = {"f": vector_bits() // 32, "d": vector_bits() // 64}

# Measured (bench/thresholds): below this many multiply-adds one thread is done before a second one has started.
PARALLEL_WORK = 1 << 17
# b is packed where enough rows of a pass over it to pay for the copy
PACK_ROWS = 48
# dot products add up their lanes at the end, which only a long k pays for
DOT_ROWS = 64


def _way(m, n, k, a, b):
    size = a.itemsize
    a_row, a_col = a.strides
    b_row, b_col = b.strides
    if (b_row == size and b_col != size) or k == 1:
        if a_col == size and (m <= DOT_ROWS or n < 8):
            return DOTS
        return PACKED
    if b_col == size or n == 1:
        return DIRECT if m <= PACK_ROWS or m * n * k <= 96 * 96 * 96 else PACKED
    return PACKED


def multiply(a, b, out=None):
    """a @ b for two-dimensional arrays."""
    m, k = a.shape
    n = b.shape[1]
    char = a.dtype.char
    c = np.empty((m, n), a.dtype) if out is None else out
    pool, slots = parallel.team() if m * n * k > PARALLEL_WORK else (0, 1)
    way = _way(m, n, k, a, b)
    if way == DOTS and (a.strides[1] != a.itemsize or b.strides[0] != b.itemsize):
        way = PACKED
    if way == DIRECT and b.strides[1] != b.itemsize:
        way = PACKED
    scratch = workspace(packed_elements(n, k, slots, LANES[char]), a.dtype) if way == PACKED else NOTHING[char]
    gemm[char](pool, slots, way, a, b, c, scratch)
    return c


def matmul(arrays, params, train):
    a, b = arrays
    if a.ndim == 2 and b.ndim == 2:
        return multiply(a, b), None
    return _batched(a, b), None


def _batched(a, b):
    if b.ndim == 2 and a.flags.c_contiguous:  # one weight for the whole batch: one tall product
        rows = int(np.prod(a.shape[:-1]))
        return multiply(a.reshape(rows, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[-1])
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a = np.broadcast_to(a, lead + a.shape[-2:])
    b = np.broadcast_to(b, lead + b.shape[-2:])
    y = np.empty(lead + (a.shape[-2], b.shape[-1]), a.dtype)
    for index in np.ndindex(lead):
        multiply(a[index], b[index], y[index])
    return y


def matmul_backward(grad, arrays, saved, params, needs):
    a, b = arrays
    product = multiply if a.ndim == 2 and b.ndim == 2 else _batched
    da = _sum_to(product(grad, b.swapaxes(-1, -2)), a.shape) if needs[0] else None
    db = _sum_to(product(a.swapaxes(-1, -2), grad), b.shape) if needs[1] else None
    return da, db


def linear(arrays, params, train):
    x, w, bias = arrays
    y = multiply(x, w.T)
    act = params.activation
    code = code_of(act)
    if bias is not None or code:
        char = x.dtype.char
        pool = parallel.pool() if y.size > PARALLEL_WORK // 8 else 0
        finish[char](pool, y, NOTHING[char] if bias is None else np.ascontiguousarray(bias), code or 0, act.slope if code else 0.0)
    z = y
    if code is None:
        y = activate(act, z)
    return y, (y, z if needs_input(act) else None) if train else None


def linear_backward(grad, arrays, saved, params, needs):
    x, w, bias = arrays
    dz = activation_gradient(params.activation, grad, *saved)
    return (multiply(dz, w) if needs[0] else None,
            multiply(dz.T, x) if needs[1] else None,
            dz.sum(axis=0) if needs[2] else None)
