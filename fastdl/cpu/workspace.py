"""Scratch memory: one block per Python thread, grown when needed and used again."""

from __future__ import annotations

import threading

import numpy as np

KINDS = "fd"
NOTHING = {char: np.empty(0, char) for char in KINDS}  # what a kernel is given where it needs none

_local = threading.local()  # the block, seen as elements of each kind
_KEEP = 64 << 20  # a larger block is given back after its call


def workspace(elements: int, dtype) -> np.ndarray:
    """An uninitialised one-dimensional array of at least ``elements``, aligned to 64 bytes.

    It is the calling thread's until its next call: a kernel that calls another kernel must not hold one.
    """
    view = getattr(_local, dtype.char, None)
    if view is None or view.size < elements:
        view = _grown(elements * dtype.itemsize, dtype)
    return view[:elements]


def aligned(elements: int, dtype) -> np.ndarray:
    """A new uninitialised one-dimensional array, aligned to 64 bytes."""
    return _aligned_bytes(elements * dtype.itemsize).view(dtype)[:elements]


def _aligned_bytes(nbytes):
    """At least so many, in whole multiples of 8."""
    memory = np.empty(nbytes + 64 + -nbytes % 8, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes + -nbytes % 8]


def _grown(nbytes, dtype):
    block = _aligned_bytes(nbytes)
    if nbytes <= _KEEP:
        for char in KINDS:
            setattr(_local, char, block.view(char))
    return block.view(dtype)
