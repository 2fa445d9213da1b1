"""Pooling on a GPU: one pass over the input forward, one over the output's gradient backward, in the layout they come in."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ...gpu import configs, device
from ...gpu.launch import cdiv, launch, power_of_two
from ...gpu.memory import empty_in_layout, is_channels_last
from . import triton_windows
from .geometry import PoolParams


class Layout(NamedTuple):
    """How a kernel walks (N, C, D, H, W) memory: over planes with lanes along w, or over pixels with lanes along channels."""

    planar: bool
    n: int  # planes, or images
    channels: int

    def rows_and_lanes(self, size):
        d, h, w = size
        return (self.n * d * h, w) if self.planar else (self.n * d * h * w, self.channels)

    def strides(self, size):
        """((item, d, h, w) of dense memory in units, the unit): the largest power of two up to 16 that divides what lanes do not walk."""
        d, h, w = size
        c = 1 if self.planar else self.channels
        unit = math.gcd(w * c if self.planar else c, 16)
        return tuple(s // unit for s in (d * h * w * c, h * w * c, w * c, c)), unit


def _layout(x):
    """(x in memory that kernels walk over, how)."""
    if is_channels_last(x):
        if not x.movedim(1, -1).is_contiguous():
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        return x, Layout(False, x.shape[0], x.shape[1])
    return x.contiguous(), Layout(True, x.shape[0] * x.shape[1], 1)


def _as_windows(x, params):
    """The params of equal windows where adaptive ones are that, else an adaptive form: (params, ADAPTIVE)."""
    if isinstance(params, PoolParams):
        return params, False
    size, zero, ones = tuple(x.shape[2:]), ((0, 0),) * 3, (1, 1, 1)
    if all(o and n % o == 0 for n, o in zip(size, params.out, strict=True)):
        window = tuple(n // o for n, o in zip(size, params.out, strict=True))
        return PoolParams(window, window, zero, ones, params.out, params.return_indices), False
    # a window of ceil or ceil + 1 elements
    window = tuple(min(n, cdiv(n, o) + (n % o != 0)) if o else 1 for n, o in zip(size, params.out, strict=True))
    return PoolParams(window, ones, zero, ones, params.out, params.return_indices), True


def _constants(params, adaptive):
    before, after = zip(*params.padding, strict=True)
    names = (("W", params.window), ("S", params.stride), ("B", before), ("A", after), ("D", params.dilation))
    return {letter + axis: value for letter, values in names for axis, value in zip("DHW", values, strict=True)} | {
        "ADAPTIVE": adaptive, "INCLUDE": params.count_include_pad, "GIVEN_DIVISOR": params.divisor_override is not None}


def _tile(x, rows, lanes, planar):
    config = configs.pick("pool", device.of(x), bytes=x.element_size(), planar=int(planar))
    width = min(power_of_two(lanes), config["LANES"])
    height = max(1, config["ELEMENTS"] // width)
    return dict(BR=height, BL=width, MANY=rows + height >= 1 << 31, num_warps=config["num_warps"])


def _pool(x, params, maximum, keep):
    params, adaptive = _as_windows(x, params)
    x, layout = _layout(x)
    size, out = tuple(x.shape[2:]), params.out
    shape = (*x.shape[:2], *out)
    y = empty_in_layout(shape, x.dtype, x.device, not layout.planar)
    index = places = None
    if keep:
        kind = torch.uint8 if math.prod(params.window) < 255 else torch.int32
        index = empty_in_layout(shape, kind, x.device, not layout.planar)
    if params.return_indices:
        places = empty_in_layout(shape, torch.int64, x.device, not layout.planar)
    if y.numel() == 0:
        return y, index, places
    rows, lanes = layout.rows_and_lanes(out)
    if not maximum and layout.planar and math.prod(out) == 1 and params.window == size and params.divisor_override is None:
        n = math.prod(size)
        tile = configs.pick("mean_of_rows", device.of(x), n=n)
        launch(triton_windows.mean_of_rows, (cdiv(layout.n, tile["BR"]),), x, x, y, layout.n, n, **tile)
        return y, None, None
    tile = _tile(x, rows, lanes, layout.planar)
    (x_strides, x_unit), (y_strides, y_unit) = layout.strides(size), layout.strides(out)
    pairs = layout.planar and not adaptive and params.stride[2] == 2 and params.dilation[2] == 1
    launch(triton_windows.pool, (cdiv(rows, tile["BR"]), cdiv(lanes, tile["BL"])), x, x, y, index, places, rows, lanes // y_unit,
           *size, *out, *x_strides, *y_strides, float(params.divisor_override or 1), **_constants(params, adaptive),
           LANES_ARE_W=layout.planar, PAIRS=pairs, MAX=maximum, KEEP=keep, PLACES=params.return_indices, X_UNIT=x_unit, Y_UNIT=y_unit,
           **tile)
    return y, index, places


def _side_by_side(params, adaptive, size):
    """Whether the windows cover the input and none meets another."""
    return (not adaptive and params.stride == params.window and params.padding == ((0, 0),) * 3
            and all(d == 1 or k == 1 for d, k in zip(params.dilation, params.window, strict=True))
            and all(o * k == n for o, k, n in zip(params.out, params.window, size, strict=True)))


def _pool_backward(grad, x, params, index, maximum):
    params, adaptive = _as_windows(x, params)
    planar = not is_channels_last(x)
    layout = Layout(planar, x.shape[0] * (x.shape[1] if planar else 1), 1 if planar else x.shape[1])
    dx = empty_in_layout(x.shape, x.dtype, x.device, not planar)
    if dx.numel() == 0 or grad is None or grad.numel() == 0:
        return dx.zero_()
    grad = grad.contiguous() if planar else grad.movedim(1, -1).contiguous().movedim(-1, 1)
    size, out = tuple(x.shape[2:]), params.out
    (x_strides, x_unit), (y_strides, y_unit) = layout.strides(size), layout.strides(out)
    if _side_by_side(params, adaptive, size):
        rows, lanes = layout.rows_and_lanes(out)
        tile = _tile(x, rows, lanes, planar)
        divisor = params.divisor_override or math.prod(params.window)
        window = dict(zip(("WD", "WH", "WW"), params.window, strict=True))
        launch(triton_windows.spread, (cdiv(rows, tile["BR"]), cdiv(lanes, tile["BL"])), x, grad, index, dx, rows, lanes // y_unit, *out,
               *x_strides, *y_strides, float(divisor), LANES_ARE_W=planar, MAX=maximum, X_UNIT=x_unit, Y_UNIT=y_unit, **window, **tile)
        return dx
    if adaptive:
        many = [cdiv(o, n) + 1 for n, o in zip(size, out, strict=True)]
    else:
        many = [cdiv(k, s) if d == 1 else k for k, s, d in zip(params.window, params.stride, params.dilation, strict=True)]
    rows, lanes = layout.rows_and_lanes(size)
    tile = _tile(x, rows, lanes, planar)
    launch(triton_windows.pool_backward, (cdiv(rows, tile["BR"]), cdiv(lanes, tile["BL"])), x, grad, index, dx, rows, lanes // x_unit,
           *size, *out, *x_strides, *y_strides, float(params.divisor_override or 1), **_constants(params, adaptive),
           JD=many[0], JH=many[1], JW=many[2], LANES_ARE_W=planar, MAX=maximum, X_UNIT=x_unit, Y_UNIT=y_unit, **tile)
    return dx


def max_pool(arrays, params, train):
    y, index, places = _pool(arrays[0], params, True, train)
    return ((y, places) if params.return_indices else y), index


def max_pool_backward(grad, arrays, index, params, needs):
    return (_pool_backward(grad[0] if params.return_indices else grad, arrays[0], params, index, True) if needs[0] else None,)


adaptive_max_pool = max_pool
adaptive_max_pool_backward = max_pool_backward


def avg_pool(arrays, params, train):
    return _pool(arrays[0], params, False, False)[0], None


def avg_pool_backward(grad, arrays, saved, params, needs):
    return (_pool_backward(grad, arrays[0], params, None, False) if needs[0] else None,)


adaptive_avg_pool = avg_pool
adaptive_avg_pool_backward = avg_pool_backward
