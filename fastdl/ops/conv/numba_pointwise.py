"""Convolutions that are a matrix product of the image as it lies in memory, by the kernel of the matmul room: 1 x 1 kernels, kernels as
large as the image, and their transposes."""

from __future__ import annotations

import math

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.blocking import LANES
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import TILE_VECTORS
from ...cpu.simd import lanes, load_rows, load_rows_n, offset, pointer, store_rows, store_rows_n, transpose
from ...cpu.thresholds import ELEMENTS
from ...packing import is_packed
from ..layout import empty_in_layout, is_channels_last
from ..matmul.numba_backend import multiply, multiply_packed_weight
from ..matmul.numba_gemm import BY_COLUMN, BY_ROW
from ..numba_activation import kernel_arguments
from .numba_planes import _strides, copy_row

# Images so small that they fill their last panel of a product badly: the product is made pixel by pixel, whose number matters little,
# and its answer turned, where that computes so many times less.
TURNED_PIXELS, TURNED_GAIN = 128, 1.1
TURNED = 2  # vectors of columns that a chunk turns: cache lines of the source


@inline
def _plane_chunk(slot, chunk, x, C, D, H, W, xn, xc, xd, xh, xw, y, yn, yc, yd, yh, yw):
    """Channels of one row of pixels where they lie side by side, rows of one plane otherwise."""
    if yc == 1:
        image, row = chunk // (D * H), chunk % (D * H)
        source, target = offset(x, image * xn + row // H * xd + row % H * xh), offset(y, image * yn + row // H * yd + row % H * yh)
        for w in range(W):
            copy_row(offset(source, w * xw), xc, offset(target, w * yw), 0, C)
    else:
        source, target = offset(x, chunk // C * xn + chunk % C * xc), offset(y, chunk // C * yn + chunk % C * yc)
        for row in range(D * H):
            copy_row(offset(source, row // H * xd + row % H * xh), xw, offset(target, row // H * yd + row % H * yh), 0, W)


@inline
def _turn_chunk(slot, chunk, x, xr, m, n, y, yr):
    V = lanes(x)
    for c in range(chunk * TURNED * V, min(n, (chunk + 1) * TURNED * V), V):
        columns = min(V, n - c)
        if m < V or columns < V:
            for r in range(0, m, V):
                rows = min(V, m - r)
                store_rows_n(y, c * yr + r, yr, transpose(load_rows_n(x, r * xr + c, xr, rows, columns)), columns, rows)
            continue
        for block in range((m + V - 1) // V):
            r = min(block * V, m - V)  # the last block of whole vectors ends where the rows do
            store_rows(y, c * yr + r, yr, transpose(load_rows(x, r * xr + c, xr)))


@kernel("i R2 W2")
def turn(pool, x, y):
    """y = x.T; both have contiguous rows."""
    m, n = x.shape
    xr, yr = x.strides[0] // x.itemsize, y.strides[0] // y.itemsize
    width = TURNED * lanes(pointer(x))
    parallel_for(pool, _turn_chunk, (n + width - 1) // width, (pointer(x), xr, m, n, pointer(y), yr))


@kernel("i R5 W5")
def copy_pixels(pool, x, y):
    """y = x; x may have any strides."""
    N, C, D, H, W = y.shape
    xn, xc, xd, xh, xw = _strides(x)
    yn, yc, yd, yh, yw = _strides(y)
    arguments = (pointer(x), C, D, H, W, xn, xc, xd, xh, xw, pointer(y), yn, yc, yd, yh, yw)
    parallel_for(pool, _plane_chunk, N * D * H if yc == 1 else N * C, arguments)


def planned(x, w, stride, shape, act, team):
    """``run(x, w, bias)`` makes y of ``shape``: pixels times weights where channels lie side by side, weights times planes otherwise."""
    dtype, char, last = x.dtype, x.dtype.char, is_channels_last(x)
    (N, C), K, pixels = x.shape[:2], w.shape[0], math.prod(shape[2:])
    code, slope = kernel_arguments(act)
    every, width = tuple(slice(None, None, s) for s in stride), TILE_VECTORS * LANES[char]
    strided, pool = stride != (1, 1, 1), team[0] if x.size > ELEMENTS else 0
    turned = is_packed(w) and pixels <= TURNED_PIXELS and -(-pixels // width) * width > TURNED_GAIN * pixels

    def run(x, w, bias):
        if strided:
            source = x[(slice(None), slice(None), *every)]
            x = empty_in_layout((N, C, *shape[2:]), dtype, last)
            copy_pixels[char](pool, source, x)
        y = empty_in_layout(shape, dtype, last)
        weights = w.reshape(K, C)
        by_row, by_column = (code, code) if bias is None else (code + BY_ROW, code + BY_COLUMN)
        if bias is not None:
            bias = np.ascontiguousarray(bias)
        if last:
            dense = np.ascontiguousarray(x.transpose(0, 2, 3, 4, 1)).reshape(-1, C)
            multiply_packed_weight(dense, weights, y.transpose(0, 2, 3, 4, 1).reshape(-1, K), bias, by_column, slope)  # a view of y
            return y
        planes, out = np.ascontiguousarray(x).reshape(N, C, pixels), y.reshape(N, K, pixels)
        for image in range(N):
            if turned:
                turn[char](team[0] if K * pixels > ELEMENTS else 0,
                           multiply_packed_weight(planes[image].T, weights, None, bias, by_column, slope), out[image])
            else:
                multiply(weights, planes[image], out[image], bias, by_row, slope)
        return y

    return run


def planned_product(shape, act):
    """``run(x, w, bias)``: y (N, K, 1, 1, 1), a dot product of each image with each kernel."""
    code, slope = kernel_arguments(act)

    def run(x, w, bias):
        if bias is not None:
            bias = np.ascontiguousarray(bias)
        images = np.ascontiguousarray(x).reshape(x.shape[0], -1)
        what = code + (0 if bias is None else BY_COLUMN)
        return multiply_packed_weight(images, w.reshape(w.shape[0], -1), None, bias, what, slope).reshape(shape)

    return run


def planned_transposed_product(shape, act):
    """``run(x, w, bias)``: y (N, K, *kernel) from one pixel, the sum of the kernels, each times its channel of x."""
    code, slope = kernel_arguments(act)

    def run(x, w, bias):
        if bias is not None:
            bias = np.repeat(bias, shape[2] * shape[3] * shape[4])
        pixels = np.ascontiguousarray(x).reshape(x.shape[0], -1)
        weights = np.ascontiguousarray(w).reshape(w.shape[0], -1)
        return multiply(pixels, weights, None, bias, code + (0 if bias is None else BY_COLUMN), slope).reshape(shape)

    return run
