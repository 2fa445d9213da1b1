"""Rows copied by index, and gradients added to rows in the order of the indices."""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.borrowed import absent, contents, create_like, nothing
from ...cpu.jit import inline, kernel
from ...cpu.simd import address, lanes, load, load_n, offset, pointer, prefetch, read, store, store_n
from ...cpu.thresholds import ELEMENTS

SHARE = 1 << 14  # elements that a thread takes at a time, in whole rows
_AHEAD = 2  # rows whose first lines are asked for early: which comes next the machine cannot guess


@inline
def _copy_chunk(slot, chunk, index, n, share, w, step, width, y):
    V = lanes(w)
    for r in range(chunk * share, min(n, (chunk + 1) * share)):
        p, q, i = offset(w, read(index, r) * step), offset(y, r * width), 0
        later = offset(w, read(index, min(r + _AHEAD, n - 1)) * step)
        while i + V <= width:
            prefetch(later, i)
            store(q, i, load(p, i))
            i += V
        if i < width:
            prefetch(later, i)
            store_n(q, i, load_n(p, i, width - i), width - i)


@kernel("i L1 R2 W2")
def copy_rows(pool, index, w, y):
    """y[r] = w[index[r]]; the elements of a row of w lie side by side."""
    n, width = y.shape
    share = max(1, SHARE // max(1, width))
    parallel_for(pool, _copy_chunk, (n + share - 1) // share,
                 (pointer(index), n, share, pointer(w), w.strides[0] // w.itemsize, width, pointer(y)))


@kernel("OL* O2")
def copy_at_once(index, w):
    """w[index], of few elements; None where that is not so, an index is out of range, or memory lies otherwise than it is read here."""
    if absent(index) or absent(w):
        return nothing(w)
    n, (rows, width) = index.shape[0], w.shape
    if n * width > ELEMENTS or n == 0 or (w.strides[1] != w.itemsize and width > 1):
        return nothing(w)
    named = pointer(index)
    for r in range(n):
        if read(named, r) < 0 or read(named, r) >= rows:
            return nothing(w)
    made = create_like(index, w, width)
    if address(contents(made)) != 0:
        _copy_chunk(0, 0, named, n, n, pointer(w), w.strides[0] // w.itemsize, width, contents(made))
    return made


@inline
def _add_chunk(slot, chunk, index, n, share, padding, g, step, width, dw):
    V = lanes(g)
    low, high = chunk * share, (chunk + 1) * share
    for r in range(n):
        k = read(index, r)
        if low <= k < high and k != padding:
            p, q, i = offset(g, r * step), offset(dw, k * width), 0
            while i + V <= width:
                store(q, i, load(q, i) + load(p, i))
                i += V
            if i < width:
                store_n(q, i, load_n(q, i, width - i) + load_n(p, i, width - i), width - i)


@kernel("i i L1 i R2 W2")
def add_rows(pool, parts, index, padding, g, dw):
    """dw[index[r]] += g[r] for r = 0, 1, ...; rows of index ``padding`` are left out.

    dw is split into ``parts``, each of which looks through all indices: its bits do not depend on how many there are.
    """
    rows, width = dw.shape
    share = (rows + parts - 1) // parts
    parallel_for(pool, _add_chunk, parts,
                 (pointer(index), index.shape[0], share, padding, pointer(g), g.strides[0] // g.itemsize, width, pointer(dw)))
