"""Sigmoid and tanh for the gates of recurrent steps, in half the time of vector_math.py's. Errors in ulp, as there:

    function   float32   float64   method
    gate_sigmoid  |v| / 25 + 3.1  2.6  1 / (1 + exp(-v)) with exp_nonpositive's reduction; 0 where it would be below a
                                       quarter of the least normal number
    gate_tanh  3.3     2.5         m / (m + 2) with m = exp(2 v) - 1, by the same; -0 becomes 0

Polynomials were fitted at Chebyshev points.
"""

from __future__ import annotations

import struct

from llvmlite import ir
from numba.extending import intrinsic

from . import features
from .simd import fma, larger, smaller, splat
from .simd_core import _function
from .vector_math import by_width, exp_between_64, exp_rest_64, lowest_bits_as_power, polynomial

# Half the work of sigmoid and tanh: one sequence of instructions for all arguments, at the price of what the table above says.
# In float32 n ln 2 is taken off in one step: ln 2 rounded to 24 bits is right to 27, and n is 13 at most where the result is not 0 or 1.
_gate_rest_32 = polynomial("p", [0.00138198247, 0.00836868677, 0.0416682772, 0.166665211, 0.49999994, 1.0, 1.0])  # of exp(r)
_gate_less_32 = polynomial("p", [0.0887725353, 0.267720729, 0.666678965, 1.33332372, 1.99999988, 2.0])  # of (exp(2 r) - 1) / r


def _gate_sigmoid32(v):
    x = smaller(larger(v, splat(v, -88.9)), splat(v, 88.0296))  # beyond: 0 and 1
    m = fma(x, splat(v, -1.4426950408889634), splat(v, 12583039.0))  # as in _exp_between_32
    r = fma(m - splat(v, 12583039.0), splat(v, -0.6931471805599453), -x)
    return splat(v, 1.0) / fma(_gate_rest_32(r), lowest_bits_as_power(m), splat(v, 1.0))


# Where a register holds sixteen numbers, two hold all powers of 2 by thirty-seconds, and a polynomial of the third degree is enough:
# 4.6 cycles a vector on a Zen 5 core, 6.6 without. The table has of each power what is left when its number, shifted to the exponent's
# place with the rest of n, is taken off.
_POWERS = [(struct.unpack("<I", struct.pack("<f", 2 ** (j / 32)))[0] - (j << 18)) % 2**32 for j in range(32)]


@intrinsic
def _lowest_bits_as_thirty_seconds(typingctx, v):
    """2.0 ** (k / 32) for lanes whose bits end in the integer k, whose last five bits find a power in two registers."""

    def codegen(context, builder, signature, args):
        wide = ir.VectorType(ir.IntType(32), v.lanes)
        k = builder.bitcast(args[0], wide)
        low, high = (ir.Constant(wide, _POWERS[i:i + v.lanes]) for i in (0, v.lanes))
        found = builder.call(_function(builder, "llvm.x86.avx512.vpermi2var.d.512", wide, [wide] * 3), [low, k, high])
        return builder.bitcast(builder.add(found, builder.shl(k, ir.Constant(wide, [18] * v.lanes))), args[0].type)

    return v(v), codegen


def _gate_sigmoid32_by_table(v):
    x = smaller(larger(v, splat(v, -88.722839)), splat(v, 88.0))  # there the power is infinite, and beyond 1
    m = fma(x, splat(v, -46.16624130844683), splat(v, 12582912.0))  # 1.5 * 2^23: the sum's last bits are n
    r = fma(m - splat(v, 12582912.0), splat(v, -0.02166084939249829), -x)
    p = fma(fma(fma(r, splat(v, 0.16666667), splat(v, 0.5)), r, splat(v, 1.0)), r, splat(v, 1.0))
    return splat(v, 1.0) / fma(p, _lowest_bits_as_thirty_seconds(m), splat(v, 1.0))


if features.register_bits() == features.vector_bits() == 512:
    _gate_sigmoid32 = _gate_sigmoid32_by_table


def _gate_sigmoid64(v):
    one = splat(v, 1.0)
    return one / (one + exp_between_64(smaller(larger(-v, splat(v, -709.0895)), splat(v, 710.0))))


gate_sigmoid = by_width("gate_sigmoid", "1 / (1 + e ** -v) for each lane, in half the time of sigmoid.", _gate_sigmoid32, _gate_sigmoid64)


def _gate_tanh32(v):
    x = smaller(larger(v, splat(v, -9.05)), splat(v, 9.05))  # 1 from there on
    m = fma(x, splat(v, 2.8853900817779268), splat(v, 12583039.0))
    r = fma(m - splat(v, 12583039.0), splat(v, -0.34657359027997264), x)
    power = lowest_bits_as_power(m)
    less = fma(power * r, _gate_less_32(r), power - splat(v, 1.0))  # exp(2 x) - 1
    return less / (less + splat(v, 2.0))


def _gate_tanh64(v):
    x = v + v
    x = smaller(larger(x, splat(v, -38.2)), splat(v, 38.2))
    m = fma(x, splat(v, 1.4426950408889634074), splat(v, 6755399441056767.0))
    n = m - splat(v, 6755399441056767.0)
    r = fma(n, splat(v, -1.42860682030941723212e-6), fma(n, splat(v, -6.93145751953125e-1), x))
    power = lowest_bits_as_power(m)
    less = fma(power, fma(r * r, exp_rest_64(r), r), power - splat(v, 1.0))
    return less / (less + splat(v, 2.0))


gate_tanh = by_width("gate_tanh", "The hyperbolic tangent of each lane, in half the time of tanh.", _gate_tanh32, _gate_tanh64)
