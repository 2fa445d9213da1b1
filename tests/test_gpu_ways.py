"""Which kernels a call launches on a GPU, and how: recorded on meta tensors, without a GPU and without compiling."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed (Linux only: pip install 'fastdl[gpu]')")

import triton

import fastdl
import fastdl.functional as F
from fastdl.gpu import device
from fastdl.gpu.launch import record
from fastdl.gpu.main_calls import CALLS


def launched(call, arch="sm_90", kernel=None):
    with fastdl.use_backend("triton"), record(device.KNOWN[arch]) as launches:
        call()
    return [launch for launch in launches if kernel in (None, launch.kernel.fn.__name__)]


def t(*shape, dtype=torch.float32, grad=False):
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def last(n, *sizes, dtype=torch.bfloat16):
    channels, *spatial = sizes
    return t(n, *spatial, channels, dtype=dtype).movedim(-1, 1)


@pytest.mark.parametrize("name", CALLS)
def test_a_first_call_tunes_nothing(name):
    """What is launched is a kernel with its configuration, never a search for one."""
    for arch in device.KNOWN:
        assert all(type(launch.kernel) is triton.runtime.JITFunction for launch in launched(CALLS[name], arch))


def test_large_products_are_persistent_and_by_the_copy_engine():
    for arch in ("sm_90", "sm_100"):
        found = launched(CALLS["matmul bf16"], arch)
        assert [(launch.kernel.fn.__name__, launch.grid) for launch in found] == [
            ("product_by_tiles", (device.KNOWN[arch].multiprocessors,))] * 3
        assert all(launch.options["GROUP"] > 1 for launch in found)
    assert [launch.kernel.fn.__name__ for launch in launched(CALLS["matmul bf16"], "sm_80")] == ["product"] * 3


def test_few_rows_split_the_reduction():
    product, add = launched(CALLS["linear bf16, one row"])
    tiles = math.ceil(4096 / product.options["BN"])
    assert product.options["PARTIAL"] and product.grid[0] >= 2 * tiles and product.options["BM"] == 16
    assert add.kernel.fn.__name__ == "add_splits" and add.options["SPLITS"] * tiles == product.grid[0]


def test_a_batch_is_one_launch():
    (launch,) = launched(lambda: F.bmm(t(64, 1024, 128), t(64, 128, 1024)))
    assert launch.grid[0] == 64 * math.ceil(1024 / launch.options["BM"]) * math.ceil(1024 / launch.options["BN"])


def test_bias_activation_and_residual_are_in_the_last_step():
    x, w, b = t(256, 256), t(256, 256), t(256)
    (launch,) = launched(lambda: F.linear(x, w, b, activation="gelu"))
    assert launch.options["ACT"] == "gelu" and launch.options["HAS_BIAS"]
    wide = t(4096, 4096, dtype=torch.bfloat16)
    (launch,) = launched(lambda: F.addmm(wide, wide, wide))
    assert launch.options["HAS_RESIDUAL"]
    image, filters = last(4, 64, 16, 16), last(64, 64, 3, 3)
    (launch,) = launched(lambda: F.conv2d(image, filters, b[:64].bfloat16(), padding=1, activation="relu"))
    assert launch.options["ACT"] == "relu" and launch.options["HAS_BIAS"]
    (launch,) = launched(lambda: F.conv2d_max_pool2d(image, filters, None, padding=1, activation="relu"))
    assert launch.options["POOL"] and launch.options["ACT"] == "relu"


def test_fp8_multiplies_bytes():
    *quantise, product = launched(lambda: F.matmul(t(512, 512), t(512, 512).mT, precision="fp8"))
    assert [launch.kernel.fn.__name__ for launch in quantise] == ["quantise"] * 2
    assert product.args[0].base.dtype is torch.float8_e4m3fn and product.options["HAS_SCALES"]
    assert [launch.kernel.fn.__name__ for launch in launched(lambda: F.matmul(t(512, 512), t(512, 512).mT))] == ["product_by_tiles"]


@pytest.mark.parametrize("kind,flag", [("matmul", "torch.backends.cuda.matmul"), ("conv", "torch.backends.cudnn"),
                                       ("rnn", "torch.backends.cudnn")])
def test_tf32_only_where_torch_allows_it(kind, flag, monkeypatch):
    calls = {"matmul": lambda: F.matmul(t(256, 256), t(256, 256)),
             "conv": lambda: F.conv2d(last(2, 64, 8, 8, dtype=torch.float32), last(64, 64, 3, 3, dtype=torch.float32)),
             "rnn": lambda: F.gru(t(3, 16, 32), None, [t(96, 32), t(96, 32), t(96), t(96)])}
    owner = torch.backends.cuda.matmul if kind == "matmul" else torch.backends.cudnn
    before = owner.allow_tf32
    try:
        for allowed in (True, False):
            owner.allow_tf32 = allowed
            found = [launch.options["PRECISION"] for launch in launched(calls[kind]) if "PRECISION" in launch.options]
            assert found and set(found) == {"tf32" if allowed else "tf32x3"}, flag
    finally:
        owner.allow_tf32 = before


def test_half_the_taps_are_never_multiplied_by_zeros():
    """A transposed convolution is a launch for each phase of its stride; together they have each tap once."""
    phases = launched(CALLS["conv_transpose 5x5 bf16, stride 2"], kernel="correlate_by_tiles")
    assert sorted(launch.options["TH"] * launch.options["TW"] for launch in phases) == [4, 6, 6, 9]


@pytest.mark.parametrize("window,dtype", [(3, torch.uint8), (15, torch.uint8), (16, torch.int32)])
def test_a_maximum_is_remembered_in_one_byte_where_it_fits(window, dtype):
    forward, backward = launched(lambda: F.max_pool2d(t(2, 3, 40, 40, grad=True), window, 1).sum().backward())
    assert forward.args[2].dtype is backward.args[1].dtype is dtype
    (forward,) = launched(lambda: F.max_pool2d(t(2, 3, 40, 40), window, 1))
    assert forward.args[2] is None and not forward.options["KEEP"]


@pytest.mark.parametrize("hidden,kernels", [(64, ["sequence", "sequence_backward"]), (512, ["advance", "retreat"])])
def test_a_sequence_and_both_its_directions_are_one_launch(hidden, kernels):
    shapes = [(4 * hidden, 32), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)] * 2
    weights = [t(*s, dtype=torch.bfloat16, grad=True) for s in shapes]
    found = launched(lambda: F.lstm(t(50, 8, 32, dtype=torch.bfloat16), None, weights, bidirectional=True)[0].sum().backward())
    steps = [launch for launch in found if launch.kernel.fn.__name__ in ("sequence", "sequence_backward", "advance", "retreat")]
    assert [launch.kernel.fn.__name__ for launch in steps] == kernels
    assert all(launch.grid[-1] == 2 and launch.options["R"] == 2 for launch in steps)


def test_planar_images_are_turned_and_their_answers_turned_back():
    names = [launch.kernel.fn.__name__ for launch in launched(lambda: F.conv2d(t(64, 64, 32, 32), t(64, 64, 3, 3)))]
    assert names == ["turn", "correlate", "turn"]
    assert [launch.kernel.fn.__name__ for launch in launched(lambda: F.conv2d(last(2, 64, 8, 8), last(64, 64, 3, 3)))] == [
        "correlate_by_tiles"]
