"""Maxima and sums over windows where memory holds rows (N, C, D, H, W).

A window is a box, so its rows are taken first: element by element, a row of the output gets the maximum (sum) of the
input's rows that its windows lie over. Then one of four ways along that row:

    by pairs  windows two wide, side by side, without padding: two vectors of rows make one of cells
    threes    windows three wide, two apart: the same, and of the two vectors before the last element
    evenly    a vector of cells at a time: offset k of their windows is one vector, every stride-th element from k on
    by cells  cell by cell, a vector of the window's elements at a time: uneven windows, and few long ones

The last two keep a block of such rows, with padding around them, in scratch memory that stays in L1.

Outputs are written a whole vector at a time, beyond a row's end too: that memory is the next row's, which the same
thread writes after it. Only the end of a thread's share needs care.
"""

from __future__ import annotations

import math

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import (
    first_lanes,
    gather,
    hmax,
    hsum,
    lanes,
    load,
    load_n,
    maximum,
    offset,
    pointer,
    prefetch,
    read,
    select,
    splat,
    store,
    write,
)
from .numba_lanes import deinterleave, load_alternate, load_up_to, shift_in, store_up_to
from .numba_row_parts import (
    add,
    add_three,
    fill,
    keep,
    keep_number,
    larger_number,
    maximum_of_three,
    mean,
    mean_number,
    next_position,
    position,
    rest_again,
    rest_only,
    visible,
)
from .numba_windows import BEFORE, COUNT, DILATION, FIRST, OUT, SIZE, STRIDE, WINDOW

# Elements: pairs lie one after the other, and memory is asked for so long before they are read. 64 x 128 x 56 x 56 by 2 x 2 on one core
# of Zen 5: 3.1 ms, and 5.2 without.
AHEAD = 2048
SHARE = 1 << 14  # elements of the input that a thread takes at a time


