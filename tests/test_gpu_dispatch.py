"""How a call with tensors finds the GPU's kernels, as far as that can be seen without a GPU."""

import importlib.util

import numpy as np
import pytest
import torch
from subprocesses import python

import fastdl
import fastdl.functional as F
from fastdl import op

triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@triton
def test_arrays_are_refused():
    with fastdl.use_backend("triton"), pytest.raises(ValueError, match="triton: it takes CUDA tensors"):
        F.matmul(np.ones((2, 3), "f4"), np.ones((3, 2), "f4"))


@triton
def test_cpu_tensors_are_refused_where_nothing_interprets():
    rule = "on the CPU, where Triton's kernels run only under TRITON_INTERPRET=1"
    with fastdl.use_backend("triton"), pytest.raises(ValueError, match=rule):
        F.matmul(torch.ones(2, 3), torch.ones(3, 2))


def test_the_meta_device_holds_no_values():
    with pytest.warns(UserWarning, match="matmul: torch's operator serves this call"):
        op_said().discard("matmul")
        assert F.matmul(torch.empty(2, 3, device="meta"), torch.empty(3, 2, device="meta")).shape == (2, 2)


def op_said():
    from fastdl.gpu import dispatch

    return dispatch._said


def test_mixed_devices():
    with pytest.raises(ValueError, match=r"matmul: other is on cpu, input is on meta; the rule is one device for all"):
        F.matmul(torch.empty(2, 3, device="meta"), torch.ones(3, 2))
    with pytest.raises(TypeError, match=r"linear: weight is a numpy array and input is a torch tensor"):
        F.linear(torch.empty(2, 3, device="meta"), np.ones((4, 3), "f4"))


def test_dtypes():
    with pytest.raises(TypeError, match="matmul: input has dtype float64; the rule on a GPU is float32, float16 or bfloat16"):
        F.matmul(torch.empty(2, 3, device="meta", dtype=torch.float64), torch.empty(3, 2, device="meta", dtype=torch.float64))
    with pytest.raises(TypeError, match="other is float16, input is float32; the rule is one dtype for all"):
        F.matmul(torch.empty(2, 3, device="meta"), torch.empty(3, 2, device="meta", dtype=torch.float16))


def test_the_checks_are_the_operators_own():
    with pytest.raises(ValueError, match=r"conv2d: weight has 3 input channels per group, input has 4 \(groups=1\)"):
        F.conv2d(torch.empty(1, 4, 5, 5, device="meta"), torch.empty(2, 3, 3, 3, device="meta"))
    with pytest.raises(ValueError, match=r"linear: input has shape \(2, 3\), weight has \(4, 5\)"):
        F.linear(torch.empty(2, 3, device="meta"), torch.empty(4, 5, device="meta"))


def test_fp8_is_for_a_gpu():
    with pytest.raises(ValueError, match="matmul: precision is 'fp8', input is on the CPU"):
        F.matmul(np.ones((2, 3), "f4"), np.ones((3, 2), "f4"), precision="fp8")
    with pytest.raises(ValueError, match="linear: precision is 'fp8', input is on the CPU"):
        F.linear(torch.ones(2, 3), torch.ones(4, 3), precision="fp8")


def test_another_backend_was_chosen():
    rule = "the backend 'reference' was chosen, which takes arrays on the CPU"
    with fastdl.use_backend("reference"), pytest.raises(ValueError, match=rule):
        F.matmul(torch.empty(2, 3, device="meta"), torch.empty(3, 2, device="meta"))


@triton
def test_what_has_no_kernel_falls_through_to_torch_and_says_so_once():
    from fastdl.gpu import device, launch

    a, b = (torch.empty(4, device="meta", requires_grad=True) for _ in range(2))
    with launch.record(device.KNOWN["sm_90"]):
        op_said().discard("l1_loss")
        with pytest.warns(UserWarning, match="l1_loss: torch's operator serves this call .*it has no kernel for l1_loss.*said once"):
            F.l1_loss(a, b)
        F.l1_loss(a, b).backward()
        with fastdl.use_backend("triton"), pytest.raises(ValueError, match="l1_loss: the triton backend cannot serve this call"):
            F.l1_loss(a, b)


@triton
def test_a_gpu_that_is_too_old():
    from fastdl.gpu import device, launch

    a = torch.empty(2, 3, device="meta")
    with launch.record(device.Device("Tesla T4", "sm_75", 40, 64 << 10)) as launches:
        op_said().discard("relu")
        with pytest.warns(UserWarning, match=r"relu: torch's operator .*Tesla T4 has compute capability 7.5; the rule is 8.0 or newer"):
            assert F.relu(a).shape == (2, 3)
        with fastdl.use_backend("triton"), pytest.raises(ValueError, match=r"relu: the triton backend .*7\.5; the rule is 8\.0"):
            F.relu(a)
        with fastdl.use_backend("triton"), pytest.raises(ValueError, match=r"matmul: .*compute capability 7\.5"):
            F.matmul(a, a.mT, precision="fp8")
    assert not launches
    rule = r"matmul: .*'fp8' and NVIDIA A100.* has none; the rule is compute capability 8\.9 or newer"
    with launch.record(device.KNOWN["sm_80"]), pytest.raises(ValueError, match=rule):
        F.matmul(a, a.mT, precision="fp8")


@triton
def test_nn_layers_say_what_does_not_fit():
    from fastdl import nn

    layer = nn.Linear(3, 4).to("meta")
    with pytest.raises(ValueError, match="linear: weight is on meta, input is on cpu; the rule is one device for all"):
        layer(torch.ones(2, 3))


def test_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch, warnings, fastdl, fastdl.functional as F
warnings.simplefilter("error")
try:
    F.matmul(torch.empty(2, 3, device="meta"), torch.empty(3, 2, device="meta"))
except UserWarning as warning:
    print(warning)
try:
    fastdl.use_backend("triton")
except ValueError as error:
    print(error)
"""
    first, second = python(code).stdout.splitlines()
    assert first.startswith("matmul: torch's operator serves this call (importing triton failed: ModuleNotFoundError")
    assert second.startswith("use_backend: name is 'triton', which cannot run here: importing triton failed")


def test_registered_beside_the_default_order():
    assert "triton" not in [name for name, _, _ in op.backend_report()]
    assert "triton" in op._backends


@triton
def test_either_of_torchs_interfaces_says_whether_tf32_is_allowed():
    code = """
import torch
from fastdl.gpu.device import tf32_allowed
print(tf32_allowed("matmul"), tf32_allowed("conv"), tf32_allowed("rnn"))
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    print(tf32_allowed("matmul"), tf32_allowed("conv"), tf32_allowed("rnn"))
"""
    assert python(code).stdout.splitlines() in (["False True True", "True False True"], ["False True True"])
