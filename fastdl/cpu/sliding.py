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


def most_vectors(size: int) -> int:
    """Vectors of positions beside each other in slide_rows: their sums, and a small window's weights, fill the registers."""
    return 2 if features.registers() < 32 else 4 if size <= 5 else 3


def _inside(builder, lanes, place, width):
    """The mask of the lanes l for which place + l is within 0..width."""
    wide, half = ir.VectorType(ir.IntType(32), lanes), ir.IntType(32)
    at = builder.add(_splat_value(builder, wide, builder.trunc(place, half)), ir.Constant(wide, list(range(lanes))))
    return builder.icmp_unsigned("<", at, _splat_value(builder, wide, builder.trunc(width, half)))


class Tile:
    """What all these tiles share: vectors at places, and zeros for what is not there."""

    def __init__(self, builder, vector, vt):
        self.builder, self.vector, self.vt, self.zero = builder, vector, vt, ir.Constant(vt, None)

    def load(self, p, index):
        return self.builder.load(_vector_pointer(self.builder, p, index, self.vt), align=1)

    def load_where(self, there, p, index):
        """What is at a place where ``there``, else zeros, and the place is not touched."""
        return self.choose(there, lambda: [self.load(p, index)], [self.zero])[0]

    def choose(self, condition, make, others):
        """make()'s values where ``condition``, else the others."""
        builder, before = self.builder, self.builder.block
        with builder.if_then(condition, likely=True):
            values = make()
            inside = builder.block
        found = []
        for value, other in zip(values, others, strict=True):
            phi = builder.phi(self.vt)
            phi.add_incoming(other, before)
            phi.add_incoming(value, inside)
            found.append(phi)
        return found

    def fma(self, a, b, c):
        return _fma(self.builder, self.vector, a, b, c)

    def range(self, place, size):
        """Whether 0 <= place < size."""
        return self.builder.icmp_unsigned("<", place, size)

    def plus(self, place, number):
        return self.builder.add(place, INTP(number))

    def lines(self, p, row, step, height, count):
        """(pointers to count rows from ``row`` on, whether each is there)"""
        rows = [self.plus(row, r) for r in range(count)]
        return [self.builder.gep(p, [self.builder.mul(r, step)]) for r in rows], [self.range(r, height) for r in rows]


class _Rows:
    """What the tiles of planes share: vectors of a row's values that the window's columns meet, or two half vectors of two rows."""

    def __init__(self, builder, context, vector, size, stride, halves, width):
        self.builder, self.vector, self.size, self.stride, self.halves, self.width = builder, vector, size, stride, halves, width
        self.vt, self.lanes = llvm_type(context, vector), vector.lanes // 2 if halves else vector.lanes
        self.part = type(vector)(vector.scalar, self.lanes)
        self.pt = llvm_type(context, self.part)
        self.masks = {}

    def join(self, parts):
        """One vector of one part, or of two."""
        if not self.halves:
            return parts[0]
        index = ir.VectorType(ir.IntType(32), 2 * self.lanes)
        return self.builder.shuffle_vector(*parts, ir.Constant(index, list(range(2 * self.lanes))))

    def splat(self, pointers, i):
        """p[i] in all lanes of each part."""
        builder = self.builder
        return self.join([_splat_value(builder, self.pt, builder.load(builder.gep(p, [INTP(i)]), align=1)) for p in pointers])

    def mask(self, column):
        """From now on, what lies outside the plane is zero in vectors that begin at this column and meet the window from there."""
        for j in range(0, self.size, self.stride):
            for k in range(self.stride):
                place = self.builder.add(column, INTP(j + k * self.lanes))
                self.masks[column, j, k] = _inside(self.builder, self.lanes, place, self.width)

    def _fetch(self, line, column, j, k):
        where = _vector_pointer(self.builder, line, self.builder.add(column, INTP(j + k * self.lanes)), self.pt)
        mask = self.masks.get((column, j, k))
        return self.builder.load(where, align=1) if mask is None else masked_load(self.builder, self.part, where, mask)

    def window(self, lines, column, j):
        """What column j of the window meets at all positions of a vector that begins at ``column``."""
        if self.stride == 1:
            return self.join([self._fetch(line, column, j, 0) for line in lines])
        odd, found = j % 2, []
        for line in lines:
            pair = self._fetch(line, column, j - odd, 0), self._fetch(line, column, j - odd, 1)
            index = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), list(range(odd, 2 * self.lanes, 2)))
            found.append(self.builder.shuffle_vector(*pair, index))
        return self.join(found)


