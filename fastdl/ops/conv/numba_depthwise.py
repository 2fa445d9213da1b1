"""Depthwise convolution of planar images, read in place: vectors run along the positions of a row.

A tile is a few rows of one vector of positions of one channel; each value of the image is loaded once for all rows of the
tile. Rows above and below the image are one row of zeros, columns beside it are masked off.
"""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import finish_tile, image_tile
from ...cpu.simd import address, lanes, load_n, offset, pointer, prefetch, splat, store_n, write
from ..numba_activation import RELU, apply_activation
from .numba_planes import _strides

SIZES, STRIDES = (3, 5), (1, 2)
TALL, LOW = 7, 4  # rows of a tile; what is left of an image is low where that is enough
LINES = 32  # room for a thread's list of rows: (TALL - 1) * 2 + 5 at most


def make(size, stride):
    """The entry point for windows of size x size at this stride."""

    def sliding(rows):
        within, beside = (image_tile(rows, size, stride, masked=masked) for masked in (False, True))
        finish = finish_tile(rows, 1)
        reach = (rows - 1) * stride + size

        @inline
        def run(x, xh, H, W, top, left, h, count, TW, w, bias, floor, y, yh, zeros, lines):
            V = lanes(x)
            for r in range(reach):
                line = h * stride - top + r
                write(lines, r, address(offset(x, line * xh)) if 0 <= line < H else address(zeros))
            j = 0
            while j < TW:
                if j + V > TW and TW >= V:
                    j = TW - V  # some positions once more
                column = j * stride - left
                for r in range(rows * stride):  # what the tiles below meet: many short rows, no stream that hardware follows
                    prefetch(x, (h * stride - top + reach + r) * xh + j * stride)
                if column >= 0 and column + size - 1 + stride * V <= W:
                    sums = within(x, lines, column, W, w)
                else:
                    sums = beside(x, lines, column, W, w)
                finish(sums, offset(y, h * yh + j), yh, count, TW - j, bias, 0, floor)
                j += V

        return run

    tall, low = sliding(TALL), sliding(LOW)

    @inline
    def chunk_of(slot, chunk, bands, C, K, x, sn, sc, xh, H, W, top, left, w, bias, act, slope, y, yn, yk, yh, TH, TW, zeros, lines):
        V = lanes(x)
        plane, band = chunk // bands, chunk % bands
        image, k = plane // K, plane % K
        first, last = band * TH // bands, (band + 1) * TH // bands
        source, target = offset(x, image * sn + k // (K // C) * sc), offset(y, image * yn + k * yk)
        weights, shift, mine = offset(w, k * size * size), offset(bias, k), offset(lines, slot * LINES)
        floor = 0.0 if act == RELU else -np.inf
        h = first
        while h < last:
            if last - h > LOW:
                tall(source, xh, H, W, top, left, h, last - h, TW, weights, shift, floor, target, yh, zeros, mine)
                h += TALL
            else:
                low(source, xh, H, W, top, left, h, last - h, TW, weights, shift, floor, target, yh, zeros, mine)
                h += LOW
        if act > RELU:
            leak = splat(x, slope)
            for h in range(first, last):
                row = offset(target, h * yh)
                for j in range(0, TW, V):
                    store_n(row, j, apply_activation(load_n(row, j, TW - j), act, leak), TW - j)

    def convolve_image(pool, bands, x, top, left, w, bias, act, slope, y, zeros, lines):
        """y[n, k] = act(bias[k] + window k over x[n, k // multiplier]); x's and y's rows are contiguous.

        w: flat [k][size * size]. bias: one for each k. top, left: padding. bands: parts of a plane that threads take. zeros: as
        many as a row of x. lines: LINES a thread.
        """
        N, C, _, H, W = x.shape
        K, TH, TW = y.shape[1], y.shape[3], y.shape[4]
        sn, sc, _, xh, _ = _strides(x)
        yn, yk, _, yh, _ = _strides(y)
        parallel_for(
            pool,
            chunk_of,
            N * K * bands,
            (bands, C, K, pointer(x), sn, sc, xh, H, W, top, left, pointer(w), pointer(bias), act, slope, pointer(y), yn, yk, yh,
             TH, TW, pointer(zeros), pointer(lines)),
        )

    convolve_image.__qualname__ = f"convolve_image_{size}_{stride}"
    return kernel("i i R5 i i R1 R1 i T W5 R1 L1")(convolve_image)


KERNELS = {(size, stride): make(size, stride) for size in SIZES for stride in STRIDES}
