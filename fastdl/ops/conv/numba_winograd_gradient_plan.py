"""Running numba_winograd_gradient.py: how many tiles at a time, scratch memory."""

from __future__ import annotations

import functools

import numpy as np

from ...cpu import parallel
from ...cpu.blocking import LANES, LINE, TILE_COLUMNS_F4, computed, heights
from ...cpu.microkernel import TILE_ROWS
from ...cpu.thresholds import MULTIPLY_ADDS
from ...cpu.workspace import NOTHING, workspace
from .numba_winograd import odd_lines
from .numba_winograd_gradient import make

BOUND = 2 << 20  # bytes of transformed tiles at a time, besides as many as the weight has
RUN = 16  # tiles of a row that are laid out together
CHANNELS = 64  # of a block of V: M for them and a panel of outputs stays in L2


@functools.lru_cache(maxsize=1024)
def _sizes(m, r, dims, N, C, K, OH, OW, slots):
    """(parts, blocks, c_block, x_apart, d_apart, m_apart, elements of V and D, of what is kept, of a thread's scratch memory)."""
    lanes, width = LANES["f"], TILE_COLUMNS_F4
    n, (mh, nh, rh) = m + r - 1, (m, m + r - 1, r) if dims == 2 else (1, 1, 1)
    points, cells = nh * n, rh * r
    TH, TW = -(-OH // mh), -(-OW // m)
    parts = -(-TW // RUN)
    panels = -(-K // width)
    vectors = -(-C // lanes)
    c_blocks = -(-vectors * lanes // CHANNELS)
    if slots > 1:
        c_blocks = max(c_blocks, min(vectors, -(-2 * slots // panels)))
    c_block = -(-vectors // c_blocks) * lanes
    c_blocks = -(-C // c_block)
    each = 4 * points * (vectors * lanes + panels * width)  # bytes of a tile; no matter how many threads: blocks decide about bits
    most = max(1, (BOUND + 4 * C * K * cells) // each)
    runs = N * TH * parts
    blocks = min(runs, -(-N * TH * TW // most))
    tiles = -(-runs // blocks) * -(-TW // parts)
    x_apart, d_apart = odd_lines(tiles * c_block), odd_lines(tiles * width)
    m_apart = odd_lines((computed(c_block) + TILE_ROWS) * width)
    transformed = points * (c_blocks * x_apart + panels * d_apart) + 2 * LINE
    kept = panels * c_blocks * c_block * cells * width if blocks > 1 else 0
    patch = nh * (-(-TW // parts) * m + r - 1) * lanes
    scratch = max(patch, points * m_apart + (0 if kept else c_block * cells * width))
    return parts, blocks, c_block, x_apart, d_apart, m_apart, transformed, kept, -(-scratch // LINE) * LINE


def weight_gradient(form, x, dy, w, padding):
    """The gradient of w (K, C, 1, kh, kw) of a convolution of stride 1 with x, from dy, by tiles of ``form`` (m, r, dims).

    padding: (rows, columns) of zeros before x.
    """
    m, r, dims = form
    (N, C), K = x.shape[:2], w.shape[0]
    pool, slots = parallel.team() if dy.size * w[0].size > MULTIPLY_ADDS else (0, 1)
    x, dy = (a if a.strides[4] == a.itemsize or a.strides[1] == a.itemsize else np.ascontiguousarray(a) for a in (x, dy))
    parts, blocks, c_block, x_apart, d_apart, m_apart, transformed, kept, scratch = _sizes(m, r, dims, N, C, K, *dy.shape[3:], slots)
    memory = workspace(transformed + kept + slots * scratch, x.dtype)
    dw = np.empty(w.shape, x.dtype)
    make(m, r, dims)["f"](pool, slots, x, dy, *padding, parts, blocks, c_block, x_apart, d_apart, m_apart, heights().reshape(-1),
                          memory, memory[transformed:] if kept else NOTHING["f"], memory[transformed + kept :], scratch, dw.reshape(-1))
    return dw
