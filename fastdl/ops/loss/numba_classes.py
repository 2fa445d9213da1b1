"""cross_entropy of class indices and its gradient, a row (or block of columns) at a time: the scores are read from memory once.

Of a position with scores x, label k, class weights w: with z = x - max(x) and s = log(sum(exp(z))),

    loss     = (1 - smoothing) * w[k] * (s - z[k]) + smoothing / C * (sum(w) * s - sum(w * z))
    gradient = softmax(x) * sum(q) - q,    q = (1 - smoothing) * w[k] at the label, plus smoothing / C * w everywhere

The gradient, times a factor, is made while the scores are in a core's cache; exp is computed once more for it, which is cheaper
than a pass over what it gave the first time. The layouts are those of ops/pointwise/numba_softmax.py.
"""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.borrowed import absent, contents, create, nothing
from ...cpu.jit import inline, kernel
from ...cpu.simd import address, fma, hsum, lanes, load, load_n, number, offset, pointer, read, splat, store, store_n, write
from ...cpu.thresholds import FUNCTIONS
from ...cpu.vector_math import exp_nonpositive, log
from ..pointwise.numba_softmax import SHARE, clear, column_maxima, row_maximum, row_sum_of_exp, scalar_log


@inline
def _position(label, ignored, w, total_w, n, smoothing, factor, s, picked, total):
    """(loss, at_label, spread, sum_q) of one position, float64; see the module's docstring."""
    if label == ignored:
        return 0.0, 0.0, 0.0, 0.0  # not products: what is ignored may be NaN, the factor infinite
    weight = np.float64(read(w, label))
    loss = (1.0 - smoothing) * (weight * (s - picked))
    spread = 0.0
    if smoothing > 0.0:
        loss += smoothing / n * (total_w * s - total)
        spread = factor * (smoothing / n)
    at_label = factor * ((1.0 - smoothing) * weight)
    return loss, at_label, spread, at_label + spread * total_w


# ------------------------------------------------------------------------------------------------ rows
@inline
def _weighted_sum(x, w, n, top):
    V, m, a, i = lanes(x), splat(x, top), splat(x, 0.0), 0
    while i + V <= n:
        a = fma(load(x, i) - m, load(w, i), a)
        i += V
    total = np.float64(hsum(a))
    while i < n:
        total += np.float64(read(x, i) - top) * np.float64(read(w, i))
        i += 1
    return total


@inline
def _rows_chunk(slot, chunk, x, rows, n, share, target, ignored, w, total_w, smoothing, factors, step, wanted, losses, dx):
    V = lanes(x)
    for r in range(chunk * share, min(rows, (chunk + 1) * share)):
        p, label = offset(x, r * n), read(target, r)
        top = row_maximum(p, n)
        sums = row_sum_of_exp(p, n, top)
        total = _weighted_sum(p, w, n, top) if smoothing > 0.0 else 0.0
        picked = np.float64(read(p, 0 if label == ignored else label) - top)
        loss, at_label, spread, sum_q = _position(label, ignored, w, total_w, n, smoothing, np.float64(read(factors, r * step)),
                                                  np.float64(scalar_log(x, sums)), picked, total)
        write(losses, r, loss)
        if wanted:
            q, m, ratio, i = offset(dx, r * n), splat(x, top), splat(x, sum_q / np.float64(sums)), 0
            if spread > 0.0 or spread < 0.0:
                minus = splat(x, -spread)
                while i + V <= n:
                    store(q, i, fma(exp_nonpositive(load(p, i) - m), ratio, minus * load(w, i)))
                    i += V
                if i < n:
                    k = n - i
                    store_n(q, i, fma(exp_nonpositive(load_n(p, i, k) - m), ratio, minus * load_n(w, i, k)), k)
            else:
                while i + V <= n:
                    store(q, i, exp_nonpositive(load(p, i) - m) * ratio)
                    i += V
                if i < n:
                    store_n(q, i, exp_nonpositive(load_n(p, i, n - i) - m) * ratio, n - i)
            if label != ignored:
                write(q, label, np.float64(read(q, label)) - at_label)


