"""3 x 3 and 5 x 5 convolution of stride 1 by Winograd's F(m x m, r x r): a half to a sixth of the multiplications.

The image is laid out once as padded rows of pixels, channels side by side, so that every transform works on vectors of
channels and never shuffles. Then, a block of tiles at a time, all of it in a core's L2 cache:

    input transform     V[point][tile][channel] from n x n pixels of a tile, n = m + r - 1
    matrix products     M[point][tile][output] = V[point] U[point], one for each of the n^2 points; the left operand is
                        broadcast from where the transform wrote it, the weights U stream in panels
    output transform    rows of pixels O[row][tile, column][output] from M
    writing             bias, activation, and the rows to y in either layout

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308 (2015). The transforms'
code is generated from their matrices (winograd.py).
"""

from __future__ import annotations

from numba.extending import register_jitable

from ...cpu._pool import parallel_for
from ...cpu.blocking import HEIGHTS
from ...cpu.jit import always_inline, inline, kernel
from ...cpu.microkernel import TILE_VECTORS, asked, outer_tile, store_tile
from ...cpu.simd import (
    fma,
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
)
from ..numba_activation import apply_activation
from .numba_planes import _strides
from .winograd import TILES, matrices, transform_2d

LONGEST = 48  # channels in one sum of a large tile, whose output transform magnifies errors: a sum's grow with its length
K_BLOCK = 4  # panels of outputs in a block: M for them stays in L2


@inline
def _write_rows(O, tiles, t0, m, k0, count, Kb, TH, TW, OH, OW, bias, has_bias, act, slope, y, yn, yk, yh, yw):
    """The pixels of a block of tiles, O[row][tile, column][output], with bias and activation to y."""
    V = lanes(O)
    leak = splat(O, slope)
    t = 0
    while t < tiles:
        # a run of tiles side by side in one image
        index = t0 + t
        column, rest = index % TW, index // TW
        band, image = rest % TH, rest // TH
        run = min(tiles - t, TW - column)
        w0 = column * m
        pixels = min(run * m, OW - w0)
        for i in range(m):
            h = band * m + i
            if h >= OH:
                break
            source = offset(O, (i * tiles + t) * m * Kb)
            target = offset(y, image * yn + k0 * yk + h * yh + w0 * yw)
            for k in range(0, count, V):
                outputs = min(V, count - k)
                shift = load_n(bias, k0 + k, outputs) if has_bias else splat(O, 0.0)
                if yk == 1:
                    for w in range(pixels):
                        v = apply_activation(load(source, w * Kb + k) + shift, act, leak)
                        store_n(target, w * yw + k, v, outputs)
                else:
                    for w in range(0, pixels, V):
                        n = min(V, pixels - w)
                        # in place first: an activation is a loop over pixels, the transposition is not
                        for q in range(w, w + n):
                            store(source, q * Kb + k, apply_activation(load(source, q * Kb + k) + shift, act, leak))
                        if n == V and outputs == V:
                            store_rows(target, k * yk + w, yk, transpose(load_rows(source, w * Kb + k, Kb)))
                        else:
                            store_rows_n(target, k * yk + w, yk, transpose(load_rows_n(source, w * Kb + k, Kb, n, V)), outputs, n)
        t += run


# ------------------------------------------------------------------------------------------------ the transforms
_NAMES = {"load": load, "store": store, "gather_n": gather_n, "splat": splat, "fma": fma}


def _made(matrix, name, **parts):
    source = transform_2d(matrix, name, **parts)
    found = {}
    exec(source, dict(_NAMES), found)  # straight-line code: Numba does not unroll
    return register_jitable(found[name])


