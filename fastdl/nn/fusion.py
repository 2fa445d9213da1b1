"""Layers that a Sequential runs as one.

``fused`` joins neighbours, in training and in inference: an activation goes into the last step of the convolution or linear
layer before it, and a 2 x 2 max-pool behind a two-dimensional convolution is its operator's too (on the CPU in training, on a GPU in
inference). ``joined`` goes on from there, for inference:

* a convolution (or linear layer) whose outputs a batch-norm scales and shifts by its running statistics is one convolution of
  other weights (:class:`Folded`). They are made anew when a parameter or a statistic has changed, in place too;
* a max-pool behind a convolution takes some images at a time, while they are in cache (:class:`Pooled`); one of 2 x 2 is its operator's.

Each answers as its layers one by one do, but for rounding; ``fusion(False)`` has a Sequential run them one by one.
"""

from __future__ import annotations

import copy
import math

import numpy as np

from .. import functional as F
from .activation import ELU, LeakyReLU, ReLU, Sigmoid, Tanh
from .conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .linear import Linear
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .parameter import Parameter
from .pool import MaxPool1d, MaxPool2d, MaxPool3d

_enabled = True


class fusion:  # noqa: N801 - reads as a function, works as a context manager too
    """``fusion(False)`` has every Sequential run its layers one by one; ``with fusion(False): ...`` for a while.

    The answers differ by no more than rounding (an ELU's, where it is close to 0).
    """

    def __init__(self, enabled: bool):
        global _enabled
        self.previous, _enabled = _enabled, bool(enabled)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        global _enabled
        _enabled = self.previous


def is_enabled() -> bool:
    return _enabled


