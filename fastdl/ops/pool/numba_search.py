"""Maxima and their places where memory holds rows (N, C, D, H, W), and places as indices.

Of equal elements the first wins and of NaN the last, in the order of memory, so a window is searched row by row, here for
a vector of cells at once (in copies of the rows with padding around them, or in place; two by two with two loads for each row) or
cell by cell.
"""

from __future__ import annotations

import math

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import bits, hmax, lanes, load, load_n, offset, pointer, prefetch, read, select, splat, write
from .numba_lanes import (
    copy,
    deinterleave,
    lane_numbers,
    largest_integer,
    load_integers,
    load_strided,
    load_up_to,
    store_lanes,
    store_place,
    store_up_to,
)
from .numba_row_parts import fill, next_position, position, visible
from .numba_rows import AHEAD, SHARE
from .numba_windows import BEFORE, COUNT, DILATION, FIRST, ORIGIN, OUT, PLACES, SIZE, SKIPPED, STRIDE, WIDE, WINDOW


# ------------------------------------------------------------------------------------------------ forward
@inline
def _copy_lines(x, nd, sd, first, count, dh, sh, rows, low, high, length, lines, pitch, KD, KH):
    """The rows under the windows of some rows of cells, with padding around them. x: the element at ``low`` of row 0.

    Row h of slice d for row j of cells is line (j * KD + d) * KH + h.
    """
    for j in range(rows):
        for d in range(nd):
            p, line = offset(x, read(first, j) * sh + d * sd), offset(lines, (j * KD + d) * KH * pitch)
            for _ in range(read(count, j)):
                fill(line, 0, low, -math.inf)
                copy(line, low, p, 0, high - low)
                fill(line, high, length, -math.inf)
                p, line = offset(p, dh), offset(line, pitch)


@inline
def _search_along(x, first, first_pitch, pitch, nd, pitch_d, count, pitch_h, rows, n, furthest, window, stride, dilation, code, skipped_h,
                  code_d, skipped_w, y, narrow, y_pitch, room):
    """n cells of each of some rows of cells; those of row j start at x[first[j] * first_pitch + j * pitch].

    furthest: the last cell from which a vector may be read. code: the place of slice 0, of which skipped_h and skipped_w come
    before x.
    """
    V = lanes(x)
    for j in range(rows):
        row, nh = offset(x, read(first, j) * first_pitch + j * pitch), read(count, j)
        code_j, at, left = code + read(skipped_h, j) * window, j * y_pitch, room - j * y_pitch
        o = 0
        while o < n:
            o = min(o, furthest)
            best = splat(x, -math.inf)
            place = load_integers(skipped_w, o, bits(best)) + splat(bits(best), code_j)
            one = splat(place, 1)
            for d in range(nd):
                p, here = offset(row, d * pitch_d + o * stride), splat(place, code_j + d * code_d)
                for _ in range(nh):
                    for k in range(window):
                        v = load_strided(p, k * dilation, stride)
                        wins = (v > best) | (v != v)
                        best, place = select(wins, v, best), select(wins, here, place)
                        here = here + one
                    p = offset(p, pitch_h)
            store_up_to(y, at + o, best, left - o)
            store_lanes(narrow, at + o, place, V, left - o)
            o += V


@inline
def _better(best, place, v, here):
    wins = (v > best) | (v != v)
    return select(wins, v, best), select(wins, splat(place, here), place)


@inline
def _search_two_by_two(x, first, sh, rows, n, y, narrow, room):
    """n cells of each of some rows of cells, each cell two by two and no two of them with an element in common."""
    V = lanes(x)
    for j in range(rows):
        top, left = offset(x, read(first, j) * sh), room - j * n
        low = offset(top, sh)
        o = 0
        while o < n:
            if n >= V:
                o = min(o, n - V)
            i, half = 2 * o, 2 * o + V
            prefetch(top, i + AHEAD)
            prefetch(top, half + AHEAD)
            prefetch(low, i + AHEAD)
            prefetch(low, half + AHEAD)
            best, b = deinterleave(load_up_to(top, i, 2 * n), load_up_to(top, half, 2 * n - V))
            c, d = deinterleave(load_up_to(low, i, 2 * n), load_up_to(low, half, 2 * n - V))
            place = splat(bits(best), 0)
            best, place = _better(best, place, b, 1)
            best, place = _better(best, place, c, 2)
            best, place = _better(best, place, d, 3)
            store_up_to(y, j * n + o, best, left - o)
            store_lanes(narrow, j * n + o, place, V, left - o)
            o += V


