"""Convolution of few input channels by the copy engine: a first layer, over an image that is packed for it.

The image is copied so that a pixel has 8 or 16 channels: its own, or with stride 2 those of a square of 2 x 2, and zeros; and so that
what a row of the kernel meets of an image's row is one piece of memory, with zeros beside the image. Windows overlap in it, which a
descriptor may say: (N, H, W', length of a window), a step in W' being one pixel. Then it is a convolution of kernels one cell wide and
as many channels as a window has elements, with stride 1 (triton_tiles.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as TF
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from ...gpu import configs, device
from ...gpu.launch import cdiv, launch, power_of_two
from . import triton_tiles


@triton.jit
def pack(x, packed, H, W, high, wide, pixels, xn, xc, xh, xw, left, C: tl.constexpr, STEP: tl.constexpr, CP: tl.constexpr,
         BP: tl.constexpr):
    """packed (N, high, wide, CP): element (i * STEP + j) * C + c of pixel (h, w) is x[n, c, h * STEP + i, (w - left) * STEP + j]."""
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    e = tl.arange(0, CP)
    c, at = e % C, e // C
    w = ((p % wide).to(tl.int32) - left)[:, None] * STEP + (at % STEP)[None, :]
    h = (p // wide % high).to(tl.int32)[:, None] * STEP + (at // STEP)[None, :]
    n = p // wide // high
    inside = (p < pixels)[:, None] & (e < STEP * STEP * C)[None, :] & (h < H) & (w >= 0) & (w < W)
    v = tl.load(x + n[:, None] * xn + c[None, :] * xc + h.to(tl.int64) * xh + w.to(tl.int64) * xw, mask=inside, other=0.0)
    tl.store(packed + p[:, None] * CP + e[None, :], v, mask=(p < pixels)[:, None])


def config_of(x, w, axes, groups, outputs):
    """The configuration to run with, or None where this way cannot serve. axes: those of one convolution."""
    where = device.of(x)
    if not where.tensor_memory_access or groups != 1 or x.element_size() != 2 or len(axes) != 1 or outputs % 8:
        return None
    depth, high, wide = axes[0]
    if not depth.taps == depth.cells == x.shape[2] == 1 or depth.in_first or high.in_step != 1 or wide.in_step != 1:
        return None
    if high.in_stride != wide.in_stride or high.in_stride not in (1, 2) or high.out_stride != 1 or wide.out_stride != 1:
        return None
    if high.in_stride**2 * x.shape[1] > 16 or high.taps * wide.taps == 1:
        return None
    config = configs.pick("correlate_packed", where, m=x.shape[0] * high.cells * wide.cells, n=outputs)
    return config if config.get("use", 1) else None


def run(x, w, out_size, axes, outputs, config, **last_step):
    """(y, z) as triton_correlate.run answers them, of a convolution."""
    _, high, wide = axes[0]
    step, channels = high.in_stride, x.shape[1]
    pixel = 8 if step**2 * channels <= 8 else 16
    first_h, first_w = high.in_first // step, wide.in_first // step  # of packed pixels
    more_h, more_w = high.in_first % step, wide.in_first % step
    taps_h, taps_w = cdiv(high.taps + more_h, step), cdiv(wide.taps + more_w, step)
    rows, columns = cdiv(x.shape[3], step), wide.cells + taps_w - 1
    packed = torch.empty((x.shape[0], rows, columns, pixel), dtype=x.dtype, device=x.device)
    pixels = packed.numel() // pixel
    launch(pack, (cdiv(pixels, 128),), x, x, packed, *x.shape[3:], rows, columns, pixels, *(x.stride(i) for i in (0, 1, 3, 4)), -first_w,
           C=channels, STEP=step, CP=pixel, BP=128, num_warps=4)
    filters = TF.pad(w[:, :, 0], (more_w, taps_w * step - wide.taps - more_w, more_h, taps_h * step - high.taps - more_h))
    filters = filters.reshape(outputs, channels, taps_h, step, taps_w, step).permute(0, 2, 4, 3, 5, 1)
    filters = TF.pad(filters.reshape(outputs, taps_h, taps_w, -1), (0, pixel - step**2 * channels))
    window = taps_w * pixel
    config = dict(config, BK=min(config["BK"], power_of_two(window)))
    axis = high._replace(taps=taps_h, in_stride=1, in_first=first_h), wide._replace(taps=1, in_stride=1, in_first=0)

    def windows(block):
        per_row, per_image = columns * pixel, rows * columns * pixel
        return TensorDescriptor(packed, [x.shape[0], rows, wide.cells, window], [per_image, per_row, pixel, 1], block)

    return triton_tiles.launch_sums(x, windows, window, filters.reshape(outputs, -1).contiguous(), 1, out_size, [axis], outputs, [config],
                                    reduce_over=1, **last_step)
