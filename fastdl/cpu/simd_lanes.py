"""Functions across and beyond lanes of cpu/simd.py: sums, conversions, bits, tiles. Read simd.py first."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd_core import (
    INTP,
    Vector,
    _first_lanes,
    _splat_value,
    _vector_pointer,
    llvm_type,
    masked_load,
    masked_store,
    vector_of,
)


# ------------------------------------------------------------------------------------------------ across lanes
def _reduction(llvm_name, with_start):
    @intrinsic
    def function(typingctx, v):
        def codegen(context, builder, signature, args):
            scalar = args[0].type.element
            width = v.lanes
            value = args[0]
            # halves onto halves: the order is the same at every call, and there are log2(lanes) steps
            while width > 1:
                width //= 2
                vt = value.type
                index = ir.VectorType(ir.IntType(32), width)
                low = builder.shuffle_vector(value, ir.Constant(vt, ir.Undefined), ir.Constant(index, list(range(width))))
                high = builder.shuffle_vector(value, ir.Constant(vt, ir.Undefined), ir.Constant(index, list(range(width, 2 * width))))
                if llvm_name == "add":
                    value = builder.fadd(low, high) if not isinstance(scalar, ir.IntType) else builder.add(low, high)
                else:
                    keep = builder.fcmp_unordered(">", low, high)  # a NaN in low wins; one in high must win too
                    nan = builder.fcmp_unordered("uno", high, high)
                    value = builder.select(nan, high, builder.select(keep, low, high))
            return builder.extract_element(value, ir.IntType(32)(0))

        return v.scalar(v), codegen

    return function


hsum = _reduction("add", True)
hsum.__doc__ = "The sum of the lanes, halves onto halves: a fixed order."
hmax = _reduction("max", False)
hmax.__doc__ = "The largest lane; NaN where there is one."


@intrinsic
def first_lanes(typingctx, p, n):
    """The mask of the first n lanes of a vector of p's element type."""
    vector = vector_of(p.dtype)

    def codegen(context, builder, signature, args):
        return _first_lanes(builder, vector.lanes, args[1])

    return Vector(types.boolean, vector.lanes)(p, types.intp), codegen


@intrinsic
def any_lane(typingctx, mask):
    """Whether any lane of a mask is true."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.lanes))
        return builder.icmp_unsigned("!=", bits, bits.type(0))

    return types.boolean(mask), codegen


# ------------------------------------------------------------------------------------------------ conversions and bits
def _integer_vector(v):
    return Vector(types.Integer(f"int{v.scalar.bitwidth}"), v.lanes)


def _float_vector(n):
    return Vector(types.Float(f"float{n.scalar.bitwidth}"), n.lanes)


def _conversion(operation, result_of, doc):
    @intrinsic
    def function(typingctx, v):
        result = result_of(v)

        def codegen(context, builder, signature, args):
            return getattr(builder, operation)(args[0], llvm_type(context, result))

        return result(v), codegen

    function.__doc__ = doc
    return function


to_integer = _conversion("fptosi", _integer_vector, "Each lane truncated to an integer of the same width.")
to_float = _conversion("sitofp", _float_vector, "Each integer lane as a float of the same width.")
bits = _conversion("bitcast", _integer_vector, "The lanes' bits as integers.")
from_bits = _conversion("bitcast", _float_vector, "Integers as the floats with those bits.")


def _shift(operation, doc):
    @intrinsic
    def function(typingctx, n, count):
        def codegen(context, builder, signature, args):
            amount = context.cast(builder, args[1], signature.args[1], n.scalar)
            return getattr(builder, operation)(args[0], _splat_value(builder, args[0].type, amount))

        return n(n, count), codegen

    function.__doc__ = doc
    return function


shift_left = _shift("shl", "n << count in each integer lane.")
shift_right = _shift("ashr", "n >> count in each integer lane, the sign kept.")


@intrinsic
def power_of_two(typingctx, n):
    """2.0 ** n for a vector of integers in the exponent's normal range, by building the float's bits."""
    width = n.scalar.bitwidth
    mantissa, bias = (23, 127) if width == 32 else (52, 1023)
    result = _float_vector(n)

    def codegen(context, builder, signature, args):
        vt = args[0].type
        biased = builder.add(args[0], ir.Constant(vt, [bias] * n.lanes))
        return builder.bitcast(builder.shl(biased, ir.Constant(vt, [mantissa] * n.lanes)), llvm_type(context, result))

    return result(n), codegen


# bfloat16 is the upper half of a float32: memory holds it, registers compute in float32. p is a pointer to 16-bit integers.
@intrinsic
def load_bf16(typingctx, p, i):
    """p[i : i + lanes] of bfloat16, as float32 vectors: exact."""
    result = vector_of(types.float32)

    def codegen(context, builder, signature, args):
        half = ir.VectorType(ir.IntType(16), result.lanes)
        wide = ir.VectorType(ir.IntType(32), result.lanes)
        halves = builder.load(_vector_pointer(builder, args[0], args[1], half), align=1)
        shifted = builder.shl(builder.zext(halves, wide), ir.Constant(wide, [16] * result.lanes))
        return builder.bitcast(shifted, llvm_type(context, result))

    return result(p, types.intp), codegen


@intrinsic
def store_bf16(typingctx, p, i, v):
    """p[i : i + lanes] = v rounded to bfloat16, ties to even; LLVM uses the machine's instruction where it has one."""

    def codegen(context, builder, signature, args):
        wide = ir.VectorType(ir.IntType(32), v.lanes)
        half = ir.VectorType(ir.IntType(16), v.lanes)

        def constant(value):
            return ir.Constant(wide, [value] * v.lanes)

        raw = builder.bitcast(args[2], wide)
        odd = builder.and_(builder.lshr(raw, constant(16)), constant(1))
        rounded = builder.lshr(builder.add(raw, builder.add(odd, constant(0x7FFF))), constant(16))
        quiet = builder.or_(builder.lshr(raw, constant(16)), constant(0x40))  # rounding must not turn a NaN into infinity
        nan = builder.fcmp_unordered("uno", args[2], args[2])
        builder.store(builder.trunc(builder.select(nan, quiet, rounded), half), _vector_pointer(builder, args[0], args[1], half), align=1)

    return types.void(p, types.intp, v), codegen


