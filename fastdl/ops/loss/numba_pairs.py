"""Losses of pairs of elements on vectors: the loss, its sum over each chunk, and the input's gradient times a number."""

from __future__ import annotations

from ...cpu.simd import absolute, larger, select, splat
from ...cpu.vector_math import exp, exp_nonpositive, log, log1p, sigmoid
from ..numba_maps import binary, binary_sum
from .reference import LEAST


def _mse(x, t, a, b):
    d = x - t
    return d * d


def _mse_gradient(x, t, scale, b):
    return (x - t) * (scale + scale)


def _l1(x, t, a, b):
    return absolute(x - t)


def _l1_gradient(x, t, scale, b):
    zero = splat(x, 0.0)
    return select(x > t, scale, select(x < t, -scale, zero))  # 0 at NaN, as in torch


def _bce(x, t, a, b):
    least = splat(x, -100.0)
    return (t - splat(x, 1.0)) * larger(log1p(-x), least) - t * larger(log(x), least)


def _bce_gradient(x, t, scale, b):
    return scale * ((x - t) / larger((splat(x, 1.0) - x) * x, splat(x, LEAST)))


def _logits(x, t, a, b):
    # -log(sigmoid(x)) in two summands: the first is 0 where the loss is small, so the second keeps its digits
    return ((splat(x, 1.0) - t) * x + larger(-x, splat(x, 0.0))) + log1p(exp_nonpositive(-absolute(x)))


def _logits_gradient(x, t, scale, b):
    return (sigmoid(x) - t) * scale


def _kl(x, t, a, b):
    zero = splat(x, 0.0)
    return select(t == zero, zero, t * log(t)) - t * x


def _kl_gradient(x, t, scale, b):
    return -t * scale


def _kl_of_logs(x, t, a, b):
    return exp(t) * (t - x)


def _kl_of_logs_gradient(x, t, scale, b):
    return -exp(t) * scale


_FUNCTIONS = {"mse": (_mse, _mse_gradient), "l1": (_l1, _l1_gradient), "bce": (_bce, _bce_gradient), "logits": (_logits, _logits_gradient),
              "kl": (_kl, _kl_gradient), "kl_of_logs": (_kl_of_logs, _kl_of_logs_gradient)}
EACH = {name: binary(name, loss) for name, (loss, _) in _FUNCTIONS.items()}
SUM = {name: binary_sum(f"{name}_sum", loss) for name, (loss, _) in _FUNCTIONS.items()}
GRADIENT = {name: binary(f"{name}_gradient", gradient) for name, (_, gradient) in _FUNCTIONS.items()}
