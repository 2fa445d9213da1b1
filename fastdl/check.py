"""The checks that prepare steps share. Every message names the operator, the argument, what it was and the rule."""

from __future__ import annotations

import functools
import operator

import numpy as np

from .op import _is_torch, even

_F4, _F8 = np.dtype("f4"), np.dtype("f8")  # attributes of np, looked up at every call, are slow
_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}
_ndarray = np.ndarray
_PLAIN = frozenset((int, str, type(None), bool))


def array(op: str, name: str, value, ndim=None, kinds: str = "f"):
    """``value`` if it is a numpy array of an allowed kind and rank; else a TypeError or ValueError.

    ndim: an int, a tuple of ints, or None for any. kinds: "f" (float32, float64) or "i" (integers). A tensor on a GPU
    (gpu/tensors.py) has the same ranks and its own kinds: "f" is float32, float16 and bfloat16.
    """
    if type(value) is not _ndarray:
        if on_device(value):
            return _device_tensor(op, name, value, ndim, kinds)
        if _is_torch(value):
            raise TypeError(f"{op}: {name} is a torch tensor and another argument is a numpy array; give all of one kind")
        if not isinstance(value, (np.ndarray, np.generic)):
            raise TypeError(f"{op}: {name} must be a numpy array or a torch tensor, got {type(value).__name__}")
        value = np.asarray(value)
    dtype = value.dtype
    if kinds == "f":
        if dtype is _F4 or dtype is _F8:  # numpy keeps one object for each: nothing is faster
            pass
        elif dtype.str[1:] not in ("f4", "f8"):
            raise TypeError(f"{op}: {name} has dtype {dtype}; the rule is float32 or float64")
        elif not dtype.isnative:
            raise TypeError(f"{op}: {name} has a byte order that is not the machine's; convert it with .astype({dtype.name!r})")
    elif dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} has dtype {dtype}; the rule is an integer type")
    if ndim is not None and value.ndim != ndim:
        rank(op, name, value.shape, ndim)
    return value if value.flags.aligned else even(value)


def rank(op: str, name: str, shape: tuple, ndim) -> None:
    """ndim: an int, or a tuple of them."""
    if len(shape) != ndim and (isinstance(ndim, int) or len(shape) not in ndim):
        rule = f"{ndim}" if isinstance(ndim, int) else " or ".join(map(str, ndim))
        raise ValueError(f"{op}: {name} has {len(shape)} dimensions {shape}; the rule is {rule}")


def on_device(value) -> bool:
    """Whether it is a tensor on a GPU, whose values cannot be looked at without waiting for it."""
    return getattr(value, "is_device_tensor", False)


def _device_tensor(op, name, value, ndim, kinds):
    if kinds == "f" and value.dtype.kind != "f":
        raise TypeError(f"{op}: {name} has dtype {value.dtype}; the rule on a GPU is float32, float16 or bfloat16")
    if kinds != "f" and value.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} has dtype {value.dtype}; the rule is an integer type")
    if ndim is not None:
        rank(op, name, value.shape, ndim)
    return value


def is_float(value) -> bool:
    """Whether it is an array (or a tensor on a GPU) of floats."""
    return (isinstance(value, np.ndarray) or on_device(value)) and value.dtype.kind == "f"


def broadcast_to(value, shape):
    """A view of that shape; ValueError where there is none."""
    if not on_device(value):
        return np.broadcast_to(value, shape)
    if np.broadcast_shapes(value.shape, shape) != shape:
        raise ValueError
    return value.broadcast_to(shape)


def floats(op: str, names: tuple, values: tuple) -> tuple:
    """The values, arrays of floats of one dtype and of any rank."""
    dtype = getattr(values[0], "dtype", None)
    if dtype is _F4 or dtype is _F8:
        for value in values:
            if type(value) is not _ndarray or value.dtype is not dtype or not value.flags.aligned:
                break
        else:
            return values  # at once: a small product takes no longer than its checks
    values = tuple([array(op, name, value) for name, value in zip(names, values, strict=True)])
    for name, value in zip(names[1:], values[1:], strict=True):
        same_dtype(op, name, value, names[0], values[0])
    return values


def remembered(function):
    """A function of plain arguments that remembers its answers: a program gives the same options again and again.

    Plain are integers, booleans, strings, None, tuples of integers and of pairs of them, and named tuples, whose maker has checked
    what they hold. Anything else is worked out anew, for of two values that are equal (1 and 1.0) one may be allowed and the other not.
    """
    cached = functools.lru_cache(maxsize=4096)(function)

    @functools.wraps(function)
    def call(*arguments):
        for value in arguments:
            kind = type(value)
            if kind is tuple:
                for v in value:
                    if type(v) is not int and not (type(v) is tuple and all([type(u) is int for u in v])):
                        return function(*arguments)
            elif kind not in _PLAIN and not issubclass(kind, tuple):
                return function(*arguments)
        return cached(*arguments)

    return call


def same_dtype(op: str, name: str, value, other_name: str, other):
    if value.dtype != other.dtype:
        raise TypeError(f"{op}: {name} is {value.dtype}, {other_name} is {other.dtype}; the rule is one dtype for all")


def integer(op: str, name: str, value, minimum: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{op}: {name} is {number}; the rule is at least {minimum}")
    return number


def integers(op: str, name: str, value, n: int, minimum: int | None = None) -> tuple[int, ...]:
    """An integer, or n of them, as n of them."""
    if isinstance(value, (tuple, list)):
        if len(value) == 1:
            value = tuple(value) * n
        if len(value) != n:
            raise ValueError(f"{op}: {name} has {len(value)} entries; the rule is an integer or {n} of them")
        return tuple(integer(op, name, v, minimum) for v in value)
    return (integer(op, name, value, minimum),) * n


def number(op: str, name: str, value, minimum: float | None = None, maximum: float | None = None) -> float:
    try:
        got = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}") from None
    if (minimum is not None and not got >= minimum) or (maximum is not None and not got <= maximum):
        low = "-inf" if minimum is None else minimum
        high = "inf" if maximum is None else maximum
        raise ValueError(f"{op}: {name} is {got}; the rule is {low} to {high}")
    return got


def all_below(index, n: int) -> bool:
    """Whether every one of some integers is from 0 to n - 1; n: less than 2**63."""
    if not index.size:
        return True
    kind = index.dtype
    if kind.kind == "i":  # what is negative is large without its sign: one pass
        index = index.view(_UNSIGNED[kind.itemsize])
    return bool(np.maximum.reduce(index, axis=None) < n)


def all_within(values, low, high) -> bool:
    """Whether every one of some numbers is from low to high; NaN is not. values: at least one."""
    return bool(np.minimum.reduce(values, axis=None) >= low and np.maximum.reduce(values, axis=None) <= high)


def choice(op: str, name: str, value, allowed):
    if value not in allowed:
        raise ValueError(f"{op}: {name} is {value!r}; the rule is one of {', '.join(map(repr, allowed))}")
    return value
