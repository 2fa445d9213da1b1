"""The vector type of cpu/simd.py: pointers, loads and stores. Read simd.py first."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from . import features
from .jit import inline

INTP = ir.IntType(64)


# ------------------------------------------------------------------------------------------------ the types
class Vector(types.Type):
    """``lanes`` elements of a scalar type; elements of type boolean make a mask."""

    def __init__(self, scalar, lanes):
        self.scalar, self.lanes = scalar, lanes
        super().__init__(name=f"vector({scalar} x {lanes})")

    @property
    def is_mask(self):
        return self.scalar == types.boolean


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        element = ir.IntType(1) if fe_type.is_mask else manager.lookup(fe_type.scalar).get_value_type()
        super().__init__(manager, fe_type, ir.VectorType(element, fe_type.lanes))


def vector_of(scalar) -> Vector:
    """The machine's vector of a scalar type."""
    return Vector(scalar, features.vector_bits() // scalar.bitwidth)


def llvm_type(context, vector):
    return context.get_value_type(vector)


def _mangled(vector: Vector) -> str:
    kind = "i" if isinstance(vector.scalar, types.Integer) else "f"
    return f"v{vector.lanes}{kind}{vector.scalar.bitwidth}"


def _function(builder, name, result, arguments):
    """An LLVM intrinsic by its mangled name (llvmlite's declare_intrinsic takes no vectors)."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _splat_value(builder, vector_type, value):
    one = builder.insert_element(ir.Constant(vector_type, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector_type.count), [0] * vector_type.count)
    return builder.shuffle_vector(one, ir.Constant(vector_type, ir.Undefined), mask)


def _first_lanes(builder, lanes, n):
    """The mask of the first n lanes."""
    wide = ir.VectorType(ir.IntType(32), lanes)
    count = builder.trunc(n, ir.IntType(32))
    return builder.icmp_signed("<", ir.Constant(wide, list(range(lanes))), _splat_value(builder, wide, count))


# ------------------------------------------------------------------------------------------------ pointers
@intrinsic
def pointer(typingctx, array):
    """The address of an array's first element; arithmetic through offset()."""
    result = types.CPointer(array.dtype)

    def codegen(context, builder, signature, args):
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return result(array), codegen


@intrinsic
def offset(typingctx, p, i):
    """The pointer to p[i]."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return p(p, types.intp), codegen


@intrinsic
def address(typingctx, p):
    """A pointer as an integer."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], INTP)

    return types.intp(p), codegen


@intrinsic
def at_address(typingctx, p, integer):
    """The integer as a pointer of p's type."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[1], args[0].type)

    return p(p, types.intp), codegen


@intrinsic
def read(typingctx, p, i):
    """The scalar p[i]."""

    def codegen(context, builder, signature, args):
        return builder.load(builder.gep(args[0], [args[1]]), align=1)

    return p.dtype(p, types.intp), codegen


@intrinsic
def write(typingctx, p, i, value):
    """p[i] = value, converted to p's element type."""

    def codegen(context, builder, signature, args):
        converted = context.cast(builder, args[2], signature.args[2], signature.args[0].dtype)
        builder.store(converted, builder.gep(args[0], [args[1]]), align=1)

    return types.void(p, types.intp, value), codegen


@intrinsic
def number(typingctx, p, value):
    """A number converted to p's element type."""

    def codegen(context, builder, signature, args):
        return context.cast(builder, args[1], signature.args[1], p.dtype)

    return p.dtype(p, value), codegen


@intrinsic
def lanes(typingctx, p):
    """How many elements of p's type a vector holds: a constant."""
    count = vector_of(p.dtype).lanes

    def codegen(context, builder, signature, args):
        return ir.Constant(INTP, count)

    return types.intp(p), codegen


def ask_for_line(builder, where):
    """A prefetch into L1, to be read, of the cache line at a pointer to bytes."""
    number = ir.IntType(32)
    fn = _function(builder, "llvm.prefetch.p0", ir.VoidType(), [where.type, number, number, number])
    builder.call(fn, [where, number(0), number(3), number(1)])


@intrinsic
def prefetch(typingctx, p, i):
    """Ask for the cache line of p[i]; no effect on values."""

    def codegen(context, builder, signature, args):
        ask_for_line(builder, builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(8).as_pointer()))

    return types.void(p, types.intp), codegen


