"""Losses: cross_entropy, nll_loss, mse_loss, l1_loss, binary_cross_entropy(_with_logits), kl_div."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ... import check
from ...op import Call, operator

_REDUCTIONS = ("none", "mean", "sum")


class LossParams(NamedTuple):
    reduction: str


class ClassLossParams(NamedTuple):
    ignore_index: int
    reduction: str
    label_smoothing: float = 0.0


class KlDivParams(NamedTuple):
    reduction: str  # "batchmean" as well
    log_target: bool


# ------------------------------------------------------------------------------------------------ classes
@operator("loss", "cross_entropy", "input target weight")
def cross_entropy(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The negative log of the softmax of ``input`` at the target class. As :func:`torch.nn.functional.cross_entropy`.

    input: scores (not normalised), (C,), (N, C) or (N, C, d1, ...).
    target: class indices, any integer dtype, (), (N,) or (N, d1, ...), each from 0 to C - 1 or ignore_index; or class
    probabilities, input's dtype and shape.
    weight: (C,), a factor for each class, or None. ignore_index: positions of this class index count for nothing.
    reduction: "none"; "sum"; "mean", which divides by the summed weights of the targets (all ignored: NaN), or for
    probabilities by the number of positions. label_smoothing: how much of each target, from 0 to 1, is spread evenly
    over the classes.
    Returns a scalar (a numpy float of input's dtype), or for "none" the shape of class indices.

    Gradients: input; target and weight where target holds probabilities, as in torch.

    Raises TypeError (a dtype not named above) or ValueError (shapes that do not fit, no classes, a class index out of
    range, an ignore_index of 0 or more with probabilities, an unknown reduction, label_smoothing out of range).
    Source: Szegedy et al., "Rethinking the Inception architecture", CVPR 2016 (label smoothing).
    """
    op = "cross_entropy"
    check.choice(op, "reduction", reduction, _REDUCTIONS)
    smoothing = check.number(op, "label_smoothing", label_smoothing, 0, 1)
    ignore = check.integer(op, "ignore_index", ignore_index)
    params = ClassLossParams(ignore, reduction, smoothing)
    x, w, channels = _scores(op, input, weight)
    if not check.is_float(target):
        return _class_call(op, x, target, w, channels, params)
    t = check.array(op, "target", target)
    check.same_dtype(op, "target", t, "input", x)
    if t.shape != x.shape:
        raise ValueError(f"{op}: target has shape {t.shape}, input has {x.shape}; the rule for probabilities is the same shape")
    if ignore >= 0:
        raise ValueError(f"{op}: ignore_index is {ignore} and target holds probabilities; the rule is class indices for an ignore_index")
    if x.ndim == 1:
        return Call((x[None], t[None], w), params, () if reduction == "none" else None)
    return Call((x, t, w), params)


@operator("loss", "nll_loss", "input target weight")
def nll_loss(input, target, weight=None, ignore_index=-100, reduction="mean"):
    """Minus ``input`` at the target class. As :func:`torch.nn.functional.nll_loss`.

    input: log-probabilities, (C,), (N, C) or (N, C, d1, ...).
    target: class indices, any integer dtype, (), (N,) or (N, d1, ...), each from 0 to C - 1 or ignore_index.
    weight: (C,), a factor for each class, or None. ignore_index: positions of this class index count for nothing.
    reduction: "none"; "sum"; "mean", which divides by the summed weights of the targets (all ignored: NaN).
    Returns a scalar (a numpy float of input's dtype), or for "none" the shape of target.

    Gradients: input only, as in torch.

    Raises TypeError (a dtype not named above) or ValueError (shapes that do not fit, no classes, a class index out of
    range, an unknown reduction).
    """
    op = "nll_loss"
    params = ClassLossParams(check.integer(op, "ignore_index", ignore_index), check.choice(op, "reduction", reduction, _REDUCTIONS))
    x, w, channels = _scores(op, input, weight)
    return _class_call(op, x, target, w, channels, params)


