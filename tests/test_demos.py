"""The demos on a handful of rows: what they write and say; interrupted and resumed, they end with the same bits."""

import contextlib
import importlib
import inspect
import json
import os
import re
import sys

import numpy as np
import pytest

import fastdl
from fastdl import cli, nn
from fastdl.checkpoint import Checkpoint, CheckpointError
from fastdl.demos import DEMOS, charlm, cluster, cnn, frame, gan, mlp, overfit, pictures, regress, rnn, select, step_times
from fastdl.train import History

SHORT = {"mlp": {"seeds": [4, 5]}, "cnn": {"seeds": [4, 5], "compare": False}, "rnn": {"seeds": 1}, "charlm": {}, "regress": {"seeds": 2},
         "gan": {}, "cluster": {}, "overfit": {}, "select": {"folds": 2, "jobs": 1}}
FILES = {  # but for the checkpoints
    "mlp": {"weights-seed4.safetensors", "weights-seed5.safetensors", "history-seed4.json", "history-seed5.json"},
    "cnn": {"weights-seed4.safetensors", "weights-seed5.safetensors", "history-seed4.json", "history-seed5.json"},
    "rnn": {"weights-seed0.safetensors", "history-seed0.json"},
    "charlm": {"weights.safetensors", "history.json", "sample.txt"},
    "regress": {f"{what}-seed{s}.{kind}" for s in (0, 1) for what, kind in (("weights", "safetensors"), ("history", "json"))},
    "gan": {"weights-generator.safetensors", "weights-discriminator.safetensors", "weights-judge.safetensors", "history.json", "gan.gif",
            "epoch-01.png", "epoch-02.png", "epoch-03.png"},
    "cluster": {"weights.safetensors", "history.json"},
    "overfit": {f"{what}-{remedy}.{kind}" for remedy in ("none", "dropout", "mix-up")
                for what, kind in (("weights", "safetensors"), ("history", "json"))},
    "select": {"weights.safetensors", "history.json", "folds.json"},
}


def few_digits(side=28, rows=80):
    rng = np.random.default_rng(0)
    return rng.random((rows, 1, side, side), dtype=np.float32), np.arange(rows) % 10


@pytest.fixture
def few(monkeypatch):
    """The slow backend, so a few rows and small networks."""
    for module in (mlp, cnn, gan, cluster):
        monkeypatch.setattr(module, "load_mnist5000", few_digits)
    monkeypatch.setattr(overfit, "load_mnist5000", lambda: few_digits(rows=1500))
    monkeypatch.setattr(select, "load_digits8x8", lambda: few_digits(8, 60))
    monkeypatch.setattr(charlm, "load_manual", lambda: "The cat sat on the mat. " * 60)
    monkeypatch.setattr(charlm, "STEPS", 16)
    whole = rnn.load_japanese_vowels()
    monkeypatch.setattr(rnn, "load_japanese_vowels", lambda: [part._make(a[::17] for a in part) for part in whole])
    small = lambda *_: nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(784, 10))
    for module in (mlp, cnn, overfit):
        monkeypatch.setattr(module, "build", small)
    monkeypatch.setattr(rnn, "Speaker", lambda: Speaker(4))
    monkeypatch.setattr(charlm, "CharacterModel", lambda n: CharacterModel(n, 4, 6))
    monkeypatch.setattr(gan, "build_generator", lambda: nn.Sequential(
        nn.Linear(gan.NOISE, 3136), nn.BatchNorm1d(3136), nn.Sigmoid(), nn.Unflatten(1, (1, 56, 56))))
    monkeypatch.setattr(gan, "build_discriminator", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3136, 1)))
    monkeypatch.setattr(gan, "JUDGED", 64)
    monkeypatch.setattr(gan, "DIGITS", 64)
    monkeypatch.setattr(overfit, "REMEDIES", {name: overfit.REMEDIES[name] for name in ("none", "dropout", "mix-up")})
    monkeypatch.setattr(select, "STRUCTURES", {name: select.STRUCTURES[name] for name in ("linear", "16")})
    with fastdl.use_backend("reference"):
        yield


