"""From planar memory to channels-last and back: tiles read along one order and written along the other."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ..gpu import configs, device
from ..gpu.launch import cdiv, launch
from ..gpu.memory import is_channels_last


@triton.jit
def turn(x, y, rows, columns, blocks, BR: tl.constexpr, BC: tl.constexpr):
    """y (items, columns, rows) from x (items, rows, columns), both contiguous."""
    t = tl.program_id(0)
    item = (t // blocks).to(tl.int64) * rows * columns
    t = t % blocks
    across = tl.cdiv(columns, BC)
    r = t // across * BR + tl.arange(0, BR)
    c = t % across * BC + tl.arange(0, BC)
    v = tl.load(x + item + r.to(tl.int64)[:, None] * columns + c[None, :], mask=(r < rows)[:, None] & (c < columns)[None, :], other=0.0)
    tl.store(y + item + c.to(tl.int64)[:, None] * rows + r[None, :], tl.trans(v), mask=(c < columns)[:, None] & (r < rows)[None, :])


def _turned(x, items, rows, columns, out):
    config = configs.pick("turn", device.of(x))
    blocks = cdiv(rows, config["BR"]) * cdiv(columns, config["BC"])
    launch(turn, (blocks * items,), x, x, out, rows, columns, blocks, **config)
    return out


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """x (N, C, ...) in channels-last memory: itself, or a copy."""
    last = x.movedim(1, -1)
    if last.is_contiguous():
        return x
    if not x.is_contiguous():
        return last.contiguous().movedim(-1, 1)
    n, channels = x.shape[:2]
    out = torch.empty(last.shape, dtype=x.dtype, device=x.device)
    return _turned(x, n, channels, math.prod(x.shape[2:]), out).movedim(-1, 1)


def planar(x: torch.Tensor) -> torch.Tensor:
    """x (N, C, ...), in channels-last memory, in contiguous memory."""
    if x.is_contiguous():
        return x
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return _turned(x, x.shape[0], math.prod(x.shape[2:]), x.shape[1], out)


def in_kind(y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """y, in channels-last memory, in the layout of ``like`` (the rule of ops/layout.py)."""
    return y if is_channels_last(like) else planar(y)
