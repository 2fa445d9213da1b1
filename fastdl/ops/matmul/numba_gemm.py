"""Entry points to the matrix product of cpu/gemm.py, with bias and activation as its last step."""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.borrowed import absent, contents, create, nothing
from ...cpu.gemm import pack_all, products
from ...cpu.jit import always_inline, inline, kernel
from ...cpu.microkernel import TILE_ROWS, TILE_VECTORS, finish_tile
from ...cpu.narrow import narrow_products
from ...cpu.simd import (
    address,
    broadcast,
    lanes,
    larger,
    load,
    load_n,
    load_rows,
    load_rows_n,
    offset,
    pointer,
    splat,
    store,
    store_n,
    store_rows,
    store_rows_n,
    transpose,
)
from ...cpu.thresholds import MULTIPLY_ADDS
from ..numba_activation import RELU, apply_activation

DOTS, DIRECT, PACKED, READY, FEW, ROW, NARROW = range(7)  # ways: see cpu/gemm.py, cpu/narrow.py; READY: b is pack_weight's panels
FEW_COLUMNS = 8  # fewer than a vector: tiles of columns would be mostly empty
BY_COLUMN, BY_ROW, BY_ELEMENT = 16, 32, 64  # where a bias belongs; added to the activation's code
TURNED = 128  # added as well: the result goes to y.T


@inline
def _strides(x):
    size = x.itemsize
    return x.strides[0] // size, x.strides[1] // size


@inline
def finish_block(c, c_row, m, n, row, column, bias, what, slope):
    """c = activation(c + bias) in place; a bias BY_ELEMENT has rows as far apart as c's."""
    V = lanes(c)
    act, leak = what % 16, splat(c, slope)
    floor = splat(c, 0.0 if act == RELU else -np.inf)
    for i in range(m):
        target = offset(c, i * c_row)
        shift = broadcast(bias, row + i) if what & BY_ROW else splat(c, 0.0)
        there = column + ((row + i) * c_row if what & BY_ELEMENT else 0)
        j = 0
        while j + V <= n:
            if what & (BY_COLUMN | BY_ELEMENT):
                shift = load(bias, there + j)
            v = larger(load(target, j) + shift, floor)
            store(target, j, v if act <= RELU else apply_activation(v, act, leak))
            j += V
        if j < n:
            if what & (BY_COLUMN | BY_ELEMENT):
                shift = load_n(bias, there + j, n - j)
            store_n(target, j, apply_activation(load_n(target, j, n - j) + shift, act, leak), n - j)


_finish_rows, _finish_columns = (finish_tile(TILE_ROWS, TILE_VECTORS, by_column=by_column) for by_column in (False, True))


@inline
def is_simple(what):
    """Whether a tile is stored with its last step: a bias BY_ROW or BY_COLUMN, and at most a ReLU."""
    return what % 16 <= RELU and (what & (BY_ROW | BY_COLUMN)) != 0


@always_inline
def store_finished(sums, c, c_row, row, column, bias, what, slope):
    floor = 0.0 if what % 16 == RELU else -np.inf
    if what & BY_ROW:
        _finish_rows(sums, c, c_row, TILE_ROWS, TILE_VECTORS * lanes(c), offset(bias, row), 1, floor)
    else:
        _finish_columns(sums, c, c_row, TILE_ROWS, TILE_VECTORS * lanes(c), offset(bias, column), 0, floor)


_packed, _few, _row, _direct, _dots = products(finish_block, is_simple, store_finished)
_narrow = narrow_products(finish_block)


