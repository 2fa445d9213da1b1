"""The way back of maxima where memory holds rows (N, C, D, H, W): each cell's gradient to the element it was taken from.

Evenly, for strides 1 and 2: a vector of elements adds up what the cells that look at them took there, with cells and their
places in padded copies of some rows. By pairs, for windows of 2 x 2 side by side. And for any windows one cell after the
other, which costs a wait where two windows take the same element, and no more than that.
"""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import bits, lanes, load, offset, pointer, read, select, splat, store, write
from .numba_lanes import copy, interleave, load_integers, load_up_to, store_up_to
from .numba_row_parts import next_position, position, visible
from .numba_rows import SHARE
from .numba_search import within
from .numba_windows import BEFORE, CELL, COUNT, DILATION, FIRST, OFFSET, ORIGIN, OUT, PLACES, SEEN, SIZE, STRIDE, WIDE, WINDOW


# ------------------------------------------------------------------------------------------------ evenly
@inline
def _padded_rows(g, narrow, at, row, rows, low, high, length, values, places, pitch):
    """Some rows of cells from number ``at`` on, ``row`` cells each: from low to high - 1 of ``length``, with no place around."""
    for _ in range(rows):
        for i in range(0, low, lanes(places)):
            store(places, i, splat(places, 255))
        copy(values, low, g, at, high - low)
        copy(places, low, narrow, at, high - low)
        for i in range(high, length, lanes(places)):
            store(places, i, splat(places, 255))
        at += row
        values, places = offset(values, pitch), offset(places, pitch)


@inline
def _taken_back(a, values, places, at, taps, code, step):
    """a + what cells at, at - 1, ... (``taps`` of them) took at offsets code, code + step, ... of their windows."""
    zero = splat(values, 0.0)
    wanted, more = splat(bits(zero), code), splat(bits(zero), step)
    for i in range(at, at - taps, -1):
        a = a + select(load_integers(places, i, wanted) == wanted, load(values, i), zero)
        wanted = wanted + more
    return a


