"""Matrix products in Triton: tiles of the output, grouped so that neighbours share operands in the L2 cache.

``product`` reads operands of any strides through pointers, with a batch and a split of the reduction; ``product_by_tiles``
reads whole tiles with Hopper's copy engine (tensor descriptors), persistently: a program per multiprocessor walks over
tiles, so that the next tile's loads run under this one's last step. Sums are float32.
"""

import triton
import triton.language as tl

from ...gpu.math import activate, dot


@triton.jit
def tile_of(t, rows, columns, GROUP: tl.constexpr):
    """The t-th tile: down GROUP rows of tiles, then on to the next column."""
    per_group = GROUP * columns
    first = t // per_group * GROUP
    height = tl.minimum(rows - first, GROUP)
    t = t % per_group
    return first + t % height, t // height


@triton.jit
def finish(acc, bias, residual, scale_m, scale_n, rm, rn, M, N, srm, srn, alpha, beta, slope,
           ACT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_SCALES: tl.constexpr):
    """The last step of a tile: (the activation's input, its output), float32."""
    acc = acc * alpha
    if HAS_SCALES:
        acc = acc * tl.load(scale_m + rm, mask=rm < M, other=0.0)[:, None] * tl.load(scale_n + rn, mask=rn < N, other=0.0)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + rn, mask=rn < N, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        where = rm.to(tl.int64)[:, None] * srm + rn.to(tl.int64)[None, :] * srn
        acc += beta * tl.load(residual + where, mask=(rm < M)[:, None] & (rn < N)[None, :], other=0.0).to(tl.float32)
    return acc, activate(acc, ACT, slope)


