"""exp, log, tanh, sigmoid, erf and their relatives on SIMD vectors; vector_gates.py and vector_normal.py have more. PyPI's Numba has
no vector math library, so np.exp in a loop is a scalar call.

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
    exp_nonpositive  1.5  1.5      exp's reduction by one addition that rounds; what would be subnormal is 0

Sources: W. J. Cody and W. Waite, "Software Manual for the Elementary Functions" (1980); S. L. Moshier, Cephes; P. T. P. Tang,
ACM TOMS 16 (1990), with the coefficients of FreeBSD's msun; W. J. Cody, Math. Comp. 23 (1969). Polynomials without a source were
fitted at Chebyshev points.
"""

from __future__ import annotations

from llvmlite import ir
from numba.extending import intrinsic, overload, register_jitable

from .jit import inline
from .simd import (
    Vector,
    absolute,
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


def polynomial(name, coefficients):
    """A function of r: the polynomial with these coefficients, highest power first, by Horner's rule, unrolled."""
    lines = [f"def {name}(r):", f"    p = splat(r, {coefficients[0]!r})"]
    lines += [f"    p = fma(p, r, splat(r, {c!r}))" for c in coefficients[1:]]
    lines.append("    return p")
    made = {}
    exec("\n".join(lines), {"splat": splat, "fma": fma}, made)  # Numba does not unroll loops over constants
    return register_jitable(made[name])


def by_width(name, doc, of32, of64):
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
_exp_polynomial_32 = polynomial("p", [1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0])
_exp_polynomial_64 = polynomial("p", [1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320, 1 / 5040, 1 / 720,
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


exp = by_width("exp", "e ** v for each lane.", _exp32, _exp64)


# ------------------------------------------------------------------------------------------------ tanh
_tanh_near_32 = polynomial("p", [-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1])
_tanh_top_64 = polynomial("p", [-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3])
_tanh_bottom_64 = polynomial("p", [1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3])


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


tanh = by_width("tanh", "The hyperbolic tangent of each lane.", _tanh32, _tanh64)


# ------------------------------------------------------------------------------------------------ log
_log_series_32 = polynomial("p", [0.24279078841, 0.28498786688, 0.40000972152, 0.66666662693])
_log_series_64 = polynomial("p", [1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
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


log = by_width("log", "The natural logarithm of each lane: -inf at 0, NaN below.", _log32, _log64)


# ------------------------------------------------------------------------------------------------ erf
_erf_near_32 = polynomial("p", [-9.66704457149e-6, 0.000112659590256, -0.000848408040554, 0.00522103180786, -0.0268654307277,
                                 0.112837824952, -0.37612638468, 0.12837916706])  # of erf(x) / x - 1
_erf_far_32 = polynomial("p", [-1.64267896843e-6, 4.61647851613e-5, -0.000597677274919, 0.00476350966326, -0.0264316432828,
                                0.110097242506, 0.631809550131, 1.13024187748, -0.000321866257549])


def _erf32(v):
    a = smaller(absolute(v), splat(v, 4.0))  # 1 from there on
    far = splat(v, 1.0) - exp(-_erf_far_32(a))
    return select(absolute(v) < splat(v, 0.95), fma(v, _erf_near_32(v * v), v), copysign(far, v))


_erf_top = polynomial("p", [1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
                             3.20937758913846947e3])
_erf_bottom = polynomial("p", [1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3])
_erfc_top = polynomial("p", [2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
                              2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
                              1.23033935479799725e3])
_erfc_bottom = polynomial("p", [1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
                                 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3])


def _erf64(v):
    z = smaller(v * v, splat(v, 0.25))
    near = v * (_erf_top(z) / _erf_bottom(z))
    a = smaller(absolute(v), splat(v, 6.0))  # 1 from there on
    far = splat(v, 1.0) - exp(-a * a) * (_erfc_top(a) / _erfc_bottom(a))
    return select(absolute(v) <= splat(v, 0.46875), near, copysign(far, v))


erf = by_width("erf", "The error function of each lane.", _erf32, _erf64)

# ------------------------------------------------------------------------------------------------ exp of what is not positive
_exp_rest_32 = polynomial("p", [0.00139337534, 0.00836324878, 0.041666463, 0.166665763, 0.5])  # of (exp(r) - 1 - r) / r^2
exp_rest_64 = polynomial("p", [2.5105337938760716e-08, 2.7620231608750013e-07, 2.7557255109098465e-06, 2.4801520994318236e-05,
                                 0.00019841269875050602, 0.0013888888917408333, 0.0083333333333260699, 0.04166666666662374,
                                 0.16666666666666671, 0.50000000000000011])


@intrinsic
def lowest_bits_as_power(typingctx, v):
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
    return fma(r * r, _exp_rest_32(r), r + splat(v, 1.0)) * lowest_bits_as_power(m)


def _exp_nonpositive32(v):
    return _exp_between_32(larger(v, splat(v, -88.0296)))


@inline
def exp_between_64(x):
    v = x
    m = fma(x, splat(v, 1.4426950408889634074), splat(v, 6755399441056767.0))  # 1.5 * 2^52 + 1023
    n = m - splat(v, 6755399441056767.0)
    r = fma(n, splat(v, -1.42860682030941723212e-6), fma(n, splat(v, -6.93145751953125e-1), x))
    return fma(r * r, exp_rest_64(r), r + splat(v, 1.0)) * lowest_bits_as_power(m)


def _exp_nonpositive64(v):
    return exp_between_64(larger(v, splat(v, -709.0895)))


exp_nonpositive = by_width("exp_nonpositive", "e ** v for lanes that are not above 0, half the work of exp; 0 where that is subnormal.",
                            _exp_nonpositive32, _exp_nonpositive64)


@inline
def sigmoid(v):
    """1 / (1 + e ** -v) for each lane."""
    one = splat(v, 1.0)
    e = exp_nonpositive(-absolute(v))
    return select(v < splat(v, 0.0), e, one) / (one + e)


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
    return _expm1_end(v, n, fma(r * r, exp_rest_64(r), r))


@inline
def _expm1_end(v, n, p):
    """2^n (p + 1) - 1 by half of 2^n, which is finite; a -0 stays."""
    one = splat(v, 1.0)
    half = power_of_two(to_integer(select(n == n, n - one, one)))
    y = fma(half, p, half - splat(v, 0.5))
    return select(n == splat(v, 0.0), select(v == splat(v, 0.0), v, p), y + y)


expm1 = by_width("expm1", "e ** v - 1 for each lane, without the loss of digits near 0.", _expm1_32, _expm1_64)


@inline
def log1p(v):
    """log(1 + v) for each lane, without the loss of digits near 0: the rounding of 1 + v is made good."""
    one = splat(v, 1.0)
    u = one + v
    lost = (v - (u - one)) / u
    y = log(u)
    return select(absolute(v) < splat(v, 1e20), y + select(u > splat(v, 0.0), lost, splat(v, 0.0)), y)
