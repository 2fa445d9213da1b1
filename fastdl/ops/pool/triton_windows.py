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
def tile_place(rows, wide, LANES_ARE_W: tl.constexpr, depth, height, width, BR: tl.constexpr, BL: tl.constexpr):
    """(item, d, h, w, channel, which exist) of a tile's cells, to be broadcast to (BR, BL)."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    lane = tl.program_id(1) * BL + tl.arange(0, BL)
    exist = (r < rows)[:, None] & (lane < wide)[None, :]
    if LANES_ARE_W:
        w = lane[None, :]
        c = lane[None, :] * 0
        rest = r
    else:
        w = (r % width).to(tl.int32)[:, None]
        c = lane[None, :]
        rest = r // width
    h = (rest % height).to(tl.int32)[:, None]
    rest = rest // height
    d = (rest % depth).to(tl.int32)[:, None]
    return (rest // depth)[:, None], d, h, w, c, exist


@triton.jit
def pool(x, y, index, places, rows, wide, size_d, size_h, size_w, out_d, out_h, out_w, xn, xd, xh, xw, yn, yd, yh, yw, divisor,
         WD: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
         BD: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, AD: tl.constexpr, AH: tl.constexpr, AW: tl.constexpr,
         DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, ADAPTIVE: tl.constexpr, LANES_ARE_W: tl.constexpr,
         MAX: tl.constexpr, KEEP: tl.constexpr, PLACES: tl.constexpr, INCLUDE: tl.constexpr, GIVEN_DIVISOR: tl.constexpr,
         BR: tl.constexpr, BL: tl.constexpr):
    """W: window, S: stride, B and A: padding before and after, D: dilation. KEEP: index holds each maximum's place in its window."""
    n, d, h, w, c, exist = tile_place(rows, wide, LANES_ARE_W, out_d, out_h, out_w, BR, BL)
    d0 = start_of(d, size_d, out_d, SD, BD, ADAPTIVE)
    h0 = start_of(h, size_h, out_h, SH, BH, ADAPTIVE)
    w0 = start_of(w, size_w, out_w, SW, BW, ADAPTIVE)
    base = x + n * xn + c
    if MAX:
        best = tl.full((BR, BL), float("-inf"), tl.float32)
        place = tl.full((BR, BL), -1, tl.int32)
    else:
        total = tl.zeros((BR, BL), tl.float32)
    for td in range(WD):
        at_d = d0 + td * DD
        for th in range(WH):
            at_h = h0 + th * DH
            row = exist & holds(at_d, d0, td, d, size_d, out_d, ADAPTIVE) & holds(at_h, h0, th, h, size_h, out_h, ADAPTIVE)
            line = base + at_d.to(tl.int64) * xd + at_h.to(tl.int64) * xh
            for tw in range(WW):
                at_w = w0 + tw * DW
                inside = row & holds(at_w, w0, tw, w, size_w, out_w, ADAPTIVE)
                v = tl.load(line + at_w.to(tl.int64) * xw, mask=inside, other=0.0).to(tl.float32)
                if MAX:
                    wins = inside & ((v > best) | (v != v) | (place < 0))
                    best = tl.where(wins, v, best)
                    place = tl.where(wins, (td * WH + th) * WW + tw, place)
                else:
                    total += tl.where(inside, v, 0.0)
    where = n * yn + d.to(tl.int64) * yd + h.to(tl.int64) * yh + w.to(tl.int64) * yw + c
    if MAX:
        tl.store(y + where, best.to(y.dtype.element_ty), mask=exist)
        if KEEP:
            tl.store(index + where, tl.where(place < 0, -1, place).to(index.dtype.element_ty), mask=exist)
        if PLACES:
            tw2 = place % WW
            th2 = place // WW % WH
            td2 = place // (WW * WH)
            flat = ((d0 + td2 * DD).to(tl.int64) * size_h + (h0 + th2 * DH)) * size_w + (w0 + tw2 * DW)
            tl.store(places + where, tl.where(place < 0, -1, flat), mask=exist)
    else:
        if GIVEN_DIVISOR:
            total = total / divisor
        else:
            count = length(d, size_d, out_d, WD, SD, BD, AD, INCLUDE, ADAPTIVE)
            count = count * length(h, size_h, out_h, WH, SH, BH, AH, INCLUDE, ADAPTIVE)
            total = total / (count * length(w, size_w, out_w, WW, SW, BW, AW, INCLUDE, ADAPTIVE)).to(tl.float32)
        tl.store(y + where, total.to(y.dtype.element_ty), mask=exist)


