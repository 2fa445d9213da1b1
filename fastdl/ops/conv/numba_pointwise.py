"""1 x 1 convolution: a matrix product of the image as it lies in memory, by the kernel of the matmul room."""

from __future__ import annotations

import numpy as np

from ..layout import empty_like_layout, is_channels_last
from ..matmul.numba_backend import multiply, multiply_packed_weight
from ..matmul.numba_gemm import BY_COLUMN, BY_ROW
from ..numba_activation import kernel_arguments


def run(x, w, bias, shape, act):
    """y of ``shape``: pixels times weights where channels lie side by side, weights times planes otherwise."""
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
