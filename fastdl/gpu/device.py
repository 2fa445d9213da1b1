"""Which device a tensor is on, and whether kernels can run there."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch


class Device(NamedTuple):
    """What choosing a configuration asks of a device."""

    name: str  # "NVIDIA H200"; the name of its table in configs/ is made from it
    arch: str  # "sm_90", "gfx942", "interpreter"
    multiprocessors: int
    shared: int  # bytes of shared memory that one program may have

    @property
    def cuda(self) -> bool:
        return self.arch.startswith("sm_")

    @property
    def capability(self) -> int:
        """90 for sm_90; 0 where it is no CUDA device."""
        return int(self.arch[3:]) if self.cuda else 0

    @property
    def tensor_memory_access(self) -> bool:
        """Whether loads of whole tiles by the copy engine exist (the interpreter emulates them)."""
        return self.capability >= 90 or self.arch == "interpreter"


INTERPRETER = Device("interpreter", "interpreter", 4, 1 << 30)

# What a launch is recorded for where there is no device: one of each architecture that is compiled for ahead of time.
KNOWN = {
    "sm_80": Device("NVIDIA A100-SXM4-80GB", "sm_80", 108, 163 << 10),
    "sm_90": Device("NVIDIA H200", "sm_90", 132, 227 << 10),
    "sm_100": Device("NVIDIA B200", "sm_100", 148, 227 << 10),
    "gfx942": Device("AMD Instinct MI300X", "gfx942", 304, 64 << 10),
}

recording: Device | None = None  # set by launch.record: the device that meta tensors stand for


def interpreted() -> bool:
    """Whether Triton runs kernels in Python, on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def of(tensor: torch.Tensor) -> Device:
    """The device that runs the kernels of a call whose tensors are with this one."""
    kind = tensor.device.type
    if kind == "cuda":
        index = tensor.device.index
        return INTERPRETER if interpreted() else _device(torch.cuda.current_device() if index is None else index)
    return recording if kind == "meta" and recording is not None else INTERPRETER


@functools.cache
def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        arch = properties.gcnArchName.partition(":")[0]
    else:
        arch = f"sm_{properties.major}{properties.minor}"
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or 64 << 10
    return Device(properties.name, arch, properties.multi_processor_count, shared)


def refusal(tensor: torch.Tensor) -> str | None:
    """Why no kernel can run where this tensor is, or None."""
    kind = tensor.device.type
    if kind == "meta" and recording is None:
        return "the tensors are on the meta device, which holds no values"
    if kind == "cpu":
        return None if interpreted() else "the tensors are on the CPU, where Triton's kernels run only under TRITON_INTERPRET=1"
    if kind not in ("cuda", "meta"):
        return f"the tensors are on {kind}; the rule is a CUDA device (or ROCm's, which torch calls cuda)"
    device = of(tensor)
    if device.cuda and device.capability < 80:
        return f"{device.name} has compute capability {device.capability / 10:.1f}; the rule is 8.0 or newer"
    return None


def tf32_allowed(kind: str) -> bool:
    """torch's flag for "matmul", "conv" or "rnn": whether float32 products may be rounded to tf32."""
    legacy = torch.backends.cuda.matmul if kind == "matmul" else torch.backends.cudnn
    try:
        return legacy.allow_tf32
    except RuntimeError:  # the flag was set through torch's newer interface, after which the older one raises
        return (legacy if kind == "matmul" else getattr(torch.backends.cudnn, kind)).fp32_precision == "tf32"


def precision(a: torch.Tensor, where: Device, tf32: bool | None = None) -> str:
    """How math.dot multiplies operands like ``a``.

    float32 that may not be rounded to tf32 is taken as three tf32 products on CUDA, which keep about float32's accuracy. tf32: whether
    it may; None asks torch's flag for matrix products.
    """
    if a.dtype is not torch.float32:
        return "widened" if where is INTERPRETER and a.dtype is torch.bfloat16 else "ieee"
    if not where.cuda:
        return "ieee"
    return "tf32" if (tf32_allowed("matmul") if tf32 is None else tf32) else "tf32x3"
