"""Layers that a Sequential runs as one: an activation goes into the last step of the convolution or linear layer before it."""

from __future__ import annotations

from .activation import ELU, LeakyReLU, ReLU, Sigmoid, Tanh
from .conv import _ConvBase
from .linear import Linear

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


def fused(layers) -> list[tuple]:
    """(layer, options of its call) for each step."""
    steps = []
    for layer in layers:
        activation = _ACTIVATIONS.get(type(layer)) if _enabled and steps else None
        if activation and not steps[-1][1] and _takes_activation(steps[-1][0]):
            steps[-1] = (steps[-1][0], {"activation": activation(layer)})
        else:
            steps.append((layer, {}))
    return steps


def _takes_activation(layer) -> bool:
    return isinstance(layer, (Linear, _ConvBase)) and type(layer).__module__.startswith("fastdl.nn.") and layer.activation is None
