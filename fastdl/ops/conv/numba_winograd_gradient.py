"""The gradient of a convolution's weight by Winograd's F(r, m): the gradient's r cells are outputs of a filter of m taps, the tile of dy.

dw[k, c] is the sum over tiles of x's n x n pixels, n = m + r - 1, correlated with dy's m x m. Transformed, that is a product at each
of n^2 points instead of r^2 m^2 of them, and since the last transform is linear, sums over tiles come before it:

    transforms          V[block of channels][point][tile][channel] of x, D[panel of outputs][point][tile][output] of dy, for as many
                        tiles at a time as the scratch memory holds
    matrix products     M[point][channel][output] = the sum over those tiles of V[point] D[point], for a block of channels and a panel of
                        outputs, in a core's L2
    last transform      of M, added up for all tiles: sums[channel][cell][output]
    writing             after the last tiles, dw[output][channel][cell]

Each sum is taken in the order of tiles, so its bits depend on no number of threads. Sources: numba_winograd.py; for gradients, the same
paper's section 4.
"""

from __future__ import annotations

import functools

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.blocking import HEIGHTS
from ...cpu.jit import always_inline, families, inline, kernel
from ...cpu.microkernel import TILE_VECTORS, asked, outer_tile, store_tile
from ...cpu.simd import (
    lanes,
    load,
    load_n,
    load_rows,
    load_rows_n,
    offset,
    pointer,
    read,
    store,
    store_rows,
    store_rows_n,
    transpose,
)
from .numba_planes import _strides, zero
from .numba_winograd import generated
from .winograd import GRADIENT_TILES, matrices

LONGEST = 32  # large tiles in one sum: the last transform magnifies its error, which grows with its length


def _products(rows):
    """``run(count, tiles, a, a_step, b, following, depth, c, done)``: ``count`` times ``rows`` channels of a times a panel, over tiles.

    done: parts of the next panel that were asked for. Sums are cut where ``depth`` says.
    """
    tile, put = outer_tile(rows, TILE_VECTORS, ahead=1), store_tile(rows, TILE_VECTORS)

    @always_inline
    def run(count, tiles, a, a_step, b, following, depth, c, done):
        V = lanes(b)
        width = TILE_VECTORS * V
        for i in range(count):
            ahead = offset(following, (done + i) * asked(tiles, V))
            for t in range(0, tiles, depth):
                left, right = offset(a, i * rows + t * a_step), offset(b, t * width)
                sums = tile(min(depth, tiles - t), left, 1, a_step, right, width, ahead)
                put(sums, offset(c, i * rows * width), width, rows, width, t > 0)
                ahead = offset(ahead, asked(depth, V))

    return run


_high, _middle, _low = (_products(rows) for rows in HEIGHTS)


@inline
def _patch(x, sc, sh, sw, channels, top, rows, H, left, columns, W, out):
    """Of an image's ``channels``, a vector's at most, the rows from ``top`` and the columns from ``left`` on as out[row][column][lane];
    zeros outside the image."""
    V = lanes(x)
    first = min(max(0, -left), columns)
    last = max(first, min(columns, W - left))
    for i in range(rows):
        row, target = top + i, offset(out, i * columns * V)
        if row < 0 or row >= H:
            zero(target, 0, columns * V)
            continue
        zero(target, 0, first * V)
        zero(target, last * V, columns * V)
        source = offset(x, row * sh + left * sw)
        w = first
        if sc == 1:
            while w < last:
                store(target, w * V, load(source, w * sw) if channels == V else load_n(source, w * sw, channels))
                w += 1
            continue
        if channels == V and last - first >= V:
            while w < last:
                w = min(w, last - V)  # the last ones once more, rather than with masks
                store_rows(target, w * V, V, transpose(load_rows(source, w, sc)))
                w += V
        while w < last:
            n = min(V, last - w)
            store_rows_n(target, w * V, V, transpose(load_rows_n(source, w, sc, channels, n)), n, V)
            w += V


