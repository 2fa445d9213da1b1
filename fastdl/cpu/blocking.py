"""Block sizes of a matrix product, from the machine's caches.

A packed panel of b, KC x one tile's columns, stays in L1 while a block of a passes it; that block, MC x KC, stays in L2
while all panels pass; the panels together, KC x NC, stay in the last-level cache. Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", ACM TOMS 34 (2008). Sizes are in elements of four bytes; float64 halves NC.
"""

from __future__ import annotations

from . import features
from .microkernel import TILE_ROWS, TILE_VECTORS

_lanes = features.vector_bits() // 32
TILE_COLUMNS_F4 = TILE_VECTORS * _lanes

# half of L1 for the panel of b: the other half takes lines of a and c
KC = max(64, min(512, features.caches()[0] // 2 // (4 * TILE_COLUMNS_F4) // 8 * 8))
# a fifth of L2 for the block of a: rows at a power-of-two stride use the sets unevenly
MC = max(TILE_ROWS, min(16 * TILE_ROWS, features.caches()[1] // 5 // (4 * KC)) // TILE_ROWS * TILE_ROWS)
NC = 3072
