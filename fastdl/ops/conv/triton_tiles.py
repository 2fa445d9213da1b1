"""Convolution with stride 1 by the copy engine (Hopper and later), over channels-last memory.

A tile is a box of BI images by BH by BW positions; the box that a tap meets is the same box moved, which the copy engine loads with
zeros for what lies outside the image. So there is no index arithmetic and no mask in the loop, and the padding costs nothing. Box
sizes are powers of two; those that cover the output with the fewest boxes are taken.

On Hopper a tile is multiplied as weights @ positions and turned when it is stored (OUTPUTS_FIRST): a box becomes a matrix by a change
of its shape, after which Triton 3.6 to 3.9 take a first operand through registers, but a second one from shared memory as it lies.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ...gpu import configs, device
from ...gpu.launch import cdiv, launch
from ...gpu.math import activate, dot
from ..matmul.triton_kernels import tile_of
from .triton_correlate import larger


@triton.jit
def correlate_by_tiles(x, w, y, z, bias, tiles_n, tiles_h, tiles_w, C, K, first_h, first_w, step_h, step_w, slope, programs,
                       TH: tl.constexpr, TW: tl.constexpr, SCATTER: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
                       BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, ACT: tl.constexpr, HAS_BIAS: tl.constexpr,
                       KEEP: tl.constexpr, PRECISION: tl.constexpr, POOL: tl.constexpr, OUTPUTS_FIRST: tl.constexpr):
    """x (N, H, W, C), y and z (N, H', W', K); w as (its first size, taps * its last). SCATTER: w's first size meets x's channels.

    POOL: y (N, H' / 2, W' / 2, K), the largest of each window of 2 x 2 positions.
    """
    BM: tl.constexpr = BI * BH * BW
    rows, columns = tiles_n * tiles_h * tiles_w, tl.cdiv(K, BN)
    blocks = tl.cdiv(C, BK)
    for t in tl.range(tl.program_id(0), rows * columns, programs, flatten=True):
        im, ik = tile_of(t, rows, columns, GROUP)
        w0 = im % tiles_w * BW
        h0 = im // tiles_w % tiles_h * BH
        n0 = im // (tiles_w * tiles_h) * BI
        k0 = ik * BN
        if OUTPUTS_FIRST:
            acc = tl.zeros((BN, BM), tl.float32)
        else:
            acc = tl.zeros((BM, BN), tl.float32)
        for step in range(TH * TW * blocks):
            tap = step // blocks
            c = step % blocks * BK
            a = x.load([n0, h0 + first_h + tap // TW * step_h, w0 + first_w + tap % TW * step_w, c]).reshape(BM, BK)
            if SCATTER:
                b = w.load([c, tap * K + k0])
            else:
                b = w.load([k0, tap * C + c]).T
            if OUTPUTS_FIRST:
                acc = dot(b.T, a.T, acc, PRECISION)
            else:
                acc = dot(a, b, acc, PRECISION)
        if OUTPUTS_FIRST:
            acc = acc.T
        if HAS_BIAS:
            k = k0 + tl.arange(0, BN)
            acc += tl.load(bias + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
        if KEEP:
            z.store([n0, h0, w0, k0], acc.to(z.dtype).reshape(BI, BH, BW, BN))
        out = activate(acc, ACT, slope)
        if POOL:
            out = tl.reduce(tl.reshape(out, (BM // 2, 2, BN)), 1, larger)
            out = tl.reduce(tl.reshape(out, (BI * BH // 2, 2, BW // 2, BN)), 1, larger)
            y.store([n0, h0 // 2, w0 // 2, k0], out.to(y.dtype).reshape(BI, BH // 2, BW // 2, BN))
        else:
            y.store([n0, h0, w0, k0], out.to(y.dtype).reshape(BI, BH, BW, BN))


def box(n, height, width, positions, least=1):
    """(BI, BH, BW), powers of two whose product is ``positions``, that cover (n, height, width) with the fewest boxes.

    least: the smallest BH and BW.
    """
    powers = [1 << i for i in range(positions.bit_length()) if 1 << i >= least]
    shapes = [(positions // (h * w), h, w) for h, w in product(powers, powers) if h * w <= positions]
    # of equals the squarest: its neighbours share most of what they read
    return min(shapes, key=lambda s: (cdiv(n, s[0]) * cdiv(height, s[1]) * cdiv(width, s[2]), s[0], abs(s[1] - s[2])))


def config_of(x, w, axes, groups, outputs):
    """The configuration to run with, or None where this way cannot serve."""
    where = device.of(x)
    if not where.tensor_memory_access or len(axes) != 1 or groups != 1 or x.element_size() != 2:
        return None
    depth, high, wide = axes[0]
    planar = depth.taps == depth.cells == x.shape[2] == 1 and depth.in_first == 0
    if not planar or high.in_stride != 1 or wide.in_stride != 1 or high.out_stride != 1 or wide.out_stride != 1:
        return None
    per_tap = w.movedim(1, -1)
    if x.shape[1] % 8 or outputs % 8 or not per_tap.is_contiguous() or any(s % 8 for s in (x.stride(0), *x.stride()[2:])):
        return None
    if x.device.type != "meta" and (x.data_ptr() % 16 or w.data_ptr() % 16):
        return None
    m = x.shape[0] * high.cells * wide.cells
    config = configs.pick("correlate_by_tiles", where, m=m, n=outputs, c=x.shape[1], taps=high.taps * wide.taps)
    return config if config.get("use", 1) and x.shape[1] % config["BK"] == 0 else None


def run(x, w, axes, outputs, config, *, reduce_over, bias=None, activation=None, keep=False, pool=False):
    """(y, z) as triton_correlate.run answers them."""
    where = device.of(x)
    _, high, wide = axes[0]
    n, channels = x.shape[:2]
    name, slope = ("none", 0.0) if activation is None else activation
    config = dict(config)
    window = 2 if pool else 1
    size = high.cells // window, wide.cells // window
    shape = box(n, size[0] * window, size[1] * window, config.pop("BM"), window)
    y = torch.empty((n, *size, outputs), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if keep else None
    bn, bk = config["BN"], config["BK"]
    of_x = TensorDescriptor.from_tensor(x[:, :, 0].movedim(1, -1), [*shape, bk])
    of_w = TensorDescriptor.from_tensor(w.movedim(1, -1).reshape(w.shape[0], -1), [bn, bk] if reduce_over else [bk, bn])
    of_y = TensorDescriptor.from_tensor(y, [shape[0], shape[1] // window, shape[2] // window, bn])
    of_z = TensorDescriptor.from_tensor(z, [*shape, bn]) if keep else of_y
    tiles = [cdiv(size, b) for size, b in zip((n, size[0] * window, size[1] * window), shape, strict=True)]
    programs = min(where.multiprocessors * config.pop("PROGRAMS"), tiles[0] * tiles[1] * tiles[2] * cdiv(outputs, bn))
    launch(correlate_by_tiles, (programs,), x, of_x, of_w, of_y, of_z, bias, *tiles, channels, outputs, high.in_first, wide.in_first,
           high.in_step, wide.in_step, float(slope), programs, TH=high.taps, TW=wide.taps, SCATTER=not reduce_over,
           BI=shape[0], BH=shape[1], BW=shape[2], ACT=name, HAS_BIAS=bias is not None, KEEP=keep, POOL=pool,
           PRECISION=device.precision(x, where), **config)
    return y.movedim(-1, 1)[:, :, None], None if z is None else z.movedim(-1, 1)[:, :, None]
