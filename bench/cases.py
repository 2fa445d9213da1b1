"""What is timed: names and shapes as data, and how each library does it.

Inputs are normal random numbers, in memory that the last call touched (a warm cache where they fit). A case is checked
before it is timed: fastdl against torch in float64.
"""

from __future__ import annotations

import numpy as np

# name, kind, input shape, layer arguments
CASES = [
    ("matmul 256", "matmul", (256, 256), (256, 256)),
    ("matmul 1024", "matmul", (1024, 1024), (1024, 1024)),
    ("linear 1 x 1024, 1024", "Linear", (1, 1024), (1024, 1024)),
    ("linear 64 x 784, 512", "Linear", (64, 784), (784, 512)),
    ("conv 3x3, 1x64x56x56, 64", "Conv2d", (1, 64, 56, 56), (64, 64, 3, 1, 1)),
    ("conv 3x3, 1x128x28x28, 128", "Conv2d", (1, 128, 28, 28), (128, 128, 3, 1, 1)),
    ("conv 3x3, 4x64x56x56, 64", "Conv2d", (4, 64, 56, 56), (64, 64, 3, 1, 1)),
    ("conv 3x3, 8x128x28x28, 128", "Conv2d", (8, 128, 28, 28), (128, 128, 3, 1, 1)),
    ("conv 3x3, 8x256x14x14, 256", "Conv2d", (8, 256, 14, 14), (256, 256, 3, 1, 1)),
    ("conv 3x3, 8x512x7x7, 512", "Conv2d", (8, 512, 7, 7), (512, 512, 3, 1, 1)),
    ("conv 1x1, 1x64x56x56, 256", "Conv2d", (1, 64, 56, 56), (64, 256, 1)),
    ("conv 7x7 stride 2, 1x3x224x224, 64", "Conv2d", (1, 3, 224, 224), (3, 64, 7, 2, 3)),
    ("conv 5x5, 32x32x14x14, 64", "Conv2d", (32, 32, 14, 14), (32, 64, 5, 1, 2)),
    ("depthwise 3x3, 1x128x56x56", "Conv2d", (1, 128, 56, 56), (128, 128, 3, 1, 1, 1, 128)),
    ("transposed 5x5 stride 2, 16x128x14x14, 64", "ConvTranspose2d", (16, 128, 14, 14), (128, 64, 5, 2, 2, 1)),
    ("max_pool 2x2, 32x64x56x56", "MaxPool2d", (32, 64, 56, 56), (2,)),
    ("RNN, 64 steps, batch 1, 128", "RNN", (64, 1, 128), (128, 128)),
    ("GRU, 64 steps, batch 1, 128", "GRU", (64, 1, 128), (128, 128)),
    ("LSTM, 64 steps, batch 1, 128", "LSTM", (64, 1, 128), (128, 128)),
    ("LSTM, 64 steps, batch 32, 128", "LSTM", (64, 32, 128), (128, 128)),
]


def data(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _torch_layer(kind, arguments):
    import torch

    torch.manual_seed(0)
    return getattr(torch.nn, kind)(*arguments)


def with_torch(case, train):
    """Calls that do the case, the fastest of which counts: torch's two memory layouts."""
    import torch

    _, kind, shape, arguments = case
    x = torch.from_numpy(data(shape))
    if kind == "matmul":
        y = torch.from_numpy(data(arguments, 1))
        return [lambda: x @ y]
    calls = []
    for layout in (torch.contiguous_format, torch.channels_last)[: 2 if x.ndim == 4 else 1]:
        layer, given = _torch_layer(kind, arguments).to(memory_format=layout), x.to(memory_format=layout)

        def infer(layer=layer, given=given):
            with torch.inference_mode():
                return layer(given)

        def step(layer=layer, given=given.clone().requires_grad_(True)):
            y = layer(given)
            y = y[0] if isinstance(y, tuple) else y
            y.backward(torch.ones_like(y))

        calls.append(step if train else infer)
    return calls


def with_fastdl(case, train):
    import fastdl.functional as F
    from fastdl import nn

    _, kind, shape, arguments = case
    x = data(shape)
    if kind == "matmul":
        y = data(arguments, 1)
        np.testing.assert_allclose(F.matmul(x, y), x.astype("f8") @ y.astype("f8"), rtol=1e-3, atol=1e-3)
        return [lambda: F.matmul(x, y)]
    layer = getattr(nn, kind)(*arguments)
    _compare(layer, kind, arguments, x)

    def step():
        y, pullback = layer.vjp(x)
        pullback((np.ones_like(y[0]), None) if isinstance(y, tuple) else np.ones_like(y))

    return [step if train else lambda: layer(x)]


def _compare(layer, kind, arguments, x):
    """fastdl's layer with torch's weights gives torch's answer; a wrong answer is not timed."""
    import torch

    reference = _torch_layer(kind, arguments)
    layer.load_state_dict(reference.state_dict())
    with torch.no_grad():
        want = reference.double()(torch.from_numpy(x).double())
    got = layer(x)
    want, got = (v[0] if isinstance(v, tuple) else v for v in (want, got))
    error = np.abs(got - want.numpy()).max() / np.abs(want.numpy()).max()
    if not error < 1e-4:
        raise AssertionError(f"{kind}: relative error {error:.1e}")
