"""Direct convolution over planes (see numba_planes.py): forward, data gradient and weight gradient.

``correlate`` is a matrix product whose right operand is never formed: row t of it, for a kernel cell and channel t, is the
plane itself from offset[t] on. A tile broadcasts a weight and multiplies it with consecutive output positions. The
data gradient, and so a transposed convolution, is the same over the planes of dy, once for each phase of the stride.
``weight_gradient`` takes dot products of dy's planes with the input's, along output positions.
"""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.dot_tiles import dot_tile, store_scalars
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import TILE_ROWS, TILE_VECTORS, outer_tile, store_tile
from ...cpu.simd import lanes, load, load_n, offset, pointer, read, splat, store, store_n, write
from ..numba_activation import apply_activation
from .numba_planes import _strides

MR = TILE_ROWS
DEPTH = 512  # kernel cells x channels in one pass: a tile's weights for them stay in L1
WIDE = 8  # vectors of output positions in the widest tile; planes have as much room after their last cell


def _rows(rows, vectors):
    tile, put = outer_tile(rows, vectors, indirect=True), store_tile(rows, vectors)

    @inline
    def run(k, a, a_row, b, offsets, c, pitch, n, add):
        V = lanes(b)
        for j in range(0, n, vectors * V):
            put(tile(k, a, a_row, 1, offset(b, j), offsets, 0), offset(c, j), pitch, rows, vectors * V, add)

    return run


_many, _four, _two, _one = _rows(MR, TILE_VECTORS), _rows(4, TILE_VECTORS), _rows(2, 4), _rows(1, WIDE)


