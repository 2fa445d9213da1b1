"""Windows slid along rows of pixels, channels side by side: the channels-last half of sliding.py.

A vector is so many channels; a few rows of output are made at once, and the sums of a few columns are open at a time. Each pixel is
loaded once for all of them.
"""

from __future__ import annotations

import functools

from numba import types
from numba.extending import intrinsic

from . import features
from .microkernel import _Loop
from .simd_core import INTP, _splat_value, _vector_pointer, llvm_type, vector_of
from .sliding import Tile


def rows_together(size: int) -> int:
    """Rows of output side by side in slide_pixels: with their sums and what they read the registers are full."""
    return 4 if features.registers() >= 32 and size <= 5 else 2


@functools.cache
def slide_pixels(size: int, stride: int, rows: int):
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

            tile = Tile(builder, vector, vt)
            least = _splat_value(builder, vt, context.cast(builder, floor_, signature.args[11], vector.scalar))
            shift = tile.load(bias_, INTP(0))
            places = [builder.mul(INTP(i), C_) for i in range(size * size)]
            weights = [tile.load(w_, place) for place in places] if size <= 3 else None
            lines, there = tile.lines(x_, row_, xh_, H_, reach)
            targets, written = tile.lines(y_, INTP(0), yh_, m_, rows)

            loop = _Loop(builder, INTP(0), tile.plus(count_, open_columns - 1), 1, [shift] * (rows * (open_columns - 1)))
            # sums[d]: of the output column that began d steps ago
            sums = [[shift] * rows] + [loop.values[d * rows : (d + 1) * rows] for d in range(open_columns - 1)]
            done = None
            for q in range(stride):
                users = [(d, d * stride + q) for d in range(open_columns) if d * stride + q < size]
                v = tile.plus(builder.add(column_, builder.mul(loop.index, INTP(stride))), q)

                def column(v=v, users=users, sums=sums):
                    new, place = [list(s) for s in sums], builder.mul(v, xw_)
                    values = [tile.load_where(there[r], lines[r], place) for r in range(reach)]
                    for d, j in users:
                        for i in range(size):
                            weight = weights[i * size + j] if weights else tile.load(w_, places[i * size + j])
                            for a in range(rows):
                                new[d][a] = tile.fma(weight, values[a * stride + i], new[d][a])
                    return [value for s in new for value in s]

                flat = tile.choose(tile.range(v, W_), column, [value for s in sums for value in s])
                sums = [flat[d * rows : (d + 1) * rows] for d in range(open_columns)]
                if q == (size - 1) % stride:
                    done = sums[-1]
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


@functools.cache
def gather_pixels(size: int, stride: int):
    """``gather(x, xh, xw, H, W, row, column, z, zh, zw, count, width, dw, dw_row)``: dw[cell * dw_row ...] += the sums over ``count``
    rows of ``width`` pixels of z times the pixel of x that the window's cell meets there, for a vector of channels.

    x, row, column: as in slide_pixels; z: its first pixel, they are zh and zw apart. What is outside x meets nothing.
    """
    open_columns = (size - 1) // stride + 1

    @intrinsic
    def gather(typingctx, x, xh, xw, H, W, row, column, z, zh, zw, count, width, dw, dw_row):
        vector = vector_of(x.dtype)

        def codegen(context, builder, signature, args):
            x_, xh_, xw_, H_, W_, row_, column_, z_, zh_, zw_, count_, width_, dw_, dw_row_ = args
            vt = llvm_type(context, vector)
            tile = Tile(builder, vector, vt)
            cells = [builder.gep(dw_, [builder.mul(INTP(i), dw_row_)]) for i in range(size * size)]
            outer = _Loop(builder, INTP(0), count_, 1, [tile.zero] * (size * size))
            lines, there = tile.lines(x_, builder.add(row_, builder.mul(outer.index, INTP(stride))), xh_, H_, size)
            z_line = builder.gep(z_, [builder.mul(outer.index, zh_)])

            def run(start, end, carried, edge):
                """Steps over columns: of x ``stride`` new ones, which meet open_columns of z. edge: not all of these are there."""
                loop = _Loop(builder, start, end, 1, carried)
                sums, old = list(loop.values[: size * size]), loop.values[size * size :]
                place = builder.mul(loop.index, zw_)
                newest = tile.load_where(tile.range(loop.index, width_), z_line, place) if edge else tile.load(z_line, place)
                z_values = [newest, *old]
                for q in range(stride):
                    users = [(d, d * stride + q) for d in range(open_columns) if d * stride + q < size]
                    v = tile.plus(builder.add(column_, builder.mul(loop.index, INTP(stride))), q)

                    def column(v=v, users=users, sums=sums):
                        place, new = builder.mul(v, xw_), list(sums)
                        for i in range(size):
                            value = tile.load_where(there[i], lines[i], place)
                            for d, j in users:
                                cell = i * size + j

                                def product(value=value, d=d, cell=cell):
                                    return [tile.fma(z_values[d], value, new[cell])]

                                if edge:
                                    at = builder.sub(loop.index, INTP(d))
                                    new[cell] = tile.choose(tile.range(at, width_), product, [new[cell]])[0]
                                else:
                                    new[cell] = product()[0]
                        return new

                    sums = tile.choose(tile.range(v, W_), column, sums)
                index, values = loop.close(sums + z_values[: open_columns - 1])
                return index, values

            steps = tile.plus(width_, open_columns - 1)
            first = INTP(open_columns - 1)
            first = builder.select(builder.icmp_signed("<", first, steps), first, steps)
            index, values = run(INTP(0), first, outer.values + [tile.zero] * (open_columns - 1), True)
            index, values = run(index, width_, values, False)
            index, values = run(index, steps, values, True)
            _, sums = outer.close(values[: size * size])
            for cell, value in zip(cells, sums, strict=True):
                value = builder.fadd(tile.load(cell, INTP(0)), value)
                builder.store(value, _vector_pointer(builder, cell, INTP(0), vt), align=1)
            return context.get_dummy_value()

        place = types.intp
        return types.void(x, *[place] * 6, z, *[place] * 4, dw, place), codegen

    return gather


