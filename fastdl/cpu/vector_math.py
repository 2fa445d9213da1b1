"""exp, log, tanh, sigmoid, erf and their relatives on SIMD vectors. PyPI's Numba has no vector math library, so np.exp in a
loop is a scalar call.

Errors are in units in the last place (ulp) of the result, the largest that tests/test_vector_math.py finds against a
reference of 80 bits or more; infinities, NaN and subnormal results are as in the C library.

    function   float32   float64   method
    exp        1.1       1.1       Cody and Waite's reduction to |r| <= ln 2 / 2, Taylor's polynomial, 2^n in two factors
    log        1.1       1.1       Tang's: reduction to [sqrt(1/2), sqrt(2)), the odd series of log((1 + s) / (1 - s))
    tanh       1.6       1.6       Moshier's Cephes near 0, else 1 - 2 / (exp(2 |x|) + 1)
    sigmoid    2.6       2.6       e / (1 + e) or 1 / (1 + e) with e = exp_nonpositive(-|x|): neither overflows nor cancels; what would be
                                   subnormal is 0
    erf        1.6       2.6       a polynomial near 0, else 1 - exp(-polynomial); float64: Cody's rationals (1969)
    expm1      2.0       2.0       exp's reduction and polynomial, without its 1 where 2^n is 1
    log1p      2.0       2.0       log(1 + v) and the rounding of the sum, to first order
    normal     v^2 / 2 + 7  6.0    exp(-v^2 / 2) times a quotient of polynomials in |v|; float64: times a polynomial in 1 / (|v| + 5), the
                                   square's rounding made good
    gelu       v^2 / 2 + 7  6.5    v times the normal distribution function; float32 with AVX-512, from -7.75 on: max(v, 0) - |v| times a
                                   polynomial, one for each quarter of |v|
    exp_nonpositive  1.5  1.5      exp's reduction by one addition that rounds; what would be subnormal is 0
    gate_sigmoid  |v| / 25 + 3.1  2.6  1 / (1 + exp(-v)) with that reduction; 0 where it would be below a quarter of the least normal number
    gate_tanh  3.3     2.5         m / (m + 2) with m = exp(2 v) - 1, by the same; -0 becomes 0

Sources: W. J. Cody and W. Waite, "Software Manual for the Elementary Functions" (1980); S. L. Moshier, Cephes; P. T. P. Tang,
ACM TOMS 16 (1990), with the coefficients of FreeBSD's msun; W. J. Cody, Math. Comp. 23 (1969); M. Shepherd and J. Laframboise,
Math. Comp. 36 (1981), for the normal distribution's variable. Polynomials without a source were fitted at Chebyshev points.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, overload, register_jitable

from . import features
from .jit import inline
from .simd import (
    Vector,
    absolute,
    any_lane,
    bits,
    copysign,
    fma,
    from_bits,
    larger,
    power_of_two,
    rint,
    select,
    shift_left,
    shift_right,
    smaller,
    splat,
    to_float,
    to_integer,
)
from .simd_core import _function


def _polynomial(name, coefficients):
    """A function of r: the polynomial with these coefficients, highest power first, by Horner's rule, unrolled."""
    lines = [f"def {name}(r):", f"    p = splat(r, {coefficients[0]!r})"]
    lines += [f"    p = fma(p, r, splat(r, {c!r}))" for c in coefficients[1:]]
    lines.append("    return p")
    made = {}
    exec("\n".join(lines), {"splat": splat, "fma": fma}, made)  # Numba does not unroll loops over constants
    return register_jitable(made[name])


def _by_width(name, doc, of32, of64):
    """One name for two functions, by the vector's element."""

    def public(v):
        raise TypeError(f"{name} is for vectors in compiled code")

    public.__name__, public.__doc__ = name, doc

    def choose(v):
        if isinstance(v, Vector):
            return of32 if v.scalar.bitwidth == 32 else of64
        return None

    overload(public)(choose)
    return public


# ------------------------------------------------------------------------------------------------ exp
_exp_polynomial_32 = _polynomial("p", [1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0])
_exp_polynomial_64 = _polynomial("p", [1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320, 1 / 5040, 1 / 720,
                                       1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0])


@inline
def _scaled(p, n):
    """p * 2^n, by two factors in the normal range: n alone may leave it where the result is subnormal or infinite."""
    half = rint(n * splat(n, 0.5))
    return p * power_of_two(to_integer(half)) * power_of_two(to_integer(n - half))


def _exp32(v):
    x = smaller(larger(v, splat(v, -104.0)), splat(v, 89.0))  # beyond: 0 and infinity; a NaN stays
    n = rint(x * splat(v, 1.4426950408889634))
    r = fma(n, splat(v, 2.12194440e-4), fma(n, splat(v, -0.693359375), x))
    return _scaled(_exp_polynomial_32(r), select(n == n, n, splat(v, 0.0)))


