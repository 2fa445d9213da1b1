"""Activations, softmax and dropout on the CPU: from params to a kernel for the memory at hand."""

from __future__ import annotations

import functools
from math import prod

import numpy as np

from ...cpu import features, parallel
from ...cpu.thresholds import ELEMENTS, FUNCTIONS
from ...cpu.workspace import KINDS, workspace
from .. import activation as plain
from .. import philox
from ..numba_activation import code_of
from ..numba_maps import dense, flat, like, pool_for
from . import numba_pointwise as kernels
from . import numba_softmax
from .numba_dropout import drop

_FROM_OUTPUT = ("sigmoid", "tanh")  # their gradient comes from the output; the others' from the input, which costs nothing to keep
_CHEAP = ("relu", "leaky_relu")


def _apply(made, x, a=0.0, b=0.0, least=FUNCTIONS):
    x, order = dense(x)
    y = np.empty_like(x)
    made[x.dtype.char](pool_for(x, least), flat(x, order), flat(y, order), a, b)
    return y


def _pull_back(made, grad, source, a=0.0, b=0.0, least=FUNCTIONS):
    source, order = dense(source)
    dx = np.empty_like(source)
    made[dx.dtype.char](pool_for(dx, least), flat(like(grad, source), order), flat(source, order), flat(dx, order), a, b)
    return dx


def _applied(made, x, a=0.0, b=0.0, least=FUNCTIONS):
    """_apply for arrays of x's form (see op.py), or None."""
    if not x.flags.c_contiguous:
        return None
    run, shape, dtype, shared, empty = made[x.dtype.char], x.shape, x.dtype, x.size > least, np.empty

    def apply(x):
        y = empty(shape, dtype)
        run(parallel.pool() if shared else 0, x, y, a, b)
        return y

    return apply


class _AtOnce(dict):
    """Activations of small arrays, by dtype; see op.Operator. arity: the array alone, what else there is has its default."""

    arity = 1

    def __init__(self, name, most, a=0.0, b=0.0):
        super().__init__()
        self.given = kernels.AT_ONCE.index(name), most, a, b

    def __missing__(self, char):
        serve = self[char] = functools.partial(kernels.activate_at_once[char], *self.given) if char in KINDS else None
        return serve

    def get(self, char):
        return self[char]


relu_at_once, leaky_relu_at_once = _AtOnce("relu", ELEMENTS), _AtOnce("leaky_relu", ELEMENTS, 0.01)
elu_at_once, gelu_at_once = _AtOnce("elu", FUNCTIONS, 1.0), _AtOnce("gelu", FUNCTIONS)
softplus_at_once = _AtOnce("softplus", FUNCTIONS, 1.0, 20.0)
sigmoid_at_once, tanh_at_once = _AtOnce("sigmoid", FUNCTIONS), _AtOnce("tanh", FUNCTIONS)


# ------------------------------------------------------------------------------------------------ activations
def activation(arrays, act, train):
    made = kernels.elu if act.name == "elu" else kernels.ACTIVATE[act.name]
    y = _apply(made, arrays[0], act.slope, least=ELEMENTS if act.name in _CHEAP else FUNCTIONS)
    return y, y if act.name in _FROM_OUTPUT else None


def activation_bound(arrays, act):
    """See op.py."""
    made = kernels.elu if act.name == "elu" else kernels.ACTIVATE[act.name]
    return _applied(made, arrays[0], act.slope, least=ELEMENTS if act.name in _CHEAP else FUNCTIONS)


def activation_backward(grad, arrays, y, act, needs):
    if act.name == "elu":
        return (_pull_back(kernels.elu_gradient, grad, arrays[0], act.slope),)
    return (_gradient(act, grad, y if act.name in _FROM_OUTPUT else arrays[0]),)


def activation_gradient(act, grad, y, z=None):
    """As ops/activation.py's: the gradient at the activation's input, from its output y (or its input z, where needed)."""
    if act is None:
        return grad
    if z is not None or code_of(act) is None:
        return plain.activation_gradient(act, grad, y, z)
    return _gradient(act, grad, y)


def _gradient(act, grad, source):
    return _pull_back(kernels.PULL_BACK[act.name], grad, source, act.slope, least=ELEMENTS)


def gelu(arrays, params, train):
    return _apply(kernels.gelu if params.approximate == "none" else kernels.gelu_tanh, arrays[0]), None


def gelu_bound(arrays, params):
    """See op.py."""
    return _applied(kernels.gelu if params.approximate == "none" else kernels.gelu_tanh, arrays[0])


