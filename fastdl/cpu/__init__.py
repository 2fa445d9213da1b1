"""What every CPU kernel stands on. Knows no operator.

    features.py      what the machine has: vector width, registers, caches, cores
    jit.py           the one place that compiles, and its cache on disk
    simd.py          vector types and functions for Numba code (simd_core.py, simd_arithmetic.py, simd_lanes.py); vector_*.py: exp, tanh
    microkernel.py   register tiles of a matrix product; gemm.py, blocking.py: the whole product
    parallel.py      the thread pool (_pool.py, atomics.py: its compiled half), parallel_for
    workspace.py     scratch memory, reused
    peak.py          what a core can do at most, measured
"""
