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


def kernel_arguments(act) -> tuple[int, float]:
    """(code, slope) of a fused Activation, as kernels take them; NONE for one that is applied after the kernel."""
    return code_of(act) or NONE, 0.0 if act is None else act.slope


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
def apply_gradient(g, s, code, slope):
    """g times the activation's derivative, from its output s (or its input, where that has the same sign)."""
    zero, one = splat(g, 0.0), splat(g, 1.0)
    if code == RELU:
        return select(s <= zero, zero, g)  # NaN lets the gradient through, as in torch
    if code == LEAKY_RELU:
        return select(s > zero, g, g * slope)
    if code == ELU:
        return select(s <= zero, g * (s + slope), g)
    if code == SIGMOID:
        return g * s * (one - s)
    return g * (one - s * s)
