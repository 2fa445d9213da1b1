"""Register tiles of a matrix product, as parameterised intrinsics.

A tile of ``rows`` x ``vectors`` SIMD registers accumulates over k without touching memory but to read: each step loads
``vectors`` vectors of b, repeats ``rows`` numbers of a, and does rows * vectors fused multiply-adds. The accumulators are
LLVM values from the first step to the last, so nothing can spill that fits the registers (a test reads the assembly).

``outer_tile(rows, vectors)`` takes b with contiguous rows (sums of outer products); dot_tiles.py has those for both operands
contiguous along k. Van Zee and van de Geijn, "BLIS", ACM TOMS 41 (2015), give the method.
"""

from __future__ import annotations

import functools
import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from . import features
from .simd_core import (
    INTP,
    _first_lanes,
    _function,
    _mangled,
    _splat_value,
    _vector_pointer,
    ask_for_line,
    llvm_type,
    masked_load,
    masked_store,
    store_first,
    vector_of,
)

# The tile that fills the registers: 16 registers hold 6 x 2 accumulators, 2 vectors of b and one of a; 32 hold 12 x 2.
TILE_ROWS, TILE_VECTORS = (12, 2) if features.registers() >= 32 else (6, 2)
UNROLL = 4  # steps of k
LINE_VECTORS = 512 // features.vector_bits()  # of a cache line


@register_jitable
def asked(k, lanes):
    """How many elements a tile of k steps asks for ahead: a cache line with every UNROLL of them."""
    return k // UNROLL * (LINE_VECTORS * lanes)


class _Loop:
    """``for index in range(0, count, step)`` in LLVM IR with loop-carried values."""

    def __init__(self, builder, start, end, step, carried):
        self.builder, self.step = builder, step
        self.header = builder.append_basic_block("loop")
        self.body = builder.append_basic_block("body")
        self.after = builder.append_basic_block("after")
        entry = builder.block
        builder.branch(self.header)
        builder.position_at_end(self.header)
        self.index = builder.phi(INTP)
        self.index.add_incoming(start, entry)
        self.values = []
        for value in carried:
            phi = builder.phi(value.type)
            phi.add_incoming(value, entry)
            self.values.append(phi)
        more = builder.icmp_signed("<=", builder.add(self.index, INTP(step)), end)
        builder.cbranch(more, self.body, self.after)
        builder.position_at_end(self.body)

    def close(self, new_values):
        following = self.builder.add(self.index, INTP(self.step))
        self.index.add_incoming(following, self.builder.block)
        for phi, value in zip(self.values, new_values, strict=True):
            phi.add_incoming(value, self.builder.block)
        self.builder.branch(self.header)
        self.builder.position_at_end(self.after)
        return self.index, self.values


# what LLVM's inline assembly calls a vector register, on the machines that have one for a whole vector
_REGISTER = {"x86_64": "v", "amd64": "v", "aarch64": "w", "arm64": "w"}.get(platform.machine().lower())
if features.vector_bits() > features.register_bits():
    _REGISTER = None


