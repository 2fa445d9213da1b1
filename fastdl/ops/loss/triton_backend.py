"""Losses on a GPU: cross-entropy with class indices. The others fall through to torch's."""

from __future__ import annotations

import torch

from ...gpu.launch import launch
from ...gpu.memory import around, dense
from ..triton_rows import blocks
from . import triton_loss


def cross_entropy_supports(arrays, params):
    return "target holds probabilities" if arrays[1].is_floating_point() else None


def _scores(x):
    """x in a memory order in which its positions follow one another as the labels do: contiguous, or channels-last."""
    x = dense(x)
    return x if x.is_contiguous() or x.movedim(1, -1).is_contiguous() else x.contiguous()


def cross_entropy(arrays, params, train):
    x, target, weight = arrays
    x, target = _scores(x), target.contiguous()
    outer, n, inner = around(x, 1)
    rows = outer * inner
    loss, lse, counted = torch.empty((3, rows), dtype=torch.float32, device=x.device)
    if rows:
        config, programs = blocks("cross_entropy", x, rows, n, inner)
        launch(triton_loss.cross_entropy, (programs,), x, x, target, weight, loss, lse, counted, rows, n, inner, params.ignore_index,
               float(params.label_smoothing), WEIGHT=weight is not None, SMOOTH=params.label_smoothing != 0, **config)
    if params.reduction == "none":
        return loss.view(target.shape).to(x.dtype), (x, target, lse, None)
    divisor = counted.sum() if params.reduction == "mean" else None
    total = loss.sum()
    return (total if divisor is None else total / divisor).to(x.dtype), (x, target, lse, divisor)


def cross_entropy_backward(grad, arrays, saved, params, needs):
    x, target, lse, divisor = saved
    weight = arrays[2]
    if not needs[0]:
        return None, None, None
    dx = torch.empty_like(x)
    outer, n, inner = around(x, 1)
    rows = outer * inner
    each = params.reduction == "none"
    factor = grad.contiguous() if each else grad.float() if divisor is None else grad.float() / divisor
    smooth = params.label_smoothing != 0
    weight_sum = None
    if smooth:
        weight_sum = torch.full((), float(n), device=x.device) if weight is None else weight.float().sum()
    if rows:
        config, programs = blocks("cross_entropy", x, rows, n, inner)
        launch(triton_loss.cross_entropy_backward, (programs,), x, x, target, weight, lse, factor, weight_sum, dx, rows, n, inner,
               params.ignore_index, float(params.label_smoothing), WEIGHT=weight is not None, SMOOTH=smooth, EACH=each, **config)
    return dx, None, None
