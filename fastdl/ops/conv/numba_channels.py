"""Depthwise convolution of channels-last images, one output for each channel: vectors run along the channels.

x is read in place; kernel cells outside the image are left out, not multiplied by zero. Weights are [cell][channel]. Usual windows
slide along a few rows of pixels at once, a pixel is loaded once for all of them (cpu/sliding_pixels.py); others meet the cells of
each pixel anew.
"""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import fma, lanes, load, load_n, offset, pointer, splat, store, store_n
from ...cpu.sliding_pixels import gather_pixels, rows_together, slide_pixels, spread_pixels
from ..numba_activation import RELU, apply_activation
from .numba_depthwise import LARGE, SIZES, STRIDES
from .numba_planes import _strides

PIXELS = 4  # of a row, done together: each weight is loaded once for them
SPREAD = 2  # rows of a gradient that are spread at once
STRIP = 16  # pixels of a row that windows slide along before the next channels: the cache lines that these share are still near


@inline
def _pixel(x, row, column, i0, i1, j0, j1, kw, first, C, w, bias, has_bias, act, leak, y):
    """Channels first..C of one output pixel from the cells i0..i1, j0..j1 of its window, which starts at x."""
    V = lanes(w)
    for c in range(first, C, V):
        n = min(V, C - c)
        v = load_n(bias, c, n) if has_bias else splat(w, 0.0)
        for i in range(i0, i1):
            for j in range(j0, j1):
                v = fma(load_n(w, (i * kw + j) * C + c, n), load_n(x, i * row + j * column + c, n), v)
        store_n(y, c, apply_activation(v, act, leak), n)


@inline
def _pixels(x, step, row, column, i0, i1, kw, C, w, bias, has_bias, act, leak, y, yw):
    """Whole vectors of channels of PIXELS output pixels, ``step`` apart in x, whose windows lie within the image's width.

    Returns the first channel that is left."""
    V = lanes(w)
    c = 0
    while c + V <= C:
        a0 = load(bias, c) if has_bias else splat(w, 0.0)
        a1, a2, a3 = a0, a0, a0
        for i in range(i0, i1):
            for j in range(kw):
                weight = load(w, (i * kw + j) * C + c)
                p = i * row + j * column + c
                a0, a1 = fma(weight, load(x, p), a0), fma(weight, load(x, p + step), a1)
                a2, a3 = fma(weight, load(x, p + 2 * step), a2), fma(weight, load(x, p + 3 * step), a3)
        store(y, c, apply_activation(a0, act, leak))
        store(y, yw + c, apply_activation(a1, act, leak))
        store(y, 2 * yw + c, apply_activation(a2, act, leak))
        store(y, 3 * yw + c, apply_activation(a3, act, leak))
        c += V
    return c