def _in_order(builder, sums, row, rows, vectors):
    """``sums``, those of a step's rows 0..row, the last few of them computed by here, and no load moves across: now and then.

    LLVM's scheduler brings loads forward or puts products off until the accumulators no longer fit the registers, and then spills
    (in a large function, not in a small one: 97 moves to and from the stack beside 96 multiply-adds were seen). So between rows it is
    told to keep to the order, by assembly without an instruction, as often as the registers left over need it.
    """
    spare = features.registers() - (rows + 1) * vectors
    every = max(1, min(4, spare // 2 * 2))
    if _REGISTER is None or spare < 1 or ((row + 1) % every and row + 1 < rows):
        return sums
    first = row // every * every * vectors
    last = sums[first:]
    types_ = [value.type for value in last]
    constraints = [f"={_REGISTER}"] * len(last) + [str(i) for i in range(len(last))] + ["~{memory}"]
    result = ir.LiteralStructType(types_) if len(last) > 1 else types_[0]
    out = builder.asm(ir.FunctionType(result, types_), "", ",".join(constraints), last, True)
    return sums[:first] + ([out] if len(last) == 1 else [builder.extract_value(out, i) for i in range(len(last))])


def _fma(builder, vector, a, b, c):
    return builder.call(_function(builder, f"llvm.fma.{_mangled(vector)}", a.type, [a.type] * 3), [a, b, c])


@functools.cache
def outer_tile(rows: int, vectors: int, *, masked: bool = False, indirect: bool = False, ahead: int = 0, unroll: int = UNROLL):
    """``tile(k, a, a_row, a_step, b, b_step, n)``: the sum over k of a[i * a_row + k * a_step] * b[k * b_step + ...].

    Returns rows * vectors accumulators, row by row. n: where ``masked``, only b's first n columns are read, the others
    count as 0; else it is ignored. Where ``indirect``, b_step is a pointer to k offsets: row k of b starts at
    b[b_step[k]]. Where ``ahead``, n is a pointer from which on so many cache lines are asked for with each ``unroll`` steps:
    what the next tiles will read.
    """

    @intrinsic
    def tile(typingctx, k, a, a_row, a_step, b, b_step, n):
        vector = vector_of(b.dtype)
        count = rows * vectors

        def codegen(context, builder, signature, args):
            k_, a_, a_row_, a_step_, b_, b_step_, n_ = args
            vt = llvm_type(context, vector)
            accumulators = [ir.Constant(vt, None)] * count
            masks = (
                [_first_lanes(builder, vector.lanes, builder.sub(n_, INTP(j * vector.lanes))) for j in range(vectors)] if masked else None
            )
            row_offset = [INTP(0)]
            for _ in range(rows - 1):
                row_offset.append(builder.add(row_offset[-1], a_row_))

            def fetch(b_now, j):
                where = _vector_pointer(builder, b_now, INTP(j * vector.lanes), vt)
                return masked_load(builder, vector, where, masks[j]) if masked else builder.load(where, align=1)

            def step(values, a_now, b_now):
                b_row = builder.gep(b_, [builder.load(b_now)]) if indirect else b_now
                b_vectors = [fetch(b_row, j) for j in range(vectors)]
                out = []
                for i in range(rows):
                    repeated = _splat_value(builder, vt, builder.load(builder.gep(a_now, [row_offset[i]]), align=1))
                    for j in range(vectors):
                        out.append(_fma(builder, vector, repeated, b_vectors[j], values[i * vectors + j]))
                    out = _in_order(builder, out, i, rows, vectors)
                return out

            def run(start, times, values, a_now, b_now):
                asking = ahead and times > 1
                carried = [builder.bitcast(n_, ir.IntType(8).as_pointer())] if asking else []
                loop = _Loop(builder, start, k_, times, [*values, a_now, b_now, *carried])
                values, a_now, b_now = loop.values[:count], loop.values[count], loop.values[count + 1]
                more = []
                if asking:
                    lines = [builder.gep(loop.values[-1], [INTP(64 * line)]) for line in range(ahead + 1)]
                    for line in lines[:-1]:
                        ask_for_line(builder, line)
                    more = lines[-1:]
                for _ in range(times):
                    values = step(values, a_now, b_now)
                    a_now = builder.gep(a_now, [a_step_])
                    b_now = builder.gep(b_now, [INTP(1) if indirect else b_step_])
                index, phis = loop.close([*values, a_now, b_now, *more])
                return index, phis[:count], phis[count], phis[count + 1]

            index, values, a_now, b_now = run(INTP(0), unroll, accumulators, a_, b_step_ if indirect else b_)
            index, values, a_now, b_now = run(index, 1, values, a_now, b_now)
            return cgutils.pack_array(builder, values)

        step_type = types.CPointer(types.int64) if indirect else types.intp
        return types.UniTuple(vector, count)(types.intp, a, types.intp, types.intp, b, step_type, n if ahead else types.intp), codegen

    return tile


@functools.cache
def runs_tile(rows: int, vectors: int, *, unroll: int = UNROLL, unit: bool = False, ahead: bool = False):
    """``tile(runs, count, a, a_rows, a_runs, a_step, b, b_step, next)``: a sum over ``runs`` runs of ``count`` steps each.

    Row i of a starts at a[a_rows[i] + a_runs[run]] in each run and moves on by a_step; b goes on by b_step from first to
    last. So a's rows may lie anywhere (the pixels that a kernel meets), and nothing has to be gathered. Returns rows *
    vectors accumulators, row by row. Where ``ahead``, next is a pointer from which on runs * asked(count) elements are asked for.
    M. Dukhan, "The Indirect Convolution Algorithm", arXiv:1907.02129 (2019).
    """

    @intrinsic
    def tile(typingctx, runs, count, a, a_rows, a_runs, a_step, b, b_step, next):
        vector = vector_of(b.dtype)
        n = rows * vectors

        def codegen(context, builder, signature, args):
            runs_, count_, a_, a_rows_, a_runs_, a_step_, b_, b_step_, next_ = args
            vt = llvm_type(context, vector)
            starts = [builder.load(builder.gep(a_rows_, [INTP(i)])) for i in range(rows)]
            line = [builder.bitcast(next_, ir.IntType(8).as_pointer())] if ahead else []
            outer = _Loop(builder, INTP(0), runs_, 1, [ir.Constant(vt, None)] * n + [b_, *line])
            shift = builder.load(builder.gep(a_runs_, [outer.index]))
            pointers = [builder.gep(a_, [builder.add(start, shift)]) for start in starts]

            def steps(start, times, values, b_now, place, line):
                asking = line if times > 1 else []
                loop = _Loop(builder, start, count_, times, [*values, b_now, place, *asking])
                values, b_now, place, asking = loop.values[:n], loop.values[n], loop.values[n + 1], loop.values[n + 2 :]
                for where in asking:
                    ask_for_line(builder, where)
                for _ in range(times):
                    b_vectors = [builder.load(_vector_pointer(builder, b_now, INTP(j * vector.lanes), vt), align=1) for j in range(vectors)]
                    new = []
                    for i in range(rows):
                        repeated = _splat_value(builder, vt, builder.load(builder.gep(pointers[i], [place]), align=1))
                        for j in range(vectors):
                            new.append(_fma(builder, vector, repeated, b_vectors[j], values[i * vectors + j]))
                        new = _in_order(builder, new, i, rows, vectors)
                    values = new
                    b_now = builder.gep(b_now, [b_step_])
                    place = builder.add(place, INTP(1) if unit else a_step_)
                index, phis = loop.close([*values, b_now, place, *(builder.gep(where, [INTP(64)]) for where in asking)])
                return index, phis[:n], phis[n], phis[n + 1], phis[n + 2 :]

            index, values, b_now, place, line = steps(INTP(0), unroll, outer.values[:n], outer.values[n], INTP(0), outer.values[n + 1 :])
            _, values, b_now, _, _ = steps(index, 1, values, b_now, place, [])
            _, phis = outer.close([*values, b_now, *line])
            return cgutils.pack_array(builder, phis[:n])

        offsets = types.CPointer(types.int64)
        last = next if ahead else types.intp
        return types.UniTuple(vector, n)(types.intp, types.intp, a, offsets, offsets, types.intp, b, types.intp, last), codegen

    return tile


@functools.cache
def window_tile(rows: int, vectors: int):
    """``tile(count, p, pitch, offsets, w)``: sums over t of w[t] * p[offsets[t] + i * pitch + ...], a window slid over a plane.

    Returns rows * vectors accumulators, row by row: ``rows`` rows of positions, each of ``vectors`` vectors side by side.
    """

    @intrinsic
    def tile(typingctx, count, p, pitch, offsets, w):
        vector = vector_of(p.dtype)
        n = rows * vectors

        def codegen(context, builder, signature, args):
            count_, p_, pitch_, offsets_, w_ = args
            vt = llvm_type(context, vector)
            starts = [p_]
            for _ in range(rows - 1):
                starts.append(builder.gep(starts[-1], [pitch_]))
            loop = _Loop(builder, INTP(0), count_, 1, [ir.Constant(vt, None)] * n)
            repeated = _splat_value(builder, vt, builder.load(builder.gep(w_, [loop.index]), align=1))
            shift = builder.load(builder.gep(offsets_, [loop.index]))
            new = []
            for i in range(rows):
                row = builder.gep(starts[i], [shift])
                for j in range(vectors):
                    value = builder.load(_vector_pointer(builder, row, INTP(j * vector.lanes), vt), align=1)
                    new.append(_fma(builder, vector, repeated, value, loop.values[i * vectors + j]))
            _, values = loop.close(new)
            return cgutils.pack_array(builder, values)

        return types.UniTuple(vector, n)(types.intp, p, types.intp, types.CPointer(types.int64), w), codegen

    return tile


@functools.cache
def row_tile(rows: int):
    """``(repeat, add)``: ``repeat(a, step)`` is a tuple of ``rows`` vectors, a[0], a[step], ... each in all lanes; ``add(acc, x,
    b, b_row, j)`` is acc plus the sum over i of x[i] * b[i * b_row + j ...], in the order of i.
    """

    @intrinsic
    def repeat(typingctx, a, step):
        vector = vector_of(a.dtype)

        def codegen(context, builder, signature, args):
            vt, where, out = llvm_type(context, vector), args[0], []
            for _ in range(rows):
                out.append(_splat_value(builder, vt, builder.load(where, align=1)))
                where = builder.gep(where, [args[1]])
            return cgutils.pack_array(builder, out)

        return types.UniTuple(vector, rows)(a, types.intp), codegen

    @intrinsic
    def add(typingctx, acc, x, b, b_row, j):
        def codegen(context, builder, signature, args):
            value, x_, b_, b_row_, j_ = args
            place = j_
            for i in range(rows):
                read = builder.load(_vector_pointer(builder, b_, place, value.type), align=1)
                value = _fma(builder, acc, builder.extract_value(x_, i), read, value)
                place = builder.add(place, b_row_)
            return value

        return acc(acc, x, b, types.intp, types.intp), codegen

    return repeat, add


@functools.cache
def store_tile(rows: int, vectors: int):
    """``store(acc, c, c_row, m, n, add)``: the first m rows and n columns of a tile to c, added to what is there if add."""

    @intrinsic
    def store(typingctx, acc, c, c_row, m, n, add):
        vector = vector_of(c.dtype)

        def codegen(context, builder, signature, args):
            acc_, c_, c_row_, m_, n_, add_ = args
            vt = llvm_type(context, vector)
            lanes = vector.lanes
            values = [builder.extract_value(acc_, i) for i in range(rows * vectors)]
            full = builder.and_(builder.icmp_signed(">=", m_, INTP(rows)), builder.icmp_signed(">=", n_, INTP(vectors * lanes)))
            with builder.if_else(full, likely=True) as (whole, partial):
                with whole:
                    with builder.if_else(add_) as (adding, plain):
                        for branch, accumulate in ((adding, True), (plain, False)):
                            with branch:
                                row = c_
                                for i in range(rows):
                                    for j in range(vectors):
                                        where = _vector_pointer(builder, row, INTP(j * lanes), vt)
                                        value = values[i * vectors + j]
                                        if accumulate:
                                            value = builder.fadd(builder.load(where, align=1), value)
                                        builder.store(value, where, align=1)
                                    row = builder.gep(row, [c_row_])
                with partial:
                    columns = [builder.sub(n_, INTP(j * lanes)) for j in range(vectors)]
                    masks = [_first_lanes(builder, lanes, n) for n in columns]
                    row = c_
                    for i in range(rows):
                        with builder.if_then(builder.icmp_signed("<", INTP(i), m_)):
                            for j in range(vectors):
                                where = _vector_pointer(builder, row, INTP(j * lanes), vt)
                                old = masked_load(
                                    builder, vector, where, builder.and_(masks[j], _splat_value(builder, masks[j].type, add_))
                                )
                                value = values[i * vectors + j]
                                value = builder.select(add_, builder.fadd(old, value), value)
                                with builder.if_then(builder.icmp_signed(">", columns[j], INTP(0))):
                                    store_first(builder, vector, where, value, columns[j])
                        row = builder.gep(row, [c_row_])

        return types.void(acc, c, types.intp, types.intp, types.intp, types.boolean), codegen

    return store


@functools.cache
def finish_tile(rows: int, vectors: int, *, by_column: bool = False):
    """``store(acc, c, c_row, m, n, bias, bias_step, floor)``: c = max(acc + bias, floor), a NaN staying.

    The first m rows and n columns of a tile. Row i has bias[i * bias_step], or where ``by_column`` column j bias[j]; it must be
    there for the whole tile. floor is a number, minus infinity for none.
    """

    @intrinsic
    def store(typingctx, acc, c, c_row, m, n, bias, bias_step, floor):
        vector = vector_of(c.dtype)

        def codegen(context, builder, signature, args):
            acc_, c_, c_row_, m_, n_, bias_, bias_step_, floor_ = args
            vt = llvm_type(context, vector)
            least = _splat_value(builder, vt, context.cast(builder, floor_, signature.args[7], vector.scalar))
            values, place = [], bias_
            columns = []
            if by_column:
                columns = [builder.load(_vector_pointer(builder, bias_, INTP(j * vector.lanes), vt), align=1) for j in range(vectors)]
            for i in range(rows):
                if not by_column:
                    shift = _splat_value(builder, vt, builder.load(place, align=1))
                    place = builder.gep(place, [bias_step_])
                for j in range(vectors):
                    value = builder.fadd(builder.extract_value(acc_, i * vectors + j), columns[j] if by_column else shift)
                    values.append(builder.select(builder.fcmp_ordered("<", value, least), least, value))
            full = builder.and_(builder.icmp_signed(">=", m_, INTP(rows)), builder.icmp_signed(">=", n_, INTP(vectors * vector.lanes)))
            with builder.if_else(full, likely=True) as (whole, partial):
                with whole:
                    row = c_
                    for i in range(rows):
                        for j in range(vectors):
                            builder.store(values[i * vectors + j], _vector_pointer(builder, row, INTP(j * vector.lanes), vt), align=1)
                        row = builder.gep(row, [c_row_])
                with partial:
                    left = [builder.sub(n_, INTP(j * vector.lanes)) for j in range(vectors)]
                    masks = [_first_lanes(builder, vector.lanes, n) for n in left] if features.has_masks() else None
                    row = c_
                    for i in range(rows):
                        with builder.if_then(builder.icmp_signed("<", INTP(i), m_)):
                            for j in range(vectors):
                                where, value = _vector_pointer(builder, row, INTP(j * vector.lanes), vt), values[i * vectors + j]
                                if masks:
                                    masked_store(builder, vector, where, value, masks[j])
                                else:
                                    with builder.if_then(builder.icmp_signed(">", left[j], INTP(0))):
                                        store_first(builder, vector, where, value, left[j])
                        row = builder.gep(row, [c_row_])

        return types.void(acc, c, types.intp, types.intp, types.intp, bias, types.intp, floor), codegen

    return store
