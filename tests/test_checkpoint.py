"""Checkpoints: what was saved comes back to the bit; a file of another run is refused; a failed write leaves the old file."""

import errno
import os

import numpy as np
import pytest
from subprocesses import python

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.checkpoint import Checkpoint, CheckpointError
from fastdl.data import Batches
from fastdl.train import fit

X = np.random.default_rng(0).standard_normal((48, 4)).astype("f4")
Y = (X[:, 0] > 0).astype(np.int64)


@pytest.fixture(autouse=True)
def reference():
    with fastdl.use_backend("reference"):
        yield


def make(optimizer=optim.Adam, seed=0):
    with nn.seeded(seed):
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    return model, optimizer(model.parameters(), lr=0.05)


def train(path, epochs, resume=False, patience=None, seed=5, **settings):
    """A run with everything that has state: dropout, batch-norm, moments, a schedule, early stopping."""
    model, optimizer = make()
    with nn.seeded(seed):
        history = fit(model, Batches(X, Y, batch_size=16), loss=F.cross_entropy, optimizer=optimizer, epochs=epochs, progress=False,
                      validation=(X[:16], Y[:16]), patience=patience, schedule=optim.StepLR(optimizer, 2, 0.5),
                      checkpoint=Checkpoint(path, resume=resume, settings=settings))
    return {name: a.copy() for name, a in model.state_dict().items()}, history


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("stopped", [1, 3, 4, 5])
@pytest.mark.parametrize("patience", [None, 2])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, stopped, patience):
    whole, history = train(tmp_path / "whole", 6, patience=patience)
    train(tmp_path / "parts", stopped, patience=patience)
    resumed, again = train(tmp_path / "parts", 6, resume=True, patience=patience, seed=99)  # the generator comes from the file
    same(whole, resumed)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "lr", "best_epoch"):
        assert getattr(history, name) == getattr(again, name), name


def test_the_best_weights_outlive_an_interruption(tmp_path):
    """The best epoch lies before the interruption, so the weights to end with come from the file, and so does how long was waited."""

    def run(name, epochs, resume=False):
        model, optimizer = make(optim.SGD)
        schedule = optim.LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 3 else 100.0)  # ruins the model from the fourth epoch on
        with nn.seeded(5):
            history = fit(model, Batches(X, Y, batch_size=16), loss=F.cross_entropy, optimizer=optimizer, epochs=epochs, progress=False,
                          validation=(X[:16], Y[:16]), patience=3, schedule=schedule, checkpoint=Checkpoint(tmp_path / name, resume=resume))
        return model.state_dict(), history

    whole, history = run("whole", 20)
    assert len(history) == history.best_epoch + 4 < 20
    run("parts", history.best_epoch + 3)
    resumed, again = run("parts", 20, resume=True)
    same(whole, resumed)
    assert again.best_epoch == history.best_epoch and again.val_loss == history.val_loss


def test_dropout_makes_the_generator_count(tmp_path, monkeypatch):
    whole, _ = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    monkeypatch.setattr(nn, "set_rng_state", lambda state: None)
    resumed, _ = train(tmp_path / "parts", 4, resume=True, seed=99)
    assert any((whole[name] != resumed[name]).any() for name in whole)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, _ = train(tmp_path / "c", 3, patience=2)
    before = (tmp_path / "c").read_bytes()
    again, history = train(tmp_path / "c", 3, resume=True, patience=2)
    same(first, again)
    assert (tmp_path / "c").read_bytes() == before and len(history) <= 3


def test_without_resume_a_run_starts_anew(tmp_path):
    first, _ = train(tmp_path / "c", 2)
    again, _ = train(tmp_path / "c", 2)
    same(first, again)
    assert Checkpoint(tmp_path / "c").restore() == {} == Checkpoint(tmp_path / "none", resume=True).restore()


def test_values_and_nested_states_come_back(tmp_path):
    class Part:
        def state_dict(self):
            return {"a": [np.arange(3), np.float32(0.1)], "deep": {"x": (1, None, "text")}, "empty": {}}

        def load_state_dict(self, state):
            self.state = state

    checkpoint = Checkpoint(tmp_path / "c", resume=True)
    checkpoint.save({"epoch": 3, "losses": [0.1, 0.2]}, part=Part())
    part = Part()
    assert checkpoint.restore(part=part) == {"epoch": 3, "losses": [0.1, 0.2]}
    np.testing.assert_array_equal(part.state["a"][0], np.arange(3))
    assert part.state["a"][1] == np.float32(0.1) and part.state["deep"] == {"x": [1, None, "text"]} and part.state["empty"] == {}


