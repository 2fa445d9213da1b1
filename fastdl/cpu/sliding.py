"""Windows slid over the rows of an image, as parameterised intrinsics: the register tiles of depthwise convolution.

The sums of a few rows of output are open at a time. A row of the image is read once from beginning to end of the loop, each of
its values goes to all the sums that its window's cells belong to, and the sum that is then complete is written: so memory is
read and written in order, and the weights stay in registers.
"""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import features
from .microkernel import _fma, _Loop
from .simd_core import INTP, _first_lanes, _splat_value, _vector_pointer, llvm_type, masked_load, masked_store, store_first, vector_of

# vectors of positions beside each other: the sums of a window of three rows and its weights fill the registers
MOST_VECTORS = 4 if features.registers() >= 32 else 2


def _inside(builder, lanes, place, width):
    """The mask of the lanes l for which place + l is within 0..width."""
    wide, half = ir.VectorType(ir.IntType(32), lanes), ir.IntType(32)
    at = builder.add(_splat_value(builder, wide, builder.trunc(place, half)), ir.Constant(wide, list(range(lanes))))
    return builder.icmp_unsigned("<", at, _splat_value(builder, wide, builder.trunc(width, half)))


@functools.cache
def slide_rows(size: int, stride: int, vectors: int, halves: bool = False):
    """``slide(x, xh, H, W, row, column, last, inner, count, w, bias, floor, y, yh, n, others)``: ``count`` rows of ``vectors`` vectors
    of a window's sums, y = max(bias + sums, floor), a NaN staying.

    x: a plane of H rows, xh apart, of W columns. row, column: of the window's first cell at the first position; positions are
    ``stride`` apart both ways, cells outside the plane count as zero and are not touched. w: the window's weights, flat. The vectors
    begin at positions 0, lanes, 2 lanes, ... but ``last``, and those between the first and the last at ``inner`` at most: they must lie
    within the plane with all that they meet. y: rows yh apart. One vector alone writes its first n positions.

    Where ``halves``, each half of the vector is a plane of its own; others: x, w, bias and y of the second.
    """
    open_rows = (size - 1) // stride + 1  # rows of sums that a row of the image has a part in

    @intrinsic
    def slide(typingctx, x, xh, H, W, row, column, last, inner, count, w, bias, floor, y, yh, n, others):
        vector = vector_of(x.dtype)

        def codegen(context, builder, signature, args):
            x_, xh_, H_, W_, row_, column_, last_, inner_, count_, w_, bias_, floor_, y_, yh_, n_, others_ = args
            vt, V = llvm_type(context, vector), vector.lanes
            wide = ir.VectorType(ir.IntType(32), V)
            lanes = V // 2 if halves else V  # of one load
            part = type(vector)(vector.scalar, lanes)
            pt = llvm_type(context, part)
            second = [builder.extract_value(others_, i) for i in range(4)]

            def join(a, b):
                return builder.shuffle_vector(a, b, ir.Constant(wide, list(range(V))))

            def splat(p, q, i):
                """p[i] in all lanes; where ``halves``, q[i] in the second half."""
                a = _splat_value(builder, pt, builder.load(builder.gep(p, [INTP(i)]), align=1))
                return join(a, _splat_value(builder, pt, builder.load(builder.gep(q, [INTP(i)]), align=1))) if halves else a

            least = _splat_value(builder, vt, context.cast(builder, floor_, signature.args[11], vector.scalar))
            shift = splat(bias_, second[2], 0)
            places = [INTP(0)]
            for i in range(1, vectors - 1):
                at = INTP(i * V)
                places.append(builder.select(builder.icmp_signed("<", at, inner_), at, inner_))
            if vectors > 1:
                places.append(last_)
            columns = [builder.add(column_, builder.mul(place, INTP(stride))) for place in places]
            masks = {}
            for i in {0, vectors - 1}:
                for j in range(0, size, stride):
                    for k in range(stride):
                        masks[i, j, k] = _inside(builder, lanes, builder.add(columns[i], INTP(j + k * lanes)), W_)
            weights = [splat(w_, second[1], i) for i in range(size * size)] if size <= 3 else None

            def fetch(line, i, j, k):
                where = _vector_pointer(builder, line, builder.add(columns[i], INTP(j + k * lanes)), pt)
                mask = masks.get((i, j, k))
                return builder.load(where, align=1) if mask is None else masked_load(builder, part, where, mask)

            def values(lines, i, j):
                """The window's column j at all positions of vector i."""
                found = []
                for line in lines:
                    if stride == 1:
                        found.append(fetch(line, i, j, 0))
                    else:
                        odd = j % stride
                        pair = fetch(line, i, j - odd, 0), fetch(line, i, j - odd, 1)
                        index = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(odd, 2 * lanes, 2)))
                        found.append(builder.shuffle_vector(*pair, index))
                return join(*found) if halves else found[0]

            loop = _Loop(builder, INTP(0), builder.add(count_, INTP(open_rows - 1)), 1, [shift] * (vectors * (open_rows - 1)))
            # sums[d]: of the output row that began d steps ago
            sums = [[shift] * vectors] + [loop.values[d * vectors : (d + 1) * vectors] for d in range(open_rows - 1)]
            done = None
            for q in range(stride):
                users = [(d, d * stride + q) for d in range(open_rows) if d * stride + q < size]
                r = builder.add(row_, builder.add(builder.mul(loop.index, INTP(stride)), INTP(q)))
                before = builder.block
                with builder.if_then(builder.icmp_unsigned("<", r, H_), likely=True):
                    lines = [builder.gep(p, [builder.mul(r, xh_)]) for p in ((x_, second[0]) if halves else (x_,))]
                    new = [list(s) for s in sums]
                    for j in range(size):
                        now = [weights[i * size + j] if weights else splat(w_, second[1], i * size + j) for _, i in users]
                        for i in range(vectors):
                            value = values(lines, i, j)
                            for (d, _), weight in zip(users, now, strict=True):
                                new[d][i] = _fma(builder, vector, weight, value, new[d][i])
                    inside = builder.block
                for d, _ in users:
                    for i in range(vectors):
                        phi = builder.phi(vt)
                        phi.add_incoming(sums[d][i], before)
                        phi.add_incoming(new[d][i], inside)
                        sums[d][i] = phi
                if q == (size - 1) % stride:
                    done = list(sums[-1])
            out = builder.sub(loop.index, INTP(open_rows - 1))
            with builder.if_then(builder.icmp_signed(">=", out, INTP(0)), likely=True):
                line = builder.mul(out, yh_)
                for i, value in enumerate(done):
                    value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
                    if halves:
                        for h, target in enumerate((y_, second[3])):
                            index = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(h * lanes, (h + 1) * lanes)))
                            mine = builder.shuffle_vector(value, ir.Constant(vt, ir.Undefined), index)
                            where = _vector_pointer(builder, builder.gep(target, [line]), INTP(0), pt)
                            _store_n(builder, part, where, mine, n_)
                    else:
                        where = _vector_pointer(builder, builder.gep(y_, [line]), places[i], vt)
                        if vectors > 1:
                            builder.store(value, where, align=1)
                        else:
                            _store_n(builder, vector, where, value, n_)
            loop.close([value for s in sums[:-1] for value in s])
            return context.get_dummy_value()

        place = types.intp
        return types.void(x, *[place] * 8, w, bias, types.float64, y, place, place, others), codegen

    return slide


