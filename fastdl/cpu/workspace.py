"""Scratch memory: one block per Python thread, grown when needed and used again; and blocks for what outlives a call."""

from __future__ import annotations

import math
import mmap
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
    """A new uninitialised one-dimensional array, aligned to 64 bytes: for what is kept and read again and again."""
    nbytes = elements * dtype.itemsize
    memory = _on_large_pages(nbytes) if nbytes >= _MANY else None
    return (_aligned_bytes(nbytes) if memory is None else memory).view(dtype)[:elements]


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


# ------------------------------------------------------------------------------------------------ weights that kernels keep
# A core that reads 1 MB in order, again and again, does so at 208 GB/s where it lies in one page of 2 MB, and at 172 where it
# lies in pages of 4 KB, at whose ends prefetching stops; a second-level cache of 1 MB is then used to the full, too.
_PAGE = 2 << 20
_MANY = 1 << 18  # bytes from which on it matters
_rest = np.empty(0, np.uint8)  # what nobody has of a page that several share
_pages_lock = threading.Lock()


def _on_large_pages(nbytes):
    """At least so many bytes, in whole multiples of 64; None where the system has no large pages. What is less than a page shares one."""
    global _rest
    nbytes = -(-nbytes // 64) * 64
    if nbytes >= _PAGE:
        return _large_pages(nbytes)
    if not _pages_lock.acquire(blocking=False):
        return None
    try:
        if _rest.size < nbytes:
            page = _large_pages(_PAGE)
            if page is None:
                return None
            _rest = page
        taken, _rest = _rest[:nbytes], _rest[nbytes:]
        return taken
    finally:
        _pages_lock.release()


def _large_pages(nbytes):
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    memory = mmap.mmap(-1, -(-nbytes // _PAGE) * _PAGE + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found = np.frombuffer(memory, np.uint8)
    start = -found.ctypes.data % _PAGE
    try:
        memory.madvise(mmap.MADV_HUGEPAGE, start, (nbytes + _PAGE // 2) // _PAGE * _PAGE)  # the last one where half of it is used
    except OSError:  # a kernel without them
        return None
    return found[start:start + nbytes]


# ------------------------------------------------------------------------------------------------ what outlives a call
# Memory that a C library gives back to the system is zeroed page by page when it comes again: a training step of an LSTM
# (29 steps, batch 32, 128 units) took 4.1 ms with new memory for its gates and 2.2 with the last step's.
_FEW = 1 << 16  # bytes: the C library keeps these itself
_idle: list[np.ndarray] = []  # blocks that nobody uses, the last used last
_idle_bytes = 0
_lock = threading.Lock()


class _Block(np.ndarray):
    """Memory of a class of its own: numpy would make it the base of a view of its view otherwise, past the loan."""


class _Loan(np.ndarray):
    """A block while somebody uses it: the base of the array that was handed out, and of its views."""

    def __del__(self):
        global _idle_bytes
        block = self.base
        if type(block) is _Block and _lock is not None and _lock.acquire(blocking=False):  # a collection may run within the lock
            try:
                _idle.append(block)
                _idle_bytes += block.size
                while _idle_bytes > _KEEP:
                    _idle_bytes -= _idle.pop(0).size
            finally:
                _lock.release()


def recycled(shape, dtype) -> np.ndarray:
    """A new uninitialised array (shape: a tuple, or a number of elements), whose memory is used again when it is gone.

    From 64 KB on it is aligned to 64 bytes."""
    global _idle_bytes
    nbytes = (shape if type(shape) is int else math.prod(shape)) * dtype.itemsize
    if nbytes < _FEW:
        return np.empty(shape, dtype)
    block = None
    if _lock.acquire(blocking=False):
        try:
            most = nbytes + nbytes // 4
            for i in range(len(_idle) - 1, -1, -1):
                if nbytes <= _idle[i].size <= most:
                    block = _idle.pop(i)
                    _idle_bytes -= block.size
                    break
        finally:
            _lock.release()
    if block is None:
        block = _aligned_bytes(nbytes).view(_Block)
    return np.ndarray(shape, dtype, block.view(_Loan))


def forget_idle() -> None:
    """Give back the memory that waits to be used again."""
    global _idle_bytes
    with _lock:
        _idle.clear()
        _idle_bytes = 0
