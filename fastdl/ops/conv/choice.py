"""Which algorithm a convolution takes: one estimate of the time for each, in one place.

The constants are nanoseconds on one thread, fitted to the times of each kernel alone over the layers of VGG-16 and ResNet-18
on a 256-bit machine (Zen 3); only their ratios matter, and those differ little between machines.
"""

from __future__ import annotations

from ...cpu.features import caches
from .winograd import TILES

MULTIPLY_DIRECT = 1 / 40  # a multiply-add of the direct kernel
MULTIPLY_TILES = 1 / 46  # a multiply-add of Winograd's products
TRANSFORM = 0.4  # a value at an interpolation point, input or output
WEIGHT = 0.6  # a transformed weight, made anew
STREAM = 0.09  # a byte of weights that comes from beyond the last-level cache
FIXED = 8000.0  # what Winograd costs before its first tile: it is not for tiny images


_KERNELS = tuple((1, r, r) for r in TILES)


def serves(w_shape, params, dtype) -> bool:
    """Whether Winograd's transforms fit: 3 x 3 or 5 x 5, stride 1, float32 (float64 is asked for where digits matter)."""
    return (
        w_shape[2:] in _KERNELS
        and params.stride == (1, 1, 1)
        and params.dilation == (1, 1, 1)
        and params.groups == 1
        and dtype.char == "f"
    )


def winograd_tile(
    r: int, images: int, channels: int, outputs: int, height: int, width: int, packed: bool, algorithm: str
) -> int:
    """The tile size m of F(m x m, r x r) to use for an output of height x width, or 0 for the direct kernel."""
    if algorithm not in ("auto", "winograd"):
        return 0
    pairs = channels * outputs
    best, least = 0, r * r * pairs * images * height * width * MULTIPLY_DIRECT - FIXED
    if algorithm == "winograd":
        least = float("inf")
    elif channels < 8 or outputs < 8:
        return 0
    for m in TILES[r]:
        points = (m + r - 1) ** 2
        tiles = images * -(-height // m) * -(-width // m)
        weight_bytes = 4 * points * pairs
        cost = points * (max(tiles, 4) * pairs * MULTIPLY_TILES + tiles * (channels + outputs) * TRANSFORM)
        cost += 0 if packed else points * pairs * WEIGHT
        cost += weight_bytes * STREAM if weight_bytes > caches()[2] // 2 else 0
        if cost < least:
            best, least = m, cost
    return best
