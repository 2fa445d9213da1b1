"""Convolution and transposed convolution."""

from __future__ import annotations

import numpy as np

from .. import check
from ..ops.activation import check_activation
from ..ops.conv.geometry import conv_params, read_padding
from . import init
from .layer import OperatorLayer
from .parameter import is_tensor

_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # torch's names and numpy's


class _ConvBase(OperatorLayer):
    """What both directions share: their arguments, checked once, and their weights."""

    ndim: int
    transposed = False

    def _setup(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, activation, dtype, rng):
        name, n = type(self).__name__, self.ndim
        self.in_channels = check.integer(name, "in_channels", in_channels, 1)
        self.out_channels = check.integer(name, "out_channels", out_channels, 1)
        self.kernel_size = check.integers(name, "kernel_size", kernel_size, n, 1)
        self.stride = check.integers(name, "stride", stride, n, 1)
        read_padding(name, padding, n)
        nested = isinstance(padding, (tuple, list)) and any(isinstance(p, (tuple, list)) for p in padding)
        self.padding = padding if isinstance(padding, str) or nested else check.integers(name, "padding", padding, n, 0)
        self.dilation = check.integers(name, "dilation", dilation, n, 1)
        self.groups = check.integer(name, "groups", groups, 1)
        for which, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name}: {which} is {channels}, groups is {groups}; the rule is that groups divides it")
        self.padding_mode = check.choice(name, "padding_mode", padding_mode, ("zeros",) if self.transposed else ("zeros", *_PAD_MODES))
        check_activation(name, activation)
        self.activation = activation
        channels = (in_channels, out_channels // groups) if self.transposed else (out_channels, in_channels // groups)
        self.weight, self.bias = init.fan_in_uniform((*channels, *self.kernel_size), out_channels if bias else None,
                                                     init.check_dtype(name, dtype), init.generator(rng))

    def _options(self):
        options = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        if self.activation:
            options["activation"] = self.activation
        return options

    def extra_repr(self):
        n = self.ndim
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        output_padding = getattr(self, "output_padding", (0,) * n)
        for name, value, usual in (("padding", self.padding, (0,) * n), ("dilation", self.dilation, (1,) * n),
                                   ("output_padding", output_padding, (0,) * n), ("groups", self.groups, 1),
                                   ("bias", self.bias is not None, True), ("padding_mode", self.padding_mode, "zeros")):
            if value != usual:
                parts.append(f"{name}={value}")
        if self.activation:
            parts.append(f"activation={self.activation!r}")
        return ", ".join(parts)


class _Conv(_ConvBase):
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
                 padding_mode="zeros", *, activation=None, dtype=np.float32, rng=None):
        self._setup(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, activation, dtype, rng)

    def arguments(self, x):
        options = self._options()
        if self.padding_mode != "zeros":
            options["padding"] = 0  # done before the operator
        return (self.weight, self.bias), options

    def forward(self, x, **more):
        return super().forward(x if self.padding_mode == "zeros" else self._pad(x)[0], **more)

    def run_for(self, x, options):
        return super().run_for(x, options) if self.padding_mode == "zeros" else None

    def vjp(self, x, **more):
        if self.padding_mode == "zeros":
            return super().vjp(x, **more)
        padded, pad_pullback = self._pad(x)
        y, conv_pullback = super().vjp(padded, **more)

        def pullback(dy, needs=True):
            dx = conv_pullback(dy, needs=needs)
            return pad_pullback(dx) if needs else None

        return y, pullback

    def _pad(self, x):
        """x with borders of its own values, and the pullback of that."""
        name, n = type(self).__name__, self.ndim
        if is_tensor(x):
            check.rank(name, "input", tuple(x.shape), (n + 1, n + 2))
        else:
            x = check.array(name, "input", x, (n + 1, n + 2))
        padding = read_padding(name, self.padding, n)
        pairs = conv_params(name, x.shape[-n:], self.kernel_size, self.stride, padding, self.dilation, 1, None, "auto").padding[-n:]
        room = {"reflect": lambda size: size - 1, "circular": lambda size: size}.get(self.padding_mode)
        for size, pair in zip(x.shape[-n:], pairs, strict=True):
            if room and max(pair) > room(size):
                raise ValueError(f"{name}: padding {pair} is more than a {self.padding_mode} border of {size} cells can be ({room(size)})")
        mode = _PAD_MODES[self.padding_mode]
        if is_tensor(x):
            return self._pad_tensor(x, pairs)
        padded = np.pad(x, ((0, 0),) * (x.ndim - n) + tuple(pairs), mode=mode)

        def pullback(grad):
            for axis, (before, after) in enumerate(pairs, x.ndim - n):
                size = x.shape[axis]
                source = np.pad(np.arange(size), (before, after), mode=mode)
                grad = np.moveaxis(grad, axis, 0)
                inner = grad[before : before + size].copy()
                for i in (*range(before), *range(before + size, before + size + after)):
                    inner[source[i]] += grad[i]
                grad = np.moveaxis(inner, 0, axis)
            return grad

        return padded, pullback

    def _pad_tensor(self, x, pairs):
        import torch

        flat = [n for pair in reversed(pairs) for n in pair]
        given = x.detach().requires_grad_(x.is_floating_point())
        with torch.enable_grad():
            whole = given if x.ndim == self.ndim + 2 else given[None]  # torch takes unbatched images for some of the modes only
            padded = torch.nn.functional.pad(whole, flat, mode=self.padding_mode)
            padded = padded if x.ndim == self.ndim + 2 else padded[0]
        return padded.detach(), lambda grad: torch.autograd.grad(padded, given, grad, retain_graph=True)[0]


