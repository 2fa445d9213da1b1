"""Direct convolution over rows of pixels: forward, data gradient, weight gradient, at any stride and dilation.

A tile is a few output pixels, anywhere in the image, by a few vectors of outputs. Its sum runs over the kernel's rows, and in
each over a run of memory: the kernel's cells of that row with their channels lie side by side (one by one where the
kernel is dilated). Nothing is gathered and no position is computed in vain (M. Dukhan, arXiv:1907.02129). Weights are
panels: [panel][kernel row, cell, channel][one tile's outputs].

The weight gradient is the same sum along the other axis: over the pixels of a row, for a few channels by a panel of dy.
"""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.blocking import HEIGHTS, KC
from ...cpu.jit import always_inline, inline, kernel
from ...cpu.microkernel import TILE_ROWS, TILE_VECTORS, asked, finish_tile, outer_tile, runs_tile, store_tile
from ...cpu.simd import (
    gather_n,
    lanes,
    load,
    load_n,
    load_rows,
    load_rows_n,
    offset,
    pointer,
    read,
    splat,
    store,
    store_n,
    store_rows,
    store_rows_n,
    transpose,
    write,
)
from ..numba_activation import RELU, apply_activation
from .numba_planes import _strides

MR = TILE_ROWS
SHORT_RUN = 32  # elements; from here on a run is read in place
_packed_tile = outer_tile(TILE_ROWS, TILE_VECTORS)
_gradient_tile = runs_tile(TILE_ROWS, TILE_VECTORS, unroll=2)  # its runs are rows of small images
_store, _finish = store_tile(TILE_ROWS, TILE_VECTORS), finish_tile(TILE_ROWS, TILE_VECTORS, by_column=True)


def _products(rows):
    """``run(tiles, lines, steps, source, where, starts, step, panel, done, c, c_row, add)``: ``rows`` pixels a tile times a panel's part.

    done: parts of the panel's next part that were asked for.
    """
    tile, put = runs_tile(rows, TILE_VECTORS, unit=True, ahead=True), store_tile(rows, TILE_VECTORS)

    @always_inline
    def run(tiles, lines, steps, source, where, starts, step, panel, done, c, c_row, add):
        V = lanes(panel)
        width = TILE_VECTORS * V
        following = offset(panel, lines * steps * width)
        for i in range(tiles):
            ahead = offset(following, (done + i) * lines * asked(steps, V))
            sums = tile(lines, steps, source, offset(where, i * rows), starts, step, panel, width, ahead)
            put(sums, offset(c, i * rows * c_row), c_row, rows, width, add)

    return run


_high, _middle, _low = (_products(rows) for rows in HEIGHTS)


# ------------------------------------------------------------------------------------------------ weights
@inline
def _panel_chunk(slot, panel, w, first, sk, sc, steps, cells, C, K, out):
    V = lanes(w)
    width = TILE_VECTORS * V
    target = offset(out, panel * (cells * C * width))
    for cell in range(cells):
        for c in range(C):
            for j in range(TILE_VECTORS):
                k = panel * width + j * V
                if k < K:
                    v = gather_n(w, first + k * sk + c * sc + read(steps, cell), sk, K - k)
                else:
                    v = splat(w, 0.0)
                store(target, (cell * C + c) * width + j * V, v)


@kernel("i R1 i i i L1 i i W1")
def weight_panels(pool, w, first, sk, sc, steps, C, K, out):
    """K x C kernels as panels [panel][cell][C][one tile's outputs]; what a panel has beyond K gets any values.

    w: flat; cell i of kernel (k, c) is w[first + k * sk + c * sc + steps[i]], in the order in which the sums take them.
    """
    width = TILE_VECTORS * lanes(pointer(w))
    parallel_for(
        pool, _panel_chunk, (K + width - 1) // width, (pointer(w), first, sk, sc, pointer(steps), steps.shape[0], C, K, pointer(out))
    )