def _store_n(builder, vector, where, value, n):
    if features.has_masks():
        masked_store(builder, vector, where, value, _first_lanes(builder, vector.lanes, n))
    else:
        store_first(builder, vector, where, value, n)


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
            rows, V = _Rows(builder, context, vector, size, stride, halves, W_), vector.lanes
            vt, second = rows.vt, [builder.extract_value(others_, i) for i in range(4)]

            def both(first, other):
                return [first, other] if halves else [first]

            least = _splat_value(builder, vt, context.cast(builder, floor_, signature.args[11], vector.scalar))
            shift = rows.splat(both(bias_, second[2]), 0)
            places = [INTP(0)]
            for i in range(1, vectors - 1):
                at = INTP(i * V)
                places.append(builder.select(builder.icmp_signed("<", at, inner_), at, inner_))
            if vectors > 1:
                places.append(last_)
            columns = [builder.add(column_, builder.mul(place, INTP(stride))) for place in places]
            for i in {0, vectors - 1}:
                rows.mask(columns[i])
            windows = both(w_, second[1])
            weights = [rows.splat(windows, i) for i in range(size * size)] if size <= 3 else None

            loop = _Loop(builder, INTP(0), builder.add(count_, INTP(open_rows - 1)), 1, [shift] * (vectors * (open_rows - 1)))
            # sums[d]: of the output row that began d steps ago
            sums = [[shift] * vectors] + [loop.values[d * vectors : (d + 1) * vectors] for d in range(open_rows - 1)]
            done = None
            for q in range(stride):
                users = [(d, d * stride + q) for d in range(open_rows) if d * stride + q < size]
                r = builder.add(row_, builder.add(builder.mul(loop.index, INTP(stride)), INTP(q)))
                before = builder.block
                with builder.if_then(builder.icmp_unsigned("<", r, H_), likely=True):
                    lines = [builder.gep(p, [builder.mul(r, xh_)]) for p in both(x_, second[0])]
                    new = [list(s) for s in sums]
                    for j in range(size):
                        now = [weights[i * size + j] if weights else rows.splat(windows, i * size + j) for _, i in users]
                        for i in range(vectors):
                            value = rows.window(lines, columns[i], j)
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
                            index = list(range(h * rows.lanes, (h + 1) * rows.lanes))
                            index = ir.Constant(ir.VectorType(ir.IntType(32), rows.lanes), index)
                            mine = builder.shuffle_vector(value, ir.Constant(vt, ir.Undefined), index)
                            where = _vector_pointer(builder, builder.gep(target, [line]), INTP(0), rows.pt)
                            _store_n(builder, rows.part, where, mine, n_)
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



