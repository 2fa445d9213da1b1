"""Transposed convolution to few outputs: a matrix product of all kernel cells with the pixels, then sums of what falls on one cell.

With one to three outputs a tile of outputs would be mostly empty. So the kernel's cells are the rows of the product: P[output,
cell][pixel] is what each pixel adds where a cell of the kernel puts it ("col2im"), a band of output rows at a time in a core's
cache. A row of y is then a sum of shifted rows of P, one sum for each phase of the stride.
"""

from __future__ import annotations

import functools

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.blocking import LANES
from ...cpu.features import caches
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import TILE_ROWS, TILE_VECTORS, outer_tile, store_tile
from ...cpu.panels import pack_panel
from ...cpu.simd import lanes, load, load_n, offset, pointer, read, splat, store, store_n, write
from ...cpu.thresholds import MULTIPLY_ADDS
from ...cpu.workspace import NOTHING, workspace
from ...packing import prepared
from ..layout import empty_in_layout
from ..numba_activation import apply_activation, kernel_arguments
from .numba_planes import _strides, zero

_tile, _put = outer_tile(TILE_ROWS, TILE_VECTORS), store_tile(TILE_ROWS, TILE_VECTORS)


@inline
def _products(x, xc, xw, C, count, w, tiles, pitch, panel, P):
    """P[row, pixel] = sum over channels of w[row, channel] * x[channel, pixel], w in panels of a tile's rows."""
    width = TILE_VECTORS * lanes(x)
    for q in range(0, count, width):
        pack_panel(offset(x, q * xw), xc, xw, C, count - q, panel)
        for i in range(tiles):
            sums = _tile(C, offset(w, i * TILE_ROWS * C), 1, TILE_ROWS, panel, width, 0)
            _put(sums, offset(P, i * TILE_ROWS * pitch + q), pitch, TILE_ROWS, width, False)


@inline
def _add_row(source, W, target):
    """target[i] += source[i]; target has a vector's room after its end."""
    V = lanes(source)
    j = 0
    while j + V <= W:
        store(target, j, load(target, j) + load(source, j))
        j += V
    if j < W:
        store(target, j, load(target, j) + load_n(source, j, W - j))