# ------------------------------------------------------------------------------------------------ forward
@inline
def _write_block(sums, Kb, pixels, p0, TW, k0, outputs, bias, has_bias, act, slope, y, yk, yh, yw):
    """Sums [pixel][output] with bias and activation to y: pixels p0.. of an image whose rows are TW wide."""
    V = lanes(sums)
    leak = splat(sums, slope)
    for k in range(0, outputs, V):
        n = min(V, outputs - k)
        shift = load_n(bias, k0 + k, n) if has_bias else splat(sums, 0.0)
        if yk == 1:
            for p in range(pixels):
                place = (p0 + p) // TW * yh + (p0 + p) % TW * yw
                store_n(y, place + k, apply_activation(load(sums, p * Kb + k) + shift, act, leak), n)
            continue
        if act != 0 or has_bias:
            for p in range(pixels):
                store(sums, p * Kb + k, apply_activation(load(sums, p * Kb + k) + shift, act, leak))
        p = 0
        while p < pixels:
            # a run of pixels side by side in y: to the end of the row, or of the block where rows follow each other
            row, column = (p0 + p) // TW, (p0 + p) % TW
            run = pixels - p if yw == 1 and yh == TW else min(pixels - p, TW - column)
            target = offset(y, k * yk + row * yh + column * yw)
            for q in range(0, run, V):
                m = min(V, run - q)
                source = (p + q) * Kb + k
                if yw != 1:
                    for r in range(m):
                        for e in range(n):
                            write(target, e * yk + (q + r) * yw, read(sums, source + r * Kb + e))
                elif m == V and n == V:
                    store_rows(target, q, yk, transpose(load_rows(sums, source, Kb)))
                else:
                    store_rows_n(target, q, yk, transpose(load_rows_n(sums, source, Kb, m, V)), n, m)
            p += run