def gelu_backward(grad, arrays, saved, params, needs):
    return (_pull_back(kernels.gelu_gradient if params.approximate == "none" else kernels.gelu_tanh_gradient, grad, arrays[0]),)


def softplus(arrays, params, train):
    return _apply(kernels.softplus, arrays[0], params.beta, params.threshold), None


def softplus_bound(arrays, params):
    """See op.py."""
    return _applied(kernels.softplus, arrays[0], params.beta, params.threshold)


def softplus_backward(grad, arrays, saved, params, needs):
    return (_pull_back(kernels.softplus_gradient, grad, arrays[0], params.beta, params.threshold),)


# ------------------------------------------------------------------------------------------------ softmax
def softmax(arrays, params, train):
    y = _along("softmax", arrays, params.axis)
    return y, y


def softmax_bound(arrays, params):
    """See op.py."""
    return _rows_bound(numba_softmax.softmax_rows, arrays[0], params.axis)


def softmax_backward(grad, arrays, y, params, needs):
    return (_along("softmax", (grad, y), params.axis, "_gradient"),)


def log_softmax(arrays, params, train):
    y = _along("log_softmax", arrays, params.axis)
    return y, y


def log_softmax_bound(arrays, params):
    """See op.py."""
    return _rows_bound(numba_softmax.log_softmax_rows, arrays[0], params.axis)


def log_softmax_backward(grad, arrays, y, params, needs):
    return (_along("log_softmax", (grad, y), params.axis, "_gradient"),)


def _rows_bound(made, x, axis):
    """_along for arrays of x's form, along their last axis; else None."""
    if not x.size or axis != x.ndim - 1 or not x.flags.c_contiguous:
        return None
    run, shape, dtype, shared, empty = made[x.dtype.char], x.shape, x.dtype, x.size > FUNCTIONS, np.empty
    rows = x.size // shape[-1], shape[-1]
    flat = len(shape) == 2

    def along(x):
        y = empty(rows, dtype)
        run(parallel.pool() if shared else 0, x if flat else x.reshape(rows), y)
        return y if flat else y.reshape(shape)

    return along


def _along(name, given, axis, suffix=""):
    """A kernel along an axis of the arrays given; they get the memory order of the last of them."""
    last, order = dense(given[-1])
    out = np.empty_like(last)
    if not out.size:
        return out
    outer, n, inner = split(last, order, axis)
    arrays = [like(a, last) for a in given[:-1]] + [last, out]
    pool, slots = parallel.team() if out.size > FUNCTIONS else (0, 1)
    if inner == 1:
        made = getattr(numba_softmax, f"{name}_rows{suffix}")
        made[out.dtype.char](pool, *(flat(a, order).reshape(outer, n) for a in arrays))
    else:
        block = column_block(n, inner, out.itemsize)
        made, scratch = getattr(numba_softmax, f"{name}_columns{suffix}"), workspace(slots * 2 * block, out.dtype)
        made[out.dtype.char](pool, block, scratch, *(flat(a, order).reshape(outer, n, inner) for a in arrays))
    return out


def split(x, order, axis):
    """(outer, n, inner): the sizes before, along and after an axis in the order of x's memory."""
    sizes = x.shape if order is None else [x.shape[i] for i in order]
    at = axis if order is None else order.index(axis)
    return prod(sizes[:at]), sizes[at], prod(sizes[at + 1:])


def column_block(n, inner, itemsize):
    """Positions to a block of columns n long: the input and the output of one fit half of L2, and no row of it is very short."""
    fitting = features.caches().l2 // (4 * itemsize * n)
    return min(max(64, fitting // 64 * 64), 2048, -(-inner // 16) * 16)


# ------------------------------------------------------------------------------------------------ dropout
def dropout(arrays, params, train):
    return _drop(arrays[0], params), None


def dropout_backward(grad, arrays, saved, params, needs):
    return (_drop(grad, params),)


def _drop(x, params):
    if not params.training or params.p == 0:
        return x.copy("K")
    if x.flags.c_contiguous:
        return drop_flat(x, params.p, params.seed)
    # the mask goes by the index in C order, whatever the memory's
    factors = drop_flat(np.ones(x.shape, x.dtype), params.p, params.seed)
    return np.multiply(x, factors, out=np.empty_like(x))


def drop_flat(x, p, seed, stream=0):
    """Dropout of an array without gaps in C order; stream: keeps several masks of one seed apart."""
    y = np.empty_like(x)
    low, high = philox.key_of(seed)
    made = drop[x.dtype.char]
    made(pool_for(x, FUNCTIONS), x.reshape(-1), y.reshape(-1), low, high, stream, philox.threshold(p), philox.scale(p))
    return y
