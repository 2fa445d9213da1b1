"""Normalisation: over the batch, over a sample's features, over groups of its channels."""

from __future__ import annotations

import numpy as np

from .. import check
from . import init
from .layer import OperatorLayer
from .parameter import Parameter, gradient_lock, is_tensor


def _affine(shape, weight: bool, bias: bool, dtype):
    return Parameter(np.ones(shape, dtype)) if weight else None, Parameter(np.zeros(shape, dtype)) if bias else None


class _BatchNorm(OperatorLayer):
    operator = "batch_norm"
    ndims: tuple[int, ...]

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, *, bias=True, dtype=np.float32):
        name = type(self).__name__
        self.num_features = check.integer(name, "num_features", num_features, 1)
        self.eps = check.number(name, "eps", eps, 0)
        self.momentum = None if momentum is None else check.number(name, "momentum", momentum)
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        dtype = init.check_dtype(name, dtype)
        self.weight, self.bias = _affine(num_features, affine, affine and bias, dtype)
        self.register_buffer("running_mean", np.zeros(num_features, dtype) if track_running_stats else None)
        self.register_buffer("running_var", np.ones(num_features, dtype) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", np.array(0, np.int64) if track_running_stats else None)

    def arguments(self, x, statistics=None):
        if is_tensor(x):  # the operator checks the rest
            check.rank(type(self).__name__, "input", tuple(x.shape), self.ndims)
        else:
            check.array(type(self).__name__, "input", x, self.ndims)
        if self.training or self.running_mean is None:
            return (*(statistics or (None, None)), self.weight, self.bias), {"training": True, "eps": self.eps, "momentum": 1.0}
        return (self.running_mean, self.running_var, self.weight, self.bias), {"eps": self.eps}

    def forward(self, x):
        statistics = self._new_statistics()
        y = super().forward(x, statistics)
        self._track(x, statistics)
        return y

    def vjp(self, x):
        statistics = self._new_statistics()
        y, pullback = super().vjp(x, statistics)
        self._track(x, statistics)
        return y, pullback

    def _new_statistics(self):
        """Where the operator writes this batch's mean and variance (a momentum of 1 makes them just that)."""
        if not self.training or self.running_mean is None:
            return None
        if is_tensor(self.running_mean):
            return self.running_mean.new_zeros(self.num_features), self.running_var.new_zeros(self.num_features)
        return np.zeros_like(self.running_mean), np.zeros_like(self.running_var)

    def _track(self, x, statistics):
        """Take a batch's statistics into the running ones, safe from several threads."""
        if statistics is None:
            return
        with gradient_lock():
            self.num_batches_tracked[...] += 1
            if 0 not in x.shape:
                momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                for running, new in zip((self.running_mean, self.running_var), statistics, strict=True):
                    running *= 1 - momentum
                    running += momentum * new

    def extra_repr(self):
        return (f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, bias={self.bias is not None}, "
                f"track_running_stats={self.track_running_stats}")


class BatchNorm1d(_BatchNorm):
    """(N, C) or (N, C, L), each channel to mean 0 and variance 1. See :class:`BatchNorm2d`."""

    ndims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """(N, C, H, W), each channel to mean 0 and variance 1, then scaled and shifted: weight starts as ones, bias as zeros.

    In training (``layer.training``) a batch is normalised by its own statistics, which also enter running_mean and
    running_var with weight ``momentum`` (None: an average over all batches so far), at a plain call as at ``vjp``, as in
    torch. In evaluation, the running ones are used; without ``track_running_stats``, the batch's own always.
    Source: S. Ioffe, C. Szegedy, "Batch normalization" (2015).
    """

    ndims = (4,)


class BatchNorm3d(_BatchNorm):
    """(N, C, D, H, W), each channel to mean 0 and variance 1. See :class:`BatchNorm2d`."""

    ndims = (5,)


class LayerNorm(OperatorLayer):
    """Each sample to mean 0 and variance 1 over its last dimensions, then scaled and shifted: (N, ..., normalized_shape).

    weight starts as ones, bias as zeros; neither exists without ``elementwise_affine``.
    Source: J. L. Ba, J. R. Kiros, G. Hinton, "Layer normalization" (2016).
    """

    operator, binds = "layer_norm", True

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, *, dtype=np.float32):
        shape = normalized_shape if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
        self.normalized_shape = tuple(check.integer("LayerNorm", "normalized_shape", n, 1) for n in shape)
        if not shape:
            raise ValueError("LayerNorm: normalized_shape is empty; the rule is at least one size")
        self.eps = check.number("LayerNorm", "eps", eps, 0)
        self.elementwise_affine = bool(elementwise_affine)
        dtype = init.check_dtype("LayerNorm", dtype)
        self.weight, self.bias = _affine(self.normalized_shape, elementwise_affine, elementwise_affine and bias, dtype)

    def arguments(self, x):
        return (self.normalized_shape, self.weight, self.bias), {"eps": self.eps}

    def extra_repr(self):
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"


class GroupNorm(OperatorLayer):
    """Each sample's channels, in num_groups groups, to mean 0 and variance 1, then scaled and shifted: (N, num_channels, ...).

    weight starts as ones, bias as zeros; neither exists without ``affine``. Source: Y. Wu, K. He, "Group normalization" (2018).
    """

    operator, binds = "group_norm", True

    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True, *, bias=True, dtype=np.float32):
        self.num_groups = check.integer("GroupNorm", "num_groups", num_groups, 1)
        self.num_channels = check.integer("GroupNorm", "num_channels", num_channels, 1)
        if num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_channels is {num_channels}, num_groups is {num_groups}; the rule is that they divide it")
        self.eps = check.number("GroupNorm", "eps", eps, 0)
        self.affine = bool(affine)
        self.weight, self.bias = _affine(num_channels, affine, affine and bias, init.check_dtype("GroupNorm", dtype))

    def arguments(self, x):
        return (self.num_groups, self.weight, self.bias), {"eps": self.eps}

    def extra_repr(self):
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, bias={self.bias is not None}"
