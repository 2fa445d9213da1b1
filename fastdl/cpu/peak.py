"""What a core can do at most, measured: the yardstick for kernels."""

from __future__ import annotations

import time

import numpy as np

from .features import vector_bits
from .jit import kernel
from .microkernel import TILE_ROWS, TILE_VECTORS, outer_tile, store_tile
from .simd import lanes, pointer

_DEPTH = 128
_tile, _store = outer_tile(TILE_ROWS, TILE_VECTORS), store_tile(TILE_ROWS, TILE_VECTORS)


@kernel("R1 R1 W1 i")
def register_tiles(a, b, c, times):
    """The tile that fills the registers, again and again on the same data in L1."""
    width = TILE_VECTORS * lanes(pointer(b))
    for _ in range(times):
        _store(_tile(_DEPTH, pointer(a), _DEPTH, 1, pointer(b), width, 0), pointer(c), width, TILE_ROWS, width, True)


def fma_peak(char: str = "f", seconds: float = 0.3) -> float:
    """Floating-point operations a second of one core (two for each multiply-add), the best of ``seconds``."""
    width = TILE_VECTORS * vector_bits() // (8 * np.dtype(char).itemsize)
    a, b, c = (np.zeros(n, char) for n in (TILE_ROWS * _DEPTH, _DEPTH * width, TILE_ROWS * width))
    run = register_tiles[char]
    times, best, end = 200, 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run(a, b, c, times)
        best = max(best, 2 * times * _DEPTH * TILE_ROWS * width / (time.perf_counter() - start))
    return best

