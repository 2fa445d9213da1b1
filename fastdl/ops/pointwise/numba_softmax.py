"""softmax and log_softmax and their gradients.

``rows``: along the last axis of memory (rows, n); a row is read from memory once, the passes after the first find it in a
core's cache. ``columns``: along the middle axis of (outer, n, inner), vectors across the inner positions, a block of them at
a time; the block's maxima and sums are scratch memory that stays in L1, its elements are few enough for L2.

A maximum is taken off first, so the largest exponential is 1 and those that underflow count for nothing; a NaN or an infinity
in a row makes the row NaN.
"""

from __future__ import annotations

import math

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import (
    first_lanes,
    fma,
    hmax,
    hsum,
    lanes,
    larger,
    load,
    load_n,
    offset,
    pointer,
    select,
    splat,
    store,
    store_n,
)
from ...cpu.vector_math import exp_nonpositive, log

SHARE = 1 << 14  # elements of rows that a thread takes at a time


# ------------------------------------------------------------------------------------------------ rows
@inline
def row_maximum(x, n):
    """Of n elements, at least one; -inf or a number where there is a NaN."""
    V = lanes(x)
    if n < V:
        return hmax(select(first_lanes(x, n), load_n(x, 0, n), splat(x, -math.inf)))
    a, b, i = load(x, 0), load(x, n - V), V
    while i + 2 * V <= n:
        a, b = larger(a, load(x, i)), larger(b, load(x, i + V))
        i += 2 * V
    if i + V <= n:
        a = larger(a, load(x, i))
    return hmax(larger(a, b))


@inline
def row_sum_of_exp(x, n, top):
    """The sum of exp(x - top)."""
    V = lanes(x)
    m, total, i = splat(x, top), splat(x, 0.0), 0
    other = total
    while i + 2 * V <= n:
        total, other = total + exp_nonpositive(load(x, i) - m), other + exp_nonpositive(load(x, i + V) - m)
        i += 2 * V
    total = total + other
    if i + V <= n:
        total = total + exp_nonpositive(load(x, i) - m)
        i += V
    if i < n:
        total = total + select(first_lanes(x, n - i), exp_nonpositive(load_n(x, i, n - i) - m), splat(x, 0.0))
    return hsum(total)


@inline
def scalar_log(p, value):
    """The logarithm of a number, of p's element type."""
    return hmax(log(splat(p, value)))


@inline
def short_row(x, n):
    """(z, z2, e, e2, sum) of a row of at most two vectors: its elements less the largest, their exponentials, 0 beyond the row, the
    sum of those."""
    V, none = lanes(x), splat(x, -math.inf)
    a = select(first_lanes(x, n), load_n(x, 0, n), none)
    b = select(first_lanes(x, n - V), load_n(x, V, n - V), none)
    m = splat(x, hmax(larger(a, b)))
    z, z2, zero = a - m, b - m, splat(x, 0.0)
    e, e2 = select(first_lanes(x, n), exp_nonpositive(z), zero), select(first_lanes(x, n - V), exp_nonpositive(z2), zero)
    return z, z2, e, e2, hsum(e + e2)


@inline
def store_short(y, n, a, b):
    V = lanes(y)
    store_n(y, 0, a, min(n, V))
    if n > V:
        store_n(y, V, b, n - V)