@functools.cache
def gather_rows(size: int, stride: int, vectors: int, halves: bool = False):
    """``gather(x, xh, H, W, row, column, z, zh, count, n, sums, others)``: sums[cell * lanes ...] += over ``count`` rows of a strip of z,
    z times the values of x that the window's cell meets there; lane by lane.

    x, row, column: as in slide_rows; what is outside the plane meets nothing. z: rows zh apart, the last of the strip's vectors has n
    positions. Where ``halves``, each half of the vector is a plane of its own; others: x and z of the second.
    """
    open_rows = (size - 1) // stride + 1

    @intrinsic
    def gather(typingctx, x, xh, H, W, row, column, z, zh, count, n, sums, others):
        vector = vector_of(x.dtype)

        def codegen(context, builder, signature, args):
            x_, xh_, H_, W_, row_, column_, z_, zh_, count_, n_, sums_, others_ = args
            rows = _Rows(builder, context, vector, size, stride, halves, W_)
            tile, V = Tile(builder, vector, rows.vt), vector.lanes
            x_planes = [x_, builder.extract_value(others_, 0)][: 1 + halves]
            z_planes = [z_, builder.extract_value(others_, 1)][: 1 + halves]
            columns = [tile.plus(column_, i * V * stride) for i in range(vectors)]
            for place in columns:
                rows.mask(place)
            some = _first_lanes(builder, rows.lanes, n_)  # of the last vector
            some_of_both = rows.join([some, some]) if halves else some

            def value_of(lines, i, j):
                value = rows.window(lines, columns[i], j)
                return value if i < vectors - 1 else builder.select(some_of_both, value, tile.zero)

            def z_row(line):
                found = []
                for i in range(vectors):
                    places = [_vector_pointer(builder, builder.gep(p, [line]), INTP(i * V), rows.pt) for p in z_planes]
                    if i < vectors - 1:
                        found.append(rows.join([builder.load(p, align=1) for p in places]))
                    else:
                        found.append(rows.join([masked_load(builder, rows.part, p, some) for p in places]))
                return found

            def run(start, end, carried, edge):
                """Steps over rows: of x ``stride`` new ones, which meet open_rows of z. edge: not all of these are there."""
                loop = _Loop(builder, start, end, 1, carried)
                totals, older = list(loop.values[: size * size]), loop.values[size * size :]
                line = builder.mul(loop.index, zh_)
                there = tile.range(loop.index, count_)
                newest = tile.choose(there, lambda: z_row(line), [tile.zero] * vectors) if edge else z_row(line)
                z_values = [newest] + [older[d * vectors : (d + 1) * vectors] for d in range(open_rows - 1)]
                for q in range(stride):
                    r = tile.plus(builder.add(row_, builder.mul(loop.index, INTP(stride))), q)

                    def row_of_x(r=r, q=q, totals=totals):
                        lines, new = [builder.gep(p, [builder.mul(r, xh_)]) for p in x_planes], list(totals)
                        values = [[value_of(lines, i, j) for i in range(vectors)] for j in range(size)]
                        for d in range(open_rows):
                            if d * stride + q >= size:
                                continue

                            def products(d=d, first=(d * stride + q) * size):
                                mine = new[first : first + size]
                                for i in range(vectors):
                                    mine = [tile.fma(z_values[d][i], values[j][i], mine[j]) for j in range(size)]
                                return mine

                            first = (d * stride + q) * size
                            at = builder.sub(loop.index, INTP(d))
                            mine = tile.choose(tile.range(at, count_), products, new[first : first + size]) if edge else products()
                            new[first : first + size] = mine
                        return new

                    totals = tile.choose(tile.range(r, H_), row_of_x, totals)
                return loop.close(totals + [value for z in z_values[: open_rows - 1] for value in z])

            steps, first = tile.plus(count_, open_rows - 1), INTP(open_rows - 1)
            first = builder.select(builder.icmp_signed("<", first, steps), first, steps)
            index, values = run(INTP(0), first, [tile.zero] * (size * size + (open_rows - 1) * vectors), True)
            index, values = run(index, count_, values, False)
            _, values = run(index, steps, values, True)
            for i, value in enumerate(values[: size * size]):
                where = _vector_pointer(builder, sums_, INTP(i * V), rows.vt)
                builder.store(builder.fadd(builder.load(where, align=1), value), where, align=1)
            return context.get_dummy_value()

        place = types.intp
        return types.void(x, *[place] * 5, z, place, place, place, sums, others), codegen

    return gather