@inline
def _collect_along(values, places, pitch, slice_pitch, start, nd, offset_d, starts, cell_h, offset_h, first_row, KH, KW, rows, n, stride,
                   parity, dx, dx_pitch, room):
    """n elements of each of some rows of dx. start: where the cell above element 0 stands in its padded row.

    Slices of padded rows, the first of which holds cell row first_row, are slice_pitch apart. parity: where the stride is 2,
    that of the offset of element 0 in the window of the cell above it; an element meets offsets of its own parity only.
    """
    V = lanes(values)
    even = KW if stride == 1 else (KW + 1) // 2
    for j in range(rows):
        target, left = offset(dx, j * dx_pitch), room - j * dx_pitch
        i, at = 0, start
        while i < n:
            a = splat(values, 0.0)
            b = a
            for d in range(nd):
                for e in range(read(starts, j), read(starts, j + 1)):
                    row = d * slice_pitch + (read(cell_h, e) - first_row) * pitch
                    v, p = offset(values, row), offset(places, row)
                    code = (read(offset_d, d) * KH + read(offset_h, e)) * KW
                    a = _taken_back(a, v, p, at + parity, even, code, stride)
                    if stride == 2:
                        b = _taken_back(b, v, p, at, KW // 2, code + 1, stride)
            if stride == 2:
                if parity == 1:
                    a, b = b, a
                a, b = interleave(a, b)
                store_up_to(target, i + V, b, left - i - V)
            store_up_to(target, i, a, left - i)
            i, at = i + stride * V, at + V


@inline
def _collect(slot, index, share, total, g, plan, segment, block, pitch, slice_pitch, all_slices, narrow, dx, scratch, place_scratch):
    OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
    D, H, W = read(plan, SIZE), read(plan, SIZE + 1), read(plan, SIZE + 2)
    KH, KW = read(plan, WINDOW + 1), read(plan, WINDOW + 2)
    stride, before = read(plan, STRIDE + 2), read(plan, BEFORE + 2)
    seen_d, seen_h = offset(plan, read(plan, SEEN)), offset(plan, read(plan, SEEN + 1))
    cell_d, cell_h = offset(plan, read(plan, CELL)), offset(plan, read(plan, CELL + 1))
    offset_d, offset_h = offset(plan, read(plan, OFFSET)), offset(plan, read(plan, OFFSET + 1))
    taps = (KW + stride - 1) // stride
    values, places = offset(scratch, slot * all_slices), offset(place_scratch, slot * all_slices)
    r, end = index * share, min(total, (index + 1) * share)
    h, d, plane = position(r, H, D)
    while r < end:
        # some rows of one plane of dx, and the rows of cells above them
        rows = min(min(H - h, end - r), block)
        nd, starts = read(seen_d, d + 1) - read(seen_d, d), offset(seen_h, h)
        first_row, end_row = OH, 0
        for e in range(read(starts, 0), read(starts, rows)):
            first_row, end_row = min(first_row, read(cell_h, e)), max(end_row, read(cell_h, e) + 1)
        w = 0
        while w < W:
            n = min(segment, W - w)
            begin = (w + before) // stride - (taps - 1)
            length = (w + n - 1 + before) // stride + 2 - begin
            low, high = visible(begin, length, OW)
            for i in range(nd):
                at = ((plane * OD + read(cell_d, read(seen_d, d) + i)) * OH + first_row) * OW + begin + low
                _padded_rows(g, narrow, at, OW, end_row - first_row, low, high, length, offset(values, i * slice_pitch),
                             offset(places, i * slice_pitch), pitch)
            _collect_along(values, places, pitch, slice_pitch, taps - 1, nd, offset(offset_d, read(seen_d, d)), starts, cell_h, offset_h,
                           first_row, KH, KW, rows, n, stride, (w + before) % stride, offset(dx, r * W + w), W, (end - r) * W - w)
            w += segment
        h, d, plane = next_position(h, d, plane, rows, H, D)
        r += rows


@kernel("i R5 L1 i i i i i B1 W5 W1 B1")
def collect_evenly(pool, g, plan, segment, block, pitch, slice_pitch, all_slices, narrow, dx, scratch, place_scratch):
    """dx[element] = the sum of g[cell] over the cells that took it. g, dx: (N, C, D, H, W) without gaps.

    plan (with the tables of the way back), segment, block, pitch, slice_pitch, all_slices: of a Plan. narrow: as
    search_evenly left it. scratch, place_scratch: all_slices elements for each thread.
    """
    rows = dx.shape[0] * dx.shape[1] * dx.shape[2] * dx.shape[3]
    share = max(1, SHARE // max(1, dx.shape[4]))
    parallel_for(pool, _collect, (rows + share - 1) // share,
                 (share, rows, pointer(g), pointer(plan), segment, block, pitch, slice_pitch, all_slices, pointer(narrow), pointer(dx),
                  pointer(scratch), pointer(place_scratch)))


# ------------------------------------------------------------------------------------------------ by pairs, and one by one
@inline
def _taken_pairs(g, at, narrow, code, OW, dx, room):
    """A row of dx from a row of cells 2 wide: what they took at offsets ``code`` and ``code`` + 1."""
    V = lanes(g)
    o = 0
    while o < OW:
        if OW >= V:
            o = min(o, OW - V)
        v = load_up_to(g, at + o, OW)
        place = load_integers(narrow, at + o, bits(v))
        zero = splat(v, 0.0)
        a, b = interleave(select(place == splat(place, code), v, zero), select(place == splat(place, code + 1), v, zero))
        store_up_to(dx, 2 * o, a, room - 2 * o)
        store_up_to(dx, 2 * o + V, b, room - 2 * o - V)
        o += V


@inline
def _scatter_pairs(slot, index, share, planes, g, plan, alone, narrow, wide, dx):
    V = lanes(dx)
    OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
    H, W = read(plan, SIZE + 1), read(plan, SIZE + 2)
    start, end = index * share * OD, min(planes, (index + 1) * share) * OD
    for plane in range(start, end):  # of one depth
        target, room = offset(dx, plane * (H * W)), (end - plane) * (H * W)
        for row in range(2 * OH):
            at = row * W
            _taken_pairs(g, (plane * OH + row // 2) * OW, narrow, row % 2 * 2, OW, offset(target, at), room - at)
            if W > 2 * OW:
                write(target, at + W - 1, 0.0)
        for i in range(2 * OH * W, H * W, V):
            store_up_to(target, i, splat(dx, 0.0), room - i)


@inline
def _scatter(slot, index, share, planes, g, plan, alone, narrow, wide, dx):
    V = lanes(dx)
    OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
    D, H, W = read(plan, SIZE), read(plan, SIZE + 1), read(plan, SIZE + 2)
    KH, KW, is_wide = read(plan, WINDOW + 1), read(plan, WINDOW + 2), read(plan, WIDE) != 0
    origin_d, origin_h = offset(plan, read(plan, ORIGIN)), offset(plan, read(plan, ORIGIN + 1))
    origin_w = offset(plan, read(plan, ORIGIN + 2))
    within_window = offset(plan, read(plan, PLACES))
    dd, dh, dw = read(plan, DILATION), read(plan, DILATION + 1), read(plan, DILATION + 2)
    first_d, first_h = offset(plan, read(plan, FIRST)), offset(plan, read(plan, FIRST + 1))
    count_d, count_h = offset(plan, read(plan, COUNT)), offset(plan, read(plan, COUNT + 1))
    end = min(planes, (index + 1) * share)
    for plane in range(index * share, end):
        target, room = offset(dx, plane * (D * H * W)), (end - plane) * (D * H * W)
        at, done = plane * (OD * OH * OW), 0
        for od in range(OD):
            for oh in range(OH):
                # zeros as far as these windows reach: what they add to is still in the cache
                reach = ((read(first_d, od) + (read(count_d, od) - 1) * dd) * H + read(first_h, oh) + (read(count_h, oh) - 1) * dh + 1) * W
                while done < reach:
                    store_up_to(target, done, splat(dx, 0.0), room - done)
                    done += V
                base = read(origin_d, od) * H * W + read(origin_h, oh) * W
                for ow in range(OW):
                    place = read(wide, at) if is_wide else read(narrow, at)
                    if place >= 0 and (is_wide or place != 255):
                        i = base + read(origin_w, ow) + within(place, within_window, is_wide, KH, KW, H, W, dd, dh, dw)
                        write(target, i, read(g, at) if alone else read(target, i) + read(g, at))
                    at += 1
        while done < D * H * W:
            store_up_to(target, done, splat(dx, 0.0), room - done)
            done += V


@inline
def _arguments(g, plan, alone, narrow, wide, dx):
    """How many shares there are, and the arguments of each."""
    planes = dx.shape[0] * dx.shape[1]
    share = max(1, SHARE * planes // max(1, dx.size))
    return (planes + share - 1) // share, (share, planes, pointer(g), pointer(plan), alone, pointer(narrow), pointer(wide), pointer(dx))


# As collect_evenly. scatter_pairs: for 2 x 2 windows side by side, none of them clipped. alone: no two windows share an
# element. narrow, wide: as numba_search.search_* left them.
@kernel("i R5 L1 b B1 L1 W5")
def scatter_pairs(pool, g, plan, alone, narrow, wide, dx):
    shares, arguments = _arguments(g, plan, alone, narrow, wide, dx)
    parallel_for(pool, _scatter_pairs, shares, arguments)


@kernel("i R5 L1 b B1 L1 W5")
def scatter(pool, g, plan, alone, narrow, wide, dx):
    shares, arguments = _arguments(g, plan, alone, narrow, wide, dx)
    parallel_for(pool, _scatter, shares, arguments)
