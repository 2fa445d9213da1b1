"""Convolution as an implicit matrix product in Triton, over channels-last memory.

One kernel serves a convolution, its data gradient and a transposed convolution, since each is, in every dimension,

    y[q * out_stride + out_first] = sum over j of w[tap_first + j * tap_step] @ x[q * in_stride + in_first + j * in_step]

A convolution is that with in_stride = stride and in_step = dilation. Its transpose is one such sum for each *phase*, the output
cells that leave the same rest when divided by the stride: only the taps that reach them are multiplied, none by zeros.

A tile is BM positions q by BN output channels; the reduction runs over taps and blocks of BK input channels. Where there are few
input channels, a block spans taps (FLAT). With POOL, positions come in fours, the windows of a 2 x 2 max-pool, of which the largest is
stored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...gpu import configs, device
from ...gpu.launch import cdiv, launch
from ...gpu.math import activate, dot
from ..matmul.triton_kernels import add_splits, tile_of


@triton.jit
def larger(a, b):
    """The larger; NaN where either is."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def place(m, qd, qh, qw):
    """(n, d, h, w) of the m-th cell."""
    rest = m // qw
    return (rest // qh // qd).to(tl.int64), rest // qh % qd, rest % qh, m % qw


@triton.jit
def correlate(x, w, y, z, bias, M, C, K, groups, size_d, size_h, size_w, qd, qh, qw,
              xn, xd, xh, xw, wk, wc, wt_d, wt_h, wt_w, yn, yd, yh, yw,
              in_stride_d, in_stride_h, in_stride_w, in_first_d, in_first_h, in_first_w, in_step_d, in_step_h, in_step_w,
              out_stride_d, out_stride_h, out_stride_w, out_first_d, out_first_h, out_first_w, w_first, slope, chunk, tiles, part_size,
              TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, FLAT: tl.constexpr, INSIDE: tl.constexpr, EVEN_C: tl.constexpr,
              BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
              ACT: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr, PARTIAL: tl.constexpr,
              POOL: tl.constexpr):
    """C and K: input and output channels of a group. INSIDE: no tap leaves x. w_first: the offset of the first tap.

    POOL: qh and qw count windows, M four positions for each.
    """
    rows, columns = tl.cdiv(M, BM), tl.cdiv(K, BN)
    t = tl.program_id(0)
    split, t = t // tiles, t % tiles
    group, t = t // (rows * columns), t % (rows * columns)
    im, ik = tile_of(t, rows, columns, GROUP)
    m = im * BM + tl.arange(0, BM)
    in_m = m < M
    n, at_d, at_h, at_w = place(m // 4 if POOL else m, qd, qh, qw)
    if POOL:
        at_h = 2 * at_h + m // 2 % 2
        at_w = 2 * at_w + m % 2
    d0 = at_d * in_stride_d + in_first_d
    h0 = at_h * in_stride_h + in_first_h
    w0 = at_w * in_stride_w + in_first_w
    first = x + group * C + n * xn + d0.to(tl.int64) * xd + h0.to(tl.int64) * xh + w0.to(tl.int64) * xw
    k = ik * BN + tl.arange(0, BN)
    in_k = k < K
    filters = w + w_first + (group * K + k).to(tl.int64) * wk
    acc = tl.zeros((BM, BN), tl.float32)
    if FLAT:
        length = TD * TH * TW * C
        steps = tl.cdiv(length, BK)
    else:
        blocks = tl.cdiv(C, BK)
        steps = TD * TH * TW * blocks
    start = split * chunk
    for step in range(start, tl.minimum(start + chunk, steps)):
        if FLAT:
            r = step * BK + tl.arange(0, BK)
            c = r % C
            tap = r // C
            jw = tap % TW
            jh = tap // TW % TH
            jd = tap // (TW * TH)
            in_c = r < length
            at = jd.to(tl.int64) * in_step_d * xd + jh.to(tl.int64) * in_step_h * xh + jw.to(tl.int64) * in_step_w * xw + c
            mask = in_m[:, None] & in_c[None, :]
            if not INSIDE:
                at_d2 = d0[:, None] + (jd * in_step_d)[None, :]
                at_h2 = h0[:, None] + (jh * in_step_h)[None, :]
                at_w2 = w0[:, None] + (jw * in_step_w)[None, :]
                mask = mask & (at_d2 >= 0) & (at_d2 < size_d) & (at_h2 >= 0) & (at_h2 < size_h) & (at_w2 >= 0) & (at_w2 < size_w)
            a = tl.load(first[:, None] + at[None, :], mask=mask, other=0.0)
            of_tap = jd.to(tl.int64) * wt_d + jh.to(tl.int64) * wt_h + jw.to(tl.int64) * wt_w + c.to(tl.int64) * wc
            b = tl.load(filters[None, :] + of_tap[:, None], mask=in_c[:, None] & in_k[None, :], other=0.0)
        else:
            tap = step // blocks
            c = (step % blocks) * BK + tl.arange(0, BK)
            jw = tap % TW
            jh = tap // TW % TH
            jd = tap // (TW * TH)
            zero = tl.full((), 0, tl.int64)
            at = (zero + jd * in_step_d) * xd + (zero + jh * in_step_h) * xh + (zero + jw * in_step_w) * xw
            inside = in_m
            if not INSIDE:
                if TD > 1:
                    inside = inside & (d0 + jd * in_step_d >= 0) & (d0 + jd * in_step_d < size_d)
                else:
                    inside = inside & (d0 >= 0) & (d0 < size_d)
                inside = inside & (h0 + jh * in_step_h >= 0) & (h0 + jh * in_step_h < size_h)
                inside = inside & (w0 + jw * in_step_w >= 0) & (w0 + jw * in_step_w < size_w)
            of_tap = (zero + jd) * wt_d + (zero + jh) * wt_h + (zero + jw) * wt_w
            if EVEN_C:
                a = tl.load(first[:, None] + (at + c)[None, :], mask=inside[:, None], other=0.0)
                b = tl.load(filters[None, :] + (of_tap + c.to(tl.int64) * wc)[:, None], mask=in_k[None, :], other=0.0)
            else:
                in_c = c < C
                a = tl.load(first[:, None] + (at + c)[None, :], mask=inside[:, None] & in_c[None, :], other=0.0)
                b = tl.load(filters[None, :] + (of_tap + c.to(tl.int64) * wc)[:, None], mask=in_c[:, None] & in_k[None, :], other=0.0)
        acc = dot(a, b, acc, PRECISION)
    store = in_m[:, None] & in_k[None, :]
    if PARTIAL:
        where = split.to(tl.int64) * part_size + m.to(tl.int64)[:, None] * (groups * K) + (group * K + k)[None, :]
        tl.store(y + where, acc, mask=store)
    else:
        if HAS_BIAS:
            acc += tl.load(bias + group * K + k, mask=in_k, other=0.0).to(tl.float32)[None, :]
        out = activate(acc, ACT, slope)
        if POOL:
            out = tl.reduce(tl.reshape(out, (BM // 4, 4, BN)), 1, larger)
            window = im * (BM // 4) + tl.arange(0, BM // 4)
            n, at_d, at_h, at_w = place(window, qd, qh, qw)
            store = (window * 4 < M)[:, None] & in_k[None, :]
        row = n * yn + (at_d * out_stride_d + out_first_d).to(tl.int64) * yd
        row += (at_h * out_stride_h + out_first_h).to(tl.int64) * yh + (at_w * out_stride_w + out_first_w).to(tl.int64) * yw
        where = row[:, None] + (group * K + k)[None, :]
        if KEEP:
            tl.store(z + where, acc.to(z.dtype.element_ty), mask=store)
        tl.store(y + where, out.to(y.dtype.element_ty), mask=store)


class Axis(NamedTuple):
    """One dimension of the sum above: ``cells`` output cells q, ``taps`` kernel cells."""

    cells: int
    taps: int
    in_stride: int
    in_first: int
    in_step: int
    out_stride: int
    out_first: int
    tap_first: int
    tap_step: int

    def within(self, size):
        """Whether no tap of any cell leaves an input of ``size`` cells."""
        reach = (self.taps - 1) * self.in_step
        last = (self.cells - 1) * self.in_stride + self.in_first
        return self.in_first + min(0, reach) >= 0 and last + max(0, reach) < size


def convolution_axes(params, kernel) -> list[tuple[Axis, Axis, Axis]]:
    """A convolution: one sum in each dimension."""
    return [tuple(Axis(out, k, s, -before, d, 1, 0, 0, 1)
                  for out, k, s, (before, _), d in zip(params.out, kernel, params.stride, params.padding, params.dilation, strict=True))]


def transposed_axes(params, kernel, out) -> list[tuple[Axis, Axis, Axis]]:
    """Its transpose onto ``out`` cells: a sum for each phase that has cells."""
    each = [[_phase(n, k, s, before, d, rest) for rest in range(min(s, n))]
            for n, k, s, (before, _), d in zip(out, kernel, params.stride, params.padding, params.dilation, strict=True)]
    return [(a, b, c) for a in each[0] for b in each[1] for c in each[2]]


def _phase(out, kernel, stride, before, dilation, rest):
    """Output cells i = rest + q * stride: of the taps t, those for which i + before - t * dilation is a multiple of the stride."""
    step = stride // math.gcd(stride, dilation)
    first = next((t for t in range(min(step, kernel)) if (rest + before - t * dilation) % stride == 0), None)
    taps = 0 if first is None else len(range(first, kernel, step))
    in_first = 0 if first is None else (rest + before - first * dilation) // stride
    return Axis(len(range(rest, out, stride)), taps, 1, in_first, -(step * dilation // stride), stride, rest, first or 0, step)


def run(x, w, out_size, axes, groups, *, reduce_over, bias=None, activation=None, keep=False, tf32=True, pool=False):
    """(y, z) in channels-last memory: the sums ``axes`` of x (N, C, D, H, W), channels-last, with w (K, C / groups, kd, kh, kw).

    reduce_over: 1 where w's second dimension meets x's channels (a convolution), 0 where its first does (the transpose).
    z, what the activation gets, is None unless ``keep``. pool: y is the 2 x 2 max-pool of that, without ``keep``.
    """
    n, channels = x.shape[:2]
    outputs = w.shape[0] if reduce_over else w.shape[1] * groups
    where = device.of(x)
    out_size = (out_size[0], out_size[1] // 2, out_size[2] // 2) if pool else out_size
    # Where a phase has no taps (a stride larger than the kernel), its cells are the bias's alone, or zeros that no kernel need write.
    bare = bias is None and activation is None
    empty = [axis for axis in axes if not all(a.taps for a in axis)]
    y = (torch.zeros if bare and empty else torch.empty)((n, *out_size, outputs), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if keep else None
    name, slope = ("none", 0.0) if activation is None else activation
    if y.numel() == 0:
        return y.movedim(-1, 1), None if z is None else z.movedim(-1, 1)
    per_group, out_group = channels // groups, outputs // groups
    wk, wc = (w.stride(0), w.stride(1)) if reduce_over else (w.stride(1), w.stride(0))
    if not reduce_over and groups > 1:  # (C, K / groups): a group's filters start K / groups * wk after the last group's, not C * wc
        w = w.reshape(groups, per_group, out_group, *w.shape[2:]).transpose(1, 2).reshape(outputs, per_group, *w.shape[2:])
        wk, wc = w.stride(0), w.stride(1)
    taps_stride = w.stride()[2:]
    size, x_strides = x.shape[2:], (x.stride(0), *x.stride()[2:])
    accuracy = device.precision(x, where, tf32)
    for axis in axes:
        if bare and axis in empty:
            continue
        cells, taps = [a.cells for a in axis], [a.taps for a in axis]
        if pool:
            cells = [cells[0], cells[1] // 2, cells[2] // 2]
        m = n * math.prod(cells) * (4 if pool else 1)
        config = dict(configs.pick("correlate", where, m=m, n=out_group, c=per_group, taps=math.prod(taps), bytes=x.element_size()))
        flat = per_group * 2 <= config["BK"] and math.prod(taps) > 1
        steps = cdiv(math.prod(taps) * per_group, config["BK"]) if flat else math.prod(taps) * cdiv(per_group, config["BK"])
        tiles = cdiv(m, config["BM"]) * cdiv(out_group, config["BN"]) * groups
        splits = 1
        most = config.pop("MAX_SPLITS", 1)
        if len(axes) == 1 and not pool:  # a phase's cells are not one block of memory, which adding up parts wants
            splits = max(1, min(most, where.multiprocessors // tiles, steps // 4))
        chunk = cdiv(steps, splits)
        splits = max(1, cdiv(steps, chunk or 1))
        partial = splits > 1
        target = torch.empty((splits, m, outputs), dtype=torch.float32, device=x.device) if partial else y
        inside = all(a.within(s) for a, s in zip(axis, size, strict=True))
        w_first = sum(a.tap_first * s for a, s in zip(axis, taps_stride, strict=True))
        launch(correlate, (tiles * splits,), x, x, w, target, z, bias, m, per_group, out_group, groups, *size, *cells,
               *x_strides, wk, wc, *(a.tap_step * s for a, s in zip(axis, taps_stride, strict=True)), *y.stride()[:4],
               *(a.in_stride for a in axis), *(a.in_first for a in axis), *(a.in_step for a in axis),
               *(a.out_stride for a in axis), *(a.out_first for a in axis), w_first, float(slope), chunk, tiles, m * outputs,
               # without taps no step is taken, but a division by their number would be compiled
               TD=max(1, taps[0]), TH=max(1, taps[1]), TW=max(1, taps[2]), FLAT=flat, INSIDE=inside, EVEN_C=per_group % config["BK"] == 0,
               ACT="none" if partial else name, HAS_BIAS=bias is not None and not partial, KEEP=keep and not partial, PRECISION=accuracy,
               PARTIAL=partial, POOL=pool, **config)
        if partial:
            block = configs.pick("add_splits", where)
            launch(add_splits, (cdiv(m, block["BM"]), cdiv(outputs, block["BN"])), x, target, y, z, bias, None, None, None, m, m, outputs,
                   m * outputs, outputs, 0, 0, 1.0, 0.0, float(slope), SPLITS=splits, ACT=name, HAS_BIAS=bias is not None,
                   HAS_RESIDUAL=False, HAS_SCALES=False, KEEP=keep, **block)
    return y.movedim(-1, 1), None if z is None else z.movedim(-1, 1)
