"""The input of a convolution as padded planes, which tiles read in place.

A plane is one channel of one image, with its padding, cut into phases: cell i (counted from the padding's start) of a
dimension with stride s goes to phase i mod s, place i div s. Then a kernel cell k meets, at output position o, phase
(k * dilation) mod s at place o + (k * dilation) div s: however large the stride, consecutive outputs read consecutive
memory. Within a phase cells are counted along rows of the plane's pitch; an output position is the number q of the
place it starts from, so a few q at the end of each row (pitch - outputs) stand for no output: they are computed and
dropped, which costs less than breaking vectors at the end of every row.
"""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import gather, lanes, load, load_even, load_n, offset, pointer, read, splat, store, store_n, write


@inline
def _strides(x):
    size = x.itemsize
    return x.strides[0] // size, x.strides[1] // size, x.strides[2] // size, x.strides[3] // size, x.strides[4] // size


@inline
def zero(p, start, end):
    V = lanes(p)
    i = start
    while i + V <= end:
        store(p, i, splat(p, 0.0))
        i += V
    if i < end:
        store_n(p, i, splat(p, 0.0), end - i)


@inline
def copy_row(source, step, target, start, end):
    """target[i] = source[i * step] for i from start to end."""
    V = lanes(target)
    i = start
    if step == 1:
        while i + V <= end:
            store(target, i, load(source, i))
            i += V
        if i < end:
            store_n(target, i, load_n(source, i, end - i), end - i)
    elif step == 2:
        while i + V <= end:
            store(target, i, load_even(source, 2 * i))
            i += V
        while i < end:
            write(target, i, read(source, 2 * i))
            i += 1
    else:
        while i + V <= end:
            store(target, i, gather(source, i * step, step))
            i += V
        while i < end:
            write(target, i, read(source, i * step))
            i += 1


@inline
def make_plane(source, sd, sh, sw, D, H, W, pd, ph, pw, td, th, tw, Ds, Hs, Ws, plane):
    """One channel of one image as the plane [td, th, tw, Ds, Hs, Ws]."""
    at = 0
    for a in range(td):
        for b in range(th):
            for c in range(tw):
                # the places whose cell i = place * tw + c - pw lies in the image
                low = min(Ws, max(0, -((c - pw) // tw)))
                high = max(low, min(Ws, (W - 1 - c + pw) // tw + 1))
                for d in range(Ds):
                    z = d * td + a - pd
                    for h in range(Hs):
                        y = h * th + b - ph
                        row = offset(plane, at)
                        if z < 0 or z >= D or y < 0 or y >= H:
                            zero(row, 0, Ws)
                        else:
                            zero(row, 0, low)
                            copy_row(offset(source, z * sd + y * sh + (c - pw) * sw), sw * tw, row, low, high)
                            zero(row, high, Ws)
                        at += Ws


@inline
def _plane_chunk(slot, chunk, x, channels, sn, sc, sd, sh, sw, D, H, W, pd, ph, pw, td, th, tw, Ds, Hs, Ws, planes):
    source = offset(x, chunk // channels * sn + chunk % channels * sc)
    plane = offset(planes, chunk * (td * th * tw * Ds * Hs * Ws))
    make_plane(source, sd, sh, sw, D, H, W, pd, ph, pw, td, th, tw, Ds, Hs, Ws, plane)


@kernel("i R5 i i i i i i i i i W1")
def make_planes(pool, x, pd, ph, pw, td, th, tw, Ds, Hs, Ws, planes):
    """x (N, C, D, H, W) as planes [N, C, td, th, tw, Ds, Hs, Ws]; pd.. the padding before, td.. the stride."""
    N, C, D, H, W = x.shape
    sn, sc, sd, sh, sw = _strides(x)
    parallel_for(
        pool, _plane_chunk, N * C, (pointer(x), C, sn, sc, sd, sh, sw, D, H, W, pd, ph, pw, td, th, tw, Ds, Hs, Ws, pointer(planes))
    )
