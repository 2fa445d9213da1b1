"""Weights for the Winograd kernels: filters of each phase of a stride, transformed and in panels."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from ...cpu import parallel
from ...cpu.features import vector_bits
from ...cpu.microkernel import TILE_VECTORS
from ...cpu.thresholds import MOVED
from ...cpu.workspace import aligned
from ...packing import is_packed
from .numba_winograd import K_BLOCK, make, points_apart

LANES = vector_bits() // 32
WIDTH = TILE_VECTORS * LANES


class Form(NamedTuple):
    """How a convolution, or its transpose, is done by F(m, r) in ``dims`` dimensions."""

    m: int
    r: int
    dims: int
    size: int  # of the kernel, in cells
    stride: int
    transposed: bool  # outputs have the phases of the stride, not inputs; w's first axis is what is summed over

    def phases(self):
        """(of rows, of columns)."""
        return (self.stride if self.dims == 2 else 1), self.stride


@functools.lru_cache(maxsize=256)
def _order(form, outputs, channels):
    """(lanes, sums) of transform_weights, and from output to output: where the outputs and channels of the convolution of stride 1
    come from."""
    ph, pw = form.phases()
    cells = form.size**form.dims
    k_step, c_step = (cells, outputs * cells) if form.transposed else (channels * cells, cells)
    of_lanes, of_sums = ((ph, pw), (1, 1)) if form.transposed else ((1, 1), (ph, pw))
    each = unit(outputs, pw) // pw * WIDTH if form.transposed and pw > 1 else WIDTH
    lanes = np.zeros((of_lanes[0], -(-outputs // each), of_lanes[1], each // LANES, 4), np.int64)
    k = np.arange(lanes.shape[1]).reshape(1, -1, 1, 1) * each + np.arange(each // LANES) * LANES
    lanes[..., 0] = np.where(k < outputs, k * k_step, -1)
    lanes[..., 1] = np.arange(of_lanes[0]).reshape(-1, 1, 1, 1)
    lanes[..., 2] = np.arange(of_lanes[1]).reshape(-1, 1)
    lanes[..., 3] = np.clip(outputs - k, 0, LANES)
    sums = np.zeros((*of_sums, padded(channels), 3), np.int64)
    sums[..., 0] = np.where(np.arange(padded(channels)) < channels, np.arange(padded(channels)) * c_step, -1)
    sums[..., 1] = np.arange(of_sums[0]).reshape(-1, 1, 1)
    sums[..., 2] = np.arange(of_sums[1]).reshape(-1, 1)
    sums = sums.reshape(-1, 3)[: summed(form, channels)]
    return np.ascontiguousarray(lanes.reshape(-1)), np.ascontiguousarray(sums.reshape(-1)), k_step


def padded(channels):
    return -(-channels // LANES) * LANES


def summed(form, channels):
    """Values of a pixel up to the last channel of its last phase."""
    return channels if form.transposed else (math.prod(form.phases()) - 1) * padded(channels) + channels


def unit(outputs, phases):
    """Panels that are done together: K_BLOCK at most, as many of each phase."""
    return min(K_BLOCK, -(-outputs // WIDTH)) if phases == 1 else phases * min(K_BLOCK // phases, -(-outputs // WIDTH))


def panels_of(form, outputs):
    """Panels of weights in all."""
    ph, pw = form.phases() if form.transposed else (1, 1)
    each = unit(outputs, pw) // pw if pw > 1 else 1
    return ph * pw * each * -(-outputs // (each * WIDTH))


def transformed(w, form):
    """w transformed for ``form``: (K, C, 1, kh, kw), or (C, K, 1, kh, kw) of a transposed convolution."""
    K, C = (w.shape[1], w.shape[0]) if form.transposed else w.shape[:2]
    lanes, sums, step = _order(form, K, C)
    count, panels = summed(form, C), panels_of(form, K)
    pool, slots = parallel.team() if panels * count > MOVED // WIDTH else (0, 1)
    elements, dtype = (form.m + form.r - 1) ** form.dims * points_apart(panels, count, WIDTH), np.dtype(np.float32)
    U = aligned(elements, dtype) if is_packed(w) else np.empty(elements, dtype)
    make(*form[:3])[0]["f"](pool, -(-4 * slots // panels), np.ascontiguousarray(w).reshape(-1), lanes, sums, *w.shape[3:], *form.phases(),
                            form.transposed, step, U)
    return U