def _exp64(v):
    x = smaller(larger(v, splat(v, -746.0)), splat(v, 710.0))
    n = rint(x * splat(v, 1.4426950408889634074))
    r = fma(n, splat(v, -1.42860682030941723212e-6), fma(n, splat(v, -6.93145751953125e-1), x))
    return _scaled(_exp_polynomial_64(r), select(n == n, n, splat(v, 0.0)))


exp = _by_width("exp", "e ** v for each lane.", _exp32, _exp64)


# ------------------------------------------------------------------------------------------------ tanh
_tanh_near_32 = _polynomial("p", [-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1])
_tanh_top_64 = _polynomial("p", [-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3])
_tanh_bottom_64 = _polynomial("p", [1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3])


@inline
def _tanh_far(v):
    """The magnitude, for |v| of at least 0.625: nothing cancels."""
    a, one = absolute(v), splat(v, 1.0)
    return one - splat(v, 2.0) / (exp(a + a) + one)


def _tanh32(v):
    z = v * v
    return copysign(select(absolute(v) < splat(v, 0.625), fma(_tanh_near_32(z) * z, v, v), _tanh_far(v)), v)  # -0 stays -0


def _tanh64(v):
    z = v * v
    return copysign(select(absolute(v) < splat(v, 0.625), fma(_tanh_top_64(z) / _tanh_bottom_64(z) * z, v, v), _tanh_far(v)), v)


tanh = _by_width("tanh", "The hyperbolic tangent of each lane.", _tanh32, _tanh64)


# ------------------------------------------------------------------------------------------------ log
_log_series_32 = _polynomial("p", [0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693])
_log_series_64 = _polynomial("p", [1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
                                   2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01])


@inline
def _log_ends(v, result):
    """log of 0, of negative numbers, of infinity and NaN."""
    zero, infinity = splat(v, 0.0), splat(v, 1e999)
    result = select(v == infinity, infinity, result)
    result = select(v == zero, -infinity, result)
    return select(v < zero, infinity - infinity, select(v == v, result, v))


def _log32(v):
    tiny = v < splat(v, 1.1754943508222875e-38)
    x = select(tiny, v * splat(v, 33554432.0), v)  # 2^25: out of the subnormals
    raw = bits(x)
    shifted = raw - bits(splat(v, 0.70710678))
    k = shift_right(shifted, 23)
    m = from_bits(raw - shift_left(k, 23))
    n = to_float(k) - select(tiny, splat(v, 25.0), splat(v, 0.0))
    f = m - splat(v, 1.0)
    s = f / (splat(v, 2.0) + f)
    z = s * s
    half_square = splat(v, 0.5) * f * f
    r = z * _log_series_32(z)
    result = fma(n, splat(v, 6.9313812256e-01), f - (half_square - fma(s, half_square + r, n * splat(v, 9.0580006145e-06))))
    return _log_ends(v, result)


def _log64(v):
    tiny = v < splat(v, 2.2250738585072014e-308)
    x = select(tiny, v * splat(v, 18014398509481984.0), v)  # 2^54
    raw = bits(x)
    shifted = raw - bits(splat(v, 0.7071067811865476))
    k = shift_right(shifted, 52)
    m = from_bits(raw - shift_left(k, 52))
    n = to_float(k) - select(tiny, splat(v, 54.0), splat(v, 0.0))
    f = m - splat(v, 1.0)
    s = f / (splat(v, 2.0) + f)
    z = s * s
    half_square = splat(v, 0.5) * f * f
    r = z * _log_series_64(z)
    result = fma(n, splat(v, 6.93147180369123816490e-01),
                 f - (half_square - fma(s, half_square + r, n * splat(v, 1.90821492927058770002e-10))))
    return _log_ends(v, result)


log = _by_width("log", "The natural logarithm of each lane: -inf at 0, NaN below.", _log32, _log64)


# ------------------------------------------------------------------------------------------------ erf
_erf_near_32 = _polynomial("p", [-9.66704457149e-6, 0.000112659590256, -0.000848408040554, 0.00522103180786, -0.0268654307277,
                                 0.112837824952, -0.37612638468, 0.12837916706])  # of erf(x) / x - 1
_erf_far_32 = _polynomial("p", [-1.64267896843e-6, 4.61647851613e-5, -0.000597677274919, 0.00476350966326, -0.0264316432828,
                                0.110097242506, 0.631809550131, 1.13024187748, -0.000321866257549])


def _erf32(v):
    a = smaller(absolute(v), splat(v, 4.0))  # 1 from there on
    far = splat(v, 1.0) - exp(-_erf_far_32(a))
    return select(absolute(v) < splat(v, 0.95), fma(v, _erf_near_32(v * v), v), copysign(far, v))


