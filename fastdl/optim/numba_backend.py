"""Optimisers' steps on SIMD vectors: one pass over the parameters of a group, each element read and written once.

All parameters of a group and dtype are one parallel region. A kernel is handed lists of arrays, the parameters' data, gradients and
buffers, and reads them where they are; it answers False, and has done nothing, where an array is not of its dtype, in C order and of its
parameter's size.
"""

from __future__ import annotations

from ..cpu._pool import parallel_for
from ..cpu.jit import inline, kernel
from ..cpu.listed import all_plain, count, data_of, places, same_sizes, size_of
from ..cpu.simd import fma, hsum, lanes, larger, load, load_n, offset, pointer, read, select, splat, sqrt, store_n, write
from ..cpu.thresholds import ELEMENTS

CHUNK = 1 << 14  # elements


@inline
def _share_out(pool, data, firsts):
    """(the pool or none, how many chunks); firsts: each parameter's first chunk and the parameter's size, as pairs."""
    chunks = elements = 0
    for i in range(count(data)):
        size = size_of(data, i)
        write(firsts, 2 * i, chunks)
        write(firsts, 2 * i + 1, size)
        chunks += (size + CHUNK - 1) // CHUNK
        elements += size
    return pool if elements > ELEMENTS else 0, chunks


@inline
def _place(firsts, members, chunk):
    """(the parameter of a chunk, the chunk's first element, how many there are)."""
    low, high = 0, members
    while high - low > 1:  # the last whose first chunk is not a later one; of empty ones before it, none has a chunk
        middle = (low + high) // 2
        if read(firsts, 2 * middle) <= chunk:
            low = middle
        else:
            high = middle
    start = (chunk - read(firsts, 2 * low)) * CHUNK
    return low, start, min(CHUNK, read(firsts, 2 * low + 1) - start)


@inline
def _load(p, i, n):
    """A vector, or its first n lanes: the branch is always the same but for a chunk's end."""
    return load(p, i) if n == lanes(p) else load_n(p, i, n)


@inline
def _array(p, items, which, start):
    return offset(data_of(items, which, p), start)


# ------------------------------------------------------------------------------------------------ SGD
@inline
def _sgd(data, g, v, momentum, taken, nesterov, first):
    """(what the step goes along, the new momentum)."""
    v = g if first else fma(v, momentum, g * taken)
    return fma(v, momentum, g) if nesterov else v, v


@inline
def _sgd_chunk(slot, chunk, p, firsts, members, weights, grads, moments, lr, momentum, taken, decay, scale, moves, nesterov, first, decays):
    V = lanes(p)
    which, start, n = _place(firsts, members, chunk)
    data, grad = _array(p, weights, which, start), _array(p, grads, which, start)
    rate, shrink, grown, kept, share = splat(p, -lr), splat(p, decay), splat(p, scale), splat(p, momentum), splat(p, taken)
    i = 0
    if moves:
        buffer = _array(p, moments, which, start)
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


@kernel("i R1 A A A L1 T T T T T i i i")
def sgd(pool, like, data, grads, moments, firsts, lr, momentum, taken, decay, scale, moves, nesterov, first):
    """data -= lr * d with d = v (or g + momentum * v), v = momentum * v + taken * g (or g), g = scale * grad + decay * data.

    moments: v of each, an empty list where nothing ``moves``. firsts: room for two integers a parameter.
    """
    p = pointer(like)
    if not (all_plain(data, p, True) and all_plain(grads, p, False) and same_sizes(data, grads)):
        return False
    if moves and not (all_plain(moments, p, True) and same_sizes(data, moments)):
        return False
    pool, chunks = _share_out(pool, data, pointer(firsts))
    parallel_for(pool, _sgd_chunk, chunks,
                 (p, pointer(firsts), count(data), places(data), places(grads), places(moments), lr, momentum, taken, decay, scale, moves,
                  nesterov, first, decay != 0))
    return True


# ------------------------------------------------------------------------------------------------ Adam
@inline
def _adam_chunk(slot, chunk, p, firsts, members, weights, grads, means, squares, tops, rate, root, new1, old2, new2, eps, decay, keep,
                scale, amsgrad, decays):
    V = lanes(p)
    which, start, n = _place(firsts, members, chunk)
    data, grad = _array(p, weights, which, start), _array(p, grads, which, start)
    mean, square = _array(p, means, which, start), _array(p, squares, which, start)
    largest = _array(p, tops, which, start) if amsgrad else square
    rate, root = splat(p, -rate), splat(p, root)
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


@kernel("i R1 A A A A A L1 T T T T T T T T T i")
def adam(pool, like, data, grads, means, squares, tops, firsts, rate, root, new1, old2, new2, eps, decay, keep, scale, amsgrad):
    """data = keep * data - rate * a / (root * sqrt(b) + eps), where g = scale * grad + decay * data.

    a and b are the running means of g and g * g, in means and squares, whose newest terms have the weights new1 and new2. With amsgrad b
    is the largest so far, in tops, an empty list otherwise. firsts: room for two integers a parameter.
    """
    p = pointer(like)
    if not (all_plain(data, p, True) and all_plain(grads, p, False) and all_plain(means, p, True) and all_plain(squares, p, True)):
        return False
    if not (same_sizes(data, grads) and same_sizes(data, means) and same_sizes(data, squares)):
        return False
    if amsgrad and not (all_plain(tops, p, True) and same_sizes(data, tops)):
        return False
    pool, chunks = _share_out(pool, data, pointer(firsts))
    parallel_for(pool, _adam_chunk, chunks,
                 (p, pointer(firsts), count(data), places(data), places(grads), places(means), places(squares), places(tops), rate, root,
                  new1, old2, new2, eps, decay, keep, scale, amsgrad, decay != 0))
    return True


# ------------------------------------------------------------------------------------------------ gradients
@inline
def _squares_chunk(slot, chunk, p, firsts, members, grads, sums):
    V = lanes(p)
    which, start, n = _place(firsts, members, chunk)
    grad, i = _array(p, grads, which, start), 0
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


@kernel("i W1 A L1")
def squares(pool, sums, grads, firsts):
    """The sum of squares of each chunk: sums has room for as many."""
    p = pointer(sums)
    if not all_plain(grads, p, False):
        return False
    pool, chunks = _share_out(pool, grads, pointer(firsts))
    parallel_for(pool, _squares_chunk, chunks, (p, pointer(firsts), count(grads), places(grads), p))
    return True


@inline
def _times_chunk(slot, chunk, p, firsts, members, grads, scale):
    V = lanes(p)
    which, start, n = _place(firsts, members, chunk)
    grad, factor, i = _array(p, grads, which, start), splat(p, scale), 0
    while i < n:
        m = min(V, n - i)
        store_n(grad, i, _load(grad, i, m) * factor, m)
        i += V


@kernel("i R1 A L1 T")
def times(pool, like, grads, firsts, scale):
    """Every element times scale."""
    p = pointer(like)
    if not all_plain(grads, p, True):
        return False
    pool, chunks = _share_out(pool, grads, pointer(firsts))
    parallel_for(pool, _times_chunk, chunks, (p, pointer(firsts), count(grads), places(grads), scale))
    return True
