"""Keeping gradients in bounds."""

from __future__ import annotations

import math

import numpy as np

from .. import check
from ..nn import Parameter


def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False) -> float:
    """Scale all gradients together so that their norm is at most max_norm; the norm before. As torch's.

    norm_type: p of the p-norm, ``inf`` included. Raises ValueError where the norm is not finite and
    ``error_if_nonfinite`` is set, and for a negative max_norm.
    """
    max_norm = check.number("clip_grad_norm_", "max_norm", max_norm, 0)
    p = check.number("clip_grad_norm_", "norm_type", norm_type)
    gradients = _gradients(parameters)
    if p == math.inf:
        norm = max((float(np.max(np.abs(g), initial=0)) for g in gradients), default=0.0)
    elif p == 2:
        norm = math.sqrt(sum(float(np.dot(flat, flat)) for flat in (g.reshape(-1) for g in gradients)))
    else:
        norm = sum(float(np.sum(np.abs(g) ** p)) for g in gradients) ** (1 / p)
    if error_if_nonfinite and not math.isfinite(norm):
        raise ValueError(f"clip_grad_norm_: the gradients' norm is {norm}")
    scale = max_norm / (norm + 1e-6)
    if not scale >= 1:  # a NaN goes through, as in torch
        for g in gradients:
            g *= scale
    return norm


def clip_grad_value_(parameters, clip_value) -> None:
    """Clip every gradient's entries to [-clip_value, clip_value]."""
    bound = check.number("clip_grad_value_", "clip_value", clip_value, 0)
    for g in _gradients(parameters):
        np.clip(g, -bound, bound, out=g)


def _gradients(parameters):
    parameters = [parameters] if isinstance(parameters, Parameter) else parameters
    return [p.grad for p in parameters if p.grad is not None]