@inline
def _cells(start, size, kernel, dilation):
    """The cells of a window that lie in the image: first and past the last."""
    first = 0 if start >= 0 else (-start + dilation - 1) // dilation
    last = min(kernel, (size - start + dilation - 1) // dilation) if size > start else 0
    return min(first, kernel), max(last, min(first, kernel))


@inline
def _row_chunk(slot, chunk, OH, OW, H, W, C, kh, kw, stride_h, stride_w, ph, pw, dh, dw, x, xn, xh, xw, w, bias, has_bias, act, slope,
               y, yn, yh, yw):
    leak = splat(w, slope)
    image, oh = chunk // OH, chunk % OH
    h = oh * stride_h - ph
    i0, i1 = _cells(h, H, kh, dh)
    row, column = dh * xh, dw * xw
    source, target = offset(x, image * xn + h * xh), offset(y, image * yn + oh * yh)
    ow = 0
    while ow < OW:
        start = ow * stride_w - pw
        end = start + (PIXELS - 1) * stride_w + (kw - 1) * dw
        if start >= 0 and end < W and ow + PIXELS <= OW:
            here, there = offset(source, start * xw), offset(target, ow * yw)
            done = _pixels(here, stride_w * xw, row, column, i0, i1, kw, C, w, bias, has_bias, act, leak, there, yw)
            if done < C:
                for p in range(PIXELS):
                    _pixel(offset(here, p * stride_w * xw), row, column, i0, i1, 0, kw, kw, done, C, w, bias, has_bias, act, leak,
                           offset(there, p * yw))
            ow += PIXELS
        else:
            j0, j1 = _cells(start, W, kw, dw)
            _pixel(offset(source, start * xw), row, column, i0, i1, j0, j1, kw, 0, C, w, bias, has_bias, act, leak,
                   offset(target, ow * yw))
            ow += 1


@kernel("i R5 R1 i i i i i i i i R1 i T W5")
def convolve_channels(pool, x, w, kh, kw, stride_h, stride_w, ph, pw, dh, dw, bias, act, slope, y):
    """y[n, c] = act(bias[c] + window of x[n, c] times w[:, c]); x and y contiguous along channels, w flat [kh * kw][C]."""
    N, C, _, H, W = x.shape
    OH, OW = y.shape[3], y.shape[4]
    xn, _, _, xh, xw = _strides(x)
    yn, _, _, yh, yw = _strides(y)
    parallel_for(
        pool,
        _row_chunk,
        N * OH,
        (OH, OW, H, W, C, kh, kw, stride_h, stride_w, ph, pw, dh, dw, pointer(x), xn, xh, xw, pointer(w), pointer(bias),
         bias.shape[0] > 0, act, slope, pointer(y), yn, yh, yw),
    )


# ------------------------------------------------------------------------------------------------ square windows
def make(size, stride):
    """The entry point for windows of size x size at this stride, for a vector of channels or more."""
    rows = rows_together(size)
    slide = slide_pixels(size, stride, rows)

    @inline
    def chunk_of(slot, chunk, bands, blocks, x, C, xn, xh, xw, H, W, top, left, w, bias, act, slope, y, yn, yh, yw, OH, OW):
        V = lanes(x)
        block, rest = chunk % blocks, chunk // blocks
        image, h = rest // bands, rest % bands * rows
        vectors = (C + V - 1) // V
        floor = 0.0 if act == RELU else -np.inf
        m, leak = min(rows, OH - h), splat(x, slope)
        for first in range(0, OW, STRIP):
            count = min(STRIP, OW - first)
            for i in range(block * vectors // blocks, (block + 1) * vectors // blocks):
                c = min(i * V, C - V)  # some channels once more
                target = offset(y, image * yn + h * yh + first * yw + c)
                slide(offset(x, image * xn + c), xh, xw, H, W, h * stride - top, first * stride - left, count, offset(w, c), C,
                      offset(bias, c), floor, target, yh, yw, m)
                if act > RELU:
                    for a in range(m):
                        for p in range(a * yh, a * yh + count * yw, yw):
                            store(target, p, apply_activation(load(target, p), act, leak))

    def convolve_windows(pool, blocks, x, top, left, w, bias, act, slope, y):
        """y[n, c] = act(bias[c] + window c over x[n, c]); x and y contiguous along channels, w flat [size * size][C].

        top, left: padding. blocks: parts of the channels that threads take."""
        N, C, _, H, W = x.shape
        OH, OW = y.shape[3], y.shape[4]
        xn, _, _, xh, xw = _strides(x)
        yn, _, _, yh, yw = _strides(y)
        bands = (OH + rows - 1) // rows
        parallel_for(
            pool,
            chunk_of,
            N * bands * blocks,
            (bands, blocks, pointer(x), C, xn, xh, xw, H, W, top, left, pointer(w), pointer(bias), act, slope, pointer(y), yn, yh, yw,
             OH, OW),
        )

    convolve_windows.__qualname__ = f"convolve_windows_{size}_{stride}"
    return kernel("i i R5 i i R1 R1 i T W5")(convolve_windows)


def make_weight_gradient(size, stride):
    """The entry point of dw for windows of size x size at this stride, for a vector of channels or more."""
    gather = gather_pixels(size, stride)

    @inline
    def chunk_of(slot, chunk, parts, blocks, band, N, C, x, xn, xh, xw, H, W, top, left, z, zn, zh, zw, OH, OW, sums):
        V = lanes(x)
        block, part = chunk % blocks, chunk // blocks
        vectors = (C + V - 1) // V
        mine = offset(sums, part * size * size * vectors * V)
        for image in range(part * N // parts, (part + 1) * N // parts):
            for h in range(0, OH, band):
                for i in range(block * vectors // blocks, (block + 1) * vectors // blocks):
                    c = min(i * V, C - V)
                    gather(offset(x, image * xn + c), xh, xw, H, W, h * stride - top, -left, offset(z, image * zn + h * zh + c), zh, zw,
                           min(band, OH - h), OW, offset(mine, i * V), vectors * V)

    def gather_windows(pool, parts, blocks, band, x, top, left, z, sums):
        """sums[part, cell, i] += over the images of a part and all positions, z times the pixel of x that the cell meets there.

        x and z contiguous along channels. i: the channels in whole vectors, the last of which ends with the last channel. parts: of
        the batch, so many whatever the threads; blocks: of the channels; band: rows of z that are done for all channels.
        """
        N, C, _, H, W = x.shape
        OH, OW = z.shape[3], z.shape[4]
        xn, _, _, xh, xw = _strides(x)
        zn, _, _, zh, zw = _strides(z)
        parallel_for(
            pool,
            chunk_of,
            parts * blocks,
            (parts, blocks, band, N, C, pointer(x), xn, xh, xw, H, W, top, left, pointer(z), zn, zh, zw, OH, OW, pointer(sums)),
        )

    gather_windows.__qualname__ = f"gather_windows_{size}_{stride}"
    return kernel("i i i i R5 i i R5 W3")(gather_windows)


def make_data_gradient(size, stride):
    """The entry point of dx for windows of size x size at this stride, for a vector of channels or more."""
    spread = spread_pixels(size, stride, SPREAD)

    @inline
    def chunk_of(slot, chunk, bands, blocks, z, C, zn, zh, zw, H, W, top, left, w, y, yn, yh, yw, OH, OW):
        V = lanes(z)
        block, rest = chunk % blocks, chunk // blocks
        image, band = rest // bands, rest % bands
        row, first, end = top // stride + band * SPREAD, left // stride, (left + OW + stride - 1) // stride
        vectors = (C + V - 1) // V
        for column in range(first, end, STRIP):
            for i in range(block * vectors // blocks, (block + 1) * vectors // blocks):
                c = min(i * V, C - V)  # some channels once more
                spread(offset(z, image * zn + c), zh, zw, H, W, row, column, min(STRIP, end - column), offset(w, c), C,
                       offset(y, image * yn + c), yh, yw, row * stride - top, column * stride - left, OH, OW)

    def spread_windows(pool, blocks, z, top, left, w, y):
        """y[n, c] = the sum over all positions of z[n, c] times window c put there; z and y contiguous along channels, w flat
        [size * size][C]. top, left: how far before y the first window begins. blocks: parts of the channels that threads take."""
        N, C, _, H, W = z.shape
        OH, OW = y.shape[3], y.shape[4]
        zn, _, _, zh, zw = _strides(z)
        yn, _, _, yh, yw = _strides(y)
        rows = (top + OH + stride - 1) // stride - top // stride  # of z, those beside it included
        bands = (rows + SPREAD - 1) // SPREAD
        parallel_for(
            pool,
            chunk_of,
            N * bands * blocks,
            (bands, blocks, pointer(z), C, zn, zh, zw, H, W, top, left, pointer(w), pointer(y), yn, yh, yw, OH, OW),
        )

    spread_windows.__qualname__ = f"spread_windows_{size}_{stride}"
    return kernel("i i R5 i i R1 W5")(spread_windows)


KERNELS = {form: make(*form) for form in [(size, stride) for size in SIZES for stride in STRIDES] + [LARGE]}
WEIGHT_GRADIENTS = {(size, stride): make_weight_gradient(size, stride) for size in SIZES for stride in STRIDES}
DATA_GRADIENTS = {(size, 2): make_data_gradient(size, 2) for size in SIZES}  # at stride 1 a window turned round slides along
