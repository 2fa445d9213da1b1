"""Depthwise convolution of planar images, read in place: vectors run along the positions of a row.

Windows slide down strips of a few vectors side by side (cpu/sliding.py): the image is read once, in order, each row of it with as
many loads as the window has columns. Rows of half a vector or less go two planes at a time, one in each half.
"""

from __future__ import annotations

import numpy as np

from ...cpu._pool import parallel_for
from ...cpu.features import registers
from ...cpu.jit import inline, kernel
from ...cpu.simd import hsum, lanes, load, load_n, offset, pointer, splat, store, store_n, write
from ...cpu.sliding import gather_rows, most_vectors, slide_rows, spread_rows
from ..numba_activation import RELU, apply_activation
from .numba_planes import _strides

SIZES, STRIDES = (3, 5), (1, 2)
SPREAD = 2 if registers() >= 32 else 1  # pairs of vectors in a strip of a data gradient


def make(size, stride):
    """The entry point for windows of size x size at this stride."""
    widest = most_vectors(size)
    one, pair, two = slide_rows(size, stride, 1), slide_rows(size, stride, 1, True), slide_rows(size, stride, 2)
    three, four = slide_rows(size, stride, min(3, widest)), slide_rows(size, stride, widest)

    @inline
    def strips(most, x, xh, H, W, row, left, count, w, bias, floor, y, yh, TW):
        """``count`` rows of TW positions of one plane."""
        V = lanes(x)
        others = (x, w, bias, y)
        if TW <= V:
            one(x, xh, H, W, row, -left, 0, 0, count, w, bias, floor, y, yh, TW, others)
            return
        vectors = (TW + V - 1) // V
        todo = (vectors + most - 1) // most  # strips
        j = 0
        while todo:
            n = (vectors + todo - 1) // todo
            last = min(n * V, TW - j) - V
            column = j * stride - left
            inner = (W - column - (size - 1)) // stride - V
            target = offset(y, j)
            if n == 1:
                one(x, xh, H, W, row, column + last * stride, 0, 0, count, w, bias, floor, offset(y, j + last), yh, V, others)
            elif n == 2:
                two(x, xh, H, W, row, column, last, inner, count, w, bias, floor, target, yh, V, others)
            elif n == 3:
                three(x, xh, H, W, row, column, last, inner, count, w, bias, floor, target, yh, V, others)
            else:
                four(x, xh, H, W, row, column, last, inner, count, w, bias, floor, target, yh, V, others)
            j += n * V
            vectors -= n
            todo -= 1

    @inline
    def activate(y, act, slope, count, TW, yh):
        """What a floor is not enough for, to the rows of a plane that were just written."""
        if act > RELU:
            V, leak = lanes(y), splat(y, slope)
            for h in range(count):
                row = offset(y, h * yh)
                for j in range(0, TW, V):
                    store_n(row, j, apply_activation(load_n(row, j, TW - j), act, leak), TW - j)

    @inline
    def chunk_of(slot, chunk, share, bands, most, planes, C, K, x, sn, sc, xh, H, W, top, left, w, bias, act, slope, y, yn, yk, yh, TH, TW):
        V = lanes(x)
        first, band = chunk // bands * share, chunk % bands
        last = min(first + share, planes)
        h = band * TH // bands
        count = (band + 1) * TH // bands - h
        floor = 0.0 if act == RELU else -np.inf
        row = h * stride - top
        M = K // C
        step = 2 if 2 * TW <= V else 1
        for p in range(first, last, step):
            image, k = p // K, p % K
            source, target = offset(x, image * sn + k // M * sc), offset(y, image * yn + k * yk + h * yh)
            windows, shift = offset(w, k * size * size), offset(bias, k)
            if step == 2:
                q = min(p + 1, last - 1)  # the last of an odd number has both halves
                image, l = q // K, q % K
                others = (offset(x, image * sn + l // M * sc), offset(w, l * size * size), offset(bias, l),
                          offset(y, image * yn + l * yk + h * yh))
                pair(source, xh, H, W, row, -left, 0, 0, count, windows, shift, floor, target, yh, TW, others)
                if q > p:
                    activate(others[3], act, slope, count, TW, yh)
            else:
                strips(most, source, xh, H, W, row, left, count, windows, shift, floor, target, yh, TW)
            activate(target, act, slope, count, TW, yh)

    def convolve_image(pool, share, bands, most, x, top, left, w, bias, act, slope, y):
        """y[n, k] = act(bias[k] + window k over x[n, k // multiplier]); x's and y's rows are contiguous.

        w: flat [k][size * size]. bias: one for each k. top, left: padding. share: planes of y in a chunk; bands: parts of a plane that
        threads take. most: vectors in a strip.
        """
        N, C, _, H, W = x.shape
        K, TH, TW = y.shape[1], y.shape[3], y.shape[4]
        sn, sc, _, xh, _ = _strides(x)
        yn, yk, _, yh, _ = _strides(y)
        parallel_for(
            pool,
            chunk_of,
            (N * K + share - 1) // share * bands,
            (share, bands, most, N * K, C, K, pointer(x), sn, sc, xh, H, W, top, left, pointer(w), pointer(bias), act, slope, pointer(y),
             yn, yk, yh, TH, TW),
        )

    convolve_image.__qualname__ = f"convolve_image_{size}_{stride}"
    return kernel("i i i i R5 i i R1 R1 i T W5")(convolve_image)


def make_weight_gradient(size, stride):
    """The entry point of dw for windows of size x size at this stride."""
    cells, most = size * size, 2 if size <= 3 and registers() >= 32 else 1  # vectors in a strip
    one, pair = gather_rows(size, stride, 1), gather_rows(size, stride, 1, True)
    two = gather_rows(size, stride, most)

    @inline
    def chunk_of(slot, chunk, share, N, C, K, x, sn, sc, xh, H, W, top, left, z, zn, zk, zh, TH, TW, dw, scratch):
        V = lanes(x)
        M = K // C
        first, last = chunk * share, min((chunk + 1) * share, K)
        sums = offset(scratch, slot * cells * V)
        step = 2 if 2 * TW <= V else 1
        for k in range(first, last, step):
            for i in range(cells):
                store(sums, i * V, splat(x, 0.0))
            l = min(k + step - 1, last - 1)  # the last of an odd number has both halves
            for image in range(N):
                source, other = offset(x, image * sn + k // M * sc), offset(x, image * sn + l // M * sc)
                grad, others = offset(z, image * zn + k * zk), (other, offset(z, image * zn + l * zk))
                if step == 2:
                    pair(source, xh, H, W, -top, -left, grad, zh, TH, TW, sums, others)
                    continue
                j = 0
                while TW - j > V and most > 1:
                    n = min(most * V, TW - j) - (most - 1) * V
                    two(source, xh, H, W, -top, j * stride - left, offset(grad, j), zh, TH, n, sums, others)
                    j += most * V
                while j < TW:
                    one(source, xh, H, W, -top, j * stride - left, offset(grad, j), zh, TH, min(V, TW - j), sums, others)
                    j += V
            for i in range(cells):
                if step == 2:
                    half = V // 2
                    write(dw, l * cells + i, hsum(load_n(sums, i * V + half, half)))
                    write(dw, k * cells + i, hsum(load_n(sums, i * V, half)))
                else:
                    write(dw, k * cells + i, hsum(load(sums, i * V)))

    def gather_image(pool, share, x, top, left, z, dw, scratch):
        """dw[k, cell] = the sum over images and positions of z[n, k] times the value of x[n, k // multiplier] that the cell meets there.

        x's and z's rows are contiguous. dw: flat. share: channels of z in a chunk, all images in order, so that the bits do not depend
        on the number of threads. scratch: a vector for each cell a thread.
        """
        N, C, _, H, W = x.shape
        K, TH, TW = z.shape[1], z.shape[3], z.shape[4]
        sn, sc, _, xh, _ = _strides(x)
        zn, zk, _, zh, _ = _strides(z)
        parallel_for(
            pool,
            chunk_of,
            (K + share - 1) // share,
            (share, N, C, K, pointer(x), sn, sc, xh, H, W, top, left, pointer(z), zn, zk, zh, TH, TW, pointer(dw), pointer(scratch)),
        )

    gather_image.__qualname__ = f"gather_image_{size}_{stride}"
    return kernel("i i R5 i i R5 W1 W1")(gather_image)


def make_data_gradient(size):
    """The entry point of dx for windows of size x size at stride 2."""
    tiles = [(spread_rows(size, 1, odd), spread_rows(size, SPREAD, odd)) for odd in (False, True)]
    (even_one, even_two), (odd_one, odd_two) = tiles

    @inline
    def strip(odd, wide, z, zh, H, W, row, column, steps, w, y, yh, first_row, OH, n):
        if odd and wide:
            odd_two(z, zh, H, W, row, column, steps, w, y, yh, first_row, OH, n)
        elif odd:
            odd_one(z, zh, H, W, row, column, steps, w, y, yh, first_row, OH, n)
        elif wide:
            even_two(z, zh, H, W, row, column, steps, w, y, yh, first_row, OH, n)
        else:
            even_one(z, zh, H, W, row, column, steps, w, y, yh, first_row, OH, n)

    @inline
    def chunk_of(slot, chunk, share, bands, planes, C, z, zn, zc, zh, H, W, top, left, w, y, yn, yc, yh, OH, OW):
        V = lanes(z)
        first, band = chunk // bands * share, chunk % bands
        rows = (top + OH + 1) // 2 - top // 2  # of z, those beside it included
        start, end = band * rows // bands, (band + 1) * rows // bands
        row = top // 2 + start
        for p in range(first, min(first + share, planes)):
            image, c = p // C, p % C
            source, target = offset(z, image * zn + c * zc), offset(y, image * yn + c * yc)
            j = 0
            while j < OW:
                wide = OW - j > 2 * V and SPREAD > 1
                n = min(OW - j, 2 * SPREAD * V if wide else 2 * V)
                strip(left % 2 == 1, wide, source, zh, H, W, row, (left + j) // 2, end - start, offset(w, c * size * size),
                      offset(target, j), yh, 2 * row - top, OH, n)
                j += n

    def spread_image(pool, share, bands, z, top, left, w, y):
        """y[n, c] = the sum over all positions of z[n, c] times window c put there, two apart; z's and y's rows are contiguous.

        w: flat [c][size * size]. top, left: how far before y the first window begins. share: planes of y in a chunk; bands: parts of a
        plane that threads take.
        """
        N, C, _, H, W = z.shape
        OH, OW = y.shape[3], y.shape[4]
        zn, zc, _, zh, _ = _strides(z)
        yn, yc, _, yh, _ = _strides(y)
        parallel_for(
            pool,
            chunk_of,
            (N * C + share - 1) // share * bands,
            (share, bands, N * C, C, pointer(z), zn, zc, zh, H, W, top, left, pointer(w), pointer(y), yn, yc, yh, OH, OW),
        )

    spread_image.__qualname__ = f"spread_image_{size}"
    return kernel("i i i R5 i i R1 W5")(spread_image)


LARGE = (7, 1)  # a window and stride without a weight gradient of its own: its sums are more than there are registers
KERNELS = {form: make(*form) for form in [(size, stride) for size in SIZES for stride in STRIDES] + [LARGE]}
WEIGHT_GRADIENTS = {(size, stride): make_weight_gradient(size, stride) for size in SIZES for stride in STRIDES}
DATA_GRADIENTS = {(size, 2): make_data_gradient(size) for size in SIZES}  # at stride 1 a window turned round slides
