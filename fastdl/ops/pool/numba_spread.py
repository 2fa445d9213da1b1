"""The way back of a mean where memory holds rows (N, C, D, H, W): every cell's gradient to each element of its window.

As forward: first what the rows of cells above a row of dx pass on, weighted and added up, in scratch memory. Then along it
evenly (strides 1 and 2: a vector of elements adds up the cells above it) or by cells (each cell's value to its elements).
"""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import fma, lanes, load, offset, pointer, read, splat, store, write
from .numba_lanes import interleave, load_up_to, store_up_to
from .numba_row_parts import fill, next_position, position, visible
from .numba_rows import SHARE
from .numba_windows import BEFORE, CELL, COUNT, FIRST, OUT, SEEN, SIZE, STRIDE, WINDOW


@inline
def _weighted(g, nd, cells, starts, H, W, rows, wd, weights_h, ww, low, high, length, target, pitch):
    """Rows of the target, one for each row of dx: what the cells above it pass on, weighted; zeros around.

    g: the cell at ``low`` of row 0. starts, cells: SEEN and CELL of the rows.
    """
    V = lanes(g)
    n = high - low
    for j in range(rows):
        row = offset(target, j * pitch)
        first = read(starts, j)
        nh = read(starts, j + 1) - first
        fill(row, 0, low, 0.0)
        row = offset(row, low)
        oh = read(cells, first) if nh > 0 else 0
        top, wh = offset(g, oh * W), offset(weights_h, oh)
        i = 0
        while i < n:
            if n >= V:
                i = min(i, n - V)
            a = splat(g, 0.0)
            for d in range(nd):
                for h in range(nh):
                    a = fma(load_up_to(top, (d * H + h) * W + i, n), splat(a, read(wd, d) * read(wh, h)), a)
            store(row, i, a * load(ww, i))
            i += V
        fill(row, n, length - low, 0.0)


@inline
def _sum_back(p, i, n):
    """p[i] + p[i - 1] + ... + p[i + 1 - n]."""
    a = splat(p, 0.0)
    for k in range(i, i - n, -1):
        a = a + load(p, k)
    return a


