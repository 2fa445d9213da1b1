"""Running depthwise convolutions by the kernels of numba_depthwise.py (planar) and numba_channels.py (channels-last)."""

from __future__ import annotations

import math

import numpy as np

from ...cpu import parallel
from ...cpu.blocking import LANES
from ...cpu.features import caches
from ...cpu.sliding import most_vectors
from ...cpu.sliding_pixels import rows_together
from ...cpu.thresholds import DEPTHWISE
from ...cpu.workspace import NOTHING, workspace
from ...packing import prepared
from ..layout import empty_in_layout, is_channels_last
from ..numba_activation import kernel_arguments
from .numba_channels import DATA_GRADIENTS, SPREAD, WEIGHT_GRADIENTS, convolve_channels
from .numba_channels import KERNELS as WINDOW_KERNELS
from .numba_depthwise import DATA_GRADIENTS as IMAGE_DATA_GRADIENTS
from .numba_depthwise import KERNELS as IMAGE_KERNELS
from .numba_depthwise import WEIGHT_GRADIENTS as IMAGE_WEIGHT_GRADIENTS
from .numba_planes_plan import pool_for, zeros

SHARES = 4  # chunks of planes that a thread takes
BAND = 8  # rows of a plane that are worth a chunk of their own
PARTS = 8  # of a batch, whose sums of a weight gradient are made apart: so many whatever the threads
TERMS = 1024  # of such a sum that are added one by one


def image_kernel(x, w, params, kernels=IMAGE_KERNELS):
    """The one of numba_depthwise.py's ``kernels`` for planar x, or None: one channel in a group, a window and stride that it has."""
    size, stride = w.shape[4], params.stride[2]
    if (
        params.groups != x.shape[1]
        or w.shape[1:4] != (1, 1, size)
        or params.stride != (1, stride, stride)
        or params.dilation != (1, 1, 1)
        or not x.size
        or not _has_rows(x)
    ):
        return None
    return kernels.get((size, stride))


def _has_rows(x):
    """Whether x is planar with contiguous rows; one column's stride says nothing."""
    return not is_channels_last(x) and (x.shape[4] == 1 or x.strides[4] == x.itemsize)


