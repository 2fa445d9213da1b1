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

import atexit
import ctypes
import os
import threading

import numpy as np

# words of the state, one to a cache line of 64 bytes where threads contend for them
_RUN = 0  # address of pool_run
_LOCK = 8  # 1 while a caller owns the pool
_OPEN = 16  # 1 while chunks of the current job may be taken
_ACTIVE = 24  # workers inside the current job
_FUNCTION, _CONTEXT, _COUNT, _JOB = 40, 41, 42, 43  # the job, and its number
_EPOCH = 48  # counts jobs: what spinning and sleeping workers watch
_SLEEPERS = 56
_STOP = 64
_SPIN = 65  # cycles that a worker spins before it sleeps
_THREADS = 66  # the caller included
_SLOTS = 72  # the next worker's number
_CURSORS = 80  # of each thread, a line: how many of its chunks are taken

_ALONE = (0, 1)

_team: tuple[int, int] | None = None  # (the running pool's address, its threads), or None until it is started
_blocks: list[np.ndarray] = []  # every pool's state: a call that began before a change of threads still uses the old one
_workers: list[ctypes.c_size_t] = []  # pthread_t
_wanted: int | None = None
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


def team() -> tuple[int, int]:
    """(the pool's address for a kernel's ``pool`` argument, its threads); (0, 1) where there is one thread only.

    Scratch memory for a job is counted by these threads: get_num_threads() may have changed since.
    """
    return _team or _start()


def pool() -> int:
    """The first half of team(), for kernels without scratch memory."""
    return (_team or _start())[0]


def _start() -> tuple[int, int]:
    global _team
    n = get_num_threads()
    if n == 1:
        return _ALONE
    from ._pool import calibrate, pool_run, worker_main

    with _making:
        if _team:
            return _team
        n = get_num_threads()
        if n == 1:
            return _ALONE
        block = np.zeros(_CURSORS + 8 * (n + 1), np.int64)
        address = block.ctypes.data
        address += -address % 64
        state = block[(address - block.ctypes.data) // 8 :]
        state[_RUN] = pool_run.address
        state[_SPIN], state[_THREADS] = calibrate(), n
        library = ctypes.CDLL(None)
        for _ in range(n - 1):
            handle = ctypes.c_size_t()
            if library.pthread_create(ctypes.byref(handle), None, ctypes.c_void_p(worker_main.address), ctypes.c_void_p(address)):
                break  # no more threads to be had: the others do the work
            _workers.append(handle)
        _blocks.append(block)
        _team = (address, n)
        return _team


def _stop_workers() -> None:
    """End the workers; the next call starts new ones. Called with _making held."""
    global _team
    if _team is None:
        return
    from ._pool import request_stop

    address, _team = _team[0], None
    request_stop(address)
    library = ctypes.CDLL(None)
    for handle in _workers:
        library.pthread_join(handle, None)
    _workers.clear()


def _forget_workers() -> None:
    """After a fork the child has the memory but not the threads; whatever they were doing is not going on here."""
    global _team, _making
    _making = threading.Lock()
    _workers.clear()
    _team = None


@atexit.register
def _at_exit() -> None:
    with _making:
        _stop_workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
