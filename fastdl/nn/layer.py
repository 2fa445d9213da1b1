"""A layer of one operator: most layers are."""

from __future__ import annotations

import numpy as np

from .. import functional as F
from ..op import _is_torch as is_tensor
from ..op import generation
from .module import Module
from .parameter import Parameter, accumulate, data_of, packed_of, wants_gradient

_MOST_BOUND = 64  # forms of x that a layer remembers


def _plain(x):
    """Whether kernels take an array as it lies, wherever it lies: of whole elements apart, in the machine's byte order."""
    return x.dtype.isnative and not any(stride % x.itemsize for stride in x.strides)


class OperatorLayer(Module):
    """A layer that maps one array through one operator: it names the operator and says with what.

    A call's keyword arguments are further options of the operator (what a Sequential fuses into it); with ``pool``, the operator
    that ends in a 2 x 2 max-pool is called.
    """

    operator: str  # its name in fastdl.functional
    # Whether a call is settled by the layer's attributes and the form of x: no values are checked, nothing is drawn. Each class
    # says so for itself, for one made from it may do something else.
    binds = False

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "binds" not in cls.__dict__:
            cls.binds = False

    def arguments(self, x) -> tuple[tuple, dict]:
        """What follows x in the operator's call: positional arguments, Parameters and plain values (None for an absent
        Parameter only), and options."""
        return (), {}

    def forward(self, x, *extra, **more):
        if not extra and (run := self._run(x, more)) is not None:
            return run(x)
        return self._call(x, *extra, **more)

    def run_for(self, x, options):
        return self._run(x, options)

    def _run(self, x, options):
        """The operator's call bound to x's form, or None."""
        fused, pool = options.get("activation"), options.get("pool", False)
        if (not self.binds or type(x) is not np.ndarray or len(options) != (fused is not None) + pool
                or (fused is not None and type(fused) not in (str, tuple))):
            return None
        # checks and choices cost more than a small layer's work: they are made once for each form of x
        key = x.shape, x.strides, x.dtype, generation(), fused, pool
        bound = self.__dict__.get("_bound")
        run = None if bound is None else bound.get(key)
        return self._bind(key, x, **options) if run is None else run

    def _call(self, x, *extra, pool=False, **more):
        positional, options = self.arguments(x, *extra)
        if more:
            options = {**options, **more}
        return self._operator(pool)(x, *map(packed_of, positional), **options)

    def _operator(self, pool):
        return getattr(F, f"{self.operator}_max_pool2d" if pool else self.operator)

    def _bind(self, key, x, pool=False, **more):
        """What serves arrays of x's form from now on."""
        positional, options = self.arguments(x)
        operator = self._operator(pool)
        run = operator.bind(x, *map(packed_of, positional), **{**options, **more}) if _plain(x) else None
        if run is None:
            return lambda x: self._call(x, pool=pool, **more)
        bound = self.__dict__.setdefault("_bound", {})
        if len(bound) >= _MOST_BOUND:
            bound.clear()
        bound[key] = run
        return run

    def vjp(self, x, *extra, pool=False, **more):
        positional, options = self.arguments(x, *extra)
        if more:
            options = {**options, **more}
        y, operator_pullback = self._operator(pool).vjp(x, *[data_of(a) for a in positional], **options)
        tensors = [a for a in positional if a is None or isinstance(a, (Parameter, np.ndarray)) or is_tensor(a)]  # one gradient for each

        def pullback(dy, needs=True):
            wanted = (needs, *wants_gradient(tensors))
            if not any(wanted):
                return None
            dx, *gradients = operator_pullback(dy, needs=wanted)
            if gradients:
                accumulate(tensors, gradients, dx, dy)
            return dx

        return y, pullback
