"""Fused layers: the same answers, what is fused, and no stale one."""

import copy
import pickle

import numpy as np
import pytest

import fastdl
from fastdl import nn, optim
from fastdl.nn.fusion import Folded, Pooled, fused, joined

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


def batch_norm(kind, channels, rng, **options):
    norm = kind(channels, **options).eval()
    for array in (norm.running_mean, norm.running_var):
        array[...] = rng.uniform(0.5, 2, channels)
    for p in norm.parameters():
        p.data = rng.standard_normal(channels).astype(p.dtype)
    return norm


def last(x):
    """The same array, its channels side by side in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def assert_as_unfused(model, x, tolerance=1e-5):
    got = model(x)
    with nn.fusion(False):
        want = model(x)
    assert got.shape == want.shape and got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want[np.isfinite(want)]).max(initial=0))
    return got


FOLDED = {
    "linear": (lambda o: nn.Linear(7, 6, **o), nn.BatchNorm1d, 6, (3, 7)),
    "conv1d": (lambda o: nn.Conv1d(4, 6, 3, groups=2, **o), nn.BatchNorm1d, 6, (2, 4, 9)),
    "conv2d": (lambda o: nn.Conv2d(3, 6, 3, padding="same", **o), nn.BatchNorm2d, 6, (2, 3, 8, 7)),
    "reflect": (lambda o: nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect", **o), nn.BatchNorm2d, 6, (2, 3, 8, 7)),
    "conv3d": (lambda o: nn.Conv3d(2, 3, 2, **o), nn.BatchNorm3d, 3, (2, 2, 4, 5, 6)),
    "transposed": (lambda o: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, **o), nn.BatchNorm2d, 6, (2, 4, 5, 4)),
}


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.LeakyReLU(0.3)], ids=["none", "relu", "leaky"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dtype": np.float64}], ids=["bias", "no bias", "float64"])
@pytest.mark.parametrize("case", FOLDED)
def test_batch_norm_is_folded(case, options, activation):
    make, kind, channels, shape = FOLDED[case]
    rng = np.random.default_rng(0)
    dtype = options.get("dtype", np.float32)
    model = nn.Sequential(make(options), batch_norm(kind, channels, rng, dtype=dtype), *[activation] * (activation is not None))
    assert [type(layer) for layer, _ in joined(model)] == [Folded]
    x = rng.standard_normal(shape).astype(dtype)
    assert_as_unfused(model, x)
    assert_as_unfused(model, last(x))
    assert_as_unfused(model, x[:0])


def test_a_fold_follows_every_change():
    """Each way to change a parameter or a statistic, in place too."""
    rng = np.random.default_rng(0)
    conv, norm = nn.Conv2d(3, 6, 3), batch_norm(nn.BatchNorm2d, 6, rng)
    model = nn.Sequential(conv, norm, nn.ReLU())
    x = rng.standard_normal((2, 3, 6, 6)).astype("f4")

    def scale(p):
        with p.edit() as array:
            array *= 1.5

    def step():
        y, pullback = model.vjp(x)
        pullback(y)
        optim.SGD(model.parameters(), lr=0.1).step()

    def track():
        model.train()
        model(x)
        model.eval()

    changes = [lambda: None, *[lambda p=p: scale(p) for p in model.parameters()], step, track,
               lambda: np.multiply(norm.running_mean, 3, out=norm.running_mean), lambda: norm.running_var.fill(0.7),
               lambda: setattr(norm, "running_var", np.full(6, 0.3, "f4")), lambda: setattr(norm, "eps", 0.5),
               lambda: setattr(conv, "padding", (1, 1)), lambda: setattr(conv, "weight", nn.Parameter(np.ones((6, 3, 3, 3), "f4"))),
               lambda: model.load_state_dict(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).state_dict())]
    seen = []
    for change in changes:
        change()
        seen.append(assert_as_unfused(model, x))
    assert all(a.shape != b.shape or not np.array_equal(a, b) for a, b in zip(seen[1:], seen[2:], strict=False))


def test_what_is_not_folded():
    rng = np.random.default_rng(0)

    class Mine(nn.BatchNorm2d):
        pass

    conv = nn.Conv2d(3, 6, 3)
    for norm in (nn.BatchNorm2d(6), nn.BatchNorm2d(6, track_running_stats=False).eval(), batch_norm(Mine, 6, rng), nn.BatchNorm2d(5).eval(),
                 batch_norm(nn.BatchNorm1d, 6, rng), batch_norm(nn.BatchNorm2d, 6, rng, dtype=np.float64)):
        assert [layer for layer, _ in joined([conv, norm])] == [conv, norm]
    norm = batch_norm(nn.BatchNorm2d, 6, rng)
    assert len(joined([nn.Conv2d(3, 6, 3, activation="relu"), norm])) == 2
    assert [type(layer) for layer, _ in joined([conv, norm, batch_norm(nn.BatchNorm2d, 6, rng)])] == [Folded, nn.BatchNorm2d]
    with nn.fusion(False):
        assert len(joined([conv, norm])) == 2
    model = nn.Sequential(nn.Linear(4, 5), batch_norm(nn.BatchNorm1d, 3, rng))
    assert_as_unfused(model, np.ones((2, 3, 4), "f4"))  # the norm's channels are not the layer's outputs
    folded = nn.Sequential(conv, norm, nn.LeakyReLU(0.3))
    with pytest.raises(ValueError, match="BatchNorm2d: input has 3 dimensions"):
        folded(np.ones((3, 6, 6), "f4"))
    model = nn.Sequential(nn.Linear(4, 3), batch_norm(nn.BatchNorm1d, 3, rng), nn.LeakyReLU(0.3))
    assert_as_unfused(model, rng.standard_normal((2, 3, 4)).astype("f4"))
    norm.running_var[2] = -1
    got = assert_as_unfused(nn.Sequential(conv, norm), np.ones((1, 3, 6, 6), "f4"))
    assert np.isnan(got[:, 2]).all() and np.isfinite(got[:, 3:]).all()


@pytest.mark.parametrize("layout", [np.ascontiguousarray, last])
@pytest.mark.parametrize("images", [1, 2, 5, 100])
def test_pooling_some_images_at_a_time(monkeypatch, images, layout):
    rng = np.random.default_rng(0)
    norm = batch_norm(nn.BatchNorm2d, 8, rng)
    for layers in ([nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
                   [nn.Conv2d(3, 8, 5, stride=2), norm, nn.Tanh(), nn.MaxPool2d(3, 2, 1)],
                   [nn.Conv2d(3, 8, 3), nn.MaxPool2d(2, ceil_mode=True)]):
        model = nn.Sequential(*layers)
        assert [type(layer) for layer, _ in joined(model)] == [Pooled]
        x = layout(rng.standard_normal((7, 3, 13, 12)).astype("f4"))
        x[3, 1, 2, 2] = np.nan
        cells = -(-13 // layers[0].stride[0]) * -(-12 // layers[0].stride[1])
        monkeypatch.setattr(Pooled, "CACHED", images * 8 * cells * 4)
        y = assert_as_unfused(model, x)
        assert (y.strides[1] == 4) == (layout is last)
        assert_as_unfused(model, x[:1])
        assert_as_unfused(model, x[:0])
    conv = nn.Conv2d(3, 8, 3)
    assert len(joined([conv, nn.MaxPool2d(2, return_indices=True)])) == len(joined([conv, nn.MaxPool1d(2)])) == 2
    unbatched = nn.Sequential(conv, nn.MaxPool2d(2))
    assert_as_unfused(unbatched, rng.standard_normal((3, 9, 9)).astype("f4"))


def test_changes_of_structure_are_seen():
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    x = rng.standard_normal((2, 3, 8, 8)).astype("f4")

    def drop():
        model[1] = nn.Dropout(0.5)

    for change in (lambda: None, lambda: setattr(model[2], "kernel_size", 3), lambda: setattr(model[2], "stride", (2, 2)),
                   lambda: setattr(model[2], "kernel_size", 2), lambda: model.append(nn.Tanh()),
                   lambda: setattr(model[4], "activation", "sigmoid"), lambda: model.append(nn.Linear(3, 2, bias=False)),
                   lambda: setattr(model[6], "bias", nn.Parameter(np.ones(2, "f4"))), drop, model.eval):
        change()
        if change is not drop:  # in training dropout draws
            try:
                with nn.fusion(False):
                    model(x)
            except ValueError:
                with pytest.raises(ValueError):
                    model(x)
                continue
            assert_as_unfused(model, x)
            for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                np.testing.assert_array_equal(other(x), model(x))
                with other[0].weight.edit() as array:
                    array += 1
                assert_as_unfused(other, x)


LAYERS = {
    "linear": (nn.Linear(6, 5), (4, 6)),
    "linear activation": (nn.Linear(6, 5, activation="gelu"), (4, 6)),
    "linear of more": (nn.Linear(6, 5), (2, 3, 6)),
    "linear, one row": (nn.Linear(600, 50, activation="relu"), (1, 600)),
    "linear, threads": (nn.Linear(600, 100), (30, 600)),
    "conv": (nn.Conv2d(3, 4, 3), (2, 3, 7, 6)),
    "transposed": (nn.ConvTranspose1d(3, 4, 3, stride=2), (2, 3, 7)),
    "max": (nn.MaxPool2d(2), (2, 3, 7, 6)),
    "max, unbatched": (nn.MaxPool1d(3, 2, 1), (3, 9)),
    "max, identity": (nn.MaxPool2d(1), (2, 3, 7, 6)),
    "max with indices": (nn.MaxPool2d(2, return_indices=True), (2, 3, 7, 6)),
    "average": (nn.AvgPool2d(3, 1, 1), (2, 3, 7, 6)),
    "average of all": (nn.AvgPool2d((7, 6)), (2, 3, 7, 6)),
    "adaptive": (nn.AdaptiveMaxPool3d(2), (2, 3, 4, 5, 6)),
    "norm": (nn.LPPool2d(3, 2), (2, 3, 7, 6)),
    "leaky": (nn.LeakyReLU(0.2), (3, 5)),
    "softmax": (nn.Softmax(-1), (3, 5)),
    "layer norm": (nn.LayerNorm(6), (2, 6)),
    "group norm": (nn.GroupNorm(2, 4), (2, 4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_called_again(name):
    """What a layer remembers of a call's form changes no answer, in any memory, on any backend, on any number of threads."""
    layer, shape = LAYERS[name]
    rng = np.random.default_rng(0)

    def flat(y):
        return y if isinstance(y, tuple) else (y,)

    def arrays():
        for _ in range(2):
            yield rng.standard_normal(shape).astype("f4")
        wide = rng.standard_normal((*shape[:-1], 2 * shape[-1])).astype("f4")
        yield from (wide[..., ::2], wide[..., ::-2], last(wide[..., : shape[-1]].copy()))
        packed = np.zeros(int(np.prod(shape)) * 4 + 1, "u1")
        odd = packed[1:].view("f4").reshape(shape)
        odd[...] = rng.standard_normal(shape)
        yield odd
        record = np.zeros(shape, np.dtype([("a", "u1"), ("x", "f4")]))["x"]
        record[...] = rng.standard_normal(shape)
        yield record
        fixed = rng.standard_normal(shape).astype("f4")
        fixed.flags.writeable = False
        yield fixed
        yield rng.standard_normal((0, *shape[1:])).astype("f4")[:0] if len(shape) in (2, 4) and "unbatched" not in name else fixed

    for x in arrays():
        before = x.copy()
        want = flat(layer._call(x))
        for _ in range(3):
            for a, b in zip(flat(layer(x)), want, strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.strides == b.strides and a.dtype == b.dtype and not np.shares_memory(a, x)
        np.testing.assert_array_equal(x, before)
        with fastdl.use_backend("reference"):
            for a, b in zip(flat(layer(x)), want, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        threads = fastdl.get_num_threads()
        for n in (1, 3):
            fastdl.set_num_threads(n)
            for a, b in zip(flat(layer(x)), want, strict=True):
                np.testing.assert_array_equal(a, b)
        fastdl.set_num_threads(threads)
    x = rng.standard_normal(shape).astype("f4")
    for wrong in (x.astype(">f4"), x.astype("i4"), x.tolist()):
        for _ in range(2):
            with pytest.raises(TypeError):
                layer(wrong)


def test_a_layer_called_otherwise():
    """Options of one call, attributes set in between, and a class made from a layer's."""
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype("f4")
    pool = nn.MaxPool2d(2)
    y = pool(x)
    assert isinstance(pool(x, return_indices=True), tuple) and pool(x, ceil_mode=True).shape == y.shape
    pool.kernel_size = 3
    np.testing.assert_array_equal(pool(x), fastdl.functional.max_pool2d(x, 3, 2))
    del pool.kernel_size
    with pytest.raises(AttributeError):
        pool(x)

    class Noisy(nn.Linear):
        drawn = 0

        def arguments(self, x):
            positional, options = super().arguments(x)
            Noisy.drawn += 1
            return positional, options

    layer = Noisy(8, 4)
    layer(x), layer(x)
    assert Noisy.drawn == 2
    linear = nn.Linear(8, 4)
    np.testing.assert_array_equal(linear(x, activation=["leaky_relu", 0.5]), linear(x, activation=("leaky_relu", 0.5)))
    with pytest.raises(ValueError, match="activation"):
        linear(x, activation="none such")
