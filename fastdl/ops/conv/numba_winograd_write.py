"""The last step of a Winograd convolution: rows of pixels, outputs side by side, to y with bias and activation."""

from __future__ import annotations

from ...cpu.jit import inline
from ...cpu.simd import lanes, load, load_n, load_rows, load_rows_n, maximum, splat, store, store_n, store_rows, store_rows_n, transpose
from ...cpu.simd import offset as at
from ..numba_activation import RELU, apply_activation


@inline
def write_rows(O, tiles, t0, mh, mw, spread_h, spread_w, phase, skip_h, skip_w, k0, count, Kb, TH, TW, OH, OW, bias, has_bias, act, slope,
               y, yn, yk, yh, yw):
    """The pixels of a block of tiles, O[row][tile, column][output], with bias and activation to y.

    A tile's rows are ``spread_h`` rows of y apart, the first of them row ``phase``; its columns are spread_w * mw columns of
    y side by side. y starts skip_h rows and skip_w columns after the first tile does.
    """
    V = lanes(O)
    leak = splat(O, slope)
    wide = mw * spread_w
    t = 0
    while t < tiles:
        # a run of tiles side by side in one image
        index = t0 + t
        column, rest = index % TW, index // TW
        band, image = rest % TH, rest // TH
        run = min(tiles - t, TW - column)
        w0 = column * wide - skip_w
        first, last = max(0, -w0), min(run * wide, OW - w0)
        for i in range(mh):
            h = (band * mh + i) * spread_h + phase - skip_h
            if h < 0 or h >= OH:
                continue
            source = at(O, (i * tiles + t) * wide * Kb)
            target = at(y, image * yn + k0 * yk + h * yh + w0 * yw)
            for k in range(0, count, V):
                outputs = min(V, count - k)
                shift = load_n(bias, k0 + k, outputs) if has_bias else splat(O, 0.0)
                if yk == 1:
                    for w in range(first, last):
                        v = apply_activation(load(source, w * Kb + k) + shift, act, leak)
                        store_n(target, w * yw + k, v, outputs)
                else:
                    for w in range(first, last, V):
                        n = min(V, last - w)
                        # in place first: an activation is a loop over pixels, the transposition is not
                        for q in range(w, w + n):
                            store(source, q * Kb + k, apply_activation(load(source, q * Kb + k) + shift, act, leak))
                        if n == V and outputs == V:
                            store_rows(target, k * yk + w, yk, transpose(load_rows(source, w * Kb + k, Kb)))
                        else:
                            store_rows_n(target, k * yk + w, yk, transpose(load_rows_n(source, w * Kb + k, Kb, n, V)), outputs, n)
        t += run


@inline
def write_maxima(O, tiles, t0, mh, mw, k0, count, Kb, TH, TW, OH, OW, bias, has_bias, act, slope, y, yn, yk, yh, yw):
    """As write_rows without a spread, the largest of each 2 x 2 pixels: y is OH x OW of them. mh and mw are even."""
    V = lanes(O)
    leak = splat(O, slope)
    half = mw // 2
    t = 0
    while t < tiles:
        # a run of tiles side by side in one image
        index = t0 + t
        column, rest = index % TW, index // TW
        band, image = rest % TH, rest // TH
        run = min(tiles - t, TW - column)
        last = min(run * half, OW - column * half)
        for i in range(0, mh, 2):
            h = (band * mh + i) // 2
            if h >= OH:
                continue
            upper, lower = at(O, (i * tiles + t) * mw * Kb), at(O, ((i + 1) * tiles + t) * mw * Kb)
            target = at(y, image * yn + k0 * yk + h * yh + column * half * yw)
            for k in range(0, count, V):
                outputs = min(V, count - k)
                shift = load_n(bias, k0 + k, outputs) if has_bias else splat(O, 0.0)
                for w in range(last):
                    p = 2 * w * Kb + k
                    a, b, c, d = load(upper, p), load(upper, p + Kb), load(lower, p), load(lower, p + Kb)
                    if act > RELU:  # rounding and a ReLU keep the order, so the largest sum has the largest answer
                        a, b = apply_activation(a + shift, act, leak), apply_activation(b + shift, act, leak)
                        c, d = apply_activation(c + shift, act, leak), apply_activation(d + shift, act, leak)
                        v = maximum(maximum(a, b), maximum(c, d))
                    else:
                        v = apply_activation(maximum(maximum(a, b), maximum(c, d)) + shift, act, leak)
                    if yk == 1:
                        store_n(target, w * yw + k, v, outputs)
                    else:
                        store(upper, w * Kb + k, v)
                if yk == 1:
                    continue
                for w in range(0, last, V):
                    n = min(V, last - w)
                    if n == V and outputs == V:
                        store_rows(target, k * yk + w, yk, transpose(load_rows(upper, w * Kb + k, Kb)))
                    else:
                        store_rows_n(target, k * yk + w, yk, transpose(load_rows_n(upper, w * Kb + k, Kb, n, V)), outputs, n)
        t += run


@inline
def write_no_maxima(O, tiles, t0, mh, mw, k0, count, Kb, TH, TW, OH, OW, bias, has_bias, act, slope, y, yn, yk, yh, yw):
    """For tiles of an odd number of rows, whose pixels are not pooled here."""
