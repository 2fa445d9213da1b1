"""Running the Winograd kernels: sizes, scratch memory, transformed weights."""

from __future__ import annotations

import math

import numpy as np

from ...cpu import parallel
from ...cpu.blocking import MOST_ROWS, computed, heights
from ...cpu.features import caches, vector_bits
from ...cpu.microkernel import TILE_ROWS, TILE_VECTORS
from ...cpu.thresholds import MULTIPLY_ADDS
from ...cpu.workspace import NOTHING, workspace
from ..layout import empty_like_layout
from ..numba_activation import kernel_arguments
from .numba_rows import pixel_rows
from .numba_winograd import K_BLOCK, KERNELS, LINE

LANES = vector_bits() // 32
WIDTH = TILE_VECTORS * LANES
IMAGES = 64 << 20  # bytes of padded pixel rows at a time


def transformed(w, m, transpose):
    """w (K, C, 1, r, r) transformed for F(m, r); with ``transpose``, of the convolution that is its data gradient."""
    flat = np.ascontiguousarray(w).reshape(-1)
    K, C = w.shape[:2]
    r = w.shape[3]
    cells = r * r
    first, sk, sc, row, column = 0, C * cells, cells, r, 1
    if transpose:
        K, C, first, sk, sc, row, column = C, K, cells - 1, cells, C * cells, -r, -1
    U = np.empty((m + r - 1) ** 2 * -(-K // WIDTH) * C * WIDTH, np.float32)
    KERNELS[m, r][0]["f"](parallel.pool() if K * C > 1 << 12 else 0, flat, first, sk, sc, row, column, K, C, U)
    return U


def run(m, r, x, U, outputs, before, shape, bias, act, like):
    """The convolution of x with transformed weights; before: rows and columns of zeros above and left of x."""
    N, C = x.shape[:2]
    OH, OW = shape[3:]
    y = empty_like_layout(shape, x.dtype, like)
    TH, TW = -(-OH // m), -(-OW // m)
    Hp, Wp, Cb = TH * m + r - 1, TW * m + r - 1, -(-C // LANES) * LANES
    if x.strides[4] != x.itemsize and x.strides[1] != x.itemsize:
        x = np.ascontiguousarray(x)
    points, panels = (m + r - 1) ** 2, -(-outputs // WIDTH)
    pool, slots = parallel.team() if math.prod(shape) * C > MULTIPLY_ADDS else (0, 1)
    step = max(1, min(N, IMAGES // (4 * Hp * Wp * Cb)))
    blocks, k_panels = _blocks(points, Cb, panels, step * TH * TW, slots)
    block = computed(-(-step * TH * TW // blocks))
    part = points * (block * (Cb + K_BLOCK * WIDTH) + 4 * LINE) + m * m * block * K_BLOCK * WIDTH
    memory = workspace(slots * part + step * Hp * Wp * Cb, x.dtype)
    scratch, rows = memory[: slots * part], memory[slots * part :]
    bias = NOTHING["f"] if bias is None else np.ascontiguousarray(bias)
    for start in range(0, N, step):
        here = x[start : start + step]
        pixel_rows["f"](pool, here, *before, Hp, Wp, Cb, rows)
        KERNELS[m, r][1]["f"](
            pool,
            rows,
            Hp,
            Wp,
            C,
            Cb,
            U,
            blocks,
            k_panels,
            bias,
            *kernel_arguments(act),
            y[start : start + step],
            heights().reshape(-1),
            scratch,
            part,
        )
    return y


def _blocks(points, Cb, panels, tiles, slots):
    """Into how many blocks tiles are cut, and how many panels of outputs a chunk takes.

    V and M of a block share half of L2; where the weights do not fit L2 themselves, twice as many tiles use each panel
    that comes from further away, and where there are few tiles in all, every tile does: then threads share the outputs,
    and each part transforms its input again.
    """
    weights = 4 * points * Cb * panels * WIDTH
    fit = caches()[1] // 2 // (4 * points * (Cb + K_BLOCK * WIDTH))
    least = 4 * TILE_ROWS if weights > caches()[1] else 2 * TILE_ROWS
    block = max(least, fit // TILE_ROWS * TILE_ROWS)
    if not (weights > 4 * caches()[1] and tiles <= least and panels >= 4 * slots):
        per_slot = -(-tiles // (2 * slots)) if slots > 1 else tiles
        block = min(block, -(-per_slot // TILE_ROWS) * TILE_ROWS)
    block = min(block, MOST_ROWS // 2)
    blocks = 1 if tiles <= block else max(1, round(tiles / block / slots)) * slots  # of one size: threads end together
    parts = 1 if slots == 1 or blocks >= 2 * slots else min(panels, -(-2 * slots // blocks))
    return blocks, -(-panels // parts)
