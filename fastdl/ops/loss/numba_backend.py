"""Losses on the CPU: from params to a kernel for the memory at hand. What is rare the reference computes, within a call."""

from __future__ import annotations

import functools

import numpy as np

from ...cpu import parallel
from ...cpu.thresholds import ELEMENTS, FUNCTIONS
from ...cpu.workspace import KINDS, workspace
from ..numba_maps import CHUNK, dense, flat, like, pool_for
from ..pointwise.numba_backend import column_block
from . import reference
from .numba_classes import columns_of_classes, mean_at_once, negative_picks, negative_picks_gradient, rows_of_classes
from .numba_pairs import EACH, GRADIENT, SUM


# ------------------------------------------------------------------------------------------------ classes
def _classes(x):
    """(x as (outer, classes, inner) without gaps, whether it is a channels-last view)."""
    if x.ndim > 2 and not x.flags.c_contiguous and x.strides[1] == x.itemsize:
        return np.ascontiguousarray(np.moveaxis(x, 1, -1)).reshape(-1, x.shape[1], 1), True
    return np.ascontiguousarray(x).reshape(x.shape[0], x.shape[1], -1), False


def _labels(target):
    t = np.ascontiguousarray(target).reshape(-1)
    return t if t.flags.writeable else t.copy()  # kernels declare integers as arrays that they write to


def _weights(weight, x):
    return _ones(x.shape[1], x.dtype.char) if weight is None else np.ascontiguousarray(weight)


@functools.lru_cache(maxsize=8)
def _ones(n, char):
    ones = np.ones(n, char)
    ones.flags.writeable = False
    return ones


def _divisor(target, weight, params):
    """What a mean divides by: the summed weights of the labels that count."""
    if weight is None:
        return target.size - np.count_nonzero(target == params.ignore_index)
    return weight[target[target != params.ignore_index]].sum(dtype=np.float64)


def _factor(dtype, divisor):
    if divisor:
        return np.array([1 / divisor], dtype)
    with np.errstate(all="ignore"):
        return np.array([np.float64(1) / divisor], dtype)


def _run(x, target, weight, w, params, factors, wanted):
    """(losses in the order of target, the gradient times factors or None). w: weight, or ones."""
    memory, last = _classes(x)
    outer, n, inner = memory.shape
    losses, dx = np.empty(target.size, x.dtype), np.empty(memory.shape if wanted else (0, 0, 0), x.dtype)
    pool, slots = parallel.team() if x.size > FUNCTIONS else (0, 1)
    total = x.shape[1] if weight is None else w.sum(dtype=np.float64)
    rest = _labels(target), params.ignore_index, w, total, params.label_smoothing, factors, wanted, losses
    if inner == 1:
        rows_of_classes[x.dtype.char](pool, memory.reshape(outer, n), *rest, dx.reshape(dx.shape[:2]))
    else:
        block = column_block(n, inner, x.itemsize)
        columns_of_classes[x.dtype.char](pool, block, workspace(slots * 5 * block, x.dtype), memory, *rest, dx)
    if wanted:
        dx = np.moveaxis(dx.reshape(x.shape[:1] + x.shape[2:] + x.shape[1:2]), -1, 1) if last else dx.reshape(x.shape)
    return losses.reshape(target.shape), dx if wanted else None


class _AtOnce(dict):
    """The mean loss of few rows, checks and all, by their dtype; see op.Operator. scores: whether it is of scores, or log-probabilities."""

    arity = 2  # input, target

    def __init__(self, scores):
        super().__init__()
        self.scores = int(scores)

    def __missing__(self, char):
        kernel, scores = mean_at_once[char] if char in KINDS else None, self.scores

        def serve(x, target):
            made = kernel(scores, x, target)
            return None if made is None else made[0, 0]

        self[char] = None if kernel is None else serve
        return self[char]

    def get(self, char):
        return self[char]


cross_entropy_at_once, nll_loss_at_once = _AtOnce(True), _AtOnce(False)


def cross_entropy(arrays, params, train):
    x, target, weight = arrays
    if target.dtype.kind == "f" or not x.size:
        return reference.cross_entropy(arrays, params, train)
    w = _weights(weight, x)
    divisor = _divisor(target, weight, params) if params.reduction == "mean" else 1
    fused = train and params.reduction != "none"
    losses, dx = _run(x, target, weight, w, params, _factor(x.dtype, divisor), fused)
    loss = losses if params.reduction == "none" else _total(losses, x.dtype, divisor)
    return loss, ([dx], w, divisor) if train else None


def cross_entropy_backward(grad, arrays, saved, params, needs):
    x, target, weight = arrays
    if target.dtype.kind == "f" or not x.size:
        return reference.cross_entropy_backward(grad, arrays, saved, params, needs)
    if not needs[0]:
        return None, None, None
    made, w, divisor = saved
    try:
        dx = made.pop() if params.reduction != "none" else None  # the forward pass made it, for a gradient of 1; the first takes it
    except IndexError:
        dx = None
    if dx is None:
        factors = grad.reshape(-1) if params.reduction == "none" else _factor(x.dtype, divisor)
        _, dx = _run(x, target, weight, w, params, np.ascontiguousarray(factors), True)
    if params.reduction != "none" and grad != 1:
        with np.errstate(all="ignore"):
            dx *= grad
    return dx, None, None