@functools.cache
def spread_pixels(size: int, stride: int, rows: int = 2):
    """``spread(z, zh, zw, H, W, row, column, steps, w, C, y, yh, yw, first_row, first_column, OH, OW)``: the transpose of slide_pixels.

    For a vector of channels, ``rows * stride`` rows of ``steps * stride`` columns of y, each the sum of w[cell] times the pixel of z that
    reaches it by that cell.

    z: an image of H x W pixels, those outside are left out. y: its row first_row and column first_column are what pixel (row, column)
    of z reaches by the window's first cell; only what lies within its OH rows and OW columns is written.
    """
    reach = (size - 1) // stride  # rows of z before the first that reach the first row of y
    carried = max(0, size - stride)  # columns of y that the next step adds to

    @intrinsic
    def spread(typingctx, z, zh, zw, H, W, row, column, steps, w, C, y, yh, yw, first_row, first_column, OH, OW):
        vector = vector_of(z.dtype)

        def codegen(context, builder, signature, args):
            z_, zh_, zw_, H_, W_, row_, column_, steps_, w_, C_, y_, yh_, yw_, first_row_, first_column_, OH_, OW_ = args
            vt = llvm_type(context, vector)
            tile = Tile(builder, vector, vt)
            places = [builder.mul(INTP(i), C_) for i in range(size * size)]
            weights = [tile.load(w_, place) for place in places] if size <= 3 else None
            lines, there = tile.lines(z_, tile.plus(row_, -reach), zh_, H_, rows + reach)
            targets, written = tile.lines(y_, first_row_, yh_, OH_, rows * stride)
            high = rows * stride
            loop = _Loop(builder, INTP(-reach), steps_, 1, [tile.zero] * (carried * high))
            # sums[c]: of the column of y that the window's cell c reaches, from its row on
            sums = [loop.values[c * high : (c + 1) * high] for c in range(carried)] + [[tile.zero] * high] * (max(size, stride) - carried)
            v = builder.add(column_, loop.index)

            def column_of_z():
                new, place = [list(s) for s in sums], builder.mul(v, zw_)
                values = [tile.load_where(there[r], lines[r], place) for r in range(rows + reach)]
                for j in range(size):
                    for i in range(size):
                        weight = weights[i * size + j] if weights else tile.load(w_, places[i * size + j])
                        for e in range(i % stride, high, stride):
                            # row e of y = stride * (e // stride) + e % stride meets cell i from z's row (e - i) / stride
                            new[j][e] = tile.fma(weight, values[(e - i) // stride + reach], new[j][e])
                return [value for s in new for value in s]

            flat = tile.choose(tile.range(v, W_), column_of_z, [value for s in sums for value in s])
            sums = [flat[c * high : (c + 1) * high] for c in range(max(size, stride))]
            for c in range(stride):
                at = tile.plus(builder.add(first_column_, builder.mul(loop.index, INTP(stride))), c)
                inside = builder.and_(tile.range(at, OW_), builder.icmp_signed(">=", loop.index, INTP(0)))
                with builder.if_then(inside, likely=True):
                    place = builder.mul(at, yw_)
                    for e in range(high):
                        with builder.if_then(written[e], likely=True):
                            builder.store(sums[c][e], _vector_pointer(builder, targets[e], place, vt), align=1)
            loop.close([value for s in sums[stride : stride + carried] for value in s])
            return context.get_dummy_value()

        place = types.intp
        return types.void(z, *[place] * 7, w, place, y, *[place] * 6), codegen

    return spread
