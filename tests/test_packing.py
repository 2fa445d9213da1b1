"""Prepared weights: the same answers, and never a stale one."""

import gc
import weakref

import numpy as np
import pytest

import fastdl
import fastdl.functional as F
from fastdl import nn, optim


def test_no_stale_answer_after_any_change():
    """A layer whose kernel keeps its transformed weight, after each way to change that weight."""
    x = np.random.default_rng(0).standard_normal((1, 16, 40, 40)).astype("f4")
    layer = nn.Conv2d(16, 16, 3, padding=1)

    def fresh():
        return F.conv2d(x, np.array(layer.weight.data), np.array(layer.bias.data), padding=1)

    def edit():
        with layer.weight.edit() as array:
            array *= 2

    def step():
        y, pullback = layer.vjp(x)
        pullback(y)
        optim.SGD(layer.parameters(), lr=0.1).step()

    for change in (lambda: None, edit, lambda: setattr(layer.weight, "data", layer.weight.data + 1), step,
                   lambda: layer.load_state_dict(nn.Conv2d(16, 16, 3).state_dict()), lambda: layer.weight.grad.fill(0)):
        change()
        np.testing.assert_allclose(layer(x), fresh(), rtol=1e-3, atol=1e-3 * abs(fresh()).max())
    assert layer.weight._owner.forms, "the case no longer keeps anything: choose a larger one"


def test_pack():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 16, 40, 40)).astype("f4"), rng.standard_normal((16, 16, 3, 3)).astype("f4")
    packed = fastdl.pack(w)
    want = F.conv2d(x, w, padding=1)
    w[...] = 0
    for _ in range(2):
        np.testing.assert_allclose(F.conv2d(x, packed, padding=1), want, atol=1e-3)
    np.testing.assert_allclose(F.conv2d(x, packed[:5], padding=1), want[:, :5], atol=1e-3)
    np.testing.assert_allclose(F.conv2d(x, packed[::-1], padding=1), want[:, ::-1], atol=1e-3)
    with pytest.raises(ValueError, match="read-only"):
        packed[0] = 1
    with pytest.raises(TypeError, match="pack: weight must be a numpy array"):
        fastdl.pack([1.0])


def test_packed_weights_are_freed():
    """Also where a kernel reads the weight as it lies, so that its form of it is a view."""
    rng = np.random.default_rng(0)
    for x, shape, f in [((1, 1, 8, 8), (8, 1, 5, 5), F.conv2d), ((2, 40), (30, 40), F.linear), ((1, 16, 40, 40), (16, 16, 3, 3), F.conv2d)]:
        packed = fastdl.pack(rng.standard_normal(shape).astype("f4"))
        for _ in range(2):
            f(rng.standard_normal(x).astype("f4"), packed)
        owner = weakref.ref(packed.base)
        del packed
        gc.collect()
        assert owner() is None
