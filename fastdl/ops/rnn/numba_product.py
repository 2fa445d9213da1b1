"""Products with packed weights: what every step of a recurrent layer does most of the time.

A weight is packed once a call into panels, each PANEL vectors of columns wide: ``packed[panel][k][column]``. Where the columns
are the gates of hidden units, the panels of a unit's gates stand side by side, ``[unit block][gate]``: a range of units is
a range of panels, and its gates come out next to one another. What does not fill the last block is zeros.

Every sum is one chain of fused multiply-adds over k, whatever the tile, so an element's bits depend neither on how many
rows are computed together nor on how they are split over threads.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...cpu._pool import parallel_for
from ...cpu.blocking import LANES
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import TILE_ROWS, TILE_VECTORS, _fma, _Loop
from ...cpu.panels import pack_panel
from ...cpu.simd import lanes, offset, pointer, vector_of
from ...cpu.simd_core import INTP, _splat_value, _vector_pointer, ask_for_line, llvm_type

PANEL = TILE_VECTORS  # vectors to a panel's row
CACHE_LINE = 64  # bytes
ZERO = np.intp(0)  # a literal among the arguments would have Numba compile the function called once more, for that number


def blocks_of(units: int, lanes: int) -> int:
    """How many blocks, a panel wide, hold so many units."""
    return -(-units // (PANEL * lanes))


# ------------------------------------------------------------------------------------------------ packing
@inline
def _pack_chunk(slot, chunk, w, w_row, w_col, units, k, gates, out):
    width = PANEL * lanes(w)
    first = chunk * width
    for g in range(gates):
        pack_panel(offset(w, (g * units + first) * w_row), w_col, w_row, k, units - first, offset(out, (chunk * gates + g) * width * k))


@kernel("i R2 i W1")
def pack(pool, w, gates, out):
    """w (gates * units, k) to panels of its transpose: gates * blocks_of(units) of them."""
    k = w.shape[1]
    units = w.shape[0] // gates
    width = PANEL * lanes(pointer(w))
    parallel_for(pool, _pack_chunk, (units + width - 1) // width,
                 (pointer(w), w.strides[0] // w.itemsize, w.strides[1] // w.itemsize, units, k, gates, pointer(out)))


# ------------------------------------------------------------------------------------------------ tiles
# How far ahead a stream's lines are asked for. A core read 1 MB of weights, again and again, at 211 GB/s so, and at 179 as four
# panels at once without asking; half of the distance gave 198. What fits the first cache is read faster as panels.
_AHEAD = 1536  # bytes


@functools.cache
def panel_tile(rows, panels, on, stream=False):
    """``tile(k, a, a_row, packed, start, start_row, out, out_row)``: rows of a, contiguous, times neighbouring panels, to rows of out.

    on: the sums begin with the rows of start, else with zeros. stream: the panels' rows lie side by side, [k][panel][column].
    """

    @intrinsic
    def tile(typingctx, k, a, a_row, packed, start, start_row, out, out_row):
        vector = vector_of(packed.dtype)
        vectors = panels * PANEL

        def codegen(context, builder, signature, args):
            k_, a_, a_row_, packed_, start_, start_row_, out_, out_row_ = args
            vt, width = llvm_type(context, vector), PANEL * vector.lanes

            def multiples(step, n):
                return [builder.mul(step, INTP(i)) for i in range(n)]

            a_rows, out_rows = multiples(a_row_, rows), multiples(out_row_, rows)
            starts = multiples(INTP(width) if stream else builder.mul(k_, INTP(width)), panels)
            step = panels * width if stream else width
            first = [ir.Constant(vt, None)] * (rows * vectors)
            if on:
                start_rows = [builder.gep(start_, [n]) for n in multiples(start_row_, rows)]
                first = [builder.load(_vector_pointer(builder, row, INTP(j * vector.lanes), vt), align=1)
                         for row in start_rows for j in range(vectors)]
            loop = _Loop(builder, INTP(0), k_, 1, [*first, a_, packed_])
            *sums, a_now, b_now = loop.values

            def broadcast(i):
                return _splat_value(builder, vt, builder.load(builder.gep(a_now, [a_rows[i]]), align=1))

            def column(j):
                where = builder.gep(b_now, [starts[j // PANEL]])
                return builder.load(_vector_pointer(builder, where, INTP(j % PANEL * vector.lanes), vt), align=1)

            # the operand with fewer vectors waits in registers, the other passes through one
            if stream:
                line = builder.gep(builder.bitcast(b_now, ir.IntType(8).as_pointer()), [INTP(_AHEAD)])
                for place in range(0, step * packed.dtype.bitwidth // 8, CACHE_LINE):
                    ask_for_line(builder, builder.gep(line, [INTP(place)]))
            few, many = (column, broadcast) if vectors < rows else (broadcast, column)
            waiting = [few(x) for x in range(min(rows, vectors))]
            for x in range(max(rows, vectors)):
                passing = many(x)
                for w, kept in enumerate(waiting):
                    at = (x * vectors + w) if vectors < rows else (w * vectors + x)
                    sums[at] = _fma(builder, vector, kept, passing, sums[at])
            _, values = loop.close([*sums, builder.gep(a_now, [INTP(1)]), builder.gep(b_now, [INTP(step)])])
            for i in range(rows):
                row = builder.gep(out_, [out_rows[i]])
                for j in range(vectors):
                    builder.store(values[i * vectors + j], _vector_pointer(builder, row, INTP(j * vector.lanes), vt), align=1)

        return types.void(types.intp, a, types.intp, packed, start, types.intp, out, types.intp), codegen

    return tile


def _product(on):
    """``product(a, a_row, m, k, packed, first, last, start, start_row, out, out_row)``, and the same on a start."""
    # eight chains hide the latency of the multiply-add, where there are so many; the first tile fills the registers
    many_rows, eight_rows = (panel_tile(n, 1, on) for n in (TILE_ROWS, 8 if TILE_ROWS > 8 else TILE_ROWS))
    four_rows_3, four_rows_2, four_rows_1 = (panel_tile(4, n if TILE_ROWS > 8 else 1, on) for n in (3, 2, 1))
    two_rows_3, two_rows_2, two_rows_1 = (panel_tile(2, n, on) for n in (3 if TILE_ROWS > 8 else 2, 2, 1))
    one_row_4, one_row_3, one_row_1 = (panel_tile(1, n, on) for n in (4, 3, 1))

    @inline
    def four(a, a_row, k, panels, count, start, start_row, out, out_row):
        width = PANEL * lanes(panels)
        j = 0
        while TILE_ROWS > 8 and (j + 5 <= count or j + 3 == count):
            four_rows_3(k, a, a_row, offset(panels, j * k * width), offset(start, j * width), start_row, offset(out, j * width), out_row)
            j += 3
        while TILE_ROWS > 8 and j + 2 <= count:
            four_rows_2(k, a, a_row, offset(panels, j * k * width), offset(start, j * width), start_row, offset(out, j * width), out_row)
            j += 2
        while j < count:
            four_rows_1(k, a, a_row, offset(panels, j * k * width), offset(start, j * width), start_row, offset(out, j * width), out_row)
            j += 1

    @inline
    def tall(a, a_row, m, k, panels, count, start, start_row, out, out_row):
        """A tile that would stick out at the end starts earlier: what is computed twice comes out the same."""
        width = PANEL * lanes(panels)
        whole = m - m % TILE_ROWS
        if whole > 0 and TILE_ROWS == 6 and 0 < m - whole < 3:
            whole -= TILE_ROWS  # 7 or 8 rows are two small tiles
        elif whole > 0 and m - whole > TILE_ROWS // 4 * 4:
            whole = m
        rest = ZERO
        for j in range(count):
            panel, target, source = offset(panels, j * k * width), offset(out, j * width), offset(start, j * width)
            i = 0
            while i < whole:
                r = min(i, m - TILE_ROWS)
                at, to = offset(source, r * start_row), offset(target, r * out_row)
                many_rows(k, offset(a, r * a_row), a_row, panel, at, start_row, to, out_row)
                i += TILE_ROWS
            if TILE_ROWS > 8 and m - i > 4 and m >= 8:
                r = min(i, m - 8)
                at, to = offset(source, r * start_row), offset(target, r * out_row)
                eight_rows(k, offset(a, r * a_row), a_row, panel, at, start_row, to, out_row)
                i += 8
            rest = i
        while rest < m:
            r = min(rest, m - 4)
            four(offset(a, r * a_row), a_row, k, panels, count, offset(start, r * start_row), start_row, offset(out, r * out_row), out_row)
            rest += 4

    @inline
    def two(a, a_row, k, panels, count, start, start_row, out, out_row):
        width = PANEL * lanes(panels)
        j = 0
        while TILE_ROWS > 8 and (j + 5 <= count or j + 3 == count):
            two_rows_3(k, a, a_row, offset(panels, j * k * width), offset(start, j * width), start_row, offset(out, j * width), out_row)
            j += 3
        while j + 2 <= count:
            two_rows_2(k, a, a_row, offset(panels, j * k * width), offset(start, j * width), start_row, offset(out, j * width), out_row)
            j += 2
        if j < count:
            two_rows_1(k, a, a_row, offset(panels, j * k * width), offset(start, j * width), start_row, offset(out, j * width), out_row)

    @inline
    def one(a, k, panels, count, start, out):
        width = PANEL * lanes(panels)
        j = 0
        while j + 4 <= count:
            one_row_4(k, a, ZERO, offset(panels, j * k * width), offset(start, j * width), ZERO, offset(out, j * width), ZERO)
            j += 4
        if j + 3 <= count:
            one_row_3(k, a, ZERO, offset(panels, j * k * width), offset(start, j * width), ZERO, offset(out, j * width), ZERO)
            j += 3
        while j < count:
            one_row_1(k, a, ZERO, offset(panels, j * k * width), offset(start, j * width), ZERO, offset(out, j * width), ZERO)
            j += 1

    @inline
    def multiply(a, a_row, m, k, packed, first, last, start, start_row, out, out_row):
        panels = offset(packed, first * k * PANEL * lanes(packed))
        if m >= 4:
            tall(a, a_row, m, k, panels, last - first, start, start_row, out, out_row)
        else:
            if m > 1:
                two(a, a_row, k, panels, last - first, start, start_row, out, out_row)
            if m % 2 == 1:
                i = m - 1
                one(offset(a, i * a_row), k, panels, last - first, offset(start, i * start_row), offset(out, i * out_row))

    return multiply


_from_zero, _from_start = _product(False), _product(True)


@inline
def product(a, a_row, m, k, packed, first, last, out, out_row):
    """out (m rows, out_row apart) = a (m rows of k numbers) times panels first to last - 1 of the packed weight."""
    _from_zero(a, a_row, m, k, packed, first, last, out, ZERO, out, out_row)


@inline
def product_on(start, start_row, a, a_row, m, k, packed, first, last, out, out_row):
    """out = start + that product. start: m rows, start_row apart (0: one for all), which begin with the first panel's columns."""
    _from_start(a, a_row, m, k, packed, first, last, start, start_row, out, out_row)


_stream_3, _stream_4 = (panel_tile(1, n, True, True) for n in (3, 4))


@inline
def stream_on(start, a, k, packed, block, gates, out):
    """product_on of one row and the panels of a block's 3 or 4 gates, where these lie as a stream (see in_streams)."""
    panels = offset(packed, block * gates * k * PANEL * lanes(packed))
    if gates == 4:
        _stream_4(k, a, ZERO, panels, start, ZERO, out, ZERO)
    else:
        _stream_3(k, a, ZERO, panels, start, ZERO, out, ZERO)


def in_streams(panels, gates, k, out):
    """Packed panels [block][gate][k][column] as [block][k][gate][column]: a row of a's block is read from one place."""
    width = PANEL * LANES[panels.dtype.char]
    out.reshape(-1, k, gates, width)[...] = panels.reshape(-1, gates, k, width).swapaxes(1, 2)
    return out
