"""Arithmetic, comparisons, masks and minima of SIMD vectors: what simd.py has of them."""

from __future__ import annotations

import operator

from numba import types
from numba.extending import intrinsic, overload

from .jit import inline
from .simd_core import Vector, _function, _mangled


def _elementwise(name, operation, integer_operation):
    @intrinsic
    def function(typingctx, a, b):
        if not (isinstance(a, Vector) and a == b):
            return None
        is_integer = isinstance(a.scalar, types.Integer)

        def codegen(context, builder, signature, args):
            return getattr(builder, integer_operation if is_integer else operation)(*args)

        return a(a, b), codegen

    function.__name__ = name
    return function


_BINARY = {
    operator.add: _elementwise("add", "fadd", "add"),
    operator.sub: _elementwise("sub", "fsub", "sub"),
    operator.mul: _elementwise("mul", "fmul", "mul"),
    operator.truediv: _elementwise("div", "fdiv", "sdiv"),
}


def _overload_binary(symbol, function):
    @overload(symbol)
    def implementation(a, b):
        if isinstance(a, Vector) and a == b:
            return lambda a, b: function(a, b)
        return None


for _symbol, _f in _BINARY.items():
    _overload_binary(_symbol, _f)


@intrinsic
def _negate(typingctx, a):
    def codegen(context, builder, signature, args):
        return builder.fneg(args[0])

    return a(a), codegen


@overload(operator.neg)
def _overload_negate(a):
    if isinstance(a, Vector):
        return lambda a: _negate(a)
    return None


def _comparison(symbol):
    @intrinsic
    def function(typingctx, a, b):
        if not (isinstance(a, Vector) and a == b):
            return None
        mask = Vector(types.boolean, a.lanes)
        is_integer = isinstance(a.scalar, types.Integer)

        def codegen(context, builder, signature, args):
            if is_integer:
                return builder.icmp_signed(symbol, *args)
            # ordered: false where there is a NaN; != is the exception, as in Python
            return builder.fcmp_unordered(symbol, *args) if symbol == "!=" else builder.fcmp_ordered(symbol, *args)

        return mask(a, b), codegen

    return function


for _symbol, _text in {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}.items():
    _overload_binary(_symbol, _comparison(_text))


def _mask_operation(name):
    @intrinsic
    def function(typingctx, a, b):
        if not (isinstance(a, Vector) and a == b and (a.is_mask or isinstance(a.scalar, types.Integer))):
            return None

        def codegen(context, builder, signature, args):
            return getattr(builder, name)(*args)

        return a(a, b), codegen

    return function


for _symbol, _text in {operator.and_: "and_", operator.or_: "or_", operator.xor: "xor"}.items():
    _overload_binary(_symbol, _mask_operation(_text))


@intrinsic
def select(typingctx, mask, a, b):
    """a where the mask is true, b elsewhere."""

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return a(mask, a, b), codegen


def _llvm_intrinsic(name, arity, doc):
    @intrinsic
    def unary(typingctx, a):
        def codegen(context, builder, signature, args):
            return builder.call(_function(builder, f"llvm.{name}.{_mangled(a)}", args[0].type, [x.type for x in args]), args)

        return a(a), codegen

    @intrinsic
    def binary(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return builder.call(_function(builder, f"llvm.{name}.{_mangled(a)}", args[0].type, [x.type for x in args]), args)

        return a(a, b), codegen

    @intrinsic
    def ternary(typingctx, a, b, c):
        def codegen(context, builder, signature, args):
            return builder.call(_function(builder, f"llvm.{name}.{_mangled(a)}", args[0].type, [x.type for x in args]), args)

        return a(a, b, c), codegen

    made = (unary, binary, ternary)[arity - 1]
    made.__doc__ = doc
    return made


fma = _llvm_intrinsic("fma", 3, "a * b + c with one rounding.")
sqrt = _llvm_intrinsic("sqrt", 1, "The square root, correctly rounded.")
absolute = _llvm_intrinsic("fabs", 1, "The absolute value.")
rint = _llvm_intrinsic("rint", 1, "The nearest integer, ties to even.")
copysign = _llvm_intrinsic("copysign", 2, "a's magnitude with b's sign.")


@inline
def larger(a, b):
    """b where a < b, else a: one machine instruction. A NaN in a stays, a NaN in b is lost."""
    return select(a < b, b, a)


@inline
def smaller(a, b):
    """b where a > b, else a. A NaN in a stays, a NaN in b is lost."""
    return select(a > b, b, a)


@inline
def maximum(a, b):
    """The larger one; NaN where either is, as numpy.maximum."""
    return select(b != b, b, larger(a, b))


@inline
def minimum(a, b):
    """The smaller one; NaN where either is, as numpy.minimum."""
    return select(b != b, b, smaller(a, b))
