"""Convolution by Winograd's F(m, r), in one dimension or two: a half to a sixth of the multiplications.

The image is laid out once as padded rows of pixels, channels side by side, so that every transform works on vectors of
channels and never shuffles. Then, a block of tiles at a time, all of it in a core's L2 cache:

    input transform     V[point][tile][channel] from n x n pixels of a tile, n = m + r - 1
    matrix products     M[point][tile][output] = V[point] U[point], one for each of the n^2 points; the left operand is
                        broadcast from where the transform wrote it, the weights U stream in panels
    output transform    rows of pixels O[row][tile, column][output] from M
    writing             bias, activation, and the rows to y in either layout (numba_winograd_write.py)

Stride 2 is stride 1 in other words. A convolution of stride 2 is the sum of four of stride 1 with kernels half as large, one for
each phase of the image: a pixel's channels are those of two by two pixels. A transposed convolution of stride 2 is four of
stride 1, one for each phase of its output: an output's channels are spread over two by two pixels.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308 (2015). The transforms'
code is generated from their matrices (winograd.py).
"""

from __future__ import annotations

import functools

import numpy as np
from numba.extending import register_jitable

from ...cpu._pool import parallel_for
from ...cpu.blocking import HEIGHTS, LINE
from ...cpu.gemm import ALL_LINES, STREAM_AHEAD
from ...cpu.jit import always_inline, families, inline, kernel
from ...cpu.microkernel import TILE_VECTORS, asked, outer_tile, store_tile
from ...cpu.simd import (
    fma,
    gather_n,
    lanes,
    load,
    offset,
    pointer,
    read,
    splat,
    store,
    write,
)
from .numba_planes import _strides
from .numba_winograd_write import write_maxima, write_no_maxima, write_rows
from .winograd import TILES, matrices, transform_2d

LONGEST = 48  # channels in one sum of a large tile, whose output transform magnifies errors: a sum's grow with its length
K_BLOCK = 4  # panels of outputs in a block: M for them stays in L2


# ------------------------------------------------------------------------------------------------ the transforms
@inline
def _cell(p, i, j, last_i, last_j, row, column, high, wide, flip, step, count):
    """Cell (i, j) of ``count`` filters that have high x wide cells and zeros after them, before them where turned around."""
    if (last_i - i if flip else i) < high and (last_j - j if flip else j) < wide:
        return gather_n(p, i * row + j * column, step, count)
    return splat(p, 0.0)


_NAMES = {"load": load, "store": store, "cell": _cell, "splat": splat, "fma": fma}


def generated(left, right, name, load, store, arguments):
    """``name(arguments)`` for compiled code: see winograd.transform_2d."""
    source = transform_2d(left, right, name, load, store, arguments)
    found = {}
    exec(source, dict(_NAMES), found)  # straight-line code: Numba does not unroll
    return register_jitable(found[name])


def _products(rows, lines=1):
    """``run(count, k, a, a_row, b, following, depth, c, c_row, add, done)``: ``count`` times ``rows`` rows of a times a panel.

    add: to what c holds. done: parts of the next panel that were asked for, ``lines`` of them at a time. Sums are cut where ``depth`` says.
    """
    tile, put = outer_tile(rows, TILE_VECTORS, ahead=lines), store_tile(rows, TILE_VECTORS)

    @always_inline
    def run(count, k, a, a_row, b, following, depth, c, c_row, add, done):
        V = lanes(b)
        for i in range(count):
            source, target = offset(a, i * rows * a_row), offset(c, i * rows * c_row)
            ahead = offset(following, (done + i) * asked(k, V))
            for p in range(0, k, depth):
                panel = offset(b, p * TILE_VECTORS * V)
                sums = tile(min(depth, k - p), offset(source, p), a_row, 1, panel, TILE_VECTORS * V, ahead)
                put(sums, target, c_row, rows, TILE_VECTORS * V, add or p > 0)
                ahead = offset(ahead, asked(depth, V))

    return run


