"""The normal distribution and gelu on SIMD vectors. Errors in ulp, as in vector_math.py:

    function   float32   float64   method
    normal     v^2 / 2 + 7  6.0    exp(-v^2 / 2) times a quotient of polynomials in |v|; float64: times a polynomial in 1 / (|v| + 5), the
                                   square's rounding made good
    gelu       v^2 / 2 + 7  6.5    v times the normal distribution function; float32 with AVX-512, from -7.75 on: max(v, 0) - |v| times a
                                   polynomial, one for each quarter of |v|

Source: M. Shepherd and J. Laframboise, Math. Comp. 36 (1981), for the variable of float64's. Polynomials were fitted at Chebyshev points.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, register_jitable

from . import features
from .jit import inline
from .simd import absolute, any_lane, fma, larger, select, smaller, splat
from .simd_core import _function
from .vector_math import by_width, exp_nonpositive, lowest_bits_as_power, polynomial

# Mills' ratio of |v|, a quotient of polynomials; and 2^r for |r| of at most a half
_normal_top_32 = polynomial("p", [0.39894798, 3.96877999, 17.99930738, 43.25899532, 49.65366378])
_normal_bottom_32 = polynomial("p", [1.0, 9.9489921, 46.1011091, 118.59694759, 165.75380906, 99.30732708])
_exp2_32 = polynomial("p", [0.0013276473619043827, 0.009675542823970318, 0.05550713464617729, 0.24022120237350464, 0.6931469440460205,
                             1.0000001192092896])
_normal_tail_64 = polynomial("p", [-7.8544310803637903e-11, 5.0593039194876075e-11, 9.2750669168804772e-10, -5.0272356225876032e-10,
                                    -6.7416853795318532e-09, 3.5844555585211561e-09, 4.334765933948027e-08, -3.3110286668422943e-08,
                                    -2.7688787426137775e-07, 3.9779382724408777e-07, 1.6680852698232284e-06, -4.9761783745378384e-06,
                                    -5.9375588326501269e-06, 5.448988347585067e-05, -7.9786942774903079e-05, -0.00029933767389362813,
                                    0.0020795066803234218, -0.0069118638708741799, 0.016502036617019517, -0.031353315667121719,
                                    0.049530561596998049, -0.066538250289005757, 0.076919304975006292])


@inline
def _normal_tail32(a):
    """(the distribution function at -a, exp(-a * a / 2)) for a from 0 to 13.265, where both are 0."""
    square = a * a
    m = fma(square, splat(a, -0.72134752), splat(a, 12583039.0))  # 1.5 * 2^23 + 127: the sum's last bits are n + 127
    n = splat(a, 12583039.0) - m
    r = fma(square, splat(a, -9.629815e-9), fma(square, splat(a, -0.72134752), n))
    e = _exp2_32(r) * lowest_bits_as_power(m)
    return e * _normal_top_32(a) / _normal_bottom_32(a), e


def _normal32(v):
    tail, e = _normal_tail32(smaller(absolute(v), splat(v, 13.265)))
    return select(v < splat(v, 0.0), tail, splat(v, 1.0) - tail), e


def _normal64(v):
    a, one, minus_half = smaller(absolute(v), splat(v, 39.0)), splat(v, 1.0), splat(v, -0.5)
    square = a * a
    e, w = exp_nonpositive(minus_half * square), splat(v, 10.0) / (a + splat(v, 5.0))
    e = fma(e, minus_half * fma(a, a, -square), e)  # what the square's rounding lost
    tail = e * (w * _normal_tail_64(one - w))
    return select(v < splat(v, 0.0), tail, one - tail), e


normal = by_width("normal", "(the normal distribution function, exp(-v * v / 2)) of each lane; one exp serves both.", _normal32, _normal64)


# ------------------------------------------------------------------------------------------------ gelu
# v times the normal distribution function, that is max(v, 0) - |v| times the function at -|v|. Where a register holds sixteen numbers,
# two hold a coefficient for each of 32 segments of |v|, a quarter wide, and polynomials of the sixth degree do without an exponential
# and a division: 8.3 cycles a vector on a Zen 5 core, 12.6 without. Seven look-ups and seven multiply-adds share two units there.
_SEGMENT, _SEGMENTS, _DEGREE = 0.25, 32, 6
_GELU_END = _SEGMENT * (_SEGMENTS - 1)  # the last one's middle


def _tail_coefficients(middle):
    """Of the polynomial in a - middle that is erfc(a / sqrt(2)) / 2 up to the least relative error, the mean at Chebyshev points."""
    t = _SEGMENT / 2 * np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    exact = np.array([math.erfc((middle + at) * math.sqrt(0.5)) / 2 for at in t])
    powers = np.vander(t / _SEGMENT, _DEGREE + 1, increasing=True)
    return np.linalg.lstsq(powers / exact[:, None], np.ones(64))[0] / _SEGMENT ** np.arange(_DEGREE + 1)


_TAILS = np.transpose([_tail_coefficients(_SEGMENT * s) for s in range(_SEGMENTS)])


def _by_segment(values):
    """A function of m: for each lane the one of 32 values that the last five of its bits say, from two registers of sixteen."""

    @intrinsic
    def look_up(typingctx, m):
        def codegen(context, builder, signature, args):
            wide, single = ir.VectorType(ir.IntType(32), 16), ir.VectorType(ir.FloatType(), 16)
            function = _function(builder, "llvm.x86.avx512.vpermi2var.ps.512", single, [single, wide, single])
            low, high = (ir.Constant(single, [float(v) for v in some]) for some in (values[:16], values[16:]))
            index = builder.bitcast(args[0], ir.VectorType(ir.IntType(32), m.lanes))
            parts = [builder.call(function, [low, part, high]) for part in _in_parts(builder, index, 16)]
            return _joined(builder, parts)

        return m(m), codegen

    return look_up


def _in_parts(builder, vector, lanes):
    count = vector.type.count
    return [vector] if count == lanes else [
        builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(i, i + lanes))))
        for i in range(0, count, lanes)]


def _joined(builder, parts):
    while len(parts) > 1:
        width = 2 * parts[0].type.count
        both = ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(width)))
        parts = [builder.shuffle_vector(a, b, both) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


_t0, _t1, _t2, _t3, _t4, _t5, _t6 = map(_by_segment, _TAILS)


@register_jitable
def _gelu_by_exp(v):
    return v * normal(v)[0]


def _gelu32_by_table(v):
    a = smaller(absolute(v), splat(v, _GELU_END))
    m = a + splat(v, 3145728.0)  # 1.5 * 2^21: the sum's last bits are the segment's number
    t = a - (m - splat(v, 3145728.0))
    tail = fma(fma(fma(fma(fma(fma(_t6(m), t, _t5(m)), t, _t4(m)), t, _t3(m)), t, _t2(m)), t, _t1(m)), t, _t0(m))
    y = fma(-a, tail, larger(v, splat(v, 0.0)))
    below = v < splat(v, -_GELU_END)
    return select(below, _gelu_by_exp(v), y) if any_lane(below) else y


gelu = by_width("gelu", "v times the normal distribution function, for each lane.",
                 _gelu32_by_table if features.register_bits() == features.vector_bits() == 512 else _gelu_by_exp, _gelu_by_exp)
