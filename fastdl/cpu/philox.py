"""Philox 4x32-10 on SIMD vectors: random bits as a function of a key and a counter.

Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (the constants are theirs).
``fastdl/ops/philox.py`` is the same in numpy, and says which word an element takes.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import always_inline
from .simd import bits, splat
from .simd_core import Vector, _splat_value, llvm_type, vector_of
from .simd_lanes import _integer_vector

GROUP = 64  # elements that four words of 16 counters serve
COUNTERS = 16


@intrinsic
def _wide_product(typingctx, a, m):
    """(low, high) halves of each lane's 32-bit word times the 32-bit number m, unsigned; lanes of 64 bits hold a word each."""

    def codegen(context, builder, signature, args):
        words = args[0].type
        double = ir.VectorType(ir.IntType(64), a.lanes if a.scalar.bitwidth == 64 else a.lanes // 2)
        half, low_word = ir.Constant(double, [32] * double.count), ir.Constant(double, [0xFFFFFFFF] * double.count)
        factor = _splat_value(builder, double, builder.and_(args[1], args[1].type(0xFFFFFFFF)))
        if a.scalar.bitwidth == 64:
            product = builder.mul(args[0], factor)
            return cgutils.pack_array(builder, [builder.and_(product, low_word), builder.lshr(product, half)])
        # machines multiply the even words of a register to double words: once for the even ones, once for the odd ones
        pairs = builder.bitcast(args[0], double)
        even = builder.bitcast(builder.mul(builder.and_(pairs, low_word), factor), words)
        odd = builder.bitcast(builder.mul(builder.lshr(pairs, half), factor), words)
        index = ir.VectorType(ir.IntType(32), words.count)
        low = [i if i % 2 == 0 else words.count + i - 1 for i in range(words.count)]
        high = [i + 1 if i % 2 == 0 else words.count + i for i in range(words.count)]
        return cgutils.pack_array(builder, [builder.shuffle_vector(even, odd, ir.Constant(index, order)) for order in (low, high)])

    return types.UniTuple(a, 2)(a, types.int64), codegen


@intrinsic
def _lane_numbers(typingctx, p):
    result = _integer_vector(vector_of(p.dtype))

    def codegen(context, builder, signature, args):
        return ir.Constant(llvm_type(context, result), list(range(result.lanes)))

    return result(p), codegen


@intrinsic
def words_from(typingctx, words, least):
    """The mask of lanes whose word is at least a number, unsigned."""

    def codegen(context, builder, signature, args):
        number = _splat_value(builder, args[0].type, context.cast(builder, args[1], signature.args[1], words.scalar))
        return builder.icmp_unsigned(">=", args[0], number)

    return Vector(types.boolean, words.lanes)(words, types.int64), codegen


def _unrolled():
    lines = ["def rounds(c0, c1, c2, c3, k0, k1):"]
    for r in range(10):
        lines += ["    l0, h0 = product(c0, 0xD2511F53)", "    l1, h1 = product(c2, 0xCD9E8D57)",
                  f"    c0, c1, c2, c3 = h1 ^ c1 ^ splat(c0, (k0 + {r * 0x9E3779B9}) & 0xFFFFFFFF), l1, "
                  f"h0 ^ c3 ^ splat(c0, (k1 + {r * 0xBB67AE85}) & 0xFFFFFFFF), l0"]
    lines.append("    return c0, c1, c2, c3")
    made = {}
    exec("\n".join(lines), {"product": _wide_product, "splat": splat}, made)  # Numba does not unroll loops over constants
    return always_inline(made["rounds"])


philox = _unrolled()


@always_inline
def random_words(p, group, first, key_low, key_high, stream):
    """Four vectors of words: of element group * 64 + 16 k + first + lane in the k-th, each in a lane as wide as p's elements.

    first: a multiple of the lanes below 16.
    """
    zero, counter = bits(splat(p, 0.0)), group * COUNTERS + first
    c0 = _lane_numbers(p) + splat(zero, counter & 0xFFFFFFFF)
    return philox(c0, splat(zero, (counter >> 32) & 0xFFFFFFFF), splat(zero, stream), zero, key_low, key_high)
