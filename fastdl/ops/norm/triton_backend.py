"""Normalisation on a GPU. Statistics are float32 whatever the input; partial sums are added in a fixed order."""

from __future__ import annotations

import math

import torch

from ...gpu import configs, device
from ...gpu.launch import cdiv, launch, power_of_two
from ...gpu.memory import dense, laid_out_as
from ..triton_columns import add_columns
from . import triton_channels, triton_groups, triton_rows

LARGEST_ROW = 1 << 16  # elements of a row that a tile can hold


def _sum(parts, like):
    out = torch.empty(parts.shape[1], dtype=like.dtype, device=like.device)
    add_columns(parts, out)
    return out


# ------------------------------------------------------------------------------------------------ layer_norm
def layer_norm_supports(arrays, params):
    n = math.prod(arrays[0].shape[-params.ndim:])
    return f"its rows have {n} elements; the rule is at most {LARGEST_ROW}" if n > LARGEST_ROW else None


def _tile(n, rows):
    width = power_of_two(n)
    height = max(1, min(2048 // width, power_of_two(rows)))
    return dict(BR=height, BN=width, num_warps=max(1, min(16, width * height // 512)))


def layer_norm(arrays, params, train):
    x, weight, bias = arrays
    x = x.contiguous()
    n = math.prod(x.shape[x.ndim - params.ndim:])
    rows = math.prod(x.shape[:x.ndim - params.ndim])
    y = torch.empty_like(x)
    mean, inverse_std = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    if y.numel():
        tile = _tile(n, rows)
        launch(triton_rows.layer_norm, (cdiv(rows, tile["BR"]),), x, x, _flat(weight), _flat(bias), y, mean, inverse_std, rows, n,
               float(params.eps), WEIGHT=weight is not None, BIAS=bias is not None, **tile)
    return y, (x, mean, inverse_std)


def _flat(a):
    return None if a is None else a.contiguous()


def layer_norm_backward(grad, arrays, saved, params, needs):
    x, mean, inverse_std = saved
    weight = arrays[1]
    rows = mean.numel()
    n = math.prod(x.shape[x.ndim - params.ndim:])
    dx = torch.empty_like(x) if needs[0] else None
    if x.numel() == 0:
        return dx, *(torch.zeros_like(a) if need else None for a, need in zip(arrays[1:], needs[1:], strict=True))
    tile = _tile(n, rows)
    programs = cdiv(rows, tile["BR"])
    if needs[1] or needs[2]:  # each has a sum of its own for every column
        programs = min(programs, 4 * device.of(x).multiprocessors)
    chunk = cdiv(cdiv(rows, tile["BR"]), programs) * tile["BR"]
    programs = cdiv(rows, chunk)
    dweight, dbias = (torch.empty((programs, n), dtype=torch.float32, device=x.device) if need else None for need in needs[1:])
    launch(triton_rows.layer_norm_backward, (programs,), x, grad.contiguous(), x, _flat(weight), mean, inverse_std, dx, dweight, dbias,
           rows, n, chunk, WEIGHT=weight is not None, NEED_X=needs[0], NEED_WEIGHT=needs[1], NEED_BIAS=needs[2], **tile)
    return dx, *(None if parts is None else _sum(parts, x).view(x.shape[x.ndim - params.ndim:]) for parts in (dweight, dbias))


# ------------------------------------------------------------------------------------------------ batch_norm
def _as_channels(x):
    """(x, C, size, sn, ss, sc): x (N, C, ...) in memory that is contiguous or channels-last, and where its elements are."""
    x = dense(x)
    n, channels = x.shape[:2]
    size = math.prod(x.shape[2:])
    if x.is_contiguous():
        return x, (channels, size, channels * size, 1, size)
    if not x.movedim(1, -1).is_contiguous():
        return _as_channels(x.contiguous())
    return x, (channels, size, channels * size, channels, 1)


def _channel_tiles(x, where, rows, channels):
    """(tile, chunk, parts, column blocks) for a walk over (position, channel)."""
    side_by_side = where[-1] == 1
    tile = dict(configs.pick("channels", device.of(x), side_by_side=int(side_by_side), channels=channels))
    while (columns := cdiv(channels, tile["BC"])) >= 1 << 16:  # as many as a grid's second dimension can have
        tile |= dict(BC=2 * tile["BC"], BR=max(16, tile["BR"] // 2))
    parts = max(1, min(cdiv(rows, tile["BR"]), cdiv(4 * device.of(x).multiprocessors, columns)))
    chunk = cdiv(cdiv(rows, tile["BR"]), parts) * tile["BR"]
    return tile, chunk, cdiv(rows, chunk), columns


def batch_norm(arrays, params, train):
    x, running_mean, running_var, weight, bias = arrays
    given = x
    x, where = _as_channels(x)
    channels, size = where[:2]
    rows = x.shape[0] * size
    y = torch.empty_like(x)
    mean, inverse_std = torch.empty((2, channels), dtype=torch.float32, device=x.device)
    if rows == 0 or channels == 0:
        return y, (given, mean.zero_(), inverse_std.fill_(1.0))
    tile, chunk, parts, columns = _channel_tiles(x, where, rows, channels)
    if params.training:
        means, squares = torch.empty((2, parts, channels), dtype=torch.float32, device=x.device)
        launch(triton_channels.moments, (parts, columns), x, x, means, squares, rows, *where, chunk, **tile)
        launch(triton_channels.merge_moments, (cdiv(channels, 32),), x, means, squares, mean, inverse_std, running_mean, running_var, rows,
               channels, parts, chunk, float(params.eps), float(params.momentum), UPDATE=running_mean is not None, BC=32, num_warps=1)
    else:
        mean.copy_(running_mean)
        inverse_std.copy_((running_var.float() + params.eps).rsqrt())
    launch(triton_channels.normalise, (cdiv(rows, tile["BR"]), columns), x, x, y, mean, inverse_std, _flat(weight), _flat(bias), rows,
           *where, WEIGHT=weight is not None, BIAS=bias is not None, **tile)
    return y, (x, mean, inverse_std)


def batch_norm_backward(grad, arrays, saved, params, needs):
    x, mean, inverse_std = saved
    weight = arrays[3]
    x, where = _as_channels(x)
    channels, size = where[:2]
    rows = x.shape[0] * size
    dx = torch.empty_like(x) if needs[0] else None
    if rows == 0 or channels == 0:
        return dx, None, None, *(torch.zeros_like(a) if need else None for a, need in zip(arrays[3:], needs[3:], strict=True))
    grad = laid_out_as(grad, x)
    tile, chunk, parts, columns = _channel_tiles(x, where, rows, channels)
    sums = None, None
    if needs[3] or needs[4] or params.training:
        partial = torch.empty((2, parts, channels), dtype=torch.float32, device=x.device)
        launch(triton_channels.gradient_sums, (parts, columns), x, grad, x, mean, inverse_std, *partial, rows, *where, chunk, **tile)
        sums = _sum(partial[0], mean), _sum(partial[1], mean)
    if needs[0]:
        launch(triton_channels.input_gradient, (cdiv(rows, tile["BR"]), columns), x, grad, x, mean, inverse_std, _flat(weight), *sums, dx,
               rows, *where, WEIGHT=weight is not None, TRAINING=params.training, **tile)
    return dx, None, None, sums[0].to(x.dtype) if needs[3] else None, sums[1].to(x.dtype) if needs[4] else None


# ------------------------------------------------------------------------------------------------ group_norm
def _group_tile(x, where, per_group):
    side_by_side = where[-1] == 1
    tile = configs.pick("groups", device.of(x), side_by_side=int(side_by_side))
    wide = min(tile["BC"], power_of_two(per_group))
    return tile | dict(BC=wide, BS=tile["BS"] * tile["BC"] // wide, UNIT=math.gcd(per_group, 16))


def group_norm(arrays, params, train):
    x, weight, bias = arrays
    x, where = _as_channels(x)
    channels, size, sn, ss, sc = where
    y = torch.empty_like(x)
    items = x.shape[0] * params.num_groups
    mean, inverse_std = torch.empty((2, items), dtype=torch.float32, device=x.device)
    if y.numel():
        per_group = channels // params.num_groups
        tile = _group_tile(x, where, per_group)
        launch(triton_groups.group_norm, (items,), x, x, _flat(weight), _flat(bias), y, mean, inverse_std, params.num_groups,
               per_group // tile["UNIT"], size, sn, sc, ss, float(params.eps), WEIGHT=weight is not None, BIAS=bias is not None, **tile)
    return y, (x, mean, inverse_std)


def group_norm_backward(grad, arrays, saved, params, needs):
    x, mean, inverse_std = saved
    weight = arrays[1]
    x, where = _as_channels(x)
    channels, size, sn, ss, sc = where
    dx = torch.empty_like(x)
    if x.numel() == 0:
        return dx, *(torch.zeros_like(a) if need else None for a, need in zip(arrays[1:], needs[1:], strict=True))
    parts = torch.empty((2, x.shape[0], channels), dtype=torch.float32, device=x.device)
    per_group = channels // params.num_groups
    tile = _group_tile(x, where, per_group)
    launch(triton_groups.group_norm_backward, (mean.numel(),), x, laid_out_as(grad, x), x, _flat(weight), mean, inverse_std, dx, *parts,
           params.num_groups, per_group // tile["UNIT"], size, sn, sc, ss, WEIGHT=weight is not None, **tile)
    return dx, *(_sum(part, x) if need else None for part, need in zip(parts, needs[1:], strict=True))
