"""Block sizes of a matrix product, from the machine's caches.

A packed panel of b, KC x one tile's columns, is reused from L1 and L2 while a block of a passes it; that block, MC x KC,
stays in L2 while all panels pass; the panels together, KC x NC, stay in the last-level cache. Goto and van de Geijn,
"Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34 (2008), give the method.
"""

from __future__ import annotations

from . import features
from .microkernel import TILE_ROWS, TILE_VECTORS

LANES = {"f": features.vector_bits() // 32, "d": features.vector_bits() // 64}  # of a vector, by the kind of number
TILE_COLUMNS_F4 = TILE_VECTORS * LANES["f"]

# a panel as large as L1: c is read and written once for each KC, which from 1024 columns on costs more than streaming
# the panel from L2 (measured on Zen 3 at 1024 and 2048 cubed: 0.84 of OpenBLAS with half of it, 0.99 with this)
KC = max(64, min(1024, features.caches()[0] // (4 * TILE_COLUMNS_F4) // 8 * 8))
# a tenth of L2 for the block of a: small enough that two threads end together (two threads at 1024 cubed: 134 GFLOP/s with
# twice as much, 147 with this)
MC = max(TILE_ROWS, min(16 * TILE_ROWS, features.caches()[1] // 10 // (4 * KC)) // TILE_ROWS * TILE_ROWS)
NC = 3072
