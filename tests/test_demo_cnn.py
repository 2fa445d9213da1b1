"""The demo, on a handful of images: what it writes, what it measures, what it says where a package is missing."""

import json
import sys

import numpy as np
import pytest

import fastdl
from fastdl import nn
from fastdl.demos import cnn
from fastdl.train import History


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The slow backend, so a small network."""
    monkeypatch.setattr(cnn, "build", lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    with fastdl.use_backend("reference"):
        yield


build = cnn.build


def few_digits():
    rng = np.random.default_rng(0)
    return rng.random((60, 1, 28, 28), dtype=np.float32), np.arange(60) % 10


def test_the_network_is_torchs():
    from fastdl.demos import torch_step

    ours, theirs = build(), torch_step.build()
    assert [p.shape for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]
    assert ours.eval()(few_digits()[0][:2]).shape == (2, 10)


def test_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cnn, "load_mnist5000", few_digits)
    report = cnn.run(out=tmp_path / "a" / "b", seeds=[4, 5], epochs=1, batch_size=24, compare=False)
    out = tmp_path / "a" / "b"
    assert sorted(p.name for p in out.iterdir()) == [
        "cnn.png", "history-seed4.json", "history-seed5.json", "report.json", "weights-seed4.safetensors", "weights-seed5.safetensors"]
    assert json.loads((out / "report.json").read_text()) == report
    assert report["seeds"] == [4, 5] and report["mean_accuracy"] == pytest.approx(np.mean(report["accuracy"]))
    assert len(History.from_json((out / "history-seed4.json").read_text())) == 1
    cnn.build().load_state_dict(nn.load(out / "weights-seed4.safetensors"))
    assert (out / "cnn.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "seed 5:" in printed and "of 12 held-out digits" in printed and "median): fastdl" in printed


def test_step_times_has_torch_beside_it():
    times = cnn.step_times(*few_digits(), batch_size=4, rounds=1, steps=1)
    assert list(times) == ["fastdl", "torch", "torch channels-last"] and all(ms > 0 for ms in times.values())


def test_step_times_without_torch(monkeypatch):
    monkeypatch.setattr(cnn.importlib.util, "find_spec", lambda name: None)
    assert list(cnn.step_times(*few_digits(), batch_size=4, rounds=1, steps=1)) == ["fastdl"]
    monkeypatch.setattr(cnn.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "executable", "/bin/false")  # torch is there but does not start
    assert list(cnn.step_times(*few_digits(), batch_size=4, rounds=1, steps=1)) == ["fastdl"]


@pytest.mark.parametrize("package", ["mlxtend", "matplotlib", "safetensors"])
def test_missing_packages_are_named_before_any_work(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"the demo needs {package}: pip install fastdl\[demo\]") as caught:
        cnn.run(out=tmp_path / "out")
    assert caught.value.name == package and not (tmp_path / "out").exists()


def test_no_seeds():
    with pytest.raises(ValueError, match="cnn: seeds is empty"):
        cnn.run(seeds=[])


def test_shift():
    images = np.zeros((200, 1, 28, 28), np.float32)
    images[:, 0, 14, 14] = 1
    moved, labels = cnn.shift(np.random.default_rng(0), images, np.arange(200))
    assert moved.sum() == 200 and (labels == np.arange(200)).all()
    assert {tuple(where - 14) for where in np.argwhere(moved[:, 0])[:, 1:]} == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}
