"""How kernels receive arrays: as they lie in numpy's object, without counting references.

Numba's own way asks numpy for a description of the array, allocates a record to count references to its memory, and gives
it back at the end: more time than a small kernel takes. An entry point's arguments outlive its call, so here the wrapper
reads data, shape and strides out of the array object. What it finds is compared with the signature first.

The layout of numpy's array and dtype objects is part of its C API (numpy/ndarraytypes.h: PyArrayObject_fields,
PyArray_Descr) and the same in numpy 1 and 2.
"""

from __future__ import annotations

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import NativeValue, unbox
from numba.np import arrayobj, numpy_support

# words of PyArrayObject_fields, and bytes of PyArray_Descr, on a 64-bit machine
_TYPE, _DATA, _RANK, _SHAPE, _STRIDES, _DESCRIPTION, _FLAGS = 1, 2, 3, 4, 5, 7, 8
_WRITEABLE = 0x0400
_TYPE_NUMBER = 28

_NDARRAY = "fastdl_ndarray_type"
llvmlite.binding.add_symbol(_NDARRAY, id(np.ndarray))


class Borrowed(types.Array):
    """An array that a caller of compiled code holds on to until the call is over."""

    def __init__(self, dtype, ndim, readonly):
        name = f"borrowed({dtype}, {ndim}d{', readonly' * readonly})"
        super().__init__(dtype, ndim, "A", readonly=readonly, aligned=False, name=name)


register_default(Borrowed)(models.ArrayModel)


@unbox(Borrowed)
def _unbox(typ, obj, c):
    builder, context = c.builder, c.context
    word, byte = ir.IntType(64), ir.IntType(8)
    words = builder.bitcast(obj, word.as_pointer())

    def field(index, base=words):
        return builder.load(builder.gep(base, [word(index)]))

    try:
        known = builder.module.get_global(_NDARRAY)
    except KeyError:
        known = ir.GlobalVariable(builder.module, byte, _NDARRAY)
    array = context.make_array(typ)(context, builder)
    is_array = builder.icmp_unsigned("==", field(_TYPE), builder.ptrtoint(known, word))
    fits_slot = cgutils.alloca_once_value(builder, ir.IntType(1)(0))
    with builder.if_then(is_array, likely=True):
        rank = builder.trunc(field(_RANK), ir.IntType(32))
        number_at = builder.add(field(_DESCRIPTION), word(_TYPE_NUMBER))
        number = builder.load(builder.inttoptr(number_at, ir.IntType(32).as_pointer()))
        wanted = numpy_support.as_dtype(typ.dtype).num
        fits = builder.and_(
            builder.icmp_signed("==", rank, ir.IntType(32)(typ.ndim)), builder.icmp_signed("==", number, ir.IntType(32)(wanted))
        )
        if typ.mutable:
            flag = builder.and_(builder.trunc(field(_FLAGS), ir.IntType(32)), ir.IntType(32)(_WRITEABLE))
            fits = builder.and_(fits, builder.icmp_signed("!=", flag, ir.IntType(32)(0)))
        with builder.if_then(fits, likely=True):
            sizes, steps = (builder.inttoptr(field(f), word.as_pointer()) for f in (_SHAPE, _STRIDES))
            odd = word(0)
            for d in range(typ.ndim):
                odd = builder.or_(odd, field(d, steps))
            odd = builder.and_(odd, word(typ.dtype.bitwidth // 8 - 1))
            builder.store(builder.icmp_signed("==", odd, word(0)), fits_slot)
            arrayobj.populate_array(
                array,
                data=builder.inttoptr(field(_DATA), array.data.type),
                shape=[field(d, sizes) for d in range(typ.ndim)],
                strides=[field(d, steps) for d in range(typ.ndim)],
                itemsize=word(typ.dtype.bitwidth // 8),
                meminfo=None,
            )
    fits = builder.load(fits_slot)
    with builder.if_then(builder.not_(fits), likely=False):
        wanted = f"{typ.ndim} dimensions, {typ.dtype}{', writeable' * typ.mutable}, whole elements apart"
        c.pyapi.err_set_string("PyExc_TypeError", f"a kernel's argument is not the array that it takes: {wanted}")
    return NativeValue(array._getvalue(), is_error=builder.not_(fits))
