"""Layers of fastdl.nn on a GPU, against the same layers over arrays."""

import copy

import numpy as np
import pytest
import torch
from cases import DEVICE, DTYPES, NAMES

import fastdl
import fastdl.functional as F
from fastdl import nn, optim

LAYERS = {
    "Linear": (lambda: nn.Linear(5, 7, activation="gelu"), (3, 5)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1), (2, 4, 11)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding="same", activation="relu"), (2, 4, 5, 6)),
    "Conv2d, reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 6)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 5, 2, 2, 1), (2, 3, 5, 4)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (2, 3, 6, 5)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(1), (2, 3, 6, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 2)),
    "LayerNorm": (lambda: nn.LayerNorm(5), (4, 5)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6), (3, 6, 4)),
    "Softmax": (lambda: nn.Softmax(1), (4, 5)),
    "Dropout": (lambda: nn.Dropout(0.4), (4, 50)),
    "GRU": (lambda: nn.GRU(5, 4, bidirectional=True), (3, 2, 5)),
    "LSTM": (lambda: nn.LSTM(5, 4, 2, batch_first=True), (2, 3, 5)),
    "GRUCell": (lambda: nn.GRUCell(5, 4), (3, 5)),
}


def random(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def tensor(a):
    return torch.from_numpy(a).to(DEVICE)


def close(got, want, bound=2e-5):
    for g, w in zip(got if isinstance(want, tuple) else (got,), want if isinstance(want, tuple) else (want,), strict=True):
        if isinstance(w, tuple):
            close(g, w, bound)
        else:
            error = np.abs(g.cpu().float().numpy() - w).max()
            assert error <= bound * max(1.0, np.abs(w).max()), error


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    make, shape = LAYERS[name]
    with nn.seeded(1):
        layer = make()
    other = copy.deepcopy(layer).to(DEVICE)
    x = random(shape)
    with fastdl.use_backend("reference"), nn.seeded(2):
        y, pullback = layer.vjp(x)
    with nn.seeded(2):
        z, tensor_pullback = other.vjp(tensor(x))
    close(z, y)
    dy = random(y[0].shape if isinstance(y, tuple) else y.shape, 3)
    with fastdl.use_backend("reference"):
        dx = pullback((dy, None) if isinstance(y, tuple) else dy)
    close(tensor_pullback((tensor(dy), None) if isinstance(y, tuple) else tensor(dy)), dx)
    for p, q in zip(layer.parameters(), other.parameters(), strict=True):
        close(q.grad, p.grad)


def network():
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3))


def test_training():
    with nn.seeded(1):
        net = network()
    other = copy.deepcopy(net).to(DEVICE)
    x, t = random((6, 2, 4, 4)), np.arange(6) % 3
    optimisers = [optim.Adam(m.parameters(), lr=0.01, eps=1e-3) for m in (net, other)]
    losses = []
    for model, optimiser, inputs, backend in zip((net, other), optimisers, ((x, t), (tensor(x), tensor(t))), ("reference", "triton"),
                                                 strict=True):
        losses.append([])
        with fastdl.use_backend(backend):
            for _ in range(3):
                y, pullback = model.vjp(inputs[0])
                loss, loss_pullback = fastdl.vjp(F.cross_entropy, y, inputs[1])
                assert pullback(loss_pullback(1.0)[0], needs=False) is None
                optimiser.step(max_norm=1.0)
                optimiser.zero_grad()
                losses[-1].append(float(loss))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=NAMES[1:])
def test_halves(dtype):
    with nn.seeded(1):
        net = network().eval()
    other = copy.deepcopy(net).to(DEVICE, dtype)
    x = random((6, 2, 4, 4))
    with fastdl.use_backend("reference"):
        want = net(x)
    y = other(tensor(x).to(dtype))
    assert y.dtype is dtype
    close(y, want, 0.02)
