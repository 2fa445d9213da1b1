"""Convolution of few input channels (first layers, depthwise, small groups): vectors run along the positions of a plane.

A thread makes the planes of one group of one image (numba_planes.py: padded, any stride a matter of phases), a band of rows
at a time, and slides over them while they are in its cache. Where a group has outputs enough, a tile is a few of them by a
few vectors of positions, and the planes are the right operand of a matrix product, row t of which, for a channel and
kernel cell, is the plane from offsets[t] on. With one or a few outputs (depthwise) a tile is a few rows of positions.

The weight gradient is the other sum over the same pairs: for each kernel cell, over all positions, dy times the plane.
"""

from __future__ import annotations

import functools

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import TILE_ROWS, TILE_VECTORS, finish_tile, outer_tile, store_tile, window_tile
from ...cpu.simd import fma, gather, hsum, lanes, load, load_n, offset, pointer, read, splat, store, store_n, write
from ..numba_activation import RELU, apply_activation
from .numba_planes import _strides, make_plane, zero

ROWS, VECTORS = 8, 4  # the most a tile has of each; planes have room for so many more rows after their last cell
# of tiles of several outputs: the numbers of them in a layer are mostly sums of these
HEIGHTS = (TILE_ROWS, 8, 4) if TILE_ROWS > 8 else (TILE_ROWS, 5, 4)
CELLS = 9  # kernel cells in one pass of the weight gradient: 3 x 3, and what the registers hold


@inline
def _write_tile(sums, pitch, rows, n, shift, act, leak, y, yh, yw):
    """A tile's sums, with bias and activation, to n positions of each of its rows."""
    V = lanes(sums)
    for i in range(rows):
        target = offset(y, i * yh)
        for j in range(0, n, V):
            m = min(V, n - j)
            v = apply_activation(load(sums, i * pitch + j) + shift, act, leak)
            if yw == 1:
                store_n(target, j, v, m)
            else:
                store(sums, i * pitch + j, v)
                for e in range(m):
                    write(target, (j + e) * yw, read(sums, i * pitch + j + e))


def _slide(rows, vectors):
    tile, put, finish = window_tile(rows, vectors), store_tile(rows, vectors), finish_tile(rows, vectors)

    @inline
    def run(T, plane, pitch, offsets, w, TH, TW, bias, act, slope, y, yh, yw, sums):
        """One channel and depth of y: TH rows of TW positions."""
        wide = vectors * lanes(plane)
        floor = 0.0 if act == RELU else -np.inf
        simple = yw == 1 and act <= RELU
        for h in range(0, TH, rows):
            for j in range(0, TW, wide):
                acc = tile(T, offset(plane, h * pitch + j), pitch, offsets, w)
                target = offset(y, h * yh + j * yw)
                m, n = min(rows, TH - h), min(wide, TW - j)
                if simple:
                    finish(acc, target, yh, m, n, bias, 0, floor)
                else:
                    put(acc, sums, wide, rows, wide, False)
                    _write_tile(sums, wide, m, n, splat(plane, read(bias, 0)), act, splat(plane, slope), target, yh, yw)

    return run


_tall, _square, _flat = _slide(ROWS, 1), _slide(4, 2), _slide(2, VECTORS)


def _outputs(rows, vectors):
    """``run``: one row of ``rows`` channels of y from position j on, ``vectors`` vectors of positions at a time, up to position TW."""
    tile, put, finish = outer_tile(rows, vectors, indirect=True), store_tile(rows, vectors), finish_tile(rows, vectors)

    @inline
    def run(T, plane, offsets, w, j, TW, bias, act, slope, y, yk, yw, sums):
        wide = vectors * lanes(plane)
        floor = 0.0 if act == RELU else -np.inf
        for i in range(j, TW, wide):
            n = min(wide, TW - i)
            acc = tile(T, w, 1, rows, offset(plane, i), offsets, 0)
            target = offset(y, i * yw)
            if yw == 1 and act <= RELU:
                finish(acc, target, yk, rows, n, bias, 1, floor)
                continue
            put(acc, sums, wide, rows, wide, False)
            for k in range(rows):
                shift = splat(plane, read(bias, k))
                _write_tile(offset(sums, k * wide), wide, 1, n, shift, act, splat(plane, slope), offset(target, k * yk), 0, yw)

    return run


