"""What pooling asks of vectors beyond cpu/simd.py: every other element of a row, and lanes that count window elements."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...cpu.jit import inline
from ...cpu.simd import gather, lanes, load, load_n, store, store_n, vector_of, write
from ...cpu.simd_core import _vector_pointer, llvm_type


def _shuffle(builder, a, b, order):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))


# ------------------------------------------------------------------------------------------------ every other element
@intrinsic
def deinterleave(typingctx, a, b):
    """a and b end to end: the lanes of even number, and those of odd number."""
    n = a.lanes

    def codegen(context, builder, signature, args):
        return cgutils.pack_array(builder, [_shuffle(builder, *args, list(range(first, 2 * n, 2))) for first in (0, 1)])

    return types.UniTuple(a, 2)(a, b), codegen


@intrinsic
def interleave(typingctx, a, b):
    """a[0], b[0], a[1], b[1], ... as two vectors."""
    n = a.lanes
    order = [lane // 2 + n * (lane % 2) for lane in range(2 * n)]

    def codegen(context, builder, signature, args):
        return cgutils.pack_array(builder, [_shuffle(builder, *args, half) for half in (order[:n], order[n:])])

    return types.UniTuple(a, 2)(a, b), codegen


@intrinsic
def shift_in(typingctx, before, v):
    """The last lane of ``before``, then all lanes of v but the last."""
    n = v.lanes

    def codegen(context, builder, signature, args):
        return _shuffle(builder, *args, list(range(n - 1, 2 * n - 1)))

    return v(v, v), codegen


@intrinsic
def load_alternate(typingctx, p, i):
    """p[i], p[i + 2], p[i + 4], ...; nothing after the last of them is read."""
    vector = vector_of(p.dtype)
    n = vector.lanes

    def codegen(context, builder, signature, args):
        vt = llvm_type(context, vector)
        second = builder.add(args[1], args[1].type(n - 1))
        a, b = (builder.load(_vector_pointer(builder, args[0], at, vt), align=1) for at in (args[1], second))
        return _shuffle(builder, a, b, [*range(0, n, 2), *range(n + 1, 2 * n, 2)])

    return vector(p, types.intp), codegen


@inline
def load_strided(p, i, step):
    """p[i], p[i + step], p[i + 2 step], ..."""
    if step == 1:
        return load(p, i)
    if step == 2:
        return load_alternate(p, i)
    return gather(p, i, step)


# ------------------------------------------------------------------------------------------------ the ends of rows
@inline
def load_up_to(p, i, n):
    """A vector from p[i] on, or its first n lanes where that is fewer."""
    return load(p, i) if n >= lanes(p) else load_n(p, i, n)


@inline
def store_up_to(p, i, v, n):
    """The vector to p[i] on, or its first n lanes where that is fewer."""
    if n >= lanes(p):
        store(p, i, v)
    elif n > 0:
        store_n(p, i, v, n)


@intrinsic
def copy(typingctx, target, i, source, j, n):
    """target[i : i + n] = source[j : j + n], which do not overlap."""

    def codegen(context, builder, signature, args):
        size = context.get_abi_sizeof(context.get_value_type(target.dtype))
        to, come = builder.gep(args[0], [args[1]]), builder.gep(args[2], [args[3]])
        cgutils.raw_memcpy(builder, to, come, args[4], size)

    return types.void(target, types.intp, source, types.intp, types.intp), codegen


# ------------------------------------------------------------------------------------------------ integers in lanes
@intrinsic
def lane_numbers(typingctx, v):
    """0, 1, 2, ... as lanes of the integer vector v's type."""

    def codegen(context, builder, signature, args):
        return ir.Constant(args[0].type, list(range(v.lanes)))

    return v(v), codegen


@intrinsic
def load_integers(typingctx, p, i, v):
    """p[i], p[i + 1], ... converted to the integer vector v's type; p points to integers of any width."""

    def codegen(context, builder, signature, args):
        memory = ir.VectorType(ir.IntType(p.dtype.bitwidth), v.lanes)
        value, wanted = builder.load(_vector_pointer(builder, args[0], args[1], memory), align=1), args[2].type
        if p.dtype.bitwidth == v.scalar.bitwidth:
            return value
        if p.dtype.bitwidth > v.scalar.bitwidth:
            return builder.trunc(value, wanted)
        return builder.sext(value, wanted) if p.dtype.signed else builder.zext(value, wanted)

    return v(p, types.intp, v), codegen


@intrinsic
def store_integers(typingctx, p, i, v):
    """The lanes of the integer vector v, converted, to p[i], p[i + 1], ...; p points to integers of any width."""

    def codegen(context, builder, signature, args):
        memory = ir.VectorType(ir.IntType(p.dtype.bitwidth), v.lanes)
        value = args[2]
        if p.dtype.bitwidth < v.scalar.bitwidth:
            value = builder.trunc(value, memory)
        elif p.dtype.bitwidth > v.scalar.bitwidth:
            value = builder.sext(value, memory)
        builder.store(value, _vector_pointer(builder, args[0], args[1], memory), align=1)

    return types.void(p, types.intp, v), codegen


@intrinsic
def _extract(typingctx, v, lane):
    def codegen(context, builder, signature, args):
        return builder.extract_element(args[0], args[1])

    return v.scalar(v, types.intp), codegen


@intrinsic
def largest_integer(typingctx, v):
    """The largest lane of an integer vector."""

    def codegen(context, builder, signature, args):
        value, n = args[0], v.lanes
        while n > 1:
            n //= 2
            low, high = (_shuffle(builder, value, value, list(range(first, first + n))) for first in (0, n))
            value = builder.select(builder.icmp_signed(">", low, high), low, high)
        return builder.extract_element(value, ir.IntType(32)(0))

    return v.scalar(v), codegen


# ------------------------------------------------------------------------------------------------ places of maxima
# Where in its window each maximum stands, as the offset k = (kd * KH + kh) * KW + kw: a byte each (``narrow``) where the
# window has at most 255 elements, else eight (``wide``). After the last of them there is room for a vector.
NOWHERE = -1  # the place of a window without elements; as a byte 255


@inline
def store_places(narrow, wide, is_wide, at, place, n, room):
    """The n lanes of ``place`` to the cells from ``at`` on, or as many as there is room for."""
    if is_wide:
        store_lanes(wide, at, place, n, room)
    else:
        store_lanes(narrow, at, place, n, room)


@inline
def store_lanes(memory, at, place, n, room):
    """The same, to one of the two."""
    if room >= n:
        store_integers(memory, at, place)
    else:
        for lane in range(room):
            write(memory, at + lane, _extract(place, lane))


@inline
def store_place(narrow, wide, is_wide, at, place):
    if is_wide:
        write(wide, at, place)
    else:
        write(narrow, at, place)


@inline
def load_places(narrow, wide, is_wide, at, like):
    """As lanes of the integer vector ``like``'s type; a byte of NOWHERE is 255."""
    return load_integers(wide, at, like) if is_wide else load_integers(narrow, at, like)
