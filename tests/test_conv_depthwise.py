"""Depthwise convolution of planar images, read in place: no cell outside the image may be touched or count."""

import numpy as np
import pytest
import torch
from checker import assert_close, check

import fastdl
import fastdl.functional as F
from fastdl.ops.conv import numba_backend
from fastdl.ops.conv.numba_depthwise import KERNELS

CASES = [(size, stride, pad) for size, stride in KERNELS for pad in (0, size // 2, size)]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("size,stride,pad", CASES)
def test_all_sizes(size, stride, pad, dtype, monkeypatch):
    """Forward and data gradient at every width and height, an image among NaN, against float64 torch."""
    served = []
    plan = numba_backend.image
    monkeypatch.setattr(numba_backend, "image", lambda *a, **o: served.append(a) or plan(*a, **o))
    monkeypatch.setattr(numba_backend, "_plans", {})
    rng = np.random.default_rng(size)
    shapes = [(h, w) for h in (1, 2, 7, 8, 11, 20) for w in (*range(1, 21), 33)]
    for h, w in shapes:
        if min(h, w) + 2 * pad < size:
            continue
        frame = np.full((2, 3, h + 4, w + 9), np.nan, dtype)
        x = frame[:, :, 2 : 2 + h, 5 : 5 + w]
        x[...] = rng.standard_normal(x.shape)
        for multiplier in (1, 2):
            k = rng.standard_normal((3 * multiplier, 1, size, size)).astype(dtype)
            bias = rng.standard_normal(3 * multiplier).astype(dtype)
            options = dict(stride=stride, padding=pad, groups=3)
            y, pullback = fastdl.vjp(F.conv2d, x, k, bias, **options)
            tx = torch.tensor(x.astype("f8"), requires_grad=True)
            want = torch.nn.functional.conv2d(tx, torch.tensor(k.astype("f8")), torch.tensor(bias.astype("f8")), **options)
            assert_close(y, want.detach().numpy(), "sum", size * size + 1, f"{h} x {w}")
            g = rng.standard_normal(y.shape).astype(dtype)
            want.backward(torch.tensor(g.astype("f8")))
            assert_close(pullback(g, (True, False, False))[0], tx.grad.numpy(), "sum", size * size * multiplier, f"gradient, {h} x {w}")
    assert len(served) > len(shapes)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "tanh", "sigmoid", "gelu"])
@pytest.mark.parametrize("size,stride", KERNELS)
def test_activations(size, stride, activation):
    rng = np.random.default_rng(0)
    act = getattr(torch.nn.functional, activation)
    arrays = [rng.standard_normal((2, 5, 13, 19)), rng.standard_normal((5, 1, size, size)), rng.standard_normal(5)]
    options = dict(stride=stride, padding=size // 2, groups=5)
    check(F.conv2d, lambda *a, **o: act(torch.nn.functional.conv2d(*a, **o)), arrays, {**options, "activation": activation},
          torch_options=options, kind="transcendental", n=size * size, backend="numba")


@pytest.mark.parametrize("size,stride", KERNELS)
def test_nan_and_infinity_stay_where_they_are(size, stride):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 15, 18)).astype("f4")
    x[0, 1, 0, 0] = np.nan
    x[0, 2, 14, 17] = np.inf
    w = rng.standard_normal((4, 1, size, size)).astype("f4")
    y = F.conv2d(x, w, stride=stride, padding=size // 2, groups=4)
    with fastdl.use_backend("reference"):
        want = F.conv2d(x, w, stride=stride, padding=size // 2, groups=4)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(y), np.isposinf(want))


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_any_number_of_threads(threads):
    rng = np.random.default_rng(0)
    before = fastdl.get_num_threads()
    try:
        for channels, height in ((1, 200), (3, 90), (64, 30)):
            x = rng.standard_normal((1, channels, height, 130)).astype("f4")
            w = rng.standard_normal((channels, 1, 3, 3)).astype("f4")
            fastdl.set_num_threads(1)
            want = F.conv2d(x, w, padding=1, groups=channels)
            fastdl.set_num_threads(threads)
            np.testing.assert_array_equal(F.conv2d(x, w, padding=1, groups=channels), want)
    finally:
        fastdl.set_num_threads(before)
