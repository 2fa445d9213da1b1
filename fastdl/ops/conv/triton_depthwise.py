"""Depthwise convolution in Triton: no products of matrices, so memory is what counts. Channels-last.

Geometry as in triton_correlate.py. The weights' gradient sums over positions by parts, added in a fixed order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ...gpu import configs, device
from ...gpu.launch import cdiv, launch
from ...gpu.math import activate
from ..triton_columns import add_columns


@triton.jit
def depthwise(x, w, y, z, bias, M, K, multiple, size_d, size_h, size_w, qd, qh, qw,  # x (N, D, H, W, K / multiple), y (N, ..., K)
              xn, xd, xh, xw, wk, wt_d, wt_h, wt_w, yn, yd, yh, yw,
              in_stride_d, in_stride_h, in_stride_w, in_first_d, in_first_h, in_first_w, in_step_d, in_step_h, in_step_w,
              out_stride_d, out_stride_h, out_stride_w, out_first_d, out_first_h, out_first_w, w_first, slope,
              TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, TRANSPOSED: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
              ACT: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP: tl.constexpr):
    """TRANSPOSED: K are x's channels, of which ``multiple`` are summed into one of y's."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.program_id(1) * BC + tl.arange(0, BC)
    in_m, in_k = m < M, k < K
    at_w = m % qw
    rest = m // qw
    at_h = rest % qh
    rest = rest // qh
    at_d = rest % qd
    n = (rest // qd).to(tl.int64)
    d0 = at_d * in_stride_d + in_first_d
    h0 = at_h * in_stride_h + in_first_h
    w0 = at_w * in_stride_w + in_first_w
    acc = tl.zeros((BM, BC), tl.float32)
    for extra in range(multiple if TRANSPOSED else 1):
        if TRANSPOSED:
            channel = k * multiple + extra
            weight = channel
        else:
            channel = k // multiple
            weight = k
        for jd in tl.static_range(TD):
            d = d0 + jd * in_step_d
            for jh in tl.static_range(TH):
                h = h0 + jh * in_step_h
                for jw in tl.static_range(TW):
                    v = w0 + jw * in_step_w
                    inside = in_m & (d >= 0) & (d < size_d) & (h >= 0) & (h < size_h) & (v >= 0) & (v < size_w)
                    row = n * xn + d.to(tl.int64) * xd + h.to(tl.int64) * xh + v.to(tl.int64) * xw
                    a = tl.load(x + row[:, None] + channel[None, :], mask=inside[:, None] & in_k[None, :], other=0.0).to(tl.float32)
                    f = tl.load(w + w_first + weight.to(tl.int64) * wk + jd * wt_d + jh * wt_h + jw * wt_w, mask=in_k, other=0.0)
                    acc += a * f.to(tl.float32)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + k, mask=in_k, other=0.0).to(tl.float32)[None, :]
    row = n * yn + (at_d * out_stride_d + out_first_d).to(tl.int64) * yd
    row += (at_h * out_stride_h + out_first_h).to(tl.int64) * yh + (at_w * out_stride_w + out_first_w).to(tl.int64) * yw
    where = row[:, None] + k[None, :]
    store = in_m[:, None] & in_k[None, :]
    if KEEP:
        tl.store(z + where, acc.to(z.dtype.element_ty), mask=store)
    tl.store(y + where, activate(acc, ACT, slope).to(y.dtype.element_ty), mask=store)


