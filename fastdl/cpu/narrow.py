"""The matrix product of a and a b of few columns: dot products of a's rows, as they lie, with b's columns.

Tiles of columns would be mostly empty, and a copy of a, of which each number is used a few times only, would cost as much as the product.
So b is turned, once, and stays in a core's caches; some rows of a at a time meet all of it, and flow from memory once and in order.
"""

from __future__ import annotations

from . import features
from ._pool import parallel_for
from .dot_tiles import dot_tile, store_scalars
from .jit import inline
from .simd import lanes, load_rows_n, offset, store_rows_n, transpose

ROWS, COLUMNS = (4 if features.registers() >= 32 else 3), 4  # of a tile
DEPTH = 1024  # of k at a time: so many of ROWS rows stay in L1 while all columns pass
_AHEAD = 1024  # bytes of a row that are asked for before they are read
_first, _tile = dot_tile(COLUMNS, ROWS, ahead=_AHEAD), dot_tile(COLUMNS, ROWS)
_column = dot_tile(1, ROWS)
_row, _one = dot_tile(COLUMNS, 1), dot_tile(1, 1)


def turned_row(k: int) -> int:
    """Elements from one of b's columns to the next, where they are turned: not a power of two, whose lines share a few sets of a cache."""
    return -(-k // 16) * 16 + 16


@inline
def turn(b, b_row, k, n, out, out_row):
    """out[j * out_row + p] = b[p * b_row + j]; n <= lanes."""
    V = lanes(b)
    for p in range(0, k, V):
        count = min(V, k - p)
        store_rows_n(out, p, out_row, transpose(load_rows_n(b, p * b_row, b_row, count, n)), n, count)


def narrow_products(finish):
    """``narrow``, with the last step ``finish`` of gemm.products."""

    @inline
    def chunk_of_rows(slot, chunk, per, a, a_row, b, b_col, c, c_row, m, n, k, x, y, z):
        first = chunk * per
        last = min(m, first + per)
        many = n - n % COLUMNS
        i = first
        while i < last:
            step = ROWS if i + ROWS <= last else 1
            for p in range(0, max(k, 1), DEPTH):
                depth = min(DEPTH, k - p)
                left, add = offset(a, i * a_row + p), p > 0
                for j in range(0, many, COLUMNS):
                    columns, there = offset(b, j * b_col + p), offset(c, i * c_row + j)
                    if step == 1:
                        store_scalars(_row(depth, columns, b_col, left, 0), there, 1, c_row, 1, add)
                    elif j == 0:
                        store_scalars(_first(depth, columns, b_col, left, a_row), there, 1, c_row, ROWS, add)
                    else:
                        store_scalars(_tile(depth, columns, b_col, left, a_row), there, 1, c_row, ROWS, add)
                for j in range(many, n):
                    columns, there = offset(b, j * b_col + p), offset(c, i * c_row + j)
                    if step == 1:
                        store_scalars(_one(depth, columns, 0, left, 0), there, 1, c_row, 1, add)
                    else:
                        store_scalars(_column(depth, columns, 0, left, a_row), there, 1, c_row, ROWS, add)
            i += step
        if y:
            finish(offset(c, first * c_row), c_row, last - first, n, first, 0, x, y, z)

    @inline
    def narrow(pool, slots, a, a_row, b, b_row, b_col, c, c_row, m, n, k, scratch, scratch_row, x, y, z):
        """a's rows are contiguous; b's columns, or its rows, and it has ``lanes`` columns at most. scratch: n * scratch_row elements."""
        columns, apart = b, b_col
        if b_row != 1:
            turn(b, b_row, k, n, scratch, scratch_row)
            columns, apart = scratch, scratch_row
        per = m if pool == 0 else max(ROWS, (m + 4 * slots - 1) // (4 * slots) // ROWS * ROWS)
        if m > 0:
            parallel_for(pool, chunk_of_rows, (m + per - 1) // per,
                         (per, a, a_row, columns, apart, c, c_row, m, n, k, x, y, z))

    return narrow
