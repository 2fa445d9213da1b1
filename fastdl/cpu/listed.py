"""Lists of arrays as kernels receive them: read where Python holds them, so that nobody makes a table of their addresses first.

Token A of a kernel's signature is a list. Its entries may be anything: a kernel asks ``all_plain`` before it reads them, and does
nothing and says so where they are not. Nobody may change the list before the kernel is over: the caller makes it for the call.

The layout of CPython's list (PyListObject) is the same from 3.8 on; that of numpy's arrays is borrowed.py's.
"""

from __future__ import annotations

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core.datamodel import models, register_default
from numba.extending import NativeValue, intrinsic, unbox
from numba.np import numpy_support

from .borrowed import (
    _BYTE_ORDER,
    _DATA,
    _DESCRIPTION,
    _FLAGS,
    _IN_C_ORDER,
    _NDARRAY,
    _RANK,
    _SHAPE,
    _TYPE,
    _TYPE_NUMBER,
    _WRITEABLE,
    _symbol,
)
from .jit import inline
from .simd import at_address

_LIST = "fastdl_list_type"
llvmlite.binding.add_symbol(_LIST, id(list))
_SIZE, _ITEMS = 2, 3  # words of PyListObject
_WORD = ir.IntType(64)


class Listed(types.Type):
    """A list that a caller of compiled code holds on to until the call is over."""


listed = Listed("listed")


@register_default(Listed)
class _ListedModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _WORD)


@unbox(Listed)
def _unbox(typ, obj, c):
    builder = c.builder
    address = builder.ptrtoint(obj, _WORD)
    kind = builder.load(builder.gep(builder.inttoptr(address, _WORD.as_pointer()), [_WORD(_TYPE)]))
    fits = builder.icmp_unsigned("==", kind, builder.ptrtoint(_symbol(builder, _LIST), _WORD))
    with builder.if_then(builder.not_(fits), likely=False):
        c.pyapi.err_set_string("PyExc_TypeError", "a kernel's argument is not the list that it takes")
    return NativeValue(address, is_error=builder.not_(fits))


@intrinsic
def _address(typingctx, arrays):
    return types.intp(arrays), lambda context, builder, signature, args: args[0]


@intrinsic
def _word_at(typingctx, address, index):
    def codegen(context, builder, signature, args):
        return builder.load(builder.gep(builder.inttoptr(args[0], _WORD.as_pointer()), [args[1]]))

    return types.intp(types.intp, types.intp), codegen


@intrinsic
def _type_of_arrays(typingctx):
    return types.intp(), lambda context, builder, signature, args: builder.ptrtoint(_symbol(builder, _NDARRAY), _WORD)


@intrinsic
def _number_of(typingctx, p):
    """The number of a pointer's dtype."""
    return types.intp(p), lambda context, builder, signature, args: _WORD(numpy_support.as_dtype(signature.args[0].dtype).num)


@inline
def count(arrays):
    """How many entries a list has."""
    return _word_at(_address(arrays), _SIZE)


@inline
def places(arrays):
    """Where a list's entries are: for data_of, which goes without the list."""
    return _word_at(_address(arrays), _ITEMS)


@inline
def all_plain(arrays, p, writeable):
    """Whether all entries are arrays in C order of p's dtype and of the machine's byte order, and may be written to."""
    flags = _IN_C_ORDER + (_WRITEABLE if writeable else 0)
    items = places(arrays)
    for i in range(count(arrays)):
        array = _word_at(items, i)
        if _word_at(array, _TYPE) != _type_of_arrays():
            return False
        word = _word_at(_word_at(array, _DESCRIPTION), _TYPE_NUMBER // 8)  # byte order and number lie in one
        number, order = (word >> (_TYPE_NUMBER % 8 * 8)) & 0xFFFFFFFF, (word >> (_BYTE_ORDER % 8 * 8)) & 0xFF
        if number != _number_of(p) or order != 61 or _word_at(array, _FLAGS) & flags != flags:  # 61: "=", the machine's
            return False
    return True


@inline
def size_of(arrays, i):
    """How many elements an entry has."""
    array, size = _word_at(places(arrays), i), 1
    for d in range(_word_at(array, _RANK) & 0xFFFFFFFF):
        size *= _word_at(_word_at(array, _SHAPE), d)
    return size


@inline
def same_sizes(arrays, others):
    """Whether two lists have as many entries, each of as many elements."""
    if count(arrays) != count(others):
        return False
    for i in range(count(arrays)):
        if size_of(arrays, i) != size_of(others, i):
            return False
    return True


@inline
def data_of(items, i, p):
    """The first element of entry i of the list whose ``places`` these are, as a pointer like p."""
    return at_address(p, _word_at(_word_at(items, i), _DATA))