@inline
def _softmax_rows(slot, chunk, x, y, rows, n, share):
    V = lanes(x)
    if n <= 2 * V:
        for r in range(chunk * share, min(rows, (chunk + 1) * share)):
            _, _, e, e2, total = short_row(offset(x, r * n), n)
            factor = splat(x, 1.0) / splat(x, total)
            store_short(offset(y, r * n), n, e * factor, e2 * factor)
        return
    for r in range(chunk * share, min(rows, (chunk + 1) * share)):
        p, q = offset(x, r * n), offset(y, r * n)
        m, total, i = splat(x, row_maximum(p, n)), splat(x, 0.0), 0
        while i + V <= n:
            e = exp_nonpositive(load(p, i) - m)
            store(q, i, e)
            total = total + e
            i += V
        if i < n:
            e = exp_nonpositive(load_n(p, i, n - i) - m)
            store_n(q, i, e, n - i)
            total = total + select(first_lanes(x, n - i), e, splat(x, 0.0))
        factor, i = splat(x, 1.0) / splat(x, hsum(total)), 0
        while i + V <= n:
            store(q, i, load(q, i) * factor)
            i += V
        if i < n:
            store_n(q, i, load_n(q, i, n - i) * factor, n - i)


@inline
def _log_softmax_rows(slot, chunk, x, y, rows, n, share):
    V = lanes(x)
    if n <= 2 * V:
        for r in range(chunk * share, min(rows, (chunk + 1) * share)):
            z, z2, _, _, total = short_row(offset(x, r * n), n)
            log_total = log(splat(x, total))
            store_short(offset(y, r * n), n, z - log_total, z2 - log_total)
        return
    for r in range(chunk * share, min(rows, (chunk + 1) * share)):
        p, q = offset(x, r * n), offset(y, r * n)
        top = row_maximum(p, n)
        m, log_total, i = splat(x, top), log(splat(x, row_sum_of_exp(p, n, top))), 0
        while i + V <= n:
            store(q, i, (load(p, i) - m) - log_total)
            i += V
        if i < n:
            store_n(q, i, (load_n(p, i, n - i) - m) - log_total, n - i)


@inline
def _softmax_rows_gradient(slot, chunk, g, y, dx, rows, n, share):
    V = lanes(g)
    for r in range(chunk * share, min(rows, (chunk + 1) * share)):
        p, q, d = offset(g, r * n), offset(y, r * n), offset(dx, r * n)
        a, i = splat(g, 0.0), 0
        b = a
        while i + 2 * V <= n:
            a, b = fma(load(p, i), load(q, i), a), fma(load(p, i + V), load(q, i + V), b)
            i += 2 * V
        while i < n:
            m = min(V, n - i)
            a = fma(load_n(p, i, m), load_n(q, i, m), a)
            i += V
        total, i = splat(g, hsum(a + b)), 0
        while i + V <= n:
            store(d, i, load(q, i) * (load(p, i) - total))
            i += V
        if i < n:
            store_n(d, i, load_n(q, i, n - i) * (load_n(p, i, n - i) - total), n - i)


@inline
def _log_softmax_rows_gradient(slot, chunk, g, y, dx, rows, n, share):
    V = lanes(g)
    for r in range(chunk * share, min(rows, (chunk + 1) * share)):
        p, q, d = offset(g, r * n), offset(y, r * n), offset(dx, r * n)
        a, i = splat(g, 0.0), 0
        b = a
        while i + 2 * V <= n:
            a, b = a + load(p, i), b + load(p, i + V)
            i += 2 * V
        while i < n:
            a = a + load_n(p, i, min(V, n - i))
            i += V
        total, i = splat(g, hsum(a + b)), 0
        while i + V <= n:
            store(d, i, load(p, i) - exp_nonpositive(load(q, i)) * total)
            i += V
        if i < n:
            store_n(d, i, load_n(p, i, n - i) - exp_nonpositive(load_n(q, i, n - i)) * total, n - i)


