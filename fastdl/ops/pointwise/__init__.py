"""Activations, softmax and dropout: relu, leaky_relu, elu, gelu, sigmoid, tanh, softplus, softmax, log_softmax, dropout."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from ... import check
from ...op import Call, operator
from ..activation import Activation

_RELU, _SIGMOID, _TANH = Activation("relu"), Activation("sigmoid"), Activation("tanh")


class GeluParams(NamedTuple):
    approximate: str  # "none" or "tanh"


class SoftplusParams(NamedTuple):
    beta: float
    threshold: float


class SoftmaxParams(NamedTuple):
    axis: int  # not negative


class DropoutParams(NamedTuple):
    p: float
    seed: int
    training: bool


def _call(op, input, params):
    """One array of any rank in, one of its shape out; kernels see at least one dimension."""
    x = check.array(op, "input", input)
    return Call((x,), params) if x.ndim else Call((x.reshape(1),), params, ())


@operator("pointwise", "activation", "input", by_form=True)
def relu(input):
    """``max(input, 0)`` for every element; NaN stays NaN. As :func:`torch.nn.functional.relu`.

    input: any shape. Returns the same shape. The gradient at 0 is 0.

    Raises TypeError (not float32 or float64).
    """
    return _call("relu", input, _RELU)


@operator("pointwise", "activation", "input", by_form=True)
def leaky_relu(input, negative_slope=0.01):
    """``input`` where it is positive, else ``negative_slope * input``. As :func:`torch.nn.functional.leaky_relu`.

    input: any shape. negative_slope: a number. Returns the same shape. The gradient at 0 is negative_slope.

    Raises TypeError (input not float32 or float64, negative_slope not a number).
    Source: Maas, Hannun, Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML 2013.
    """
    return _call("leaky_relu", input, Activation("leaky_relu", check.number("leaky_relu", "negative_slope", negative_slope)))


@operator("pointwise", "activation", "input", by_form=True)
def elu(input, alpha=1.0):
    """``input`` where it is positive, else ``alpha * (exp(input) - 1)``. As :func:`torch.nn.functional.elu`.

    input: any shape. alpha: a number. Returns the same shape. The gradient at 0 is alpha.

    Raises TypeError (input not float32 or float64, alpha not a number).
    Source: Clevert, Unterthiner, Hochreiter, "Fast and accurate deep network learning by exponential linear units",
    ICLR 2016.
    """
    return _call("elu", input, Activation("elu", check.number("elu", "alpha", alpha)))


@operator("pointwise", "gelu", "input", by_form=True)
def gelu(input, approximate="none"):
    """``input * Phi(input)``, Phi the standard normal distribution function. As :func:`torch.nn.functional.gelu`.

    input: any shape. approximate: "none", or "tanh" for
    ``0.5 * input * (1 + tanh(sqrt(2 / pi) * (input + 0.044715 * input**3)))``. Returns the same shape.

    Raises TypeError (not float32 or float64) or ValueError (an unknown approximation).
    Source: Hendrycks, Gimpel, "Gaussian error linear units", arXiv:1606.08415.
    """
    return _call("gelu", input, GeluParams(check.choice("gelu", "approximate", approximate, ("none", "tanh"))))


@operator("pointwise", "activation", "input", by_form=True)
def sigmoid(input):
    """``1 / (1 + exp(-input))`` for every element. As :func:`torch.sigmoid`.

    input: any shape. Returns the same shape.

    Raises TypeError (not float32 or float64).
    """
    return _call("sigmoid", input, _SIGMOID)


@operator("pointwise", "activation", "input", by_form=True)
def tanh(input):
    """The hyperbolic tangent of every element. As :func:`torch.tanh`.

    input: any shape. Returns the same shape.

    Raises TypeError (not float32 or float64).
    """
    return _call("tanh", input, _TANH)


@operator("pointwise", "softplus", "input", by_form=True)
def softplus(input, beta=1.0, threshold=20.0):
    """``log(1 + exp(beta * input)) / beta``, and ``input`` itself where ``beta * input > threshold``.

    As :func:`torch.nn.functional.softplus`, but no threshold, however high, overflows.

    input: any shape. beta: a number other than 0. threshold: a number. Returns the same shape.

    Raises TypeError (input not float32 or float64, beta or threshold not a number) or ValueError (beta is 0).
    """
    beta = check.number("softplus", "beta", beta)
    if beta == 0:
        raise ValueError("softplus: beta is 0; the rule is a number other than 0")
    return _call("softplus", input, SoftplusParams(beta, check.number("softplus", "threshold", threshold)))


@operator("pointwise", "softmax", "input", by_form=True)
def softmax(input, dim=None):
    """``exp(input)`` divided by its sum along ``dim``. As :func:`torch.nn.functional.softmax`.

    input: any shape. dim: an integer from -ndim to ndim - 1; it must be given (torch's choice of one for you is
    deprecated there and an error here). Returns the same shape; each slice along dim sums to 1.

    Raises TypeError (not float32 or float64, no dim) or ValueError (dim out of range).
    """
    return _along("softmax", input, dim)


@operator("pointwise", "log_softmax", "input", by_form=True)
def log_softmax(input, dim=None):
    """``input - log(sum(exp(input)))``, the sum taken along ``dim``. As :func:`torch.nn.functional.log_softmax`.

    input: any shape. dim: an integer from -ndim to ndim - 1; it must be given (torch's choice of one for you is
    deprecated there and an error here). Returns the same shape.

    Raises TypeError (not float32 or float64, no dim) or ValueError (dim out of range).
    """
    return _along("log_softmax", input, dim)


def _along(op, input, dim):
    x = check.array(op, "input", input)
    if dim is None:
        raise TypeError(f"{op}: dim is not given; the rule is an integer (torch's implicit dim is deprecated and not taken over)")
    axis = check.integer(op, "dim", dim)
    ndim = max(x.ndim, 1)
    if not -ndim <= axis < ndim:
        raise ValueError(f"{op}: dim is {axis}, input has {x.ndim} dimensions; the rule is {-ndim} to {ndim - 1}")
    return _call(op, x, SoftmaxParams(axis % ndim))


@operator("pointwise", "dropout", "input")
def dropout(input, p=0.5, training=True, *, seed=None):
    """Each element zeroed with probability p, the others multiplied by ``1 / (1 - p)``; a copy where not training.

    As :func:`torch.nn.functional.dropout`, which draws from torch's global generator; here the elements that stay are
    a function of the seed and of each element's index (in C order) and of nothing else: not of layout, dtype or
    threads. NaN and infinity times 0 are NaN, as in torch.

    input: any shape. p: a probability. training: whether to drop at all. seed: an integer from 0 to 2**64 - 1, or None
    for fresh entropy. Returns the same shape.

    The random bits are those of Philox 4x32-10 with key ``seed``, drawn again in the backward pass: nothing is stored.
    Element i takes word ``i // 16 % 4`` of the counter ``i // 64 * 16 + i % 16``, and stays where that is at least ``p * 2**32``.

    Raises TypeError (not float32 or float64, p not a number, seed not an integer) or ValueError (p not within 0 to 1,
    seed out of range).
    Source: Srivastava et al., "Dropout", JMLR 15 (2014); Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
    SC 2011.
    """
    p = check.number("dropout", "p", p, 0, 1)
    if seed is None:
        seed = secrets.randbits(64)
    elif not 0 <= (seed := check.integer("dropout", "seed", seed)) < 2**64:
        raise ValueError(f"dropout: seed is {seed}; the rule is 0 to 2**64 - 1")
    return _call("dropout", input, DropoutParams(p, seed, bool(training)))