@inline
def _band_chunk(slot, chunk, bands, band, C, H, W, x, xn, xc, xh, xw, w, K, kh, kw, sh, sw, ph, pw, dh, dw, bias, has_bias, act, slope, y,
                yn, yk, yh, yw, OH, OW, length, space, scratch, scratch_size):
    V = lanes(x)
    image, o0 = chunk // bands, chunk % bands * band
    o1 = min(OH, o0 + band)
    i0 = max(0, (o0 + ph - (kh - 1) * dh + sh - 1) // sh)  # of the rows of x that meet the band
    i1 = min(H, (o1 - 1 + ph) // sh + 1)
    count = max(0, i1 - i0) * W
    tiles = (K * kh * kw + TILE_ROWS - 1) // TILE_ROWS
    panel = offset(scratch, slot * scratch_size)
    lines = offset(panel, C * TILE_VECTORS * V)
    P = offset(lines, sw * length)
    _products(offset(x, image * xn + i0 * xh), xc, xw, C, count, w, tiles, space, panel, P)
    leak = splat(x, slope)
    for k in range(K):
        shift = splat(x, read(bias, k)) if has_bias else splat(x, 0.0)
        for o in range(o0, o1):
            zero(lines, 0, sw * length)
            for i in range(kh):
                place = o + ph - i * dh
                if place < i0 * sh or place % sh != 0 or place // sh >= i1:
                    continue
                row = offset(P, (k * kh + i) * kw * space + (place // sh - i0) * W)
                for j in range(kw):
                    _add_row(offset(row, j * space), W, offset(lines, j * dw % sw * length + j * dw // sw))
            target = offset(y, image * yn + k * yk + o * yh)
            for j in range(0, sw * length, V):
                store(lines, j, apply_activation(load(lines, j) + shift, act, leak))
            if sw == 1 and yw == 1:
                for j in range(0, OW, V):
                    store_n(target, j, load(lines, pw + j), OW - j)
                continue
            for phase in range(sw):
                first = (phase - pw) % sw  # the first column of y in this phase
                line = offset(lines, phase * length + (first + pw) // sw)
                for j in range((OW - first + sw - 1) // sw):
                    write(target, (first + j * sw) * yw, read(line, j))


@kernel("i i R5 R1 i i i i i i i i R1 i T W5 i i W1 i")
def scatter_products(pool, band, x, w, kh, kw, sh, sw, ph, pw, dh, dw, bias, act, slope, y, length, space, scratch, scratch_size):
    """The transposed convolution y of x, ``band`` rows of y at a time. x: rows of pixels one after another, at any distance.

    w: flat, panels of TILE_ROWS (output, cell) pairs by channels. length: elements of a line of sums, whole vectors. space: of a
    row of P. A thread has scratch_size elements: a panel of pixels, sw lines, P.
    """
    N, C, _, H, W = x.shape
    K, OH, OW = y.shape[1], y.shape[3], y.shape[4]
    xn, xc, _, xh, xw = _strides(x)
    yn, yk, _, yh, yw = _strides(y)
    bands = (OH + band - 1) // band
    parallel_for(
        pool,
        _band_chunk,
        N * bands,
        (bands, band, C, H, W, pointer(x), xn, xc, xh, xw, pointer(w), K, kh, kw, sh, sw, ph, pw, dh, dw, pointer(bias),
         bias.shape[0] > 0, act, slope, pointer(y), yn, yk, yh, yw, OH, OW, length, space, pointer(scratch), scratch_size),
    )


def _panels(w):
    """w (C, K, 1, kh, kw) as panels of TILE_ROWS (output, cell) pairs, each [channel][pair]; zeros fill the last."""
    C = w.shape[0]
    rows = w.reshape(C, -1).T
    tiles = -(-rows.shape[0] // TILE_ROWS)
    out = np.zeros((tiles * TILE_ROWS, C), w.dtype)
    out[: rows.shape[0]] = rows
    return np.ascontiguousarray(out.reshape(tiles, TILE_ROWS, C).transpose(0, 2, 1)).reshape(-1)


def _sizes(char, C, H, W, cells, kernel, stride, dilation, padding, out, jobs, slots):
    """(rows of y in a band, elements of a line, of a row of P, of a thread's scratch memory)."""
    lanes = LANES[char]
    width = TILE_VECTORS * lanes
    length = max(W + (kernel[1] - 1) * dilation[1] // stride[1], (out[1] - 1 + padding[1]) // stride[1] + 1)
    length = -(-(length + lanes) // lanes) * lanes
    rows = -(-cells // TILE_ROWS) * TILE_ROWS
    reach = (kernel[0] - 1) * dilation[0] // stride[0] + 1  # rows of x, besides those that a band has by itself
    most = max(1, caches()[1] // 2 // (np.dtype(char).itemsize * rows * W) - reach) * stride[0]
    band = min(out[0], most)
    while slots > 1 and band > 4 * reach and jobs * -(-out[0] // band) < 4 * slots:
        band = -(-band // 2)
    space = -(-min(H, -(-band // stride[0]) + reach) * W // width) * width + lanes  # not a power of two
    return band, length, space, C * width + stride[1] * length + rows * space


def serves(w_shape, params, width) -> bool:
    """Whether a band of y is larger than what its neighbours compute once more."""
    (kh, kw), stride = w_shape[3:], params.stride[1]
    reach = (kh - 1) * params.dilation[1] // stride
    return 2 * reach * 4 * w_shape[1] * kh * kw * width <= caches()[1] // 2


def planned(x, w, params, shape, act, last, team):
    """``run(x, w, bias)``: the transposed convolution of x, to y of ``shape``. last: y's memory is channels-last."""
    dtype, char = x.dtype, x.dtype.char
    pool, slots = team if x.size * w[0].size > MULTIPLY_ADDS else (0, 1)
    kernel, stride, dilation = w.shape[3:], params.stride[1:], params.dilation[1:]
    padding = tuple(before for before, _ in params.padding[1:])
    band, length, space, size = _sizes(char, x.shape[1], *x.shape[3:], w[0].size, kernel, stride, dilation, padding, shape[3:], shape[0],
                                       slots)
    code, slope = kernel_arguments(act)

    def run(x, w, bias):
        y = empty_in_layout(shape, dtype, last)
        if x.strides[3] != x.shape[4] * x.strides[4]:
            x = np.ascontiguousarray(x)
        scatter_products[char](pool, band, x, prepared(w, "columns", functools.partial(_panels, w)), *kernel, *stride, *padding, *dilation,
                               NOTHING[char] if bias is None else np.ascontiguousarray(bias), code, slope, y, length, space,
                               workspace(slots * size, dtype), size)
        return y

    return run
