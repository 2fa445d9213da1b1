"""Gradients of weights: sums over all rows of a layer of outer products, the gradients at the gates times what the weight saw.

The gradients at the gates lie as numba_gradient.py leaves them, ``[gate][unit block][row][unit]``: as the right operand of a matrix
product whose k are the rows, in panels. What the weight saw is the left one, turned: it is copied once, as tiles read it, and
has far fewer columns than there are gates. A chunk of the work is a unit block of a gate: its sums stay in the first cache until they are
complete, then they are turned and go to the rows of the weight's gradient.

Every sum runs over the rows in the same order whatever the number of threads.
"""

from __future__ import annotations

from functools import lru_cache

from ...cpu._pool import parallel_for
from ...cpu.blocking import KC, LANES
from ...cpu.features import caches, vector_bits
from ...cpu.gemm import MIDDLE, MR, _depth, _last_tiles, _store, _tile, _tiles, part_ahead
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import TILE_ROWS
from ...cpu.simd import (
    lanes,
    load_n,
    load_rows,
    load_rows_n,
    offset,
    pointer,
    store_n,
    store_rows,
    store_rows_n,
    transpose,
    write,
)
from .numba_product import PANEL


@lru_cache(maxsize=256)
def deep_of(rows, columns, char) -> int:
    """How many rows the left operand is copied of at a time: it stays in half of the second-level cache."""
    passes = max(1, -(-rows // KC))
    pass_rows = max(1, -(-rows // passes))
    fits = caches().l2 // 2 // (vector_bits() // 8 // LANES[char]) // max(1, columns)
    return min(max(rows, 1), max(1, fits // pass_rows) * pass_rows)


@lru_cache(maxsize=256)
def scratch_size(rows, columns, panels, slots, char) -> int:
    """Elements of scratch memory; columns: of the left operand, with that of ones."""
    deep, block = deep_of(rows, columns, char), columns * PANEL * LANES[char]
    return deep * (columns + TILE_ROWS) + block * (slots if deep >= rows else panels)


# ------------------------------------------------------------------------------------------------ the left operand
@inline
def _tile_at(i, m):
    """(first row, height) of the i-th tile of m rows, in the order in which they are multiplied."""
    whole, middle, height = _tiles(m)
    if i * MR < whole:
        return i * MR, MR
    i -= whole // MR
    if i * MIDDLE < middle:
        return whole + i * MIDDLE, MIDDLE
    return whole + middle + (i - middle // MIDDLE) * height, height


@inline
def _count_tiles(m):
    whole, middle, height = _tiles(m)
    return whole // MR + (middle + MIDDLE - 1) // MIDDLE + (m - whole - middle + height - 1) // height


@inline
def _pack_chunk(slot, chunk, a, a_row, start, start_row, begin, end, columns, ones, first, deep, full, out):
    """Tile ``chunk`` of rows first to first + deep - 1, ``full`` of them at a time. Rows begin to end - 1 are a's, the others start's."""
    V, m = lanes(a), columns + ones
    column, height = _tile_at(chunk, m)
    count = min(height, columns - column)
    for p in range(0, deep, full):
        depth = min(full, deep - p)
        tile = offset(out, p * (m + MR) + column * depth)
        for r in range(depth):
            row, target = first + p + r, offset(tile, r * height)
            if row < begin:
                source = offset(start, row * start_row + column)
            elif row < end:
                source = offset(a, (row - begin) * a_row + column)
            else:
                source = offset(start, (row - end) * start_row + column)
            for j in range(0, count, V):
                store_n(target, j, load_n(source, j, count - j), count - j)
            if count < height and ones:
                write(target, count, 1)


# ------------------------------------------------------------------------------------------------ the products
@inline
def _panel_chunk(slot, chunk, left, m, d, block, first_panel, first, deep, full, add, last, c, by_slot, out, out_row, columns, hidden,
                 gates, shift, sums):
    W = PANEL * lanes(d)
    blocks = (hidden + W - 1) // W
    mine = offset(c, (slot if by_slot else chunk) * m * W)
    whole, middle, height = _tiles(m)
    for p in range(0, max(1, deep), full):
        depth = min(full, deep - p)
        tiles, panel = offset(left, p * (m + MR)), offset(d, (first_panel + chunk) * block + (first + p) * W)
        following = offset(panel, depth * W)
        for i in range(0, whole, MR):
            sums_of = _tile(depth, offset(tiles, i * depth), 1, MR, panel, W, part_ahead(following, i, depth))
            _store(sums_of, offset(mine, i * W), W, MR, W, add or p > 0)
        rest = offset(tiles, whole * depth)
        _last_tiles(depth, rest, height, panel, W, following, mine, W, whole, middle, m, W, add or p > 0, False)
    if last:
        gate, unit = (chunk // blocks + shift) % gates, chunk % blocks * W
        count = min(W, hidden - unit)
        _turn(mine, W, columns, count, offset(out, (gate * hidden + unit) * out_row), out_row)
        if m > columns:
            _copy_ones(offset(mine, columns * W), offset(sums, gate * hidden + unit), count)


@inline
def _copy_ones(source, target, count):
    for j in range(0, count, lanes(source)):
        store_n(target, j, load_n(source, j, count - j), count - j)


@inline
def _turn(c, c_row, m, n, out, out_row):
    """out (n, m) = c (m, n) turned."""
    V = lanes(c)
    for j in range(0, n, V):
        units, there = min(V, n - j), offset(out, j * out_row)
        for i in range(0, m, V):
            rows = min(V, m - i)
            if rows < V or units < V:
                store_rows_n(there, i, out_row, transpose(load_rows_n(c, i * c_row + j, c_row, rows, units)), units, rows)
            else:
                store_rows(there, i, out_row, transpose(load_rows(c, i * c_row + j, c_row)))


@kernel("i i i i i i R2 R2 i R1 i i W1 W2 W1")
def over_rows(pool, slots, hidden, first_gate, gates, shift, a, start, start_last, d, total, deep, scratch, out, sums):
    """out (gates * hidden, columns) = the sum over rows of d's gates times a's columns; sums, unless empty: of d's gates alone.

    d: of ``total`` rows, gates first_gate to first_gate + gates - 1 of it; the i-th of them is gate (i + shift) % gates of out.
    a: what the weight saw, (rows, columns), the last rows of the total or, where ``start_last``, the first. start: what stands before a
    (behind it where ``start_last``), as many rows or none. deep: deep_of's. scratch: scratch_size's. out's rows are contiguous.
    """
    ones, at_a, at_d, out_row = 1 if sums.shape[0] else 0, pointer(a), pointer(d), out.strides[0] // a.itemsize
    a_row, start_row, W = a.strides[0] // a.itemsize, start.strides[0] // a.itemsize, PANEL * lanes(pointer(d))
    rows, columns, begin = a.shape[0] + start.shape[0], a.shape[1], 0 if start_last else start.shape[0]
    m, blocks, passed = columns + ones, (hidden + W - 1) // W, 0 if start_last else total - rows
    end, full, by_slot = begin + a.shape[0], _depth(rows), 1 if deep >= rows else 0
    left = pointer(scratch)
    c = offset(left, deep * (m + MR))
    if m == 0:
        return
    for first in range(0, max(1, rows), deep):
        many, add, last = min(deep, rows - first), first > 0, first + deep >= rows
        parallel_for(pool, _pack_chunk, _count_tiles(m),
                     (at_a, a_row, pointer(start), start_row, begin, end, columns, ones, first, many, full, left))
        parallel_for(pool, _panel_chunk, gates * blocks,
                     (left, m, at_d, total * W, first_gate * blocks, passed + first, many, full, add, last, c, by_slot, pointer(out),
                      out_row, columns, hidden, gates, shift, pointer(sums)))