def _shares(planes, rows, slots):
    """(planes in a chunk, parts of a plane of so many rows): a few chunks a thread."""
    chunks = SHARES * slots if slots > 1 else 1
    return max(1, planes // chunks), max(1, min(-(-chunks // planes), rows // BAND))


def planned_image(kernel, x, w, before, stride, shape, act, team, flipped=False):
    """``run(x, w, bias)``: a depthwise convolution of planar x by image_kernel's answer; before: the padding above and to the left.
    flipped: the windows are turned by half a turn, as in a data gradient."""
    dtype, char = x.dtype, x.dtype.char
    pool, slots = pool_for(math.prod(shape) * math.prod(w.shape[1:]), team, DEPTHWISE)
    share, bands = _shares(shape[0] * shape[1], shape[3], slots)
    after = max(0, (shape[4] - 1) * stride + w.shape[4] - before[1] - x.shape[4])
    # where all vectors but the first and the last are inside the image
    most = most_vectors(w.shape[4]) if before[1] + after <= stride * (LANES[char] - 2) else 2
    code, slope = kernel_arguments(act)
    kernel = kernel[char]

    def run(x, w, bias):
        y = np.empty(shape, dtype)
        bias = zeros(shape[1], char) if bias is None else np.ascontiguousarray(bias)
        windows = np.ascontiguousarray(w[..., ::-1, ::-1] if flipped else w).reshape(-1)
        kernel(pool, share, bands, most, x, *before, windows, bias, code, slope, y)
        return y

    return run


def planned_image_spread(z, w, params, shape, team):
    """``run(z, w, bias)``: the data gradient of ``shape``, all planar, of a depthwise convolution at stride 2; or None."""
    kernel = image_kernel(z, w, params, IMAGE_DATA_GRADIENTS) if w.shape[0] == shape[1] else None
    if kernel is None:
        return None
    dtype, kernel = z.dtype, kernel[z.dtype.char]
    pool, slots = pool_for(z.size * math.prod(w.shape[1:]), team, DEPTHWISE)
    share, bands = _shares(shape[0] * shape[1], shape[3], slots)

    def run(z, w, bias):
        y = np.empty(shape, dtype)
        kernel(pool, share, bands, z, params.padding[1][0], params.padding[2][0], np.ascontiguousarray(w).reshape(-1), y)
        return y

    return run


def _image_gradient(kernel, x, dz, w, params):
    char, cells = x.dtype.char, math.prod(w.shape[1:])
    pool, slots = pool_for(dz.size * cells, parallel.team(), DEPTHWISE)
    dw = np.empty(w.size, w.dtype)
    kernel[char](pool, _shares(w.shape[0], 1, slots)[0], x, params.padding[1][0], params.padding[2][0], dz, dw,
                 workspace(slots * cells * LANES[char], x.dtype))
    return dw.reshape(w.shape)


def serves_channels(x, w, params) -> bool:
    """Whether numba_channels.py serves: channels-last, one output a channel, at most two dimensions."""
    return x.size > 0 and params.ndim < 3 and params.groups == x.shape[1] == w.shape[0] and w.shape[1] == 1 and is_channels_last(x)


def _window_kernel(kernels, x, w, stride, dilation):
    """The one of ``kernels`` for channels-last x and windows of w, or None."""
    size = w.shape[4]
    if w.shape[3] != size or dilation != (1, 1) or stride[0] != stride[1] or x.shape[1] < LANES[x.dtype.char]:
        return None
    found = kernels.get((size, stride[0]))
    return None if found is None else found[x.dtype.char]


def _blocks(channels, char, jobs, slots):
    """Parts of the channels, so that threads have enough of them with so many other jobs."""
    return max(1, min(-(-SHARES * slots // jobs), channels // LANES[char])) if slots > 1 else 1


def planned_channels(x, w, before, stride, dilation, shape, act, team, flipped=False):
    """``run(x, w, bias)``: a depthwise convolution of channels-last x; before, stride, dilation: of rows and columns.
    flipped: the windows are turned by half a turn, as in a data gradient."""
    dtype, char, kernel = x.dtype, x.dtype.char, w.shape[3:]
    pool, slots = pool_for(math.prod(shape) * math.prod(kernel), team, DEPTHWISE)
    code, slope = kernel_arguments(act)
    windows = _window_kernel(WINDOW_KERNELS, x, w, stride, dilation)
    blocks = _blocks(shape[1], char, shape[0] * -(-shape[3] // rows_together(kernel[0])), slots)

    def run(x, w, bias):
        y = empty_in_layout(shape, dtype, True)
        cells = prepared(w, ("cells", flipped), lambda: _cells(w[..., ::-1, ::-1] if flipped else w))
        if windows is not None:
            bias = zeros(shape[1], char) if bias is None else np.ascontiguousarray(bias)
            windows(pool, blocks, x, *before, cells, bias, code, slope, y)
        else:
            bias = NOTHING[char] if bias is None else np.ascontiguousarray(bias)
            convolve_channels[char](pool, x, cells, *kernel, *stride, *before, *dilation, bias, code, slope, y)
        return y

    return run


def planned_spread(z, w, params, shape, team):
    """``run(z, w, bias)``: the data gradient of ``shape``, all channels-last, of a strided depthwise convolution, or None."""
    kernel = _window_kernel(DATA_GRADIENTS, z, w, params.stride[1:], params.dilation[1:])
    if kernel is None:
        return None
    dtype, before = z.dtype, (params.padding[1][0], params.padding[2][0])
    pool, slots = pool_for(z.size * math.prod(w.shape[1:]), team, DEPTHWISE)
    blocks = _blocks(shape[1], dtype.char, shape[0] * -(-shape[3] // (SPREAD * params.stride[1])), slots)

    def run(z, w, bias):
        y = empty_in_layout(shape, dtype, True)
        kernel(pool, blocks, z, *before, prepared(w, ("cells", False), lambda: _cells(w)), y)
        return y

    return run


def weight_gradient(x, dz, w, params):
    """dw of a depthwise convolution, or None where no kernel of these files is."""
    if serves_channels(x, w, params) and dz.size and is_channels_last(dz):
        kernel = _window_kernel(WEIGHT_GRADIENTS, x, w, params.stride[1:], params.dilation[1:])
        if kernel is not None:
            return _channels_gradient(kernel, x, dz, w, params)
    kernel = image_kernel(x, w, params, IMAGE_WEIGHT_GRADIENTS)
    return _image_gradient(kernel, x, dz, w, params) if kernel is not None and dz.size and _has_rows(dz) else None


def _channels_gradient(kernel, x, dz, w, params):
    char, (images, channels), cells = x.dtype.char, x.shape[:2], math.prod(w.shape[1:])
    pool, slots = pool_for(dz.size * cells, parallel.team(), DEPTHWISE)
    parts, vectors = min(images, PARTS), -(-channels // LANES[char])
    band = max(1, min(TERMS // dz.shape[4], caches()[1] // (2 * x.itemsize * channels * x.shape[4] * params.stride[1])))
    sums = np.zeros((parts, cells, vectors * LANES[char]), x.dtype)
    kernel(pool, parts, _blocks(channels, char, parts, slots), band, x, params.padding[1][0], params.padding[2][0], dz, sums)
    total, last = sums.sum(0), channels - LANES[char]
    return np.ascontiguousarray(np.concatenate([total[:, :last], total[:, -LANES[char]:]], 1).T).reshape(w.shape)


def _cells(w):
    return np.ascontiguousarray(w.reshape(w.shape[0], -1).T).reshape(-1)
