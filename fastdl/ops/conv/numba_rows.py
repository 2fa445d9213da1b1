"""The input of a convolution as padded rows of pixels, channels side by side, from either memory layout."""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import lanes, load, load_n, load_rows, load_rows_n, offset, pointer, store, store_n, store_rows, store_rows_n, transpose
from .numba_planes import _strides, copy_row, zero


@inline
def _row_chunk(slot, chunk, x, sn, sc, sh, sw, C, H, W, ph, pw, Hp, Wp, Cb, out):
    V = lanes(x)
    image, row = chunk // Hp, chunk % Hp
    target = offset(out, chunk * (Wp * Cb))
    y = row - ph
    last = max(0, min(W, Wp - pw))  # columns of x that are asked for
    if y < 0 or y >= H:
        zero(target, 0, Wp * Cb)
        return
    zero(target, 0, min(pw, Wp) * Cb)
    zero(target, (pw + last) * Cb, Wp * Cb)
    source = offset(x, image * sn + y * sh)
    pixels = offset(target, pw * Cb)
    if Cb == 1:
        copy_row(source, sw, pixels, 0, last)
    elif sc == 1:
        for w in range(last):
            c = 0
            while c + V <= C:
                store(pixels, w * Cb + c, load(source, w * sw + c))
                c += V
            if c < C:
                store_n(pixels, w * Cb + c, load_n(source, w * sw + c, C - c), Cb - c)
    else:
        for c in range(0, C, V):
            channels, room = min(V, C - c), min(V, Cb - c)
            w = 0
            if channels == V:
                while w + V <= last:
                    store_rows(pixels, w * Cb + c, Cb, transpose(load_rows(source, c * sc + w, sc)))
                    w += V
            while w < last:
                n = min(V, last - w)
                store_rows_n(pixels, w * Cb + c, Cb, transpose(load_rows_n(source, c * sc + w, sc, channels, n)), n, room)
                w += V


@kernel("i R5 i i i i i W1")
def pixel_rows(pool, x, ph, pw, Hp, Wp, Cb, out):
    """x (N, C, 1, H, W), contiguous along W or along C, as out[N, Hp, Wp, Cb]: ph rows and pw columns of zeros before it,
    zeros after it, and zeros after its C channels where Cb, which is less than a vector more, has room."""
    N, C, _, H, W = x.shape
    sn, sc, _, sh, sw = _strides(x)
    parallel_for(pool, _row_chunk, N * Hp, (pointer(x), sn, sc, sh, sw, C, H, W, ph, pw, Hp, Wp, Cb, pointer(out)))