def _store_n(builder, vector, where, value, n):
    if features.has_masks():
        masked_store(builder, vector, where, value, _first_lanes(builder, vector.lanes, n))
    else:
        store_first(builder, vector, where, value, n)


ROWS = 4  # of output side by side in slide_pixels


@functools.cache
def slide_pixels(size: int, stride: int, rows: int = ROWS):
    """``slide(x, xh, xw, H, W, row, column, count, w, C, bias, floor, y, yh, yw, m)``: ``rows`` rows of ``count`` pixels of a window's
    sums over a vector of channels, y = max(bias + sums, floor), a NaN staying.

    x: the first pixel of an image of H x W pixels, xh and xw apart. row, column: of the window's first cell at the first position;
    positions are ``stride`` apart both ways, cells outside the image are left out. w: for each cell a row of C weights. y: pixels yh and
    yw apart; only the first m rows are written.
    """
    open_columns = (size - 1) // stride + 1  # columns of sums that a column of the image has a part in
    reach = (rows - 1) * stride + size

    @intrinsic
    def slide(typingctx, x, xh, xw, H, W, row, column, count, w, C, bias, floor, y, yh, yw, m):
        vector = vector_of(x.dtype)

        def codegen(context, builder, signature, args):
            x_, xh_, xw_, H_, W_, row_, column_, count_, w_, C_, bias_, floor_, y_, yh_, yw_, m_ = args
            vt = llvm_type(context, vector)

            def at(p, index):
                return builder.load(_vector_pointer(builder, p, index, vt), align=1)

            least = _splat_value(builder, vt, context.cast(builder, floor_, signature.args[11], vector.scalar))
            shift = at(bias_, INTP(0))
            places = [builder.mul(INTP(i), C_) for i in range(size * size)]
            weights = [at(w_, place) for place in places] if size <= 3 else None
            lines = [builder.gep(x_, [builder.mul(builder.add(row_, INTP(r)), xh_)]) for r in range(reach)]
            there = [builder.icmp_unsigned("<", builder.add(row_, INTP(r)), H_) for r in range(reach)]
            written = [builder.icmp_signed("<", INTP(a), m_) for a in range(rows)]
            targets = [builder.gep(y_, [builder.mul(INTP(a), yh_)]) for a in range(rows)]

            def merged(before, inside, old, new):
                phi = builder.phi(vt)
                phi.add_incoming(old, before)
                phi.add_incoming(new, inside)
                return phi

            loop = _Loop(builder, INTP(0), builder.add(count_, INTP(open_columns - 1)), 1, [shift] * (rows * (open_columns - 1)))
            # sums[d]: of the output column that began d steps ago
            sums = [[shift] * rows] + [loop.values[d * rows : (d + 1) * rows] for d in range(open_columns - 1)]
            done = None
            for q in range(stride):
                users = [(d, d * stride + q) for d in range(open_columns) if d * stride + q < size]
                v = builder.add(column_, builder.add(builder.mul(loop.index, INTP(stride)), INTP(q)))
                before, old = builder.block, [list(s) for s in sums]
                with builder.if_then(builder.icmp_unsigned("<", v, W_), likely=True):
                    place = builder.mul(v, xw_)
                    for r in range(reach):
                        met = [(a, r - a * stride) for a in range(rows) if 0 <= r - a * stride < size]
                        if not met:
                            continue
                        outer, kept = builder.block, [list(s) for s in sums]
                        with builder.if_then(there[r], likely=True):
                            value = at(lines[r], place)
                            for d, j in users:
                                for a, i in met:
                                    weight = weights[i * size + j] if weights else at(w_, places[i * size + j])
                                    sums[d][a] = _fma(builder, vector, weight, value, sums[d][a])
                            inner = builder.block
                        for d, _ in users:
                            for a, _ in met:
                                sums[d][a] = merged(outer, inner, kept[d][a], sums[d][a])
                    inside = builder.block
                for d, _ in users:
                    for a in range(rows):
                        sums[d][a] = merged(before, inside, old[d][a], sums[d][a])
                if q == (size - 1) % stride:
                    done = list(sums[-1])
            out = builder.sub(loop.index, INTP(open_columns - 1))
            with builder.if_then(builder.icmp_signed(">=", out, INTP(0)), likely=True):
                place = builder.mul(out, yw_)
                for a, value in enumerate(done):
                    with builder.if_then(written[a], likely=True):
                        value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
                        builder.store(value, _vector_pointer(builder, targets[a], place, vt), align=1)
            loop.close([value for s in sums[:-1] for value in s])
            return context.get_dummy_value()

        place = types.intp
        return types.void(x, *[place] * 7, w, place, bias, types.float64, y, place, place, place), codegen

    return slide
