"""Vector-Jacobian products: the one way to a gradient."""

from __future__ import annotations


def vjp(f, *arrays, **options):
    """The value of an operator (or layer) and a function that pulls a gradient back through it.

    ``y, pullback = fastdl.vjp(F.conv2d, x, w, b, padding=1)``; ``dx, dw, db = pullback(dy)``.

    f: an operator of :mod:`fastdl.functional`, or anything with a ``vjp`` method (a layer).
    arrays: its positional arguments. options: its keyword arguments, which get no gradient.

    The pullback takes the gradient of a scalar loss with respect to ``y`` (an array of ``y``'s shape, or a number that
    stands for a constant array; a tuple of them, None where there is no gradient, where ``y`` is a tuple) and returns
    a tuple with one gradient for each tensor argument given by position: None for those that have none (labels, an
    absent bias), a tuple or list where the argument was one. ``pullback(dy, needs=(False, True, True))`` skips the work
    for gradients nobody needs and answers None for them. It may be called more than once. The name and the form are
    JAX's (``jax.vjp``).

    Tensors are taken as arrays are, and answered in kind; ``y`` is then detached from torch's graph.

    Raises TypeError where f has no gradient rule; and what f raises.
    """
    method = getattr(f, "vjp", None)
    if method is None:
        raise TypeError(f"vjp: f must be a fastdl operator or layer, got {f!r}")
    return method(*arrays, **options)