# ------------------------------------------------------------------------------------------------ tiles
@intrinsic
def load_rows(typingctx, p, i, step):
    """A tuple of ``lanes`` vectors: the square tile whose rows start at p[i], p[i + step], p[i + 2 step], ..."""
    vector = vector_of(p.dtype)

    def codegen(context, builder, signature, args):
        vt, index, rows = llvm_type(context, vector), args[1], []
        for _ in range(vector.lanes):
            rows.append(builder.load(_vector_pointer(builder, args[0], index, vt), align=1))
            index = builder.add(index, args[2])
        return cgutils.pack_array(builder, rows)

    return types.UniTuple(vector, vector.lanes)(p, types.intp, types.intp), codegen


@intrinsic
def transpose(typingctx, rows):
    """The transpose of a square tile: each pass swaps one bit of the row number with that bit of the lane number."""
    lanes_ = rows.dtype.lanes

    def codegen(context, builder, signature, args):
        values = [builder.extract_value(args[0], i) for i in range(lanes_)]
        index = ir.VectorType(ir.IntType(32), lanes_)
        bit = 1
        while bit < lanes_:
            low_mask = ir.Constant(index, [lane if not lane & bit else lanes_ + (lane ^ bit) for lane in range(lanes_)])
            high_mask = ir.Constant(index, [lane ^ bit if not lane & bit else lanes_ + lane for lane in range(lanes_)])
            for i in range(lanes_):
                if not i & bit:
                    a, b = values[i], values[i | bit]
                    values[i] = builder.shuffle_vector(a, b, low_mask)
                    values[i | bit] = builder.shuffle_vector(a, b, high_mask)
            bit *= 2
        return cgutils.pack_array(builder, values)

    return rows(rows), codegen


@intrinsic
def store_rows(typingctx, p, i, step, rows):
    """Write a tuple of vectors to p[i], p[i + step], p[i + 2 step], ..."""

    def codegen(context, builder, signature, args):
        index = args[1]
        for lane in range(len(rows)):
            value = builder.extract_value(args[3], lane)
            builder.store(value, _vector_pointer(builder, args[0], index, value.type), align=1)
            index = builder.add(index, args[2])

    return types.void(p, types.intp, types.intp, rows), codegen


def _row_masks(builder, lanes_, count, rows, n):
    """For each of ``count`` rows: the mask of its first n lanes, empty from row ``rows`` on."""
    return [_first_lanes(builder, lanes_, builder.select(builder.icmp_signed("<", INTP(r), rows), n, INTP(0))) for r in range(count)]


@intrinsic
def load_rows_n(typingctx, p, i, step, rows, n):
    """As load_rows, but only the first ``rows`` rows and n columns are read; the others are zero."""
    vector = vector_of(p.dtype)

    def codegen(context, builder, signature, args):
        p_, index, step_, rows_, n_ = args
        vt, out = llvm_type(context, vector), []
        for mask in _row_masks(builder, vector.lanes, vector.lanes, rows_, n_):
            out.append(masked_load(builder, vector, _vector_pointer(builder, p_, index, vt), mask))
            index = builder.add(index, step_)
        return cgutils.pack_array(builder, out)

    return types.UniTuple(vector, vector.lanes)(p, types.intp, types.intp, types.intp, types.intp), codegen


@intrinsic
def store_rows_n(typingctx, p, i, step, values, rows, n):
    """As store_rows, but only the first ``rows`` rows and n columns are written."""
    vector = values.dtype

    def codegen(context, builder, signature, args):
        p_, index, step_, values_, rows_, n_ = args
        for r, mask in enumerate(_row_masks(builder, vector.lanes, len(values), rows_, n_)):
            value = builder.extract_value(values_, r)
            masked_store(builder, vector, _vector_pointer(builder, p_, index, value.type), value, mask)
            index = builder.add(index, step_)

    return types.void(p, types.intp, types.intp, values, types.intp, types.intp), codegen
