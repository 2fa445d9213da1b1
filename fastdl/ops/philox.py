"""The random bits of dropout, in plain numpy: Philox 4x32-10. ``cpu/philox.py`` is the same on vectors.

A word of 32 bits is a function of a key (the seed: its low and high half), of the element's index i and of a stream (which
keeps several masks of one seed apart) and of nothing else: not of threads, vector width, layout or dtype. The counter is

    ((i // 64) * 16 + i % 16, its high half, stream, 0)    and element i takes its word (i // 16) % 4,

so 16 counters serve 64 elements and vectors of 2, 4, 8 or 16 lanes all find their words side by side.

Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEPS = 0x9E3779B9, 0xBB67AE85


def philox(counter, key):
    """The four words of each counter. counter: four uint64 arrays (or numbers) of 32-bit words. key: two integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for r in range(10):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (b >> _HALF) ^ c1 ^ np.uint64((k0 + r * _STEPS[0]) & 0xFFFFFFFF), b & _LOW, \
            (a >> _HALF) ^ c3 ^ np.uint64((k1 + r * _STEPS[1]) & 0xFFFFFFFF), a & _LOW
    return c0, c1, c2, c3


def words(n: int, seed: int, stream: int = 0) -> np.ndarray:
    """The words of elements 0 to n - 1, uint32."""
    counter = np.arange(-(-n // 64) * 16, dtype=np.uint64)
    zero = np.zeros_like(counter)
    found = philox((counter & _LOW, counter >> _HALF, zero + np.uint64(stream), zero), key_of(seed))
    return np.stack([w.reshape(-1, 16) for w in found], axis=1).reshape(-1)[:n].astype(np.uint32)


def key_of(seed: int) -> tuple[int, int]:
    return seed & 0xFFFFFFFF, seed >> 32


def threshold(p: float) -> int:
    """The words from this on stay, where a share of p is dropped."""
    return min(int(p * 2**32), 2**32 - 1)


def factors(shape, p: float, seed: int, stream: int = 0, dtype=np.float32) -> np.ndarray:
    """What dropout multiplies elements by: 0 with probability p, else 1 / (1 - p)."""
    keep = words(int(np.prod(shape)), seed, stream) >= np.uint32(threshold(p))
    return keep.reshape(shape) * np.dtype(dtype).type(scale(p))


def scale(p: float) -> float:
    return 0.0 if p == 1 else 1 / (1 - p)
