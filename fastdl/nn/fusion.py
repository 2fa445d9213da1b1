"""Layers that a Sequential runs as one.

An activation goes into the last step of the convolution or linear layer before it; on a GPU, a 2 x 2 max-pool does so as well where
no gradient is asked for.
"""

from __future__ import annotations

from .activation import ELU, LeakyReLU, ReLU, Sigmoid, Tanh
from .conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .linear import Linear
from .pool import MaxPool2d

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


# exactly these classes: a subclass may do something else
_ACTIVATIONS = {
    ReLU: lambda layer: "relu",
    LeakyReLU: lambda layer: ("leaky_relu", layer.negative_slope),
    ELU: lambda layer: ("elu", layer.alpha),
    Sigmoid: lambda layer: "sigmoid",
    Tanh: lambda layer: "tanh",
}
_TAKING = (Linear, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)


def fused(layers, pool: bool = False) -> list[tuple]:
    """(layer, options of its call) for each step. pool: whether a pooling may go into a convolution."""
    steps = []
    for layer in layers:
        activation = _ACTIVATIONS.get(type(layer)) if _enabled else None
        before, options = steps[-1] if steps else (None, {})
        if activation and not options and type(before) in _TAKING and before.activation is None:
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
