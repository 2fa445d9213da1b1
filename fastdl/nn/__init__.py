"""Layers: torch.nn's names, constructor arguments and ``state_dict()`` keys, over numpy arrays or, after ``model.to("cuda")``, tensors.

    model = nn.Sequential(nn.Linear(784, 128, activation="relu"), nn.Linear(128, 10))
    y = model(x)                     # inference
    y, pullback = model.vjp(x)       # training
    dx = pullback(dy)                # and each parameter.grad has grown

    module.py       Parameter, Module, and OperatorLayer: a layer that is one operator
    linear.py conv.py pool.py rnn.py norm.py activation.py container.py      the layers
    fusion.py       what a Sequential runs as one step
    init.py         first weights, manual_seed          weights.py      save and load

Weights change in place, by an optimiser or ``load_state_dict``: run a pullback before changing what it was made with.
"""

from .activation import ELU, GELU, Dropout, LeakyReLU, LogSoftmax, ReLU, Sigmoid, Softmax, Softplus, Tanh
from .container import Sequential
from .conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .fusion import fusion
from .init import get_rng_state, manual_seed, seeded, set_rng_state
from .layer import OperatorLayer
from .linear import Embedding, Flatten, Identity, Linear, Unflatten
from .module import IncompatibleKeys, Module
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm
from .parameter import Parameter
from .pool import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    LPPool1d,
    LPPool2d,
    LPPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from .rnn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from .weights import load, save

__all__ = [
    "ELU", "GELU", "GRU", "LSTM", "RNN", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d",
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Dropout", "Embedding", "Flatten",
    "GRUCell", "GroupNorm", "Identity", "IncompatibleKeys", "LPPool1d", "LPPool2d", "LPPool3d", "LSTMCell", "LayerNorm",
    "LeakyReLU", "Linear", "LogSoftmax", "MaxPool1d", "MaxPool2d", "MaxPool3d", "Module", "OperatorLayer", "Parameter",
    "RNNCell", "ReLU", "Sequential", "Sigmoid", "Softmax", "Softplus", "Tanh", "Unflatten", "fusion", "get_rng_state", "load",
    "manual_seed", "save", "seeded", "set_rng_state",
]