@inline
def _write_out(c, pitch, rows, bias, first, has_bias, act, slope, q0, q1, Hs, Ws, TD, TH, TW, y, yk, yd, yh, yw):
    """Bias and activation on a block of sums, and its real output positions to y."""
    V = lanes(c)
    leak = splat(c, slope)
    for k in range(rows):
        shift = splat(c, read(bias, first + k) if has_bias else 0.0)
        source = offset(c, k * pitch)
        for r in range(q0 // Ws, (q1 - 1) // Ws + 1):
            d, h = r // Hs, r % Hs
            start, end = max(q0, r * Ws), min(q1, r * Ws + TW)
            if h >= TH or d >= TD or start >= end:
                continue
            target = offset(y, k * yk + d * yd + h * yh + (start - r * Ws) * yw)
            i, n = 0, end - start
            if yw == 1:
                while i + V <= n:
                    store(target, i, apply_activation(load(source, start - q0 + i) + shift, act, leak))
                    i += V
                if i < n:
                    store_n(target, i, apply_activation(load_n(source, start - q0 + i, n - i) + shift, act, leak), n - i)
            else:
                while i < n:
                    m = min(V, n - i)
                    at = start - q0 + i
                    store_n(source, at, apply_activation(load_n(source, at, m) + shift, act, leak), m)
                    for e in range(m):
                        write(target, (i + e) * yw, read(source, at + e))
                    i += V


@inline
def _correlate_chunk(
    slot,
    chunk,
    groups,
    k_blocks,
    q_blocks,
    K,
    KB,
    T,
    w,
    offsets,
    planes,
    image_size,
    group_size,
    Q,
    QB,
    bias,
    has_bias,
    act,
    slope,
    Hs,
    Ws,
    TD,
    TH,
    TW,
    y,
    yn,
    yk,
    yd,
    yh,
    yw,
    scratch,
):
    V = lanes(w)
    kb = chunk % k_blocks
    rest = chunk // k_blocks
    qb = rest % q_blocks
    rest = rest // q_blocks
    g, image = rest % groups, rest // groups
    k0, q0 = kb * KB, qb * QB
    rows, count = min(KB, K - k0), min(QB, Q - q0)
    c = offset(scratch, slot * (KB * QB))
    first = g * K + k0
    weights = offset(w, first * T)
    b = offset(planes, image * image_size + g * group_size + q0)
    for t in range(0, T, DEPTH):
        depth = min(DEPTH, T - t)
        here = offset(offsets, t)
        i = 0
        while i + MR <= rows:
            _many(depth, offset(weights, i * T + t), T, b, here, offset(c, i * QB), QB, count, t > 0)
            i += MR
        while i + 4 <= rows:
            _four(depth, offset(weights, i * T + t), T, b, here, offset(c, i * QB), QB, count, t > 0)
            i += 4
        while i + 2 <= rows:
            _two(depth, offset(weights, i * T + t), T, b, here, offset(c, i * QB), QB, count, t > 0)
            i += 2
        if i < rows:
            _one(depth, offset(weights, i * T + t), T, b, here, offset(c, i * QB), QB, count, t > 0)
    if T == 0:
        for i in range(rows):
            for j in range(0, QB, V):
                store(c, i * QB + j, splat(c, 0.0))
    _write_out(
        c,
        QB,
        rows,
        bias,
        first,
        has_bias,
        act,
        slope,
        q0,
        q0 + count,
        Hs,
        Ws,
        TD,
        TH,
        TW,
        offset(y, image * yn + first * yk),
        yk,
        yd,
        yh,
        yw,
    )


@kernel("i i R2 L1 R1 i i i i i R1 i T W5 W1")
def correlate(pool, groups, w, offsets, planes, image_size, group_size, Hs, Ws, KB, bias, act, slope, y, scratch):
    """y[n, k, position] = act(bias[k] + sum over t of w[k, t] * planes[n, group of k][offsets[t] + q(position)]).

    w: (K, T). offsets: (T,) places within a group's planes. y: (N, K, TD, TH, TW), any strides. scratch: slots * KB * QB.
    QB, the positions in a block, is a whole number of the widest tile.
    """
    N, K, TD, TH, TW = y.shape
    T = w.shape[1]
    yn, yk, yd, yh, yw = _strides(y)
    Kg = K // groups
    QB = 16 * WIDE * lanes(pointer(y)) // 4
    Q = ((TD - 1) * Hs + TH - 1) * Ws + TW
    k_blocks, q_blocks = (Kg + KB - 1) // KB, (Q + QB - 1) // QB
    parallel_for(
        pool,
        _correlate_chunk,
        N * groups * k_blocks * q_blocks,
        (
            groups,
            k_blocks,
            q_blocks,
            Kg,
            KB,
            T,
            pointer(w),
            pointer(offsets),
            pointer(planes),
            image_size,
            group_size,
            Q,
            QB,
            pointer(bias),
            bias.shape[0] > 0,
            act,
            slope,
            Hs,
            Ws,
            TD,
            TH,
            TW,
            pointer(y),
            yn,
            yk,
            yd,
            yh,
            yw,
            pointer(scratch),
        ),
    )


# ------------------------------------------------------------------------------------------------ weight gradient
_dot_43, _dot_41 = dot_tile(4, 3, indirect=True), dot_tile(4, 1, indirect=True)
_dot_14, _dot_11 = dot_tile(1, 4, indirect=True), dot_tile(1, 1, indirect=True)
T_BLOCK = 48
SPAN = 1024  # output positions in one pass: four rows of dy and three of the input stay in L1


@inline
def _gradient_chunk(slot, chunk, N, Kg, T, t_blocks, dy, dy_image, Q, planes, image_size, group_size, offsets, dw, add):
    t0 = chunk % t_blocks * T_BLOCK
    k0 = chunk // t_blocks * 4
    # groups have whole blocks of rows of their own: k0 counts blocks of 4 within each group
    blocks = (Kg + 3) // 4
    g = k0 // 4 // blocks
    k0 = g * Kg + k0 // 4 % blocks * 4
    rows = min(4, (g + 1) * Kg - k0)
    t1 = min(T, t0 + T_BLOCK)
    for image in range(N):
        for q in range(0, Q, SPAN):
            n = min(SPAN, Q - q)
            accumulate = add or image > 0 or q > 0
            a = offset(dy, image * dy_image + k0 * Q + q)
            b = offset(planes, image * image_size + g * group_size + q)
            t = t0
            if rows == 4:
                while t + 3 <= t1:
                    store_scalars(_dot_43(n, a, Q, b, offset(offsets, t)), offset(dw, k0 * T + t), T, 1, 3, accumulate)
                    t += 3
                while t < t1:
                    store_scalars(_dot_41(n, a, Q, b, offset(offsets, t)), offset(dw, k0 * T + t), T, 1, 1, accumulate)
                    t += 1
            else:
                while t + 4 <= t1:
                    for r in range(rows):
                        store_scalars(
                            _dot_14(n, offset(a, r * Q), 0, b, offset(offsets, t)), offset(dw, (k0 + r) * T + t), T, 1, 4, accumulate
                        )
                    t += 4
                while t < t1:
                    for r in range(rows):
                        store_scalars(
                            _dot_11(n, offset(a, r * Q), 0, b, offset(offsets, t)), offset(dw, (k0 + r) * T + t), T, 1, 1, accumulate
                        )
                    t += 1


@kernel("i i i i i R1 R1 i i L1 W2 b")
def weight_gradient(pool, groups, N, K, Q, dy, planes, image_size, group_size, offsets, dw, add):
    """dw[k, t] = sum over n and q of dy[n, k, q] * planes[n, group of k][offsets[t] + q]; added to dw if add.

    dy: (N, K, Q) flat, zero where q stands for no output position. Images are summed in order: the same bits for any
    number of threads.
    """
    T = dw.shape[1]
    Kg = K // groups
    t_blocks = (T + T_BLOCK - 1) // T_BLOCK
    parallel_for(
        pool,
        _gradient_chunk,
        groups * ((Kg + 3) // 4) * t_blocks,
        (N, Kg, T, t_blocks, pointer(dy), K * Q, Q, pointer(planes), image_size, group_size, pointer(offsets), pointer(dw), add),
    )
