"""Scratch memory: one block per Python thread, grown when needed and used again."""

from __future__ import annotations

import threading

import numpy as np

NOTHING = {char: np.empty(0, char) for char in "fd"}  # what a kernel is given where it needs none

_local = threading.local()
_KEEP = 64 << 20  # a larger block is given back after its call


def workspace(elements: int, dtype) -> np.ndarray:
    """An uninitialised one-dimensional array of at least ``elements``, aligned to 64 bytes.

    It is the calling thread's until its next call: a kernel that calls another kernel must not hold one.
    """
    nbytes = elements * dtype.itemsize
    block = getattr(_local, "block", None)
    if block is None or block.nbytes < nbytes:
        block = _aligned(nbytes)
        if nbytes <= _KEEP:
            _local.block = block
    return block[:nbytes].view(dtype)


def _aligned(nbytes):
    memory = np.empty(nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes]
