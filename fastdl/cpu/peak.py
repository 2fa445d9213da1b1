"""What the machine can do at most, measured: the yardstick for kernels."""

from __future__ import annotations

import time

import numpy as np

from . import parallel
from ._pool import parallel_for
from .features import vector_bits
from .jit import inline, kernel
from .microkernel import TILE_ROWS, TILE_VECTORS, outer_tile, store_tile
from .simd import lanes, load, offset, pointer, store

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


@inline
def _copy_chunk(slot, chunk, size, source, target):
    p, q = offset(source, chunk * size), offset(target, chunk * size)
    for i in range(0, size, lanes(p)):
        store(q, i, load(p, i))


@kernel("i R1 W1 i", "f")
def copy_pieces(pool, source, target, size):
    """Whole pieces of ``size`` elements, a multiple of a vector's, shared by threads."""
    parallel_for(pool, _copy_chunk, source.size // size, (size, pointer(source), pointer(target)))


def copy_rate(megabytes: int = 256, seconds: float = 0.3) -> float:
    """Bytes a second, read and written, of a copy by all threads from one array of that size to another, the best of ``seconds``."""
    piece = 1 << 16
    source, target = (np.ones((megabytes << 20) // 4 // piece * piece, np.float32) for _ in range(2))
    run, pool = copy_pieces["f"], parallel.pool()
    run(pool, source, target, piece)  # code is loaded, threads are awake
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.perf_counter()
        run(pool, source, target, piece)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best
