"""The training loop: it learns, stops early, goes on, and says what went wrong."""

import copy
import functools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.data import Batches, load_digits8x8, train_test_split
from fastdl.train import History, accuracy, evaluate, fit

X = np.random.default_rng(0).standard_normal((64, 4)).astype("f4")
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)


@pytest.fixture(autouse=True)
def reference():
    nn.manual_seed(0)
    with fastdl.use_backend("reference"):
        yield


def small(lr=0.1, **options):
    model = nn.Sequential(nn.Linear(4, 8, activation="relu"), nn.Dropout(0.1), nn.Linear(8, 2))
    return model, optim.Adam(model.parameters(), lr=lr, **options)


quiet = functools.partial(fit, loss=F.cross_entropy, progress=False)


def test_a_small_cnn_learns_digits():
    x, x_test, y, y_test = train_test_split(*load_digits8x8(), test_size=300, stratify=load_digits8x8()[1])
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, activation="relu"), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    history = quiet(model, Batches(x, y, batch_size=64), optimizer=optimizer, epochs=10, validation=(x_test, y_test))
    assert history.val_accuracy[-1] > 0.92 and history.loss[-1] < history.loss[0] / 4
    assert len(history) == 10 and history.best_epoch is None and not model.training
    np.testing.assert_allclose(evaluate(model, (x_test, y_test), loss=F.cross_entropy), (history.val_loss[-1], history.val_accuracy[-1]))
    assert accuracy(model(x_test), y_test) == pytest.approx(history.val_accuracy[-1])


def test_means_are_over_rows():
    model, optimizer = small(lr=0.0)
    model[1].p = 0.0
    history = quiet(model, Batches(X, Y, batch_size=60), optimizer=optimizer, epochs=1, validation=Batches(X, Y, batch_size=7))
    want = float(F.cross_entropy(model(X), Y))
    assert history.loss[0] == pytest.approx(want, rel=1e-5) and history.val_loss[0] == pytest.approx(want, rel=1e-5)
    assert history.accuracy[0] == pytest.approx(accuracy(model(X), Y))


def test_early_stopping_restores_the_best_weights():
    model, optimizer = small(lr=0.03)
    seen = []

    class Spy(optim.Schedule):
        def lr(self, base, group):
            if self.last_epoch == 3:
                base = 5.0  # ruins the model from the fourth epoch on
            if self.last_epoch:
                seen.append({k: v.copy() for k, v in model.state_dict().items()})
            return base

    history = quiet(model, Batches(X, Y, batch_size=16), optimizer=optimizer, epochs=50, validation=(X, Y), schedule=Spy(optimizer),
                    patience=3)
    assert history.best_epoch == int(np.argmin(history.val_loss)) and len(history) == history.best_epoch + 1 + 3 < 50
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, seen[history.best_epoch][name])
    assert evaluate(model, (X, Y), loss=F.cross_entropy)[0] == pytest.approx(min(history.val_loss))


def test_a_resumed_run_is_the_same_run():
    whole, optimizer = small()
    whole[1].p = 0.0
    model, again = copy.deepcopy(whole), None
    quiet(whole, Batches(X, Y, batch_size=16), optimizer=optimizer, epochs=4)
    again = optim.Adam(model.parameters(), lr=0.1)
    history = quiet(model, Batches(X, Y, batch_size=16), optimizer=again, epochs=2)
    third = optim.Adam(model.parameters(), lr=0.1)
    third.load_state_dict(again.state_dict())
    history = History.from_json(history.to_json())
    history = quiet(model, Batches(X, Y, batch_size=16), optimizer=third, epochs=4, history=history)
    assert len(history) == 4
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    x = X.copy()
    x[40] = np.nan
    model, optimizer = small()
    before = None

    class Watch(Batches):
        def __iter__(self):
            nonlocal before
            for i, batch in enumerate(super().__iter__()):
                if i == 2:
                    before = [p.data.copy() for p in model.parameters()]
                yield batch

    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 0, batch 2"):
        quiet(model, Watch(x, Y, batch_size=16, shuffle=False), optimizer=optimizer, epochs=3)
    for p, b in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.data, b)