@inline
def _back_along(source, pitch, rows, n, window, stride, parity, dx, dx_pitch, room):
    """n elements of each of some rows: what the cells above element 0, source[0], and before it pass on.

    parity: where the stride is 2, that of the offset of element 0 in the window of the cell above it. An element gets the
    sum of those cells in whose windows it lies at an offset of its parity.
    """
    V = lanes(source)
    for j in range(rows):
        row, target, left = offset(source, j * pitch), offset(dx, j * dx_pitch), room - j * dx_pitch
        if stride == 1:
            for i in range(0, n, V):
                store_up_to(target, i, _sum_back(row, i, window), left - i)
            continue
        for i in range(0, n, 2 * V):
            a, b = _sum_back(row, i // 2 + parity, (window + 1) // 2), _sum_back(row, i // 2, window // 2)
            if parity == 1:
                a, b = b, a
            a, b = interleave(a, b)
            store_up_to(target, i, a, left - i)
            store_up_to(target, i + V, b, left - i - V)


@inline
def _spread_cells(source, pitch, rows, first, count, cells, dx, W, room):
    """Every cell's value to each element of its window, in order: written, or added to what an earlier cell wrote."""
    V = lanes(dx)
    for j in range(rows):
        row, target, left = offset(source, j * pitch), offset(dx, j * W), room - j * W
        done = 0
        for o in range(cells):
            value = read(row, o)
            v = splat(dx, value)
            i, end = read(first, o), read(first, o) + read(count, o)
            for gap in range(done, i, V):
                store_up_to(target, gap, splat(dx, 0.0), left - gap)
            again = min(done, end)
            while i + V <= again:
                store(target, i, load(target, i) + v)
                i += V
            while i < again:
                write(target, i, read(target, i) + value)
                i += 1
            while i < end:
                store_up_to(target, i, v, left - i)
                i += V
            done = max(done, end)
        for gap in range(done, W, V):
            store_up_to(target, gap, splat(dx, 0.0), left - gap)


@inline
def _evenly(slot, index, share, total, g, plan, segment, block, pitch, weights, dx, scratch):
    OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
    D, H, W = read(plan, SIZE), read(plan, SIZE + 1), read(plan, SIZE + 2)
    window, stride, before = read(plan, WINDOW + 2), read(plan, STRIDE + 2), read(plan, BEFORE + 2)
    seen_d, seen_h = offset(plan, read(plan, SEEN)), offset(plan, read(plan, SEEN + 1))
    cell_d, cell_h = offset(plan, read(plan, CELL)), offset(plan, read(plan, CELL + 1))
    taps = (window + stride - 1) // stride  # cells that look at one element, at most
    buffer = offset(scratch, slot * (block * pitch))
    r, end = index * share, min(total, (index + 1) * share)
    h, d, plane = position(r, H, D)
    while r < end:
        rows = min(min(H - h, end - r), block)
        nd = read(seen_d, d + 1) - read(seen_d, d)
        od = read(cell_d, read(seen_d, d)) if nd > 0 else 0
        top = offset(g, (plane * OD + od) * (OH * OW))
        w = 0
        while w < W:
            n = min(segment, W - w)
            begin = (w + before) // stride - (taps - 1)
            length = (w + n - 1 + before) // stride + 2 - begin
            low, high = visible(begin, length, OW)
            _weighted(offset(top, begin + low), nd, cell_h, offset(seen_h, h), OH, OW, rows, offset(weights, od), offset(weights, OD),
                      offset(weights, OD + OH + begin + low), low, high, length, buffer, pitch)
            _back_along(offset(buffer, taps - 1), pitch, rows, n, window, stride, (w + before) % stride, offset(dx, r * W + w), W,
                        (end - r) * W - w)
            w += segment
        h, d, plane = next_position(h, d, plane, rows, H, D)
        r += rows


@inline
def _by_cells(slot, index, share, total, g, plan, segment, block, pitch, weights, dx, scratch):
    OD, OH, OW = read(plan, OUT), read(plan, OUT + 1), read(plan, OUT + 2)
    D, H, W = read(plan, SIZE), read(plan, SIZE + 1), read(plan, SIZE + 2)
    seen_d, seen_h = offset(plan, read(plan, SEEN)), offset(plan, read(plan, SEEN + 1))
    cell_d, cell_h = offset(plan, read(plan, CELL)), offset(plan, read(plan, CELL + 1))
    first_w, count_w = offset(plan, read(plan, FIRST + 2)), offset(plan, read(plan, COUNT + 2))
    buffer = offset(scratch, slot * (block * pitch))
    low, high = visible(OD * 0, OW, OW)
    r, end = index * share, min(total, (index + 1) * share)
    h, d, plane = position(r, H, D)
    while r < end:
        rows = min(min(H - h, end - r), block)
        nd = read(seen_d, d + 1) - read(seen_d, d)
        od = read(cell_d, read(seen_d, d)) if nd > 0 else 0
        _weighted(offset(g, (plane * OD + od) * (OH * OW)), nd, cell_h, offset(seen_h, h), OH, OW, rows, offset(weights, od),
                  offset(weights, OD), offset(weights, OD + OH), low, high, OW, buffer, pitch)
        _spread_cells(buffer, pitch, rows, first_w, count_w, OW, offset(dx, r * W), W, (end - r) * W)
        h, d, plane = next_position(h, d, plane, rows, H, D)
        r += rows


@inline
def _arguments(g, plan, segment, block, pitch, weights, scratch, dx):
    """How many shares there are, and the arguments of each."""
    rows = dx.shape[0] * dx.shape[1] * dx.shape[2] * dx.shape[3]
    share = max(1, SHARE // max(1, dx.shape[4]))
    return (rows + share - 1) // share, (
        share, rows, pointer(g), pointer(plan), segment, block, pitch, pointer(weights), pointer(dx), pointer(scratch))


# dx[element] = the sum over the windows that hold it of g[cell] * weights[od] * weights[D + oh] * weights[D + H + ow].
#
# g, dx: (N, C, D, H, W) without gaps. plan (with the tables of the way back; its dilation is 1), segment, block, pitch,
# weights: of a Plan. scratch: block * pitch elements for each thread.
@kernel("i R5 L1 i i i R1 W1 W5")
def spread_evenly(pool, g, plan, segment, block, pitch, weights, scratch, dx):
    shares, arguments = _arguments(g, plan, segment, block, pitch, weights, scratch, dx)
    parallel_for(pool, _evenly, shares, arguments)


@kernel("i R5 L1 i i i R1 W1 W5")
def spread_by_cells(pool, g, plan, segment, block, pitch, weights, scratch, dx):
    shares, arguments = _arguments(g, plan, segment, block, pitch, weights, scratch, dx)
    parallel_for(pool, _by_cells, shares, arguments)