Speaker, CharacterModel, build_cnn = rnn.Speaker, charlm.CharacterModel, cnn.build


def demo(name):
    return importlib.import_module(f"fastdl.demos.{name}")


def run(name, out, **options):
    return demo(name).run(out=out, epochs=3, **{**SHORT[name], **options})


def results(folder):
    """What must not depend on interruptions: every file but checkpoints, pictures of seconds and seconds."""
    found = {}
    for path in folder.iterdir():
        if path.suffix == ".json":
            found[path.name] = re.sub(r'"seconds": \[[^]]*\]|"step_ms": \{[^}]*\}|"after_two_minutes": [^,]*', "", path.read_text())
        elif not path.name.startswith("checkpoint"):
            found[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", DEMOS)
def test_interrupted_and_resumed_it_ends_with_the_same_bits(name, few, tmp_path, monkeypatch, capsys):
    report = run(name, tmp_path / "whole" / "deep")
    folder = tmp_path / "whole" / "deep"
    assert json.loads((folder / "report.json").read_text()) == report and report["demo"] == name
    assert {p.name for p in folder.iterdir() if not p.name.startswith("checkpoint")} == FILES[name] | {"report.json", f"{name}.png"}
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert f"{name}.png are in {folder}" in out and "it/s" not in out and "%|" in err  # the bar goes to stderr

    parts, saves = tmp_path / "parts", Saves(name, monkeypatch)
    run(name, tmp_path / "counted")
    total = saves.count
    with saves.interrupted(2, "before"), pytest.raises(KeyboardInterrupt):
        run(name, parts)
    assert not (parts / "report.json").exists()
    with saves.interrupted(total - 2, "after"), pytest.raises(KeyboardInterrupt):  # all but one are made: of the GAN, say, two epochs
        run(name, parts, resume=True)
    run(name, parts, resume=True)
    whole, parts = results(folder), results(parts)
    assert set(whole) == set(parts)
    for file in whole:
        assert whole[file] == parts[file], file


class Saves:
    """Counts a demo's checkpoints (of one that has none, the files it writes), and strikes Ctrl-C before or after one of them."""

    def __init__(self, name, monkeypatch):
        self.count, self.at, self.when = 0, None, None
        owner, attribute = (frame.Output, "write") if name == "select" else (Checkpoint, "save")
        original = getattr(owner, attribute)

        def save(*arguments, **options):
            self.count += 1
            if (self.count, "before") == (self.at, self.when):
                raise KeyboardInterrupt
            answer = original(*arguments, **options)
            if (self.count, "after") == (self.at, self.when):
                raise KeyboardInterrupt
            return answer

        monkeypatch.setattr(owner, attribute, save)

    @contextlib.contextmanager
    def interrupted(self, at, when):
        self.count, self.at, self.when = 0, at, when
        yield
        self.at = None


@pytest.mark.parametrize("name", ["mlp", "gan", "select"])
def test_resuming_with_other_settings_is_refused(name, few, tmp_path):
    demo(name).run(out=tmp_path, **{**SHORT[name], "epochs": 1})
    with pytest.raises(CheckpointError, match="resume with the same, or start anew"):
        demo(name).run(out=tmp_path, resume=True, **{**SHORT[name], "epochs": 2})


def test_a_full_disk_leaves_the_old_files_whole(few, tmp_path, monkeypatch):
    run("regress", tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for write in (lambda o: o.report(), lambda o: o.write("regress.png", b"x"), lambda o: o.history(History(), "-seed0"),
                  lambda o: o.weights(nn.Linear(1, 1), "-seed0"), lambda o: o.picture(pictures.new_figure(1, 1))):
        with pytest.raises(OSError, match="No space left"):
            write(frame.Output("regress", tmp_path))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


NEEDS = {"mlp": ["mlxtend"], "cnn": ["mlxtend", "scipy"], "rnn": ["matplotlib"], "charlm": ["safetensors"], "regress": ["statsmodels"],
         "gan": ["mlxtend", "scipy", "PIL", "tqdm"], "cluster": ["mlxtend", "sklearn", "scipy"], "overfit": ["mlxtend", "scipy"],
         "select": ["sklearn", "tqdm"]}


@pytest.mark.parametrize("name,package", [(name, package) for name in DEMOS for package in NEEDS[name]])
def test_missing_packages_are_named_before_any_work(name, package, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"the demo needs {package}: pip install fastdl\[demo\]") as caught:
        demo(name).run(out=tmp_path / "out")
    assert caught.value.name == package and not (tmp_path / "out").exists()
    assert cli.main(["demo", name, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"fastdl: the demo needs {package}, which is not installed: pip install 'fastdl[demo]'\n"


@pytest.mark.parametrize("name", DEMOS)
def test_the_command_lines_defaults_are_the_functions(name, capsys):
    options = DEMOS[name][1]
    parameters = inspect.signature(demo(name).run).parameters
    assert all(parameters[option].default == default for option, default in options.items())
    with pytest.raises(SystemExit):
        cli.main(["demo", name, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for option, default in options.items():
        assert re.search(rf"--{option.replace('_', '-')} N [^-].*?\(default: {default}\)", told), option
    assert f"out/{name}" in told and "--resume" in told


@pytest.mark.parametrize("name", [name for name in DEMOS if "seeds" in DEMOS[name][1]])
def test_no_seeds(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: seeds is empty"):
        demo(name).run(out=tmp_path, seeds=[])


# ------------------------------------------------------------------------------------------------ what each does of its own
def test_the_cnn_is_torchs():
    from fastdl.demos import torch_step

    ours, theirs = build_cnn(), torch_step.build()
    assert [p.shape for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]


def test_step_times_has_torch_beside_it(few):
    times = step_times.step_times(*few_digits(), batch_size=4, rounds=1, steps=1)
    assert list(times) == ["fastdl", "torch", "torch channels-last"] and all(ms > 0 for ms in times.values())


def test_step_times_without_torch(few, monkeypatch):
    monkeypatch.setattr(step_times.importlib.util, "find_spec", lambda name: None)
    assert list(step_times.step_times(*few_digits(), batch_size=4, rounds=1, steps=1)) == ["fastdl"]
    monkeypatch.setattr(step_times.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "executable", "/bin/false")  # torch is there but does not start
    assert list(step_times.step_times(*few_digits(), batch_size=4, rounds=1, steps=1)) == ["fastdl"]


def test_standardised_speech():
    parts = list(rnn.standardised(*rnn.load_japanese_vowels()))
    inside = np.arange(parts[0].x.shape[1]) < parts[0].lengths[:, None]
    np.testing.assert_allclose(parts[0].x[inside].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(parts[0].x[inside].std(0), 1, atol=1e-5)
    for part in parts:
        assert part.x.dtype == np.float32 and not part.x[np.arange(part.x.shape[1]) >= part.lengths[:, None]].any()


def test_passages():
    text = np.arange(100)
    passages = charlm.Passages(text, 4, steps=9, seed=1)
    epoch = list(passages)
    assert len(epoch) == len(passages) == 3 and all(x.shape == (4, 9) for x, _ in epoch)
    for x, y in epoch:
        np.testing.assert_array_equal(y, x + 1)
    passages.set_epoch(1)
    assert any((a[0] != b[0]).any() for a, b in zip(epoch, passages, strict=True))
    (x, y), = charlm.passages_in_order(text, 8, steps=33)
    np.testing.assert_array_equal(x.ravel(), np.arange(99))
    np.testing.assert_array_equal(y, x + 1)
    with pytest.raises(ValueError, match="Passages: the text has 9 characters; the rule is more than the 9"):
        charlm.Passages(text[:9], 4, steps=9)


def test_a_sample_goes_on_from_the_state():
    """A model that has learnt a sentence by heart writes it down; the state carries it from one character to the next."""
    import fastdl.functional as F
    from fastdl import optim
    from fastdl.train import fit

    text = "abcab" * 20  # what follows b depends on what came before a
    with nn.seeded(0), fastdl.use_backend("reference"):
        model = CharacterModel(3, 4, 8)
        numbers = np.array([ord(c) - 97 for c in text])
        fit(model, charlm.Passages(numbers, 8, steps=10), loss=F.cross_entropy, epochs=40, progress=False,
            optimizer=optim.Adam(model.parameters(), lr=0.05))
        written = charlm.sample(model, "abc", "abc", 40, temperature=0.1)
        assert written == ("abcab" * 9)[:43] and charlm.sample(model, "abc", "abc", 40, seed=3, temperature=0.1) == written
        np.testing.assert_allclose(model.advance(numbers[None, 3:6], model.advance(numbers[None, :3])[1])[0],
                                   model(numbers[None, :6])[:, :, 3:], atol=1e-5)


def test_bits_of_characters_alone():
    learn, test = np.array([0] * 299 + [1] * 99), np.array([0, 0, 0, 1])
    assert charlm._entropy(learn, test, 2) == pytest.approx(-(3 * np.log2(0.75) + np.log2(0.25)) / 4)


def test_sunspot_windows_do_not_see_the_future():
    counts = np.arange(40.0) ** 2
    x, y = regress.windows(counts)
    assert x.shape == (18, regress.WINDOW) and y.shape == (18, 1)
    np.testing.assert_allclose(x[0], np.arange(22) / 10, rtol=1e-6)
    np.testing.assert_allclose(y, 0.1, rtol=1e-4)
    np.testing.assert_allclose(regress.forecast(y, x), counts[22:], rtol=1e-5)


def test_purity():
    assert cluster.purity(np.array([0, 0, 0, 1, 1, 2]), np.array([5, 5, 4, 4, 4, 0])) == pytest.approx(5 / 6)
    assert cluster.purity(np.zeros(6, int), np.arange(6)) == pytest.approx(1 / 6)


def test_image_grid():
    sheet = pictures.image_grid(np.stack([np.full((1, 2, 3), v, np.float32) for v in (0, 1, 0.5)]), 2)
    assert sheet.shape == (4, 6) and sheet.dtype == np.uint8
    assert sheet[:2, :3].min() == 255 and sheet[:2, 3:].max() == 0 and sheet[2:, :3].max() in (127, 128) and sheet[2:, 3:].min() == 255


def test_the_gif_has_a_frame_an_epoch(few, tmp_path):
    from PIL import Image

    run("gan", tmp_path)
    with Image.open(tmp_path / "gan.gif") as film:
        assert film.n_frames == 3 and film.size == (448, 448)


def test_the_remedies_start_from_the_same_weights():
    weights = []
    for dropout in (0.0, 0.5):
        with nn.seeded(0):
            weights.append([p.data for p in overfit.build(dropout).parameters()])
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(overfit.REMEDIES) >= {"none", "L1 penalty", "L2 penalty", "weight decay", "dropout", "early stopping", "label smoothing",
                                     "augmentation", "cut-out", "mix-up", "all"}
    assert all(a != b for a, b in zip(overfit.REMEDIES["all"], overfit.Remedy(), strict=True))  # all means all


def test_select_runs_its_folds_in_processes(few, tmp_path):
    one, two = (run("select", tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    assert one["scores"].keys() == two["scores"].keys()
    assert np.allclose(list(one["scores"].values()), list(two["scores"].values()), atol=0.1)