@triton.jit
def depthwise_weights(dy, x, parts, P, K, multiple, size_d, size_h, size_w, qd, qh, qw, yn, yd, yh, yw, xn, xd, xh, xw,
                      stride_d, stride_h, stride_w, before_d, before_h, before_w, step_d, step_h, step_w, chunk,
                      TH: tl.constexpr, TW: tl.constexpr, TAPS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """parts (splits, K, TAPS) float32: for a chunk of positions, dy times the input cell under one tap, summed."""
    split = tl.program_id(0)
    k = tl.program_id(1) * BC + tl.arange(0, BC)
    in_k = k < K
    tap = tl.program_id(2)
    jw = tap % TW
    jh = tap // TW % TH
    jd = tap // (TW * TH)
    acc = tl.zeros((BM, BC), tl.float32)
    stop = tl.minimum((split + 1) * chunk, P)
    for p0 in range(split * chunk, stop, BM):
        p = p0 + tl.arange(0, BM)
        at_w = p % qw
        rest = p // qw
        at_h = rest % qh
        rest = rest // qh
        at_d = rest % qd
        n = (rest // qd).to(tl.int64)
        d = at_d * stride_d - before_d + jd * step_d
        h = at_h * stride_h - before_h + jh * step_h
        v = at_w * stride_w - before_w + jw * step_w
        inside = (p < stop) & (d >= 0) & (d < size_d) & (h >= 0) & (h < size_h) & (v >= 0) & (v < size_w)
        mask = inside[:, None] & in_k[None, :]
        row = n * yn + at_d.to(tl.int64) * yd + at_h.to(tl.int64) * yh + at_w.to(tl.int64) * yw
        g = tl.load(dy + row[:, None] + k[None, :], mask=mask, other=0.0).to(tl.float32)
        row = n * xn + d.to(tl.int64) * xd + h.to(tl.int64) * xh + v.to(tl.int64) * xw
        acc += g * tl.load(x + row[:, None] + (k // multiple)[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(parts + (split.to(tl.int64) * K + k) * TAPS + tap, tl.sum(acc, 0), mask=in_k)


def run(x, w, out_size, axes, multiple, *, transposed, bias=None, activation=None, keep=False):
    """(y, z) as triton_correlate.run answers them; w (channels, 1, kd, kh, kw)."""
    n = x.shape[0]
    outputs = x.shape[1] // multiple if transposed else x.shape[1] * multiple
    y = torch.empty((n, *out_size, outputs), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if keep else None
    name, slope = ("none", 0.0) if activation is None else activation
    config = configs.pick("depthwise", device.of(x), channels=outputs)
    strides = w.stride()[2:]
    for axis in axes if y.numel() else ():
        w_first = sum(a.tap_first * s for a, s in zip(axis, strides, strict=True))
        cells = [a.cells for a in axis]
        m = n * math.prod(cells)
        launch(depthwise, (cdiv(m, config["BM"]), cdiv(outputs, config["BC"])), x, x, w, y, z, bias, m, outputs, multiple, *x.shape[2:],
               *cells, x.stride(0), *x.stride()[2:], w.stride(0), *(a.tap_step * s for a, s in zip(axis, strides, strict=True)),
               *y.stride()[:4], *(a.in_stride for a in axis), *(a.in_first for a in axis), *(a.in_step for a in axis),
               *(a.out_stride for a in axis), *(a.out_first for a in axis), w_first, float(slope),
               TD=axis[0].taps, TH=axis[1].taps, TW=axis[2].taps, TRANSPOSED=transposed, ACT=name,
               HAS_BIAS=bias is not None, KEEP=keep, **config)
    return y.movedim(-1, 1), None if z is None else z.movedim(-1, 1)


def weights(dy, x, params, kernel, multiple):
    """dw (K, 1, kd, kh, kw) from dy (N, K, ...) and x (N, K / multiple, ...), both channels-last."""
    n, outputs, *cells = dy.shape
    taps = math.prod(kernel)
    dw = torch.empty((outputs, 1, *kernel), dtype=x.dtype, device=x.device)
    positions = n * math.prod(cells)
    if positions == 0:
        return dw.zero_()
    where = device.of(x)
    config = configs.pick("depthwise", where, channels=outputs)
    columns = cdiv(outputs, config["BC"])
    splits = max(1, min(cdiv(positions, config["BM"]), cdiv(4 * where.multiprocessors, columns * taps)))
    chunk = cdiv(cdiv(positions, config["BM"]), splits) * config["BM"]
    splits = cdiv(positions, chunk)
    parts = torch.empty((splits, dw.numel()), dtype=torch.float32, device=x.device)
    launch(depthwise_weights, (splits, columns, taps), x, dy, x, parts, positions, outputs, multiple, *x.shape[2:], *cells, dy.stride(0),
           *dy.stride()[2:], x.stride(0), *x.stride()[2:], *params.stride, *(b for b, _ in params.padding), *params.dilation, chunk,
           TH=kernel[1], TW=kernel[2], TAPS=taps, **config)
    add_columns(parts, dw.view(-1))
    return dw
