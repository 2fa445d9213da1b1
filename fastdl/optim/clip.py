"""Keeping gradients in bounds."""

from __future__ import annotations

import math

import numpy as np

from .. import check
from ..nn import Parameter
from ..nn.parameter import is_tensor
from .gradients import clip_scale, gradients_norm, scale_gradients


def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False) -> float:
    """Scale all gradients together so that their norm is at most max_norm; the norm before. As torch's.

    norm_type: p of the p-norm, ``inf`` included. Raises ValueError where the norm is not finite and
    ``error_if_nonfinite`` is set, and for a negative max_norm.
    """
    max_norm = check.number("clip_grad_norm_", "max_norm", max_norm, 0)
    p = check.number("clip_grad_norm_", "norm_type", norm_type)
    gradients = _gradients(parameters)
    norm = gradients_norm(gradients, p)
    if error_if_nonfinite and not math.isfinite(norm):
        raise ValueError(f"clip_grad_norm_: the gradients' norm is {norm}")
    if (scale := clip_scale(norm, max_norm)) != 1:
        scale_gradients(gradients, scale)
    return norm


def clip_grad_value_(parameters, clip_value) -> None:
    """Clip every gradient's entries to [-clip_value, clip_value]."""
    bound = check.number("clip_grad_value_", "clip_value", clip_value, 0)
    for g in _gradients(parameters):
        g.clamp_(-bound, bound) if is_tensor(g) else np.clip(g, -bound, bound, out=g)


def _gradients(parameters):
    parameters = [parameters] if isinstance(parameters, Parameter) else parameters
    return [p.grad for p in parameters if p.grad is not None]
