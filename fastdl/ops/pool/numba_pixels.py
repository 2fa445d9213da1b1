"""Pooling where memory holds pixels, (N, D, H, W, C): every step is on vectors of channels, so all strides are alike.

On the way back each element of dx collects from the cells that look at it: it is written once, and threads share rows
of dx without meeting.
"""

from __future__ import annotations

import math

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import bits, lanes, load, maximum, offset, pointer, prefetch, read, select, splat, store, stream
from .numba_lanes import NOWHERE, load_places, load_up_to, store_places, store_up_to
from .numba_row_parts import add
from .numba_rows import SHARE
from .numba_windows import CELL, COUNT, DILATION, FIRST, OFFSET, OUT, SEEN, SIZE, SKIPPED, STRIDE, WIDE, WINDOW

# Elements: where windows do not overlap, memory is asked for so long before it is read. 64 x 128 x 56 x 56 by 2 x 2 on one core of Zen 5:
# 5.0 ms, and 8.0 without.
AHEAD = 1024
PIECE = 16  # pixels of a window at a time: more streams than that the hardware does not fetch ahead


@inline
def _three(plan, field):
    """The tables of three dimensions."""
    return offset(plan, read(plan, field)), offset(plan, read(plan, field + 1)), offset(plan, read(plan, field + 2))


@inline
def _strides(x):
    size = x.itemsize
    return x.strides[0] // size, x.strides[2] // size, x.strides[3] // size, x.strides[4] // size


@inline
def keep(v, count):
    return v


@inline
def mean(v, count):
    return v / splat(v, count)


@inline
def ask(p, ahead):
    """For the four vectors from p[ahead] on."""
    if ahead > 0:
        for i in range(4):
            prefetch(p, ahead + i * lanes(p))