# ------------------------------------------------------------------------------------------------ load and store
def _vector_pointer(builder, pointer_value, index, vector_type):
    return builder.bitcast(builder.gep(pointer_value, [index]), vector_type.as_pointer())


@intrinsic
def load(typingctx, p, i):
    """p[i : i + lanes]."""
    vector = vector_of(p.dtype)

    def codegen(context, builder, signature, args):
        return builder.load(_vector_pointer(builder, args[0], args[1], llvm_type(context, vector)), align=1)

    return vector(p, types.intp), codegen


@intrinsic
def load_two(typingctx, p, i):
    """p[i : i + 2 * lanes] as one vector in two registers: what is done to it is done to the two by turns, so that neither waits for its
    own last step."""
    vector = vector_of(p.dtype)
    two = Vector(vector.scalar, 2 * vector.lanes)

    def codegen(context, builder, signature, args):
        return builder.load(_vector_pointer(builder, args[0], args[1], llvm_type(context, two)), align=1)

    return two(p, types.intp), codegen


@intrinsic
def store(typingctx, p, i, v):
    """p[i : i + lanes] = v."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _vector_pointer(builder, args[0], args[1], args[2].type), align=1)

    return types.void(p, types.intp, v), codegen


@intrinsic
def stream(typingctx, p, i, v):
    """p[i : i + lanes] = v past the caches, for what is too large to be found there again; p + i must be a multiple of 16 bytes.

    In pieces of 16 bytes, for numpy's memory is aligned to no more. Other threads see it after an atomic operation of this one.
    """
    part = max(1, 128 // v.scalar.bitwidth)

    def codegen(context, builder, signature, args):
        i32 = ir.IntType(32)
        piece = ir.VectorType(args[2].type.element, part)
        hint = builder.module.add_metadata([i32(1)])
        for first in range(0, v.lanes, part):
            value = builder.shuffle_vector(args[2], args[2], ir.Constant(ir.VectorType(i32, part), list(range(first, first + part))))
            where = _vector_pointer(builder, args[0], builder.add(args[1], INTP(first)), piece)
            builder.store(value, where, align=16).set_metadata("nontemporal", hint)

    return types.void(p, types.intp, v), codegen


def masked_load(builder, vector, where, mask):
    """LLVM for a load of the mask's lanes, zeros elsewhere; for the code generators of this folder."""
    i32, vt = ir.IntType(32), where.type.pointee
    fn = _function(builder, f"llvm.masked.load.{_mangled(vector)}.p0", vt, [where.type, i32, mask.type, vt])
    return builder.call(fn, [where, i32(1), mask, ir.Constant(vt, None)])


def masked_store(builder, vector, where, value, mask):
    """LLVM for a store of the mask's lanes."""
    i32 = ir.IntType(32)
    fn = _function(builder, f"llvm.masked.store.{_mangled(vector)}.p0", ir.VoidType(), [value.type, where.type, i32, mask.type])
    builder.call(fn, [value, where, i32(1), mask])


def store_first(builder, vector, where, value, n):
    """LLVM for a store of the first n lanes.

    In pieces of a half, a quarter, ... where the machine has no mask registers: AVX's masked store takes a dozen cycles on
    AMD's cores, and NEON has none.
    """
    lanes = vector.lanes
    with builder.if_else(builder.icmp_signed(">=", n, INTP(lanes)), likely=True) as (whole, part):
        with whole:
            builder.store(value, where, align=1)
        with part:
            if features.has_masks():
                masked_store(builder, vector, where, value, _first_lanes(builder, lanes, n))
                return
            place = builder.bitcast(where, value.type.element.as_pointer())
            while lanes > 1:
                lanes //= 2
                undefined, index = ir.Constant(value.type, ir.Undefined), ir.VectorType(ir.IntType(32), lanes)
                low = builder.shuffle_vector(value, undefined, ir.Constant(index, list(range(lanes))))
                high = builder.shuffle_vector(value, undefined, ir.Constant(index, list(range(lanes, 2 * lanes))))
                taken = builder.icmp_signed("!=", builder.and_(n, INTP(lanes)), INTP(0))
                with builder.if_then(taken):
                    builder.store(low, builder.bitcast(place, low.type.as_pointer()), align=1)
                value = builder.select(taken, high, low)
                place = builder.gep(place, [builder.select(taken, INTP(lanes), INTP(0))])


