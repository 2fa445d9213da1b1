"""Convolution with strides 1 and 2 by the copy engine (Hopper and later), over channels-last memory.

A tile is a box of BI images by BH by BW positions; the box that a tap meets is the same box moved, which the copy engine loads with
zeros for what lies outside the image. So there is no index arithmetic and no mask in the loop, and the padding costs nothing. Box
sizes are powers of two; those that cover the output with the fewest boxes are taken.

With stride 2, an image of even size is described as (H / 2, 2, W / 2, 2 C): which of the two rows and columns a tap meets is the same
for all positions, so that what it meets is a box again. So is what a phase of the transpose stores.

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
def correlate_by_tiles(x, w, y, z, bias, tiles_n, tiles_h, tiles_w, C, K, first_h, first_w, step_h, step_w, tap_first, tap_step_h,
                       tap_step_w, out_h, out_w, slope, programs,
                       TH: tl.constexpr, TW: tl.constexpr, SCATTER: tl.constexpr, APART: tl.constexpr, STORED_APART: tl.constexpr,
                       BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
                       BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, ACT: tl.constexpr, HAS_BIAS: tl.constexpr,
                       KEEP: tl.constexpr, PRECISION: tl.constexpr, POOL: tl.constexpr, OUTPUTS_FIRST: tl.constexpr):
    """x (N, H, W, C), y and z (N, H', W', K); w as (its first size, taps * its last). SCATTER: w's first size meets x's channels.

    APART: neighbours are two input cells apart, x is (N, H / 2, 2, W / 2, 2 C). STORED_APART: they are stored two cells apart, y and z
    likewise, in row and column out_h and out_w of each two. The tap (i, j) of the sum has the weights tap_first + i * tap_step_h +
    j * tap_step_w. POOL: y (N, H' / 2, W' / 2, K), the largest of each window of 2 x 2 positions.
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
            c = step % blocks * BK
            tap_h = step // blocks // TW
            tap_w = step // blocks % TW
            from_h = first_h + tap_h * step_h
            from_w = first_w + tap_w * step_w
            if APART:
                a = x.load([n0, h0 + (from_h >> 1), from_h & 1, w0 + (from_w >> 1), (from_w & 1) * C + c]).reshape(BM, BK)
            else:
                a = x.load([n0, h0 + from_h, w0 + from_w, c]).reshape(BM, BK)
            tap = tap_first + tap_h * tap_step_h + tap_w * tap_step_w
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
        out = activate(acc, ACT, slope)
        if STORED_APART:
            if KEEP:
                z.store([n0, h0, out_h, w0, out_w * K + k0], acc.to(z.dtype).reshape(BI, BH, 1, BW, BN))
            y.store([n0, h0, out_h, w0, out_w * K + k0], out.to(y.dtype).reshape(BI, BH, 1, BW, BN))
        else:
            if KEEP:
                z.store([n0, h0, w0, k0], acc.to(z.dtype).reshape(BI, BH, BW, BN))
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


def described(x):
    """Whether a descriptor can say where this (N, C, 1, H, W) lies, channels side by side: strides of 16 bytes, for 16-bit elements."""
    strides = (x.stride(0), *x.stride()[2:])
    return x.shape[1] % 8 == 0 and not any(s % 8 for s in strides) and (x.device.type == "meta" or x.data_ptr() % 16 == 0)


def comes_in_twos(x):
    """Whether its image can be described so that cells two apart are neighbours."""
    return x.shape[3] % 2 == 0 and x.shape[4] % 2 == 0 and x.stride(4) == x.shape[1]


def configs_of(x, w, size, axes, groups, outputs, bare):
    """The configuration of each of the sums ``axes`` onto ``size`` cells, or None where this way cannot serve.

    bare: there is no bias and no activation, so that where a sum has no taps its cells are zeros.
    """
    where = device.of(x)
    if not where.tensor_memory_access or groups != 1 or x.element_size() != 2:
        return None
    if outputs % 8 or not w.movedim(1, -1).is_contiguous() or not described(x) or (w.device.type != "meta" and w.data_ptr() % 16):
        return None
    found = []
    for depth, high, wide in axes:
        planar = depth.taps == depth.cells == x.shape[2] == 1 and depth.in_first == 0
        apart, stored_apart = (high.in_stride, wide.in_stride), (high.out_stride, wide.out_stride)
        if not planar or apart not in ((1, 1), (2, 2)) or stored_apart not in ((1, 1), (2, 2)):
            return None
        if (apart == (2, 2) and (x.shape[3] % 2 or x.shape[4] % 2 or x.stride(4) != x.shape[1])) or (stored_apart == (2, 2) and (
                size[1] % 2 or size[2] % 2)):
            return None
        if high.taps * wide.taps == 0:
            if not bare:
                return None
            found.append(None)
            continue
        m, taps = x.shape[0] * high.cells * wide.cells, high.taps * wide.taps
        config = configs.pick("correlate_by_tiles", where, m=m, n=outputs, c=x.shape[1], taps=taps, stride=apart[0])
        if not config.get("use", 1) or x.shape[1] % config["BK"] or (stored_apart == (2, 2) and outputs % config["BN"]):
            return None
        found.append(config)
    return found


