"""Losses in plain numpy: the specification."""

from __future__ import annotations

import numpy as np

from ..activation import sigmoid


# ------------------------------------------------------------------------------------------------ classes
# x is (N, C, ...) with the classes along axis 1; "positions" are its other axes.
@np.errstate(all="ignore")
def cross_entropy(arrays, params, train):
    if arrays[1].dtype.kind == "f":
        return _cross_entropy_probabilities(arrays, params)
    x, target, weight = arrays
    z, index, counted, position_weight = x - x.max(axis=1, keepdims=True), *_targets(x, target, weight, params)
    picked = np.take_along_axis(z, index, 1)[:, 0]
    smoothing = params.label_smoothing
    if smoothing:
        total = (z if weight is None else z * _classes(weight, z)).sum(axis=1)
    exp = np.exp(z, out=z)
    sums = exp.sum(axis=1)
    log_sums = np.log(sums)
    loss = (1 - smoothing) * (position_weight * (log_sums - picked))
    if smoothing:
        loss += smoothing / x.shape[1] * (_class_weight_sum(x, weight) * log_sums - total)
    loss = np.where(counted, loss, 0)  # not a product: an ignored position may hold NaN
    divisor = position_weight.sum() if params.reduction == "mean" else None
    return _reduce(loss, params.reduction, divisor), (exp, sums, index, counted, position_weight, divisor)


@np.errstate(all="ignore")
def cross_entropy_backward(grad, arrays, saved, params, needs):
    if arrays[1].dtype.kind == "f":
        return _cross_entropy_probabilities_backward(grad, arrays, saved, params, needs)
    if not needs[0]:
        return None, None, None
    x, _, weight = arrays
    exp, sums, index, counted, position_weight, divisor = saved
    factor = grad if divisor is None else grad / divisor
    # the target distribution q has (1 - smoothing) * weight at the label and spread * weight at every class;
    # the gradient is softmax * sum(q) - q
    at_label = np.where(counted, factor * ((1 - params.label_smoothing) * position_weight), 0)
    sum_q = at_label
    if params.label_smoothing:
        spread = np.where(counted, factor * (params.label_smoothing / x.shape[1]), 0)
        sum_q = at_label + spread * _class_weight_sum(x, weight)
    dx = exp * (sum_q / sums)[:, None]
    if params.label_smoothing:
        dx -= spread[:, None] if weight is None else spread[:, None] * _classes(weight, x)
    np.put_along_axis(dx, index, np.take_along_axis(dx, index, 1) - at_label[:, None], 1)
    return dx, None, None


def _cross_entropy_probabilities(arrays, params):
    x, target, weight = arrays
    log_p = x - x.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    q = _smoothed(target, params)
    if weight is not None:
        q = q * _classes(weight, x)
    loss = -(log_p * q).sum(axis=1)
    return _reduce(loss, params.reduction, loss.size), (log_p, q)


