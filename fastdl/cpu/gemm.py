"""The matrix product c = a b (or c += a b) on strided operands: what matmul, convolutions and recurrent layers share.

c has contiguous rows; a and b have any strides. Three ways, the caller chooses:

* :func:`multiply_dots`: both operands contiguous along k (a times a transposed weight): nothing is packed;
* :func:`multiply_direct`: b has contiguous rows: b is read in place, a through any strides;
* :func:`multiply_packed`: panels of b are copied once into the order in which tiles read them, then blocks of a's rows pass
  over them; a is read in place where its rows are contiguous, packed otherwise. Any strides.

Every sum runs over k in the same order whatever the number of threads.
"""

from __future__ import annotations

from ._pool import parallel_for
from .blocking import KC, MC, NC
from .jit import inline
from .microkernel import TILE_ROWS, TILE_VECTORS, dot_tile, outer_tile, store_scalars, store_tile
from .simd import lanes, load, load_n, load_rows, offset, prefetch, read, store, store_n, store_rows, transpose, write

MR = TILE_ROWS
PITCH = KC + 16  # of copied rows of a: rows a power of two apart would share a few sets of the caches


def packed_elements(n: int, k: int, slots: int, lanes: int) -> int:
    """How many elements of scratch memory multiply_packed needs."""
    width = TILE_VECTORS * lanes
    columns = -(-min(n, NC) // width) * width
    return min(k, KC) * columns + slots * MC * PITCH


# ------------------------------------------------------------------------------------------------ packing
@inline
def pack_panel(b, b_row, b_col, k, n, out):
    """Copy b's first n columns (at most one tile's) to rows of one tile's columns, zeros after them."""
    V = lanes(b)
    width = TILE_VECTORS * V
    if b_col == 1 and n >= width:
        for p in range(k):
            for j in range(TILE_VECTORS):
                store(out, p * width + j * V, load(b, p * b_row + j * V))
    elif b_col == 1:
        for p in range(k):
            for j in range(TILE_VECTORS):
                store(out, p * width + j * V, load_n(b, p * b_row + j * V, n - j * V))
    elif b_row == 1:
        for j in range(TILE_VECTORS):
            rest = n - j * V
            p = 0
            if rest >= V:
                while p + V <= k:
                    store_rows(out, p * width + j * V, width, transpose(load_rows(b, j * V * b_col + p, b_col)))
                    p += V
            while p < k:
                for c in range(V):
                    write(out, p * width + j * V + c, read(b, p + (j * V + c) * b_col) if c < rest else 0.0)
                p += 1
    else:
        for p in range(k):
            for c in range(width):
                write(out, p * width + c, read(b, p * b_row + c * b_col) if c < n else 0.0)


@inline
def pack_rows(a, a_row, a_col, m, k, out):
    """Copy a block of a to panels of one tile's rows, k after k, zeros after its last row."""
    for i in range(0, m, MR):
        panel = offset(out, i * k)
        count = min(MR, m - i)
        if count == MR:
            for p in range(k):
                for r in range(MR):
                    write(panel, p * MR + r, read(a, (i + r) * a_row + p * a_col))
        else:
            for p in range(k):
                for r in range(MR):
                    write(panel, p * MR + r, read(a, (i + r) * a_row + p * a_col) if r < count else 0.0)


# ------------------------------------------------------------------------------------------------ packed
_tile = outer_tile(TILE_ROWS, TILE_VECTORS)
_store = store_tile(TILE_ROWS, TILE_VECTORS)


@inline
def _pack_chunk(slot, chunk, b, b_row, b_col, k, n, packed):
    width = TILE_VECTORS * lanes(b)
    pack_panel(offset(b, chunk * width * b_col), b_row, b_col, k, n - chunk * width, offset(packed, chunk * width * k))


@inline
def copy_rows(a, a_row, m, k, out):
    """Copy rows that are contiguous to PITCH apart, zeros up to a whole number of tiles."""
    V = lanes(a)
    for i in range(m):
        p = 0
        while p + V <= k:
            store(out, i * PITCH + p, load(a, i * a_row + p))
            p += V
        if p < k:
            store_n(out, i * PITCH + p, load_n(a, i * a_row + p, k - p), k - p)
    for i in range(m, (m + MR - 1) // MR * MR):
        for p in range(k):
            write(out, i * PITCH + p, 0.0)


@inline
def _rows_chunk(slot, chunk, rows, a, a_row, a_col, packed, c, c_row, m, n, k, add, scratch):
    """One block of c's rows against all packed panels."""
    width = TILE_VECTORS * lanes(packed)
    first = chunk * rows
    count = min(rows, m - first)
    block = offset(a, first * a_row)
    target = offset(c, first * c_row)
    mine = offset(scratch, slot * (MC * PITCH))
    # what a tile reads in place: whole tiles of contiguous rows, unless enough panels pass them to pay for a better place
    in_place = count - count % MR if a_col == 1 and n < 8 * width and a_row % 256 != 0 else 0
    rest = offset(block, in_place * a_row)
    row, step = PITCH, 1
    if a_col == 1:
        copy_rows(rest, a_row, count - in_place, k, mine)
    else:
        pack_rows(rest, a_row, a_col, count, k, mine)
        row, step = 1, MR
    panel_rows = PITCH if a_col == 1 else k
    for j in range(0, n, width):
        panel = offset(packed, j * k)
        for i in range(0, in_place, MR):
            for r in range(MR):
                prefetch(target, (i + r) * c_row + j)
            _store(_tile(k, offset(block, i * a_row), a_row, 1, panel, width, 0), offset(target, i * c_row + j), c_row, MR, n - j, add)
        for i in range(in_place, count, MR):
            for r in range(MR):  # c comes from far, and its rows are pages apart: ask now, add when the sums are done
                prefetch(target, (i + r) * c_row + j)
            sums = _tile(k, offset(mine, (i - in_place) * panel_rows), row, step, panel, width, 0)
            _store(sums, offset(target, i * c_row + j), c_row, count - i, n - j, add)


@inline
def multiply_packed(pool, slots, a, a_row, a_col, b, b_row, b_col, c, c_row, m, n, k, add, workspace):
    """workspace: packed_elements(n, k, slots, lanes) elements."""
    width = TILE_VECTORS * lanes(b)
    depth_blocks = max(1, (k + KC - 1) // KC)
    full_depth = (k + depth_blocks - 1) // depth_blocks
    columns_packed = (min(n, NC) + width - 1) // width * width
    scratch = offset(workspace, full_depth * columns_packed)
    rows = min(MC, max(MR, ((m + slots - 1) // slots + MR - 1) // MR * MR))
    for j in range(0, n, NC):
        columns = min(NC, n - j)
        for p in range(0, max(k, 1), max(full_depth, 1)):
            depth = min(full_depth, k - p)
            parallel_for(
                pool,
                _pack_chunk,
                (columns + width - 1) // width,
                (offset(b, p * b_row + j * b_col), b_row, b_col, depth, columns, workspace),
            )
            parallel_for(
                pool,
                _rows_chunk,
                (m + rows - 1) // rows,
                (rows, offset(a, p * a_col), a_row, a_col, workspace, offset(c, j), c_row, m, columns, depth, add or p > 0, scratch),
            )


# ------------------------------------------------------------------------------------------------ b in place
def _rows_in_place(rows, vectors):
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


_many_rows = _rows_in_place(TILE_ROWS, TILE_VECTORS)
_four_rows = _rows_in_place(4, TILE_VECTORS)
_one_row = _rows_in_place(1, 8)


@inline
def _direct_chunk(slot, chunk, width, a, a_row, a_col, b, b_row, c, c_row, m, n, k, add):
    """All rows of c for one range of columns."""
    first = chunk * width
    last = min(n, first + width)
    i = 0
    while i + MR <= m:
        _many_rows(k, offset(a, i * a_row), a_row, a_col, b, b_row, offset(c, i * c_row), c_row, first, last, add)
        i += MR
    while i + 4 <= m:
        _four_rows(k, offset(a, i * a_row), a_row, a_col, b, b_row, offset(c, i * c_row), c_row, first, last, add)
        i += 4
    while i < m:
        _one_row(k, offset(a, i * a_row), a_row, a_col, b, b_row, offset(c, i * c_row), c_row, first, last, add)
        i += 1


@inline
def multiply_direct(pool, slots, a, a_row, a_col, b, b_row, c, c_row, m, n, k, add):
    """b's columns must be contiguous (b_col == 1)."""
    V = lanes(b)
    width = max(8 * V, ((n + 4 * slots - 1) // (4 * slots) + 8 * V - 1) // (8 * V) * (8 * V)) if pool != 0 else n
    if n > 0:
        parallel_for(pool, _direct_chunk, (n + width - 1) // width, (width, a, a_row, a_col, b, b_row, c, c_row, m, n, k, add))


# ------------------------------------------------------------------------------------------------ dot products
_dot_43, _dot_41, _dot_14, _dot_11 = dot_tile(4, 3), dot_tile(4, 1), dot_tile(1, 4), dot_tile(1, 1)


@inline
def _dots_chunk(slot, chunk, width, a, a_row, b, b_col, c, c_row, m, n, k):
    first = chunk * width
    last = min(n, first + width)
    many = m - m % 4
    j = first
    while j + 3 <= last:
        for i in range(0, many, 4):
            store_scalars(
                _dot_43(k, offset(a, i * a_row), a_row, offset(b, j * b_col), b_col), offset(c, i * c_row + j), c_row, 1, 3, False
            )
        j += 3
    while j < last:
        for i in range(0, many, 4):
            store_scalars(
                _dot_41(k, offset(a, i * a_row), a_row, offset(b, j * b_col), b_col), offset(c, i * c_row + j), c_row, 1, 1, False
            )
        j += 1
    for i in range(many, m):
        j = first
        while j + 4 <= last:
            store_scalars(_dot_14(k, offset(a, i * a_row), 0, offset(b, j * b_col), b_col), offset(c, i * c_row + j), c_row, 1, 4, False)
            j += 4
        while j < last:
            store_scalars(_dot_11(k, offset(a, i * a_row), 0, offset(b, j * b_col), b_col), offset(c, i * c_row + j), c_row, 1, 1, False)
            j += 1


@inline
def multiply_dots(pool, slots, a, a_row, b, b_col, c, c_row, m, n, k):
    """a's and b's k must be contiguous (a_col == 1, b_row == 1)."""
    width = max(12, ((n + 4 * slots - 1) // (4 * slots) + 11) // 12 * 12) if pool != 0 else n
    if n > 0:
        parallel_for(pool, _dots_chunk, (n + width - 1) // width, (width, a, a_row, b, b_col, c, c_row, m, n, k))
