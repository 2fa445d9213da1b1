"""A convolution and the 2 x 2 max-pool of its answer: what training keeps is the pooled answer and a byte for each cell.

A cell's gradient goes to one element, and that is what the cell holds: so the activation's gradient is taken where the cells are, a
quarter of the elements, and the convolution's answer is not kept.
"""

from __future__ import annotations

from ..activation import needs_input
from ..layout import is_channels_last
from ..numba_sums import channel_sums
from ..pointwise.numba_backend import activation_gradient
from ..pool import numba_backend as pool_backend
from . import numba_maxima


def forward(conv, arrays, params):
    """(the pooled answer, what ``gradient`` wants)."""
    y, _ = conv(arrays, params.conv, False)
    pooled, places = pool_backend.max_pool((y,), params.pool, True)
    return pooled, (None if params.conv.activation is None else pooled, places, y.shape, is_channels_last(y))


def keeps_maxima(params) -> bool:
    """Whether a training step gets by with the maxima: not where the activation's gradient needs its input."""
    return not needs_input(params.conv.activation)


def gradient(grad, x, w, saved, params, needs):
    """(dz or None, dw or None, db or None): the gradient at the convolution's answer where one of the others is still to be made of it."""
    pooled, places, shape, last = saved
    g = pool_backend.in_memory_order(activation_gradient(params.conv.activation, grad, pooled), last)
    dz = dw = None
    if needs[1] and numba_maxima.serves(x, w, params.conv):
        dw = numba_maxima.weight_gradient(x, g, places[0], last, w, params.conv)
    if needs[0] or (needs[1] and dw is None):
        dz = pool_backend.to_maxima(g, shape, g.dtype, last, params.pool, places)
    return dz, dw, channel_sums(g) if needs[2] else None
