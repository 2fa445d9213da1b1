"""A convolution and the 2 x 2 max-pool of its answer, by the kernels of the two rooms: for backends without one for both."""

from __future__ import annotations

from typing import NamedTuple

from ..pool.geometry import PoolParams
from .geometry import ConvParams


class PooledParams(NamedTuple):
    """What ``conv_max_pool`` is told."""

    conv: ConvParams
    pool: PoolParams


def forward(conv, max_pool, arrays, params, train):
    y, of_conv = conv(arrays, params.conv, train)
    pooled, of_pool = max_pool((y,), params.pool, train)
    return pooled, (of_conv, y, of_pool) if train else None


def backward(conv_backward, max_pool_backward, grad, arrays, saved, params, needs):
    of_conv, y, of_pool = saved
    (dy,) = max_pool_backward(grad, (y,), of_pool, params.pool, (any(needs),))
    return conv_backward(dy, arrays, of_conv, params.conv, needs) if any(needs) else (None, None, None)
