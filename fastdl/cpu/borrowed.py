"""How kernels receive arrays, as they lie in numpy's object, without counting references; how they answer a new one.

Numba's own way asks numpy for a description of the array, allocates a record to count references to its memory, and gives
it back at the end: more time than a small kernel takes. An entry point's arguments outlive its call, so here the wrapper
reads data, shape and strides out of the array object. What it finds is compared with the signature first.

A kernel that serves only the plain case, for an operator whose checks in Python take longer than its work, is *offered* its
arguments: what does not fit its signature is :func:`absent`, and :func:`nothing` (None) the answer that sends the caller
the usual way.

The layout of numpy's array and dtype objects is part of its C API (numpy/ndarraytypes.h: PyArrayObject_fields,
PyArray_Descr) and the same in numpy 1 and 2, behind the two words that CPython's objects begin with (not those of its
free-threaded build, for which Numba has no release).
"""

from __future__ import annotations

import ctypes

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import NativeValue, box, intrinsic, unbox
from numba.np import arrayobj, numpy_support

# words of PyArrayObject_fields, and bytes of PyArray_Descr, on a 64-bit machine
_TYPE, _DATA, _RANK, _SHAPE, _STRIDES, _DESCRIPTION, _FLAGS = 1, 2, 3, 4, 5, 7, 8
_IN_C_ORDER, _WRITEABLE = 0x0001, 0x0400
_BYTE_ORDER, _TYPE_NUMBER = 26, 28

_MOST_RANK = 64  # of an array

_NDARRAY, _NEW = "fastdl_ndarray_type", "fastdl_ndarray_new"
llvmlite.binding.add_symbol(_NDARRAY, id(np.ndarray))


def _of_numpy_c_api(index):
    """The address of a function of numpy's C API, by its place in the table that numpy exports (multiarray_api.py)."""
    module = getattr(np, "_core", None) or np.core
    unwrap = ctypes.pythonapi.PyCapsule_GetPointer
    unwrap.restype, unwrap.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.c_void_p.from_address(unwrap(module.multiarray._ARRAY_API, None) + 8 * index).value


llvmlite.binding.add_symbol(_NEW, _of_numpy_c_api(93))  # PyArray_New


class Borrowed(types.Array):
    """An array that a caller of compiled code holds on to until the call is over."""

    how = "borrowed"

    def __init__(self, dtype, ndim, readonly, flat=False):
        self.flat = flat  # of any rank, its elements side by side in C order; kernels see one dimension
        name = f"{self.how}({dtype}, {'flat' if flat else f'{ndim}d'}{', readonly' * readonly})"
        super().__init__(dtype, ndim, "A", readonly=readonly, aligned=False, name=name)

    @property
    def key(self):
        return (*super().key, self.flat)


class Offered(Borrowed):
    """One that may not be what its signature says, or no array at all: it is absent then."""

    how = "offered"


register_default(Borrowed)(models.ArrayModel)
register_default(Offered)(models.ArrayModel)


def _symbol(builder, name):
    try:
        return builder.module.get_global(name)
    except KeyError:
        return ir.GlobalVariable(builder.module, ir.IntType(8), name)


@unbox(Offered)
@unbox(Borrowed)
def _unbox(typ, obj, c):
    builder, context = c.builder, c.context
    word = ir.IntType(64)
    words = builder.bitcast(obj, word.as_pointer())

    def field(index, base=words):
        return builder.load(builder.gep(base, [word(index)]))

    array = context.make_array(typ)(context, builder)
    is_array = builder.icmp_unsigned("==", field(_TYPE), builder.ptrtoint(_symbol(builder, _NDARRAY), word))
    fits_slot = cgutils.alloca_once_value(builder, ir.IntType(1)(0))
    with builder.if_then(is_array, likely=True):
        rank = builder.trunc(field(_RANK), ir.IntType(32))
        number_at = builder.add(field(_DESCRIPTION), word(_TYPE_NUMBER))
        number = builder.load(builder.inttoptr(number_at, ir.IntType(32).as_pointer()))
        wanted, itemsize = numpy_support.as_dtype(typ.dtype).num, typ.dtype.bitwidth // 8
        fits = builder.icmp_signed("==", number, ir.IntType(32)(wanted))
        if not typ.flat:
            fits = builder.and_(fits, builder.icmp_signed("==", rank, ir.IntType(32)(typ.ndim)))
        if isinstance(typ, Offered):  # elsewhere the checks of the operator have seen it
            order = builder.load(builder.inttoptr(builder.add(field(_DESCRIPTION), word(_BYTE_ORDER)), ir.IntType(8).as_pointer()))
            fits = builder.and_(fits, builder.icmp_signed("==", order, ir.IntType(8)(ord("="))))
        needed = _IN_C_ORDER * typ.flat | _WRITEABLE * typ.mutable
        if needed:
            flags = builder.and_(builder.trunc(field(_FLAGS), ir.IntType(32)), ir.IntType(32)(needed))
            fits = builder.and_(fits, builder.icmp_signed("==", flags, ir.IntType(32)(needed)))
        with builder.if_then(fits, likely=True):
            sizes, steps = (builder.inttoptr(field(f), word.as_pointer()) for f in (_SHAPE, _STRIDES))
            if typ.flat:
                count = cgutils.alloca_once_value(builder, word(1))
                with cgutils.for_range(builder, builder.zext(rank, word)) as loop:
                    builder.store(builder.mul(builder.load(count), builder.load(builder.gep(sizes, [loop.index]))), count)
                shape, strides = [builder.load(count)], [word(itemsize)]
                builder.store(ir.IntType(1)(1), fits_slot)
            else:
                shape, strides, odd = [field(d, sizes) for d in range(typ.ndim)], [field(d, steps) for d in range(typ.ndim)], word(0)
                for step in strides:
                    odd = builder.or_(odd, step)
                odd = builder.and_(odd, word(itemsize - 1))
                builder.store(builder.icmp_signed("==", odd, word(0)), fits_slot)
            arrayobj.populate_array(
                array, data=builder.inttoptr(field(_DATA), array.data.type), shape=shape, strides=strides, itemsize=word(itemsize),
                meminfo=None, parent=obj,
            )
    fits = builder.load(fits_slot)
    if isinstance(typ, Offered):
        given, none = array._getvalue(), ir.Constant(context.get_value_type(typ), None)
        return NativeValue(builder.select(fits, given, none))
    with builder.if_then(builder.not_(fits), likely=False):
        rank = "elements side by side" if typ.flat else f"{typ.ndim} dimensions, whole elements apart"
        wanted = f"{rank}, {typ.dtype}{', writeable' * typ.mutable}"
        c.pyapi.err_set_string("PyExc_TypeError", f"a kernel's argument is not the array that it takes: {wanted}")
    return NativeValue(array._getvalue(), is_error=builder.not_(fits))