_erf_top = _polynomial("p", [1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
                             3.20937758913846947e3])
_erf_bottom = _polynomial("p", [1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3])
_erfc_top = _polynomial("p", [2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
                              2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
                              1.23033935479799725e3])
_erfc_bottom = _polynomial("p", [1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
                                 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3])


def _erf64(v):
    z = smaller(v * v, splat(v, 0.25))
    near = v * (_erf_top(z) / _erf_bottom(z))
    a = smaller(absolute(v), splat(v, 6.0))  # 1 from there on
    far = splat(v, 1.0) - exp(-a * a) * (_erfc_top(a) / _erfc_bottom(a))
    return select(absolute(v) <= splat(v, 0.46875), near, copysign(far, v))


erf = _by_width("erf", "The error function of each lane.", _erf32, _erf64)

# ------------------------------------------------------------------------------------------------ exp of what is not positive
_exp_rest_32 = _polynomial("p", [0.00139337534, 0.00836324878, 0.041666463, 0.166665763, 0.5])  # of (exp(r) - 1 - r) / r^2
_exp_rest_64 = _polynomial("p", [2.5105337938760716e-08, 2.7620231608750013e-07, 2.7557255109098465e-06, 2.4801520994318236e-05,
                                 0.00019841269875050602, 0.0013888888917408333, 0.0083333333333260699, 0.04166666666662374,
                                 0.16666666666666671, 0.50000000000000011])


@intrinsic
def _lowest_bits_as_power(typingctx, v):
    """2.0 ** (k - bias) for lanes whose bits end in the integer k: it becomes the exponent field. k = 0 makes 0.0."""
    mantissa = 23 if v.scalar.bitwidth == 32 else 52

    def codegen(context, builder, signature, args):
        wide = ir.VectorType(ir.IntType(v.scalar.bitwidth), v.lanes)
        shifted = builder.shl(builder.bitcast(args[0], wide), ir.Constant(wide, [mantissa] * v.lanes))
        return builder.bitcast(shifted, args[0].type)

    return v(v), codegen


@inline
def _exp_between_32(x):
    """For x from -88.0296, where it is 0, to 88.3; it is infinity from there to 89."""
    v = x
    m = fma(x, splat(v, 1.4426950408889634), splat(v, 12583039.0))  # 1.5 * 2^23 + 127: the sum's last bits are n + 127
    n = m - splat(v, 12583039.0)
    r = fma(n, splat(v, 2.12194440e-4), fma(n, splat(v, -0.693359375), x))
    return fma(r * r, _exp_rest_32(r), r + splat(v, 1.0)) * _lowest_bits_as_power(m)


def _exp_nonpositive32(v):
    return _exp_between_32(larger(v, splat(v, -88.0296)))


@inline
def _exp_between_64(x):
    v = x
    m = fma(x, splat(v, 1.4426950408889634074), splat(v, 6755399441056767.0))  # 1.5 * 2^52 + 1023
    n = m - splat(v, 6755399441056767.0)
    r = fma(n, splat(v, -1.42860682030941723212e-6), fma(n, splat(v, -6.93145751953125e-1), x))
    return fma(r * r, _exp_rest_64(r), r + splat(v, 1.0)) * _lowest_bits_as_power(m)


def _exp_nonpositive64(v):
    return _exp_between_64(larger(v, splat(v, -709.0895)))


exp_nonpositive = _by_width("exp_nonpositive", "e ** v for lanes that are not above 0, half the work of exp; 0 where that is subnormal.",
                            _exp_nonpositive32, _exp_nonpositive64)


@inline
def sigmoid(v):
    """1 / (1 + e ** -v) for each lane."""
    one = splat(v, 1.0)
    e = exp_nonpositive(-absolute(v))
    return select(v < splat(v, 0.0), e, one) / (one + e)


# ------------------------------------------------------------------------------------------------ gates of recurrent steps
# Half the work of sigmoid and tanh: one sequence of instructions for all arguments, at the price of what the table above says.
# In float32 n ln 2 is taken off in one step: ln 2 rounded to 24 bits is right to 27, and n is 13 at most where the result is not 0 or 1.
_gate_rest_32 = _polynomial("p", [0.00138198247, 0.00836868677, 0.0416682772, 0.166665211, 0.49999994, 1.0, 1.0])  # of exp(r)
_gate_less_32 = _polynomial("p", [0.0887725353, 0.267720729, 0.666678965, 1.33332372, 1.99999988, 2.0])  # of (exp(2 r) - 1) / r


def _gate_sigmoid32(v):
    x = smaller(larger(v, splat(v, -88.9)), splat(v, 88.0296))  # beyond: 0 and 1
    m = fma(x, splat(v, -1.4426950408889634), splat(v, 12583039.0))  # as in _exp_between_32
    r = fma(m - splat(v, 12583039.0), splat(v, -0.6931471805599453), -x)
    return splat(v, 1.0) / fma(_gate_rest_32(r), _lowest_bits_as_power(m), splat(v, 1.0))


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
    return one / (one + _exp_between_64(smaller(larger(-v, splat(v, -709.0895)), splat(v, 710.0))))


