"""The weight gradient of a convolution behind which there is a 2 x 2 max-pool.

Three of four positions of dz, the gradient at the convolution's answer, are zero: a cell's gradient goes to the one element that was
the largest. So the products are not those of dz, but of the cells, a quarter of them:

    dw[k, :] += g[n, k, cell] * the input under the maximum of (n, k, cell)

What is not under a maximum adds nothing, not even where it is NaN.

With channels side by side, the input under a row of the kernel is one run of memory, read in place. With few channels runs are short, and
the input under each position is laid out as a patch first: all kernel cells and channels, one run.

A chunk is some outputs for some bands of rows of cells. A band's input stays in L1 while all these outputs pass, a run of it at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...cpu import parallel
from ...cpu._pool import parallel_for
from ...cpu.blocking import LANES
from ...cpu.jit import inline, kernel
from ...cpu.picked_rows import MOST_VECTORS, add_rows
from ...cpu.simd import lanes, load, offset, pointer, read, splat, store, write
from ...cpu.thresholds import MULTIPLY_ADDS
from ...cpu.workspace import workspace
from .numba_pixels_plan import IMAGES, forward_plan
from .numba_rows import pixel_rows

SHORT_RUN = 4  # vectors; from here on a run is read in place
PATCHES = 1 << 18  # bytes of the patches of one row of cells, at most
BAND = 24 << 10  # bytes of the input under one kernel row, of a band of cells: half of a first-level cache
CELLS = 128  # in a band
OUTPUTS = 8  # in a chunk, whose cells' places are worked out once for all runs
CHUNKS, SUMS = 64, 1 << 20  # where all outputs are in one chunk; and elements of the sums of all chunks then


@inline
def _add_cells(vectors, count, g, step, places, source, sums):
    """One kernel row of one output: whole vectors, some of them at a time."""
    passes = (vectors + MOST_VECTORS - 1) // MOST_VECTORS
    most, v = (vectors + passes - 1) // passes, 0
    while v < vectors:
        n, at = min(most, vectors - v), v * lanes(source)
        add_rows(n, count, g, step, places, offset(source, at), offset(sums, at))
        v += n


@inline
def _locate(narrow, step, rows, columns, row_size, pixel_size, places):
    """Where the input under each cell's maximum begins."""
    for i in range(rows):
        for j in range(columns):
            place = read(narrow, (i * columns + j) * step)
            write(places, i * columns + j, (2 * i + (place >> 1)) * row_size + (2 * j + (place & 1)) * pixel_size)


@inline
def _make_patches(source, pixel_w, run_offsets, runs, count, columns, pitch, patches):
    """The input under each position of a row, ``pitch`` elements for each."""
    V = lanes(source)
    for i in range(columns):
        target, pixel = offset(patches, i * pitch), offset(source, i * pixel_w)
        for r in range(runs):
            run = offset(pixel, read(run_offsets, r))
            for c in range(0, count, V):
                store(target, r * count + c, load(run, c))  # the next run, or patch, covers what is too much


@inline
def _chunk(slot, chunk, blocks, block, share, total, band, bands, rows, image_size, pixel_h, pixel_w, run_offsets, runs, count, patched, g,
           narrow, gn, gk, gc, K, OH, OW, pitch, scratch, space, places, room, sums):
    V = lanes(g)
    first, part = chunk % blocks * block, chunk // blocks
    last = min(K, first + block)
    lines = 1 if patched else runs
    mine, patches = offset(places, slot * room), offset(scratch, slot * space)
    sums = offset(sums, part * (K * lines * pitch))
    for i in range(first * lines * pitch, last * lines * pitch, V):
        store(sums, i, splat(g, 0.0))
    for t in range(part * share, min(total, (part + 1) * share)):
        image, row = t // bands, t % bands * band
        height = min(band, OH - row)
        source, row_size, pixel_size = offset(rows, image * image_size + 2 * row * pixel_h), pixel_h, pixel_w
        if patched:
            row_size, pixel_size = 2 * OW * pitch, pitch
            for i in range(2 * height):
                _make_patches(offset(source, i * pixel_h), pixel_w, run_offsets, runs, count, 2 * OW, pitch, offset(patches, i * row_size))
            source = patches
        k = first
        while k < last:
            here = min(OUTPUTS, last - k)
            cells = image * gn + k * gk + row * OW * gc
            for j in range(here):
                _locate(offset(narrow, cells + j * gk), gc, height, OW, row_size, pixel_size, offset(mine, j * height * OW))
            for r in range(lines):
                run = source if patched else offset(source, read(run_offsets, r))
                for j in range(here):
                    _add_cells(pitch // V, height * OW, offset(g, cells + j * gk), gc, offset(mine, j * height * OW), run,
                               offset(sums, ((k + j) * lines + r) * pitch))
            k += here