@intrinsic
def absent(typingctx, array):
    """Whether an offered array is not what the signature says."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return cgutils.is_null(builder, data)

    return types.boolean(array), codegen


# ------------------------------------------------------------------------------------------------ answers
class Created(types.Type):
    """A new array, or none: a kernel's answer."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(f"created({dtype})")


@register_default(Created)
class _CreatedModel(models.OpaqueModel):
    pass


@intrinsic
def create(typingctx, like, rows, columns):
    """A new array of ``like``'s dtype, its elements not set; none where memory is out. For kernels that hold Python's lock."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        sizes = cgutils.alloca_once(builder, word, 2)
        for d in range(2):
            builder.store(args[1 + d], builder.gep(sizes, [word(d)]))
        return _new(builder, like.dtype, ir.IntType(32)(2), sizes)

    return Created(like.dtype)(like, types.intp, types.intp), codegen


@intrinsic
def create_like(typingctx, like, wide, columns):
    """As ``create``, of the offered array ``like``'s shape and ``wide``'s dtype; behind it a dimension of so many columns, unless -1."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        words = builder.bitcast(context.make_array(signature.args[0])(context, builder, args[0]).parent, word.as_pointer())
        rank = builder.and_(builder.load(builder.gep(words, [word(_RANK)])), word(0xFFFFFFFF))
        given = builder.inttoptr(builder.load(builder.gep(words, [word(_SHAPE)])), word.as_pointer())
        sizes = cgutils.alloca_once(builder, word, _MOST_RANK + 1)
        with cgutils.for_range(builder, rank) as loop:
            builder.store(builder.load(builder.gep(given, [loop.index])), builder.gep(sizes, [loop.index]))
        more = builder.icmp_signed(">=", args[2], word(0))
        builder.store(args[2], builder.gep(sizes, [rank]))
        rank = builder.add(rank, builder.zext(more, word))
        return _new(builder, wide.dtype, builder.trunc(rank, ir.IntType(32)), sizes)

    return Created(wide.dtype)(like, wide, types.intp), codegen


def _new(builder, dtype, rank, sizes):
    """A call of PyArray_New."""
    number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(pointer, [pointer, number, sizes.type, number, pointer, pointer, number, number, pointer])
    new, none = cgutils.get_or_insert_function(builder.module, kind, _NEW), pointer(None)
    which = number(numpy_support.as_dtype(dtype).num)
    return builder.call(new, [_symbol(builder, _NDARRAY), rank, sizes, which, none, none, number(0), number(0), none])


@intrinsic
def nothing(typingctx, like):
    """The answer None, where an array of ``like``'s dtype is another."""

    def codegen(context, builder, signature, args):
        return context.get_constant_null(signature.return_type)

    return Created(like.dtype)(like), codegen


@intrinsic
def contents(typingctx, created):
    """The address of a new array's first element; a null pointer where there is no array."""
    result = types.CPointer(created.dtype)

    def codegen(context, builder, signature, args):
        data_type = context.get_value_type(result)
        with builder.if_else(cgutils.is_not_null(builder, args[0])) as (there, not_there):
            with there:
                words = builder.bitcast(args[0], data_type.as_pointer())
                found, from_there = builder.load(builder.gep(words, [ir.IntType(64)(_DATA)])), builder.block
            with not_there:
                from_not_there = builder.block
        data = builder.phi(data_type)
        data.add_incoming(found, from_there)
        data.add_incoming(data_type(None), from_not_there)
        return data

    return result(created), codegen


@box(Created)
def _box(typ, value, c):
    answer = cgutils.alloca_once_value(c.builder, value)
    is_error = cgutils.is_not_null(c.builder, c.pyapi.err_occurred())
    with c.builder.if_then(c.builder.and_(cgutils.is_null(c.builder, value), c.builder.not_(is_error))):
        c.builder.store(c.pyapi.make_none(), answer)
    return c.builder.load(answer)
