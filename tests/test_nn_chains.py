"""What a Sequential remembers to run for a form of its input, and when it must not."""

import numpy as np
import pytest

import fastdl
from fastdl import nn


@pytest.fixture(autouse=True, params=[None, "reference"], ids=["fast", "reference"])
def backend(request):
    nn.manual_seed(0)
    with fastdl.use_backend(request.param):
        yield


class Shifted(nn.Module):
    """A layer whose answer's form hangs on a value."""

    def forward(self, x):
        return x[:, :3] if x[0, 0] > 0 else x[:, :4].astype(np.float64)


def in_turn(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def test_a_sequential_follows_every_change():
    """What it runs for a form of x holds no longer than what it was made of."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Identity())
    images = [rng.standard_normal(shape).astype("f4") for shape in ((1, 1, 6, 6), (3, 1, 6, 6))]

    def check_all():
        for x in images * 3:
            np.testing.assert_allclose(model(x), in_turn(model, x), rtol=1e-5, atol=1e-6)

    check_all()
    with model[4].weight.edit() as array:
        array *= 2
    check_all()
    model[0].bias.data = np.ones(4, "f4")
    check_all()
    model[4] = nn.Linear(16, 3)
    check_all()
    model[2].kernel_size, model[2].stride = (4, 4), (4, 4)
    model[4] = nn.Linear(4, 3)
    check_all()
    model.append(nn.Softmax(1))
    check_all()
    with nn.fusion(False):
        check_all()
    inner = nn.Sequential(nn.Linear(3, 6), nn.ReLU())
    model.append(inner)
    model.append(nn.Linear(6, 2))
    check_all()
    inner[0] = nn.Linear(3, 6, dtype=np.float64)  # of another dtype, which the model's own attributes do not say
    with pytest.raises(TypeError):
        model(images[0])
    inner[0] = nn.Linear(3, 6)
    check_all()
    with fastdl.use_backend("reference"):
        check_all()


def test_a_layer_whose_answers_differ_in_form_does_not_mislead_those_behind_it():
    model = nn.Sequential(nn.Identity(), Shifted(), nn.ReLU(), nn.Flatten())
    for sign, shape, dtype in ((1, (2, 3), "f4"), (-1, (2, 4), "f8"), (1, (2, 3), "f4"), (-1, (2, 4), "f8")):
        y = model(np.full((2, 5), sign, "f4"))
        assert y.shape == shape and y.dtype == dtype and np.all(y == max(sign, 0))