@kernel("i i i i i i R1 i i i L1 i i R1 B1 i i i i i W1 i L1 i W3")
def gradient_of_maxima(pool, blocks, block, share, band, patched, rows, image_size, pixel_h, pixel_w, run_offsets, count, runs, g, narrow,
                       gn, gk, gc, OH, OW, scratch, space, places, room, sums):
    """sums[i, k] = the sum over bands of cells, ``share`` of them from i * share on, of g times the input under their maxima.

    A band is ``band`` rows of cells, a chunk ``block`` outputs of one share. rows, run_offsets, count: of convolve_pixels, as many
    vectors more as a run's last one reaches beyond it. g, narrow: flat, the gradients of cells (N, K, OH, OW) at strides gn, gk and gc
    (from column to column; from row to row OW times that), and the place of each in its window. patched: whether a patch is made of all
    runs. scratch: for each thread ``space`` elements for patches; places: ``room`` for the cells of OUTPUTS outputs. sums: (shares, K,
    runs * pitch), or (shares, K, pitch) of patches; pitch: a run (patch) in whole vectors.
    """
    N, K, bands = g.shape[0] // gn, sums.shape[1], (OH + band - 1) // band
    pitch = sums.shape[2] if patched else sums.shape[2] // runs
    parallel_for(pool, _chunk, blocks * sums.shape[0],
                 (blocks, block, share, N * bands, band, bands, pointer(rows), image_size, pixel_h, pixel_w, pointer(run_offsets),
                  runs, count, patched, pointer(g), pointer(narrow), gn, gk, gc, K, OH, OW, pitch, pointer(scratch), space, pointer(places),
                  room, pointer(sums)))


# ------------------------------------------------------------------------------------------------ from arrays
def serves(x, w, params) -> bool:
    """Whether the weight gradient of such a convolution is taken from its maxima."""
    return x.size > 0 and params.groups == 1 and params.ndim < 3


class _Form(NamedTuple):
    """How the work is cut, which must not depend on the number of threads: sums go by it."""

    patched: bool
    pitch: int  # elements
    band: int  # rows of cells
    block: int  # outputs
    shares: int


def _form(taps, lanes, itemsize, row, images, K, OH, OW):
    """row: elements of a padded row of the input."""
    whole = -(-taps.count * len(taps.run_offsets) // lanes) * lanes
    patched = taps.count < SHORT_RUN * lanes and len(taps.run_offsets) > 1 and 4 * OW * whole * itemsize <= PATCHES
    pitch = whole if patched else -(-taps.count // lanes) * lanes
    line = 2 * OW * pitch if patched else row
    bands = -(-OH // max(1, min(OH, BAND // (2 * line * itemsize), CELLS // OW)))
    band, bands = -(-OH // bands), images * bands
    if patched:  # patches are made once: all outputs in one chunk
        return _Form(True, pitch, band, K, max(1, min(CHUNKS, SUMS // (K * pitch), bands)))
    return _Form(False, pitch, band, OUTPUTS, min(bands, -(-OUTPUTS // -(-K // OUTPUTS))))


def weight_gradient(x, g, narrow, last, w, params):
    """The gradient of w (K, C, 1, kh, kw) from g, the gradient of the pooled cells, memory channels-last if ``last``, without gaps.

    narrow: the place of each maximum in its 2 x 2 window, in g's order.
    """
    dtype, char = x.dtype, x.dtype.char
    plan = forward_plan(x.shape[1], w.shape, params, params.out[1:])
    taps, (N, K, _, OH, OW) = plan.sums[0], g.shape
    runs = len(taps.run_offsets)
    pool, slots = parallel.team() if g.size * w[0].size > MULTIPLY_ADDS else (0, 1)
    gn, gk, gc = (K * OH * OW, 1, K) if last else (K * OH * OW, OH * OW, 1)
    flat = (g.transpose(0, 2, 3, 4, 1) if last else g).reshape(-1)
    row = plan.size[1] * plan.channels
    image = plan.size[0] * row  # elements, padded
    images = max(1, min(N, IMAGES // (x.itemsize * image)))  # at a time
    form = _form(taps, LANES[char], x.itemsize, row, images, K, OH, OW)
    space = 4 * form.band * OW * form.pitch + LANES[char] if form.patched else 0
    memory = workspace(slots * space + images * image + LANES[char], dtype)
    rows = memory[slots * space :]
    room = OUTPUTS * form.band * OW
    places = np.empty(slots * room, np.int64)
    if x.strides[4] != x.itemsize and x.strides[1] != x.itemsize:
        x = np.ascontiguousarray(x)
    total = None
    for start in range(0, N, images):
        here = x[start : start + images]
        bands = len(here) * -(-OH // form.band)
        share = -(-bands // form.shares)
        pixel_rows[char](pool, here, *plan.before, *plan.size, plan.channels, rows)
        sums = np.empty((-(-bands // share), K, (1 if form.patched else runs) * form.pitch), dtype)
        gradient_of_maxima[char](pool, -(-K // form.block), form.block, share, form.band, form.patched, rows, image, plan.stride[0] * row,
                                 plan.stride[1] * plan.channels, taps.run_offsets, taps.count, runs,
                                 flat[start * gn : (start + len(here)) * gn], narrow[start * gn :], gn, gk, gc, OH, OW, memory, space,
                                 places, room, sums)
        # what pads a row holds anything, and is not summed
        part = (sums[:, :, : w[0].size] if form.patched else sums.reshape(-1, K, runs, form.pitch)[..., : taps.count]).sum(axis=0)
        total = part if total is None else total + part
    dw = np.empty(w.shape, dtype)
    dw.reshape(K, plan.channels, -1)[:, :, taps.cells] = total.reshape(K, len(taps.cells), plan.channels).transpose(0, 2, 1)
    return dw
