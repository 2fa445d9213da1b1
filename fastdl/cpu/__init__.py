"""What every CPU kernel stands on. Knows no operator.

    features.py      what the machine has: vector width, registers, caches, cores
    jit.py           the one place that compiles, and its cache on disk
    simd.py          vector types and functions for Numba code
    microkernel.py   register tiles of a matrix product
    parallel.py      the thread pool, parallel_for
    workspace.py     scratch memory, reused
"""
