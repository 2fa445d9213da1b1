"""Matrix products in plain numpy: the specification."""

from __future__ import annotations

import numpy as np

from ..activation import activate, activation_gradient, needs_input


def matmul(arrays, params, train):
    a, b = arrays
    return np.matmul(a, b), None


def matmul_backward(grad, arrays, saved, params, needs):
    a, b = arrays
    da = _sum_to(np.matmul(grad, b.swapaxes(-1, -2)), a.shape) if needs[0] else None
    db = _sum_to(np.matmul(a.swapaxes(-1, -2), grad), b.shape) if needs[1] else None
    return da, db


def _sum_to(grad, shape):
    """Sum over the dimensions that broadcasting added or stretched."""
    extra = grad.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 and grad.shape[extra + i] != 1)
    return grad.sum(axis=axes).reshape(shape) if axes else grad


def addmm(arrays, params, train):
    x, a, b = arrays
    y = a @ b
    if params.alpha != 1:
        y *= params.alpha
    if params.beta:
        y += x if params.beta == 1 else x * x.dtype.type(params.beta)
    return y, None


def addmm_backward(grad, arrays, saved, params, needs):
    x, a, b = arrays
    dz = grad if params.alpha == 1 or not any(needs[1:]) else grad * grad.dtype.type(params.alpha)
    return (_sum_to(grad * grad.dtype.type(params.beta), x.shape) if needs[0] else None,
            dz @ b.T if needs[1] else None,
            a.T @ dz if needs[2] else None)


def linear(arrays, params, train):
    x, w, bias = arrays
    z = x @ w.T
    if bias is not None:
        z += bias
    y = activate(params.activation, z)
    return y, (y, z if needs_input(params.activation) else None) if train else None


def linear_backward(grad, arrays, saved, params, needs):
    x, w, bias = arrays
    dz = activation_gradient(params.activation, grad, *saved)
    return (dz @ w if needs[0] else None,
            dz.T @ x if needs[1] else None,
            dz.sum(axis=0) if needs[2] else None)
