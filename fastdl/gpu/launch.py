"""The one place that launches a kernel, and where launches can be recorded instead.

Recording runs an operator's host code on meta tensors as if on a given device: what a call would launch there, with which
configuration, is then known, and can be compiled, without a GPU (ahead.py).
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch

from . import device, tape


class Launch(NamedTuple):
    kernel: Any
    grid: tuple
    args: tuple
    options: dict  # constexpr arguments by name, num_warps, num_stages


_records: list[Launch] | None = None


def launch(kernel, grid: tuple, like: torch.Tensor, *args, **options) -> None:
    """Run ``kernel`` over ``grid`` on the device of ``like``; nothing where the grid is empty."""
    if 0 in grid:
        return
    if _records is not None:
        _records.append(Launch(kernel, grid, args, options))
        return
    # Contraction into fused multiply-adds is wanted, and said, since Triton's default is about to change.
    options["enable_fp_fusion"] = True
    recorder = tape.recorder()
    if recorder is not None:
        recorder.aside = True
    elsewhere = like.is_cuda and like.device.index != torch.cuda.current_device()
    with torch.cuda.device(like.device) if elsewhere else contextlib.nullcontext():
        compiled = kernel[grid](*args, **options)
    if recorder is not None:
        recorder.aside = False
        recorder.launched(kernel, grid, like, args, options, compiled)


@contextlib.contextmanager
def record(target: device.Device):
    """Collect launches, in a list, instead of running them; meta tensors stand for tensors on ``target``.

    Not for several threads at once.
    """
    global _records
    if _records is not None:
        raise RuntimeError("record: launches are being recorded already")
    _records, device.recording = [], target
    try:
        yield _records
    finally:
        _records, device.recording = None, None


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()