def test_bad_data_are_named():
    for inputs, target, what in (((X, X.copy()), Y, "input 1"), ((X,), X[:, :1].copy(), "target")):
        (inputs[1] if len(inputs) > 1 else target)[20, 0] = np.nan
        model = Pair() if len(inputs) > 1 else nn.Linear(4, 1)
        with pytest.raises(FloatingPointError, match=f"batch 1 .* {what} holds NaN or infinity, first in row 4 of the batch"):
            fit(model, Batches(*inputs, target, batch_size=16, shuffle=False), loss=F.cross_entropy if len(inputs) > 1 else F.mse_loss,
                optimizer=optim.SGD(model.parameters()), epochs=1, progress=False)
    x = X.copy()
    x[20, 0] = np.nan  # in the validation's data: early stopping would wait for a loss below NaN, and keep no weights at all
    model, optimizer = small()
    with pytest.raises(FloatingPointError, match=r"evaluate: the loss is nan in batch 0 .* input 0 holds NaN or infinity, first in row 20"):
        quiet(model, Batches(X, Y, batch_size=16), optimizer=optimizer, epochs=1, validation=(x, Y), patience=1)
    assert model.training  # as it was before evaluate
    model, optimizer = small(lr=1e20)
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="The data are finite: try a lower learning rate"):
        quiet(model, Batches(X * 1e20, Y, batch_size=16), optimizer=optimizer, epochs=9)


class Pair(nn.Module):
    """A model of two inputs."""

    def __init__(self):
        self.layer = nn.Linear(4, 2)

    def forward(self, a, b):
        return self.layer(a + b)

    def vjp(self, a, b):
        return self.layer.vjp(a + b)


def test_a_batch_of_one_row_with_batch_norm():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = optim.SGD(model.parameters())
    with pytest.raises(ValueError, match=r"fit: batch 4 of epoch 0 has one row: batch_norm: .* Batches\(..., drop_last=True\) leaves"):
        quiet(model, Batches(np.concatenate([X, X[:1]]), np.append(Y, 0), batch_size=16), optimizer=optimizer, epochs=1)
    quiet(model, Batches(X, Y, batch_size=16), optimizer=optimizer, epochs=1)


@pytest.mark.parametrize("label", [2, -1])
def test_labels_out_of_range(label):
    model, optimizer = small()
    with pytest.raises(ValueError, match=f"cross_entropy: target contains {label}, input has 2 classes"):
        quiet(model, Batches(X, np.where(np.arange(64) == 50, label, Y), batch_size=16), optimizer=optimizer, epochs=1)


def test_penalty_and_label_smoothing_take_part():
    norms = []
    for options in ({}, {"penalty": 0.1}, {"loss_options": {"label_smoothing": 0.3}}):
        nn.manual_seed(0)
        model, optimizer = small()
        if "penalty" in options:
            options = {"penalty": optim.Penalty(model.parameters(), l2=0.1)}
        quiet(model, Batches(X, Y, batch_size=16), optimizer=optimizer, epochs=10, **options)
        norms.append(sum(float(np.square(p.data).sum()) for p in model.parameters()))
    assert norms[1] < norms[0] / 2 and norms[2] < norms[0]


def test_accuracy_of_mixed_labels():
    y = np.array([[1, 0], [0, 1], [1, 0]], "f4")
    assert accuracy(y, np.array([[0.7, 0.3], [0.6, 0.4], [0.9, 0.1]], "f4")) == accuracy(y, np.array([0, 0, 0])) == pytest.approx(2 / 3)


