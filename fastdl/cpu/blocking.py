"""Block sizes of a matrix product, from the machine's caches.

A packed panel of b, KC x one tile's columns, is reused from L1 and L2 while a block of a passes it; that block, MC x KC,
stays in L2 while all panels pass; the panels together, KC x NC, stay in the last-level cache. Goto and van de Geijn,
"Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34 (2008), give the method.
"""

from __future__ import annotations

import functools

import numpy as np

from . import features
from .microkernel import TILE_ROWS, TILE_VECTORS

LANES = {"f": features.vector_bits() // 32, "d": features.vector_bits() // 64}  # of a vector, by the kind of number
TILE_COLUMNS_F4 = TILE_VECTORS * LANES["f"]
LINE = 16  # float32 of a cache line, or float64 of two

# a panel as large as L1: c is read and written once for each KC, which from 1024 columns on costs more than streaming
# the panel from L2 (measured on Zen 3 at 1024 and 2048 cubed: 0.84 of OpenBLAS with half of it, 0.99 with this)
KC = max(64, min(1024, features.caches()[0] // (4 * TILE_COLUMNS_F4) // 8 * 8))
# a tenth of L2 for the block of a: small enough that two threads end together (two threads at 1024 cubed: 134 GFLOP/s with
# twice as much, 147 with this)
MC = max(TILE_ROWS, min(16 * TILE_ROWS, features.caches()[1] // 10 // (4 * KC)) // TILE_ROWS * TILE_ROWS)
NC = 3072

# Rows of one tile after the other: with three heights almost any number of rows is a sum of them, and none is computed in vain.
HEIGHTS = (TILE_ROWS, TILE_ROWS - 1, TILE_ROWS - 2) if TILE_ROWS < 8 else (TILE_ROWS, 9, 4)
MOST_ROWS = 1 << 10


def tiles_of_heights(sizes: tuple[int, int, int], most: int) -> np.ndarray:
    """(most + 1, 3): how many tiles of each of three heights for so many rows, with as few rows as can be computed in vain."""
    cost, count = [0.0], [np.zeros(3, np.int64)]
    for n in range(1, most + 1):
        # besides its rows a tile costs what it reads of the other operand
        total, first = min((h + 0.4 + cost[max(0, n - h)], i) for i, h in enumerate(sizes))
        cost.append(total)
        count.append(count[max(0, n - sizes[first])] + np.eye(3, dtype=np.int64)[first])
    return np.array(count)


@functools.cache
def heights() -> np.ndarray:
    """tiles_of_heights of HEIGHTS for up to MOST_ROWS rows."""
    return tiles_of_heights(HEIGHTS, MOST_ROWS)


@functools.lru_cache(maxsize=1024)
def computed(rows: int) -> int:
    """The most rows that are computed for so many, or fewer."""
    return int((heights()[: rows + 1] @ HEIGHTS).max())