def _scores(op, input, weight):
    x = check.array(op, "input", input)
    if x.ndim == 0:
        raise ValueError(f"{op}: input has 0 dimensions; the rule is (C,), (N, C) or (N, C, d1, ...)")
    channels = x.shape[0] if x.ndim == 1 else x.shape[1]
    if channels == 0:
        raise ValueError(f"{op}: input has 0 classes, shape {x.shape}; the rule is at least one")
    if weight is not None:
        weight = check.array(op, "weight", weight)
        check.same_dtype(op, "weight", weight, "input", x)
        if weight.shape != (channels,):
            raise ValueError(f"{op}: weight has shape {weight.shape}, input has {channels} classes; the rule is ({channels},)")
    return x, weight, channels


def _class_call(op, x, target, weight, channels, params):
    """The call for class indices: input (N, C, ...), target int64 (N, ...) in range or ignore_index."""
    t = check.array(op, "target", target, kinds="i")
    shape = x.shape[:1] + x.shape[2:] if x.ndim > 1 else ()
    if t.shape != shape:
        raise ValueError(f"{op}: target has shape {t.shape}, input has {x.shape}; the rule for class indices is {shape}")
    if not check.on_device(t) and not check.all_below(t, channels):
        bad = ((t < 0) | (t >= channels)) & (t != params.ignore_index)
        if bad.any():
            raise ValueError(f"{op}: target contains {t[bad][0]}, input has {channels} classes; "
                             f"the rule is 0 to {channels - 1}, or ignore_index ({params.ignore_index})")
    t = t.astype(np.int64, copy=False)
    if x.ndim == 1:
        return Call((x[None], t[None], weight), params, () if params.reduction == "none" else None)
    return Call((x, t, weight), params)


# ------------------------------------------------------------------------------------------------ elementwise
@operator("loss", "mse_loss", "input target", by_form=True)
def mse_loss(input, target, reduction="mean"):
    """``(input - target)**2``. As :func:`torch.nn.functional.mse_loss`, but shapes that differ are an error, not a warning.

    input, target: the same shape, any. reduction: "none", "mean" (NaN for no elements) or "sum".
    Returns a scalar (a numpy float of input's dtype), or for "none" the shape of input. Gradients: input and target.

    Raises TypeError (not float32 or float64, two dtypes) or ValueError (two shapes, an unknown reduction).
    """
    return _pair_call("mse_loss", input, target, LossParams(check.choice("mse_loss", "reduction", reduction, _REDUCTIONS)))


@operator("loss", "l1_loss", "input target", by_form=True)
def l1_loss(input, target, reduction="mean"):
    """``abs(input - target)``. As :func:`torch.nn.functional.l1_loss`, but shapes that differ are an error, not a warning.

    input, target: the same shape, any. reduction: "none", "mean" (NaN for no elements) or "sum".
    Returns a scalar (a numpy float of input's dtype), or for "none" the shape of input. Gradients: input and target,
    0 where they are equal.

    Raises TypeError (not float32 or float64, two dtypes) or ValueError (two shapes, an unknown reduction).
    """
    return _pair_call("l1_loss", input, target, LossParams(check.choice("l1_loss", "reduction", reduction, _REDUCTIONS)))


@operator("loss", "binary_cross_entropy", "input target weight")
def binary_cross_entropy(input, target, weight=None, reduction="mean"):
    """``-weight * (target * log(input) + (1 - target) * log(1 - input))``. As :func:`torch.nn.functional.binary_cross_entropy`.

    Logarithms are cut off at -100, so the loss is finite; the gradient of input divides by no less than 1e-12.

    input, target: probabilities, the same shape, any. weight: broadcasts to that shape, or None.
    reduction: "none", "mean" (by the number of elements; NaN for none) or "sum".
    Returns a scalar (a numpy float of input's dtype), or for "none" the shape of input. Gradients: input and target.

    Raises TypeError (not float32 or float64, two dtypes) or ValueError (two shapes, a weight that does not broadcast, an
    unknown reduction, an input or target that is not within 0 to 1, NaN included).
    """
    op = "binary_cross_entropy"
    call = _pair_call(op, input, target, LossParams(check.choice(op, "reduction", reduction, _REDUCTIONS)))
    for name, value in zip(("input", "target"), call.arrays, strict=True):
        if not check.on_device(value) and value.size and not check.all_within(value, 0, 1):
            first = value[~((value >= 0) & (value <= 1))][0]
            raise ValueError(f"{op}: {name} contains {first}; the rule is 0 to 1")
    return call._replace(arrays=(*call.arrays, _broadcast(op, "weight", weight, call.arrays[0])))


