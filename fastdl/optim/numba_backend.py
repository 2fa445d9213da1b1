"""Optimisers' steps on SIMD vectors: one pass over the parameters of a group, each element read and written once.

All parameters of a group and dtype are one parallel region. A table has a row for each parameter: its size, its first chunk, the
addresses of its data, gradient and buffers; ``owner`` says to which row a chunk belongs.
"""

from __future__ import annotations

import numpy as np

from ..cpu import parallel
from ..cpu._pool import parallel_for
from ..cpu.jit import inline, kernel
from ..cpu.simd import at_address, fma, hsum, lanes, larger, load, load_n, offset, pointer, read, select, splat, sqrt, store_n, write
from ..cpu.thresholds import ELEMENTS

CHUNK = 1 << 14  # elements
SIZE, FIRST, DATA = range(3)
_COLUMNS = 7  # the size, the first chunk and up to five arrays


@inline
def _place(p, table, owner, chunk):
    """(the row of a chunk's parameter, the chunk's first element, how many there are)."""
    row = offset(table, read(owner, chunk) * _COLUMNS)
    start = (chunk - read(row, FIRST)) * CHUNK
    return row, start, min(CHUNK, read(row, SIZE) - start)


@inline
def _load(p, i, n):
    """A vector, or its first n lanes: the branch is always the same but for a chunk's end."""
    return load(p, i) if n == lanes(p) else load_n(p, i, n)


@inline
def _array(p, row, k, start):
    return offset(at_address(p, read(row, DATA + k)), start)


# ------------------------------------------------------------------------------------------------ SGD
@inline
def _sgd(data, g, v, momentum, taken, nesterov, first):
    """(what the step goes along, the new momentum)."""
    v = g if first else fma(v, momentum, g * taken)
    return fma(v, momentum, g) if nesterov else v, v


@inline
def _sgd_chunk(slot, chunk, p, table, owner, lr, momentum, taken, decay, scale, moves, nesterov, first, decays):
    V = lanes(p)
    row, start, n = _place(p, table, owner, chunk)
    data, grad = _array(p, row, 0, start), _array(p, row, 1, start)
    rate, shrink, grown, kept, share = splat(p, -lr), splat(p, decay), splat(p, scale), splat(p, momentum), splat(p, taken)
    i = 0
    if moves:
        buffer = _array(p, row, 2, start)
        while i < n:
            m = min(V, n - i)
            x, g, v = _load(data, i, m), _load(grad, i, m) * grown, splat(p, 0.0)
            if decays:
                g = fma(x, shrink, g)
            if not first:
                v = _load(buffer, i, m)
            g, v = _sgd(x, g, v, kept, share, nesterov, first)
            store_n(buffer, i, v, m)
            store_n(data, i, fma(rate, g, x), m)
            i += V
    else:
        while i < n:
            m = min(V, n - i)
            x, g = _load(data, i, m), _load(grad, i, m) * grown
            if decays:
                g = fma(x, shrink, g)
            store_n(data, i, fma(rate, g, x), m)
            i += V


@kernel("i i W1 L2 L1 T T T T T i i i")
def sgd(pool, chunks, like, table, owner, lr, momentum, taken, decay, scale, moves, nesterov, first):
    """data -= lr * d with d = v (or g + momentum * v), v = momentum * v + taken * g (or g), g = scale * grad + decay * data."""
    parallel_for(pool, _sgd_chunk, chunks,
                 (pointer(like), pointer(table), pointer(owner), lr, momentum, taken, decay, scale, moves, nesterov, first, decay != 0))


# ------------------------------------------------------------------------------------------------ Adam
@inline
def _adam_chunk(slot, chunk, p, table, owner, rates, new1, old2, new2, eps, decay, keep, scale, amsgrad, decays):
    V = lanes(p)
    row, start, n = _place(p, table, owner, chunk)
    data, grad, mean, square = _array(p, row, 0, start), _array(p, row, 1, start), _array(p, row, 2, start), _array(p, row, 3, start)
    largest = _array(p, row, 4, start) if amsgrad else square
    k = read(owner, chunk) * 2
    rate, root = splat(p, -read(rates, k)), splat(p, read(rates, k + 1))
    by1, by2, old = splat(p, new1), splat(p, new2), splat(p, old2)
    least, shrink, kept, grown, i = splat(p, eps), splat(p, decay), splat(p, keep), splat(p, scale), 0
    while i < n:
        m = min(V, n - i)
        x, g, a, b = _load(data, i, m), _load(grad, i, m) * grown, _load(mean, i, m), _load(square, i, m)
        if decays:
            g = fma(x, shrink, g)
        x = x * kept
        a = fma(g - a, by1, a)
        b = fma(g * by2, g, b * old)
        store_n(mean, i, a, m)
        store_n(square, i, b, m)
        if amsgrad:
            c = _load(largest, i, m)
            b = select(b != b, b, larger(c, b))
            store_n(largest, i, b, m)
        store_n(data, i, fma(rate, a / fma(sqrt(b), root, least), x), m)
        i += V