@inline
def _search_pairs(slot, index, share, total, x, sn, sc, sd, sh, channels, plan, segment, block, pitch, y, narrow, wide, scratch):
    OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
    first_d, first_h = offset(plan, read(plan, FIRST)), offset(plan, read(plan, FIRST + 1))
    r, end = index * share, min(total, (index + 1) * share)
    oh, od, plane = position(r, OH, OD)
    while r < end:
        rows = min(OH - oh, end - r)
        top = offset(x, plane // channels * sn + plane % channels * sc + read(first_d, od) * sd)
        _search_two_by_two(top, offset(first_h, oh), sh, rows, OW, offset(y, r * OW), offset(narrow, r * OW), (end - r) * OW)
        oh, od, plane = next_position(oh, od, plane, rows, OH, OD)
        r += rows


@inline
def _search_cell(x, nd, sd, nh, sh, n, dilation, code, code_d, code_h):
    """The maximum of one window of nd * nh rows of n elements, and its place."""
    V = lanes(x)
    if dilation > 1:
        most, where = read(x, 0), code
        for d in range(nd):
            for h in range(nh):
                p = offset(x, d * sd + h * sh)
                here = code + d * code_d + h * code_h
                for k in range(n):
                    a = read(p, k * dilation)
                    if a > most or a != a:
                        most, where = a, here + k
        return most, where
    nothing = splat(x, -math.inf)
    best, place = nothing, splat(bits(nothing), code)
    number = lane_numbers(place)
    inside = number < splat(place, n)
    for d in range(nd):
        for h in range(nh):
            p = offset(x, d * sd + h * sh)
            here = code + d * code_d + h * code_h
            i = 0
            while i < n:
                if n >= V:
                    i = min(i, n - V)  # elements that are seen twice have the same place both times
                v = load(p, i) if n >= V else select(inside, load_n(p, i, n), nothing)
                wins = (v > best) | (v != v)
                best, place = select(wins, v, best), select(wins, number + splat(place, here + i), place)
                i += V
    most = hmax(best)
    if most != most:
        return most, largest_integer(select(best != best, place, splat(place, -1)))
    zero = splat(place, 0)
    return most, -largest_integer(zero - select(best == splat(best, most), place, splat(place, (1 << 31) - 1)))


@inline
def _search_cells(x, nd, sd, first_h, count_h, dh, sh, rows, first, count, cells, dilation, code, skipped_h, code_d, window, skipped_w,
                  y, narrow, wide, is_wide, at):
    for j in range(rows):
        top, code_j, nh = offset(x, read(first_h, j) * sh), code + read(skipped_h, j) * window, read(count_h, j)
        for o in range(cells):
            value, place = _search_cell(offset(top, read(first, o)), nd, sd, nh, dh, read(count, o), dilation,
                                        code_j + read(skipped_w, o), code_d, window)
            write(y, at, value)
            store_place(narrow, wide, is_wide, at, place)
            at += 1


@inline
def _search_evenly(slot, index, share, total, x, sn, sc, sd, sh, channels, plan, segment, block, pitch, y, narrow, wide,
                   scratch):
    OD, OH, OW, W = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2), read(plan, SIZE + 2)
    KD, KH, window = read(plan, WINDOW), read(plan, WINDOW + 1), read(plan, WINDOW + 2)
    stride, dilation, before = read(plan, STRIDE + 2), read(plan, DILATION + 2), read(plan, BEFORE + 2)
    first_d, first_h = offset(plan, read(plan, FIRST)), offset(plan, read(plan, FIRST + 1))
    count_d, count_h = offset(plan, read(plan, COUNT)), offset(plan, read(plan, COUNT + 1))
    skipped_d, skipped_h, skipped_w = (offset(plan, read(plan, SKIPPED)), offset(plan, read(plan, SKIPPED + 1)),
                                       offset(plan, read(plan, SKIPPED + 2)))
    dd, dh = read(plan, DILATION) * sd, read(plan, DILATION + 1) * sh
    lines = offset(scratch, slot * (block * pitch * KD * KH))
    r, end = index * share, min(total, (index + 1) * share)
    oh, od, plane = position(r, OH, OD)
    while r < end:
        rows = min(min(OH - oh, end - r), block)
        nd, firsts, many, skips = read(count_d, od), offset(first_h, oh), offset(count_h, oh), offset(skipped_h, oh)
        top = offset(x, plane // channels * sn + plane % channels * sc + read(first_d, od) * sd)
        o = 0
        while o < OW:
            n = min(segment, OW - o)
            begin = o * stride - before
            length = (n - 1) * stride + (window - 1) * dilation + 1
            low, high = visible(begin, length, W)
            in_place = n >= lanes(x) and low == 0 and high == length
            source, first_pitch, line_pitch, pitch_d, pitch_h, furthest = offset(top, begin), sh, 0, dd, dh, n - lanes(x)
            if not in_place:
                _copy_lines(offset(top, begin + low), nd, dd, firsts, many, dh, sh, rows, low, high, length, lines, pitch, KD, KH)
                source, first_pitch, line_pitch, pitch_d, pitch_h, furthest = lines, 0, KD * KH * pitch, KH * pitch, pitch, n
            _search_along(source, firsts, first_pitch, line_pitch, nd, pitch_d, many, pitch_h, rows, n, furthest, window, stride, dilation,
                          read(skipped_d, od) * (KH * window), skips, KH * window, offset(skipped_w, o), offset(y, r * OW + o),
                          offset(narrow, r * OW + o), OW, (end - r) * OW - o)
            o += segment
        oh, od, plane = next_position(oh, od, plane, rows, OH, OD)
        r += rows


@inline
def _search_by_cells(slot, index, share, total, x, sn, sc, sd, sh, channels, plan, segment, block, pitch, y, narrow, wide,
                     scratch):
    OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
    KH, window, dilation, is_wide = read(plan, WINDOW + 1), read(plan, WINDOW + 2), read(plan, DILATION + 2), read(plan, WIDE) != 0
    first_d, first_h, first_w = offset(plan, read(plan, FIRST)), offset(plan, read(plan, FIRST + 1)), offset(plan, read(plan, FIRST + 2))
    count_d, count_h, count_w = offset(plan, read(plan, COUNT)), offset(plan, read(plan, COUNT + 1)), offset(plan, read(plan, COUNT + 2))
    skipped_d, skipped_h, skipped_w = (offset(plan, read(plan, SKIPPED)), offset(plan, read(plan, SKIPPED + 1)),
                                       offset(plan, read(plan, SKIPPED + 2)))
    dd, dh = read(plan, DILATION) * sd, read(plan, DILATION + 1) * sh
    r, end = index * share, min(total, (index + 1) * share)
    oh, od, plane = position(r, OH, OD)
    while r < end:
        rows = min(OH - oh, end - r)
        nd, many = read(count_d, od), offset(count_h, oh)
        top = offset(x, plane // channels * sn + plane % channels * sc + read(first_d, od) * sd)
        _search_cells(top, nd, dd, offset(first_h, oh), many, dh, sh, rows, first_w, count_w, OW, dilation,
                      read(skipped_d, od) * (KH * window), offset(skipped_h, oh), KH * window, window, skipped_w,
                      y, narrow, wide, is_wide, r * OW)
        oh, od, plane = next_position(oh, od, plane, rows, OH, OD)
        r += rows


@inline
def _arguments(x, plan, segment, block, pitch, scratch, y, narrow, wide):
    """How many shares there are, and the arguments of each."""
    size = x.itemsize
    rows = y.shape[0] * y.shape[1] * y.shape[2] * y.shape[3]
    share = max(1, SHARE * rows // max(1, x.size))
    return (rows + share - 1) // share, (
        share, rows, pointer(x), x.strides[0] // size, x.strides[1] // size, x.strides[2] // size, x.strides[3] // size, x.shape[1],
        pointer(plan), segment, block, pitch, pointer(y), pointer(narrow), pointer(wide), pointer(scratch))


# The kernels of numba_rows.max_*, and where in its window each maximum stands: see numba_lanes.store_places. Cells that meet
# no element get any place. scratch: for each thread block * pitch elements for each row of a window. wide: of use to
# search_by_cells only, which takes all large windows.
@kernel("i R5 L1 i i i W1 W5 B1 L1")
def search_evenly(pool, x, plan, segment, block, pitch, scratch, y, narrow, wide):
    shares, arguments = _arguments(x, plan, segment, block, pitch, scratch, y, narrow, wide)
    parallel_for(pool, _search_evenly, shares, arguments)


@kernel("i R5 L1 i i i W1 W5 B1 L1")
def search_pairs(pool, x, plan, segment, block, pitch, scratch, y, narrow, wide):
    """Windows of two by two (Plan.pairs), which need no scratch memory."""
    shares, arguments = _arguments(x, plan, segment, block, pitch, scratch, y, narrow, wide)
    parallel_for(pool, _search_pairs, shares, arguments)


@kernel("i R5 L1 i i i W1 W5 B1 L1")
def search_by_cells(pool, x, plan, segment, block, pitch, scratch, y, narrow, wide):
    shares, arguments = _arguments(x, plan, segment, block, pitch, scratch, y, narrow, wide)
    parallel_for(pool, _search_by_cells, shares, arguments)


# ------------------------------------------------------------------------------------------------ places as indices
@inline
def within(place, places, is_wide, KH, KW, H, W, dd, dh, dw):
    """How far from its window's origin an offset of the window lies in a plane."""
    if not is_wide:
        return read(places, place)
    return (place // (KH * KW) * dd * H + place // KW % KH * dh) * W + place % KW * dw


@inline
def _index_chunk(slot, index, share, rows, inner, plan, narrow, wide, result):
    OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
    H, W = read(plan, SIZE + 1), read(plan, SIZE + 2)
    KH, KW, is_wide = read(plan, WINDOW + 1), read(plan, WINDOW + 2), read(plan, WIDE) != 0
    origin_d, origin_h = offset(plan, read(plan, ORIGIN)), offset(plan, read(plan, ORIGIN + 1))
    origin_w = offset(plan, read(plan, ORIGIN + 2))
    places = offset(plan, read(plan, PLACES))
    dd, dh, dw = read(plan, DILATION), read(plan, DILATION + 1), read(plan, DILATION + 2)
    for r in range(index * share, min(rows, (index + 1) * share)):
        base = (read(origin_d, r // OH % OD) * H + read(origin_h, r % OH)) * W
        at = r * OW * inner
        for ow in range(OW):
            here = base + read(origin_w, ow)
            for _ in range(inner):
                place = read(wide, at) if is_wide else read(narrow, at)
                nowhere = place < 0 or (not is_wide and place == 255)
                write(result, at, -1 if nowhere else here + within(place, places, is_wide, KH, KW, H, W, dd, dh, dw))
                at += 1


@kernel("i i i L1 B1 L1 L5", dtypes="f")
def indices(pool, rows, inner, plan, narrow, wide, result):
    """result[...] = the flat index in the plane (D, H, W) of each place, -1 for none; both [rows][width of the output][inner]."""
    share = max(1, SHARE // (inner * read(pointer(plan), OUT + 2)))
    parallel_for(pool, _index_chunk, (rows + share - 1) // share,
                 (share, rows, inner, pointer(plan), pointer(narrow), pointer(wide), pointer(result)))
