"""Depthwise convolution, read in place in either layout: no cell outside the image may be touched or count."""

import numpy as np
import pytest
import torch
from checker import assert_close, check

import fastdl
import fastdl.functional as F
from fastdl.ops.conv import numba_backend
from fastdl.ops.conv.numba_depthwise import KERNELS, LARGE

CASES = [(size, stride, pad) for size, stride in KERNELS for pad in (0, size // 2, size)]
LAYOUTS = ("planar", "channels_last")
CHANNELS = {"planar": 3, "channels_last": 19}  # an odd number of planes; more than one vector, the last not whole


def among_nan(x, layout):
    """x in this memory layout, every element beside it NaN."""
    n, c, h, w = x.shape
    if layout == "planar":
        frame = np.full((n, c, h + 4, w + 9), np.nan, x.dtype)
        inside = frame[:, :, 2 : 2 + h, 5 : 5 + w]
    else:
        frame = np.full((n, h + 2, w + 3, c + 5), np.nan, x.dtype).transpose(0, 3, 1, 2)
        inside = frame[:, 2 : 2 + c, 1 : 1 + h, 1 : 1 + w]
    inside[...] = x
    return inside


def differentiated(x, k, bias, g, **options):
    """(y, dx, dw) by torch in float64."""
    tx, tk = (torch.tensor(a.astype("f8"), requires_grad=True) for a in (x, k))
    y = torch.nn.functional.conv2d(tx, tk, torch.tensor(bias.astype("f8")), **options)
    y.backward(torch.tensor(g.astype("f8")))
    return y.detach().numpy(), tx.grad.numpy(), tk.grad.numpy()


@pytest.fixture
def only_depthwise(monkeypatch):
    """A call that another algorithm serves fails."""
    def other(*_, **__):
        raise AssertionError("not served by the depthwise kernels")

    def switch(on):
        for name in ("planes", "small_groups", "weights_from"):
            monkeypatch.setattr(numba_backend, name, other if on else kept[name])

    kept = {name: getattr(numba_backend, name) for name in ("planes", "small_groups", "weights_from")}
    monkeypatch.setattr(numba_backend, "_plans", {})
    return switch


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size,stride,pad", CASES)
def test_all_sizes(size, stride, pad, layout, dtype, only_depthwise):
    """Forward and gradients at every width and height, arrays among NaN, against float64 torch."""
    rng = np.random.default_rng(size)
    widths = (*range(1, 21), 33, 70) if layout == "planar" else (1, 2, 3, 6, 7, 15, 17, 34)
    for h, w in [(h, w) for h in (1, 2, 7, 8, 11) for w in widths]:
        if min(h, w) + 2 * pad < size or h * w == 1:
            continue
        for multiplier in (1, 2) if layout == "planar" else (1,):
            only_depthwise(multiplier == 1 and (size, stride) != LARGE)
            c = CHANNELS[layout]
            x = among_nan(rng.standard_normal((2, c, h, w)).astype(dtype), layout)
            k = rng.standard_normal((c * multiplier, 1, size, size)).astype(dtype)
            bias = rng.standard_normal(c * multiplier).astype(dtype)
            options = dict(stride=stride, padding=pad, groups=c)
            y, pullback = fastdl.vjp(F.conv2d, x, k, bias, **options)
            if y[0, 0].size == 1:
                continue  # its gradient has both layouts
            g = among_nan(rng.standard_normal(y.shape).astype(dtype), layout)
            dx, dw, _ = pullback(g)
            want = differentiated(x, k, bias, g, **options)
            assert_close(y, want[0], "sum", size * size + 1, f"{h} x {w}")
            assert_close(dx, want[1], "sum", size * size * multiplier, f"dx, {h} x {w}")
            assert_close(dw, want[2], "sum", g[:, 0].size, f"dw, {h} x {w}")


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "tanh", "sigmoid", "gelu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size,stride", KERNELS)
def test_activations(size, stride, layout, activation):
    rng = np.random.default_rng(0)
    act = getattr(torch.nn.functional, activation)
    for width in (5, 19):
        c = CHANNELS[layout]
        x = rng.standard_normal((2, c, 13, width))
        if layout == "channels_last":
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        arrays = [x, rng.standard_normal((c, 1, size, size)), rng.standard_normal(c)]
        options = dict(stride=stride, padding=size // 2, groups=c)
        check(F.conv2d, lambda *a, **o: act(torch.nn.functional.conv2d(*a, **o)), arrays, {**options, "activation": activation},
              torch_options=options, kind="transcendental", n=2 * 13 * width, backend="numba")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size,stride", KERNELS)
def test_nan_and_infinity_stay_where_they_are(size, stride, layout):
    rng = np.random.default_rng(0)
    for width in (6, 18, 40):
        x = rng.standard_normal((1, 20, 15, width)).astype("f4")
        x[0, 1, 0, 0] = np.nan
        x[0, 2, 14, width - 1] = np.inf
        x = among_nan(x, layout)
        w = rng.standard_normal((20, 1, size, size)).astype("f4")
        y = F.conv2d(x, w, stride=stride, padding=size // 2, groups=20)
        with fastdl.use_backend("reference"):
            want = F.conv2d(x, w, stride=stride, padding=size // 2, groups=20)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
        np.testing.assert_array_equal(np.isposinf(y), np.isposinf(want))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [3, 5])
def test_what_no_window_meets_is_not_in_a_weight_gradient(size, layout):
    """At stride 2 the last row and column of an even image may be nobody's: infinities there leave the gradient finite."""
    rng = np.random.default_rng(0)
    for width in (8, 14, 36, 72):
        x = rng.standard_normal((2, 20, 12, width)).astype("f4")
        x[:, :, -1] = x[..., -1] = np.inf
        x = among_nan(x, layout)
        w = rng.standard_normal((20, 1, size, size)).astype("f4")
        y, pullback = fastdl.vjp(F.conv2d, x, w, stride=2, groups=20)
        g = among_nan(rng.standard_normal(y.shape).astype("f4"), layout)
        dw = pullback(g, (False, True))[1]
        inner = x[:, :, :-1, :-1]
        assert_close(dw, differentiated(inner, w, np.zeros(20), g, stride=2, groups=20)[2], "sum", g[:, 0].size, f"width {width}")


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_number_of_threads(layout, threads):
    rng = np.random.default_rng(0)
    before = fastdl.get_num_threads()
    try:
        for images, channels, height, stride in ((1, 1, 200, 1), (3, 3, 90, 2), (1, 64, 30, 1), (9, 33, 21, 2), (2, 65, 7, 1)):
            x = among_nan(rng.standard_normal((images, channels, height, 131 if height > 7 else 7)).astype("f4"), layout)
            w = rng.standard_normal((channels, 1, 3, 3)).astype("f4")
            answers = []
            for n in (1, threads):
                fastdl.set_num_threads(n)
                y, pullback = fastdl.vjp(F.conv2d, x, w, stride=stride, padding=1, groups=channels)
                g = among_nan(np.random.default_rng(1).standard_normal(y.shape).astype("f4"), layout)
                answers.append((y, *pullback(g)))
            for one, other in zip(*answers, strict=True):
                np.testing.assert_array_equal(one, other)
    finally:
        fastdl.set_num_threads(before)
