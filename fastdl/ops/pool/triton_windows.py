"""Pooling in Triton, forward and backward, over planar and over channels-last memory.

A tile is rows by lanes. Of planar memory, a row is (plane, d, h) and lanes run along w; of channels-last memory, a row is
(n, d, h, w) and lanes run along channels: either way lanes are neighbours in memory, and only rows cost divisions.

The backward pass gathers: an input element asks the cells whose windows hold it, so nothing is added from two sides and the
gradient has the same bits every time. A maximum is remembered as its place in the window, one byte where windows have fewer than
255 cells.
"""

import triton
import triton.language as tl


@triton.jit
def start_of(o, size, out, STRIDE: tl.constexpr, BEFORE: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Where a cell's window starts."""
    if ADAPTIVE:
        return o * size // out
    else:
        return o * STRIDE - BEFORE


@triton.jit
def holds(at, start, t, o, size, out, ADAPTIVE: tl.constexpr):
    """Whether the window's element number t exists."""
    if ADAPTIVE:
        return (at < size) & (start + t < ((o + 1) * size + out - 1) // out)
    else:
        return (at >= 0) & (at < size)


@triton.jit
def length(o, size, out, WINDOW: tl.constexpr, STRIDE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, INCLUDE: tl.constexpr,
           ADAPTIVE: tl.constexpr):
    """How many elements a mean over this window counts."""
    if ADAPTIVE:
        n = ((o + 1) * size + out - 1) // out - o * size // out
    else:
        start = o * STRIDE - BEFORE
        end = tl.minimum(start + WINDOW, size + AFTER)
        if INCLUDE:
            n = end - start
        else:
            n = tl.minimum(end, size) - tl.maximum(start, 0)
    return n


@triton.jit
def seen_by(i, j, size, out, WINDOW: tl.constexpr, STRIDE: tl.constexpr, BEFORE: tl.constexpr, DILATION: tl.constexpr,
            ADAPTIVE: tl.constexpr):
    """The j-th cell that may hold element i: (cell, i's number in its window, whether it does)."""
    if ADAPTIVE:
        o = i * out // size + j
        t = i - o * size // out
        good = (o < out) & (t >= 0) & (i < ((o + 1) * size + out - 1) // out)
    elif DILATION == 1:
        o = (i + BEFORE) // STRIDE - j
        t = i + BEFORE - o * STRIDE
        good = (o >= 0) & (o < out) & (t < WINDOW)
    else:
        t = j + i * 0
        reach = i + BEFORE - t * DILATION
        o = reach // STRIDE
        good = (reach >= 0) & (reach % STRIDE == 0) & (o < out)
    return o, t, good


@triton.jit
def tile_place(rows, wide, LANES_ARE_W: tl.constexpr, depth, height, width, MANY: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr):
    """(item, d, h, w, channel, which rows and which of ``wide`` lanes exist) of a tile's cells, to be broadcast to (BR, BL).

    MANY: row numbers want 64 bits. Divisions by them cost more than all else here, so they have them only then.
    """
    if MANY:
        r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    else:
        r = tl.program_id(0) * BR + tl.arange(0, BR)
    lane = tl.program_id(1) * BL + tl.arange(0, BL)
    if LANES_ARE_W:
        w = lane[None, :]
        c = lane[None, :] * 0
        rest = r
    else:
        rest = r // width
        w = (r - rest * width).to(tl.int32)[:, None]
        c = lane[None, :]
    above = rest // height
    h = (rest - above * height).to(tl.int32)[:, None]
    n = above // depth
    d = (above - n * depth).to(tl.int32)[:, None]
    return n.to(tl.int64)[:, None], d, h, w, c, (r < rows)[:, None], (lane < wide)[None, :]


@triton.jit
def offset(n, d, h, w, c, sn, sd, sh, sw, UNIT: tl.constexpr, LANES_ARE_W: tl.constexpr):
    """Where a cell lies.

    Strides (but w's where lanes run along it) and the number of lanes are given in UNITs: the compiler then knows what divides them, and
    so how many elements it may move at once.
    """
    if LANES_ARE_W:
        return (n * sn + d.to(tl.int64) * sd + h.to(tl.int64) * sh) * UNIT + w
    else:
        return (n * sn + d.to(tl.int64) * sd + h.to(tl.int64) * sh + w.to(tl.int64) * sw) * UNIT + c


@triton.jit
def first_within(start, STEP: tl.constexpr, ADAPTIVE: tl.constexpr):
    """The number of a window's first element that is not in the padding before the input."""
    if ADAPTIVE:
        return start * 0
    else:
        return tl.where(start < 0, (STEP - 1 - start) // STEP, 0)


@triton.jit
def take(best, place, v, tap, MAX: tl.constexpr, WHERE: tl.constexpr):
    """The largest so far (NaN wins, the last of them) and, with WHERE, which tap it was; or the sum so far."""
    if not MAX:
        return best + v, place
    elif WHERE:
        wins = (v > best) | (v != v)
        return tl.where(wins, v, best), tl.where(wins, tap, place)
    else:
        return tl.maximum(best, v, propagate_nan=tl.PropagateNan.ALL), place


@triton.jit
def pool(x, y, index, places, rows, wide, size_d, size_h, size_w, out_d, out_h, out_w, xn, xd, xh, xw, yn, yd, yh, yw, divisor,
         WD: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
         BD: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, AD: tl.constexpr, AH: tl.constexpr, AW: tl.constexpr,
         DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, ADAPTIVE: tl.constexpr, LANES_ARE_W: tl.constexpr, PAIRS: tl.constexpr,
         MAX: tl.constexpr, KEEP: tl.constexpr, PLACES: tl.constexpr, INCLUDE: tl.constexpr, GIVEN_DIVISOR: tl.constexpr,
         MANY: tl.constexpr, X_UNIT: tl.constexpr, Y_UNIT: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr):
    """W: window, S: stride, B and A: padding before and after, D: dilation. KEEP: index holds each maximum's place in its window.

    PAIRS: lanes run along w and the stride there is 2, so neighbours are read two taps at a time, side by side as they lie.
    """
    n, d, h, w, c, row_exists, lane_exists = tile_place(rows, wide * Y_UNIT, LANES_ARE_W, out_d, out_h, out_w, MANY, BR, BL)
    exist = row_exists & lane_exists
    d0 = start_of(d, size_d, out_d, SD, BD, ADAPTIVE)
    h0 = start_of(h, size_h, out_h, SH, BH, ADAPTIVE)
    w0 = start_of(w, size_w, out_w, SW, BW, ADAPTIVE)
    nothing = float("-inf") if MAX else 0.0
    best = tl.full((BR, BL), nothing, tl.float32)
    place = tl.zeros((BR, BL), tl.int32)
    if KEEP or PLACES:  # where nothing is larger than -inf, the first element within is the largest
        first = first_within(d0, DD, ADAPTIVE) * WH + first_within(h0, DH, ADAPTIVE)
        place += first * WW + first_within(w0, DW, ADAPTIVE)
    for td in range(WD):
        at_d = d0 + td * DD
        for th in range(WH):
            at_h = h0 + th * DH
            line_exists = holds(at_d, d0, td, d, size_d, out_d, ADAPTIVE) & holds(at_h, h0, th, h, size_h, out_h, ADAPTIVE)
            tap = (td * WH + th) * WW
            if PAIRS:
                odd: tl.constexpr = BW % 2  # a pair starts at an even column, which may be one before the window
                for pair in tl.static_range((WW + odd + 1) // 2):
                    column = 2 * BL * tl.program_id(1) + tl.arange(0, 2 * BL)[None, :] + (2 * pair - BW - odd)
                    inside = row_exists & line_exists & (column >= 0) & (column < size_w // X_UNIT * X_UNIT)
                    both = tl.load(x + offset(n, at_d, at_h, column, c, xn, xd, xh, xw, X_UNIT, True), mask=inside, other=nothing)
                    left, right = tl.split(tl.reshape(both.to(tl.float32), (BR, BL, 2)))
                    if 2 * pair >= odd:
                        best, place = take(best, place, left, tap + 2 * pair - odd, MAX, KEEP or PLACES)
                    if 2 * pair + 1 - odd < WW:
                        best, place = take(best, place, right, tap + 2 * pair + 1 - odd, MAX, KEEP or PLACES)
            else:
                for tw in range(WW):
                    at_w = w0 + tw * DW
                    inside = exist & line_exists & holds(at_w, w0, tw, w, size_w, out_w, ADAPTIVE)
                    v = tl.load(x + offset(n, at_d, at_h, at_w, c, xn, xd, xh, xw, X_UNIT, LANES_ARE_W), mask=inside, other=nothing)
                    best, place = take(best, place, v.to(tl.float32), tap + tw, MAX, KEEP or PLACES)
    where = offset(n, d, h, w, c, yn, yd, yh, yw, Y_UNIT, LANES_ARE_W)
    if MAX:
        tl.store(y + where, best.to(y.dtype.element_ty), mask=exist)
        if KEEP:
            tl.store(index + where, place.to(index.dtype.element_ty), mask=exist)
        if PLACES:
            at_w = w0 + place % WW * DW
            at_h = h0 + place // WW % WH * DH
            at_d = d0 + place // (WW * WH) * DD
            found = (at_d < size_d) & (at_h < size_h) & (at_w < size_w)
            tl.store(places + where, tl.where(found, (at_d.to(tl.int64) * size_h + at_h) * size_w + at_w, -1), mask=exist)
    else:
        if GIVEN_DIVISOR:
            total = best / divisor
        else:
            count = length(d, size_d, out_d, WD, SD, BD, AD, INCLUDE, ADAPTIVE)
            count = count * length(h, size_h, out_h, WH, SH, BH, AH, INCLUDE, ADAPTIVE)
            total = best / (count * length(w, size_w, out_w, WW, SW, BW, AW, INCLUDE, ADAPTIVE)).to(tl.float32)
        tl.store(y + where, total.to(y.dtype.element_ty), mask=exist)


@triton.jit
def pool_backward(grad, index, dx, rows, wide, size_d, size_h, size_w, out_d, out_h, out_w, xn, xd, xh, xw, yn, yd, yh, yw, divisor,
                  WD: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
                  BD: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, AD: tl.constexpr, AH: tl.constexpr, AW: tl.constexpr,
                  DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, JD: tl.constexpr, JH: tl.constexpr, JW: tl.constexpr,
                  ADAPTIVE: tl.constexpr, LANES_ARE_W: tl.constexpr, MAX: tl.constexpr, INCLUDE: tl.constexpr,
                  GIVEN_DIVISOR: tl.constexpr, MANY: tl.constexpr, X_UNIT: tl.constexpr, Y_UNIT: tl.constexpr, BR: tl.constexpr,
                  BL: tl.constexpr):
    """J: how many cells may hold one element, in each dimension."""
    n, d, h, w, c, row_exists, lane_exists = tile_place(rows, wide * X_UNIT, LANES_ARE_W, size_d, size_h, size_w, MANY, BR, BL)
    exist = row_exists & lane_exists
    total = tl.zeros((BR, BL), tl.float32)
    for jd in range(JD):
        od, td, good_d = seen_by(d, jd, size_d, out_d, WD, SD, BD, DD, ADAPTIVE)
        for jh in range(JH):
            oh, th, good_h = seen_by(h, jh, size_h, out_h, WH, SH, BH, DH, ADAPTIVE)
            for jw in range(JW):
                ow, tw, good_w = seen_by(w, jw, size_w, out_w, WW, SW, BW, DW, ADAPTIVE)
                inside = exist & good_d & good_h & good_w
                where = offset(n, od, oh, ow, c, yn, yd, yh, yw, Y_UNIT, LANES_ARE_W)
                g = tl.load(grad + where, mask=inside, other=0.0).to(tl.float32)
                if MAX:
                    place = tl.load(index + where, mask=inside, other=0).to(tl.int32)
                    total += tl.where(place == (td * WH + th) * WW + tw, g, 0.0)
                else:
                    if GIVEN_DIVISOR:
                        g = g / divisor
                    else:
                        count = length(od, size_d, out_d, WD, SD, BD, AD, INCLUDE, ADAPTIVE)
                        count = count * length(oh, size_h, out_h, WH, SH, BH, AH, INCLUDE, ADAPTIVE)
                        count = count * length(ow, size_w, out_w, WW, SW, BW, AW, INCLUDE, ADAPTIVE)
                        g = g / count.to(tl.float32)
                    total += tl.where(inside, g, 0.0)
    where = offset(n, d, h, w, c, xn, xd, xh, xw, X_UNIT, LANES_ARE_W)
    tl.store(dx + where, total.to(dx.dtype.element_ty), mask=exist)


@triton.jit
def spread(grad, index, dx, rows, wide, out_d, out_h, out_w, xn, xd, xh, xw, yn, yd, yh, yw, divisor,
           WD: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, LANES_ARE_W: tl.constexpr, MAX: tl.constexpr, MANY: tl.constexpr,
           X_UNIT: tl.constexpr, Y_UNIT: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr):
    """The gradient where windows lie side by side and cover the input: each cell's is read once and written over its window."""
    n, d, h, w, c, row_exists, lane_exists = tile_place(rows, wide * Y_UNIT, LANES_ARE_W, out_d, out_h, out_w, MANY, BR, BL)
    exist = row_exists & lane_exists
    where = offset(n, d, h, w, c, yn, yd, yh, yw, Y_UNIT, LANES_ARE_W)
    g = tl.load(grad + where, mask=exist, other=0.0).to(tl.float32)
    if MAX:
        place = tl.load(index + where, mask=exist, other=0).to(tl.int32)
    else:
        place = tl.zeros((BR, BL), tl.int32)
        g = g / divisor
    for td in range(WD):
        for th in range(WH):
            tap = (td * WH + th) * WW
            if LANES_ARE_W and WW == 2:
                both = tl.join(tl.where(place == tap, g, 0.0), tl.where(place == tap + 1, g, 0.0)) if MAX else tl.join(g, g)
                column = 2 * BL * tl.program_id(1) + tl.arange(0, 2 * BL)[None, :]
                at = offset(n, d * WD + td, h * WH + th, column, c, xn, xd, xh, xw, X_UNIT, True)
                tl.store(dx + at, tl.reshape(both, (BR, 2 * BL)).to(dx.dtype.element_ty), mask=row_exists & (column < 2 * wide * Y_UNIT))
            else:
                for tw in range(WW):
                    v = tl.where(place == tap + tw, g, 0.0) if MAX else g
                    at = offset(n, d * WD + td, h * WH + th, w * WW + tw, c, xn, xd, xh, xw, X_UNIT, LANES_ARE_W)
                    tl.store(dx + at, v.to(dx.dtype.element_ty), mask=exist)


@triton.jit
def mean_of_rows(x, y, rows, n, BR: tl.constexpr, BN: tl.constexpr):
    """y (rows,): the mean of each row of x (rows, n): a global average over planar memory."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    total = tl.zeros((BR, BN), tl.float32)
    for k0 in range(0, n, BN):
        k = k0 + tl.arange(0, BN)
        total += tl.load(x + r[:, None] * n + k[None, :], mask=(r < rows)[:, None] & (k < n)[None, :], other=0.0).to(tl.float32)
    tl.store(y + r, (tl.sum(total, 1) / n).to(y.dtype.element_ty), mask=r < rows)
