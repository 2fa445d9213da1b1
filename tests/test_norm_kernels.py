"""The compiled normalisation at sizes that reach every loop, blocks, segments and folds; large means; threads."""

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from checker import LAYOUTS, assert_close, strided

import fastdl
import fastdl.functional as F

# more than a block of 4096 in a plane, more than a segment of pixels, odd channels, a vector and one more
SHAPES = [(3, 5, 67, 71), (2, 64, 33, 9), (2, 3, 130, 130), (5, 17, 8, 8), (1, 130, 40, 13), (300, 33), (9, 8, 2, 2), (700, 3, 1, 1)]


def data(shape, seed, dtype, mean=0.5):
    return (mean + np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def exact(f, arrays, grad):
    tensors = [None if a is None else torch.tensor(a.astype("f8", order="C"), requires_grad=True) for a in arrays]
    y = f(*tensors)
    y.backward(torch.tensor(grad.astype("f8", order="C")))
    return y.detach().numpy(), [t.grad.numpy() for t in tensors]


def compare(op, peer, arrays, n, kind="transcendental"):
    """Forward and every gradient against float64."""
    grad = data(arrays[0].shape, 9, arrays[0].dtype, 0)
    with fastdl.use_backend("numba"):
        y, pullback = op(*arrays)
        grads = [g for g in pullback(grad) if g is not None]
    want, wants = exact(peer, arrays, grad)
    assert_close(y, want, kind, n, "y")
    for i, (g, w) in enumerate(zip(grads, wants, strict=True)):
        assert_close(g, w, kind, max(n, grad.size // w.size), f"gradient {i}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(shape, dtype, layout):
    x, w, b = LAYOUTS[layout](data(shape, 0, dtype)), data(shape[1], 1, dtype), data(shape[1], 2, dtype)
    mean, var = data(shape[1], 3, dtype), 0.1 + abs(data(shape[1], 4, dtype))
    compare(lambda *a: fastdl.vjp(F.batch_norm, a[0], None, None, *a[1:], True), lambda x, w, b: T.batch_norm(x, None, None, w, b, True),
            [x, w, b], x.size // shape[1])
    compare(lambda *a: fastdl.vjp(F.batch_norm, a[0], mean, var, *a[1:]),
            lambda x, w, b: T.batch_norm(x, torch.tensor(mean.astype("f8")), torch.tensor(var.astype("f8")), w, b), [x, w, b],
            x.size // shape[1])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape,groups", [((3, 6, 67, 71), 2), ((1, 6, 67, 71), 3), ((2, 64, 33, 9), 4), ((2, 3, 130, 130), 3),
                                          ((5, 17, 8, 8), 17), ((1, 130, 40, 13), 1), ((300, 33), 3), ((9, 8, 2, 2), 2),
                                          ((70, 36, 1, 1), 2)])
def test_group_norm(shape, groups, dtype, layout):
    x, w, b = LAYOUTS[layout](data(shape, 0, dtype)), data(shape[1], 1, dtype), data(shape[1], 2, dtype)
    compare(lambda *a: fastdl.vjp(F.group_norm, a[0], groups, *a[1:]), lambda x, w, b: T.group_norm(x, groups, w, b), [x, w, b],
            x.size // shape[0] // groups)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 10000), (300, 67), (70, 4097), (1000, 8), (5, 31), (129, 3), (4, 16)])
def test_layer_norm(shape, dtype):
    x, w, b = strided(data(shape, 0, dtype)), data(shape[1], 1, dtype), data(shape[1], 2, dtype)
    eps = 1e-5 if shape[1] > 16 else 0.5  # the gradient of few values is all cancellation
    compare(lambda *a: fastdl.vjp(F.layer_norm, a[0], shape[1], *a[1:], eps), lambda x, w, b: T.layer_norm(x, shape[1:], w, b, eps),
            [x, w, b], shape[1])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mean", [1e4, -3e5])
def test_large_means_cost_no_digits(mean, layout):
    """Standard deviation 1. What x itself lost when it was rounded is not the kernel's: both sides see the rounded x."""
    x = LAYOUTS[layout](data((4, 8, 40, 40), 0, "f4", mean))
    rows = np.ascontiguousarray(x).reshape(32, 1600)
    wide = torch.tensor(x.astype("f8", order="C"))
    with fastdl.use_backend("numba"):
        for got, want in ((F.batch_norm(x, None, None, training=True), T.batch_norm(wide, None, None, training=True)),
                          (F.group_norm(x, 2), T.group_norm(wide, 2)),
                          (F.layer_norm(rows, 1600), T.layer_norm(wide.reshape(32, 1600), (1600,)))):
            np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=4e-6)
        running = np.zeros(8, "f4"), np.zeros(8, "f4")
        F.batch_norm(x, *running, training=True, momentum=1.0)
    np.testing.assert_allclose(running[0], x.mean((0, 2, 3), dtype="f8"), rtol=1e-7)
    np.testing.assert_allclose(running[1], x.var((0, 2, 3), dtype="f8", ddof=1), rtol=2e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_means_that_differ_from_sample_to_sample(layout):
    """Merging by means: the variance between samples is far larger than that within."""
    x = data((6, 4, 30, 31), 0, "f4", 0) + 1e3 * np.arange(6, dtype="f4")[:, None, None, None]
    x = LAYOUTS[layout](x)
    with fastdl.use_backend("numba"):
        got = F.batch_norm(x, None, None, training=True)
    np.testing.assert_allclose(got, T.batch_norm(torch.tensor(x.astype("f8")), None, None, training=True).numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_threads_give_the_same_bits(layout):
    x = LAYOUTS[layout](data((6, 48, 37, 19), 0, "f4"))
    w, b, rows = data(48, 1, "f4"), data(48, 2, "f4"), data((500, 48), 3, "f4")
    calls = [(F.batch_norm, (x, None, None, w, b, True)), (F.group_norm, (x, 4, w, b)), (F.layer_norm, (rows, 48, w, b))]

    def answers():
        found = []
        for f, arguments in calls:
            y, pullback = fastdl.vjp(f, *arguments)
            found += [y, *(g for g in pullback(np.cos(y)) if g is not None)]
        return found

    threads = fastdl.get_num_threads()
    with fastdl.use_backend("numba"):
        try:
            fastdl.set_num_threads(1)
            one = answers()
            for n in (2, 3, 5):
                fastdl.set_num_threads(n)
                for a, c in zip(one, answers(), strict=True):
                    np.testing.assert_array_equal(a, c)
        finally:
            fastdl.set_num_threads(threads)
