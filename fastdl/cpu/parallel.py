"""The thread pool: one for the whole library.

Compiled code says ``parallel_for(pool, body, n, (a, b, ...))``: ``body(slot, i, a, b, ...)`` runs for i in 0..n-1, each
once, on whichever thread takes it; slot is that thread's number below ``get_num_threads()``, for scratch memory. The
caller starts at once and takes chunks until none is left; workers that are awake help; nobody waits for a sleeper.
Bodies write to places of their own, so the answer does not depend on who ran what.

``pool()`` is what Python code passes to a kernel: the pool's address, or 0 where the work is to run on the caller alone.
If another thread is using the pool, or the caller is itself a chunk, the work runs on the caller: never a deadlock.

The state is a block of words in memory that workers read (no Python object is touched by a worker):
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import numpy as np

# words of the state, one to a cache line of 64 bytes where threads contend for them
_RUN = 0  # address of pool_run
_LOCK = 8  # 1 while a caller owns the pool
_OPEN = 16  # 1 while chunks of the current job may be taken
_ACTIVE = 24  # workers inside the current job
_NEXT = 32  # the next chunk
_FUNCTION, _CONTEXT, _COUNT = 40, 41, 42  # the job
_EPOCH = 48  # counts jobs: what spinning and sleeping workers watch
_SLEEPERS = 56
_STOP = 64
_SPIN = 65  # cycles that a worker spins before it sleeps
_SLOTS = 72  # the next worker's number
_WORDS = 80

_state: np.ndarray | None = None
_address = 0  # of the state, 0 until it is made
_threads: list = []  # the workers' pthread_t
_wanted: int | None = None
_started = 0
_making = threading.Lock()


def get_num_threads() -> int:
    """How many threads a kernel may use, the calling one included."""
    global _wanted
    if _wanted is None:
        from . import features

        chosen = os.environ.get("FASTDL_NUM_THREADS")
        if chosen is None:
            _wanted = features.available_cores()
        else:
            if not chosen.isdigit() or int(chosen) < 1:
                raise ValueError(f"FASTDL_NUM_THREADS is {chosen!r}; the rule is an integer of at least 1")
            _wanted = int(chosen)
    return _wanted


def set_num_threads(n: int) -> None:
    """Let kernels use n threads, the calling one included; may be changed at any time.

    Results do not depend on it. Raises TypeError or ValueError where n is not an integer of at least 1.
    """
    global _wanted
    from ..check import integer

    n = integer("set_num_threads", "n", n, 1)
    with _making:
        if n != _wanted:
            _stop_workers()
        _wanted = n


def pool() -> int:
    """The running pool's address for a kernel's ``pool`` argument; 0 with one thread."""
    if _started:
        return _address
    if get_num_threads() == 1:
        return 0
    return _start()


def _start() -> int:
    global _state, _address, _started
    from ._pool import calibrate, pool_run, worker_main

    with _making:
        if _started:
            return _address
        n = get_num_threads()
        if n == 1:
            return 0
        if _state is None:
            _state = np.zeros(_WORDS + 8, np.int64)
            _address = _state.ctypes.data
            _address += -_address % 64
        base = (_address - _state.ctypes.data) // 8
        _state[:] = 0
        _state[base + _RUN] = pool_run.address
        _state[base + _SPIN] = calibrate()
        library = ctypes.CDLL(None)
        for _ in range(n - 1):
            handle = ctypes.c_size_t()
            failed = library.pthread_create(ctypes.byref(handle), None, ctypes.c_void_p(worker_main.address), ctypes.c_void_p(_address))
            if failed:
                break  # no more threads to be had: the caller does the work
            _threads.append(handle)
        _started = n
        return _address


def _stop_workers() -> None:
    """End the workers; the next pool() starts new ones. Called with _making held."""
    global _started
    if not _threads:
        _started = 0
        return
    from ._pool import request_stop

    started, _started = _started, 0
    request_stop(_address)
    library = ctypes.CDLL(None)
    for handle in _threads:
        library.pthread_join(handle, None)
    _threads.clear()
    del started


def _forget_workers() -> None:
    """After a fork the child has the memory but not the threads; whatever they were doing is not going on here."""
    global _started, _making, _state
    _making = threading.Lock()
    _threads.clear()
    _started = 0
    _state = None  # a fresh block: the old one may say that a job is running


def _at_exit() -> None:
    with _making:
        _stop_workers()


os.register_at_fork(after_in_child=_forget_workers) if hasattr(os, "register_at_fork") else None
if sys.platform != "win32":
    import atexit

    atexit.register(_at_exit)