@pytest.mark.parametrize("options,message", [
    ({"batch_size": 8}, "was made with batch_size=None, this run has batch_size=8; resume with the same, or start anew"),
])
def test_other_settings_are_refused(tmp_path, options, message):
    train(tmp_path / "c", 1)
    with pytest.raises(CheckpointError, match=message):
        train(tmp_path / "c", 2, resume=True, **options)


def test_files_of_something_else_are_refused(tmp_path):
    model, optimizer = make()
    nn.save(model, tmp_path / "weights")
    with pytest.raises(CheckpointError, match="holds weights but is no checkpoint"):
        Checkpoint(tmp_path / "weights", resume=True).restore(model=model)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        Checkpoint(tmp_path / "text", resume=True).restore(model=model)
    Checkpoint(tmp_path / "c").save(model=model)
    with pytest.raises(CheckpointError, match="holds model; the run has model, optimizer"):
        Checkpoint(tmp_path / "c", resume=True).restore(model=model, optimizer=optimizer)
    with pytest.raises(CheckpointError, match="does not fit: load_state_dict"):
        Checkpoint(tmp_path / "c", resume=True).restore(model=nn.Linear(2, 2))


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_or_an_interrupt_leaves_the_old_file_whole(tmp_path, monkeypatch, failure, where):
    train(tmp_path / "c", 1)
    before = (tmp_path / "c").read_bytes()

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(type(failure)):
        train(tmp_path / "c", 2, resume=True)
    monkeypatch.undo()
    assert (tmp_path / "c").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c"]
    whole, _ = train(tmp_path / "whole", 2)
    same(whole, train(tmp_path / "c", 2, resume=True)[0])


def test_a_disk_that_fills_up_while_the_file_is_written(tmp_path):
    """The write itself fails, half-way: no process may make a file larger than the limit that is set here."""
    code = f"""
import errno, resource
import numpy as np
from fastdl import nn
path = {str(tmp_path / "c")!r}
nn.save({{"a": np.zeros(100)}}, path)
before = open(path, "rb").read()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    nn.save({{"a": np.ones(5000)}}, path)
except OSError as error:
    assert error.errno == errno.EFBIG, error
    assert open(path, "rb").read() == before
    print("whole")
"""
    assert python(code).stdout.strip() == "whole" and [p.name for p in tmp_path.iterdir()] == ["c"]


# ------------------------------------------------------------------------------------------------ the generator
def test_seeded_is_the_threads_own():
    import threading

    def weights(seed):
        with nn.seeded(seed):
            first = nn.Linear(3, 2).weight.data.copy()
            barrier.wait(timeout=30)  # both are inside at once
            second = nn.Linear(3, 2).weight.data.copy()
        got[seed] = first, second

    got, barrier = {}, threading.Barrier(2)
    threads = [threading.Thread(target=weights, args=(seed,)) for seed in (1, 2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for seed in (1, 2):
        with nn.seeded(seed):
            for want in got[seed]:
                np.testing.assert_array_equal(nn.Linear(3, 2).weight.data, want)


def test_seeded_leaves_the_librarys_generator_alone():
    nn.manual_seed(3)
    want = [nn.Linear(2, 2).weight.data.copy() for _ in range(2)]
    nn.manual_seed(3)
    first = nn.Linear(2, 2).weight.data.copy()
    with nn.seeded(0):
        nn.Linear(2, 2)
    np.testing.assert_array_equal(np.stack([first, nn.Linear(2, 2).weight.data]), np.stack(want))


def test_rng_state():
    with nn.seeded(0):
        state = nn.get_rng_state()
        first = nn.Linear(2, 2).weight.data.copy()
        nn.set_rng_state(state)
        np.testing.assert_array_equal(nn.Linear(2, 2).weight.data, first)
        for wrong in ({}, {"bit_generator": "MT19937"}, "text"):
            with pytest.raises(ValueError, match="set_rng_state: state is not what get_rng_state gave"):
                nn.set_rng_state(wrong)