def in_twos(t, block):
    """A descriptor of dense (N, H, W, C) memory as (N, H / 2, 2, W / 2, 2 C), in boxes of one row of two."""
    n, h, w, c = t.shape
    _, per_row, per_cell, _ = t.stride()
    images, high, wide, channels = block
    return TensorDescriptor(t, [n, h // 2, 2, w // 2, 2 * c], [t.stride(0), 2 * per_row, per_row, 2 * per_cell, 1],
                            [images, high, 1, wide, channels])


def run(x, w, out_size, axes, outputs, found, *, reduce_over, **last_step):
    """(y, z) as triton_correlate.run answers them; found: what :func:`configs_of` answered."""
    x_last = x[:, :, 0].movedim(1, -1)

    def of_x(block):
        return in_twos(x_last, block) if axes[0][1].in_stride == 2 else TensorDescriptor.from_tensor(x_last, block)

    return launch_sums(x, of_x, x.shape[1], w.movedim(1, -1).reshape(w.shape[0], -1), w.shape[4], out_size, [axis[1:] for axis in axes],
                       outputs, found, reduce_over=reduce_over, **last_step)


def launch_sums(x, of_x, channels, filters, taps_wide, out_size, axes, outputs, found, *, reduce_over, bias=None, activation=None,
                keep=False, pool=False):
    """The sums ``axes`` (of rows, of columns) as (y, z).

    of_x: answers a descriptor of the (N, H, W, channels) that is summed, for a block. filters: (its first size, taps * its last), of
    kernels ``taps_wide`` cells wide.
    """
    where = device.of(x)
    n = x.shape[0]
    name, slope = ("none", 0.0) if activation is None else activation
    window = 2 if pool else 1
    new = torch.zeros if None in found else torch.empty
    y = new((n, *(s // window for s in out_size[1:]), outputs), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if keep else None
    for (high, wide), config in zip(axes, found, strict=True):
        if config is None:
            continue
        config = dict(config)
        apart, stored_apart = high.in_stride == 2, high.out_stride == 2
        cells = n, high.cells // window * window, wide.cells // window * window
        shape = box(*cells, config.pop("BM"), window)
        bn, bk = config["BN"], config["BK"]
        of_w = TensorDescriptor.from_tensor(filters, [bn, bk] if reduce_over else [bk, bn])
        stored = [shape[0], shape[1] // window, shape[2] // window, bn]
        of_y, of_z = ((None if t is None else in_twos(t, stored) if stored_apart else TensorDescriptor.from_tensor(t, stored))
                      for t in (y, z))
        tiles = [cdiv(size, b) for size, b in zip(cells, shape, strict=True)]
        programs = min(where.multiprocessors * config.pop("PROGRAMS"), tiles[0] * tiles[1] * tiles[2] * cdiv(outputs, bn))
        launch(correlate_by_tiles, (programs,), x, of_x([*shape, bk]), of_w, of_y, of_z or of_y, bias, *tiles, channels, outputs,
               high.in_first, wide.in_first, high.in_step, wide.in_step, high.tap_first * taps_wide + wide.tap_first,
               high.tap_step * taps_wide, wide.tap_step, high.out_first, wide.out_first, float(slope), programs,
               TH=high.taps, TW=wide.taps, SCATTER=not reduce_over, APART=apart, STORED_APART=stored_apart,
               BI=shape[0], BH=shape[1], BW=shape[2], ACT=name, HAS_BIAS=bias is not None, KEEP=keep, POOL=pool,
               PRECISION=device.precision(x, where), **config)
    return y.movedim(-1, 1)[:, :, None], None if z is None else z.movedim(-1, 1)[:, :, None]