@inline
def _short_runs(source, where, pixels, run_offsets, runs, count, weights, panels, sums, Kb, finished, K, bias, floor, y, yw):
    """Sums of short runs (few channels, one kernel row of them): a tile's runs are first copied one after another.

    Where ``finished``, they go to y with bias and floor at once: its pixels lie yw apart, their K outputs side by side.
    """
    V = lanes(source)
    width = TILE_VECTORS * V
    depth = runs * count
    copied = offset(sums, (pixels + MR - 1) // MR * MR * Kb)
    for p in range(0, pixels, MR):
        for i in range(MR):
            start = read(where, p + i)
            for r in range(runs):
                run = start + read(run_offsets, r)
                for c in range(0, count, V):
                    store(copied, i * depth + r * count + c, load_n(source, run + c, count - c))  # the next run covers what is too much
        for panel in range(panels):
            k = panel * width
            acc = _packed_tile(depth, copied, depth, 1, offset(weights, panel * depth * width), width, 0)
            if finished:
                _finish(acc, offset(y, p * yw + k), yw, min(MR, pixels - p), K - k, offset(bias, k), 1, floor)
            else:
                _store(acc, offset(sums, p * Kb + k), Kb, MR, width, False)


@inline
def _pixels_chunk(slot, chunk, blocks, block, part, rows, images, image_size, pixel_h, pixel_w, runs, run_offsets, count, step, w,
                  panels, K, TH, TW, bias, has_bias, act, slope, y, yn, yk, yh, yw, heights, scratch, scratch_size, places):
    V = lanes(rows)
    width = TILE_VECTORS * V
    depth = runs * count
    area = TH * TW
    p0, first_panel = chunk % blocks * block, chunk // blocks * part
    here = min(part, panels - first_panel)
    pixels = min(block, images * area - p0)
    sums = offset(scratch, slot * scratch_size)
    where = offset(places, slot * (block + MR))
    for p in range(pixels):
        image, place = (p0 + p) // area, (p0 + p) % area
        write(where, p, image * image_size + place // TW * pixel_h + place % TW * pixel_w)
    for p in range(pixels, pixels + MR):
        write(where, p, read(where, pixels - 1))  # the last tile is filled with copies
    Kb = here * width
    if runs > 1 and count < SHORT_RUN:
        dense = yk == 1 and yh == TW * yw and (images == 1 or yn == area * yw)
        finished = dense and act <= RELU and has_bias
        k = first_panel * width
        _short_runs(rows, where, pixels, run_offsets, runs, count, offset(w, k * depth), here, sums, Kb, finished, K - k, offset(bias, k),
                    0.0 if act == RELU else -np.inf, offset(y, p0 * yw + k), yw)
        if finished:
            return
        here = 0
    # so much of a panel at a time as stays in L1 while the block's pixels pass: some runs, or a piece of one
    pieces = max(1, (count + KC - 1) // KC)
    piece, group = max(1, (count + pieces - 1) // pieces), max(1, KC // max(count, 1))
    high, middle, low = read(heights, 3 * pixels), read(heights, 3 * pixels + 1), read(heights, 3 * pixels + 2)
    at_middle = high * HEIGHTS[0]
    at_low = at_middle + middle * HEIGHTS[1]
    for panel in range(here):
        weights = offset(w, (first_panel + panel) * depth * width)
        target = offset(sums, panel * width)
        for r in range(0, max(runs, 1), group):  # once, for the zeros, where no cell meets the output
            lines, starts = min(group, runs - r), offset(run_offsets, r)
            for c in range(0, max(count, 1), piece):
                w_part, begin, steps = offset(weights, (r * count + c) * width), offset(rows, c), min(piece, count - c)
                add = r + c > 0
                _high(high, lines, steps, begin, where, starts, step, w_part, 0, target, Kb, add)
                there = offset(where, at_middle)
                _middle(middle, lines, steps, begin, there, starts, step, w_part, high, offset(target, at_middle * Kb), Kb, add)
                there = offset(where, at_low)
                _low(low, lines, steps, begin, there, starts, step, w_part, high + middle, offset(target, at_low * Kb), Kb, add)
    k0 = first_panel * width
    p = 0
    while p < pixels:
        image, place = (p0 + p) // area, (p0 + p) % area
        run = min(pixels - p, area - place)
        _write_block(offset(sums, p * Kb), Kb, run, place, TW, k0, min(Kb, K - k0), bias, has_bias, act, slope,
                     offset(y, image * yn + k0 * yk), yk, yh, yw)
        p += run


@kernel("i R1 i i i L1 i R1 i i R1 i T W5 L1 W1 i L1")
def convolve_pixels(pool, rows, image_size, pixel_h, pixel_w, run_offsets, count, w, block, part, bias, act, slope, y, heights, scratch,
                    scratch_size, places):
    """y[n, k, oh, ow] = act(bias[k] + sum over runs and steps of rows[image n, pixel (oh, ow), run, step] * w[k, run, step]).

    Pixel (oh, ow) starts at oh * pixel_h + ow * pixel_w of its image; a run is ``count`` elements from run_offsets on.
    bias: a whole number of panels, or empty. block: pixels in a chunk, of one image or several; part: panels in a chunk. heights:
    blocking.heights(), flat. scratch: slots * scratch_size elements (see numba_pixels_plan.py); places: slots * (block + MR).
    """
    N, K, _, TH, TW = y.shape
    yn, yk, _, yh, yw = _strides(y)
    width = TILE_VECTORS * lanes(pointer(rows))
    panels = (K + width - 1) // width
    blocks, parts = (N * TH * TW + block - 1) // block, (panels + part - 1) // part
    parallel_for(
        pool,
        _pixels_chunk,
        blocks * parts,
        (blocks, block, part, pointer(rows), N, image_size, pixel_h, pixel_w, run_offsets.shape[0], pointer(run_offsets), count, 1,
         pointer(w), panels, K, TH, TW, pointer(bias), bias.shape[0] > 0, act, slope, pointer(y), yn, yk, yh, yw, pointer(heights),
         pointer(scratch), scratch_size, pointer(places)),
    )


# ------------------------------------------------------------------------------------------------ weight gradient
@inline
def _gradient_chunk(slot, chunk, items, group, band, N, rows, image_size, pixel_w, terms, dy, panel_size, panels, OH, OW, row_runs, dw):
    width = TILE_VECTORS * lanes(rows)
    for step in range(N * ((OH + band - 1) // band)):
        image, row = step % N, step // N * band
        source = offset(rows, image * image_size)
        grad = offset(dy, (image * OH + row) * OW * width)
        runs = offset(row_runs, row)
        for item in range(chunk * group, min(items, (chunk + 1) * group)):
            target = offset(dw, item * MR * panels * width)
            for k in range(panels):
                right = offset(grad, k * panel_size)
                sums = _gradient_tile(min(band, OH - row), OW, source, offset(terms, item * MR), runs, pixel_w, right, width, 0)
                _store(sums, offset(target, k * width), panels * width, MR, width, step > 0)


@kernel("i i i i R1 i i L1 R1 i i i i L1 W1")
def gradient_pixels(pool, group, band, N, rows, image_size, pixel_w, terms, dy, panel_size, panels, OH, OW, row_runs, dw):
    """dw[t, k] = sum over images and output pixels of rows[image, pixel, terms[t]] * dy[k's panel, image, pixel, k].

    terms: where each (kernel cell, channel) starts, a whole number of tiles of them; row_runs: where each output row
    starts, pixel_w from pixel to pixel. dy: [panel][N][OH][OW][one tile's outputs], panel_size apart. A chunk is ``group``
    tiles for all images, ``band`` output rows at a time, summed in order: the bits do not depend on the number of threads.
    """
    items = terms.shape[0] // MR
    arguments = (items, group, band, N, pointer(rows), image_size, pixel_w, pointer(terms), pointer(dy), panel_size, panels, OH, OW)
    parallel_for(pool, _gradient_chunk, (items + group - 1) // group, (*arguments, pointer(row_runs), pointer(dw)))