@kernel("i i W1 L2 L1 R2 T T T T T T T i")
def adam(pool, chunks, like, table, owner, rates, new1, old2, new2, eps, decay, keep, scale, amsgrad):
    """data = keep * data - rate * a / (root * sqrt(b) + eps), where g = scale * grad + decay * data.

    a and b are the running means of g and g * g, whose newest terms have the weights new1 and new2 (b: the largest so far, with
    amsgrad). rates: (parameters, 2), each one's rate and root.
    """
    parallel_for(pool, _adam_chunk, chunks,
                 (pointer(like), pointer(table), pointer(owner), pointer(rates), new1, old2, new2, eps, decay, keep, scale, amsgrad,
                  decay != 0))


# ------------------------------------------------------------------------------------------------ gradients
@inline
def _squares_chunk(slot, chunk, p, table, owner, sums):
    V = lanes(p)
    row, start, n = _place(p, table, owner, chunk)
    grad, i = _array(p, row, 0, start), 0
    a = splat(p, 0.0)
    b = c = d = a
    while i + 4 * V <= n:
        e, f, g, h = load(grad, i), load(grad, i + V), load(grad, i + 2 * V), load(grad, i + 3 * V)
        a, b, c, d = fma(e, e, a), fma(f, f, b), fma(g, g, c), fma(h, h, d)
        i += 4 * V
    while i < n:
        e = _load(grad, i, min(V, n - i))
        a = fma(e, e, a)
        i += V
    write(sums, chunk, hsum((a + b) + (c + d)))


@kernel("i i W1 L2 L1 W1")
def squares(pool, chunks, like, table, owner, sums):
    """The sum of squares of each chunk."""
    parallel_for(pool, _squares_chunk, chunks, (pointer(like), pointer(table), pointer(owner), pointer(sums)))


@inline
def _times_chunk(slot, chunk, p, table, owner, scale):
    V = lanes(p)
    row, start, n = _place(p, table, owner, chunk)
    grad, factor, i = _array(p, row, 0, start), splat(p, scale), 0
    while i < n:
        m = min(V, n - i)
        store_n(grad, i, _load(grad, i, m) * factor, m)
        i += V


@kernel("i i W1 L2 L1 T")
def times(pool, chunks, like, table, owner, scale):
    """Every element times scale."""
    parallel_for(pool, _times_chunk, chunks, (pointer(like), pointer(table), pointer(owner), scale))


# ------------------------------------------------------------------------------------------------ from arrays
class Layout:
    """The table and the chunks' owners for rows of arrays, those of a row of one size, without gaps; it keeps the arrays alive.

    A row's gradient comes second in the table; ``with_gradients`` enters those of a step.
    """

    def __init__(self, rows):
        self.rows = rows
        sizes = np.array([row[0].size for row in rows], np.int64)
        counts = (sizes + (CHUNK - 1)) // CHUNK
        self.elements, self.chunks, self.like = int(sizes.sum()), int(counts.sum()), np.empty(0, rows[0][0].dtype)
        self.owner, self.table = np.repeat(np.arange(len(rows)), counts), np.zeros((len(rows), _COLUMNS), np.int64)
        self.table[:, SIZE], self.table[:, FIRST] = sizes, np.cumsum(counts) - counts
        for k in range(len(rows[0])):
            self.table[:, DATA + k + (k > 0)] = [row[k].__array_interface__["data"][0] for row in rows]

    def is_of(self, rows):
        return all(a is b for row, other in zip(self.rows, rows, strict=True) for a, b in zip(row, other, strict=True))

    def with_gradients(self, grads):
        """(pool, table); a table of its own, for two threads may step at once."""
        table = self.table.copy()
        table[:, DATA + 1] = [g.__array_interface__["data"][0] for g in grads]
        return parallel.pool() if self.elements > ELEMENTS else 0, table


def layout(arrays):
    """(pool, chunks, table, owner) for arrays without gaps, each a row of its own. They must be kept alive."""
    made = Layout([(a,) for a in arrays])
    return parallel.pool() if made.elements > ELEMENTS else 0, made.chunks, made.table, made.owner