@inline
def odd_lines(count):
    """``count`` elements or somewhat more: an odd number of cache lines, so that points lie in different sets of the caches."""
    return ((count + LINE - 1) // LINE | 1) * LINE


@register_jitable
def points_apart(panels, channels, width):
    """From the weights of one point to the next."""
    return odd_lines(panels * channels * width)


_high, _middle, _low = (_products(rows) for rows in HEIGHTS)
_stream = _products(HEIGHTS[0], ALL_LINES)


@inline
def _add_products(high, middle, low, k, a, a_row, b, depth, c, c_row):
    """All heights of tiles, added to c. Not inlined: few sums have a second part."""
    _high(high, k, a, a_row, b, b, depth, c, c_row, True, 0)
    at = high * HEIGHTS[0]
    _middle(middle, k, offset(a, at * a_row), a_row, b, b, depth, offset(c, at * c_row), c_row, True, 0)
    at += middle * HEIGHTS[1]
    _low(low, k, offset(a, at * a_row), a_row, b, b, depth, offset(c, at * c_row), c_row, True, 0)


@functools.cache
def make(m, r, dims):
    """The two entry points of F(m, r) in ``dims`` dimensions: (transform_weights, convolve)."""
    n = m + r - 1
    mh, nh = (m, n) if dims == 2 else (1, 1)
    mw, nw = m, n
    points = nh * nw
    longest = LONGEST if n > 6 else 1 << 30  # channels
    one = np.ones((1, 1))
    write_pooled = write_maxima if mh % 2 == 0 and mw % 2 == 0 else write_no_maxima
    (ah_t, gh, bh_t), (aw_t, gw, bw_t) = matrices(m, r) if dims == 2 else (one, one, one), matrices(m, r)
    weight_tile = generated(
        gh,
        gw,
        "weight_tile",
        load=f"cell(p, {{i}}, {{j}}, {nh - mh}, {nw - mw}, row, column, high, wide, flip, step, count)",
        store=f"store(out, ({{i}} * {nw} + {{j}}) * ps, {{v}})",
        arguments="p, row, column, high, wide, flip, step, count, out, ps",
    )
    input_tile = inline(
        generated(
            bh_t,
            bw_t,
            "input_tile",
            load="load(p, {i} * row + {j} * column)",
            store=f"store(out, ({{i}} * {nw} + {{j}}) * ps, {{v}})",
            arguments="p, row, column, out, ps",
        )
    )
    output_tile = inline(
        generated(
            ah_t,
            aw_t,
            "output_tile",
            load=f"load(p, ({{i}} * {nw} + {{j}}) * ps)",
            store="store(out, {i} * row + {j} * column, {v})",
            arguments="p, ps, out, row, column",
        )
    )

    @inline
    def weights_chunk(slot, chunk, parts, w, lanes_, sums, C, kh, kw, sh, sw, flip, sk, panels, U):
        V = lanes(w)
        width = TILE_VECTORS * V
        panel, part = chunk // parts, chunk % parts
        apart = points_apart(panels, C, width)
        row, column = (-sh * kw if flip else sh * kw), (-sw if flip else sw)
        for c in range(part * C // parts, (part + 1) * C // parts):
            for v in range(TILE_VECTORS):
                lane, sum_ = 4 * (panel * TILE_VECTORS + v), 3 * c
                first, second = read(lanes_, lane), read(sums, sum_)
                a, b = read(lanes_, lane + 1) + read(sums, sum_ + 1), read(lanes_, lane + 2) + read(sums, sum_ + 2)
                high, wide = (kh - a + sh - 1) // sh, (kw - b + sw - 1) // sw  # cells of this phase
                at = first + second + a * kw + b
                if flip:
                    at += (nh - mh) * sh * kw + (nw - mw) * sw
                if first < 0 or second < 0:
                    at, high = 0, 0
                target = offset(U, (panel * C + c) * width + v * V)
                weight_tile(offset(w, at), row, column, high, wide, flip, sk, read(lanes_, lane + 3), target, apart)

    def transform_weights(pool, parts, w, lanes, sums, kh, kw, sh, sw, flip, sk, U):
        """Filters as U[point][panel][sum][one tile's outputs], points points_apart; of each every sh-th row and sw-th column.

        w: flat, filters kh x kw. lanes: (offset in w, phase of rows, phase of columns, outputs) of each vector of outputs, which
        are sk apart in w. sums: (offset in w, phase of rows, phase of columns) of each channel. An offset of -1: zeros. flip:
        filters are turned around. parts: of a panel that threads take.
        """
        C = sums.shape[0] // 3
        panels = lanes.shape[0] // (4 * TILE_VECTORS)
        arguments = (parts, pointer(w), pointer(lanes), pointer(sums), C, kh, kw, sh, sw, flip, sk, panels, pointer(U))
        parallel_for(pool, weights_chunk, panels * parts, arguments)

    @inline
    def block_chunk(slot, chunk, blocks, tiles, x, Hp, Wp, C, Cb, stride_h, stride_w, U, panels, k_panels, unit, spread_h, spread_w, skip_h,
                    skip_w, short, K, TH, TW, OH, OW, bias, has_bias, act, slope, pooled, y, yn, yk, yh, yw, heights, scratch,
                    scratch_size):
        V = lanes(x)
        width = TILE_VECTORS * V
        parts = (panels + k_panels - 1) // k_panels
        block = chunk // parts
        t0, end = block * tiles // blocks, (block + 1) * tiles // blocks
        first_panel = chunk % parts * k_panels
        last_panel = min(panels, first_panel + k_panels)
        count = end - t0
        high, middle, low = read(heights, 3 * count), read(heights, 3 * count + 1), read(heights, 3 * count + 2)
        at_middle = high * HEIGHTS[0]
        at_low = at_middle + middle * HEIGHTS[1]
        rows = at_low + low * HEIGHTS[2]
        across = stride_w * Cb  # channels of all phases of a row
        Cs = stride_h * across
        VV, v_apart = offset(scratch, slot * scratch_size + LINE), odd_lines(rows * Cs)
        held = offset(scratch, slot * scratch_size)  # the block whose V this thread has made
        made = read(held, 0) == block
        write(held, 0, block)
        for t in range(0 if made else count):
            index = t0 + t
            column, rest = index % TW, index // TW
            band, image = rest % TH, rest // TH
            source = offset(x, ((image * Hp + band * mh * stride_h) * Wp + column * mw * stride_w) * Cb)
            for phase in range(stride_h):
                for c in range(0, across, V):
                    target = offset(VV, t * Cs + phase * across + c)
                    input_tile(offset(source, phase * Wp * Cb + c), stride_h * Wp * Cb, across, target, v_apart)
        M = offset(VV, points * v_apart)
        apart = points_apart(panels, C, width)
        pieces = (C + longest - 1) // longest
        depth = (C + pieces - 1) // pieces
        for panel in range(first_panel, last_panel, unit):
            here = min(unit, last_panel - panel)
            Kb = here * width
            m_apart = odd_lines(rows * Kb)
            # outputs k0 and on: of one phase of y's rows, and of each phase of its columns in turn
            each = Kb // spread_w
            group = panel // unit
            phase, k0 = 0, panel * width
            if spread_w > 1:
                groups = panels // (spread_h * unit)
                phase, k0 = group // groups, group % groups * each
            outputs = min(each, K - k0)
            for p in range(points):
                i, j = p // nw, p % nw
                # a phase with a cell less has zeros at one point: at infinity, which is the last, or, turned around, at the first
                end, again = C, False
                if short and stride_w == 2 and j == nw - 1:
                    end, again = Cb, i < nh - 1
                elif short and stride_h == 2 and i == nh - 1:
                    end = across
                for q in range(here):
                    source, target = offset(VV, p * v_apart), offset(M, p * m_apart + q * width)
                    if short and ((spread_h == 2 and i == 0 and phase == 1) or (spread_w == 2 and j == 0 and 2 * q >= here)):
                        for t in range(rows):
                            for v in range(TILE_VECTORS):
                                store(target, t * Kb + v * V, splat(target, 0.0))
                        continue
                    weights = offset(U, p * apart + (panel + q) * C * width)
                    following = offset(weights, C * width)  # the next panel
                    if q + 1 == here:
                        following = offset(U, (p + 1) * apart + panel * C * width)
                    if high == 1 and middle + low <= 1:  # what passes so few rows flows from memory
                        _stream(1, end, source, Cs, weights, offset(weights, STREAM_AHEAD), depth, target, Kb, False, 0)
                    else:
                        _high(high, end, source, Cs, weights, following, depth, target, Kb, False, 0)
                    source_m, target_m = offset(source, at_middle * Cs), offset(target, at_middle * Kb)
                    _middle(middle, end, source_m, Cs, weights, following, depth, target_m, Kb, False, high)
                    source_l, target_l = offset(source, at_low * Cs), offset(target, at_low * Kb)
                    _low(low, end, source_l, Cs, weights, following, depth, target_l, Kb, False, high + middle)
                    if again:
                        source, weights = offset(source, across), offset(weights, across * width)
                        _add_products(high, middle, low, end, source, Cs, weights, depth, target, Kb)
            O = offset(M, points * m_apart)
            for t in range(count):
                for b in range(spread_w):
                    for k in range(0, outputs, V):
                        target = offset(O, (t * mw * spread_w + b) * each + k)
                        output_tile(offset(M, t * Kb + b * each + k), m_apart, target, count * mw * Kb, Kb)
            if pooled:
                write_pooled(O, count, t0, mh, mw, k0, outputs, each, TH, TW, OH, OW, bias, has_bias, act, slope, y, yn, yk, yh, yw)
            else:
                write_rows(O, count, t0, mh, mw, spread_h, spread_w, phase, skip_h, skip_w, k0, outputs, each, TH, TW, OH, OW, bias,
                           has_bias, act, slope, y, yn, yk, yh, yw)

    def convolve(pool, x, Hp, Wp, C, Cb, stride_h, stride_w, U, panels, blocks, k_panels, unit, spread_h, spread_w, skip_h, skip_w, short,
                 bias, act, slope, pooled, y, heights, slots, scratch, scratch_size):
        """y (N, K, 1, OH, OW) from pixel_rows' x and transform_weights' U, in ``blocks`` of tiles and k_panels panels at a time.

        stride: phases of x, whose channels are side by side in U's C; C counts those up to the last that is not zero.
        spread: phases of y; U's panels are then [phase of rows][group of outputs][phase of columns][unit / spread_w panels],
        and ``unit`` panels are done together. skip: rows and columns of the first tile that lie before y.
        pooled: y has the largest of each 2 x 2 outputs; m is even then, dims 2, and there is no spread.
        short: whether the second phase of a stride of 2 has fewer cells of the kernel. heights: blocking.heights(), flat. scratch:
        ``slots`` times scratch_size.
        """
        N, K, _, OH, OW = y.shape
        high, wide = (mh // 2, mw // 2) if pooled else (mh * spread_h, mw * spread_w)  # of y, for a tile
        TH, TW = (OH + skip_h + high - 1) // high, (OW + skip_w + wide - 1) // wide
        tiles = N * TH * TW
        yn, yk, _, yh, yw = _strides(y)
        for slot in range(slots):
            scratch[slot * scratch_size] = -1.0
        parallel_for(
            pool,
            block_chunk,
            blocks * ((panels + k_panels - 1) // k_panels),
            (blocks, tiles, pointer(x), Hp, Wp, C, Cb, stride_h, stride_w, pointer(U), panels, k_panels, unit, spread_h, spread_w, skip_h,
             skip_w, short, K, TH, TW, OH, OW, pointer(bias), bias.shape[0] > 0, act, slope, pooled, pointer(y), yn, yk, yh, yw,
             pointer(heights), pointer(scratch), scratch_size),
        )

    transform_weights.__qualname__ = f"transform_weights_{m}_{r}_{dims}"
    convolve.__qualname__ = f"convolve_{m}_{r}_{dims}"
    return (kernel("i i R1 L1 L1 i i i i i i W1", dtypes="f")(transform_weights),
            kernel("i W1 i i i i i i W1 i i i i i i i i i R1 i T b W5 L1 i W1 i", dtypes="f")(convolve))


@families.append
def _all():
    for dims, tiles in TILES.items():
        for r in tiles:
            for m in tiles[r]:
                make(m, r, dims)