# ------------------------------------------------------------------------------------------------ forward
def reduction(combine, combine_three, combine_numbers, across, rest, empty, finish, finish_number):
    """The body of a kernel that takes some rows of the output. ``empty`` is what a window without elements gives."""

    @inline
    def together(x, nd, sd, first, count, dh, sh, rows, low, high, length, target, pitch):
        """Rows of the target, one for each of ``rows`` entries of first and count: a padded row of windows' columns.

        x: the element at ``low`` of row 0.
        """
        V = lanes(x)
        n = high - low
        for j in range(rows):
            nh, top, row = read(count, j), offset(x, read(first, j) * sh), offset(target, j * pitch)
            if nd * nh == 0:
                fill(row, 0, length, empty)
                continue
            fill(row, 0, low, empty)
            row = offset(row, low)
            i = 0
            while i < n:
                if n >= V:
                    i = min(i, n - V)
                p = offset(top, i)
                a = load_up_to(top, i, n)
                if nd == 1 and nh == 3 and n >= V:  # the usual window, without a loop
                    a = combine(combine(a, load(p, dh)), load(p, 2 * dh))
                else:
                    h = 1
                    for d in range(nd):
                        while h < nh:
                            a = combine(a, load_up_to(p, d * sd + h * dh, n))
                            h += 1
                        h = 0
                store(row, i, a)
                i += V
            fill(row, n, length - low, empty)

    @inline
    def along(source, pitch, rows, n, window, stride, dilation, weight, counts_h, counts, y, y_pitch, room):
        """n cells of each of some padded rows; y has room for ``room`` elements."""
        V = lanes(source)
        for j in range(rows):
            scale = weight * read(counts_h, j)
            left = room - j * y_pitch
            row, target = offset(source, j * pitch), offset(y, j * y_pitch)
            for o in range(0, n, V):
                p = offset(row, o * stride)
                if stride == 1:
                    a = load(p, 0)
                    if window == 3:
                        a = combine(combine(a, load(p, dilation)), load(p, 2 * dilation))
                    else:
                        for k in range(1, window):
                            a = combine(a, load(p, k * dilation))
                elif stride == 2:
                    a = load_alternate(p, 0)
                    if window == 3:
                        a = combine(combine(a, load_alternate(p, dilation)), load_alternate(p, 2 * dilation))
                    else:
                        for k in range(1, window):
                            a = combine(a, load_alternate(p, k * dilation))
                else:
                    a = gather(row, o * stride, stride)
                    for k in range(1, window):
                        a = combine(a, gather(p, k * dilation, stride))
                store_up_to(target, o, finish(a, scale, counts, o), left - o)

    @inline
    def pairs(x, nd, sd, first, count, dh, sh, rows, W, before, n, weight, counts_h, counts, y, room):
        """n cells of each of some rows, each cell two wide; W and before: as for threes, which needs them."""
        V = lanes(x)
        for j in range(rows):
            nh, top, target = read(count, j), offset(x, read(first, j) * sh), offset(y, j * n)
            scale, left = weight * read(counts_h, j), room - j * n
            if nd * nh == 0:
                for o in range(n):
                    write(target, o, empty)
                continue
            o = 0
            while o < n:
                if n >= V:
                    o = min(o, n - V)
                i, half = 2 * o, 2 * o + V
                prefetch(top, i + AHEAD)
                prefetch(top, half + AHEAD)
                a, b = load_up_to(top, i, 2 * n), load_up_to(top, half, 2 * n - V)
                h = 1
                for d in range(nd):
                    while h < nh:
                        p = offset(top, d * sd + h * dh)
                        prefetch(p, i + AHEAD)
                        prefetch(p, half + AHEAD)
                        a, b = combine(a, load_up_to(p, i, 2 * n)), combine(b, load_up_to(p, half, 2 * n - V))
                        h += 1
                    h = 0
                a, b = deinterleave(a, b)
                store_up_to(target, o, finish(combine(a, b), scale, counts, o), left - o)
                o += V

    @inline
    def over_rows(p, i, nd, sd, nh, dh):
        """A vector of columns from p[i] on, of a window's rows."""
        p = offset(p, i)
        if nd == 1 and nh == 3:  # the usual window, without a loop
            return combine_three(load(p, 0), load(p, dh), load(p, 2 * dh))
        a = load(p, 0)
        h = 1
        for d in range(nd):
            while h < nh:
                a = combine(a, load(p, d * sd + h * dh))
                h += 1
            h = 0
        return a

    @inline
    def over_rows_n(p, i, nd, sd, nh, dh, n):
        """The same for n columns, fewer than a vector's; the others are ``empty``."""
        p = offset(p, i)
        a = load_n(p, 0, n)
        if nd == 1 and nh == 3:
            a = combine_three(a, load_n(p, dh, n), load_n(p, 2 * dh, n))
        else:
            h = 1
            for d in range(nd):
                while h < nh:
                    a = combine(a, load_n(p, d * sd + h * dh, n))
                    h += 1
                h = 0
        return select(first_lanes(p, n), a, splat(p, empty))

    @inline
    def threes(x, nd, sd, first, count, dh, sh, rows, W, before, n, weight, counts_h, counts, y, room):
        """n cells of each of some rows of W elements, each cell three wide: the element before two others, and these."""
        V = lanes(x)
        begin = 1 - before
        for j in range(rows):
            nh, top, target = read(count, j), offset(x, read(first, j) * sh), offset(y, j * n)
            scale, left = weight * read(counts_h, j), room - j * n
            if nd * nh == 0:
                for o in range(n):
                    write(target, o, empty)
                continue
            last = splat(x, empty)
            if begin > 0:
                s = read(top, 0)
                h = 1
                for d in range(nd):
                    while h < nh:
                        s = combine_numbers(s, read(top, d * sd + h * dh))
                        h += 1
                    h = 0
                last = splat(x, s)
            row, length = offset(top, begin), W - begin
            whole = min(n, length // 2) // V * V
            o = 0
            while o < whole:
                a, b = over_rows(row, 2 * o, nd, sd, nh, dh), over_rows(row, 2 * o + V, nd, sd, nh, dh)
                even, odd = deinterleave(a, b)
                store(target, o, finish(combine_three(shift_in(last, odd), even, odd), scale, counts, o))
                last = odd
                o += V
            while o < n:
                a = over_rows_n(row, 2 * o, nd, sd, nh, dh, min(V, length - 2 * o))
                b = splat(x, empty)
                if length > 2 * o + V:
                    b = over_rows_n(row, 2 * o + V, nd, sd, nh, dh, min(V, length - 2 * o - V))
                even, odd = deinterleave(a, b)
                store_up_to(target, o, finish(combine_three(shift_in(last, odd), even, odd), scale, counts, o), left - o)
                last = odd
                o += V

    @inline
    def one_by_one(source, pitch, rows, begin, first, count, n, weight, counts_h, counts, y, y_pitch):
        """n cells of each of some rows, the first element of which is number ``begin`` of the input's row."""
        V = lanes(source)
        for j in range(rows):
            scale = weight * read(counts_h, j)
            for o in range(n):
                m, p = read(count, o), offset(source, j * pitch + read(first, o) - begin)
                if m < V:
                    s = read(p, 0)
                    for i in range(1, m):
                        s = combine_numbers(s, read(p, i))
                else:
                    a = load(p, 0)
                    i = V
                    if m >= 4 * V:
                        b, c, e = load(p, V), load(p, 2 * V), load(p, 3 * V)
                        i = 4 * V
                        while i + 4 * V <= m:
                            a, b = combine(a, load(p, i)), combine(b, load(p, i + V))
                            c, e = combine(c, load(p, i + 2 * V)), combine(e, load(p, i + 3 * V))
                            i += 4 * V
                        a = combine(combine(a, b), combine(c, e))
                    while i + V <= m:
                        a = combine(a, load(p, i))
                        i += V
                    if i < m:
                        a = combine(a, rest(p, i, m))
                    s = across(a)
                write(y, j * y_pitch + o, finish_number(s, scale, counts, o))

    def by_rows_of(cells):
        """Whole rows of cells at a time, which ``cells`` makes."""

        @inline
        def run(slot, index, share, total, x, sn, sc, sd, sh, channels, plan, segment, block, pitch, counts, y, scratch):
            OD, OH, OW, W = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2), read(plan, SIZE + 2)
            first_d, count_d = offset(plan, read(plan, FIRST)), offset(plan, read(plan, COUNT))
            first_h, count_h = offset(plan, read(plan, FIRST + 1)), offset(plan, read(plan, COUNT + 1))
            dd, dh = read(plan, DILATION) * sd, read(plan, DILATION + 1) * sh
            r, end = index * share, min(total, (index + 1) * share)
            oh, od, plane = position(r, OH, OD)
            while r < end:
                rows = min(OH - oh, end - r)
                top = offset(x, plane // channels * sn + plane % channels * sc + read(first_d, od) * sd)
                cells(top, read(count_d, od), dd, offset(first_h, oh), offset(count_h, oh), dh, sh, rows, W, read(plan, BEFORE + 2), OW,
                       read(counts, od), offset(counts, OD + oh), offset(counts, OD + OH), offset(y, r * OW), (end - r) * OW)
                oh, od, plane = next_position(oh, od, plane, rows, OH, OD)
                r += rows

        return run

    by_pairs, by_threes = by_rows_of(pairs), by_rows_of(threes)

    @inline
    def evenly(slot, index, share, total, x, sn, sc, sd, sh, channels, plan, segment, block, pitch, counts, y, scratch):
        OD, OH, OW, W = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2), read(plan, SIZE + 2)
        window, stride, dilation, before = read(plan, WINDOW + 2), read(plan, STRIDE + 2), read(plan, DILATION + 2), read(plan, BEFORE + 2)
        first_d, count_d = offset(plan, read(plan, FIRST)), offset(plan, read(plan, COUNT))
        first_h, count_h = offset(plan, read(plan, FIRST + 1)), offset(plan, read(plan, COUNT + 1))
        dd, dh = read(plan, DILATION) * sd, read(plan, DILATION + 1) * sh
        buffer = offset(scratch, slot * (block * pitch))
        r, end = index * share, min(total, (index + 1) * share)
        oh, od, plane = position(r, OH, OD)
        while r < end:
            rows = min(min(OH - oh, end - r), block)
            top = offset(x, plane // channels * sn + plane % channels * sc + read(first_d, od) * sd)
            o = 0
            while o < OW:
                n = min(segment, OW - o)
                begin = o * stride - before
                length = (n - 1) * stride + (window - 1) * dilation + 1
                low, high = visible(begin, length, W)
                together(offset(top, begin + low), read(count_d, od), dd, offset(first_h, oh), offset(count_h, oh), dh, sh, rows,
                         low, high, length, buffer, pitch)
                along(buffer, pitch, rows, n, window, stride, dilation, read(counts, od), offset(counts, OD + oh),
                      offset(counts, OD + OH + o), offset(y, r * OW + o), OW, (end - r) * OW - o)
                o += segment
            oh, od, plane = next_position(oh, od, plane, rows, OH, OD)
            r += rows

    @inline
    def by_cells(slot, index, share, total, x, sn, sc, sd, sh, channels, plan, segment, block, pitch, counts, y, scratch):
        OD, OH, OW, W = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2), read(plan, SIZE + 2)
        first_d, count_d = offset(plan, read(plan, FIRST)), offset(plan, read(plan, COUNT))
        first_h, count_h = offset(plan, read(plan, FIRST + 1)), offset(plan, read(plan, COUNT + 1))
        first_w, count_w = offset(plan, read(plan, FIRST + 2)), offset(plan, read(plan, COUNT + 2))
        dd, dh, stride_h = read(plan, DILATION) * sd, read(plan, DILATION + 1) * sh, read(plan, STRIDE + 1) * sh
        buffer = offset(scratch, slot * (block * pitch))
        r, end = index * share, min(total, (index + 1) * share)
        oh, od, plane = position(r, OH, OD)
        while r < end:
            rows = min(min(OH - oh, end - r), block)
            top = offset(x, plane // channels * sn + plane % channels * sc + read(first_d, od) * sd)
            o = 0
            while o < OW:
                n = min(segment, OW - o)
                begin = read(first_w, o)
                length = read(first_w, o + n - 1) + read(count_w, o + n - 1) - begin
                source, source_pitch = buffer, pitch
                if pitch > 0:
                    low, high = visible(begin, length, W)
                    together(offset(top, begin + low), read(count_d, od), dd, offset(first_h, oh), offset(count_h, oh), dh, sh, rows,
                             low, high, length, buffer, pitch)
                else:  # windows one row high: that row is read in place
                    source, source_pitch = offset(top, begin + read(first_h, oh) * sh), stride_h
                one_by_one(source, source_pitch, rows, begin, offset(first_w, o), offset(count_w, o), n, read(counts, od),
                           offset(counts, OD + oh), offset(counts, OD + OH + o), offset(y, r * OW + o), OW)
                o += segment
            oh, od, plane = next_position(oh, od, plane, rows, OH, OD)
            r += rows

    return by_pairs, evenly, by_cells, by_threes


_maxima = reduction(maximum, maximum_of_three, larger_number, hmax, rest_again, -math.inf, keep, keep_number)
_means = reduction(add, add_three, add, hsum, rest_only, 0.0, mean, mean_number)


@inline
def _arguments(x, plan, segment, block, pitch, counts, scratch, y):
    """How many shares there are, and the arguments of each."""
    size = x.itemsize
    rows = y.shape[0] * y.shape[1] * y.shape[2] * y.shape[3]
    share = max(1, SHARE * rows // max(1, x.size))
    return (rows + share - 1) // share, (
        share, rows, pointer(x), x.strides[0] // size, x.strides[1] // size, x.strides[2] // size, x.strides[3] // size, x.shape[1],
        pointer(plan), segment, block, pitch, pointer(counts), pointer(y), pointer(scratch))


# max_*: y[cell] = the largest element of its window. mean_*: the sum of its window, divided by the product of divisors[od],
# divisors[D + oh] and divisors[D + H + ow].
#
# x: rows without gaps. y: (N, C, D, H, W) without gaps. plan, segment, block, pitch, divisors (those of maxima are not used):
# of a Plan. scratch: block * pitch elements for each thread.
def _entry(name, body):
    def run(pool, x, plan, segment, block, pitch, divisors, scratch, y):
        shares, arguments = _arguments(x, plan, segment, block, pitch, divisors, scratch, y)
        parallel_for(pool, body, shares, arguments)

    run.__qualname__ = name
    return kernel("i R5 L1 i i i R1 W1 W5")(run)


# by way
_NAMES = "by_pairs", "evenly", "by_cells", "by_threes"
MAX = tuple(_entry(f"max_{name}", body) for name, body in zip(_NAMES, _maxima, strict=True))
MEAN = tuple(_entry(f"mean_{name}", body) for name, body in zip(_NAMES, _means, strict=True))
