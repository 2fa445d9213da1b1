"""Depthwise convolution of planar images, read in place: vectors run along the positions of a row.

Windows slide down strips of a few vectors side by side (cpu/sliding.py): the image is read once, in order, each row of it with as
many loads as the window has columns. Rows of half a vector or less go two planes at a time, one in each half.
"""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import lanes, load_n, offset, pointer, splat, store_n
from ...cpu.sliding import MOST_VECTORS, slide_rows
from ..numba_activation import RELU, apply_activation
from .numba_planes import _strides

SIZES, STRIDES = (3, 5), (1, 2)


def make(size, stride):
    """The entry point for windows of size x size at this stride."""
    one, pair, two = slide_rows(size, stride, 1), slide_rows(size, stride, 1, True), slide_rows(size, stride, 2)
    three, four = slide_rows(size, stride, min(3, MOST_VECTORS)), slide_rows(size, stride, MOST_VECTORS)

    @inline
    def strips(most, x, xh, H, W, row, left, count, w, bias, floor, y, yh, TW):
        """``count`` rows of TW positions of one plane."""
        V = lanes(x)
        others = (x, w, bias, y)
        if TW <= V:
            one(x, xh, H, W, row, -left, 0, 0, count, w, bias, floor, y, yh, TW, others)
            return
        vectors = (TW + V - 1) // V
        todo = (vectors + most - 1) // most  # strips
        j = 0
        while todo:
            n = (vectors + todo - 1) // todo
            last = min(n * V, TW - j) - V
            column = j * stride - left
            inner = (W - column - (size - 1)) // stride - V
            target = offset(y, j)
            if n == 1:
                one(x, xh, H, W, row, column + last * stride, 0, 0, count, w, bias, floor, offset(y, j + last), yh, V, others)
            elif n == 2:
                two(x, xh, H, W, row, column, last, inner, count, w, bias, floor, target, yh, V, others)
            elif n == 3:
                three(x, xh, H, W, row, column, last, inner, count, w, bias, floor, target, yh, V, others)
            else:
                four(x, xh, H, W, row, column, last, inner, count, w, bias, floor, target, yh, V, others)
            j += n * V
            vectors -= n
            todo -= 1

    @inline
    def activate(y, act, slope, count, TW, yh):
        """What a floor is not enough for, to the rows of a plane that were just written."""
        if act > RELU:
            V, leak = lanes(y), splat(y, slope)
            for h in range(count):
                row = offset(y, h * yh)
                for j in range(0, TW, V):
                    store_n(row, j, apply_activation(load_n(row, j, TW - j), act, leak), TW - j)

    @inline
    def chunk_of(slot, chunk, share, bands, most, planes, C, K, x, sn, sc, xh, H, W, top, left, w, bias, act, slope, y, yn, yk, yh, TH, TW):
        V = lanes(x)
        first, band = chunk // bands * share, chunk % bands
        last = min(first + share, planes)
        h = band * TH // bands
        count = (band + 1) * TH // bands - h
        floor = 0.0 if act == RELU else -np.inf
        row = h * stride - top
        M = K // C
        step = 2 if 2 * TW <= V else 1
        for p in range(first, last, step):
            image, k = p // K, p % K
            source, target = offset(x, image * sn + k // M * sc), offset(y, image * yn + k * yk + h * yh)
            windows, shift = offset(w, k * size * size), offset(bias, k)
            if step == 2:
                q = min(p + 1, last - 1)  # the last of an odd number has both halves
                image, l = q // K, q % K
                others = (offset(x, image * sn + l // M * sc), offset(w, l * size * size), offset(bias, l),
                          offset(y, image * yn + l * yk + h * yh))
                pair(source, xh, H, W, row, -left, 0, 0, count, windows, shift, floor, target, yh, TW, others)
                if q > p:
                    activate(others[3], act, slope, count, TW, yh)
            else:
                strips(most, source, xh, H, W, row, left, count, windows, shift, floor, target, yh, TW)
            activate(target, act, slope, count, TW, yh)

    def convolve_image(pool, share, bands, most, x, top, left, w, bias, act, slope, y):
        """y[n, k] = act(bias[k] + window k over x[n, k // multiplier]); x's and y's rows are contiguous.

        w: flat [k][size * size]. bias: one for each k. top, left: padding. share: planes of y in a chunk; bands: parts of a plane that
        threads take. most: vectors in a strip.
        """
        N, C, _, H, W = x.shape
        K, TH, TW = y.shape[1], y.shape[3], y.shape[4]
        sn, sc, _, xh, _ = _strides(x)
        yn, yk, _, yh, _ = _strides(y)
        parallel_for(
            pool,
            chunk_of,
            (N * K + share - 1) // share * bands,
            (share, bands, most, N * K, C, K, pointer(x), sn, sc, xh, H, W, top, left, pointer(w), pointer(bias), act, slope, pointer(y),
             yn, yk, yh, TH, TW),
        )

    convolve_image.__qualname__ = f"convolve_image_{size}_{stride}"
    return kernel("i i i i R5 i i R1 R1 i T W5")(convolve_image)


KERNELS = {(size, stride): make(size, stride) for size in SIZES for stride in STRIDES}
