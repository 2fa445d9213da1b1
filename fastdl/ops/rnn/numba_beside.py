"""One row's product with the state's weights and, beside it, some of the input's share of later steps' gates.

Where the state's weights are read from the second-level cache, a row's product leaves the units that multiply idle for half of the time. So
tiles of the input's product go through the same loop: eight rows of the steps to come by a panel and a piece of k, of which every step
does its part. Sums that are not complete wait where they will be read. Every sum remains the one chain over k that it is without.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from numba import types
from numba.extending import intrinsic

from ...cpu.jit import inline
from ...cpu.microkernel import TILE_ROWS, _fma, _in_order, _Loop
from ...cpu.simd import lanes, load, offset, store, vector_of
from ...cpu.simd_core import INTP, _splat_value, _vector_pointer, llvm_type
from .numba_product import PANEL, ZERO, panel_tile

ROWS = 8  # of a tile, and steps whose input is multiplied during those before
PIECE = 128  # of k: a piece of a panel goes through once, and leaves room in the first cache
PANELS = 4  # of the state's product that something may stand beside: eight sums; sixteen of the input's and their operands are registers
FEWEST_FEATURES = 96  # with fewer the input is multiplied faster by itself
CAN_STAND_BESIDE = TILE_ROWS > 8


class Work(NamedTuple):
    """The input's product for the next ROWS steps, of which this one makes the tiles first to last - 1: [panel][piece of k]."""

    x: Any
    x_row: int
    features: int
    packed: Any
    bias: Any
    gates: Any  # the result
    gates_row: int
    first: int
    last: int


@functools.cache
def _tile_beside(rows):
    """``tile(k, h, packed, apart, out, x, x_row, beside, start, start_row, to, to_row)``: h times PANELS panels, which are ``apart``,
    added to out; and some rows of x times the panel ``beside``, added to the rows of start, to those of ``to``."""

    @intrinsic
    def tile(typingctx, k, h, packed, apart, out, x, x_row, beside, start, start_row, to, to_row):
        vector = vector_of(packed.dtype)
        vectors = PANELS * PANEL

        def codegen(context, builder, signature, args):
            k_, h_, packed_, apart_, out_, x_, x_row_, beside_, start_, start_row_, to_, to_row_ = args
            vt, width = llvm_type(context, vector), PANEL * vector.lanes

            def rows_of(p, step, n=rows):
                return [builder.gep(p, [builder.mul(step, INTP(i))]) for i in range(n)]

            def at(p, j):
                return _vector_pointer(builder, p, INTP(j * vector.lanes), vt)

            def read_all(places, vectors):
                return [builder.load(at(p, j), align=1) for p in places for j in range(vectors)]

            sums = read_all([out_], vectors) + read_all(rows_of(start_, start_row_), PANEL)
            loop = _Loop(builder, INTP(0), k_, 1, [*sums, h_, packed_, x_, beside_])
            *sums, h_now, w_now, x_now, beside_now = loop.values

            def multiply(weights, value, first):
                value = _splat_value(builder, vt, builder.load(value, align=1))
                for j, weight in enumerate(weights):
                    sums[first + j] = _fma(builder, vector, weight, value, sums[first + j])

            multiply(read_all(rows_of(w_now, apart_, PANELS), PANEL), h_now, 0)
            if rows:
                sums[:vectors] = _in_order(builder, sums[:vectors], 0, 1, vectors)
                columns = read_all([beside_now], PANEL)
            for i, row in enumerate(rows_of(x_now, x_row_)):
                multiply(columns, row, vectors + i * PANEL)
                upto = vectors + (i + 1) * PANEL
                sums[vectors:upto] = _in_order(builder, sums[vectors:upto], i, rows, PANEL)
            following = [builder.gep(p, [INTP(n)]) for p, n in ((h_now, 1), (w_now, width), (x_now, 1), (beside_now, width))]
            _, values = loop.close([*sums, *following])
            places = [at(out_, j) for j in range(vectors)] + [at(row, j) for row in rows_of(to_, to_row_) for j in range(PANEL)]
            for value, place in zip(values, places, strict=False):  # behind the sums come the pointers
                builder.store(value, place, align=1)

        i = types.intp
        return types.void(i, h, packed, i, out, x, i, beside, start, i, to, i), codegen

    return tile


_both, _rest = _tile_beside(ROWS), _tile_beside(0)
_alone = panel_tile(ROWS, 1, True)


@inline
def tiles_of(features, panels):
    """How many tiles the input's product for ROWS steps has."""
    return panels * ((features + PIECE - 1) // PIECE)


@inline
def _tile(work, n):
    """Of the n-th tile: (rows of x, packed, where its sums begin, the distance of their rows, where they go, steps of k)."""
    pieces, W = (work.features + PIECE - 1) // PIECE, PANEL * lanes(work.packed)
    panel, k = n // pieces, n % pieces * PIECE
    to = offset(work.gates, panel * W)
    start, start_row = to, work.gates_row
    if k == 0:
        start, start_row = offset(work.bias, panel * W), ZERO
    return offset(work.x, k), offset(work.packed, (panel * work.features + k) * W), start, start_row, to, min(PIECE, work.features - k)


@inline
def product_beside(work, n, start, h, k, packed, first, out):
    """product_on of one row and PANELS panels from the first on, and tiles of work from the n-th on; which is the next."""
    V, W = lanes(packed), PANEL * lanes(packed)
    w, done, row = offset(packed, first * k * W), ZERO, work.gates_row
    for j in range(0, PANELS * W, V):
        store(out, j, load(start, j))
    while done < k and n < work.last:
        x, beside, begin, begin_row, to, most = _tile(work, n)
        both = min(most, k - done)
        _both(both, offset(h, done), offset(w, done * W), k * W, out, x, work.x_row, beside, begin, begin_row, to, row)
        if both < most:
            _alone(most - both, offset(x, both), work.x_row, offset(beside, both * W), to, row, to, row)
        done += both
        n += 1
    if done < k:
        _rest(k - done, offset(h, done), offset(w, done * W), k * W, out, work.x, ZERO, w, out, ZERO, out, ZERO)
    return n


@inline
def finish_work(work, n):
    """What is left of a step's tiles, from the n-th on."""
    while n < work.last:
        x, packed, start, start_row, to, k = _tile(work, n)
        _alone(k, x, work.x_row, packed, start, start_row, to, work.gates_row)
        n += 1
