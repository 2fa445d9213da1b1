"""Convolution of few channels by Winograd's algorithm along the lines of a planar image: F(4, r) in each row of the kernel.

A tile is FOUR outputs side by side; vectors run along tiles, from one line of the image to the next without a gap. A band of lines is
transformed once, to one plane for each interpolation point, and all outputs are made from it: the sums over the kernel's rows and channels
stay in registers, point by point, and so do the outputs that they are combined to. So a 5 x 5 kernel takes 10 multiply-adds an output and
a 3 x 3 kernel 4.5, where the direct sum takes 25 and 9. Transforms in both directions would multiply less still, and pay only where many
channels share the outputs' transform. The matrices: winograd.py.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...cpu import features
from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import _fma, _Loop, finish_tile
from ...cpu.simd import lanes, load, load_n, maximum, offset, pointer, splat, store, store_n, vector_of
from ...cpu.simd_core import INTP, _splat_value, _vector_pointer, llvm_type
from ..numba_activation import RELU, apply_activation
from ..pool.numba_lanes import deinterleave
from .numba_planes import _strides, copy_row, make_plane
from .winograd import matrices

FOUR = 4  # outputs of a tile
SIZES = (3, 5)  # widths of kernels
# vectors of tiles that are summed together, and what is left of a band is a multiple of a few less: their outputs and the sums at two
# points fill the registers, and the fewer they are the more often weights are loaded
WIDE = 4 if features.registers() >= 32 else 2
NARROW = WIDE - 1


def _sum_of(builder, vector, vt, terms):
    """The sum of (coefficient, value) in order, a coefficient of 1 or -1 without a product."""
    total = None
    for coefficient, value in terms:
        if total is None:
            total = value if coefficient == 1 else builder.fmul(value, _constant(vt, coefficient))
        elif coefficient == 1:
            total = builder.fadd(total, value)
        else:
            total = _fma(builder, vector, value, _constant(vt, coefficient), total)
    return total


def _constant(vt, value):
    return ir.Constant(vt, [float(value)] * vt.count)


@functools.cache
def _input_transform(r):
    """``transform(p, phase, i, out, o, point)``: B^T d for a vector of tiles; number k of d is at p[k % 4 * phase + k // 4 + i ...],
    and that of point j goes to out[j * point + o ...]."""
    b_t = matrices(FOUR, r)[2]

    @intrinsic
    def transform(typingctx, p, phase, i, out, o, point):
        vector = vector_of(p.dtype)

        def codegen(context, builder, signature, args):
            p_, phase_, i_, out_, o_, point_ = args
            vt = llvm_type(context, vector)
            values = []
            for k in range(b_t.shape[1]):
                place = builder.add(i_, builder.add(builder.mul(phase_, INTP(k % FOUR)), INTP(k // FOUR)))
                values.append(builder.load(_vector_pointer(builder, p_, place, vt), align=1))
            for j, row in enumerate(b_t):
                total = _sum_of(builder, vector, vt, [(c, v) for c, v in zip(row, values, strict=True) if c != 0])
                builder.store(total, _vector_pointer(builder, out_, builder.add(o_, builder.mul(point_, INTP(j))), vt), align=1)

        return types.void(p, types.intp, types.intp, out, types.intp, types.intp), codegen

    return transform


def _interleaved(builder, four, lanes_):
    """FOUR vectors a, b, c, d as a0 b0 c0 d0 a1 ..., in as many vectors."""
    index = ir.VectorType(ir.IntType(32), lanes_)

    def zipped(a, b):
        halves = []
        for half in range(2):
            first = half * lanes_ // 2
            halves.append(builder.shuffle_vector(a, b, ir.Constant(index, [first + i // 2 + (i % 2) * lanes_ for i in range(lanes_)])))
        return halves

    even, odd = zipped(four[0], four[2]), zipped(four[1], four[3])
    return [v for e, o in zip(even, odd, strict=True) for v in zipped(e, o)]


@functools.cache
def _tile(r, vectors):
    """``tile(count, u, v)``: FOUR outputs of each of ``vectors`` vectors of tiles, in the order of an image's line.

    The sum at point j is that over t of u[t * n + j] * v[t * n + j], where v's elements are ``vectors`` vectors each.
    """
    a_t = matrices(FOUR, r)[0]
    n = a_t.shape[1]
    # 0 and infinity, which meet one output each; and pairs +-p, whose even and odd parts do
    pairs = [(0, n - 1), *((j, j + 1) for j in range(1, n - 1, 2))]

    @intrinsic
    def tile(typingctx, count, u, v):
        vector = vector_of(v.dtype)

        def codegen(context, builder, signature, args):
            count_, u_, v_ = args
            vt = llvm_type(context, vector)
            y = [[None] * vectors for _ in range(FOUR)]

            def add(i, j, coefficient, value):
                y[i][j] = _sum_of(builder, vector, vt, ([] if y[i][j] is None else [(1, y[i][j])]) + [(coefficient, value)])

            for pair in pairs:
                loop = _Loop(builder, INTP(0), count_, r, [*[ir.Constant(vt, None)] * (2 * vectors), u_, v_])
                sums, weights, values = loop.values[: 2 * vectors], loop.values[-2], loop.values[-1]
                for row in range(r):
                    sums, before = [], sums
                    for i, j in enumerate(pair):
                        at = row * n + j
                        repeated = _splat_value(builder, vt, builder.load(builder.gep(weights, [INTP(at)]), align=1))
                        for k in range(vectors):
                            place = _vector_pointer(builder, values, INTP((at * vectors + k) * vector.lanes), vt)
                            sums.append(_fma(builder, vector, repeated, builder.load(place, align=1), before[i * vectors + k]))
                following = builder.gep(weights, [INTP(r * n)]), builder.gep(values, [INTP(r * n * vectors * vector.lanes)])
                _, (*sums, _, _) = loop.close([*sums, *following])
                for k in range(vectors):
                    first, second = sums[k], sums[vectors + k]
                    if pair[0] == 0:
                        add(0, k, 1, first)
                        add(FOUR - 1, k, 1, second)
                        continue
                    even, odd = builder.fadd(first, second), builder.fsub(first, second)
                    for i in range(FOUR):
                        add(i, k, a_t[i, pair[0]], odd if i % 2 else even)
            out = [v for k in range(vectors) for v in _interleaved(builder, [y[i][k] for i in range(FOUR)], vector.lanes)]
            return cgutils.pack_array(builder, out)

        return types.UniTuple(vector, FOUR * vectors)(types.intp, u, v), codegen

    return tile


@inline
def _spread(block, first, n, T, TW, target, yh):
    """Positions first.. of a band whose lines are FOUR * T wide in ``block``, to lines of TW positions."""
    wide = FOUR * T
    done = 0
    while done < n:
        row, column = (first + done) // wide, (first + done) % wide
        count = min(n - done, wide - column)
        copy_row(offset(block, done), 1, offset(target, row * yh + column), 0, min(count, TW - column))
        done += count


@inline
def _maxima(source, K, rows, TW, y, yk, yh):
    """The largest of each 2 x 2 of K planes of ``rows`` lines, TW apart."""
    V = lanes(source)
    for k in range(K):
        for h in range(rows // 2):
            upper, target = offset(source, (k * rows + 2 * h) * TW), offset(y, k * yk + h * yh)
            for j in range(0, TW // 2, V):
                n = TW - 2 * j
                a = maximum(load_n(upper, 2 * j, n), load_n(upper, TW + 2 * j, n))
                b = maximum(load_n(upper, 2 * j + V, n - V), load_n(upper, TW + 2 * j + V, n - V))
                even, odd = deinterleave(a, b)
                store_n(target, j, maximum(even, odd), n // 2)


def _outputs(r, vectors):
    """``run``: ``vectors`` vectors of tiles of a band, of which n positions count, for all channels of y."""
    tile, finish, points = _tile(r, vectors), finish_tile(1, FOUR * vectors), FOUR + r - 1

    @inline
    def run(C, u, v, point, channel, values, first, n, T, TW, K, bias, act, slope, y, yk, yh, block):
        V = lanes(v)
        n = min(n, vectors * FOUR * V)
        floor = 0.0 if act == RELU else -np.inf
        at = 0
        for c in range(C):  # side by side and on whole cache lines, for all outputs
            for i in range(r):
                for j in range(points):
                    source = offset(v, j * point + c * channel + i * T + first)
                    for k in range(vectors):
                        store(values, at, load(source, k * V))
                        at += V
        for k in range(K):
            sums = tile(C * r, offset(u, k * C * r * points), values)
            target = offset(y, k * yk)
            there = offset(target, FOUR * first) if TW == FOUR * T else block
            finish(sums, there, 0, 1, n, offset(bias, k), 0, floor)
            if act > RELU:
                leak = splat(v, slope)
                for i in range(0, n, V):
                    store_n(there, i, apply_activation(load_n(there, i, n - i), act, leak), n - i)
            if TW != FOUR * T:
                _spread(block, FOUR * first, n, T, TW, target, yh)

    return run


def make(r):
    """The entry point for kernels r wide."""
    transform = _input_transform(r)
    wide, narrow = _outputs(r, WIDE), _outputs(r, NARROW)

    @inline
    def band_chunk(slot, chunk, bands, band, C, K, x, sn, sc, sh, sw, H, W, ph, pw, T, u, bias, act, slope,
                   pooled, y, yn, yk, yh, TH, TW, scratch, scratch_size, phase, point):
        V = lanes(x)
        h0, image = chunk % bands * band, chunk // bands
        rows = min(band, TH - h0)
        lines, channel = rows + r - 1, (band + r - 1) * T
        block = offset(scratch, slot * scratch_size)
        values = offset(block, WIDE * FOUR * V)
        phases = offset(values, C * r * (FOUR + r - 1) * WIDE * V)
        planes = offset(phases, FOUR * phase + 2 * V)
        for c in range(C):
            make_plane(offset(x, image * sn + c * sc), 0, sh, sw, 1, H, W, 0, ph - h0, pw, 1, 1, FOUR, 1, lines, T + 1, phases)
            for h in range(lines):
                for j in range(0, T, V):  # what reaches over a line's end is written again with the next line
                    transform(phases, lines * (T + 1), h * (T + 1) + j, planes, c * channel + h * T + j, point)
        vectors = (rows * T + V - 1) // V
        groups = (vectors + WIDE - 1) // WIDE
        fewer = min(groups, WIDE * groups - vectors)
        target, target_k, target_h = offset(y, image * yn + h0 * yh), yk, yh
        if pooled:
            target, target_k, target_h = offset(planes, (FOUR + r - 1) * point), rows * TW, TW
        first = 0
        for g in range(groups):
            n = FOUR * (rows * T - first)
            if g < groups - fewer:
                wide(C, u, planes, point, channel, values, first, n, T, TW, K, bias, act, slope, target, target_k, target_h, block)
                first += WIDE * V
            else:
                narrow(C, u, planes, point, channel, values, first, n, T, TW, K, bias, act, slope, target, target_k, target_h, block)
                first += NARROW * V
        if pooled:
            _maxima(target, K, rows, TW, offset(y, image * yn + h0 // 2 * yh), yk, yh)

    def convolve_lines(pool, band, x, ph, pw, T, u, bias, act, slope, pooled, y, scratch, scratch_size, phase, point):
        """y = act(bias + x convolved), planar, at stride 1, or where pooled the largest of each 2 x 2 of that.

        x (N, C, 1, H, W) may have any strides. u: [output][channel, kernel row][point] (numba_lines_plan.py). T: tiles of a line. ph, pw:
        the padding before. band: lines of y in a chunk. scratch: scratch_size elements a thread, see numba_lines_plan.py: a block of
        outputs, the values that meet them, FOUR phases of ``phase`` elements at least, a plane of ``point`` for each point, and where
        pooled a band of all outputs.
        """
        N, C, _, H, W = x.shape
        _, K, _, TH, TW = y.shape
        TH, TW = (2 * TH, 2 * TW) if pooled else (TH, TW)
        sn, sc, _, sh, sw = _strides(x)
        yn, yk, _, yh, _ = _strides(y)
        bands = (TH + band - 1) // band
        parallel_for(
            pool, band_chunk, N * bands,
            (bands, band, C, K, pointer(x), sn, sc, sh, sw, H, W, ph, pw, T, pointer(u),
             pointer(bias), act, slope, pooled, pointer(y), yn, yk, yh, TH, TW, pointer(scratch), scratch_size, phase, point),
        )

    convolve_lines.__qualname__ = f"convolve_lines_{r}"
    return kernel("i i R5 i i i R1 R1 i T b W5 W1 i i i", dtypes="f")(convolve_lines)


KERNELS = {r: make(r) for r in SIZES}
