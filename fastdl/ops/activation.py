"""The rule of ``activation=``: which activations can be fused into an operator's last step, and their gradients.

What matmul, conv and their relatives share. The pointwise operators themselves live in ``ops/pointwise``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import check


class Activation(NamedTuple):
    name: str
    slope: float = 0.0  # leaky_relu's negative slope, elu's alpha


DEFAULT_SLOPE = {"relu": 0.0, "leaky_relu": 0.01, "elu": 1.0, "gelu": 0.0, "sigmoid": 0.0, "tanh": 0.0, "softplus": 0.0}


def check_activation(op: str, activation) -> Activation | None:
    """``None``, a name, or a pair ``("leaky_relu", slope)`` / ``("elu", alpha)``."""
    if activation is None:
        return None
    slope = None
    if isinstance(activation, (tuple, list)) and len(activation) == 2:
        activation, slope = activation
        if activation not in ("leaky_relu", "elu"):
            raise ValueError(f"{op}: activation {activation!r} takes no parameter; only leaky_relu and elu do")
        slope = check.number(op, "activation's parameter", slope)
    check.choice(op, "activation", activation, (*DEFAULT_SLOPE, None))
    return Activation(activation, DEFAULT_SLOPE[activation] if slope is None else slope)


def needs_input(act: Activation | None) -> bool:
    """Whether the gradient needs the activation's input (else its output will do)."""
    return act is not None and (act.name == "gelu" or (act.slope < 0 and act.name in ("leaky_relu", "elu")))


def activate(act: Activation | None, z: np.ndarray) -> np.ndarray:
    """The activation of z, a new array (z itself where there is none). Plain numpy."""
    if act is None:
        return z
    one = z.dtype.type
    if act.name == "relu":
        return np.maximum(z, one(0))
    if act.name in ("leaky_relu", "elu"):
        y = np.minimum(z, one(0))  # a sum of two halves, one of them 0: np.where mispredicts a branch for each change of sign
        if act.name == "elu":
            y = np.expm1(y)
        y *= one(act.slope)
        y += np.maximum(z, one(0))
        return y
    if act.name == "gelu":
        return (z * normal_cdf(z)).astype(z.dtype, copy=False)
    if act.name == "sigmoid":
        return sigmoid(z)
    if act.name == "tanh":
        return np.tanh(z)
    return np.logaddexp(z, one(0))


def activation_gradient(act: Activation | None, grad: np.ndarray, y: np.ndarray | None, z: np.ndarray | None = None) -> np.ndarray:
    """The gradient at the activation's input, from its output y (or its input z, where ``needs_input``)."""
    if act is None:
        return grad
    one = grad.dtype.type
    if act.name == "gelu":
        return (grad * (normal_cdf(z) + z * np.exp(-0.5 * z * z) * 0.3989422804014327)).astype(grad.dtype, copy=False)
    source = y if z is None else z  # of the same sign
    if act.name == "relu":
        return masked(grad, ~(source <= 0))  # NaN lets the gradient through, as in torch
    if act.name == "leaky_relu":
        low = ~(source > 0)
        factor = np.multiply(low, one(act.slope), dtype=grad.dtype)
        factor += ~low
        factor *= grad
        return factor
    if act.name == "elu":
        low = source <= 0
        factor = np.fmin(source, one(0))  # fmin: NaN takes the upper branch, as in torch
        factor = factor + one(act.slope) if z is None else np.exp(factor) * one(act.slope)
        factor *= low
        factor += ~low
        factor *= grad
        return factor
    if act.name == "sigmoid":
        return grad * y * (one(1) - y)
    if act.name == "tanh":
        return grad * (one(1) - y * y)
    return grad * -np.expm1(-y)


def masked(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``values`` where the mask is true, else 0, even where a value is inf or NaN.

    By bits: np.where mispredicts a branch for each change of the mask, which made it eight times as slow on random signs.
    """
    return (values.view(f"i{values.itemsize}") & -mask.view(np.int8)).view(values.dtype)


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)) without overflow, NaN kept: exp(min(z, 0)) / (1 + exp(-|z|))."""
    y = np.exp(np.minimum(z, z.dtype.type(0)))
    y /= 1 + np.exp(-np.abs(z))
    return y


def normal_cdf(z: np.ndarray) -> np.ndarray:
    """The standard normal distribution function, 0.5 * erfc(-z / sqrt(2)), in float64."""
    return 0.5 * _erfc(-z.astype(np.float64) * 0.7071067811865476)


def _erfc(x: np.ndarray) -> np.ndarray:
    """The complementary error function in float64; W. J. Cody, "Rational Chebyshev approximations for the error
    function", Math. Comp. 23 (1969), by its three ranges. numpy has none of its own."""
    a = np.abs(x)
    with np.errstate(all="ignore"):
        t = np.minimum(a, 0.5) ** 2
        small = x * _ratio(t, _P1, _Q1)
        m = np.clip(a, 0.46875, 4.0)
        middle = np.exp(-m * m) * _ratio(m, _P2, _Q2)
        b = np.clip(a, 4.0, 30.0)
        inv = 1 / (b * b)
        large = np.exp(-b * b) / b * (0.5641895835477563 - inv * _ratio(inv, _P3, _Q3))
        tail = np.where(a <= 4.0, middle, large)
    return np.where(a <= 0.46875, 1 - small, np.where(x > 0, tail, 2 - tail)) + 0 * np.where(np.isnan(x), x, 0)


def _ratio(t, p, q):
    num, den = np.zeros_like(t), np.zeros_like(t)
    for a in p:
        num = num * t + a
    for b in q:
        den = den * t + b
    return num / den


_P1 = (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3)
_Q1 = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
_P2 = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1, 2.98635138197400131e2,
       8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3)
_Q2 = (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
       3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3)
_P3 = (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
       1.60837851487422766e-2, 6.58749161529837803e-4)
_Q3 = (1.0, 2.56852019228982242, 1.87295284992346047, 5.27905102951428412e-1, 6.05183413124413191e-2, 2.33520497626869185e-3)