@inline
def _write(sums, terms, outputs, dw, k_step):
    """sums[term][output of a panel] as dw[output][term], the first ``outputs`` of them."""
    V = lanes(sums)
    for k in range(0, outputs, V):
        count = min(V, outputs - k)
        q = 0
        if count == V:
            while q + V <= terms:
                store_rows(dw, k * k_step + q, k_step, transpose(load_rows(sums, q * TILE_VECTORS * V + k, TILE_VECTORS * V)))
                q += V
        while q < terms:
            n = min(V, terms - q)
            turned = transpose(load_rows_n(sums, q * TILE_VECTORS * V + k, TILE_VECTORS * V, n, count))
            store_rows_n(dw, k * k_step + q, k_step, turned, count, n)
            q += V


@functools.cache
def make(m, r, dims):
    """The entry point for tiles of m x m positions of dy and kernels of r x r cells, or of m and r in one dimension."""
    n = m + r - 1
    mh, rh, nh = (m, r, n) if dims == 2 else (1, 1, 1)
    points, cells = nh * n, rh * r
    longest = LONGEST if n > 6 else 1 << 30  # tiles
    (ah_t, gh, bh_t), (aw_t, gw, bw_t) = matrices(rh, mh) if dims == 2 else (np.ones((1, 1)),) * 3, matrices(r, m)
    pixel, point = "load(p, {i} * row + {j} * column)", f"store(out, ({{i}} * {n} + {{j}}) * apart, {{v}})"
    x_tile = inline(generated(bh_t, bw_t, "x_tile", pixel, point, "p, row, column, out, apart"))
    dy_tile = inline(generated(gh, gw, "dy_tile", pixel, point, "p, row, column, out, apart"))
    sum_, place = f"load(p, ({{i}} * {n} + {{j}}) * apart)", f"({{i}} * {r} + {{j}}) * step"
    put_tile = inline(generated(ah_t, aw_t, "put_tile", sum_, f"store(out, {place}, {{v}})", "p, apart, out, step"))
    add_tile = inline(generated(ah_t, aw_t, "add_tile", sum_, f"store(out, {place}, load(out, {place}) + {{v}})", "p, apart, out, step"))

    @inline
    def tiles_chunk(slot, chunk, pieces, first_run, parts, TH, TW, first_tile, x, xn, xc, xh, xw, C, H, W, ph, pw, VV, x_apart, c_block,
                    dy, yn, yk, yh, yw, K, OH, OW, DD, d_apart, scratch, scratch_size):
        V = lanes(x)
        width = TILE_VECTORS * V
        run, piece = first_run + chunk // pieces, chunk % pieces
        row, part = run // parts, run % parts
        band, image = row % TH, row // TH
        first, last = part * TW // parts, (part + 1) * TW // parts
        count, place = last - first, row * TW + first - first_tile
        patch = offset(scratch, slot * scratch_size)
        of_x, of_dy = (C + V - 1) // V, (K + V - 1) // V  # vectors
        for g in range(piece * (of_x + of_dy) // pieces, (piece + 1) * (of_x + of_dy) // pieces):
            if g < of_x:
                c, columns = g * V, count * m + r - 1
                _patch(offset(x, image * xn + c * xc), xc, xh, xw, min(V, C - c), band * mh - ph, nh, H, first * m - pw, columns, W, patch)
                target = offset(VV, c // c_block * points * x_apart + place * c_block + c % c_block)
                for t in range(count):
                    x_tile(offset(patch, t * m * V), columns * V, V, offset(target, t * c_block), x_apart)
            else:
                k, columns = (g - of_x) * V, count * m
                _patch(offset(dy, image * yn + k * yk), yk, yh, yw, min(V, K - k), band * mh, mh, OH, first * m, columns, OW, patch)
                target = offset(DD, k // width * points * d_apart + place * width + k % width)
                for t in range(count):
                    dy_tile(offset(patch, t * m * V), columns * V, V, offset(target, t * width), d_apart)

    @inline
    def sums_chunk(slot, chunk, c_blocks, c_block, C, K, tiles, VV, x_apart, DD, d_apart, heights, add, last, kept, kept_size, m_apart, dw,
                   scratch, scratch_size):
        V = lanes(VV)
        width = TILE_VECTORS * V
        panel, c0 = chunk // c_blocks, chunk % c_blocks * c_block
        channels = min(c_block, C - c0)
        high, middle, low = read(heights, 3 * channels), read(heights, 3 * channels + 1), read(heights, 3 * channels + 2)
        at_middle = high * HEIGHTS[0]
        at_low = at_middle + middle * HEIGHTS[1]
        M = offset(scratch, slot * scratch_size)
        pieces = (tiles + longest - 1) // longest
        depth = (tiles + pieces - 1) // pieces
        for p in range(points):
            a, b = offset(VV, (c0 // c_block * points + p) * x_apart), offset(DD, (panel * points + p) * d_apart)
            following, target = offset(b, d_apart), offset(M, p * m_apart)
            _high(high, tiles, a, c_block, b, following, depth, target, 0)
            _middle(middle, tiles, offset(a, at_middle), c_block, b, following, depth, offset(target, at_middle * width), high)
            _low(low, tiles, offset(a, at_low), c_block, b, following, depth, offset(target, at_low * width), high + middle)
        out = offset(kept, chunk * kept_size) if kept_size > 0 else offset(M, points * m_apart)
        for c in range(channels):
            for v in range(0, width, V):
                if add:
                    add_tile(offset(M, c * width + v), m_apart, offset(out, c * cells * width + v), width)
                else:
                    put_tile(offset(M, c * width + v), m_apart, offset(out, c * cells * width + v), width)
        if last:
            k_step = C * cells
            _write(out, channels * cells, min(width, K - panel * width), offset(dw, panel * width * k_step + c0 * cells), k_step)

    def gradient(pool, slots, x, dy, ph, pw, parts, blocks, c_block, x_apart, d_apart, m_apart, heights, memory, kept, scratch,
                 scratch_size, dw):
        """dw (K, C, cells), flat, from x (N, C, 1, H, W) and dy (N, K, 1, OH, OW), each contiguous along columns or channels.

        A row of tiles is cut into ``parts`` runs, all runs into ``blocks`` of tiles that are transformed at a time. c_block: channels
        in a block of V, whole vectors. x_apart, d_apart, m_apart: from point to point of V, D and M. heights: blocking.heights(), flat.
        memory: all of V, then all of D. kept: sums of all chunks, empty where there is one block only. scratch: ``slots`` times
        scratch_size, a patch of pixels, or M and the sums of a chunk.
        """
        N, C, _, H, W = x.shape
        _, K, _, OH, OW = dy.shape
        width = TILE_VECTORS * lanes(pointer(x))
        TH, TW = (OH + mh - 1) // mh, (OW + m - 1) // m
        runs = N * TH * parts
        xn, xc, _, xh, xw = _strides(x)
        yn, yk, _, yh, yw = _strides(dy)
        c_blocks, panels = (C + c_block - 1) // c_block, (K + width - 1) // width
        VV = pointer(memory)
        DD = offset(VV, c_blocks * points * x_apart)
        kept_size = 0 if blocks == 1 else c_block * cells * width
        for block in range(blocks):
            from_run, to_run = block * runs // blocks, (block + 1) * runs // blocks
            from_tile = from_run // parts * TW + from_run % parts * TW // parts
            tiles = to_run // parts * TW + to_run % parts * TW // parts - from_tile
            pieces = 1 if pool == 0 else max(1, (4 * slots + to_run - from_run - 1) // (to_run - from_run))
            parallel_for(
                pool,
                tiles_chunk,
                (to_run - from_run) * pieces,
                (pieces, from_run, parts, TH, TW, from_tile, pointer(x), xn, xc, xh, xw, C, H, W, ph, pw, VV, x_apart, c_block,
                 pointer(dy), yn, yk, yh, yw, K, OH, OW, DD, d_apart, pointer(scratch), scratch_size),
            )
            parallel_for(
                pool,
                sums_chunk,
                panels * c_blocks,
                (c_blocks, c_block, C, K, tiles, VV, x_apart, DD, d_apart, pointer(heights), block > 0, block + 1 == blocks, pointer(kept),
                 kept_size, m_apart, pointer(dw), pointer(scratch), scratch_size),
            )

    gradient.__qualname__ = f"gradient_{m}_{r}_{dims}"
    return kernel("i i R5 R5 i i i i i i i i L1 W1 W1 W1 i W1", dtypes="f")(gradient)


@families.append
def _all():
    for dims, tiles in GRADIENT_TILES.items():
        for r in tiles:
            for m in tiles[r]:
                make(m, r, dims)
