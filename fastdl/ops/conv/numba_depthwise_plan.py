"""Running depthwise convolutions by the kernels of numba_depthwise.py (planar) and numba_channels.py (channels-last)."""

from __future__ import annotations

import math

import numpy as np

from ...cpu.blocking import LANES
from ...cpu.sliding import MOST_VECTORS, ROWS
from ...cpu.workspace import NOTHING
from ...packing import prepared
from ..layout import empty_in_layout, is_channels_last
from ..numba_activation import kernel_arguments
from .numba_channels import KERNELS as WINDOW_KERNELS
from .numba_channels import convolve_channels
from .numba_depthwise import KERNELS as IMAGE_KERNELS
from .numba_planes_plan import pool_for, zeros

SHARES = 4  # chunks of planes that a thread takes
BAND = 8  # rows of a plane that are worth a chunk of their own


def image_kernel(x, w, params):
    """The kernel of numba_depthwise.py for planar x, or None: one channel in a group, a window and stride that it has."""
    size, stride = w.shape[4], params.stride[2]
    if (
        params.groups != x.shape[1]
        or w.shape[1:4] != (1, 1, size)
        or params.stride != (1, stride, stride)
        or params.dilation != (1, 1, 1)
        or x.strides[4] != x.itemsize
        or not x.size
    ):
        return None
    return IMAGE_KERNELS.get((size, stride))


def planned_image(kernel, x, w, before, stride, shape, act, team, flipped=False):
    """``run(x, w, bias)``: a depthwise convolution of planar x by image_kernel's answer; before: the padding above and to the left.
    flipped: the windows are turned by half a turn, as in a data gradient."""
    dtype, char = x.dtype, x.dtype.char
    pool, slots = pool_for(math.prod(shape) * math.prod(w.shape[1:]), team)
    planes, chunks = shape[0] * shape[1], SHARES * slots if slots > 1 else 1
    share, bands = max(1, planes // chunks), max(1, min(-(-chunks // planes), shape[3] // BAND))
    after = max(0, (shape[4] - 1) * stride + w.shape[4] - before[1] - x.shape[4])
    most = MOST_VECTORS if before[1] + after <= stride * (LANES[char] - 2) else 2  # where all but the first and the last are inside
    code, slope = kernel_arguments(act)
    kernel = kernel[char]

    def run(x, w, bias):
        y = np.empty(shape, dtype)
        bias = zeros(shape[1], char) if bias is None else np.ascontiguousarray(bias)
        windows = np.ascontiguousarray(w[..., ::-1, ::-1] if flipped else w).reshape(-1)
        kernel(pool, share, bands, most, x, *before, windows, bias, code, slope, y)
        return y

    return run


def serves_channels(x, w, params) -> bool:
    """Whether numba_channels.py serves: channels-last, one output a channel, at most two dimensions."""
    return x.size > 0 and params.ndim < 3 and params.groups == x.shape[1] == w.shape[0] and w.shape[1] == 1 and is_channels_last(x)


def planned_channels(x, w, before, stride, dilation, shape, act, team, flipped=False):
    """``run(x, w, bias)``: a depthwise convolution of channels-last x; before, stride, dilation: of rows and columns.
    flipped: the windows are turned by half a turn, as in a data gradient."""
    dtype, char, kernel = x.dtype, x.dtype.char, w.shape[3:]
    pool, slots = pool_for(math.prod(shape) * math.prod(kernel), team)
    code, slope = kernel_arguments(act)
    windows = None
    if dilation == (1, 1) and kernel[0] == kernel[1] and stride[0] == stride[1] and shape[1] >= LANES[char]:
        windows = WINDOW_KERNELS.get((kernel[0], stride[0]))
    if windows is not None:
        chunks = SHARES * slots if slots > 1 else 1
        blocks = max(1, min(-(-chunks // (shape[0] * -(-shape[3] // ROWS))), shape[1] // LANES[char]))
        windows = windows[char]

        def run(x, w, bias):
            y = empty_in_layout(shape, dtype, True)
            cells = prepared(w, ("cells", flipped), lambda: _cells(w[..., ::-1, ::-1] if flipped else w))
            windows(pool, blocks, x, *before, cells, zeros(shape[1], char) if bias is None else np.ascontiguousarray(bias), code,
                    slope, y)
            return y

        return run

    def run(x, w, bias):
        y = empty_in_layout(shape, dtype, True)
        cells = prepared(w, ("cells", flipped), lambda: _cells(w[..., ::-1, ::-1] if flipped else w))
        convolve_channels[char](pool, x, cells, *kernel, *stride, *before, *dilation, NOTHING[char] if bias is None else
                                np.ascontiguousarray(bias), code, slope, y)
        return y

    return run


def _cells(w):
    return np.ascontiguousarray(w.reshape(w.shape[0], -1).T).reshape(-1)