@functools.cache
def spread_rows(size: int, vectors: int, odd: bool):
    """``spread(z, zh, H, W, row, column, steps, w, y, yh, first_row, OH, n)``: the transpose of slide_rows at stride 2.

    ``2 * steps`` rows of y, each of ``vectors`` pairs of vectors of positions: the sums of w[cell] times the value of z that reaches
    the position by that cell. z: a plane of H x W, what is outside it is zero. y: its row first_row is what row ``row`` of z reaches by
    the window's first cell, its first position what column ``column`` does, or where ``odd`` one position after that; rows outside OH are
    not written, nor what follows the first n positions.
    """
    reach, carried = (size - 1) // 2, size - 2
    # for a position's parity: the window's columns that reach it, and from which column of z
    met = [[(j, (e + odd - j) // 2) for j in range(size) if (e + odd - j) % 2 == 0] for e in range(2)]

    @intrinsic
    def spread(typingctx, z, zh, H, W, row, column, steps, w, y, yh, first_row, OH, n):
        vector = vector_of(z.dtype)

        def codegen(context, builder, signature, args):
            z_, zh_, H_, W_, row_, column_, steps_, w_, y_, yh_, first_row_, OH_, n_ = args
            rows = _Rows(builder, context, vector, 1, 1, False, W_)
            tile, V = Tile(builder, vector, rows.vt), vector.lanes
            offsets = sorted({k for pairs in met for _, k in pairs})
            columns = {(i, k): tile.plus(column_, i * V + k) for i in range(vectors) for k in offsets}
            for place in columns.values():
                rows.mask(place)
            weights = [rows.splat([w_], i) for i in range(size * size)] if size <= 3 else None
            wide = 2 * vectors  # even and odd positions of each vector
            loop = _Loop(builder, INTP(-reach), steps_, 1, [tile.zero] * (carried * wide))
            sums = [loop.values[c * wide : (c + 1) * wide] for c in range(carried)] + [[tile.zero] * wide] * 2
            r = builder.add(row_, loop.index)

            def row_of_z():
                new, line = [list(s) for s in sums], builder.gep(z_, [builder.mul(r, zh_)])
                values = {key: rows.window([line], place, 0) for key, place in columns.items()}
                for i in range(size):
                    for e in range(2):
                        for j, k in met[e]:
                            weight = weights[i * size + j] if weights else rows.splat([w_], i * size + j)
                            for v in range(vectors):
                                new[i][2 * v + e] = tile.fma(weight, values[v, k], new[i][2 * v + e])
                return [value for s in new for value in s]

            flat = tile.choose(tile.range(r, H_), row_of_z, [value for s in sums for value in s])
            sums = [flat[c * wide : (c + 1) * wide] for c in range(size)]
            index = ir.VectorType(ir.IntType(32), V)
            mixed = [ir.Constant(index, [lane // 2 + V * (lane % 2) for lane in range(h * V, (h + 1) * V)]) for h in range(2)]
            for c in range(2):
                at = tile.plus(builder.add(first_row_, builder.mul(loop.index, INTP(2))), c)
                inside = builder.and_(tile.range(at, OH_), builder.icmp_signed(">=", loop.index, INTP(0)))
                with builder.if_then(inside, likely=True):
                    line = builder.gep(y_, [builder.mul(at, yh_)])
                    for v in range(vectors):
                        for h in range(2):
                            value = builder.shuffle_vector(sums[c][2 * v], sums[c][2 * v + 1], mixed[h])
                            first = (2 * v + h) * V
                            where = _vector_pointer(builder, line, INTP(first), rows.vt)
                            if v < vectors - 1:
                                builder.store(value, where, align=1)
                            else:
                                left = tile.plus(n_, -first)
                                with builder.if_then(builder.icmp_signed(">", left, INTP(0)), likely=True):
                                    _store_n(builder, vector, where, value, left)
            loop.close([value for s in sums[2 : 2 + carried] for value in s])
            return context.get_dummy_value()

        place = types.intp
        return types.void(z, *[place] * 6, w, y, *[place] * 4), codegen

    return spread
