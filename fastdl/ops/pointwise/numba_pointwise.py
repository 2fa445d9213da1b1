"""Activations and their gradients over arrays as they lie in memory, a kernel each.

Those of ops/numba_activation.py, whose gradients come from their output as they do where they are fused, and those that
are not fused: elu (its exp(x) - 1 keeps its digits here), gelu, softplus, whose gradients come from their input.
"""

from __future__ import annotations

from ...cpu import vector_normal
from ...cpu.borrowed import absent, contents, create_like, nothing
from ...cpu.jit import kernel
from ...cpu.simd import absolute, address, fma, larger, pointer, select, smaller, splat
from ...cpu.vector_math import exp, exp_nonpositive, expm1, log1p, sigmoid
from ...cpu.vector_normal import normal
from ..numba_activation import ELU, LEAKY_RELU, RELU, SIGMOID, TANH, apply_activation, apply_gradient
from ..numba_maps import CHUNK, binary, unary, unary_chunk

_CODES = {"relu": RELU, "leaky_relu": LEAKY_RELU, "elu": ELU, "sigmoid": SIGMOID, "tanh": TANH}


def _by_code(code):
    return lambda v, slope, b: apply_activation(v, code, slope)


def _activation(name, code):
    return unary(f"activate_{name}", _by_code(code))


def _gradient_from_output(name, code):
    return binary(f"pull_back_{name}", lambda g, y, slope, b: apply_gradient(g, y, code, slope))


ACTIVATE = {name: _activation(name, code) for name, code in _CODES.items() if name != "elu"}
PULL_BACK = {name: _gradient_from_output(name, code) for name, code in _CODES.items()}


# ------------------------------------------------------------------------------------------------ elu
def _elu(v, alpha, b):
    zero = splat(v, 0.0)
    return select(v > zero, v, alpha * expm1(smaller(v, zero)))


def _elu_gradient(g, v, alpha, b):
    zero = splat(v, 0.0)
    return select(v <= zero, g * (alpha * exp(smaller(v, zero))), g)


# ------------------------------------------------------------------------------------------------ gelu
def _gelu(v, a, b):
    return vector_normal.gelu(v)


def _gelu_gradient(g, v, a, b):
    distribution, e = normal(v)
    return g * fma(v * splat(v, 0.3989422804014327), e, distribution)


_ROOT, _CUBIC = 0.7978845608028654, 0.044715  # sqrt(2 / pi)


def _gelu_tanh(v, a, b):
    # 0.5 * (1 + tanh(u)) = sigmoid(2 u), which does not cancel where u is negative
    return v * sigmoid(splat(v, 2 * _ROOT) * fma(splat(v, _CUBIC) * v * v, v, v))


def _gelu_tanh_gradient(g, v, a, b):
    one = splat(v, 1.0)
    s = sigmoid(splat(v, 2 * _ROOT) * fma(splat(v, _CUBIC) * v * v, v, v))
    t = smaller(absolute(v), splat(v, 100.0))  # beyond, s * (1 - s) is 0, and v * v would overflow
    slope = splat(v, 2 * _ROOT) * fma(splat(v, 3 * _CUBIC) * t, t, one)
    return g * fma(v * (s * (one - s)), slope, s)


# ------------------------------------------------------------------------------------------------ softplus
def _softplus(v, beta, threshold):
    z = v * beta
    y = (log1p(exp_nonpositive(-absolute(z))) + larger(z, splat(v, 0.0))) / beta
    return select(z > threshold, v, y)


def _softplus_gradient(g, v, beta, threshold):
    z = v * beta
    return select(z > threshold, g, g * sigmoid(z))


elu, elu_gradient = unary("elu", _elu), binary("elu_gradient", _elu_gradient)
gelu, gelu_gradient = unary("gelu", _gelu), binary("gelu_gradient", _gelu_gradient)
gelu_tanh, gelu_tanh_gradient = unary("gelu_tanh", _gelu_tanh), binary("gelu_tanh_gradient", _gelu_tanh_gradient)
softplus, softplus_gradient = unary("softplus", _softplus), binary("softplus_gradient", _softplus_gradient)


# ------------------------------------------------------------------------------------------------ small arrays
AT_ONCE = ("relu", "leaky_relu", "elu", "gelu", "sigmoid", "tanh", "softplus")
_relu, _leaky_relu, _sigmoid, _tanh = (unary_chunk(_by_code(code)) for code in (RELU, LEAKY_RELU, SIGMOID, TANH))
_elu_chunk, _gelu_chunk, _softplus_chunk = map(unary_chunk, (_elu, _gelu, _softplus))


@kernel("i i T T O*")
def activate_at_once(which, most, a, b, x):
    """An activation, AT_ONCE[which], of up to ``most`` elements on the calling thread; None where x does not fit."""
    n = x.shape[0]
    if absent(x) or n > most:
        return nothing(x)
    made = create_like(x, x, -1)
    p, q = pointer(x), contents(made)
    for chunk in range((n + CHUNK - 1) // CHUNK if address(q) != 0 else 0):
        if which == 0:
            _relu(0, chunk, p, q, n, a, b)
        elif which == 1:
            _leaky_relu(0, chunk, p, q, n, a, b)
        elif which == 2:
            _elu_chunk(0, chunk, p, q, n, a, b)
        elif which == 3:
            _gelu_chunk(0, chunk, p, q, n, a, b)
        elif which == 4:
            _sigmoid(0, chunk, p, q, n, a, b)
        elif which == 5:
            _tanh(0, chunk, p, q, n, a, b)
        else:
            _softplus_chunk(0, chunk, p, q, n, a, b)
    return made
