"""Register tiles as in microkernel.py for operands that are both contiguous along k: vectors of partial dot products, added up at the
end."""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .microkernel import LINE_VECTORS, _fma, _Loop
from .simd_core import INTP, _first_lanes, _vector_pointer, ask_for_line, llvm_type, masked_load, vector_of


@functools.cache
def dot_tile(rows: int, columns: int, *, indirect: bool = False, unroll: int = 1, ahead: int = 0):
    """``dot(k, a, a_row, b, b_row)``: the dot products of rows of a with rows of b, both contiguous along k.

    Returns rows * columns scalars, row by row. Where ``indirect``, b_row is a pointer to the offsets of b's rows. ``unroll``
    steps of k have sums of their own, added up at the end. Where ``ahead``, each cache line of b's rows is asked for so many
    bytes before it is read.
    """

    @intrinsic
    def dot(typingctx, k, a, a_row, b, b_row):
        vector = vector_of(b.dtype)
        count = rows * columns

        def codegen(context, builder, signature, args):
            k_, a_, a_row_, b_, b_row_ = args
            vt, lanes = llvm_type(context, vector), vector.lanes

            def pointers(first, step, n):
                found = [first]
                for _ in range(n - 1):
                    found.append(builder.gep(found[-1], [step]))
                return found

            a_rows = pointers(a_, a_row_, rows)
            if indirect:
                b_rows = [builder.gep(b_, [builder.load(builder.gep(b_row_, [INTP(j)]))]) for j in range(columns)]
            else:
                b_rows = pointers(b_, b_row_, columns)

            def accumulate(values, fetch):
                left, right = [fetch(p) for p in a_rows], [fetch(p) for p in b_rows]
                return [_fma(builder, vector, left[i], right[j], values[i * columns + j]) for i in range(rows) for j in range(columns)]

            def run(start, times, values):
                """Steps of ``times`` vectors of k, each with sums of its own."""
                loop, new = _Loop(builder, start, k_, times * lanes, values), []
                for t in range(times):
                    index = builder.add(loop.index, INTP(t * lanes))
                    if ahead and t % LINE_VECTORS == 0:
                        for p in b_rows:
                            line = builder.bitcast(builder.gep(p, [index]), ir.IntType(8).as_pointer())
                            ask_for_line(builder, builder.gep(line, [INTP(ahead)]))
                    new += accumulate(loop.values[t * count : (t + 1) * count],
                                      lambda p, at=index: builder.load(_vector_pointer(builder, p, at, vt), align=1))
                return loop.close(new + loop.values[times * count :])

            index, values = INTP(0), [ir.Constant(vt, None)] * (count * unroll)
            for times in {unroll: 0, 1: 0}:
                index, values = run(index, times, values)
            mask = _first_lanes(builder, lanes, builder.sub(k_, index))

            def fetch_rest(p):
                return masked_load(builder, vector, _vector_pointer(builder, p, index, vt), mask)

            before = builder.block
            rest = builder.append_basic_block("rest")
            done = builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed("<", index, k_), rest, done)
            builder.position_at_end(rest)
            rested = accumulate(values[:count], fetch_rest)
            rest_end = builder.block
            builder.branch(done)
            builder.position_at_end(done)
            sums = []
            for value, other in zip(values[:count], rested, strict=True):
                phi = builder.phi(vt)
                phi.add_incoming(value, before)
                phi.add_incoming(other, rest_end)
                sums.append(phi)
            for t in range(1, unroll):
                sums = [builder.fadd(one, other) for one, other in zip(sums, values[t * count : (t + 1) * count], strict=True)]
            groups = [sums[i : i + lanes] for i in range(0, count, lanes)]
            return cgutils.pack_array(builder, [one for group in groups for one in _sums_of_lanes(builder, group, lanes)])

        row_type = types.CPointer(types.int64) if indirect else types.intp
        return types.UniTuple(vector.scalar, count)(types.intp, a, types.intp, b, row_type), codegen

    return dot


def _sums_of_lanes(builder, values, lanes):
    """The sum of each vector's lanes, halves onto halves, as simd.hsum; of ``lanes`` vectors at most.

    Two vectors' halves make one vector, so that a step is a third of the instructions that it takes for each alone.
    """
    number, count, width = ir.IntType(32), len(values), lanes  # width: of the partial sums of one of them, side by side
    while width > 1:
        half, size = width // 2, values[0].type.count
        pairs = [(a, b) for a, b in zip(values[::2], values[1::2] + values[-1:], strict=False)] if len(values) > 1 else [(values[0], None)]
        places = [i for i in range(size if pairs[0][1] is None else 2 * size) if i % width < half]
        index, following = ir.VectorType(number, len(places)), []
        for a, b in pairs:
            b = ir.Constant(a.type, ir.Undefined) if b is None else b
            low = builder.shuffle_vector(a, b, ir.Constant(index, places))
            high = builder.shuffle_vector(a, b, ir.Constant(index, [i + half for i in places]))
            following.append(builder.fadd(low, high))
        values, width = following, half
    return [builder.extract_element(values[0], number(i)) for i in range(count)]


@intrinsic(prefer_literal=True)
def store_scalars(typingctx, values, c, c_row, c_step, columns, add):
    """Write rows of ``columns`` (a literal) scalars to c[i * c_row + j * c_step], added to what is there if add."""
    width = columns.literal_value
    height = len(values) // width

    def codegen(context, builder, signature, args):
        values_, c_, c_row_, c_step_, _, add_ = args
        for i in range(height):
            for j in range(width):
                place = builder.gep(c_, [builder.add(builder.mul(INTP(i), c_row_), builder.mul(INTP(j), c_step_))])
                value = builder.extract_value(values_, i * width + j)
                # a select, not a branch: what is read where nothing is added does not matter, so zero must not be added to it
                old = builder.load(place, align=1)
                builder.store(builder.select(add_, builder.fadd(old, value), value), place, align=1)

    return types.void(values, c, types.intp, types.intp, columns, types.boolean), codegen
