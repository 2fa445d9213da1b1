"""Convolutions that are a matrix product of the image as it lies in memory, by the kernel of the matmul room: 1 x 1 kernels, kernels as
large as the image, and their transposes."""

from __future__ import annotations

import math

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.blocking import LANES
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import TILE_VECTORS
from ...cpu.simd import offset, pointer
from ...cpu.thresholds import ELEMENTS
from ...packing import is_packed
from ..layout import empty_in_layout, is_channels_last
from ..matmul.numba_backend import multiply, multiply_packed_weight, multiply_packed_weight_turned
from ..matmul.numba_gemm import BY_COLUMN, BY_ROW
from ..numba_activation import kernel_arguments
from .numba_planes import _strides, copy_row

# Images so small that they fill their last panel of a product badly: the product is made pixel by pixel, whose number matters little,
# and its answer turned part by part, where that computes so many times less.
TURNED_PIXELS, TURNED_GAIN = 256, 1.1
TURNED_BYTES = 1 << 20  # of the answer, all of which is held in between
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
    if last:
        product = _by_pixels(C, K, code, slope)
    elif is_packed(w) and _fills_badly(pixels, width) and pixels * K * x.itemsize <= TURNED_BYTES:
        product = _turned(N, C, K, pixels, code, slope)
    else:
        product = _by_planes(N, C, K, pixels, code, slope)

    def run(x, w, bias):
        if strided:
            source = x[(slice(None), slice(None), *every)]
            x = empty_in_layout((N, C, *shape[2:]), dtype, last)
            copy_pixels[char](pool, source, x)
        y = empty_in_layout(shape, dtype, last)
        product(x, w.reshape(K, C), y, None if bias is None else np.ascontiguousarray(bias))
        return y

    return run


def _fills_badly(pixels, width):
    return 1 < pixels <= TURNED_PIXELS and -(-pixels // width) * width > TURNED_GAIN * pixels


def _by_pixels(C, K, code, slope):
    def product(x, w, y, bias):
        dense = np.ascontiguousarray(x.transpose(0, 2, 3, 4, 1)).reshape(-1, C)
        out = y.transpose(0, 2, 3, 4, 1).reshape(-1, K)  # a view of y
        multiply_packed_weight(dense, w, out, bias, code if bias is None else code + BY_COLUMN, slope)

    return product


def _turned(N, C, K, pixels, code, slope):
    def product(x, w, y, bias):
        planes, out = np.ascontiguousarray(x).reshape(N, C, pixels), y.reshape(N, K, pixels)
        for image in range(N):
            multiply_packed_weight_turned(planes[image].T, w, out[image], bias, code if bias is None else code + BY_COLUMN, slope)

    return product


def _by_planes(N, C, K, pixels, code, slope):
    def product(x, w, y, bias):
        planes, out = np.ascontiguousarray(x).reshape(N, C, pixels), y.reshape(N, K, pixels)
        for image in range(N):
            multiply(w, planes[image], out[image], bias, code if bias is None else code + BY_ROW, slope)

    return product


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
