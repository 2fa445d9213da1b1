"""exp, tanh and sigmoid on SIMD vectors. PyPI's Numba has no vector math library, so np.exp in a loop is a scalar call.

exp: Cody and Waite's range reduction to |r| <= ln(2) / 2, Taylor's polynomial there (degree 7 for float32, 13 for
float64: the truncation is below half an ulp), scaled by 2^n in two steps so that subnormal results are right.
tanh: near 0 the polynomial (float32) or rational function (float64) of Moshier's Cephes library, else 1 - 2 / (exp(2x) + 1).
sigmoid: 1 / (1 + exp(-x)), which neither overflows nor cancels.
"""

from __future__ import annotations

from numba.extending import overload

from .jit import inline
from .simd import Vector, absolute, copysign, fma, larger, power_of_two, rint, select, smaller, splat, to_integer


def exp(v):
    """e ** v for each lane."""


@overload(exp, inline="never")
def _exp(v):
    if not isinstance(v, Vector):
        return None
    if v.scalar.bitwidth == 32:

        def exp32(v):
            x = smaller(larger(v, splat(v, -104.0)), splat(v, 89.0))  # beyond: 0 and inf; a NaN stays
            n = rint(x * splat(v, 1.4426950408889634))
            r = fma(n, splat(v, -0.693359375), x)
            r = fma(n, splat(v, 2.12194440e-4), r)
            p = splat(v, 1 / 5040)
            p = fma(p, r, splat(v, 1 / 720))
            p = fma(p, r, splat(v, 1 / 120))
            p = fma(p, r, splat(v, 1 / 24))
            p = fma(p, r, splat(v, 1 / 6))
            p = fma(p, r, splat(v, 0.5))
            p = fma(p, r, splat(v, 1.0))
            p = fma(p, r, splat(v, 1.0))
            return _scaled(p, select(n == n, n, splat(v, 0.0)))

        return exp32

    def exp64(v):
        x = smaller(larger(v, splat(v, -746.0)), splat(v, 710.0))
        n = rint(x * splat(v, 1.4426950408889634074))
        r = fma(n, splat(v, -6.93145751953125e-1), x)
        r = fma(n, splat(v, -1.42860682030941723212e-6), r)
        p = splat(v, 1 / 6227020800)
        p = fma(p, r, splat(v, 1 / 479001600))
        p = fma(p, r, splat(v, 1 / 39916800))
        p = fma(p, r, splat(v, 1 / 3628800))
        p = fma(p, r, splat(v, 1 / 362880))
        p = fma(p, r, splat(v, 1 / 40320))
        p = fma(p, r, splat(v, 1 / 5040))
        p = fma(p, r, splat(v, 1 / 720))
        p = fma(p, r, splat(v, 1 / 120))
        p = fma(p, r, splat(v, 1 / 24))
        p = fma(p, r, splat(v, 1 / 6))
        p = fma(p, r, splat(v, 0.5))
        p = fma(p, r, splat(v, 1.0))
        p = fma(p, r, splat(v, 1.0))
        return _scaled(p, select(n == n, n, splat(v, 0.0)))

    return exp64


@inline
def _scaled(p, n):
    """p * 2^n, by two factors in the normal range: n alone may leave it where the result is subnormal or infinite."""
    half = rint(n * splat(n, 0.5))
    return p * power_of_two(to_integer(half)) * power_of_two(to_integer(n - half))


@inline
def sigmoid(v):
    """1 / (1 + e ** -v) for each lane."""
    one = splat(v, 1.0)
    return one / (one + exp(-v))


def tanh(v):
    """The hyperbolic tangent of each lane."""


@overload(tanh, inline="never")
def _tanh(v):
    if not isinstance(v, Vector):
        return None
    if v.scalar.bitwidth == 32:

        def tanh32(v):
            a = absolute(v)
            z = v * v
            p = splat(v, -5.70498872745e-3)
            p = fma(p, z, splat(v, 2.06390887954e-2))
            p = fma(p, z, splat(v, -5.37397155531e-2))
            p = fma(p, z, splat(v, 1.33314422036e-1))
            p = fma(p, z, splat(v, -3.33332819422e-1))
            near = fma(p * z, v, v)
            one = splat(v, 1.0)
            far = one - splat(v, 2.0) / (exp(a + a) + one)
            return select(a < splat(v, 0.625), near, copysign(far, v))

        return tanh32

    def tanh64(v):
        a = absolute(v)
        z = v * v
        p = splat(v, -9.64399179425052238628e-1)
        p = fma(p, z, splat(v, -9.92877231001918586564e1))
        p = fma(p, z, splat(v, -1.61468768441708447952e3))
        q = z + splat(v, 1.12811678491632931402e2)
        q = fma(q, z, splat(v, 2.23548839060100448583e3))
        q = fma(q, z, splat(v, 4.84406305325125486048e3))
        near = fma(p / q * z, v, v)
        one = splat(v, 1.0)
        far = one - splat(v, 2.0) / (exp(a + a) + one)
        return select(a < splat(v, 0.625), near, copysign(far, v))

    return tanh64