@triton.jit
def pool_backward(grad, index, dx, rows, wide, size_d, size_h, size_w, out_d, out_h, out_w, xn, xd, xh, xw, yn, yd, yh, yw, divisor,
                  WD: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
                  BD: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, AD: tl.constexpr, AH: tl.constexpr, AW: tl.constexpr,
                  DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, JD: tl.constexpr, JH: tl.constexpr, JW: tl.constexpr,
                  ADAPTIVE: tl.constexpr, LANES_ARE_W: tl.constexpr, MAX: tl.constexpr, INCLUDE: tl.constexpr,
                  GIVEN_DIVISOR: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr):
    """J: how many cells may hold one element, in each dimension."""
    n, d, h, w, c, exist = tile_place(rows, wide, LANES_ARE_W, size_d, size_h, size_w, BR, BL)
    total = tl.zeros((BR, BL), tl.float32)
    for jd in range(JD):
        od, td, good_d = seen_by(d, jd, size_d, out_d, WD, SD, BD, DD, ADAPTIVE)
        for jh in range(JH):
            oh, th, good_h = seen_by(h, jh, size_h, out_h, WH, SH, BH, DH, ADAPTIVE)
            for jw in range(JW):
                ow, tw, good_w = seen_by(w, jw, size_w, out_w, WW, SW, BW, DW, ADAPTIVE)
                inside = exist & good_d & good_h & good_w
                where = n * yn + od.to(tl.int64) * yd + oh.to(tl.int64) * yh + ow.to(tl.int64) * yw + c
                g = tl.load(grad + where, mask=inside, other=0.0).to(tl.float32)
                if MAX:
                    place = tl.load(index + where, mask=inside, other=0).to(tl.int32)
                    total += tl.where(inside & (place == (td * WH + th) * WW + tw), g, 0.0)
                else:
                    if GIVEN_DIVISOR:
                        g = g / divisor
                    else:
                        count = length(od, size_d, out_d, WD, SD, BD, AD, INCLUDE, ADAPTIVE)
                        count = count * length(oh, size_h, out_h, WH, SH, BH, AH, INCLUDE, ADAPTIVE)
                        count = count * length(ow, size_w, out_w, WW, SW, BW, AW, INCLUDE, ADAPTIVE)
                        g = g / count.to(tl.float32)
                    total += tl.where(inside, g, 0.0)
    where = n * xn + d.to(tl.int64) * xd + h.to(tl.int64) * xh + w.to(tl.int64) * xw + c
    tl.store(dx + where, total.to(dx.dtype.element_ty), mask=exist)


@triton.jit
def mean_of_rows(x, y, rows, n, BR: tl.constexpr, BN: tl.constexpr):
    """y (rows,): the mean of each row of x (rows, n): a global average over planar memory."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    total = tl.zeros((BR, BN), tl.float32)
    for k0 in range(0, n, BN):
        k = k0 + tl.arange(0, BN)
        total += tl.load(x + r[:, None] * n + k[None, :], mask=(r < rows)[:, None] & (k < n)[None, :], other=0.0).to(tl.float32)
    tl.store(y + r, (tl.sum(total, 1) / n).to(y.dtype.element_ty), mask=r < rows)
