"""Functions on float32 values that kernels share. All keep NaN; none overflows where its result does not.

Triton's own exp and log are within a few units in the last place; what is missing there (tanh, expm1, log1p) is made of
them so that nothing cancels, and runs in Triton's interpreter too, where a device library cannot be called.
"""

import triton
import triton.language as tl


@triton.jit
def dot(x, y, acc, PRECISION: tl.constexpr):
    """acc + x @ y. "widened" is for the interpreter, which cannot multiply bfloat16; the products are the same."""
    if PRECISION == "widened":
        return tl.dot(x.to(tl.float32), y.to(tl.float32), acc)
    else:
        return tl.dot(x, y, acc, input_precision=PRECISION)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))  # exp may be infinite


@triton.jit
def tanh(x):
    """By exp, and near 0, where that cancels, by the first terms of its series."""
    t = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - t) / (1.0 + t)
    q = x * x
    near = x + x * q * (-0.33333334 + q * (0.13333334 + q * (-0.053968254 + q * 0.021869488)))
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0; near 0 by the first terms of its series."""
    near = x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666668 + x * (0.008333334 + x * (0.0013888889 + x * 0.0001984127))))))
    return tl.where(tl.abs(x) < 0.4, near, tl.exp(x) - 1.0)


@triton.jit
def log1p(t):
    """log(1 + t) for 0 <= t <= 1: the logarithm of the rounded sum, and what rounding took away."""
    u = 1.0 + t
    return tl.log(u) + (t - (u - 1.0)) / u


@triton.jit
def softplus(x):
    """log(1 + exp(x))."""
    return tl.where(x < 0, 0.0, x) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def normal_cdf(x):
    """The standard normal distribution function, to 7e-8; its lower tail to that, not to a relative, accuracy.

    The upper tail is 2 to a polynomial in |x|, fitted for the least largest error of the tail, and falls to 0: a third of the
    instructions of erf, which fused last steps feel.
    """
    a = tl.abs(x)
    p = -0.00019694812363013625 + a * (4.1736238927114755e-05 - a * 3.0383084776985925e-06)
    p = -0.45921358466148376 + a * (-0.05247718468308449 + a * (0.007033223286271095 + a * (-0.00011221180466236547 + a * p)))
    tail = tl.exp2(-1.0 + a * (-1.1511046886444092 + a * p))
    return tl.where(x < 0, tail, 1.0 - tail)


@triton.jit
def activate(x, ACT: tl.constexpr, slope):
    """The activation of float32 values; ACT is a name of ops/activation.py, or "none"."""
    if ACT == "relu":
        y = tl.where(x < 0, 0.0, x)
    elif ACT == "leaky_relu":
        y = tl.where(x > 0, x, slope * x)
    elif ACT == "elu":
        y = tl.where(x > 0, x, slope * expm1(tl.where(x > 0, 0.0, x)))
    elif ACT == "gelu":
        y = x * normal_cdf(x)
    elif ACT == "sigmoid":
        y = sigmoid(x)
    elif ACT == "tanh":
        y = tanh(x)
    elif ACT == "softplus":
        y = softplus(x)
    else:
        y = x
    return y


@triton.jit
def activation_slope(v, ACT: tl.constexpr, slope, INPUT: tl.constexpr):
    """The activation's derivative, from its input (INPUT) or from its output."""
    if ACT == "relu":
        d = tl.where(v <= 0, 0.0, 1.0)
    elif ACT == "leaky_relu":
        d = tl.where(v > 0, 1.0, slope)
    elif ACT == "elu":
        d = tl.where(v <= 0, (slope * tl.exp(v)) if INPUT else (v + slope), 1.0)
    elif ACT == "gelu":
        d = normal_cdf(v) + v * tl.exp(-0.5 * v * v) * 0.3989422804014327
    elif ACT == "sigmoid":
        y = sigmoid(v) if INPUT else v
        d = y * (1.0 - y)
    elif ACT == "tanh":
        y = tanh(v) if INPUT else v
        d = 1.0 - y * y
    elif ACT == "softplus":
        d = sigmoid(v) if INPUT else -expm1(-v)
    else:
        d = tl.full(v.shape, 1.0, tl.float32)
    return d
