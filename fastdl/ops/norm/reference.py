"""Normalisation in plain numpy: the specification.

Variances are taken about the mean, in two passes: one pass over squares loses all digits where the mean is large.
"""

from __future__ import annotations

from math import prod

import numpy as np


def _size(x, axes):
    """How many elements a mean over the axes has; 1 for none, whose sum of 0 is then a mean of 0."""
    return max(1, prod(x.shape[i] for i in axes))


def _einsum(arrays, kept):
    """The product of arrays of one shape, summed over all axes but ``kept``."""
    shape = arrays[0].shape
    if 0 in shape:  # np.einsum may multiply its 0 by what lies behind an empty array, which may be NaN (numpy 2.4)
        return np.zeros([shape[i] for i in kept], arrays[0].dtype)
    axes = list(range(len(shape)))
    return np.einsum(*(part for a in arrays for part in (a, axes)), kept)


# ------------------------------------------------------------------------------------------------ batch_norm
@np.errstate(all="ignore")
def batch_norm(arrays, params, train):
    x, running_mean, running_var, weight, bias = arrays
    channel = (slice(None),) + (None,) * (x.ndim - 2)
    if params.training:
        n = _size(x, (0, *range(2, x.ndim)))
        mean = _channel_sum(x) / n
        y = x - mean[channel]
        var = _channel_sum(y, y) / n
        if running_mean is not None and x.size:
            _update(running_mean, mean, params.momentum)
            _update(running_var, var * (n / (n - 1)), params.momentum)
    else:
        mean, var = running_mean.copy(), running_var  # copied: a later call may update it before the pullback reads it
        y = x - mean[channel]
    inverse_std = 1 / np.sqrt(var + params.eps)
    y *= _scale(inverse_std, weight)[channel]
    if bias is not None:
        y += bias[channel]
    return y, (mean, inverse_std)


@np.errstate(all="ignore")
def batch_norm_backward(grad, arrays, saved, params, needs):
    x, _, _, weight, _ = arrays
    mean, inverse_std = saved
    need_x, _, _, need_weight, need_bias = needs
    channel = (slice(None),) + (None,) * (x.ndim - 2)
    dx = dweight = dbias = None
    scale = _scale(inverse_std, weight)[channel]
    through_statistics = need_x and params.training
    if need_bias or through_statistics:
        dbias = _channel_sum(grad)
    if need_weight or through_statistics:
        centred = x - mean[channel]
        dweight = _channel_sum(grad, centred) * inverse_std
    if through_statistics:
        n = _size(x, (0, *range(2, x.ndim)))
        centred *= (dweight * inverse_std / n)[channel]
        dx = np.subtract(grad, centred, out=centred)
        dx -= (dbias / n)[channel]
        dx *= scale
    elif need_x:
        dx = grad * scale
    return dx, None, None, dweight if need_weight else None, dbias if need_bias else None


def _update(running, new, momentum):
    running *= 1 - momentum
    running += momentum * new


def _scale(inverse_std, weight):
    return inverse_std if weight is None else inverse_std * weight


def _channel_sum(a, b=None):
    """The sum of a (or of a * b) over all axes but the second. In two stages: an error grows with the longest chain."""
    return _einsum((a,) if b is None else (a, b), [0, 1]).sum(axis=0)


# ------------------------------------------------------------------------------------------------ layer_norm, group_norm
@np.errstate(all="ignore")
def layer_norm(arrays, params, train):
    x, weight, bias = arrays
    return _normalise(x, weight, bias, tuple(range(x.ndim - params.ndim, x.ndim)), params.eps)


@np.errstate(all="ignore")
def layer_norm_backward(grad, arrays, saved, params, needs):
    x, weight, _ = arrays
    lead = x.ndim - params.ndim
    return _normalise_backward(grad, x, weight, saved, tuple(range(lead, x.ndim)), tuple(range(lead)), needs)


@np.errstate(all="ignore")
def group_norm(arrays, params, train):
    x, weight, bias = (_grouped(a, params.num_groups, arrays[0].ndim) for a in arrays)
    y, saved = _normalise(x, weight, bias, tuple(range(2, x.ndim)), params.eps)
    return y.reshape(arrays[0].shape), saved


@np.errstate(all="ignore")
def group_norm_backward(grad, arrays, saved, params, needs):
    ndim = arrays[0].ndim
    x, weight, _ = (_grouped(a, params.num_groups, ndim) for a in arrays)
    return _normalise_backward(_grouped(grad, params.num_groups, ndim), x, weight, saved,
                               tuple(range(2, x.ndim)), (0, *range(3, x.ndim)), needs)


def _grouped(a, groups, ndim):
    """(N, C, ...) as (N, groups, C / groups, ...), a view; (C,) as (groups, C / groups, 1, ...); None as it is."""
    if a is None:
        return None
    if a.ndim == 1:
        return a.reshape(groups, -1, *(1,) * (ndim - 2)) if a.size else a.reshape(groups, 0, *(1,) * (ndim - 2))
    return a.reshape(a.shape[0], groups, a.shape[1] // groups, *a.shape[2:])


def _normalise(x, weight, bias, over, eps):
    """x to mean 0 and variance 1 over the axes ``over``, then times weight plus bias, which broadcast."""
    n = _size(x, over)
    mean = x.sum(axis=over, keepdims=True) / n
    y = x - mean
    inverse_std = 1 / np.sqrt(_sum_product(y, y, over) / n + eps)
    y *= inverse_std
    if weight is not None:
        y *= weight
    if bias is not None:
        y += bias
    return y, (mean, inverse_std)


def _normalise_backward(grad, x, weight, saved, over, shared, needs):
    """The gradients of x, weight and bias; ``shared`` are the axes along which weight and bias repeat."""
    mean, inverse_std = saved
    need_x, need_weight, need_bias = needs
    dx = dweight = None
    if need_x or need_weight:
        normal = x - mean
        normal *= inverse_std
    if need_weight:
        dweight = _sum_product(grad, normal, shared)
    if need_x:
        n = _size(x, over)
        h = grad if weight is None else grad * weight
        normal *= _sum_product(h, normal, over) / n
        dx = np.subtract(h, normal, out=normal)
        dx -= h.sum(axis=over, keepdims=True) / n
        dx *= inverse_std
    return dx, dweight, grad.sum(axis=shared, keepdims=True) if need_bias else None


def _sum_product(a, b, over):
    """The sum of a * b over some axes, which stay as size 1."""
    total = _einsum((a, b), [i for i in range(a.ndim) if i not in over])
    return total.reshape([1 if i in over else n for i, n in enumerate(a.shape)])
