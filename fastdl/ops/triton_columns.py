"""The gradient at a fused activation, and the bias's: one pass over a (rows, channels) gradient. Shared by linear and convolution."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..gpu import configs, device
from ..gpu.launch import cdiv, launch
from ..gpu.math import activation_slope
from .activation import Activation


@triton.jit
def columns(grad, source, dz, parts, R, C, sgr, sgc, ssr, ssc, slope, chunk,
            BR: tl.constexpr, BC: tl.constexpr, ACT: tl.constexpr, INPUT: tl.constexpr, SUM: tl.constexpr):
    """dz = grad * activation'(source), and its sums over a chunk of rows: parts (chunks, C)."""
    part = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = (c < C)[None, :]
    total = tl.zeros((BR, BC), tl.float32)
    for r0 in range(part * chunk, tl.minimum((part + 1) * chunk, R), BR):
        r = r0 + tl.arange(0, BR)
        inside = (r < R)[:, None] & in_c
        r64 = r.to(tl.int64)[:, None]
        d = tl.load(grad + r64 * sgr + c[None, :].to(tl.int64) * sgc, mask=inside, other=0.0).to(tl.float32)
        if ACT != "none":
            v = tl.load(source + r64 * ssr + c[None, :].to(tl.int64) * ssc, mask=inside, other=0.0).to(tl.float32)
            d = activation_gradient(d, v, ACT, slope, INPUT)
            tl.store(dz + r64 * C + c[None, :], d.to(dz.dtype.element_ty), mask=inside)
        total += d
    if SUM:
        tl.store(parts + part.to(tl.int64) * C + c, tl.sum(tl.where(in_c, total, 0.0), 0), mask=c < C)


@triton.jit
def activation_gradient(d, v, ACT: tl.constexpr, slope, INPUT: tl.constexpr):
    """d times the activation's derivative; where that is 0 by relu's rule, 0 whatever d is."""
    if ACT == "relu":
        return tl.where(v <= 0, 0.0, d)
    else:
        return d * activation_slope(v, ACT, slope, INPUT)


@triton.jit
def add_parts(parts, out, n_parts, C, BP: tl.constexpr, BC: tl.constexpr):
    """The sum over the first axis of (n_parts, C), in a fixed order."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros((BP, BC), tl.float32)
    for p0 in range(0, n_parts, BP):
        p = p0 + tl.arange(0, BP)
        total += tl.load(parts + p.to(tl.int64)[:, None] * C + c[None, :], mask=(p < n_parts)[:, None] & (c < C)[None, :], other=0.0)
    tl.store(out + c, tl.sum(total, 0).to(out.dtype.element_ty), mask=c < C)


def gradient_of_last_step(grad, source, activation: Activation | None, from_input: bool, need_dz: bool, need_sum: bool):
    """(dz, db): the gradient before bias and activation (rows, channels), and its sum over rows, None where not needed.

    grad, source: (rows, channels), any strides; source is the activation's output, or its input where ``from_input``.
    """
    rows, channels = grad.shape
    if activation is None and not need_sum:
        return grad, None
    db = torch.zeros(channels, dtype=grad.dtype, device=grad.device) if need_sum else None
    dz = grad if activation is None else torch.empty((rows, channels), dtype=grad.dtype, device=grad.device)
    if grad.numel() == 0:
        return dz, db
    where = device.of(grad)
    config = dict(configs.pick("columns", where, rows=rows, channels=channels))
    columns_of_programs = cdiv(channels, config["BC"])
    most = max(1, min(cdiv(rows, config["BR"]), 4 * where.multiprocessors // columns_of_programs))
    chunk = cdiv(cdiv(rows, config["BR"]), most) * config["BR"]
    n_parts = cdiv(rows, chunk)
    parts = torch.empty((n_parts, channels), dtype=torch.float32, device=grad.device) if need_sum else None
    name, slope = ("none", 0.0) if activation is None else activation
    source = grad if source is None else source
    launch(columns, (n_parts, columns_of_programs), grad, grad, source, dz, parts, rows, channels, *grad.stride(), *source.stride(),
           float(slope), chunk, ACT=name, INPUT=from_input, SUM=need_sum, **config)
    if need_sum:
        add_columns(parts, db)
    return dz, db


def add_columns(parts, out) -> None:
    """out (channels,) becomes the sum of parts (n, channels), float32 and contiguous, over the first axis."""
    n_parts, channels = parts.shape
    config = configs.pick("add_parts", device.of(out), parts=n_parts)
    launch(add_parts, (cdiv(channels, config["BC"]),), out, parts, out, n_parts, channels, **config)
