"""The gradient of a convolution's weights in Triton: a matrix product whose reduction runs over positions.

dw[k, tap, c] = sum over positions q of dy[q, k] * x[q * stride + tap * dilation - before, c]. A tile is BM output channels by BN
input channels of one tap (or, of few channels, BN pairs of tap and channel: FLAT). Positions are cut into chunks, whose sums are
stored apart and added in a fixed order: the gradient has the same bits every time.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ...gpu import configs, device
from ...gpu.launch import cdiv, launch
from ...gpu.math import dot
from ..triton_columns import add_columns


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