# ------------------------------------------------------------------------------------------------ maxima and sums
def _reduction(combine, empty, finish):
    @inline
    def pixels(x, nh, sh, nw, sw, C, y, room, more, last, count, ahead, past):
        """All channels of nh * nw pixels, combined with y if ``more``, and finished if this is the ``last`` of a window.

        ahead: how far before they are read elements are asked for, 0 where others have read them. past: whether y goes past the caches.
        """
        V = lanes(x)
        c = 0
        while c + 4 * V <= C:
            q = offset(x, c)
            ask(q, ahead)
            v0, v1, v2, v3 = load(q, 0), load(q, V), load(q, 2 * V), load(q, 3 * V)
            w = 1
            for h in range(nh):
                while w < nw:
                    p = offset(q, h * sh + w * sw)
                    ask(p, ahead)
                    v0, v1 = combine(v0, load(p, 0)), combine(v1, load(p, V))
                    v2, v3 = combine(v2, load(p, 2 * V)), combine(v3, load(p, 3 * V))
                    w += 1
                w = 0
            if more:
                v0, v1 = combine(load(y, c), v0), combine(load(y, c + V), v1)
                v2, v3 = combine(load(y, c + 2 * V), v2), combine(load(y, c + 3 * V), v3)
            if last:
                v0, v1, v2, v3 = finish(v0, count), finish(v1, count), finish(v2, count), finish(v3, count)
            if past and last and not more:
                stream(y, c, v0)
                stream(y, c + V, v1)
                stream(y, c + 2 * V, v2)
                stream(y, c + 3 * V, v3)
            else:
                store(y, c, v0)
                store(y, c + V, v1)
                store(y, c + 2 * V, v2)
                store(y, c + 3 * V, v3)
            c += 4 * V
        while c < C:
            v0 = load_up_to(x, c, C - c)
            w = 1
            for h in range(nh):
                while w < nw:
                    v0 = combine(v0, load_up_to(x, h * sh + w * sw + c, C - c))
                    w += 1
                w = 0
            if more:
                v0 = combine(load_up_to(y, c, room - c), v0)
            store_up_to(y, c, finish(v0, count) if last else v0, room - c)
            c += V

    @inline
    def chunk(slot, index, share, rows, x, sn, sd, sh, sw, C, plan, divisors, y, past):
        OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
        first_d, first_h, first_w = _three(plan, FIRST)
        count_d, count_h, count_w = _three(plan, COUNT)
        dd, dh, dw = read(plan, DILATION) * sd, read(plan, DILATION + 1) * sh, read(plan, DILATION + 2) * sw
        divisors_h, divisors_w = offset(divisors, OD), offset(divisors, OD + OH)
        ahead = AHEAD if read(plan, STRIDE + 2) >= read(plan, WINDOW + 2) else 0
        together = max(1, PIECE // read(plan, WINDOW + 2))  # rows of a window
        end = min(rows, (index + 1) * share)
        for r in range(index * share, end):
            od, oh = r // OH % OD, r % OH
            nd, nh = read(count_d, od), read(count_h, oh)
            top = offset(x, r // (OH * OD) * sn + read(first_d, od) * sd + read(first_h, oh) * sh)
            divisor = read(divisors, od) * read(divisors_h, oh)
            for ow in range(OW):
                nw, corner = read(count_w, ow), offset(top, read(first_w, ow) * sw)
                target, room = offset(y, (r * OW + ow) * C), ((end - r) * OW - ow) * C
                count = divisor * read(divisors_w, ow)
                if nd * nh * nw == 0:
                    for c in range(0, C, lanes(y)):
                        store_up_to(target, c, splat(y, empty), room - c)
                    continue
                for d in range(nd):
                    h = 0
                    while h < nh:
                        for w in range(0, nw, PIECE):
                            last = d == nd - 1 and h + together >= nh and w + PIECE >= nw
                            pixels(offset(corner, d * dd + h * dh + w * dw), min(together, nh - h), dh, min(PIECE, nw - w), dw, C,
                                   target, room, d + h + w > 0, last, count, ahead, past)
                        h += together

    return chunk


_max_chunk = _reduction(maximum, -math.inf, keep)
_mean_chunk = _reduction(add, 0.0, mean)


@inline
def _shares(x, y):
    """How many rows of the output there are, and how many make a thread's share."""
    rows = y.shape[0] * y.shape[2] * y.shape[3]
    return rows, max(1, SHARE * rows // max(1, x.size))


@kernel("i R5 L1 R1 W5 i")
def max_pixels(pool, x, plan, divisors, y, past):
    """y[cell] = the largest element of its window. x: channels side by side. y: (N, C, D, H, W), channels-last without gaps.

    plan: of a Plan. divisors: not used. past: whether y goes past the caches; its pixels must be multiples of 16 bytes then.
    """
    sn, sd, sh, sw = _strides(x)
    rows, share = _shares(x, y)
    parallel_for(pool, _max_chunk, (rows + share - 1) // share,
                 (share, rows, pointer(x), sn, sd, sh, sw, x.shape[1], pointer(plan), pointer(divisors), pointer(y), past))


@kernel("i R5 L1 R1 W5 i")
def mean_pixels(pool, x, plan, divisors, y, past):
    """y[cell] = the sum of its window divided by divisors[od] * divisors[D + oh] * divisors[D + H + ow]. past: as there."""
    sn, sd, sh, sw = _strides(x)
    rows, share = _shares(x, y)
    parallel_for(pool, _mean_chunk, (rows + share - 1) // share,
                 (share, rows, pointer(x), sn, sd, sh, sw, x.shape[1], pointer(plan), pointer(divisors), pointer(y), past))


# ------------------------------------------------------------------------------------------------ maxima and their places
@inline
def _search(v, best, place, here):
    wins = (v > best) | (v != v)
    return select(wins, v, best), select(wins, here, place)


@inline
def _search_window(x, nd, sd, nh, sh, nw, sw, C, code, code_d, code_h, y, at, narrow, wide, is_wide, room):
    """One cell's maxima, and the window offsets at which they stand, ``code`` being that of the first pixel."""
    V = lanes(x)
    c = 0
    while c < C:
        q = offset(x, c)
        b0 = splat(x, -math.inf)
        p0 = splat(bits(b0), code)
        one = splat(p0, 1)
        many = c + 4 * V <= C
        b1, b2, b3, p1, p2, p3 = b0, b0, b0, p0, p0, p0
        for d in range(nd):
            for h in range(nh):
                p = offset(q, d * sd + h * sh)
                here = splat(p0, code + d * code_d + h * code_h)
                for w in range(nw):
                    if many:
                        b0, p0 = _search(load(p, w * sw), b0, p0, here)
                        b1, p1 = _search(load(p, w * sw + V), b1, p1, here)
                        b2, p2 = _search(load(p, w * sw + 2 * V), b2, p2, here)
                        b3, p3 = _search(load(p, w * sw + 3 * V), b3, p3, here)
                    else:
                        b0, p0 = _search(load_up_to(p, w * sw, C - c), b0, p0, here)
                    here = here + one
        store_up_to(y, at + c, b0, room - c)
        store_places(narrow, wide, is_wide, at + c, p0, V, room - c)
        c += V
        if many:
            store(y, at + c, b1)
            store_places(narrow, wide, is_wide, at + c, p1, V, V)
            store(y, at + c + V, b2)
            store_places(narrow, wide, is_wide, at + c + V, p2, V, V)
            store(y, at + c + 2 * V, b3)
            store_places(narrow, wide, is_wide, at + c + 2 * V, p3, V, V)
            c += 3 * V


@inline
def _search_chunk(slot, index, share, rows, x, sn, sd, sh, sw, C, plan, y, narrow, wide):
    OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
    KH, KW, is_wide = read(plan, WINDOW + 1), read(plan, WINDOW + 2), read(plan, WIDE) != 0
    first_d, first_h, first_w = _three(plan, FIRST)
    count_d, count_h, count_w = _three(plan, COUNT)
    skipped_d, skipped_h, skipped_w = _three(plan, SKIPPED)
    dd, dh, dw = read(plan, DILATION) * sd, read(plan, DILATION + 1) * sh, read(plan, DILATION + 2) * sw
    end = min(rows, (index + 1) * share)
    for r in range(index * share, end):
        od, oh = r // OH % OD, r % OH
        nd, nh = read(count_d, od), read(count_h, oh)
        top = offset(x, r // (OH * OD) * sn + read(first_d, od) * sd + read(first_h, oh) * sh)
        row_code = (read(skipped_d, od) * KH + read(skipped_h, oh)) * KW
        for ow in range(OW):
            nw = read(count_w, ow)
            code = row_code + read(skipped_w, ow) if nd * nh * nw > 0 else NOWHERE
            _search_window(offset(top, read(first_w, ow) * sw), nd, dd, nh, dh, nw, dw, C, code, KH * KW, KW,
                           y, (r * OW + ow) * C, narrow, wide, is_wide, ((end - r) * OW - ow) * C)


@kernel("i R5 L1 W5 B1 L1")
def search_pixels(pool, x, plan, y, narrow, wide):
    """max_pixels, and where in its window each maximum stands: see numba_lanes.store_places."""
    sn, sd, sh, sw = _strides(x)
    rows, share = _shares(x, y)
    parallel_for(pool, _search_chunk, (rows + share - 1) // share,
                 (share, rows, pointer(x), sn, sd, sh, sw, x.shape[1], pointer(plan), pointer(y), pointer(narrow), pointer(wide)))


# ------------------------------------------------------------------------------------------------ the way back
@inline
def _taken(v, narrow, wide, is_wide, at, code, weight):
    return select(load_places(narrow, wide, is_wide, at, bits(v)) == splat(bits(v), code), v, splat(v, 0.0))


@inline
def _weighted(v, narrow, wide, is_wide, at, code, weight):
    return v * splat(v, weight)


def _collection(term):
    """The body of a kernel in which each element of dx adds up one term of each cell that looks at it."""

    @inline
    def row_of(g, at, W, C, narrow, wide, is_wide, code, weight, seen, cell, offsets, weights, dx, room, more):
        """A row of dx from the row of cells at ``at``, which it meets at offset ``code``; added to what is there if ``more``."""
        V = lanes(g)
        for w in range(W):
            target, left, again = offset(dx, w * C), room - w * C, more
            if read(seen, w) == read(seen, w + 1) and not again:
                for c in range(0, C, V):
                    store_up_to(target, c, splat(dx, 0.0), left - c)
            for k in range(read(seen, w), read(seen, w + 1)):
                ow = read(cell, k)
                here, place, factor = at + ow * C, code + read(offsets, k), weight * read(weights, ow)
                c = 0
                while c + 2 * V <= C:
                    a = term(load(g, here + c), narrow, wide, is_wide, here + c, place, factor)
                    b = term(load(g, here + c + V), narrow, wide, is_wide, here + c + V, place, factor)
                    if again:
                        a, b = load(target, c) + a, load(target, c + V) + b
                    store(target, c, a)
                    store(target, c + V, b)
                    c += 2 * V
                while c < C:
                    a = term(load_up_to(g, here + c, C - c), narrow, wide, is_wide, here + c, place, factor)
                    if again:
                        a = load_up_to(target, c, left - c) + a
                    store_up_to(target, c, a, left - c)
                    c += V
                again = True

    @inline
    def chunk(slot, index, share, rows, g, C, plan, narrow, wide, weights, dx):
        OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
        D, H, W = read(plan, SIZE), read(plan, SIZE + 1), read(plan, SIZE + 2)
        KH, KW, is_wide = read(plan, WINDOW + 1), read(plan, WINDOW + 2), read(plan, WIDE) != 0
        seen_d, seen_h, seen_w = _three(plan, SEEN)
        cell_d, cell_h, cell_w = _three(plan, CELL)
        offset_d, offset_h, offset_w = _three(plan, OFFSET)
        weights_h, weights_w = offset(weights, OD), offset(weights, OD + OH)
        end = min(rows, (index + 1) * share)
        for r in range(index * share, end):
            d, h, image = r // H % D, r % H, r // (D * H)
            more = False
            for i in range(read(seen_d, d), read(seen_d, d + 1)):
                for j in range(read(seen_h, h), read(seen_h, h + 1)):
                    od, oh = read(cell_d, i), read(cell_h, j)
                    row_of(g, ((image * OD + od) * OH + oh) * OW * C, W, C, narrow, wide, is_wide,
                           (read(offset_d, i) * KH + read(offset_h, j)) * KW, read(weights, od) * read(weights_h, oh),
                           seen_w, cell_w, offset_w, weights_w, offset(dx, r * W * C), (end - r) * W * C, more)
                    more = True
            if not more:
                for i in range(0, W * C, lanes(g)):
                    store_up_to(dx, r * W * C + i, splat(dx, 0.0), (end - r) * W * C - i)

    return chunk


_taken_chunk = _collection(_taken)
_spread_chunk = _collection(_weighted)


@inline
def _shares_back(dx):
    rows = dx.shape[0] * dx.shape[2] * dx.shape[3]
    return rows, max(1, SHARE // max(1, dx.shape[1] * dx.shape[4]))


@kernel("i R5 L1 B1 L1 R1 W5")
def collect_pixels(pool, g, plan, narrow, wide, weights, dx):
    """dx[element] = the sum of g[cell] over the cells that took it. g, dx: channels-last without gaps.

    plan: with the tables of the way back. narrow, wide: as search_pixels left them. weights: of a Plan, not used.
    """
    rows, share = _shares_back(dx)
    parallel_for(pool, _taken_chunk, (rows + share - 1) // share,
                 (share, rows, pointer(g), dx.shape[1], pointer(plan), pointer(narrow), pointer(wide), pointer(weights), pointer(dx)))


@kernel("i R5 L1 B1 L1 R1 W5")
def spread_pixels(pool, g, plan, narrow, wide, weights, dx):
    """dx[element] = the sum over the windows that hold it of g[cell] * weights[od] * weights[D + oh] * weights[D + H + ow].

    narrow, wide: not used.
    """
    rows, share = _shares_back(dx)
    parallel_for(pool, _spread_chunk, (rows + share - 1) // share,
                 (share, rows, pointer(g), dx.shape[1], pointer(plan), pointer(narrow), pointer(wide), pointer(weights), pointer(dx)))