# exactly these classes: a subclass may do something else
_ACTIVATIONS = {
    ReLU: lambda layer: "relu",
    LeakyReLU: lambda layer: ("leaky_relu", layer.negative_slope),
    ELU: lambda layer: ("elu", layer.alpha),
    Sigmoid: lambda layer: "sigmoid",
    Tanh: lambda layer: "tanh",
}
_CONVOLUTIONS = (Conv1d, Conv2d, Conv3d)
_TRANSPOSED = (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
_TAKING = (Linear, *_CONVOLUTIONS, *_TRANSPOSED)
_NORMS = {BatchNorm1d: (Linear, Conv1d, ConvTranspose1d), BatchNorm2d: (Conv2d, ConvTranspose2d), BatchNorm3d: (Conv3d, ConvTranspose3d)}
_POOLS = {MaxPool1d: Conv1d, MaxPool2d: Conv2d, MaxPool3d: Conv3d}


def fused(layers, pool: bool = False) -> list[tuple]:
    """(layer, options of its call) for each step. pool: whether a pooling may go into a convolution."""
    steps = []
    for layer in layers:
        activation = _ACTIVATIONS.get(type(layer)) if _enabled else None
        before, options = steps[-1] if steps else (None, {})
        if activation and not options and (type(before) in _TAKING or type(before) is Folded) and before.activation is None:
            steps[-1] = (before, {"activation": activation(layer)})
        elif pool and _enabled and "pool" not in options and type(before) is Conv2d and _is_two_by_two(layer):
            steps[-1] = (before, {**options, "pool": True})
        else:
            steps.append((layer, {}))
    return steps


def _is_two_by_two(layer) -> bool:
    pairs = (2, (2, 2))
    return (type(layer) is MaxPool2d and layer.kernel_size in pairs and layer.stride in pairs and layer.padding in (0, (0, 0), "valid")
            and layer.dilation in (1, (1, 1)) and not layer.ceil_mode and not layer.return_indices)


def joined(layers) -> list[tuple]:
    """As :func:`fused`, for inference; what it calls are layers or act as such."""
    if not _enabled:
        return fused(layers)
    folded = []
    for layer in layers:
        if folded and _folds(folded[-1], layer):
            folded[-1] = Folded(folded[-1], layer)
        else:
            folded.append(layer)
    steps = []
    for layer, options in fused(folded):
        before = steps[-1][0] if steps else None
        conv = before.layer if type(before) is Folded else before
        if type(conv) in _CONVOLUTIONS and type(conv) is _POOLS.get(type(layer)) and not layer.return_indices:
            steps[-1] = (Pooled(before, layer), steps[-1][1])
        else:
            steps.append((layer, options))
    return steps


def _folds(layer, norm):
    """Whether ``norm`` scales and shifts the outputs of ``layer`` by numbers that are known before."""
    return (
        type(layer) in _NORMS.get(type(norm), ())
        and layer.activation is None
        and not norm.training
        and norm.running_mean is not None
        and norm.num_features == (layer.out_features if type(layer) is Linear else layer.out_channels)
        and norm.running_mean.dtype == layer.weight.dtype
    )


class Folded:
    """A convolution or linear layer and the batch-norm behind it, as one layer of other weights."""

    activation = None

    def __init__(self, layer, norm):
        self.layer, self.norm = layer, norm
        self._made = (), None  # (what it was made of, the one layer)
        # the input's rank for which both are one: a batch, and before a batch-norm a linear layer's input has no other dimension
        self._rank = 2 if type(layer) is Linear else layer.ndim + 2

    def __call__(self, x, **options):
        if getattr(x, "ndim", None) == self._rank:
            return self.one()(x, **options)
        y = self.norm(self.layer(x))  # what they do with such an input is theirs to say
        if "activation" in options:
            activation = options["activation"]
            name, *parameter = (activation,) if isinstance(activation, str) else activation
            y = getattr(F, name)(y, *parameter)
        return F.max_pool2d(y, 2) if "pool" in options else y

    def run_for(self, x, options):
        """None, as :meth:`Module.run_for` may answer: the statistics are looked at in each call."""
        return None

    def one(self):
        """The layer that does what both do, as they are now."""
        layer, norm = self.layer, self.norm
        versions = [None if p is None else p.version for p in (layer.weight, layer.bias, norm.weight, norm.bias)]
        now = [norm.running_mean.tobytes(), norm.running_var.tobytes()]
        known, one = self._made
        if not known or known[1] != now or any(a is not b for a, b in zip(known[0], versions, strict=True)):
            one = copy.copy(layer)
            with np.errstate(all="ignore"):  # a variance that is none gives NaN, as it does in the batch-norm
                weight, bias = self._weights()
            vars(one).update(weight=Parameter(weight), bias=Parameter(bias))
            self._made = (versions, now), one
        return one

    def _weights(self):
        layer, norm = self.layer, self.norm
        scale = 1 / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
        if norm.weight is not None:
            scale *= norm.weight.data
        bias = ((0 if layer.bias is None else layer.bias.data) - norm.running_mean.astype(np.float64)) * scale
        if norm.bias is not None:
            bias += norm.bias.data
        weight = layer.weight.data
        if type(layer) in _TRANSPOSED:  # (in, out / groups, ...): the inputs of one group after those of another
            weight = weight.reshape(layer.groups, -1, *weight.shape[1:]) * scale.reshape(layer.groups, 1, -1, *(1,) * layer.ndim)
        else:
            weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
        return weight.reshape(layer.weight.shape).astype(layer.weight.dtype), bias.astype(layer.weight.dtype)


class Pooled:
    """A convolution and the max-pool behind it: of a batch, a few images at a time go through both while they are in cache."""

    # Bytes of the convolution's output at a time, which stay in a last-level cache beside what else is there. On two cores of Zen 5,
    # 32 x 64 x 56 x 56: 7.6 ms with 1 to 4 MB, 9.5 with 8, 10.4 all at once.
    CACHED = 4 << 20

    def __init__(self, layer, pool):
        self.layer, self.pool = layer, pool
        conv = layer.layer if type(layer) is Folded else layer
        self._joins = type(conv) is Conv2d and _is_two_by_two(pool)  # then both are one operator

    def run_for(self, x, options):
        """As :meth:`Module.run_for`; where it is all images at once."""
        if self._at_once(x) is not None:
            return None
        if self._joins:
            return self.layer.run_for(x, {**options, "pool": True})
        convolve = self.layer.run_for(x, options)
        pool = None if convolve is None else self.pool.run_for(convolve(x), {})
        return None if pool is None else lambda x: pool(convolve(x))

    def __call__(self, x, **options):
        images = self._at_once(x)
        if images is None:
            return self._both(x, options)
        y = None
        for first in range(0, len(x), images):
            part = self._both(x[first : first + images], options)
            if y is None:
                y = np.empty_like(part, shape=(len(x), *part.shape[1:]))
            y[first : first + images] = part
        return y

    def _both(self, x, options):
        return self.layer(x, pool=True, **options) if self._joins else self.pool(self.layer(x, **options))

    def _at_once(self, x):
        """How many images of a batch at a time; None where all at once."""
        conv = self.layer.layer if type(self.layer) is Folded else self.layer
        if type(x) is not np.ndarray or x.ndim != conv.ndim + 2 or len(x) < 2:
            return None
        cells = math.prod(-(-size // stride) for size, stride in zip(x.shape[2:], conv.stride, strict=True))
        images = max(1, self.CACHED // max(1, conv.out_channels * cells * x.itemsize))
        return images if images < len(x) else None
