"""Operands of a matrix product copied into the order in which register tiles read them.

b is cut into panels of one tile's columns, a into panels of one tile's rows; in each, k follows k.
"""

from __future__ import annotations

from .jit import inline
from .microkernel import TILE_VECTORS
from .simd import (
    lanes,
    load,
    load_n,
    load_rows,
    load_rows_n,
    offset,
    prefetch,
    read,
    store,
    store_n,
    store_rows,
    store_rows_n,
    transpose,
    write,
)

GROUP = 4  # panels of b that are copied together
MOST_TOGETHER = 8  # panels of a
AHEAD = 8  # rows of b that are asked for before they are copied: each may be a page of its own


def panel_elements(n: int, k: int, lanes: int) -> int:
    """How many elements all panels of b take."""
    width = TILE_VECTORS * lanes
    return -(-n // width) * width * k


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
def pack_panels(b, b_row, b_col, k, n, out):
    """Copy b's first n columns to as many panels as they take.

    GROUP of them at a time where b's rows are contiguous: these may be pages apart, and begin amid a cache line.
    """
    width = TILE_VECTORS * lanes(b)
    j = 0
    while b_col == 1 and j + GROUP * width <= n:
        for p in range(k):
            for q in range(GROUP):
                prefetch(b, (p + AHEAD) * b_row + j + q * width)
            prefetch(b, (p + AHEAD) * b_row + j + GROUP * width - 1)
            for q in range(GROUP):
                for v in range(0, width, lanes(b)):
                    store(out, (j + q * width) * k + p * width + v, load(b, p * b_row + j + q * width + v))
        j += GROUP * width
    while j < n:
        pack_panel(offset(b, j * b_col), b_row, b_col, k, n - j, offset(out, j * k))
        j += width


@inline
def _pack_columns(a, a_col, k, height, count, last, out):
    """Whole panels of rows together, where a's columns are contiguous: these may be pages apart, and begin amid a cache line. Where
    they lie a power of two apart, a line would be gone by the time the next panel wants its other half."""
    V = lanes(a)
    for p in range(k):
        for q in range(0, count * height, lanes(a)):
            prefetch(a, (p + AHEAD) * a_col + q)
        for q in range(count):
            row = offset(out, q * height * k + p * height)
            for g in range(last + 1):
                at = p * a_col + q * height + g * V
                if g < last:
                    store(row, g * V, load(a, at))
                else:
                    store_n(row, g * V, load_n(a, at, height - g * V), height - g * V)


@inline
def pack_rows(a, a_row, a_col, m, k, height, out):
    """Copy a block of a to panels of ``height`` rows, k after k. What stands where a panel's last rows are missing is anything.

    Vectors longer than a panel's row run over into the next row, which is written after it: hence the slack behind the last.
    """
    V = lanes(a)
    last = (height + V - 1) // V - 1  # vector of a panel's row
    i = 0
    while a_row == 1 and i + height <= m:
        together = min(MOST_TOGETHER, (m - i) // height)
        _pack_columns(offset(a, i), a_col, k, height, together, last, offset(out, i * k))
        i += together * height
    while i < m:
        panel, rows = offset(out, i * k), offset(a, i * a_row)
        count = min(height, m - i)
        if a_col == 1:
            p = 0
            while p < k:
                n = min(V, k - p)
                for g in range(last, -1, -1):
                    turned = transpose(load_rows_n(rows, g * V * a_row + p, a_row, count - g * V, n))
                    store_rows_n(panel, p * height + g * V, height, turned, n, V)
                p += V
        elif a_row == 1:
            for p in range(k):
                for g in range(last + 1):
                    store(panel, p * height + g * V, load_n(rows, p * a_col + g * V, count - g * V))
        else:
            for p in range(k):
                for r in range(count):
                    write(panel, p * height + r, read(rows, r * a_row + p * a_col))
        i += height