@kernel("i R2 L1 i R1 T T R1 i W1 W2")
def rows_of_classes(pool, x, target, ignored, w, total_w, smoothing, factors, wanted, losses, dx):
    """losses (rows,), and where wanted dx: the gradient times factors (one for all rows, or one for each).

    x: (rows, classes) without gaps. target: (rows,). w: (classes,), total_w their sum.
    """
    rows, n = x.shape
    share = max(1, SHARE // n)
    parallel_for(pool, _rows_chunk, (rows + share - 1) // share,
                 (pointer(x), rows, n, share, pointer(target), ignored, pointer(w), np.float64(total_w), np.float64(smoothing),
                  pointer(factors), 1 if factors.shape[0] > 1 else 0, wanted, pointer(losses), pointer(dx)))


@kernel("i O2 OL1")
def mean_at_once(scores, x, target):
    """(1, 1): the mean loss of few scores, or else log-probabilities, all labels counting alike; None where that is not so, a label is none
    of the classes (or ignored), or memory lies otherwise than it is read here."""
    if absent(x) or absent(target):
        return nothing(x)
    rows, n = x.shape
    few = 0 < rows * n <= FUNCTIONS and target.shape[0] == rows
    if not few or x.strides[1] != x.itemsize or x.strides[0] != n * x.itemsize or (target.strides[0] != target.itemsize and rows > 1):
        return nothing(x)
    named, total = pointer(target), 0.0
    for r in range(rows):
        if read(named, r) < 0 or read(named, r) >= n:
            return nothing(x)
    made = create(x, 1, 1)
    if address(contents(made)) != 0:
        for r in range(rows):
            p = offset(pointer(x), r * n)
            if scores:
                top = row_maximum(p, n)
                write(contents(made), 0, np.float64(scalar_log(p, row_sum_of_exp(p, n, top))) - np.float64(read(p, read(named, r)) - top))
            else:
                write(contents(made), 0, -read(p, read(named, r)))
            total += np.float64(read(contents(made), 0))
        write(contents(made), 0, total / rows)
    return made


# ------------------------------------------------------------------------------------------------ columns
@inline
def _columns_chunk(slot, chunk, x, n, inner, block, blocks, scratch, target, ignored, w, total_w, smoothing, factors, step, wanted,
                   losses, dx):
    V = lanes(x)
    first = chunk % blocks * block
    count, at, position = min(block, inner - first), chunk // blocks * n * inner + first, chunk // blocks * inner + first
    x, dx, tops = offset(x, at), offset(dx, at), offset(scratch, slot * 5 * block)
    sums, logs, totals, labelled = (offset(tops, block), offset(tops, 2 * block), offset(tops, 3 * block), offset(tops, 4 * block))
    column_maxima(x, n, inner, count, tops)
    clear(sums, count)
    clear(totals, count)
    for c in range(n):
        p, weight, j = offset(x, c * inner), splat(x, read(w, c)), 0
        while j < count:
            z = (load(p, j) if j + V <= count else load_n(p, j, count - j)) - load(tops, j)
            store(sums, j, load(sums, j) + exp_nonpositive(z))
            if smoothing > 0.0:
                store(totals, j, fma(z, weight, load(totals, j)))
            j += V
    for j in range(0, count, V):
        store(logs, j, log(load(sums, j)))
    for j in range(count):
        label = read(target, position + j)
        picked = np.float64(read(x, (0 if label == ignored else label) * inner + j) - read(tops, j))
        factor, total = np.float64(read(factors, (position + j) * step)), np.float64(read(totals, j))
        log_sum = np.float64(read(logs, j))
        loss, at_label, spread, sum_q = _position(label, ignored, w, total_w, n, smoothing, factor, log_sum, picked, total)
        write(losses, position + j, loss)
        write(sums, j, sum_q / np.float64(read(sums, j)))  # from here on what exp is multiplied by
        write(totals, j, -spread)
        write(labelled, j, at_label)
    if wanted:
        for c in range(n):
            p, q, weight, j = offset(x, c * inner), offset(dx, c * inner), splat(x, read(w, c)), 0
            while j + V <= count:
                store(q, j, fma(exp_nonpositive(load(p, j) - load(tops, j)), load(sums, j), load(totals, j) * weight))
                j += V
            if j < count:
                k = count - j
                store_n(q, j, fma(exp_nonpositive(load_n(p, j, k) - load(tops, j)), load(sums, j), load(totals, j) * weight), k)
        for j in range(count):
            label = read(target, position + j)
            if label != ignored:
                k = label * inner + j
                write(dx, k, np.float64(read(dx, k)) - np.float64(read(labelled, j)))


@kernel("i i W1 R3 L1 i R1 T T R1 i W1 W3")
def columns_of_classes(pool, block, scratch, x, target, ignored, w, total_w, smoothing, factors, wanted, losses, dx):
    """As rows_of_classes, for x (outer, classes, inner) and target (outer * inner,). scratch: 5 * block for each thread."""
    outer, n, inner = x.shape
    blocks = (inner + block - 1) // block
    parallel_for(pool, _columns_chunk, outer * blocks,
                 (pointer(x), n, inner, block, blocks, pointer(scratch), pointer(target), ignored, pointer(w), np.float64(total_w),
                  np.float64(smoothing), pointer(factors), 1 if factors.shape[0] > 1 else 0, wanted, pointer(losses), pointer(dx)))


# ------------------------------------------------------------------------------------------------ nll
@kernel("R3 L2 i R1 W2")
def negative_picks(x, target, ignored, w, losses):
    """losses[o, j] = -w[k] * x[o, k, j] at the label k = target[o, j]; 0 where that is ignored."""
    for o in range(target.shape[0]):
        for j in range(target.shape[1]):
            k = target[o, j]
            losses[o, j] = -(w[k] * x[o, k, j]) if k != ignored else number(pointer(x), 0.0)


@kernel("R1 L2 i R1 W3")
def negative_picks_gradient(factors, target, ignored, w, dx):
    """dx[o, k, j] = -factor * w[k]; dx holds zeros. factors: one for all, or one for each position."""
    step = 1 if factors.shape[0] > 1 else 0
    for o in range(target.shape[0]):
        for j in range(target.shape[1]):
            k = target[o, j]
            if k != ignored:
                dx[o, k, j] = -(factors[(o * target.shape[1] + j) * step] * w[k])
