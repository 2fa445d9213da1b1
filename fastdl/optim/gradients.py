"""Norms of gradients, and the kernels that serve where Numba does."""

from __future__ import annotations

import functools
import importlib
import math

import numpy as np

from .. import op
from ..cpu import parallel
from ..op import _is_torch as is_tensor


@functools.cache
def _kernels():
    return importlib.import_module("fastdl.optim.numba_backend")


def compiled():
    """The module of compiled kernels; None where Numba cannot be had or another backend was asked for."""
    if op.current_backend() not in (None, "numba") or op._backends["numba"].missing:
        return None
    return _kernels()


def gradients_norm(gradients, p=2.0) -> float:
    """The p-norm of all gradients together."""
    if any(map(is_tensor, gradients)):
        from .tensors import norm

        return norm(gradients, p)
    if p == math.inf:
        return max((float(np.max(np.abs(g), initial=0)) for g in gradients), default=0.0)
    if p != 2:
        return sum(float(np.sum(np.abs(g) ** p)) for g in gradients) ** (1 / p)
    if compiled() is None:
        return math.sqrt(sum(float(np.dot(flat, flat)) for flat in (g.reshape(-1) for g in gradients)))
    total = 0.0
    for char, some in _by_dtype(gradients):
        rows = [np.ascontiguousarray(g) for g in some]
        sums = np.empty(sum(-(-g.size // compiled().CHUNK) for g in rows), char)
        compiled().squares[char](parallel.pool(), sums, rows, np.empty(2 * len(rows), np.int64))
        total += float(sums.sum(dtype=np.float64))
    return math.sqrt(total)


def clip_scale(norm: float, max_norm: float) -> float:
    """What gradients of that norm are multiplied by; a NaN goes through, as in torch."""
    scale = max_norm / (norm + 1e-6)
    return 1.0 if scale >= 1 else scale


def scale_gradients(gradients, scale: float) -> None:
    """Multiply every gradient in place."""
    if any(map(is_tensor, gradients)):
        for g in gradients:
            g *= scale
        return
    whole = [g for g in gradients if compiled() is not None and _is_plain(g) and g.flags.writeable]
    taken = set(map(id, whole))
    for g in gradients:
        if id(g) not in taken:
            g *= scale
    for char, some in _by_dtype(whole):
        compiled().times[char](parallel.pool(), np.empty(0, char), some, np.empty(2 * len(some), np.int64), scale)


def _is_plain(g):
    """Whether kernels take it as it is."""
    return type(g) is np.ndarray and g.flags.c_contiguous and g.dtype.char in "fd" and g.dtype.isnative


def _by_dtype(arrays):
    for char in sorted({a.dtype.char for a in arrays if a.size}):
        yield char, [a for a in arrays if a.size and a.dtype.char == char]