def _cross_entropy_probabilities_backward(grad, arrays, saved, params, needs):
    x, target, weight = arrays
    log_p, q = saved
    dx = dtarget = dweight = None
    factor = grad[:, None] if params.reduction == "none" else grad / (x.size // x.shape[1]) if params.reduction == "mean" else grad
    if needs[0]:
        dx = np.exp(log_p)
        dx *= q.sum(axis=1, keepdims=True)
        dx -= q
        dx *= factor
    if needs[1]:
        dtarget = log_p * (factor * (params.label_smoothing - 1))
        if weight is not None:
            dtarget *= _classes(weight, x)
    if needs[2]:
        dweight = -(factor * log_p * _smoothed(target, params)).sum(axis=(0, *range(2, x.ndim)))
    return dx, dtarget, dweight


def _smoothed(target, params):
    s = params.label_smoothing
    return target * (1 - s) + s / target.shape[1] if s else target


@np.errstate(all="ignore")
def nll_loss(arrays, params, train):
    x, target, weight = arrays
    index, counted, position_weight = _targets(x, target, weight, params)
    loss = np.where(counted, -position_weight * np.take_along_axis(x, index, 1)[:, 0], 0)
    divisor = position_weight.sum() if params.reduction == "mean" else None
    return _reduce(loss, params.reduction, divisor), (index, counted, position_weight, divisor)


@np.errstate(all="ignore")
def nll_loss_backward(grad, arrays, saved, params, needs):
    if not needs[0]:
        return None, None, None
    index, counted, position_weight, divisor = saved
    factor = grad if divisor is None else grad / divisor
    dx = np.zeros_like(arrays[0])
    np.put_along_axis(dx, index, np.where(counted, -factor * position_weight, 0)[:, None], 1)
    return dx, None, None


def _targets(x, target, weight, params):
    """For each position: the label as an index along axis 1, whether it counts, its weight (0 where it does not)."""
    counted = target != params.ignore_index
    label = np.where(counted, target, 0)
    position_weight = counted.astype(x.dtype) if weight is None else np.where(counted, weight[label], 0)
    return label[:, None], counted, position_weight


def _classes(weight, x):
    return weight.reshape(-1, *(1,) * (x.ndim - 2))


def _class_weight_sum(x, weight):
    return x.shape[1] if weight is None else weight.sum()


# ------------------------------------------------------------------------------------------------ elementwise
@np.errstate(all="ignore")
def mse_loss(arrays, params, train):
    x, target = arrays
    difference = x - target
    return _reduce(np.square(difference), params.reduction), difference


@np.errstate(all="ignore")
def mse_loss_backward(grad, arrays, difference, params, needs):
    return _signed(difference * (2 * _spread(grad, difference, params.reduction)), needs)


@np.errstate(all="ignore")
def l1_loss(arrays, params, train):
    x, target = arrays
    loss = x - target
    return _reduce(np.abs(loss, out=loss), params.reduction), None


@np.errstate(all="ignore")
def l1_loss_backward(grad, arrays, saved, params, needs):
    x, target = arrays
    sign = np.subtract(x > target, x < target, dtype=x.dtype)  # 0 at NaN, as in torch; np.sign keeps it
    return _signed(np.multiply(sign, _spread(grad, x, params.reduction), out=sign), needs)


def _signed(dx, needs):
    return dx if needs[0] else None, -dx if needs[1] else None


LEAST = float(np.float32(1e-12))  # torch's divisor, a float32 constant in float64 too


@np.errstate(all="ignore")
def binary_cross_entropy(arrays, params, train):
    x, target, weight = arrays
    loss = (target - 1) * np.maximum(np.log1p(-x), -100)
    loss -= target * np.maximum(np.log(x), -100)
    if weight is not None:
        loss *= weight
    return _reduce(loss, params.reduction), None


@np.errstate(all="ignore")
def binary_cross_entropy_backward(grad, arrays, saved, params, needs):
    x, target, weight = arrays
    factor = _weighted(_spread(grad, x, params.reduction), weight)
    dx = factor * ((x - target) / np.maximum((1 - x) * x, LEAST)) if needs[0] else None
    dtarget = factor * (np.log1p(-x) - np.log(x)) if needs[1] else None
    return dx, dtarget, None


@np.errstate(all="ignore")
def binary_cross_entropy_with_logits(arrays, params, train):
    x, target, weight, pos_weight = arrays
    # -log(sigmoid(x)) in two summands: the first is 0 where the loss is small, so the second keeps its digits
    linear, small = np.maximum(-x, 0), np.log1p(np.exp(-np.abs(x)))
    if pos_weight is not None:
        target_weight = 1 + (pos_weight - 1) * target
        linear *= target_weight
        small *= target_weight
    loss = (1 - target) * x
    loss += linear
    loss += small
    if weight is not None:
        loss *= weight
    return _reduce(loss, params.reduction), None


@np.errstate(all="ignore")
def binary_cross_entropy_with_logits_backward(grad, arrays, saved, params, needs):
    x, target, weight, pos_weight = arrays
    factor = _weighted(_spread(grad, x, params.reduction), weight)
    dx = dtarget = None
    if needs[0]:
        dx = sigmoid(x)
        if pos_weight is None:
            dx -= target
        else:
            dx *= 1 + (pos_weight - 1) * target
            dx -= pos_weight * target
        dx *= factor
    if needs[1]:
        if pos_weight is None:
            dtarget = -x * factor
        else:
            small = np.log1p(np.exp(-np.abs(x)))
            dtarget = factor * (pos_weight * (small + np.maximum(-x, 0)) - (small + np.maximum(x, 0)))
    return dx, dtarget, None, None


@np.errstate(all="ignore")
def kl_div(arrays, params, train):
    x, target = arrays
    if params.log_target:
        loss = np.exp(target) * (target - x)
    else:
        loss = np.where(target == 0, 0, target * np.log(target)) - target * x
    return _reduce(loss, params.reduction, kl_divisor(x, params)), None


@np.errstate(all="ignore")
def kl_div_backward(grad, arrays, saved, params, needs):
    x, target = arrays
    factor = grad if params.reduction in ("none", "sum") else grad / kl_divisor(x, params)
    dx = dtarget = None
    p = np.exp(target) if params.log_target else target
    if needs[0]:
        dx = -p * factor
    if needs[1]:
        if params.log_target:
            dtarget = factor * (p * (target - x + 1))
        else:
            dtarget = factor * (np.log(p) + p / p - x)  # p / p: NaN at 0, as in torch
    return dx, dtarget


def kl_divisor(x, params):
    return x.shape[0] if params.reduction == "batchmean" else x.size


# ------------------------------------------------------------------------------------------------ reductions
def _reduce(loss, reduction, divisor=None):
    """divisor: what a mean divides by; the number of elements where it is None."""
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / (loss.size if divisor is None else divisor)


def _spread(grad, x, reduction):
    """The gradient of each element's loss, where a mean is over all elements: an array or a scalar."""
    return grad / x.size if reduction == "mean" else grad


def _weighted(factor, weight):
    return factor if weight is None else factor * weight
