"""Rows of a times a b that is read where it lies: what gemm.py does for few rows of c, and for one."""

from __future__ import annotations

from .jit import inline
from .microkernel import TILE_ROWS, TILE_VECTORS, outer_tile, row_tile, store_tile
from .simd import broadcast, fma, lanes, load, load_n, offset, splat, store, store_n


def rows_in_place(rows, vectors):
    """``run(k, a, a_row, a_col, b, b_row, c, c_row, first, last, add)``: ``rows`` rows of c, columns first to last."""
    whole, store_whole = outer_tile(rows, vectors), store_tile(rows, vectors)
    edge, store_edge = outer_tile(rows, 1, masked=True, unroll=2), store_tile(rows, 1)

    @inline
    def run(k, a, a_row, a_col, b, b_row, c, c_row, first, last, add):
        V = lanes(b)
        j = first
        while j + vectors * V <= last:
            store_whole(whole(k, a, a_row, a_col, offset(b, j), b_row, 0), offset(c, j), c_row, rows, vectors * V, add)
            j += vectors * V
        while j < last:
            n = last - j
            store_edge(edge(k, a, a_row, a_col, offset(b, j), b_row, n), offset(c, j), c_row, rows, n, add)
            j += V

    return run


many_rows = rows_in_place(TILE_ROWS, TILE_VECTORS)
four_rows = rows_in_place(4, TILE_VECTORS)
one_row = rows_in_place(1, 8)

STREAMS = 4  # rows of b that a single row of a takes at a time: as many as flow from memory side by side
MOST_SUMS = 1 << 18  # sums of all parts of b's rows: 2 MB at most
ROW_BLOCK = 1024  # vectors of c in one pass over some rows of b: they stay in L1
_repeat, _add_rows = row_tile(STREAMS)


def row_parts(n: int, k: int, itemsize: int) -> int:
    """Into how many parts ``row`` cuts b's rows: threads share memory best in long pieces, and sums must not depend on them."""
    return max(1, min(8, k // 64, n * k * itemsize >> 18, MOST_SUMS // max(1, n)))


@inline
def row_times(a, a_col, b, b_row, c, first, last, k):
    """One row of c, columns first to last: c = a b. STREAMS rows of b flow side by side."""
    V = lanes(b)
    zero = splat(c, 0.0)
    if k < STREAMS:
        for j in range(first, last, V):
            store_n(c, j, zero, last - j)
    p = 0
    while p + STREAMS <= k:
        x, rows = _repeat(offset(a, p * a_col), a_col), offset(b, p * b_row)
        j = first
        while j + 2 * V <= last:
            s, t = (load(c, j), load(c, j + V)) if p > 0 else (zero, zero)
            s, t = _add_rows(s, x, rows, b_row, j), _add_rows(t, x, rows, b_row, j + V)
            store(c, j, s)
            store(c, j + V, t)
            j += 2 * V
        while j < last:
            n = last - j
            v = load_n(c, j, n) if p > 0 else zero
            for i in range(STREAMS):
                v = fma(broadcast(a, (p + i) * a_col), load_n(rows, i * b_row + j, n), v)
            store_n(c, j, v, n)
            j += V
        p += STREAMS
    while p < k:
        x = broadcast(a, p * a_col)
        for j in range(first, last, V):
            n = last - j
            store_n(c, j, fma(x, load_n(b, p * b_row + j, n), load_n(c, j, n)), n)
        p += 1
