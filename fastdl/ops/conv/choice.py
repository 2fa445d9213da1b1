"""Which algorithm a convolution takes: one estimate of the time for each, in one place.

The constants are nanoseconds on one thread, fitted to the times of each kernel alone over the layers of VGG-16, ResNet-18 and DCGAN
on a 256-bit machine (Zen 3); only their ratios matter, and those differ little between machines.
"""

from __future__ import annotations

import functools

from ...cpu.features import caches
from .numba_winograd_weights import Form
from .winograd import TILES

MULTIPLY_DIRECT = 1 / 42  # a multiply-add of the direct kernel
MULTIPLY_TILES = 1 / 46  # a multiply-add of Winograd's products
TRANSFORM = 0.4  # a value at an interpolation point, input or output
STRIDED = 1.25  # times as long: more pixels are laid out, or more outputs spread, for each tile
WEIGHT = 0.5  # a transformed weight, made anew
NEW_PAGE = 0.5  # and more where the memory for it is
PAGES = 8 << 20  # bytes, from which on it is
STREAM = 0.04  # a byte of weights that comes from beyond the last-level cache
FIXED = 8000.0  # what Winograd costs before its first tile: it is not for tiny images


def winograd(w_shape, params, dtype, images, out, positions, packed, transposed) -> Form | None:
    """The form of Winograd's algorithm to use, or None for another algorithm.

    out: rows and columns of the result; positions: pixels (of the result, or of a transposed convolution's input) that
    meet the whole kernel; packed: transformed weights are kept; transposed: a transposed convolution or a data gradient.
    """
    if params.algorithm not in ("auto", "winograd") or dtype.char != "f" or not serves(w_shape, params):
        return None
    dims, size, stride = 2 if w_shape[3] > 1 else 1, w_shape[4], params.stride[2]
    r = -(-size // stride)
    if transposed and any(p[0] // stride > r - 1 for p in params.padding[3 - dims :]):
        return None
    channels, outputs = w_shape[:2] if transposed else (w_shape[1], w_shape[0])
    if params.algorithm == "auto" and (channels < 8 or outputs < 8):
        return None
    phases = stride**dims
    return _fastest(params.algorithm == "auto", r, dims, size, stride, transposed, channels * (1 if transposed else phases),
                    outputs * (phases if transposed else 1), channels * outputs * size**dims * images * positions, images, out, packed)


def serves(w_shape, params) -> bool:
    """Whether Winograd's transforms fit: small square kernels, or those of one dimension, stride 1 or 2."""
    size, stride, ndim = w_shape[4], params.stride[2], params.ndim
    dims = 2 if w_shape[3] > 1 else 1
    square = w_shape[2] == 1 and w_shape[3] == (size if dims == 2 else 1)
    return (
        square
        and ndim < 3
        and params.groups == 1
        and params.dilation == (1, 1, 1)
        and stride in (1, 2)
        and params.stride == (1, stride if dims == 2 else 1, stride)
        and -(-size // stride) in TILES[dims]
        and (dims == 2 or ndim == 1 or params.padding[1] == (0, 0))
    )


@functools.lru_cache(maxsize=1024)
def _fastest(may_decline, r, dims, size, stride, transposed, channels, outputs, multiply_adds, images, out, packed):
    best, least = None, multiply_adds * MULTIPLY_DIRECT - FIXED if may_decline else float("inf")
    spread = stride if transposed else 1
    for m in TILES[dims][r]:
        points = (m + r - 1) ** dims
        height = -(-out[0] // (m * spread)) if dims == 2 else out[0]
        tiles = images * height * -(-out[1] // (m * spread))
        weight_bytes = 4 * points * channels * outputs
        needed = (1 - 0.5 / (m + r - 1)) ** dims if stride == 2 and size % 2 else 1.0  # of the products: the others are of zeros
        cost = points * (max(tiles, 4) * channels * outputs * MULTIPLY_TILES * needed + tiles * (channels + outputs) * TRANSFORM)
        cost *= STRIDED if stride == 2 else 1
        cost += 0 if packed else points * channels * outputs * (WEIGHT + (NEW_PAGE if weight_bytes > PAGES else 0))
        cost += weight_bytes * STREAM if weight_bytes > caches()[2] // 2 else 0
        if cost < least:
            best, least = Form(m, r, dims, size, stride, transposed), cost
    return best