@operator("loss", "binary_cross_entropy_with_logits", "input target weight pos_weight", by_form=True)
def binary_cross_entropy_with_logits(input, target, weight=None, reduction="mean", pos_weight=None):
    """``binary_cross_entropy(sigmoid(input), target, weight)`` without its loss of digits.

    As :func:`torch.nn.functional.binary_cross_entropy_with_logits`:
    ``weight * ((1 - target) * input + (1 + (pos_weight - 1) * target) * (log(1 + exp(-abs(input))) + max(-input, 0)))``.

    input: logits, any shape. target: the same shape, usually within 0 to 1. weight, pos_weight: broadcast to that
    shape, or None; pos_weight is the factor of the target's term alone. reduction: "none", "mean" (by the number of
    elements; NaN for none) or "sum".
    Returns a scalar (a numpy float of input's dtype), or for "none" the shape of input. Gradients: input and target.

    Raises TypeError (not float32 or float64, two dtypes) or ValueError (two shapes, a weight or pos_weight that does not
    broadcast, an unknown reduction).
    """
    op = "binary_cross_entropy_with_logits"
    call = _pair_call(op, input, target, LossParams(check.choice(op, "reduction", reduction, _REDUCTIONS)))
    return call._replace(arrays=(*call.arrays, _broadcast(op, "weight", weight, call.arrays[0]),
                                 _broadcast(op, "pos_weight", pos_weight, call.arrays[0])))


@operator("loss", "kl_div", "input target", by_form=True)
def kl_div(input, target, reduction="mean", log_target=False):
    """``target * (log(target) - input)``, the pointwise Kullback-Leibler divergence. As :func:`torch.nn.functional.kl_div`.

    input: log-probabilities, any shape. target: the same shape, probabilities, or their logarithms where log_target.
    reduction: "none", "sum", "mean" (by the number of elements, which is not the divergence) or "batchmean" (by the
    first size, which is).
    Returns a scalar (a numpy float of input's dtype), or for "none" the shape of input. Gradients: input and target; the
    target's is NaN at a probability of 0, as in torch.

    Raises TypeError (not float32 or float64, two dtypes) or ValueError (two shapes, an unknown reduction).
    """
    check.choice("kl_div", "reduction", reduction, (*_REDUCTIONS, "batchmean"))
    return _pair_call("kl_div", input, target, KlDivParams(reduction, bool(log_target)))


def _pair_call(op, input, target, params):
    """Two arrays of one dtype and shape; kernels see at least one dimension."""
    x = check.array(op, "input", input)
    t = check.array(op, "target", target)
    check.same_dtype(op, "target", t, "input", x)
    if t.shape != x.shape:
        raise ValueError(f"{op}: target has shape {t.shape}, input has {x.shape}; the rule is the same shape")
    if x.ndim:
        return Call((x, t), params)
    return Call((x.reshape(1), t.reshape(1)), params, () if params.reduction == "none" else None)


def _broadcast(op, name, value, x):
    if value is None:
        return None
    value = check.array(op, name, value)
    check.same_dtype(op, name, value, "input", x)
    try:
        return check.broadcast_to(value, x.shape)
    except ValueError:
        raise ValueError(f"{op}: {name} has shape {value.shape}, input has {x.shape}; the rule is that it broadcasts to that") from None