def test_regression_schedule_and_clipping():
    model = nn.Linear(4, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.2)
    data = Batches(X, X[:, :1] * 3, batch_size=16)
    schedule = optim.StepLR(optimizer, 5)
    history = fit(model, data, loss=F.mse_loss, optimizer=optimizer, epochs=20, schedule=schedule, clip_norm=1.0, progress=False)
    assert history.accuracy[-1] is None and history.val_loss[-1] is None and history.loss[-1] < history.loss[0] / 10
    np.testing.assert_allclose(history.lr[::5], [0.2, 0.02, 0.002, 0.0002])
    names = functools.partial(evaluate, model, (X, X[:, :1]), loss=F.mse_loss)
    assert names(metric=lambda y, t: 4.0)[1] == 4.0 and names(metric=None)[1] is None
    assert names(loss_options={"reduction": "sum"})[0] > names()[0]


def test_modes_are_put_back():
    model, _ = small()
    model[1].eval()
    evaluate(model, (X, Y), loss=F.cross_entropy)
    assert model.training and model[0].training and not model[1].training


def test_progress(capsys, monkeypatch):
    model, optimizer = small()
    fit(model, Batches(X, Y, batch_size=16), loss=F.cross_entropy, optimizer=optimizer, epochs=2, validation=(X, Y))
    err = capsys.readouterr().err
    assert "epoch 2/2" in err and "4/4" in err and "val_accuracy=" in err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    fit(model, Batches(X, Y, batch_size=16), loss=F.cross_entropy, optimizer=optimizer, epochs=1, validation=(X, Y))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("epoch 1/1 loss=") and "accuracy=" in lines[0]
    fit(model, [(X, Y)], loss=F.cross_entropy, optimizer=optimizer, epochs=1, progress=False)
    assert not capsys.readouterr().err


def test_one_bar_for_a_run(capsys):
    model, optimizer = small()
    history = fit(model, Batches(X, Y, batch_size=16), loss=F.cross_entropy, optimizer=optimizer, epochs=3, progress="run",
                  validation=(X, Y))
    err = capsys.readouterr().err
    assert "3/3" in err and "val_accuracy=" in err and err.count("100%") == 1
    fit(model, Batches(X, Y, batch_size=16), loss=F.cross_entropy, optimizer=optimizer, epochs=3, progress="run", history=history)
    assert not capsys.readouterr().err  # nothing left to do


@pytest.mark.parametrize("options,error,message", [
    ({"epochs": -1}, ValueError, "fit: epochs is -1"),
    ({"patience": 2}, ValueError, "fit: patience is 2, validation is None"),
    ({"progress": "much"}, ValueError, "fit: progress is 'much'; the rule is True, False or \"run\""),
    ({"patience": 0, "validation": (X, Y)}, ValueError, "fit: patience is 0"),
    ({"data": iter([(X, Y)])}, TypeError, "fit: data is an iterator"),
    ({"data": (X, Y)}, TypeError, "fit: data is a tuple of arrays"),
    ({"data": []}, ValueError, "data gave no batch in epoch 0"),
    ({"validation": iter([(X, Y)])}, TypeError, "fit: validation is an iterator"),
    ({"validation": []}, ValueError, "evaluate: data gave no batch"),
    ({"loss": len}, TypeError, "vjp: f must be a fastdl operator or layer"),
])
def test_refusals(options, error, message):
    model, optimizer = small()
    options = {"data": [(X, Y)], "loss": F.cross_entropy, "optimizer": optimizer, "epochs": 1, "progress": False} | options
    with pytest.raises(error, match=message):
        fit(model, options.pop("data"), **options)


@pytest.mark.parametrize("text", ["[]", "{}", '{"loss": []}', "no json"])
def test_history_of_something_else(text):
    with pytest.raises(ValueError):
        History.from_json(text)


def test_importing_is_light():
    code = ("import sys, fastdl.nn, fastdl.train, fastdl.demos.cnn, fastdl.demos.gan, fastdl.demos.select\n"
            "print({'numba', 'torch', 'tqdm', 'matplotlib', 'scipy', 'sklearn'} & set(sys.modules))")
    folder = pathlib.Path(fastdl.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True).stdout.strip() == "set()"
