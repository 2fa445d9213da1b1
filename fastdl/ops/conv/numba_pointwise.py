"""Convolutions that are a matrix product of the image as it lies in memory, by the kernel of the matmul room: 1 x 1 kernels, kernels as
large as the image, and their transposes."""

from __future__ import annotations

import numpy as np

from ...cpu import parallel
from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import offset, pointer
from ...cpu.thresholds import ELEMENTS
from ..layout import empty_like_layout, is_channels_last
from ..matmul.numba_backend import multiply, multiply_packed_weight
from ..matmul.numba_gemm import BY_COLUMN, BY_ROW
from ..numba_activation import kernel_arguments
from .numba_planes import _strides, copy_row


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


def run(x, w, bias, stride, shape, act):
    """y of ``shape``: pixels times weights where channels lie side by side, weights times planes otherwise."""
    if stride != (1, 1, 1):
        every = x[:, :, :: stride[0], :: stride[1], :: stride[2]]
        x = empty_like_layout(every.shape, x.dtype, x)
        copy_pixels[x.dtype.char](parallel.pool() if x.size > ELEMENTS else 0, every, x)
    y = empty_like_layout(shape, x.dtype, x)
    (N, C), K = x.shape[:2], w.shape[0]
    code, slope = kernel_arguments(act)
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    weights = w.reshape(K, C)
    if is_channels_last(x):
        pixels = np.ascontiguousarray(x.transpose(0, 2, 3, 4, 1)).reshape(-1, C)
        out = y.transpose(0, 2, 3, 4, 1).reshape(-1, K)  # a view
        multiply_packed_weight(pixels, weights, out, bias, code + (0 if bias is None else BY_COLUMN), slope)
        return y
    planes, out = np.ascontiguousarray(x).reshape(N, C, -1), y.reshape(N, K, -1)
    for image in range(N):
        multiply(weights, planes[image], out[image], bias, code + (0 if bias is None else BY_ROW), slope)
    return y


def run_product(x, w, bias, shape, act):
    """y (N, K, 1, 1, 1): a dot product of each image with each kernel."""
    code, slope = kernel_arguments(act)
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    images = np.ascontiguousarray(x).reshape(x.shape[0], -1)
    y = multiply_packed_weight(images, w.reshape(w.shape[0], -1), None, bias, code + (0 if bias is None else BY_COLUMN), slope)
    return y.reshape(shape)


def run_transposed_product(x, w, bias, shape, act):
    """y (N, K, *kernel) from one pixel: the sum of the kernels, each times its channel of x."""
    code, slope = kernel_arguments(act)
    if bias is not None:
        bias = np.repeat(bias, shape[2] * shape[3] * shape[4])
    pixels = np.ascontiguousarray(x).reshape(x.shape[0], -1)
    weights = np.ascontiguousarray(w).reshape(w.shape[0], -1)
    return multiply(pixels, weights, None, bias, code + (0 if bias is None else BY_COLUMN), slope).reshape(shape)
