"""State in and out: torch checkpoints, what does not fit, safetensors files."""

import builtins
import os
import stat

import numpy as np
import pytest
import torch

import fastdl
from fastdl import nn


@pytest.fixture(autouse=True)
def reference():
    with fastdl.use_backend("reference"):
        yield


def model():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def torch_model():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 2))


def snapshot(m):
    return {k: v.copy() for k, v in m.state_dict().items()}


def assert_same(m, before):
    for name, value in m.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_torch_state_dict_loads_as_it_is():
    ours, theirs = model(), torch_model()
    theirs(torch.randn(5, 1, 4, 4))  # moves the running statistics
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    assert_same(ours, {k: v.numpy() for k, v in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype("f4")
    np.testing.assert_allclose(ours.eval()(x), theirs.eval()(torch.tensor(x)).detach().numpy(), atol=1e-6)


def test_ours_loads_into_torch():
    ours, theirs = model(), torch_model()
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})


def test_state_is_live_and_read_only():
    m = nn.Linear(2, 2)
    weight = m.state_dict()["weight"]
    with pytest.raises(ValueError, match="read-only"):
        weight[...] = 7
    with m.weight.edit() as array:
        array[...] = 7
    assert (m.weight.data == 7).all()
    m.load_state_dict({"weight": np.ones((2, 2), "f4"), "bias": np.zeros(2, "f4")})
    assert (weight == 1).all()
    m.weight.data = np.full((2, 2), 5)
    assert (weight == 5).all()
    with pytest.raises(ValueError, match=r"data of shape \(3,\) was assigned to a parameter of \(2, 2\)"):
        m.weight.data = np.zeros(3)


@pytest.mark.parametrize("change,patterns", [
    (lambda s: [s.pop("0.weight"), s.pop("3.bias")], ["missing: 0.weight, 3.bias"]),
    (lambda s: s.update({"9.weight": np.zeros(1)}), ["unexpected: 9.weight"]),
    (lambda s: s.update({"3.weight": np.zeros((2, 13), "f4")}), [r"3.weight has shape \(2, 13\), the model's is \(2, 12\)"]),
    (lambda s: s.update({"3.weight": np.zeros((2, 12))}), ["3.weight has dtype float64, which does not fit the model's float32 without"]),
    (lambda s: s.update({"3.weight": np.zeros((2, 12), "i2")}), ["3.weight has dtype int16"]),
    (lambda s: s.update({"3.weight": [[0.0] * 12] * 2}), ["3.weight is a list, not an array or tensor"]),
    (lambda s: [s.pop("0.bias"), s.update({"x": np.zeros(1), "3.bias": np.zeros(3, "f4")})],
     ["missing: 0.bias", "unexpected: x", r"3.bias has shape \(3,\)"]),
])
def test_what_does_not_fit_is_all_named_and_changes_nothing(change, patterns):
    m, state = model(), snapshot(model())
    before = snapshot(m)
    change(state)
    for pattern in patterns:
        with pytest.raises(ValueError, match=pattern):
            m.load_state_dict(state)
    assert_same(m, before)


def test_not_strict():
    m, state = model(), snapshot(model())
    del state["0.weight"]
    state["x"] = np.zeros(1)
    first = m[0].weight.data.copy()
    assert m.load_state_dict(state, strict=False) == (["0.weight"], ["x"])
    np.testing.assert_array_equal(m[0].weight.data, first)
    np.testing.assert_array_equal(m[3].weight.data, state["3.weight"])
    with pytest.raises(ValueError, match="has shape"):
        m.load_state_dict({"3.bias": np.zeros(3, "f4")}, strict=False)


def test_narrower_floats_fit():
    m = nn.Linear(2, 1)
    for dtype in (torch.float16, torch.bfloat16):
        m.load_state_dict({"weight": torch.tensor([[1.5, -2]], dtype=dtype), "bias": torch.tensor([0.5], dtype=dtype)})
        np.testing.assert_array_equal(m.weight.data, [[1.5, -2]])
    nn.Linear(2, 1, dtype="f8").load_state_dict(m.state_dict())


def test_read_only_buffers_are_refused():
    m = nn.BatchNorm1d(2)
    m.running_mean.flags.writeable = False
    with pytest.raises(ValueError, match="running_mean is read-only in the model"):
        m.load_state_dict(nn.BatchNorm1d(2).state_dict())


# ------------------------------------------------------------------------------------------------ files
def test_files(tmp_path):
    path, m = tmp_path / "m.safetensors", model()
    m[1].num_batches_tracked += 3
    m[3].weight.data = np.asfortranarray(m[3].weight.data)
    nn.save(m, path)
    other = model()
    other.load_state_dict(nn.load(path))
    assert_same(other, m.state_dict())
    nn.save({"a": np.arange(3), "b": torch.ones(2, dtype=torch.bfloat16)}, path)  # takes the old one's place
    state = nn.load(str(path))
    np.testing.assert_array_equal(state["a"], [0, 1, 2])
    assert state["b"].dtype == np.float32
    assert os.listdir(tmp_path) == ["m.safetensors"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_torchs_files_load(tmp_path):
    from safetensors.torch import save_file

    theirs, ours = torch_model(), model()
    save_file(theirs.state_dict(), tmp_path / "t.safetensors")
    ours.load_state_dict(nn.load(tmp_path / "t.safetensors"))
    assert_same(ours, {k: v.numpy() for k, v in theirs.state_dict().items()})


def test_corrupt_files_are_named(tmp_path):
    path = tmp_path / "m.safetensors"
    nn.save(model(), path)
    whole = path.read_bytes()
    other_header, not_utf8 = b"\xff" * 8 + whole[8:], whole[:8] + b"\xfe" + whole[9:]
    for content in (b"", b"not a file of weights at all", whole[:-10], whole[:100], other_header, not_utf8):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.safetensors is not a whole safetensors file"):
            nn.load(path)
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "absent")


def test_a_dtype_that_numpy_lacks_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors holds a dtype that numpy lacks: 'BF16'"):
        nn.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize("where", ["write", "replace", "values"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, where):
    path = tmp_path / "m.safetensors"
    nn.save(model(), path)
    before = path.read_bytes()
    if where == "values":
        with pytest.raises(TypeError, match="save: b is a object array"):
            nn.save({"a": np.zeros(1), "b": np.array([None])}, path)
        with pytest.raises(TypeError, match="save: b is a list"):
            nn.save({"a": np.zeros(1), "b": [1]}, path)
    else:
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync" if where == "write" else "replace", full)
        with pytest.raises(OSError, match="No space left"):
            nn.save(model(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    nn.save({"a": np.zeros(1)}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and list(nn.load(tmp_path / "real")) == ["a"]


def test_safetensors_missing(tmp_path, monkeypatch):
    original = builtins.__import__

    def importer(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importer)
    for call in (lambda: nn.save({}, tmp_path / "x"), lambda: nn.load(tmp_path / "x")):
        with pytest.raises(ImportError, match=r"pip install fastdl\[demo\]"):
            call()
