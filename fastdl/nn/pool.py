"""Pooling: maximum, average, adaptive and power-average, in one, two and three dimensions.

Shapes, rules, the forms of padding and errors at a call are the operators': :func:`fastdl.functional.max_pool2d` etc. With
``return_indices`` a layer answers ``(y, indices)`` and its pullback takes ``(dy, None)``.
"""

from __future__ import annotations

from .. import check
from ..ops.conv.geometry import read_padding
from .layer import OperatorLayer


class _Pool(OperatorLayer):
    """The options are attributes of the names in ``options``, handed to the operator as they are."""

    ndim: int
    options: tuple[str, ...]
    shown: tuple[str, ...]

    def _sizes(self, name, value, minimum):
        check.integers(type(self).__name__, name, value, self.ndim, minimum)
        return tuple(value) if isinstance(value, list) else value

    def _padding(self, value):
        read_padding(type(self).__name__, value, self.ndim)
        return tuple(value) if isinstance(value, list) else value

    def arguments(self, x):
        return (), {name: getattr(self, name) for name in self.options}

    def extra_repr(self):
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.shown)


class _MaxPool(_Pool):
    options = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    shown = options[:5]

    def __init__(self, kernel_size, stride=None, padding=0, dilation=1, return_indices=False, ceil_mode=False):
        self.kernel_size = self._sizes("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else self._sizes("stride", stride, 1)
        self.padding = self._padding(padding)
        self.dilation = self._sizes("dilation", dilation, 1)
        self.return_indices = bool(return_indices)
        self.ceil_mode = bool(ceil_mode)


class MaxPool1d(_MaxPool):
    """The largest of each window: (N, C, L) -> (N, C, L')."""

    ndim, operator, binds = 1, "max_pool1d", True


class MaxPool2d(_MaxPool):
    """The largest of each window: (N, C, H, W) -> (N, C, H', W')."""

    ndim, operator, binds = 2, "max_pool2d", True


class MaxPool3d(_MaxPool):
    """The largest of each window: (N, C, D, H, W) -> (N, C, D', H', W')."""

    ndim, operator, binds = 3, "max_pool3d", True


class _AvgPool(_Pool):
    options = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    shown = ("kernel_size", "stride", "padding")

    def __init__(self, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
        self.kernel_size = self._sizes("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else self._sizes("stride", stride, 1)
        self.padding = self._padding(padding)
        self.ceil_mode = bool(ceil_mode)
        self.count_include_pad = bool(count_include_pad)
        self.divisor_override = divisor_override
        if divisor_override is not None:
            check.integer(type(self).__name__, "divisor_override", divisor_override)
            if divisor_override == 0:
                raise ValueError(f"{type(self).__name__}: divisor_override is 0; the rule is any other integer")


class AvgPool1d(_AvgPool):
    """The mean of each window: (N, C, L) -> (N, C, L')."""

    ndim, operator, binds = 1, "avg_pool1d", True
    options = _AvgPool.options[:5]

    def __init__(self, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
        super().__init__(kernel_size, stride, padding, ceil_mode, count_include_pad)


class AvgPool2d(_AvgPool):
    """The mean of each window: (N, C, H, W) -> (N, C, H', W')."""

    ndim, operator, binds = 2, "avg_pool2d", True


class AvgPool3d(_AvgPool):
    """The mean of each window: (N, C, D, H, W) -> (N, C, D', H', W')."""

    ndim, operator, binds = 3, "avg_pool3d", True


class _AdaptivePool(_Pool):
    options = shown = ("output_size",)

    def __init__(self, output_size):
        name, n = type(self).__name__, self.ndim
        sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * n
        if len(sizes) != n:
            raise ValueError(f"{name}: output_size has {len(sizes)} entries; the rule is an integer or {n} of them")
        for size in sizes:
            if size is not None or n == 1:  # torch takes None (the input's size) in two and three dimensions
                check.integer(name, "output_size", size, 0)
        self.output_size = tuple(output_size) if isinstance(output_size, list) else output_size


class _AdaptiveMaxPool(_AdaptivePool):
    options = ("output_size", "return_indices")

    def __init__(self, output_size, return_indices=False):
        super().__init__(output_size)
        self.return_indices = bool(return_indices)


class AdaptiveAvgPool1d(_AdaptivePool):
    """The mean of each of output_size nearly equal windows: (N, C, L) -> (N, C, output_size)."""

    ndim, operator, binds = 1, "adaptive_avg_pool1d", True


class AdaptiveAvgPool2d(_AdaptivePool):
    """The mean of each of output_size nearly equal windows; None in a dimension keeps its size."""

    ndim, operator, binds = 2, "adaptive_avg_pool2d", True


class AdaptiveAvgPool3d(_AdaptivePool):
    """The mean of each of output_size nearly equal windows; None in a dimension keeps its size."""

    ndim, operator, binds = 3, "adaptive_avg_pool3d", True


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """The largest of each of output_size nearly equal windows: (N, C, L) -> (N, C, output_size)."""

    ndim, operator, binds = 1, "adaptive_max_pool1d", True


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """The largest of each of output_size nearly equal windows; None in a dimension keeps its size."""

    ndim, operator, binds = 2, "adaptive_max_pool2d", True


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """The largest of each of output_size nearly equal windows; None in a dimension keeps its size."""

    ndim, operator, binds = 3, "adaptive_max_pool3d", True


class _LPPool(_Pool):
    options = shown = ("norm_type", "kernel_size", "stride", "ceil_mode")

    def __init__(self, norm_type, kernel_size, stride=None, ceil_mode=False):
        check.number(type(self).__name__, "norm_type", norm_type)
        if not norm_type:
            raise ValueError(f"{type(self).__name__}: norm_type is 0; the rule is any other number")
        self.norm_type = norm_type
        self.kernel_size = self._sizes("kernel_size", kernel_size, 1)
        self.stride = None if stride is None else self._sizes("stride", stride, 1)
        self.ceil_mode = bool(ceil_mode)


class LPPool1d(_LPPool):
    """(sum of x^p)^(1/p) of each window, p = norm_type: (N, C, L) -> (N, C, L')."""

    ndim, operator, binds = 1, "lp_pool1d", True


class LPPool2d(_LPPool):
    """(sum of x^p)^(1/p) of each window, p = norm_type: (N, C, H, W) -> (N, C, H', W')."""

    ndim, operator, binds = 2, "lp_pool2d", True


class LPPool3d(_LPPool):
    """(sum of x^p)^(1/p) of each window, p = norm_type: (N, C, D, H, W) -> (N, C, D', H', W')."""

    ndim, operator, binds = 3, "lp_pool3d", True