gate_sigmoid = _by_width("gate_sigmoid", "1 / (1 + e ** -v) for each lane, in half the time of sigmoid.", _gate_sigmoid32, _gate_sigmoid64)


def _gate_tanh32(v):
    x = smaller(larger(v, splat(v, -9.05)), splat(v, 9.05))  # 1 from there on
    m = fma(x, splat(v, 2.8853900817779268), splat(v, 12583039.0))
    r = fma(m - splat(v, 12583039.0), splat(v, -0.34657359027997264), x)
    power = _lowest_bits_as_power(m)
    less = fma(power * r, _gate_less_32(r), power - splat(v, 1.0))  # exp(2 x) - 1
    return less / (less + splat(v, 2.0))


def _gate_tanh64(v):
    x = v + v
    x = smaller(larger(x, splat(v, -38.2)), splat(v, 38.2))
    m = fma(x, splat(v, 1.4426950408889634074), splat(v, 6755399441056767.0))
    n = m - splat(v, 6755399441056767.0)
    r = fma(n, splat(v, -1.42860682030941723212e-6), fma(n, splat(v, -6.93145751953125e-1), x))
    power = _lowest_bits_as_power(m)
    less = fma(power, fma(r * r, _exp_rest_64(r), r), power - splat(v, 1.0))
    return less / (less + splat(v, 2.0))


gate_tanh = _by_width("gate_tanh", "The hyperbolic tangent of each lane, in half the time of tanh.", _gate_tanh32, _gate_tanh64)

# ------------------------------------------------------------------------------------------------ expm1, log1p
def _expm1_32(v):
    x = smaller(larger(v, splat(v, -18.0)), splat(v, 89.0))  # beyond: -1 and infinity
    n = rint(x * splat(v, 1.4426950408889634))
    r = fma(n, splat(v, 2.12194440e-4), fma(n, splat(v, -0.693359375), x))
    return _expm1_end(v, n, fma(r * r, _exp_rest_32(r), r))


def _expm1_64(v):
    x = smaller(larger(v, splat(v, -38.0)), splat(v, 710.0))
    n = rint(x * splat(v, 1.4426950408889634074))
    r = fma(n, splat(v, -1.42860682030941723212e-6), fma(n, splat(v, -6.93145751953125e-1), x))
    return _expm1_end(v, n, fma(r * r, _exp_rest_64(r), r))


@inline
def _expm1_end(v, n, p):
    """2^n (p + 1) - 1 by half of 2^n, which is finite; a -0 stays."""
    one = splat(v, 1.0)
    half = power_of_two(to_integer(select(n == n, n - one, one)))
    y = fma(half, p, half - splat(v, 0.5))
    return select(n == splat(v, 0.0), select(v == splat(v, 0.0), v, p), y + y)


expm1 = _by_width("expm1", "e ** v - 1 for each lane, without the loss of digits near 0.", _expm1_32, _expm1_64)


@inline
def log1p(v):
    """log(1 + v) for each lane, without the loss of digits near 0: the rounding of 1 + v is made good."""
    one = splat(v, 1.0)
    u = one + v
    lost = (v - (u - one)) / u
    y = log(u)
    return select(absolute(v) < splat(v, 1e20), y + select(u > splat(v, 0.0), lost, splat(v, 0.0)), y)


# ------------------------------------------------------------------------------------------------ the normal distribution
# Mills' ratio of |v|, a quotient of polynomials; and 2^r for |r| of at most a half
_normal_top_32 = _polynomial("p", [0.39894798, 3.96877999, 17.99930738, 43.25899532, 49.65366378])
_normal_bottom_32 = _polynomial("p", [1.0, 9.9489921, 46.1011091, 118.59694759, 165.75380906, 99.30732708])
_exp2_32 = _polynomial("p", [0.0013276473619043827, 0.009675542823970318, 0.05550713464617729, 0.24022120237350464, 0.6931469440460205,
                             1.0000001192092896])
_normal_tail_64 = _polynomial("p", [-7.8544310803637903e-11, 5.0593039194876075e-11, 9.2750669168804772e-10, -5.0272356225876032e-10,
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
    e = _exp2_32(r) * _lowest_bits_as_power(m)
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


normal = _by_width("normal", "(the normal distribution function, exp(-v * v / 2)) of each lane; one exp serves both.", _normal32, _normal64)


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


gelu = _by_width("gelu", "v times the normal distribution function, for each lane.",
                 _gelu32_by_table if features.register_bits() == features.vector_bits() == 512 else _gelu_by_exp, _gelu_by_exp)
