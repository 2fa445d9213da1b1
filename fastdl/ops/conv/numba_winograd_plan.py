"""Running the Winograd kernels: sizes, scratch memory."""

from __future__ import annotations

import numpy as np

from ...cpu.blocking import LINE, MOST_ROWS, computed, heights
from ...cpu.features import caches
from ...cpu.microkernel import TILE_ROWS
from ...cpu.thresholds import MULTIPLY_ADDS
from ...cpu.workspace import NOTHING, workspace
from ...packing import prepared
from ..layout import empty_in_layout
from ..numba_activation import kernel_arguments
from .numba_rows import pixel_rows
from .numba_winograd import make
from .numba_winograd_weights import WIDTH, padded, panels_of, summed, transformed, unit

BOUND = 15 << 17  # bytes of scratch memory a thread, where that costs no time: a block of tiles, and padded pixel rows for some
IMAGES = 64 << 20  # bytes of padded pixel rows, where it would


def can_pool(form) -> bool:
    """Whether 2 x 2 outputs, side by side, are of one tile."""
    return form.dims == 2 and form.m % 2 == 0 and not form.transposed


def planned(form, x, padding, shape, act, last, team, pooled=False):
    """``run(x, w, bias)`` makes y of ``shape``. padding: (rows, columns) before x, or of a transposed convolution before y.
    last: y's memory is channels-last. pooled: y has the largest of each 2 x 2 of the convolution's answer, where ``can_pool``."""
    m, r, dims = form[:3]
    N, C = x.shape[:2]
    each = 2 if pooled else 1
    K, OH, OW = shape[1], *(each * size for size in shape[3:])
    phases, ones = form.phases(), (1, 1)
    stride, spread = (ones, phases) if form.transposed else (phases, ones)
    skip, before = (0, 0), padding
    mh, rh = (m, r) if dims == 2 else (1, 1)
    if form.transposed:
        skip = tuple(p % s for p, s in zip(padding, phases, strict=True))
        before = tuple(n - 1 - p // s for n, p, s in zip((rh, r), padding, phases, strict=True))
    TH, TW = -(-(OH + skip[0]) // (mh * spread[0])), -(-(OW + skip[1]) // (m * spread[1]))
    Wp, Cb = (TW * m + r - 1) * stride[1], padded(C)
    points, sums, together = (m + r - 1) ** dims, summed(form, C), unit(K, spread[1])
    panels, whole = panels_of(form, K), together if spread[1] > 1 else 1
    pool, slots = team if N * K * OH * OW * C > MULTIPLY_ADDS else (0, 1)
    pitch = padded(sums)
    row = stride[0] * Wp * Cb

    def memory_of(images, band, most):
        """(as _blocks, a thread's share, all elements) for so many images, or rows of tiles of one, at a time."""
        found = _blocks(points, pitch, panels, together, whole, images * band * TW, slots, most)
        part = _scratch(points, found[2], pitch, together, mh * m)
        return *found, part, slots * part + images * (band * mh + rh - 1) * row

    # as many images at a time, or as many rows of tiles of one, as fit the bound, if blocks of tiles for each thread remain
    images, band, most = min(N, max(1, IMAGES // (4 * (TH * mh + rh - 1) * row))), TH, MOST_ROWS // 2
    weights = 4 * points * pitch * panels * WIDTH  # bytes, read for each block anew: the more there are, the fewer blocks
    if N > 1 and weights <= caches()[2] // 2:
        choices = ((some, TH, most) for some in range(images, 0, -1) if some * TH * TW >= 8 * TILE_ROWS * slots)
        images, band, most = next((c for c in choices if 4 * memory_of(*c)[4] <= slots * BOUND), (images, band, most))
    elif N == 1 and weights <= caches()[2] // 2:
        heavy = weights > 4 * caches()[1]  # then a block of one tile's rows would wait for them
        choices = ((1, rows, most) for most in (MOST_ROWS // 2, *(n * TILE_ROWS for n in ((3, 2) if heavy else (3, 2, 1))))
                   for rows in range(TH, 0, -1) if rows == TH or rows * TW >= most * slots)
        images, band, most = next((c for c in choices if 4 * memory_of(*c)[4] <= slots * BOUND),
                                  (1, TH, most) if heavy else (1, 1, TILE_ROWS))
    images, band = _share(N, images), _share(TH, band)
    blocks, k_panels, block, part, elements = memory_of(images, band, most)
    short = form.stride == 2 and form.size % 2
    convolve = make(m, r, dims)[1]["f"]
    code, slope = kernel_arguments(act)
    bands = []  # rows of x, of them missing above, rows in all, rows of y, of them missing above
    for first in range(0, TH, band):
        Hp = (min(band, TH - first) * mh + rh - 1) * stride[0]
        top = first * mh * stride[0] - before[0]  # row of x
        above = skip[0] if first == 0 else 0
        y_rows = slice((first * mh * spread[0] - skip[0] + above) // each, ((first + band) * mh * spread[0] - skip[0]) // each)
        bands.append((slice(max(0, top), max(0, top + Hp)), max(0, -top), Hp, y_rows, above))
    everything = len(bands) == 1 and images == N

    def run(x, w, bias):
        U = prepared(w, form, lambda: transformed(w, form))
        y = empty_in_layout(shape, x.dtype, last)
        if x.strides[4] != x.itemsize and x.strides[1] != x.itemsize:
            x = np.ascontiguousarray(x)
        memory = workspace(elements, x.dtype)
        rows = memory[slots * part :]
        bias = NOTHING["f"] if bias is None else np.ascontiguousarray(bias)
        for start in range(0, N, images):
            for x_rows, missing, Hp, y_rows, above in bands:
                source = x if everything else x[start : start + images, :, :, x_rows]
                target = y if everything else y[start : start + images, :, :, y_rows]
                pixel_rows["f"](pool, source, missing, before[1], Hp, Wp, Cb, rows)
                convolve(pool, rows, Hp, Wp, sums, Cb, *stride, U, panels, blocks, k_panels, together, *spread, above, skip[1], short, bias,
                         code, slope, pooled, target, heights().reshape(-1), slots, memory, part)
        return y

    return run


def _share(count, most):
    """``count`` in parts of one size, ``most`` at most."""
    return -(-count // -(-count // most))


def _scratch(points, block, channels, unit, pixels):
    """Elements of V, M and O of a block of tiles, points an odd number of cache lines apart."""
    return LINE + points * (block * (channels + unit * WIDTH) + 4 * LINE) + pixels * block * unit * WIDTH


def _blocks(points, channels, panels, unit, whole, tiles, slots, most):
    """Into how many blocks tiles are cut, how many panels of outputs a chunk takes, and how many tiles a block computes at most.

    V and M of a block share half of L2; where the weights do not fit L2 themselves, twice as many tiles use each panel
    that comes from further away, and where there are few tiles in all, every tile does: then threads share the outputs,
    and each transforms its input again. So they do where each would have less than one register tile's rows of tiles (14x14, 32 to 64 by
    5x5: 26.8 us by tiles, 24.3 by outputs; 7x7, 256 to 256 by 3x3: 102 and 92).
    ``whole``: panels that must stay together; ``most``: tiles in a block.
    """
    weights = 4 * points * channels * panels * WIDTH
    fit = caches()[1] // 2 // (4 * points * (channels + unit * WIDTH))
    least = 4 * TILE_ROWS if weights > caches()[1] else 2 * TILE_ROWS
    block = max(least, fit // TILE_ROWS * TILE_ROWS)
    if not ((weights > 4 * caches()[1] and tiles <= least and panels >= unit * slots) or (tiles < TILE_ROWS * slots <= TILE_ROWS * panels)):
        per_slot = -(-tiles // (2 * slots)) if slots > 1 else tiles
        block = min(block, -(-per_slot // TILE_ROWS) * TILE_ROWS)
    block = min(block, most)
    blocks = 1 if tiles <= block else max(1, round(tiles / block / slots)) * slots  # of one size: threads end together
    parts = 1 if slots == 1 or blocks >= 2 * slots else min(panels, -(-2 * slots // blocks))
    k_panels = -(-panels // parts)
    return blocks, -(-k_panels // whole) * whole, computed(-(-tiles // blocks))