def nll_loss(arrays, params, train):
    x, target, weight = arrays
    if not x.size:
        return reference.nll_loss(arrays, params, train)
    w, shape = _weights(weight, x), (x.shape[0], x.size // (x.shape[0] * x.shape[1]))
    losses = np.empty(shape, x.dtype)
    # any strides will do, so a view is enough where the spatial dimensions can be made one
    negative_picks[x.dtype.char](x.reshape(x.shape[0], x.shape[1], -1), _labels(target).reshape(shape), params.ignore_index, w, losses)
    divisor = _divisor(target, weight, params) if params.reduction == "mean" else 1
    loss = losses.reshape(target.shape) if params.reduction == "none" else _total(losses, x.dtype, divisor)
    return loss, (w, divisor) if train else None


def nll_loss_backward(grad, arrays, saved, params, needs):
    x, target, _ = arrays
    if not x.size:
        return reference.nll_loss_backward(grad, arrays, saved, params, needs)
    if not needs[0]:
        return None, None, None
    w, divisor = saved
    with np.errstate(all="ignore"):
        factors = np.ascontiguousarray(grad, x.dtype).reshape(-1) / x.dtype.type(divisor)
    memory, last = np.zeros_like(x), x.shape[0]
    flat_view = memory.reshape(last, x.shape[1], -1)
    if not np.shares_memory(flat_view, memory):  # odd strides: a plain array instead
        memory = np.zeros(x.shape, x.dtype)
        flat_view = memory.reshape(last, x.shape[1], -1)
    negative_picks_gradient[x.dtype.char](factors, _labels(target).reshape(last, -1), params.ignore_index, w, flat_view)
    return memory, None, None


def _total(losses, dtype, divisor):
    with np.errstate(all="ignore"):
        return dtype.type(np.add.reduce(losses, axis=None, dtype=np.float64) / divisor)


# ------------------------------------------------------------------------------------------------ pairs
def _loss(name, x, t, reduction, divisor=None):
    x, order = dense(x)
    p, q, char = flat(x, order), flat(like(t, x), order), x.dtype.char
    if reduction == "none":
        y = np.empty_like(x)
        EACH[name][char](pool_for(x, ELEMENTS), p, q, flat(y, order), 0.0, 0.0)
        return y
    sums = np.empty(-(-x.size // CHUNK), x.dtype)
    SUM[name][char](pool_for(x, ELEMENTS), p, q, sums, 0.0, 0.0)
    return _total(sums, x.dtype, 1 if reduction == "sum" else x.size if divisor is None else divisor)


def _gradient(name, grad, x, t, reduction, divisor=None):
    x, order = dense(x)
    dx, scale = np.empty_like(x), 1.0
    with np.errstate(all="ignore"):
        if reduction != "none":
            scale = np.float64(grad) / (1 if reduction == "sum" else x.size if divisor is None else divisor)
        GRADIENT[name][x.dtype.char](pool_for(x, ELEMENTS), flat(x, order), flat(like(t, x), order), flat(dx, order), scale, 0.0)
        if reduction == "none":
            dx *= grad
    return dx


def mse_loss(arrays, params, train):
    return _loss("mse", *arrays, params.reduction), None


def mse_loss_backward(grad, arrays, saved, params, needs):
    return _signed(_gradient("mse", grad, *arrays, params.reduction), needs)


def l1_loss(arrays, params, train):
    return _loss("l1", *arrays, params.reduction), None


def l1_loss_backward(grad, arrays, saved, params, needs):
    return _signed(_gradient("l1", grad, *arrays, params.reduction), needs)


def _signed(dx, needs):
    return dx if needs[0] else None, -dx if needs[1] else None


def binary_cross_entropy(arrays, params, train):
    if arrays[2] is not None:
        return reference.binary_cross_entropy(arrays, params, train)
    return _loss("bce", *arrays[:2], params.reduction), None


def binary_cross_entropy_backward(grad, arrays, saved, params, needs):
    if arrays[2] is not None or needs[1]:
        return reference.binary_cross_entropy_backward(grad, arrays, saved, params, needs)
    return _gradient("bce", grad, *arrays[:2], params.reduction) if needs[0] else None, None, None


def binary_cross_entropy_with_logits(arrays, params, train):
    if arrays[2] is not None or arrays[3] is not None:
        return reference.binary_cross_entropy_with_logits(arrays, params, train)
    return _loss("logits", *arrays[:2], params.reduction), None


def binary_cross_entropy_with_logits_backward(grad, arrays, saved, params, needs):
    if arrays[2] is not None or arrays[3] is not None or needs[1]:
        return reference.binary_cross_entropy_with_logits_backward(grad, arrays, saved, params, needs)
    return _gradient("logits", grad, *arrays[:2], params.reduction) if needs[0] else None, None, None, None


def kl_div(arrays, params, train):
    return _loss(_kl(params), *arrays, params.reduction, reference.kl_divisor(arrays[0], params)), None


def kl_div_backward(grad, arrays, saved, params, needs):
    if needs[1]:
        return reference.kl_div_backward(grad, arrays, saved, params, needs)
    return _gradient(_kl(params), grad, *arrays, params.reduction, reference.kl_divisor(arrays[0], params)) if needs[0] else None, None


def _kl(params):
    return "kl_of_logs" if params.log_target else "kl"
