"""Sums of scaled rows that a list picks, as parameterised intrinsics: a sparse matrix times a dense one, a row of it at a time."""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import features
from .jit import always_inline
from .microkernel import LINE_VECTORS, _fma, _Loop
from .simd_core import INTP, _splat_value, _vector_pointer, ask_for_line, llvm_type, vector_of

# Of a row at a time. A row costs two loads more than its vectors, which wide ones hide; 12 sums are as many as 16 registers hold beside
# a factor.
SUMS = 12
MOST_VECTORS = 12 if features.registers() >= 32 else 8


@functools.cache
def picked_rows(vectors: int):
    """``add(count, scales, step, places, source, sums)``: sums[:n] += the sum over i < count of scales[i * step] times
    source[places[i]:][:n], where n is ``vectors`` vectors.

    Narrow rows have several sets of sums, for the next multiply-add on a sum begins when the last one is done.
    """
    sets = max(1, min(4, SUMS // vectors))

    @intrinsic
    def add(typingctx, count, scales, step, places, source, sums):
        vector = vector_of(source.dtype)

        def codegen(context, builder, signature, args):
            count_, scales_, step_, places_, source_, sums_ = args
            vt = llvm_type(context, vector)

            def parts(row):
                return [_vector_pointer(builder, row, INTP(j * vector.lanes), vt) for j in range(vectors)]

            def term(scale, index, values):
                row = builder.gep(source_, [builder.load(builder.gep(places_, [index]))])
                factor = _splat_value(builder, vt, builder.load(scale, align=1))
                return [_fma(builder, vector, factor, builder.load(part, align=1), value)
                        for part, value in zip(parts(row), values, strict=True)]

            zeros = [ir.Constant(vt, None)] * ((sets - 1) * vectors)
            loop = _Loop(builder, INTP(0), count_, sets, [scales_, *(builder.load(part, align=1) for part in parts(sums_)), *zeros])
            scale, *values = loop.values
            following = []
            for i in range(sets):
                following += term(scale, builder.add(loop.index, INTP(i)), values[i * vectors : (i + 1) * vectors])
                scale = builder.gep(scale, [step_])
            done, (scale, *values) = loop.close([scale, *following])
            first, others = values[:vectors], values[vectors:]
            while others:
                first = [builder.fadd(a, b) for a, b in zip(first, others, strict=False)]
                others = others[vectors:]
            rest = _Loop(builder, done, count_, 1, [scale, *first])
            scale, *values = rest.values
            _, (_, *values) = rest.close([builder.gep(scale, [step_]), *term(scale, rest.index, values)])
            for value, part in zip(values, parts(sums_), strict=True):
                builder.store(value, part, align=1)

        return types.void(types.intp, scales, types.intp, places, source, sums), codegen

    return add


def _of_width(vectors, others):
    """``add(n, ...)``: that of n vectors, which are this many, or others."""
    this = picked_rows(vectors)

    @always_inline
    def add(n, count, scales, step, places, source, sums):
        if n == vectors:
            this(count, scales, step, places, source, sums)
        else:
            others(n, count, scales, step, places, source, sums)

    return add


@always_inline
def _none(n, count, scales, step, places, source, sums):
    pass


# add_rows(n, count, scales, step, places, source, sums): picked_rows(n), for any n up to MOST_VECTORS
add_rows = functools.reduce(lambda others, vectors: _of_width(vectors, others), range(MOST_VECTORS, 0, -1), _none)


# ------------------------------------------------------------------------------------------------ rows from memory
STREAM_VECTORS = 16 if features.registers() >= 32 else 8  # of a row: its sums stay in registers
# Rows that are asked for before they are read, in each of two streams. On a Zen 5, 3136 rows of 1 KB from L3, a quarter of them left out,
# all of 1024 columns: 89 us; 92 in one stream, 96 for rows of half the size; with three rows ahead 92.
STREAM_AHEAD = 2


@functools.cache
def streamed_rows(vectors: int):
    """``add(half, scales, places, source)``: the sum over i < 2 * half of scales[i] times the row at source[places[i]].

    A row is ``vectors`` vectors. The first half of the list and the second flow side by side. places has STREAM_AHEAD entries more, of
    rows that may be asked for.
    """

    @intrinsic
    def add(typingctx, half, scales, places, source):
        vector = vector_of(source.dtype)

        def codegen(context, builder, signature, args):
            half_, scales_, places_, source_ = args
            vt, byte = llvm_type(context, vector), ir.IntType(8).as_pointer()

            def row(index):
                return builder.gep(source_, [builder.load(builder.gep(places_, [index]))])

            loop = _Loop(builder, INTP(0), half_, 1, [ir.Constant(vt, None)] * vectors)
            values = loop.values
            indices = [loop.index, builder.add(loop.index, half_)]
            rows, asked = [row(i) for i in indices], [row(builder.add(i, INTP(STREAM_AHEAD))) for i in indices]
            factors = [_splat_value(builder, vt, builder.load(builder.gep(scales_, [i]), align=1)) for i in indices]
            following = []
            for j in range(vectors):
                value = values[j]
                for here, later, factor in zip(rows, asked, factors, strict=True):
                    if j % LINE_VECTORS == 0:
                        ask_for_line(builder, builder.bitcast(builder.gep(later, [INTP(j * vector.lanes)]), byte))
                    read = builder.load(_vector_pointer(builder, here, INTP(j * vector.lanes), vt), align=1)
                    value = _fma(builder, vector, factor, read, value)
                following.append(value)
            _, values = loop.close(following)
            return cgutils.pack_array(builder, values)

        return types.UniTuple(vector, vectors)(types.intp, scales, places, source), codegen

    return add
