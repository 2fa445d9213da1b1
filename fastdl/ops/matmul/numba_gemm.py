"""Entry points to the matrix product of cpu/gemm.py, and the bias and activation of linear."""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.gemm import multiply_direct, multiply_dots, multiply_packed
from ...cpu.jit import inline, kernel
from ...cpu.simd import lanes, load, load_n, offset, pointer, splat, store, store_n
from ..numba_activation import apply_activation

DOTS, DIRECT, PACKED = 0, 1, 2


@inline
def _strides(x):
    size = x.itemsize
    return x.strides[0] // size, x.strides[1] // size


@kernel("i i i R2 R2 W2 W1")
def gemm(pool, slots, way, a, b, c, workspace):
    """c = a b; c has contiguous rows."""
    m, k = a.shape
    n = b.shape[1]
    a_row, a_col = _strides(a)
    b_row, b_col = _strides(b)
    c_row = c.strides[0] // c.itemsize
    if way == DOTS:
        multiply_dots(pool, slots, pointer(a), a_row, pointer(b), b_col, pointer(c), c_row, m, n, k)
    elif way == DIRECT:
        multiply_direct(pool, slots, pointer(a), a_row, a_col, pointer(b), b_row, pointer(c), c_row, m, n, k, False)
    else:
        multiply_packed(
            pool, slots, pointer(a), a_row, a_col, pointer(b), b_row, b_col, pointer(c), c_row, m, n, k, False, pointer(workspace)
        )


@inline
def _finish_chunk(slot, chunk, rows, c, c_row, m, n, bias, has_bias, act, slope):
    V = lanes(c)
    for i in range(chunk * rows, min(m, (chunk + 1) * rows)):
        row = offset(c, i * c_row)
        j = 0
        while j + V <= n:
            v = load(row, j)
            if has_bias:
                v = v + load(bias, j)
            store(row, j, apply_activation(v, act, splat(c, slope)))
            j += V
        if j < n:
            v = load_n(row, j, n - j)
            if has_bias:
                v = v + load_n(bias, j, n - j)
            store_n(row, j, apply_activation(v, act, splat(c, slope)), n - j)


@kernel("i W2 R1 i T")
def finish(pool, c, bias, act, slope):
    """c = activation(c + bias) in place; an empty bias is none."""
    m, n = c.shape
    rows = max(1, 4096 // max(n, 1))
    parallel_for(
        pool,
        _finish_chunk,
        (m + rows - 1) // rows,
        (rows, pointer(c), c.strides[0] // c.itemsize, m, n, pointer(bias), bias.shape[0] > 0, act, slope),
    )