def _over_rows(name, body, arrays):
    """A kernel (pool, arrays (rows, n) ..., the answer), all without gaps."""
    if arrays == 1:
        def run(pool, x, y):
            rows, n = x.shape
            share = max(1, SHARE // max(1, n))
            parallel_for(pool, body, (rows + share - 1) // share, (pointer(x), pointer(y), rows, n, share))
    else:
        def run(pool, g, y, dx):
            rows, n = g.shape
            share = max(1, SHARE // max(1, n))
            parallel_for(pool, body, (rows + share - 1) // share, (pointer(g), pointer(y), pointer(dx), rows, n, share))

    run.__qualname__ = name
    return kernel("i " + "R2 " * arrays + "W2")(run)


softmax_rows = _over_rows("softmax_rows", _softmax_rows, 1)
log_softmax_rows = _over_rows("log_softmax_rows", _log_softmax_rows, 1)
softmax_rows_gradient = _over_rows("softmax_rows_gradient", _softmax_rows_gradient, 2)
log_softmax_rows_gradient = _over_rows("log_softmax_rows_gradient", _log_softmax_rows_gradient, 2)


# ------------------------------------------------------------------------------------------------ columns
# A block's scratch rows are whole vectors: what lies in them beyond the last position is computed and never stored.
@inline
def column_maxima(x, n, inner, count, tops):
    """tops[j] = the largest of x[c * inner + j]; see row_maximum."""
    V = lanes(x)
    for j in range(0, count, V):
        m = min(V, count - j)
        store(tops, j, load_n(x, j, m))
    for c in range(1, n):
        row = offset(x, c * inner)
        j = 0
        while j + V <= count:
            store(tops, j, larger(load(tops, j), load(row, j)))
            j += V
        if j < count:
            store(tops, j, larger(load(tops, j), load_n(row, j, count - j)))


@inline
def clear(p, count):
    """p[:count] = 0, whole vectors."""
    for j in range(0, count, lanes(p)):
        store(p, j, splat(p, 0.0))


@inline
def _softmax_columns(slot, chunk, x, y, n, inner, block, blocks, scratch):
    V = lanes(x)
    first = chunk % blocks * block
    count, at = min(block, inner - first), chunk // blocks * n * inner + first
    x, y, tops = offset(x, at), offset(y, at), offset(scratch, slot * 2 * block)
    sums = offset(tops, block)
    column_maxima(x, n, inner, count, tops)
    clear(sums, count)
    for c in range(n):
        p, q = offset(x, c * inner), offset(y, c * inner)
        j = 0
        while j + V <= count:
            e = exp_nonpositive(load(p, j) - load(tops, j))
            store(q, j, e)
            store(sums, j, load(sums, j) + e)
            j += V
        if j < count:
            e = exp_nonpositive(load_n(p, j, count - j) - load(tops, j))
            store_n(q, j, e, count - j)
            store(sums, j, load(sums, j) + e)
    for j in range(0, count, V):
        store(sums, j, splat(x, 1.0) / load(sums, j))
    for c in range(n):
        q = offset(y, c * inner)
        j = 0
        while j + V <= count:
            store(q, j, load(q, j) * load(sums, j))
            j += V
        if j < count:
            store_n(q, j, load_n(q, j, count - j) * load(sums, j), count - j)


@inline
def column_sums_of_exp(x, n, inner, count, tops, sums):
    """sums[j] = the sum of exp(x[c * inner + j] - tops[j])."""
    V = lanes(x)
    clear(sums, count)
    for c in range(n):
        p, j = offset(x, c * inner), 0
        while j + V <= count:
            store(sums, j, load(sums, j) + exp_nonpositive(load(p, j) - load(tops, j)))
            j += V
        if j < count:
            store(sums, j, load(sums, j) + exp_nonpositive(load_n(p, j, count - j) - load(tops, j)))


@inline
def _log_softmax_columns(slot, chunk, x, y, n, inner, block, blocks, scratch):
    V = lanes(x)
    first = chunk % blocks * block
    count, at = min(block, inner - first), chunk // blocks * n * inner + first
    x, y, tops = offset(x, at), offset(y, at), offset(scratch, slot * 2 * block)
    sums = offset(tops, block)
    column_maxima(x, n, inner, count, tops)
    column_sums_of_exp(x, n, inner, count, tops, sums)
    for j in range(0, count, V):
        store(sums, j, log(load(sums, j)))
    for c in range(n):
        p, q, j = offset(x, c * inner), offset(y, c * inner), 0
        while j + V <= count:
            store(q, j, (load(p, j) - load(tops, j)) - load(sums, j))
            j += V
        if j < count:
            store_n(q, j, (load_n(p, j, count - j) - load(tops, j)) - load(sums, j), count - j)


@inline
def _softmax_columns_gradient(slot, chunk, g, y, dx, n, inner, block, blocks, scratch):
    V = lanes(g)
    first = chunk % blocks * block
    count, at = min(block, inner - first), chunk // blocks * n * inner + first
    g, y, dx, sums = offset(g, at), offset(y, at), offset(dx, at), offset(scratch, slot * 2 * block)
    clear(sums, count)
    for c in range(n):
        p, q, j = offset(g, c * inner), offset(y, c * inner), 0
        while j + V <= count:
            store(sums, j, fma(load(p, j), load(q, j), load(sums, j)))
            j += V
        if j < count:
            store(sums, j, fma(load_n(p, j, count - j), load_n(q, j, count - j), load(sums, j)))
    for c in range(n):
        p, q, d, j = offset(g, c * inner), offset(y, c * inner), offset(dx, c * inner), 0
        while j + V <= count:
            store(d, j, load(q, j) * (load(p, j) - load(sums, j)))
            j += V
        if j < count:
            store_n(d, j, load_n(q, j, count - j) * (load_n(p, j, count - j) - load(sums, j)), count - j)


@inline
def _log_softmax_columns_gradient(slot, chunk, g, y, dx, n, inner, block, blocks, scratch):
    V = lanes(g)
    first = chunk % blocks * block
    count, at = min(block, inner - first), chunk // blocks * n * inner + first
    g, y, dx, sums = offset(g, at), offset(y, at), offset(dx, at), offset(scratch, slot * 2 * block)
    clear(sums, count)
    for c in range(n):
        p, j = offset(g, c * inner), 0
        while j + V <= count:
            store(sums, j, load(sums, j) + load(p, j))
            j += V
        if j < count:
            store(sums, j, load(sums, j) + load_n(p, j, count - j))
    for c in range(n):
        p, q, d, j = offset(g, c * inner), offset(y, c * inner), offset(dx, c * inner), 0
        while j + V <= count:
            store(d, j, load(p, j) - exp_nonpositive(load(q, j)) * load(sums, j))
            j += V
        if j < count:
            store_n(d, j, load_n(p, j, count - j) - exp_nonpositive(load_n(q, j, count - j)) * load(sums, j), count - j)


def _over_columns(name, body, arrays):
    """A kernel (pool, block, scratch, arrays (outer, n, inner) ..., the answer), all without gaps; scratch: 2 * block a thread."""
    if arrays == 1:
        def run(pool, block, scratch, x, y):
            outer, n, inner = x.shape
            blocks = (inner + block - 1) // block
            parallel_for(pool, body, outer * blocks, (pointer(x), pointer(y), n, inner, block, blocks, pointer(scratch)))
    else:
        def run(pool, block, scratch, g, y, dx):
            outer, n, inner = g.shape
            blocks = (inner + block - 1) // block
            parallel_for(pool, body, outer * blocks, (pointer(g), pointer(y), pointer(dx), n, inner, block, blocks, pointer(scratch)))

    run.__qualname__ = name
    return kernel("i i W1 " + "R3 " * arrays + "W3")(run)


softmax_columns = _over_columns("softmax_columns", _softmax_columns, 1)
log_softmax_columns = _over_columns("log_softmax_columns", _log_softmax_columns, 1)
softmax_columns_gradient = _over_columns("softmax_columns_gradient", _softmax_columns_gradient, 2)
log_softmax_columns_gradient = _over_columns("log_softmax_columns_gradient", _log_softmax_columns_gradient, 2)