class Conv1d(_Conv):
    """(N, C, L) or (C, L) -> (N, K, L'). See :class:`Conv2d`."""

    ndim, operator, binds = 1, "conv1d", True


class Conv2d(_Conv):
    """Convolution (cross-correlation) over images: (N, in_channels, H, W) -> (N, out_channels, H', W').

    padding: an int, one int a dimension, "valid", "same" (any stride and dilation, TensorFlow's rule), or a pair a
    dimension, ``((top, bottom), (left, right))``. padding_mode: "zeros", "reflect", "replicate", "circular".
    activation: fused into the kernel's last step ("relu", ("leaky_relu", 0.2), ...), beyond torch.
    weight (out_channels, in_channels / groups, kh, kw) and bias start uniform within 1 / sqrt(fan in).
    Shapes and errors: :func:`fastdl.functional.conv2d`.
    """

    ndim, operator, binds = 2, "conv2d", True


class Conv3d(_Conv):
    """(N, C, D, H, W) or (C, D, H, W) -> (N, K, D', H', W'). See :class:`Conv2d`."""

    ndim, operator, binds = 3, "conv3d", True


class _ConvTranspose(_ConvBase):
    transposed = True

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, groups=1, bias=True, dilation=1,
                 padding_mode="zeros", *, activation=None, dtype=np.float32, rng=None):
        self._setup(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, activation, dtype, rng)
        self.output_padding = check.integers(type(self).__name__, "output_padding", output_padding, self.ndim, 0)

    def arguments(self, x, output_size=None):
        output_padding = self.output_padding if output_size is None else self._output_padding(x, output_size)
        return (self.weight, self.bias), {**self._options(), "output_padding": output_padding}

    def _output_padding(self, x, output_size):
        """What makes the output's spatial size ``output_size``, one of the ``stride`` many that a stride leaves open."""
        name, n = type(self).__name__, self.ndim
        pairs = read_padding(name, self.padding, n)
        wanted = check.integers(name, "output_size", output_size[-n:] if isinstance(output_size, (tuple, list)) else output_size, n, 1)
        if isinstance(pairs, str):
            raise ValueError(f"{name}: output_size is {wanted}; with padding='same' the output is the input times the stride")
        least = [(size - 1) * s + d * (k - 1) + 1 - sum(p)
                 for size, s, d, k, p in zip(x.shape[-n:], self.stride, self.dilation, self.kernel_size, pairs, strict=True)]
        extra = tuple(w - m for w, m in zip(wanted, least, strict=True))
        if any(not 0 <= e < s for e, s in zip(extra, self.stride, strict=True)):
            most = [m + s - 1 for m, s in zip(least, self.stride, strict=True)]
            raise ValueError(f"{name}: output_size is {wanted}; the rule for this input is {tuple(least)} to {tuple(most)}")
        return extra


class ConvTranspose1d(_ConvTranspose):
    """(N, C, L) or (C, L) -> (N, K, L'). See :class:`ConvTranspose2d`."""

    ndim, operator, binds = 1, "conv_transpose1d", True


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution over images: (N, in_channels, H, W) -> (N, out_channels, H', W').

    Called with a second argument ``output_size`` it picks the ``output_padding`` that gives that size. padding and
    activation as in :class:`Conv2d`; weight is (in_channels, out_channels / groups, kh, kw).
    Shapes and errors: :func:`fastdl.functional.conv_transpose2d`.
    """

    ndim, operator, binds = 2, "conv_transpose2d", True


class ConvTranspose3d(_ConvTranspose):
    """(N, C, D, H, W) or (C, D, H, W) -> (N, K, D', H', W'). See :class:`ConvTranspose2d`."""

    ndim, operator, binds = 3, "conv_transpose3d", True
