"""Memory layout: an operator answers in the layout it was asked in. Shapes are always (N, C, D, H, W)."""

from __future__ import annotations

import numpy as np


def is_channels_last(x: np.ndarray) -> bool:
    """Whether the memory of x (N, C, D, H, W) holds its channels side by side, so that the output's should.

    One channel, or one spatial element, fits both layouts and counts as contiguous. Gaps in other dimensions (a view
    that crops or strides over a channels-last image) do not matter.
    """
    _, channels, depth, height, width = x.shape
    return x.strides[1] == x.itemsize and channels > 1 and depth * height * width > 1


def empty_like_layout(shape, dtype, like: np.ndarray) -> np.ndarray:
    """An uninitialised array (N, C, D, H, W): channels-last memory where ``like`` has it, C-contiguous otherwise."""
    return empty_in_layout(shape, dtype, is_channels_last(like))


def empty_in_layout(shape, dtype, channels_last: bool) -> np.ndarray:
    if channels_last:
        n, channels, depth, height, width = shape
        return np.empty((n, depth, height, width, channels), dtype).transpose(0, 4, 1, 2, 3)
    return np.empty(shape, dtype)
