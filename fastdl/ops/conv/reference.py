"""Convolution in plain numpy: the specification.

A kernel cell meets one input cell at every output position, so convolution is a sum over kernel cells of matrix
products (output channels by input channels) by (input channels by positions). Read the same pairing backwards and it
is the data gradient, which is what a transposed convolution computes; sum it over positions and it is the weight
gradient. Three functions say so, and both operators and their gradients are made of them:

    operator         forward       gradient of x   gradient of w
    conv             _correlate    _scatter        _weight_gradient(x, dy)
    conv_transpose   _scatter      _correlate      _weight_gradient(dy, x)

Inside, arrays are (groups, channels, N, D, H, W): the products are then long, and one for each group.
"""

from __future__ import annotations

import math

import numpy as np

from ..activation import activate, activation_gradient, needs_input
from ..layout import empty_like_layout
from ..pool import reference as pool_reference
from . import pooled


def conv(arrays, params, train):
    x, w, bias = arrays
    return _finish(_correlate(x, w, params, params.out), bias, x, params, train)


def conv_backward(grad, arrays, saved, params, needs):
    x, w, _ = arrays
    dz = activation_gradient(params.activation, grad, *saved)
    return (_in_kind(_scatter(dz, w, params, x.shape[2:]), x) if needs[0] else None,
            _weight_gradient(x, dz, w, params) if needs[1] else None,
            _bias_gradient(dz) if needs[2] else None)


def conv_transpose(arrays, params, train):
    x, w, bias = arrays
    return _finish(_scatter(x, w, params, params.out), bias, x, params, train)


def conv_transpose_backward(grad, arrays, saved, params, needs):
    x, w, _ = arrays
    dz = activation_gradient(params.activation, grad, *saved)
    return (_in_kind(_correlate(dz, w, params, x.shape[2:]), x) if needs[0] else None,
            _weight_gradient(dz, x, w, params) if needs[1] else None,
            _bias_gradient(dz) if needs[2] else None)


# ------------------------------------------------------------------------------------------------ the three pairings
# Names are a convolution's: x is the side with the padding, y the side that the kernel steps over, one cell a stride.
def _correlate(x, w, params, size):
    """y of spatial size ``size`` from x: y[o] = sum over k of w[k] @ x[o * stride + k * dilation - before]."""
    weights = _weights(w, params.groups)
    buffer = _pad(x, w, params, size)
    n = x.shape[0]
    y = np.zeros((params.groups, weights.shape[-2], n * math.prod(size)), x.dtype)
    for k, cells in _kernel_cells(buffer, w, params, size):
        y += weights[k] @ _matrix(cells)
    return _ungroup(y.reshape(*y.shape[:2], n, *size))


def _scatter(y, w, params, size):
    """x of spatial size ``size`` from y: x[o * stride + k * dilation - before] += w[k].T @ y[o], summed over k and o."""
    weights = _weights(w, params.groups)
    buffer = np.zeros((params.groups, weights.shape[-1], y.shape[0], *_reach(w, params, y.shape[2:])), y.dtype)
    rows = _matrix(_group(y, params.groups))
    for k, cells in _kernel_cells(buffer, w, params, y.shape[2:]):
        cells += (weights[k].swapaxes(-1, -2) @ rows).reshape(cells.shape)
    x = np.zeros((*buffer.shape[:3], *size), y.dtype)
    inside, image = _overlap(buffer.shape[3:], size, params)
    x[image] = buffer[inside]
    return _ungroup(x)


def _weight_gradient(x, y, w, params):
    """The gradient of w, of its shape: dw[k] = sum over o of y[o] @ x[o * stride + k * dilation - before].T."""
    buffer = _pad(x, w, params, y.shape[2:])
    rows = _matrix(_group(y, params.groups))
    dw = np.empty((*w.shape[2:], *rows.shape[:2], w.shape[1]), w.dtype)
    for k, cells in _kernel_cells(buffer, w, params, y.shape[2:]):
        dw[k] = rows @ _matrix(cells).swapaxes(-1, -2)
    return dw.transpose(3, 4, 5, 0, 1, 2).reshape(w.shape)


def _kernel_cells(buffer, w, params, size):
    """For each kernel cell, its index and the view of ``buffer`` that it meets over ``size`` positions."""
    for k in np.ndindex(w.shape[2:]):
        first = [i * d for i, d in zip(k, params.dilation, strict=True)]
        window = tuple(slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, size, params.stride, strict=True))
        yield k, buffer[(..., *window)]


def _reach(w, params, size):
    """How many cells the kernel passes over in ``size`` steps."""
    return tuple((n - 1) * s + (k - 1) * d + 1
                 for n, s, k, d in zip(size, params.stride, w.shape[2:], params.dilation, strict=True))


def _overlap(reach, size, params):
    """The cells that the kernel's reach and an image of ``size`` cells share, as indices into the one and the other."""
    befores = [before for before, _ in params.padding]
    counts = [min(n, max(r - before, 0)) for r, n, before in zip(reach, size, befores, strict=True)]
    return ((..., *(slice(before, before + c) for c, before in zip(counts, befores, strict=True))),
            (..., *(slice(0, c) for c in counts)))


def _pad(x, w, params, size):
    """x, grouped, with zeros around it: exactly the cells that the kernel reaches in ``size`` steps."""
    grouped = _group(x, params.groups)
    buffer = np.zeros((*grouped.shape[:3], *_reach(w, params, size)), x.dtype)
    inside, image = _overlap(buffer.shape[3:], x.shape[2:], params)
    buffer[inside] = grouped[image]
    return buffer


# ------------------------------------------------------------------------------------------------ shapes
def _group(a, groups):
    """(N, C, D, H, W) as (groups, C / groups, N, D, H, W), a view."""
    return a.reshape(a.shape[0], groups, a.shape[1] // groups, *a.shape[2:]).transpose(1, 2, 0, 3, 4, 5)


def _ungroup(a):
    """(groups, C / groups, N, D, H, W) as (N, C, D, H, W)."""
    return a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]).swapaxes(0, 1)


def _matrix(grouped):
    """(groups, channels, N, D, H, W) as (groups, channels, positions)."""
    return grouped.reshape(*grouped.shape[:2], math.prod(grouped.shape[2:]))


def _weights(w, groups):
    """(K, C / groups, kd, kh, kw) as (kd, kh, kw, groups, K / groups, C / groups), contiguous, which matmul wants."""
    return np.ascontiguousarray(w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).transpose(3, 4, 5, 0, 1, 2))


def _in_kind(a, like):
    """``a`` in memory laid out as that of ``like``."""
    out = empty_like_layout(a.shape, a.dtype, like)
    out[...] = a
    return out


def _finish(z, bias, x, params, train):
    """The kernel's last step: bias, activation, memory layout."""
    if bias is not None:
        z = z + bias[:, None, None, None]
    y = _in_kind(activate(params.activation, z), x)
    return y, (y, z if needs_input(params.activation) else None) if train else None


def _bias_gradient(dz):
    return _matrix(_group(dz, 1))[0].sum(axis=1)


def conv_max_pool(arrays, params, train):
    return pooled.forward(conv, pool_reference.max_pool, arrays, params, train)


def conv_max_pool_backward(grad, arrays, saved, params, needs):
    return pooled.backward(conv_backward, pool_reference.max_pool_backward, grad, arrays, saved, params, needs)