@intrinsic
def load_n(typingctx, p, i, n):
    """The first n elements of p[i : i + lanes], zeros after them; nothing beyond them is touched."""
    vector = vector_of(p.dtype)

    def codegen(context, builder, signature, args):
        where = _vector_pointer(builder, args[0], args[1], llvm_type(context, vector))
        return masked_load(builder, vector, where, _first_lanes(builder, vector.lanes, args[2]))

    return vector(p, types.intp, types.intp), codegen


@intrinsic
def store_n(typingctx, p, i, v, n):
    """Write the first n elements of v to p[i : i + n]."""

    def codegen(context, builder, signature, args):
        where = _vector_pointer(builder, args[0], args[1], args[2].type)
        store_first(builder, v, where, args[2], args[3])

    return types.void(p, types.intp, v, types.intp), codegen


@intrinsic
def splat(typingctx, p, value):
    """A number in every lane, of the element type of p (a pointer or a vector)."""
    vector = p if isinstance(p, Vector) else vector_of(p.dtype)

    def codegen(context, builder, signature, args):
        scalar = context.cast(builder, args[1], signature.args[1], vector.scalar)
        return _splat_value(builder, llvm_type(context, vector), scalar)

    return vector(p, value), codegen


@inline
def broadcast(p, i):
    """p[i] in every lane."""
    return splat(p, read(p, i))


@intrinsic
def gather(typingctx, p, i, step):
    """p[i], p[i + step], p[i + 2 step], ...: lane by lane, which is no slower than most machines' gather."""
    vector = vector_of(p.dtype)

    def codegen(context, builder, signature, args):
        value = ir.Constant(llvm_type(context, vector), ir.Undefined)
        index = args[1]
        for lane in range(vector.lanes):
            value = builder.insert_element(value, builder.load(builder.gep(args[0], [index]), align=1), ir.IntType(32)(lane))
            index = builder.add(index, args[2])
        return value

    return vector(p, types.intp, types.intp), codegen


@intrinsic
def load_even(typingctx, p, i):
    """p[i], p[i + 2], p[i + 4], ...: two loads and a shuffle, nothing beyond the last of them is read."""
    vector = vector_of(p.dtype)

    def codegen(context, builder, signature, args):
        vt, n = llvm_type(context, vector), vector.lanes
        low = builder.load(_vector_pointer(builder, args[0], args[1], vt), align=1)
        high = builder.load(_vector_pointer(builder, args[0], builder.add(args[1], INTP(n - 1)), vt), align=1)
        lanes_ = list(range(0, n, 2)) + list(range(n + 1, 2 * n, 2))
        return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(ir.IntType(32), n), lanes_))

    return vector(p, types.intp), codegen


@intrinsic
def gather_n(typingctx, p, i, step, n):
    """As gather, but the lanes from n on repeat the last one before: nothing beyond p[i + (n - 1) * step] is read."""
    vector = vector_of(p.dtype)

    def codegen(context, builder, signature, args):
        p_, index, step_, n_ = args
        value = ir.Constant(llvm_type(context, vector), ir.Undefined)
        for lane in range(vector.lanes):
            value = builder.insert_element(value, builder.load(builder.gep(p_, [index]), align=1), ir.IntType(32)(lane))
            inside = builder.icmp_signed("<", INTP(lane + 1), n_)
            index = builder.add(index, builder.select(inside, step_, INTP(0)))
        return value

    return vector(p, types.intp, types.intp, types.intp), codegen
