"""Activations, softmax and dropout in plain numpy: the specification."""

from __future__ import annotations

import numpy as np

from .. import philox
from ..activation import Activation, activate, activation_gradient, sigmoid

_FROM_OUTPUT = ("sigmoid", "tanh")  # their gradient comes from the output; the others' from the input, which costs nothing to keep
_GELU, _SOFTPLUS = Activation("gelu"), Activation("softplus")


@np.errstate(all="ignore")
def activation(arrays, act, train):
    y = activate(act, arrays[0])
    return y, y if act.name in _FROM_OUTPUT else None


@np.errstate(all="ignore")
def activation_backward(grad, arrays, y, act, needs):
    return (activation_gradient(act, grad, y, None if act.name in _FROM_OUTPUT else arrays[0]),)


@np.errstate(all="ignore")
def gelu(arrays, params, train):
    (x,) = arrays
    if params.approximate == "none":
        return activate(_GELU, x), None
    # 0.5 * (1 + tanh(u)) = sigmoid(2 u), which does not cancel where u is negative
    return x * sigmoid(_tanh_argument(x)), None


@np.errstate(all="ignore")
def gelu_backward(grad, arrays, saved, params, needs):
    (x,) = arrays
    if params.approximate == "none":
        return (activation_gradient(_GELU, grad, None, x),)
    s = sigmoid(_tanh_argument(x))
    t = np.clip(x, -100, 100)  # beyond, s * (1 - s) is 0, and x * x would overflow
    return (grad * (s + x * (s * (1 - s) * (2 * _ROOT * (1 + 3 * _CUBIC * t * t)))),)


_ROOT, _CUBIC = 0.7978845608028654, 0.044715  # sqrt(2 / pi)


def _tanh_argument(x):
    return 2 * _ROOT * (x + _CUBIC * x * x * x)


@np.errstate(all="ignore")
def softplus(arrays, params, train):
    (x,) = arrays
    z = x * params.beta
    y = activate(_SOFTPLUS, z) / params.beta
    return np.where(z > params.threshold, x, y), y


@np.errstate(all="ignore")
def softplus_backward(grad, arrays, y, params, needs):
    (x,) = arrays
    return (np.where(x * params.beta > params.threshold, grad, activation_gradient(_SOFTPLUS, grad, y * params.beta)),)


@np.errstate(all="ignore")
def softmax(arrays, params, train):
    y = _shifted(arrays[0], params.axis)
    np.exp(y, out=y)
    y /= y.sum(axis=params.axis, keepdims=True)
    return y, y


@np.errstate(all="ignore")
def softmax_backward(grad, arrays, y, params, needs):
    dx = grad * y
    dx -= y * dx.sum(axis=params.axis, keepdims=True)
    return (dx,)


@np.errstate(all="ignore")
def log_softmax(arrays, params, train):
    y = _shifted(arrays[0], params.axis)
    y -= np.log(np.exp(y).sum(axis=params.axis, keepdims=True))
    return y, y


@np.errstate(all="ignore")
def log_softmax_backward(grad, arrays, y, params, needs):
    dx = np.exp(y)
    dx *= grad.sum(axis=params.axis, keepdims=True)
    return (np.subtract(grad, dx, out=dx),)


def _shifted(x, axis):
    """x less its maximum along the axis, a new array."""
    return x - x.max(axis=axis, keepdims=True) if x.size else x.copy()


@np.errstate(all="ignore")
def dropout(arrays, params, train):
    (x,) = arrays
    if not params.training or params.p == 0:
        return x.copy("K"), None
    factors = philox.factors(x.shape, params.p, params.seed, dtype=x.dtype)
    return _times(x, factors), factors


@np.errstate(all="ignore")
def dropout_backward(grad, arrays, factors, params, needs):
    return (grad.copy("K") if factors is None else _times(grad, factors),)


def _times(x, factors):
    return np.multiply(x, factors, out=np.empty_like(x))  # empty_like: x's layout, whatever the factors'