@triton.jit
def product(a, b, c, z, bias, residual, scale_m, scale_n,  # (batch, M, K), (batch, K, N), (splits, batch, M, N)
            M, N, K, inner_batch, sa1, sa2, sam, sak, sb1, sb2, sbk, sbn, scs, scb, scm, scn, srm, srn, alpha, beta, slope,
            chunk, tiles,
            BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr,
            ACT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_SCALES: tl.constexpr, KEEP: tl.constexpr,
            PRECISION: tl.constexpr, PARTIAL: tl.constexpr):
    """One tile of one batch entry, over one chunk of the reduction; PARTIAL stores the bare sum in float32."""
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    t = tl.program_id(0)
    split, t = t // tiles, t % tiles
    item, t = t // (rows * columns), t % (rows * columns)
    im, i_n = tile_of(t, rows, columns, GROUP)
    outer, inner = (item // inner_batch).to(tl.int64), (item % inner_batch).to(tl.int64)
    rm = im * BM + tl.arange(0, BM)
    rn = i_n * BN + tl.arange(0, BN)
    start = split * chunk
    stop = tl.minimum(start + chunk, K)
    rk = start + tl.arange(0, BK)
    a_at = a + outer * sa1 + inner * sa2 + rm.to(tl.int64)[:, None] * sam + rk.to(tl.int64)[None, :] * sak
    b_at = b + outer * sb1 + inner * sb2 + rk.to(tl.int64)[:, None] * sbk + rn.to(tl.int64)[None, :] * sbn
    in_m, in_n = (rm < M)[:, None], (rn < N)[None, :]
    step = tl.full((), BK, tl.int64)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(start, stop, BK):
        if EVEN_K:
            x = tl.load(a_at, mask=in_m, other=0.0)
            y = tl.load(b_at, mask=in_n, other=0.0)
        else:
            left = tl.arange(0, BK) < stop - k
            x = tl.load(a_at, mask=in_m & left[None, :], other=0.0)
            y = tl.load(b_at, mask=left[:, None] & in_n, other=0.0)
        acc = dot(x, y, acc, PRECISION)
        a_at += step * sak
        b_at += step * sbk
    where = rm.to(tl.int64)[:, None] * scm + rn.to(tl.int64)[None, :] * scn + item.to(tl.int64) * scb
    inside = in_m & in_n
    if PARTIAL:
        tl.store(c + split.to(tl.int64) * scs + where, acc, mask=inside)
    else:
        before, after = finish(acc, bias, residual, scale_m, scale_n, rm, rn, M, N, srm, srn, alpha, beta, slope,
                               ACT, HAS_BIAS, HAS_RESIDUAL, HAS_SCALES)
        if KEEP:
            tl.store(z + where, before.to(z.dtype.element_ty), mask=inside)
        tl.store(c + where, after.to(c.dtype.element_ty), mask=inside)


@triton.jit
def add_splits(parts, c, z, bias, residual, scale_m, scale_n, rows, M, N, scs, scm, srm, srn, alpha, beta, slope,  # (splits, rows, N)
               SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
               ACT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_SCALES: tl.constexpr, KEEP: tl.constexpr):
    """The partial sums of ``product`` added, always in the same order, and finished; rows = batch * M."""
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = (rm < rows)[:, None] & (rn < N)[None, :]
    where = rm.to(tl.int64)[:, None] * scm + rn[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for split in range(SPLITS):
        acc += tl.load(parts + tl.full((), split, tl.int64) * scs + where, mask=inside, other=0.0)
    before, after = finish(acc, bias, residual, scale_m, scale_n, rm, rn, M, N, srm, srn, alpha, beta, slope,
                           ACT, HAS_BIAS, HAS_RESIDUAL, HAS_SCALES)
    if KEEP:
        tl.store(z + where, before.to(z.dtype.element_ty), mask=inside)
    tl.store(c + where, after.to(c.dtype.element_ty), mask=inside)


@triton.jit
def product_by_tiles(a, b, c, z, bias, residual, scale_m, scale_n, M, N, K, srm, srn, alpha, beta, slope, programs,
                     BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, A_BY_COLUMNS: tl.constexpr,
                     B_BY_ROWS: tl.constexpr, HALVES: tl.constexpr, ACT: tl.constexpr, HAS_BIAS: tl.constexpr,
                     HAS_RESIDUAL: tl.constexpr, HAS_SCALES: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr):
    """The same by tensor descriptors: a (M, K) or its transpose's memory, b (K, N) or its transpose's, c and z (M, N)."""
    rows, columns, steps = tl.cdiv(M, BM), tl.cdiv(N, BN), tl.cdiv(K, BK)
    for t in tl.range(tl.program_id(0), rows * columns, programs, flatten=True):
        im, i_n = tile_of(t, rows, columns, GROUP)
        m, n = im * BM, i_n * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(steps):
            if A_BY_COLUMNS:
                x = a.load([k * BK, m]).T
            else:
                x = a.load([m, k * BK])
            if B_BY_ROWS:
                y = b.load([k * BK, n])
            else:
                y = b.load([n, k * BK]).T
            acc = dot(x, y, acc, PRECISION)
        rm = m + tl.arange(0, BM)
        if HALVES:  # half the shared memory for what is stored, and its store overlaps the other half's last step
            acc = tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1))
            left, right = tl.split(acc)
            for half in tl.static_range(2):
                rn = n + half * (BN // 2) + tl.arange(0, BN // 2)
                before, after = finish(left if half == 0 else right, bias, residual, scale_m, scale_n, rm, rn, M, N, srm, srn, alpha, beta,
                                       slope, ACT, HAS_BIAS, HAS_RESIDUAL, HAS_SCALES)
                if KEEP:
                    z.store([m, n + half * (BN // 2)], before.to(z.dtype))
                c.store([m, n + half * (BN // 2)], after.to(c.dtype))
        else:
            rn = n + tl.arange(0, BN)
            before, after = finish(acc, bias, residual, scale_m, scale_n, rm, rn, M, N, srm, srn, alpha, beta, slope,
                                   ACT, HAS_BIAS, HAS_RESIDUAL, HAS_SCALES)
            if KEEP:
                z.store([m, n], before.to(z.dtype))
            c.store([m, n], after.to(c.dtype))