@inline
def turn_block(c, c_row, m, n, row, column, places, what, slope):
    """finish_block for a bias BY_COLUMN, and its answer to y.T. places: (the bias, y, y's row)."""
    bias, y, y_row = places
    V = lanes(c)
    finish_block(c, c_row, m, n, row, column, bias, what - TURNED, slope)
    for j in range(0, n, V):
        columns = min(V, n - j)
        target = offset(y, (column + j) * y_row + row)
        for block in range((m + V - 1) // V):
            if m < V or columns < V:
                i = block * V
                rows = min(V, m - i)
                store_rows_n(target, i, y_row, transpose(load_rows_n(c, i * c_row + j, c_row, rows, columns)), columns, rows)
            else:
                i = min(block * V, m - V)  # the last block of whole vectors ends where the rows do
                store_rows(target, i, y_row, transpose(load_rows(c, i * c_row + j, c_row)))


@inline
def _never(what):
    return False


@always_inline
def _not_stored(sums, c, c_row, row, column, places, what, slope):
    pass


_packed_turned, *_ = products(turn_block, _never, _not_stored)


@kernel("i i i R2 R2 W2 W1 R1 i T")
def gemm(pool, slots, way, a, b, c, scratch, bias, what, slope):
    """c = activation(a b + bias); c has contiguous rows. what: the activation's code and whose bias it is, or 0."""
    m, k = a.shape
    n = c.shape[1]
    a_row, a_col = _strides(a)
    b_row, b_col = _strides(b)
    c_row = c.strides[0] // c.itemsize
    A, B, C, x = pointer(a), pointer(b), pointer(c), pointer(bias)
    if way == DOTS:
        _dots(pool, slots, A, a_row, B, b_col, C, c_row, m, n, k, x, what, slope)
    elif way == DIRECT:
        _direct(pool, slots, A, a_row, a_col, B, b_row, C, c_row, m, n, k, x, what, slope)
    elif way == ROW:
        _row(pool, A, a_col, B, b_row, C, n, k, scratch.shape[0] // n, pointer(scratch), x, what, slope)
    elif way == NARROW:
        _narrow(pool, slots, A, a_row, B, b_row, b_col, C, c_row, m, n, k, pointer(scratch), scratch.shape[0] // n, x, what, slope)
    elif way == FEW:
        _few(pool, slots, A, a_row, a_col, B, b_row, b_col, C, c_row, m, n, k, pointer(scratch), scratch.shape[0] // slots, x, what, slope)
    else:
        _packed(pool, slots, A, a_row, a_col, B, b_row, b_col, C, c_row, m, n, k, way == READY, pointer(scratch), x, what, slope)


@kernel("i i R2 R2 W2 W2 W1 R1 i T")
def gemm_turned(pool, slots, a, panels, c, y, scratch, bias, what, slope):
    """y = activation(a b + bias).T from pack_weight's panels of b; what: the activation's code, and BY_COLUMN where there is a bias.

    c: work space for the product, its rows as long as y is high or longer. y has contiguous rows.
    """
    (m, k), n = a.shape, y.shape[0]
    a_row, a_col = _strides(a)
    places = pointer(bias), pointer(y), y.strides[0] // y.itemsize
    _packed_turned(pool, slots, pointer(a), a_row, a_col, pointer(panels), 0, 0, pointer(c), c.shape[1], m, n, k, True, pointer(scratch),
                   places, what + TURNED, slope)


@kernel("O2 O2")
def product_at_once(a, b):
    """a b on the calling thread, or None where it is not small, neither lies as it is read here or anything does not fit."""
    if absent(a) or absent(b):
        return nothing(a)
    (m, k), n = a.shape, b.shape[1]
    a_row, a_col = _strides(a)
    b_row, b_col = _strides(b)
    dots = n == 1 and a_col == 1 and b_row == 1
    columns = b_col == 1 and n > 1 and (m <= FEW_COLUMNS * n or n >= FEW_COLUMNS)
    if b.shape[0] != k or m * n * k > MULTIPLY_ADDS or not (dots or columns):
        return nothing(a)
    made = create(a, m, n)
    A, B, C = pointer(a), pointer(b), contents(made)
    if address(C) == 0:
        pass
    elif dots:
        _dots(0, 1, A, a_row, B, b_col, C, n, m, n, k, C, 0, 0.0)
    elif m == 1:
        _row(0, A, a_col, B, b_row, C, n, k, 1, C, C, 0, 0.0)
    else:
        _direct(0, 1, A, a_row, a_col, B, b_row, C, n, m, n, k, C, 0, 0.0)
    return made


@inline
def _batch_chunk(slot, chunk, per, items, way, A, a_row, a_col, a_at, B, b_row, b_col, b_at, C, m, n, k, scratch, space):
    mine = offset(scratch, slot * space)
    for i in range(chunk * per, min(items, (chunk + 1) * per)):
        a, b, c = offset(A, a_at[i]), offset(B, b_at[i]), offset(C, i * m * n)
        if way == DOTS:
            _dots(0, 1, a, a_row, b, b_col, c, n, m, n, k, c, 0, 0.0)
        elif way == DIRECT:
            _direct(0, 1, a, a_row, a_col, b, b_row, c, n, m, n, k, c, 0, 0.0)
        else:
            _few(0, 1, a, a_row, a_col, b, b_row, b_col, c, n, m, n, k, mine, space, c, 0, 0.0)


@kernel("i i i R2 L1 R2 L1 W3 W1")
def multiply_batch(pool, slots, way, a, a_at, b, b_at, c, scratch):
    """c[i] = a_i b_i, each on one thread; a, b: the first of them, a_at, b_at: elements from there to each. c: contiguous."""
    m, k = a.shape
    a_row, a_col = _strides(a)
    b_row, b_col = _strides(b)
    items, _, n = c.shape
    per = max(1, items // (8 * slots)) if pool != 0 else items
    parallel_for(pool, _batch_chunk, (items + per - 1) // per,
                 (per, items, way, pointer(a), a_row, a_col, pointer(a_at), pointer(b), b_row, b_col, pointer(b_at), pointer(c), m, n, k,
                  pointer(scratch), scratch.shape[0] // slots))


@kernel("i R2 W1")
def pack_weight(pool, b, out):
    """b's panels, for way READY."""
    k, n = b.shape
    b_row, b_col = _strides(b)
    pack_all(pool, pointer(b), b_row, b_col, k, n, pointer(out))
