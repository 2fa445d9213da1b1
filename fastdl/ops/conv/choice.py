"""Which algorithm a convolution and its weight's gradient take: one estimate of the time for each, in one place.

The constants are nanoseconds on one thread of a Zen 5, fitted to the times of each kernel alone, each of them for every tile: for vectors
of 256 bits over 35 layers of the kinds of VGG-16, ResNet and DCGAN, one image and eight, for 512 bits over ResNet's 3x3 layers. Only their
ratios matter; those differ little between machines of one vector width, and much between widths: a multiply-add is twice as
fast, what moves values in and out of tiles is not.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from ...cpu.blocking import MOST_ROWS, computed
from ...cpu.features import caches, vector_bits
from .numba_winograd_weights import Form
from .winograd import GRADIENT_TILES, TILES


class Costs(NamedTuple):
    multiply_direct: float  # a multiply-add of the direct kernel
    multiply_tiles: float  # a multiply-add of Winograd's products
    transform: float  # a value at an interpolation point, input or output
    transform_point: float  # and for each point along one side of the tile
    weight: float  # a transformed weight, made anew
    new_page: float  # and more where the memory for it is
    near: float  # a byte of weights that comes from the last-level cache
    stream: float  # and from beyond it
    strided: float  # times as long at stride 2: more pixels are laid out for each tile
    spread: float  # and of a transposed convolution, whose outputs are spread
    fixed: float  # what Winograd costs before its first tile: it is not for tiny images


COSTS = Costs(1 / 60, 1 / 84, 0.0, 0.05, 0.3, 0.4, 0.016, 0.035, 1.16, 1.75, 1500.0) if vector_bits() < 512 else \
    Costs(1 / 120, 1 / 120, 0.0, 0.022, 0.2, 0.4, 0.015, 0.035, 1.1, 1.1, 1500.0)
LEAST_CHANNELS = 8  # and outputs: with fewer most of a vector would be empty
PAGES = 8 << 20  # bytes of weights, from which on their memory is new


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
    if params.algorithm == "auto" and min(channels, outputs) < LEAST_CHANNELS:
        return None
    phases = stride**dims
    return _fastest(params.algorithm == "auto", r, dims, size, stride, transposed, channels * (1 if transposed else phases),
                    outputs * (phases if transposed else 1), channels * outputs * size**dims * images * positions, images, out, packed)


def winograd_gradient(w_shape, params, dtype, out) -> tuple[int, int, int] | None:
    """(m, r, dims) of Winograd's algorithm for the weight's gradient, or None for another algorithm. out: rows and columns of dy.

    From LEAST_CHANNELS on it is faster than the direct sum at every size measured (1.7 to 9 times for 8 to 512 channels of 1 to 56 rows,
    1.4 to 5 in one dimension), and the tile with the fewest products is the fastest or within a few hundredths of it.
    """
    if params.algorithm not in ("auto", "winograd") or dtype.char != "f" or params.stride != (1, 1, 1) or not serves(w_shape, params):
        return None
    dims, r = 2 if w_shape[3] > 1 else 1, w_shape[4]
    if r not in GRADIENT_TILES[dims] or (params.algorithm == "auto" and min(w_shape[:2]) < LEAST_CHANNELS):
        return None

    def products(m):
        return (m + r - 1) ** dims * -(-out[1] // m) * (-(-out[0] // m) if dims == 2 else out[0])

    return min(GRADIENT_TILES[dims][r], key=products), r, dims


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
    best, least = None, multiply_adds * COSTS.multiply_direct - COSTS.fixed if may_decline else float("inf")
    spread = stride if transposed else 1
    for m in TILES[dims][r]:
        points = (m + r - 1) ** dims
        height = -(-out[0] // (m * spread)) if dims == 2 else out[0]
        tiles = images * height * -(-out[1] // (m * spread))
        weight_bytes = 4 * points * channels * outputs
        needed = (1 - 0.5 / (m + r - 1)) ** dims if stride == 2 and size % 2 else 1.0  # of the products: the others are of zeros
        rows = computed(tiles) if tiles < MOST_ROWS // 4 else tiles
        transform = COSTS.transform + COSTS.transform_point * (m + r - 1)
        cost = points * (rows * channels * outputs * COSTS.multiply_tiles * needed + tiles * (channels + outputs) * transform)
        if stride == 2:
            cost *= COSTS.spread if transposed else COSTS.strided
        cost += 0 if packed else points * channels * outputs * (COSTS.weight + (COSTS.new_page if weight_bytes > PAGES else 0))
        if weight_bytes > caches()[1]:
            far = COSTS.stream * (2 if transposed else 1)  # 8x512x4x4 to 256 by 4x4 at stride 2: 3.6 ms, 2.2 by the direct kernel
            cost += weight_bytes * (far if weight_bytes > caches()[2] // 2 else COSTS.near)
        if cost < least:
            best, least = Form(m, r, dims, size, stride, transposed), cost
    return best
