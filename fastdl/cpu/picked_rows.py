"""Sums of scaled rows that a list picks, as a parameterised intrinsic: a sparse matrix times a dense one, a row of it at a time."""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import features
from .jit import always_inline
from .microkernel import _fma, _Loop
from .simd_core import INTP, _splat_value, _vector_pointer, llvm_type, vector_of

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