def _outputs_of(rows):
    """``run``: ``rows`` channels of y at one depth, TH rows of TW positions; a row's last vector, if alone, by a tile of its own."""
    whole, last = _outputs(rows, TILE_VECTORS), _outputs(rows, 1)

    @inline
    def run(T, plane, pitch, offsets, w, TH, TW, bias, act, slope, y, yk, yh, yw, sums):
        V = lanes(plane)
        vectors = (TW + V - 1) // V
        alone = (vectors - vectors % TILE_VECTORS) * V if vectors % TILE_VECTORS == 1 else TW
        for h in range(TH):
            row, target = offset(plane, h * pitch), offset(y, h * yh)
            whole(T, row, offsets, w, 0, min(alone, TW), bias, act, slope, target, yk, yw, sums)
            if alone < TW:
                last(T, row, offsets, w, alone, TW, bias, act, slope, target, yk, yw, sums)

    return run


_high, _middle, _low = (_outputs_of(rows) for rows in HEIGHTS)


@inline
def _group_chunk(slot, chunk, groups, bands, band, C, K, x, sn, sc, sd, sh, sw, D, H, W, pd, ph, pw, td, th, tw, Ds, Hs, Ws, T, offsets, w,
                 tiles, tile_count, bias, act, slope, y, yn, yk, yd, yh, yw, TD, TH, TW, scratch, scratch_size):
    V = lanes(x)
    h0, rest = chunk % bands * band, chunk // bands
    image, group = rest // groups, rest % groups
    rows = min(band, TH - h0)
    sums = offset(scratch, slot * scratch_size)
    planes = offset(sums, ROWS * VECTORS * V)
    size = td * th * tw * Ds * Hs * Ws
    for c in range(C):
        source = offset(x, image * sn + (group * C + c) * sc)
        make_plane(source, sd, sh, sw, D, H, W, pd, ph - h0 * th, pw, td, th, tw, Ds, Hs, Ws, offset(planes, c * size))
    zero(planes, C * size, C * size + ROWS * Ws + (VECTORS + 1) * V)  # read by tiles that reach over the edge, and dropped
    for d in range(TD):
        plane = offset(planes, d * Hs * Ws)
        image_y = offset(y, image * yn + d * yd + h0 * yh)
        weights, k, last = offset(w, group * K * T), group * K, (group + 1) * K
        if tile_count:
            computed = read(tiles, 2 * tile_count)  # channels of y, some perhaps twice
            weights, k = offset(w, group * computed * T), last
        for i in range(tile_count):
            first, height = group * K + read(tiles, 2 * i), read(tiles, 2 * i + 1)
            shift, target = offset(bias, first), offset(image_y, first * yk)
            if height == HEIGHTS[0]:
                _high(T, plane, Ws, offsets, weights, rows, TW, shift, act, slope, target, yk, yh, yw, sums)
            elif height == HEIGHTS[1]:
                _middle(T, plane, Ws, offsets, weights, rows, TW, shift, act, slope, target, yk, yh, yw, sums)
            else:
                _low(T, plane, Ws, offsets, weights, rows, TW, shift, act, slope, target, yk, yh, yw, sums)
            weights = offset(weights, height * T)
        while k < last:
            shift, target = offset(bias, k), offset(image_y, k * yk)
            if TW <= V:
                _tall(T, plane, Ws, offsets, weights, rows, TW, shift, act, slope, target, yh, yw, sums)
            elif TW <= 2 * V:
                _square(T, plane, Ws, offsets, weights, rows, TW, shift, act, slope, target, yh, yw, sums)
            else:
                _flat(T, plane, Ws, offsets, weights, rows, TW, shift, act, slope, target, yh, yw, sums)
            weights = offset(weights, T)
            k += 1


