"""Activations on the CPU. What is not here (gelu, softplus, elu, softmax, dropout) the reference serves."""

from __future__ import annotations

import numpy as np

from ...cpu import parallel
from ...cpu.thresholds import ELEMENTS
from .. import activation as plain
from ..numba_activation import CODES, code_of
from .numba_pointwise import activate, pull_back

_FROM_OUTPUT = ("sigmoid", "tanh")  # their gradient comes from the output; the others' from the input, which costs nothing to keep


def activation_supports(arrays, act):
    return "exp(x) - 1 by vectors loses digits near 0" if act.name == "elu" else None


def activation(arrays, act, train):
    x, order = _dense(arrays[0])
    y = np.empty_like(x)
    activate[x.dtype.char](_pool(x), _flat(x, order), _flat(y, order), CODES[act.name], act.slope)
    return y, y if act.name in _FROM_OUTPUT else None


def activation_backward(grad, arrays, y, act, needs):
    return (_gradient(act, grad, y if act.name in _FROM_OUTPUT else arrays[0]),)


def activation_gradient(act, grad, y, z=None):
    """As ops/activation.py's: the gradient at the activation's input, from its output y (or its input z, where needed)."""
    if act is None:
        return grad
    if z is not None or code_of(act) is None:
        return plain.activation_gradient(act, grad, y, z)
    return _gradient(act, grad, y)


def _gradient(act, grad, source):
    source, order = _dense(source)
    if grad.strides != source.strides:
        aligned = np.empty_like(source)
        aligned[...] = grad
        grad = aligned
    dx = np.empty_like(source)
    flat = _flat(grad, order), _flat(source, order), _flat(dx, order)
    pull_back[grad.dtype.char](_pool(grad), *flat, CODES[act.name], act.slope)
    return dx


def _pool(x):
    return parallel.pool() if x.size > ELEMENTS else 0


def _dense(x):
    """(x without gaps, None or the order of its axes in memory): x itself wherever its elements lie side by side."""
    if x.flags.c_contiguous:
        return x, None
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    if x.transpose(order).flags.c_contiguous:
        return x, order
    x = np.ascontiguousarray(x)
    return x, None


def _flat(x, order):
    return x.reshape(-1) if order is None else x.transpose(order).reshape(-1)
