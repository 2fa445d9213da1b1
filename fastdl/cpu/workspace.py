"""Scratch memory: one block per Python thread, grown when needed and used again."""

from __future__ import annotations

import threading

import numpy as np

_local = threading.local()
_KEEP = 64 << 20  # a larger block is given back after its call


def workspace(elements: int, dtype) -> np.ndarray:
    """An uninitialised one-dimensional array of at least ``elements``, aligned to 64 bytes.

    It is the calling thread's until its next call: a kernel that calls another kernel must not hold one.
    """
    nbytes = elements * dtype.itemsize + 64
    block = getattr(_local, "block", None)
    if block is None or block.nbytes < nbytes:
        block = np.empty(nbytes, np.uint8)
        if nbytes <= _KEEP:
            _local.block = block
    start = -block.ctypes.data % 64
    return block[start : start + elements * dtype.itemsize].view(dtype)