@functools.cache
def row_tiles(outputs: int) -> tuple[tuple[int, int], ...]:
    """(first, rows) of the tiles that make a group's channels of y, a few of them perhaps twice; none where they are too few for a tile."""
    best = {0: (0.0, ())}  # channels made: (cost, rows of each tile)
    for made in range(1, outputs + 1):
        # a small tile loads as many positions for fewer products; the last tile begins where it ends with the channels
        options = [(cost + rows + 4 / rows, (*tiles, rows)) for rows in HEIGHTS if rows <= outputs
                   for cost, tiles in [best.get(max(0, made - rows), (0.0, None))] if tiles is not None]
        if options:
            best[made] = min(options)
    found, first = [], 0
    for rows in sorted(best.get(outputs, (0.0, ()))[1], reverse=True):
        found.append((min(first, outputs - rows), rows))
        first += rows
    return tuple(found)


@kernel("i i i R5 i i i i i i i i i L1 R1 L1 R1 i T W5 W1 i")
def convolve_groups(pool, groups, band, x, pd, ph, pw, td, th, tw, Ds, Hs, Ws, offsets, w, tiles, bias, act, slope, y, scratch,
                    scratch_size):
    """y[n, k] = act(bias[k] + sum over t of w[k, t] * the group's planes from offsets[t] on).

    tiles: row_tiles of a group's channels of y, flat, and how many rows they have in all; or empty. w: flat, for each group and tile
    [len(offsets)][rows]; without tiles a row of len(offsets) for each channel of y. offsets count from the start of a group's first
    plane. pd..: the padding before, td.. the stride, Ds.. the places of a phase, for ``band`` rows of y at a time. scratch:
    scratch_size (see scratch_elements) a thread.
    """
    N, C, D, H, W = x.shape
    _, K, TD, TH, TW = y.shape
    sn, sc, sd, sh, sw = _strides(x)
    yn, yk, yd, yh, yw = _strides(y)
    bands = (TH + band - 1) // band
    parallel_for(
        pool,
        _group_chunk,
        N * groups * bands,
        (groups, bands, band, C // groups, K // groups, pointer(x), sn, sc, sd, sh, sw, D, H, W, pd, ph, pw, td, th, tw, Ds, Hs, Ws,
         offsets.shape[0], pointer(offsets), pointer(w), pointer(tiles), max(0, tiles.shape[0] // 2 - 1), pointer(bias), act, slope,
         pointer(y), yn, yk, yd, yh, yw, TD, TH, TW, pointer(scratch), scratch_size),
    )


def scratch_elements(channels: int, plane: int, row: int, lanes: int) -> int:
    """A thread's share of convolve_groups' scratch: a tile's sums, the planes of a group, and what tiles read after them."""
    return ROWS * VECTORS * lanes + channels * plane + ROWS * row + (VECTORS + 1) * lanes


# ------------------------------------------------------------------------------------------------ weight gradient
@inline
def _cells(plane, pitch, dz, zd, zh, zw, Hs, TD, TH, TW, offsets, out):
    """out[0:CELLS] += the sums over all positions of dz times the plane from offsets[0:CELLS] on."""
    V = lanes(plane)
    zero_ = splat(plane, 0.0)
    a0, a1, a2, a3, a4, a5, a6, a7, a8 = zero_, zero_, zero_, zero_, zero_, zero_, zero_, zero_, zero_
    p0, p1, p2 = offset(plane, read(offsets, 0)), offset(plane, read(offsets, 1)), offset(plane, read(offsets, 2))
    p3, p4, p5 = offset(plane, read(offsets, 3)), offset(plane, read(offsets, 4)), offset(plane, read(offsets, 5))
    p6, p7, p8 = offset(plane, read(offsets, 6)), offset(plane, read(offsets, 7)), offset(plane, read(offsets, 8))
    for d in range(TD):
        for h in range(TH):
            row = offset(dz, d * zd + h * zh)
            q = (d * Hs + h) * pitch
            j = 0
            while j + V <= TW:
                g = load(row, j) if zw == 1 else gather(row, j * zw, zw)
                a0, a1, a2 = fma(g, load(p0, q + j), a0), fma(g, load(p1, q + j), a1), fma(g, load(p2, q + j), a2)
                a3, a4, a5 = fma(g, load(p3, q + j), a3), fma(g, load(p4, q + j), a4), fma(g, load(p5, q + j), a5)
                a6, a7, a8 = fma(g, load(p6, q + j), a6), fma(g, load(p7, q + j), a7), fma(g, load(p8, q + j), a8)
                j += V
            while j < TW:  # both sides masked: what lies after a row's last position may be infinite
                m = min(V, TW - j) if zw == 1 else 1
                g = load_n(row, j * zw, m)
                a0, a1, a2 = fma(g, load_n(p0, q + j, m), a0), fma(g, load_n(p1, q + j, m), a1), fma(g, load_n(p2, q + j, m), a2)
                a3, a4, a5 = fma(g, load_n(p3, q + j, m), a3), fma(g, load_n(p4, q + j, m), a4), fma(g, load_n(p5, q + j, m), a5)
                a6, a7, a8 = fma(g, load_n(p6, q + j, m), a6), fma(g, load_n(p7, q + j, m), a7), fma(g, load_n(p8, q + j, m), a8)
                j += m
    write(out, 0, read(out, 0) + hsum(a0))
    write(out, 1, read(out, 1) + hsum(a1))
    write(out, 2, read(out, 2) + hsum(a2))
    write(out, 3, read(out, 3) + hsum(a3))
    write(out, 4, read(out, 4) + hsum(a4))
    write(out, 5, read(out, 5) + hsum(a5))
    write(out, 6, read(out, 6) + hsum(a6))
    write(out, 7, read(out, 7) + hsum(a7))
    write(out, 8, read(out, 8) + hsum(a8))


@inline
def _gradient_chunk(slot, channel, N, M, x, sn, sc, sd, sh, sw, D, H, W, pd, ph, pw, td, th, tw, Ds, Hs, Ws, T, offsets, dz, zn, zk, zd,
                    zh, zw, TD, TH, TW, dw, scratch, scratch_size):
    plane = offset(scratch, slot * scratch_size)
    for n in range(N):
        source = offset(x, n * sn + channel * sc)
        make_plane(source, sd, sh, sw, D, H, W, pd, ph, pw, td, th, tw, Ds, Hs, Ws, plane)
        for k in range(channel * M, (channel + 1) * M):
            grad = offset(dz, n * zn + k * zk)
            for t in range(0, T, CELLS):
                _cells(plane, Ws, grad, zd, zh, zw, Hs, TD, TH, TW, offset(offsets, t), offset(dw, k * T + t))


@kernel("i R5 R5 i i i i i i i i i L1 W2 W1 i")
def gradient_depthwise(pool, x, dz, pd, ph, pw, td, th, tw, Ds, Hs, Ws, offsets, dw, scratch, scratch_size):
    """dw[k, t] += sum over images and positions of dz[n, k] * the plane of k's channel from offsets[t] on.

    len(offsets) is a multiple of CELLS (repeat the last one). A chunk is one channel for all images, in order: the bits do
    not depend on the number of threads. scratch: a plane and a vector a thread.
    """
    N, C, D, H, W = x.shape
    _, K, TD, TH, TW = dz.shape
    sn, sc, sd, sh, sw = _strides(x)
    zn, zk, zd, zh, zw = _strides(dz)
    parallel_for(
        pool,
        _gradient_chunk,
        C,
        (N, K // C, pointer(x), sn, sc, sd, sh, sw, D, H, W, pd, ph, pw, td, th, tw, Ds, Hs, Ws, offsets.shape[0], pointer(offsets),
         pointer(dz), zn, zk, zd, zh, zw, TD, TH, TW, pointer(dw), pointer(scratch), scratch_size),
    )