def _products(rows):
    """``run(count, k, a, a_row, b, following, depth, c, c_row, done)``: ``count`` times ``rows`` rows of a times a panel.

    done: parts of the next panel that were asked for. Sums are cut where ``depth`` says.
    """
    tile, put = outer_tile(rows, TILE_VECTORS, ahead=True), store_tile(rows, TILE_VECTORS)

    @always_inline
    def run(count, k, a, a_row, b, following, depth, c, c_row, done):
        V = lanes(b)
        for i in range(count):
            source, target = offset(a, i * rows * a_row), offset(c, i * rows * c_row)
            ahead = offset(following, (done + i) * asked(k, V))
            for p in range(0, k, depth):
                panel = offset(b, p * TILE_VECTORS * V)
                sums = tile(min(depth, k - p), offset(source, p), a_row, 1, panel, TILE_VECTORS * V, ahead)
                put(sums, target, c_row, rows, TILE_VECTORS * V, p > 0)
                ahead = offset(ahead, asked(depth, V))

    return run


LINE = 16  # floats of a cache line


@inline
def _apart(count):
    """``count`` elements or somewhat more: an odd number of cache lines, so that points lie in different sets of the caches."""
    return ((count + LINE - 1) // LINE | 1) * LINE


_high, _middle, _low = (_products(rows) for rows in HEIGHTS)


def make(m, r):
    """The two entry points of F(m x m, r x r): (transform_weights, convolve)."""
    n = m + r - 1
    points = n * n
    longest = LONGEST if n == 8 else 1 << 30  # channels
    a_t, g, b_t = matrices(m, r)
    weight_tile = _made(
        g,
        "weight_tile",
        load="gather_n(p, {i} * row + {j} * column, step, count)",
        store=f"store(out, ({{i}} * {n} + {{j}}) * ps, {{v}})",
        arguments="p, row, column, step, count, out, ps",
    )
    input_tile = inline(
        _made(
            b_t,
            "input_tile",
            load="load(p, {i} * row + {j} * column)",
            store=f"store(out, ({{i}} * {n} + {{j}}) * ps, {{v}})",
            arguments="p, row, column, out, ps",
        )
    )
    output_tile = inline(
        _made(
            a_t,
            "output_tile",
            load=f"load(p, ({{i}} * {n} + {{j}}) * ps)",
            store="store(out, {i} * row + {j} * column, {v})",
            arguments="p, ps, out, row, column",
        )
    )

    @inline
    def weights_chunk(slot, c, w, first, sk, sc, row, column, K, C, panels, U):
        V = lanes(w)
        width = TILE_VECTORS * V
        for k in range(0, K, V):
            source = offset(w, first + k * sk + c * sc)
            weight_tile(source, row, column, sk, K - k, offset(U, (k // width * C + c) * width + k % width), panels * C * width)

    def transform_weights(pool, w, first, sk, sc, row, column, K, C, U):
        """K x C filters as U[point][panel][C][one tile's outputs].

        w: flat; a filter's element (i, j) is w[first + k * sk + c * sc + i * row + j * column], so that a flipped or
        transposed weight needs no copy. Outputs beyond K, if a panel has them, get any values.
        """
        panels = (K + TILE_VECTORS * lanes(pointer(w)) - 1) // (TILE_VECTORS * lanes(pointer(w)))
        parallel_for(pool, weights_chunk, C, (pointer(w), first, sk, sc, row, column, K, C, panels, pointer(U)))

    @inline
    def block_chunk(
        slot,
        chunk,
        blocks,
        tiles,
        x,
        Hp,
        Wp,
        C,
        Cb,
        U,
        panels,
        k_panels,
        K,
        TH,
        TW,
        OH,
        OW,
        bias,
        has_bias,
        act,
        slope,
        y,
        yn,
        yk,
        yh,
        yw,
        heights,
        scratch,
        scratch_size,
    ):
        V = lanes(x)
        width = TILE_VECTORS * V
        part = chunk % blocks
        t0, end = part * tiles // blocks, (part + 1) * tiles // blocks
        first_panel = chunk // blocks * k_panels
        last_panel = min(panels, first_panel + k_panels)
        count = end - t0
        high, middle, low = read(heights, 3 * count), read(heights, 3 * count + 1), read(heights, 3 * count + 2)
        at_middle = high * HEIGHTS[0]
        at_low = at_middle + middle * HEIGHTS[1]
        rows = at_low + low * HEIGHTS[2]
        VV, v_apart = offset(scratch, slot * scratch_size), _apart(rows * Cb)
        for t in range(count):
            index = t0 + t
            column, rest = index % TW, index // TW
            band, image = rest % TH, rest // TH
            source = offset(x, ((image * Hp + band * m) * Wp + column * m) * Cb)
            for c in range(0, Cb, V):
                input_tile(offset(source, c), Wp * Cb, Cb, offset(VV, t * Cb + c), v_apart)
        M = offset(VV, points * v_apart)
        pieces = (C + longest - 1) // longest
        depth = (C + pieces - 1) // pieces
        for panel in range(first_panel, last_panel, K_BLOCK):
            here = min(K_BLOCK, last_panel - panel)
            Kb = here * width
            m_apart = _apart(rows * Kb)
            for p in range(points):
                for q in range(here):
                    weights = offset(U, ((p * panels + panel + q) * C) * width)
                    following = offset(weights, C * width)  # the next panel
                    if q + 1 == here:
                        following = offset(U, (((p + 1) * panels + panel) * C) * width)
                    source, target = offset(VV, p * v_apart), offset(M, p * m_apart + q * width)
                    _high(high, C, source, Cb, weights, following, depth, target, Kb, 0)
                    source_m, target_m = offset(source, at_middle * Cb), offset(target, at_middle * Kb)
                    _middle(middle, C, source_m, Cb, weights, following, depth, target_m, Kb, high)
                    source_l, target_l = offset(source, at_low * Cb), offset(target, at_low * Kb)
                    _low(low, C, source_l, Cb, weights, following, depth, target_l, Kb, high + middle)
            O = offset(M, points * m_apart)
            outputs = min(Kb, K - panel * width)
            for t in range(count):
                for k in range(0, outputs, V):
                    output_tile(offset(M, t * Kb + k), m_apart, offset(O, t * m * Kb + k), count * m * Kb, Kb)
            _write_rows(O, count, t0, m, panel * width, outputs, Kb, TH, TW, OH, OW, bias, has_bias, act, slope, y, yn, yk, yh, yw)

    def convolve(pool, x, Hp, Wp, C, Cb, U, blocks, k_panels, bias, act, slope, y, heights, scratch, scratch_size):
        """y (N, K, 1, OH, OW) from pixel_rows' x and transform_weights' U, in ``blocks`` of tiles and k_panels panels at a time.

        heights: blocking.heights(), flat.
        """
        N, K, _, OH, OW = y.shape
        TH, TW = (OH + m - 1) // m, (OW + m - 1) // m
        width = TILE_VECTORS * lanes(pointer(x))
        panels = (K + width - 1) // width
        tiles = N * TH * TW
        yn, yk, _, yh, yw = _strides(y)
        parallel_for(
            pool,
            block_chunk,
            blocks * ((panels + k_panels - 1) // k_panels),
            (
                blocks,
                tiles,
                pointer(x),
                Hp,
                Wp,
                C,
                Cb,
                pointer(U),
                panels,
                k_panels,
                K,
                TH,
                TW,
                OH,
                OW,
                pointer(bias),
                bias.shape[0] > 0,
                act,
                slope,
                pointer(y),
                yn,
                yk,
                yh,
                yw,
                pointer(heights),
                pointer(scratch),
                scratch_size,
            ),
        )

    transform_weights.__qualname__ = f"transform_weights_{m}_{r}"
    convolve.__qualname__ = f"convolve_{m}_{r}"
    return kernel("i R1 i i i i i i i W1", dtypes="f")(transform_weights), kernel("i W1 i i i i W1 i i R1 i T W5 L1 W1 i", dtypes="f")(
        convolve
    )


KERNELS = {(m, r): make(m, r) for r in TILES for m in TILES[r]}
