"""The activations of ops/activation.py on SIMD vectors, and their gradients from the output."""

from __future__ import annotations

from ..cpu.jit import inline
from ..cpu.simd import larger, select, smaller, splat
from ..cpu.vector_math import exp, sigmoid, tanh
from .activation import needs_input

NONE, RELU, LEAKY_RELU, ELU, SIGMOID, TANH = range(6)
CODES = {"relu": RELU, "leaky_relu": LEAKY_RELU, "elu": ELU, "sigmoid": SIGMOID, "tanh": TANH}


def code_of(act) -> int | None:
    """The number of an Activation for compiled code, or None for those that are not fused: gelu, softplus, and those
    whose gradient needs their input."""
    return NONE if act is None else None if needs_input(act) else CODES.get(act.name)


@inline
def apply_activation(v, code, slope):
    """code is the same for a whole call: the branch costs nothing that could be measured."""
    zero = splat(v, 0.0)
    if code == RELU:
        return larger(v, zero)
    if code == LEAKY_RELU:
        return select(v > zero, v, v * slope)
    if code == ELU:
        return select(v > zero, v, slope * (exp(smaller(v, zero)) - splat(v, 1.0)))
    if code == SIGMOID:
        return sigmoid(v)
    if code == TANH:
        return tanh(v)
    return v


@inline
def activation_slope(y, code, slope):
    """The activation's derivative from its output."""
    zero, one = splat(y, 0.0), splat(y, 1.0)
    if code == RELU:
        return select(y > zero, one, zero)
    if code == LEAKY_RELU:
        return select(y > zero, one, slope)
    if code == ELU:
        return select(y > zero, one, smaller(y, zero) + slope)
    if code == SIGMOID:
        return y * (one - y)
    if code == TANH:
        return one - y * y
    return one
