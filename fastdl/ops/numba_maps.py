"""Kernels that do the same to each element of arrays as they lie in memory; memory of the same order for all.

    square = unary("square", lambda v, a, b: v * v)      # f of a vector and of the kernel's two parameters, as vectors
    square["f"](pool_for(x, ELEMENTS), x, y, 0.0, 0.0)   # of arrays in C order, of any rank
"""

from __future__ import annotations

import numpy as np

from ..cpu import parallel
from ..cpu._pool import parallel_for
from ..cpu.jit import inline, kernel
from ..cpu.simd import first_lanes, hsum, lanes, load, load_n, load_two, offset, pointer, select, splat, store, store_n, write

CHUNK = 1 << 14  # elements: a share of L2 for each array


def unary_chunk(function):
    """The chunk of a kernel of ``unary``: (slot, chunk, x, y, n, a, b), of pointers."""
    f = inline(function)

    @inline
    def body(slot, chunk, x, y, n, a, b):
        V = lanes(x)
        p, q, count = offset(x, chunk * CHUNK), offset(y, chunk * CHUNK), min(CHUNK, n - chunk * CHUNK)
        va, vb, i = splat(x, a), splat(x, b), 0
        while i + 2 * V <= count:
            v = load_two(p, i)
            store(q, i, f(v, splat(v, a), splat(v, b)))
            i += 2 * V
        while i < count:
            m = min(V, count - i)
            store_n(q, i, f(load_n(p, i, m), va, vb), m)
            i += V

    return body


def unary(name, function):
    """A kernel (pool, x, y, a, b): y = function(x, a, b)."""
    body = unary_chunk(function)

    def run(pool, x, y, a, b):
        n = x.shape[0]
        parallel_for(pool, body, (n + CHUNK - 1) // CHUNK, (pointer(x), pointer(y), n, a, b))

    run.__qualname__, run.__module__ = name, function.__module__
    return kernel("i R* W* T T")(run)


def binary(name, function):
    """A kernel (pool, x, y, z, a, b): z = function(x, y, a, b)."""
    f = inline(function)

    @inline
    def body(slot, chunk, x, y, z, n, a, b):
        V = lanes(x)
        start, count = chunk * CHUNK, min(CHUNK, n - chunk * CHUNK)
        p, q, r = offset(x, start), offset(y, start), offset(z, start)
        va, vb, i = splat(x, a), splat(x, b), 0
        while i + 2 * V <= count:
            v = load_two(p, i)
            store(r, i, f(v, load_two(q, i), splat(v, a), splat(v, b)))
            i += 2 * V
        while i < count:
            m = min(V, count - i)
            store_n(r, i, f(load_n(p, i, m), load_n(q, i, m), va, vb), m)
            i += V

    def run(pool, x, y, z, a, b):
        n = x.shape[0]
        parallel_for(pool, body, (n + CHUNK - 1) // CHUNK, (pointer(x), pointer(y), pointer(z), n, a, b))

    run.__qualname__, run.__module__ = name, function.__module__
    return kernel("i R* R* W* T T")(run)


def binary_sum(name, function):
    """A kernel (pool, x, y, sums, a, b): the sum of function(x, y, a, b) over each chunk of CHUNK elements."""
    f = inline(function)

    @inline
    def body(slot, chunk, x, y, sums, n, a, b):
        V = lanes(x)
        start, count = chunk * CHUNK, min(CHUNK, n - chunk * CHUNK)
        p, q = offset(x, start), offset(y, start)
        va, vb, i = splat(x, a), splat(x, b), 0
        total = splat(x, 0.0)
        other = total
        while i + 2 * V <= count:
            total, other = total + f(load(p, i), load(q, i), va, vb), other + f(load(p, i + V), load(q, i + V), va, vb)
            i += 2 * V
        while i < count:
            m = min(V, count - i)
            total = total + select(first_lanes(x, m), f(load_n(p, i, m), load_n(q, i, m), va, vb), splat(x, 0.0))
            i += V
        write(sums, chunk, hsum(total + other))

    def run(pool, x, y, sums, a, b):
        n = x.shape[0]
        parallel_for(pool, body, (n + CHUNK - 1) // CHUNK, (pointer(x), pointer(y), pointer(sums), n, a, b))

    run.__qualname__, run.__module__ = name, function.__module__
    return kernel("i R* R* W1 T T")(run)


# ------------------------------------------------------------------------------------------------ memory
def pool_for(x, least):
    """The pool for a call on x, where it has more elements than ``least``."""
    return parallel.pool() if x.size > least else 0


def dense(x):
    """(x without gaps, None or the order of its axes in memory): x itself wherever its elements lie side by side."""
    if x.flags.c_contiguous:
        return x, None
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    if x.transpose(order).flags.c_contiguous:
        return x, order
    return np.ascontiguousarray(x), None


def flat(x, order):
    """x, whose memory has its axes in that order, as kernels of this file take it."""
    return x if order is None else x.transpose(order)


def like(x, memory):
    """x in the memory order of ``memory``, an array of its shape without gaps: x itself, or a copy."""
    if x.strides == memory.strides or (x.flags.c_contiguous and memory.flags.c_contiguous):
        return x
    made = np.empty_like(memory)
    made[...] = x
    return made
