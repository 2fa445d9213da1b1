"""Fused layers: the same answers, and what is fused."""

import numpy as np
import pytest

from fastdl import nn
from fastdl.nn.fusion import fused

ACTIVATION_LAYERS = [nn.ReLU(), nn.LeakyReLU(0.3), nn.ELU(1.5), nn.Sigmoid(), nn.Tanh()]


@pytest.mark.parametrize("activation", ACTIVATION_LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("layer,shape", [
    (nn.Linear(7, 5), (3, 7)),
    (nn.Conv2d(3, 5, 3, padding=1), (2, 3, 6, 5)),
    (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (2, 3, 6, 5)),
    (nn.Conv1d(8, 8, 4, groups=4), (2, 8, 9)),
    (nn.ConvTranspose2d(4, 3, 3, stride=2), (2, 4, 5, 5)),
], ids=["linear", "conv2d", "circular", "grouped", "transposed"])
def test_fusion_changes_no_answer(layer, shape, activation):
    model = nn.Sequential(layer, activation, nn.Flatten())
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype("f4")
    for p in layer.parameters():
        p.data = 0.3 * rng.standard_normal(p.data.shape).astype("f4")
    answers = []
    for enabled in (True, False):
        with nn.fusion(enabled):
            model.zero_grad()
            y, pullback = model.vjp(x)
            dx = pullback(np.cos(y))
            answers.append((model(x), y, dx, *(p.grad for p in model.parameters())))
    for a, b in zip(*answers, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())  # sums that cancel


def test_what_is_fused():
    class Mine(nn.Linear):
        pass

    relu = nn.ReLU()
    layers = [nn.Linear(2, 2), relu, nn.ReLU(), nn.Linear(2, 2, activation="tanh"), relu, Mine(2, 2), relu, nn.GELU()]
    assert [options.get("activation") for _, options in fused(layers)] == ["relu", None, None, None, None, None, None]
    with nn.fusion(False):
        assert len(fused(layers)) == len(layers)
    assert len(fused(layers)) == 7
