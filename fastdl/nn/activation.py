"""Activations and dropout as layers. ``inplace`` is taken so that torch's calls work; fastdl never writes to its input."""

from __future__ import annotations

from .. import check
from . import init
from .layer import OperatorLayer


class ReLU(OperatorLayer):
    """max(x, 0)."""

    operator, binds = "relu", True

    def __init__(self, inplace=False):
        self.inplace = inplace

    def extra_repr(self):
        return "inplace=True" if self.inplace else ""


class LeakyReLU(OperatorLayer):
    """x where it is positive, negative_slope * x elsewhere."""

    operator, binds = "leaky_relu", True

    def __init__(self, negative_slope=0.01, inplace=False):
        self.negative_slope = check.number("LeakyReLU", "negative_slope", negative_slope)
        self.inplace = inplace

    def arguments(self, x):
        return (), {"negative_slope": self.negative_slope}

    def extra_repr(self):
        return f"negative_slope={self.negative_slope}" + (", inplace=True" if self.inplace else "")


class ELU(OperatorLayer):
    """x where it is positive, alpha * (exp(x) - 1) elsewhere."""

    operator, binds = "elu", True

    def __init__(self, alpha=1.0, inplace=False):
        self.alpha = check.number("ELU", "alpha", alpha)
        self.inplace = inplace

    def arguments(self, x):
        return (), {"alpha": self.alpha}

    def extra_repr(self):
        return f"alpha={self.alpha}" + (", inplace=True" if self.inplace else "")


class GELU(OperatorLayer):
    """x times the normal distribution function of x; approximate="tanh" for the approximation by tanh."""

    operator, binds = "gelu", True

    def __init__(self, approximate="none"):
        self.approximate = check.choice("GELU", "approximate", approximate, ("none", "tanh"))

    def arguments(self, x):
        return (), {"approximate": self.approximate}

    def extra_repr(self):
        return f"approximate={self.approximate!r}"


class Sigmoid(OperatorLayer):
    """1 / (1 + exp(-x))."""

    operator, binds = "sigmoid", True


class Tanh(OperatorLayer):
    """The hyperbolic tangent."""

    operator, binds = "tanh", True


class Softplus(OperatorLayer):
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x is over threshold."""

    operator, binds = "softplus", True

    def __init__(self, beta=1.0, threshold=20.0):
        self.beta = check.number("Softplus", "beta", beta)
        self.threshold = check.number("Softplus", "threshold", threshold)

    def arguments(self, x):
        return (), {"beta": self.beta, "threshold": self.threshold}

    def extra_repr(self):
        return f"beta={self.beta}, threshold={self.threshold}"


class Dropout(OperatorLayer):
    """In training, each element zeroed with probability p and the others multiplied by 1 / (1 - p); else x itself.

    Each call draws its mask from the generator that :func:`fastdl.nn.manual_seed` restarts.
    Source: N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting" (2014).
    """

    operator = "dropout"

    def __init__(self, p=0.5, inplace=False):
        self.p = check.number("Dropout", "p", p, 0, 1)
        self.inplace = inplace

    def arguments(self, x):
        return (), {"p": self.p, "seed": init.draw_seed()}

    def forward(self, x):
        return super().forward(x) if self.training and self.p else x

    def vjp(self, x):
        if self.training and self.p:
            return super().vjp(x)
        return x, lambda dy, needs=True: dy if needs else None

    def extra_repr(self):
        return f"p={self.p}, inplace={self.inplace}"


class _AlongDim(OperatorLayer):
    def __init__(self, dim=None):
        self.dim = None if dim is None else check.integer(type(self).__name__, "dim", dim)

    def arguments(self, x):
        return (), {"dim": self.dim}

    def extra_repr(self):
        return f"dim={self.dim}"


class Softmax(_AlongDim):
    """exp(x) over its sum along dim."""

    operator, binds = "softmax", True


class LogSoftmax(_AlongDim):
    """The logarithm of the softmax along dim."""

    operator, binds = "log_softmax", True
