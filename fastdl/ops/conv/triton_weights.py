"""The gradient of a convolution's weights in Triton: a matrix product whose reduction runs over positions.

dw[k, tap, c] = sum over positions q of dy[q, k] * x[q * stride + tap * dilation - before, c]. A tile is BM output channels by BN
input channels of one tap (or, of few channels, BN pairs of tap and channel: FLAT). Positions are cut into chunks, whose sums are
stored apart and added in a fixed order: the gradient has the same bits every time.

On Hopper and later the copy engine loads boxes of positions, as in triton_tiles.py, of both. What lies outside dy is zeros, and they
multiply what lies under them: a NaN at an image's edge reaches all taps.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ...gpu import configs, device
from ...gpu.launch import cdiv, launch
from ...gpu.math import dot
from ..triton_columns import add_columns
from . import triton_tiles


@triton.jit
def weight_gradient(dy, x, parts, P, K, C, groups, size_d, size_h, size_w, qd, qh, qw, yn, yd, yh, yw, xn, xd, xh, xw,
                    stride_d, stride_h, stride_w, before_d, before_h, before_w, step_d, step_h, step_w, chunk, tiles, part_size,
                    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, FLAT: tl.constexpr,
                    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """parts: (splits, groups * K, taps * C), float32 where there are several; K and C are a group's channels."""
    t = tl.program_id(0)
    split, t = t // tiles, t % tiles
    if FLAT:
        across = tl.cdiv(TD * TH * TW * C, BN)
    else:
        blocks = tl.cdiv(C, BN)
        across = TD * TH * TW * blocks
    down = tl.cdiv(K, BM)
    group, t = t // (across * down), t % (across * down)
    k = t % down * BM + tl.arange(0, BM)
    t = t // down
    if FLAT:
        r = t * BN + tl.arange(0, BN)
        c, tap = r % C, r // C
        in_c = r < TD * TH * TW * C
    else:
        c = t % blocks * BN + tl.arange(0, BN)
        tap = t // blocks
        in_c = c < C
        r = tap * C + c
    jw = tap % TW
    jh = tap // TW % TH
    jd = tap // (TW * TH)
    acc = tl.zeros((BM, BN), tl.float32)
    start = split * chunk
    stop = tl.minimum(start + chunk, P)
    for p0 in range(start, stop, BK):
        p = p0 + tl.arange(0, BK)
        in_p = p < stop
        at_w = p % qw
        rest = p // qw
        at_h = rest % qh
        rest = rest // qh
        at_d = rest % qd
        n = (rest // qd).to(tl.int64)
        row = n * yn + at_d.to(tl.int64) * yd + at_h.to(tl.int64) * yh + at_w.to(tl.int64) * yw
        a = tl.load(dy + group * K + row[None, :] + k[:, None], mask=in_p[None, :] & (k < K)[:, None], other=0.0)
        d = at_d * stride_d - before_d
        h = at_h * stride_h - before_h
        w = at_w * stride_w - before_w
        if FLAT:
            d2 = d[:, None] + (jd * step_d)[None, :]
            h2 = h[:, None] + (jh * step_h)[None, :]
            w2 = w[:, None] + (jw * step_w)[None, :]
            mask = in_p[:, None] & in_c[None, :] & (d2 >= 0) & (d2 < size_d) & (h2 >= 0) & (h2 < size_h) & (w2 >= 0) & (w2 < size_w)
            at = n[:, None] * xn + d2.to(tl.int64) * xd + h2.to(tl.int64) * xh + w2.to(tl.int64) * xw + c[None, :]
        else:
            d2 = d + jd * step_d
            h2 = h + jh * step_h
            w2 = w + jw * step_w
            inside = in_p & (d2 >= 0) & (d2 < size_d) & (h2 >= 0) & (h2 < size_h) & (w2 >= 0) & (w2 < size_w)
            mask = inside[:, None] & in_c[None, :]
            at = (n * xn + d2.to(tl.int64) * xd + h2.to(tl.int64) * xh + w2.to(tl.int64) * xw)[:, None] + c[None, :]
        b = tl.load(x + group * C + at, mask=mask, other=0.0)
        acc = dot(a, b, acc, PRECISION)
    where = split.to(tl.int64) * part_size + (group * K + k).to(tl.int64)[:, None] * (TD * TH * TW * C) + r[None, :]
    tl.store(parts + where, acc.to(parts.dtype.element_ty), mask=(k < K)[:, None] & in_c[None, :])


@triton.jit
def weight_gradient_by_tiles(dy, x, parts, tiles_n, tiles_h, tiles_w, K, C, first_h, first_w, step_h, step_w, chunk, tiles, part_size,
                             TH: tl.constexpr, TW: tl.constexpr, APART: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr,
                             BW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):
    """dy (N, H', W', K), x (N, H, W, C) or, APART, (N, H / 2, 2, W / 2, 2 C): descriptors; parts as in weight_gradient, chunks of boxes."""
    BK: tl.constexpr = BI * BH * BW
    t = tl.program_id(0)
    split, t = t // tiles, t % tiles
    down, blocks = tl.cdiv(K, BM), tl.cdiv(C, BN)
    k0 = t % down * BM
    c0 = t // down % blocks * BN
    tap = t // down // blocks
    from_h = first_h + tap // TW * step_h
    from_w = first_w + tap % TW * step_w
    acc = tl.zeros((BM, BN), tl.float32)
    for box in range(split * chunk, tl.minimum(split * chunk + chunk, tiles_n * tiles_h * tiles_w)):
        w0 = box % tiles_w * BW
        h0 = box // tiles_w % tiles_h * BH
        n0 = box // (tiles_w * tiles_h) * BI
        a = dy.load([n0, h0, w0, k0]).reshape(BK, BM)
        if APART:
            b = x.load([n0, h0 + (from_h >> 1), from_h & 1, w0 + (from_w >> 1), (from_w & 1) * C + c0]).reshape(BK, BN)
        else:
            b = x.load([n0, h0 + from_h, w0 + from_w, c0]).reshape(BK, BN)
        acc = dot(a.T, b, acc, PRECISION)
    k, c = k0 + tl.arange(0, BM), c0 + tl.arange(0, BN)
    where = split.to(tl.int64) * part_size + k.to(tl.int64)[:, None] * (TH * TW * C) + (tap * C + c)[None, :]
    tl.store(parts + where, acc.to(parts.dtype.element_ty), mask=(k < K)[:, None] & (c < C)[None, :])


def run(dy, x, params, kernel, *, tf32=True):
    """dw (K, C / groups, kd, kh, kw) from dy (N, K, ...) and x (N, C, ...), both channels-last.

    Names are a convolution's; for a transposed one, dy is its input and x the gradient of its output.
    """
    n, outputs, *cells = dy.shape
    groups = params.groups
    per_group, out_group, taps = x.shape[1] // groups, outputs // groups, math.prod(kernel)
    dw = torch.empty((outputs, *kernel, per_group), dtype=x.dtype, device=x.device)
    positions = n * math.prod(cells)
    if positions == 0:
        return dw.zero_().movedim(-1, 1)
    where = device.of(x)
    config = _tiles_config(dy, x, params, kernel, groups)
    if config is not None:
        parts = _by_tiles(dy, x, params, kernel, dw, dict(config), where)
        if parts is not dw:
            add_columns(parts, dw.view(-1))
        return dw.movedim(-1, 1)
    config = dict(configs.pick("weight_gradient", where, n=out_group, c=per_group, taps=taps, p=positions, bytes=x.element_size()))
    flat = per_group * 2 <= config["BN"] and taps > 1
    across = cdiv(taps * per_group, config["BN"]) if flat else taps * cdiv(per_group, config["BN"])
    tiles = across * cdiv(out_group, config["BM"]) * groups
    splits = max(1, min(config.pop("MAX_SPLITS"), 2 * where.multiprocessors // tiles, cdiv(positions, 4 * config["BK"])))
    chunk = cdiv(cdiv(positions, config["BK"]), splits) * config["BK"]
    splits = cdiv(positions, chunk)
    parts = dw if splits == 1 else torch.empty((splits, dw.numel()), dtype=torch.float32, device=x.device)
    launch(weight_gradient, (tiles * splits,), x, dy, x, parts, positions, out_group, per_group, groups, *x.shape[2:], *cells,
           dy.stride(0), *dy.stride()[2:], x.stride(0), *x.stride()[2:], *params.stride, *(b for b, _ in params.padding), *params.dilation,
           chunk, tiles, dw.numel(), TD=kernel[0], TH=kernel[1], TW=kernel[2], FLAT=flat, PRECISION=device.precision(x, where, tf32),
           **config)
    if splits > 1:
        add_columns(parts, dw.view(-1))
    return dw.movedim(-1, 1)


def _tiles_config(dy, x, params, kernel, groups):
    """The configuration with which the copy engine reads both, or None where it cannot."""
    where = device.of(x)
    if not where.tensor_memory_access or groups != 1 or x.element_size() != 2 or kernel[0] != 1 or dy.shape[2] != 1 or x.shape[2] != 1:
        return None
    stride = params.stride[1:]
    if params.padding[0] != (0, 0) or stride not in ((1, 1), (2, 2)) or (stride == (2, 2) and not triton_tiles.comes_in_twos(x)):
        return None
    if not (triton_tiles.described(x) and triton_tiles.described(dy)):
        return None
    config = configs.pick("weight_gradient_by_tiles", where, n=dy.shape[1], c=x.shape[1], taps=math.prod(kernel), p=dy[:, 0].numel())
    return config if config.get("use", 1) else None


def _by_tiles(dy, x, params, kernel, dw, config, where):
    """(splits, dw's elements), or dw itself where there is but one."""
    apart = params.stride[1] == 2
    (n, outputs, _, high, wide), channels = dy.shape, x.shape[1]
    shape = triton_tiles.box(n, high, wide, config.pop("BK"))
    x_last, dy_last = (t[:, :, 0].movedim(1, -1) for t in (x, dy))
    of_x = triton_tiles.in_twos(x_last, [*shape, config["BN"]]) if apart else TensorDescriptor.from_tensor(x_last, [*shape, config["BN"]])
    boxes = [cdiv(size, b) for size, b in zip((n, high, wide), shape, strict=True)]
    tiles = math.prod(kernel) * cdiv(outputs, config["BM"]) * cdiv(channels, config["BN"])
    splits = max(1, min(config.pop("MAX_SPLITS"), config.pop("PROGRAMS") * where.multiprocessors // tiles, cdiv(math.prod(boxes), 4)))
    chunk = cdiv(math.prod(boxes), splits)
    splits = cdiv(math.prod(boxes), chunk)
    parts = dw if splits == 1 else torch.empty((splits, dw.numel()), dtype=torch.float32, device=x.device)
    launch(weight_gradient_by_tiles, (tiles * splits,), x, TensorDescriptor.from_tensor(dy_last, [*shape, config["BM"]]), of_x, parts,
           *boxes, outputs, channels, -params.padding[1][0], -params.padding[2][0], *params.dilation[1:], chunk, tiles, dw.numel(),
           TH=kernel[1], TW=kernel[2], APART=apart, BI=shape[0], BH=shape[1], BW=shape[2], PRECISION=device.precision(x, where), **config)
    return parts
