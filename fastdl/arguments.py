"""What dispatch does to arguments and answers: nested ones made flat, shapes given back, gradients checked."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

import numpy as np

from .packing import is_packed

_ndarray = np.ndarray
_F4, _F8 = np.dtype("f4"), np.dtype("f8")  # numpy keeps one object for each
_PLAIN = frozenset((int, str, type(None), bool))


def form_of(args, kwargs):
    """What a call looks like, to know another like it; None where an argument is neither an array of floats, not packed, nor plain, nor
    a tuple or list of these.

    Plain are what ``check.remembered`` says, floats, and numpy's lack of an array, None.
    """
    form = [len(args)]
    for value in (*args, *kwargs, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind is _ndarray:
            dtype = value.dtype
            if (dtype is not _F4 and dtype is not _F8) or (value.base is not None and is_packed(value)):
                return None
            form += value.shape, value.strides, dtype
        elif kind in _PLAIN:
            form += kind, value
        elif not _add_option(form, kind, value):
            return None
    return tuple(form)


def _add_option(form, kind, value):
    """Add a float, a tuple or a list to a form, beside its type: of two values that are equal (1 and 1.0, 0.0 and -0.0) only one may be
    meant."""
    if kind is float:
        form += kind, value or str(value)
    elif kind is tuple or kind is list:
        form += kind, len(value)
        for item in value:
            kind = type(item)
            if kind is _ndarray:
                dtype = item.dtype
                if (dtype is not _F4 and dtype is not _F8) or (item.base is not None and is_packed(item)):
                    return False
                form += item.shape, item.strides, dtype
            elif kind in _PLAIN:
                form += kind, item
            elif not _add_option(form, kind, item):
                return False
    else:
        return False
    return True


def _flatten(values):
    flat = []
    for v in values:
        if isinstance(v, (tuple, list)):
            flat.extend(v)
        else:
            flat.append(v)
    return flat


def _spread(arg, need):
    if not isinstance(arg, (tuple, list)):
        return (need,)
    return tuple(need) if isinstance(need, (tuple, list)) else (need,) * len(arg)


def _reshape(y, shapes):
    if isinstance(y, tuple):
        return tuple(a.reshape(s) for a, s in zip(y, shapes, strict=True))
    return y.reshape(shapes)


def _same_memory(a, b):
    """Whether two arrays of one shape are the same elements, at the same strides where these matter."""
    steps = all(n == 1 or s == t for n, s, t in zip(a.shape, a.strides, b.strides, strict=True))
    return steps and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]


class _Form(NamedTuple):
    """What a pullback must know of an output, without keeping it alive."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, array):
        return cls(array.shape, array.dtype)


def is_of_form(grad, form):
    """Whether an array is a gradient as kernels take it; what is not, ``_check_gradient`` looks at."""
    return (type(form) is _Form and grad.dtype is form.dtype and grad.shape == form.shape and (form.dtype is _F4 or form.dtype is _F8)
            and grad.flags.aligned)


def are_of_forms(grads, forms):
    """The same of a tuple of them, with None for what has no gradient."""
    if len(grads) != len(forms):
        return False
    for grad, form in zip(grads, forms, strict=True):
        if grad is not None and not (type(grad) is _ndarray and is_of_form(grad, form)):
            return False
    return True


def _check_gradient(name, grad, like, kernel_form):
    """The gradient given to a pullback, in the kernel's shape and dtype."""
    if not isinstance(like, _Form):
        if not isinstance(grad, (tuple, list)) or len(grad) != len(like):
            raise TypeError(
                f"{name}: the output is a tuple of {len(like)}, so the pullback takes one of as many (None where there is no gradient)"
            )
        return tuple(None if g is None else _check_gradient(name, g, y, s) for g, y, s in zip(grad, like, kernel_form, strict=True))
    if like.dtype.kind != "f":
        return None  # indices have no gradient
    if _is_torch(grad):
        raise TypeError(f"{name}: the pullback takes a numpy array, got a torch tensor")
    g = np.asarray(grad, dtype=like.dtype)
    if g.shape != like.shape:
        if g.ndim:
            raise ValueError(f"{name}: the gradient given to the pullback has shape {g.shape}, the output has {like.shape}")
        g = np.full(like.shape, g)
    g = even(g)
    return g if g.shape == kernel_form.shape else g.reshape(kernel_form.shape)


def even(value):
    """``value``, or a copy where its elements are not whole elements apart (a field of a packed record): kernels count elements."""
    if value.flags.aligned or not any(stride % value.itemsize for stride in value.strides):
        return value
    return value.copy()


def _is_torch(value) -> bool:
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def _torch_of(args, kwargs):
    """The torch face, where an argument is a torch tensor. torch is never imported here: no torch, no tensors."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    if tensor is None:
        return None
    if (args and isinstance(args[0], tensor)) or any(isinstance(v, tensor) for v in _flatten([*args, *kwargs.values()])):
        return sys.modules.get("fastdl.torch") or importlib.import_module("fastdl.torch")
    return None
