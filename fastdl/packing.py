"""Weights used again: ``fastdl.pack``, and the prepared forms that kernels keep behind a packed array.

A packed array is a plain read-only numpy array; what is special is the owner of its memory, which carries a dictionary of
forms (a weight in a kernel's order, a Winograd transform). A kernel asks :func:`prepared` for a form and makes it only if
there is none. Since nobody can write through a packed array, a form is never stale.
"""

from __future__ import annotations

import math

import numpy as np

_LINE = 64  # bytes of a cache line
VERSION = "version"  # the key of what stands for an owner's present values


class Owner(np.ndarray):
    """Memory with prepared forms; seen only as the base of packed arrays."""

    forms: dict


class Memory(np.ndarray):
    """What an Owner stands on."""


class Plain(np.ndarray):
    """Stands between an Owner and its views that are not packed."""


def owned(values: np.ndarray) -> tuple[Owner, np.ndarray, np.ndarray]:
    """A copy of ``values`` as (owner, packed read-only view, plain view to write to).

    Whoever writes to the plain view must then renew ``owner.forms``. numpy makes the base of a view the first array of the chain
    that owns memory or whose own base is of another class: hence Memory below the owner.
    """
    owner = aligned(values.shape, values.dtype, Owner)
    owner[...] = values
    owner.forms = {}
    packed = owner.view(np.ndarray)
    packed.flags.writeable = False
    return owner, packed, owner.view(Plain).view(np.ndarray)


def aligned(shape, dtype, kind=np.ndarray) -> np.ndarray:
    """A new array, its values not set, whose memory begins with a cache line: else each vector may lie in two lines."""
    dtype = np.dtype(dtype)
    memory = Memory(math.prod(shape) * dtype.itemsize + _LINE, np.uint8)
    return kind(shape, dtype, memory, -memory.ctypes.data % _LINE)


def pack(weight):
    """A read-only copy of a weight whose prepared forms are kept from call to call.

    ``w = fastdl.pack(w)`` once, then ``F.conv2d(x, w)`` as often as needed: what a kernel would do to the weight at every
    call (reorder, transform) is done at the first. Layers do this by themselves. The copy holds the values of now; later
    changes to ``weight`` do not reach it.

    weight: a float32 or float64 array. Raises TypeError for anything else.
    """
    from .check import array

    owner, packed, _ = owned(array("pack", "weight", weight))
    owner.flags.writeable = False
    return packed


def is_packed(weight: np.ndarray) -> bool:
    return _owner(weight) is not None


def version(weight: np.ndarray) -> object | None:
    """What stands for the values that a packed array's memory has now: another object after each change. None: not packed."""
    owner = weight.base if type(weight.base) is Owner else _owner(weight)
    if owner is None:
        return None
    forms = owner.forms
    return forms.get(VERSION) or forms.setdefault(VERSION, object())


def _owner(weight):
    base = weight.base
    while type(base) is np.ndarray:
        base = base.base
    return base if type(base) is Owner else None


def prepared(weight: np.ndarray, kind, make):
    """``make()``, or the answer that an earlier call gave for this very part of a packed array.

    kind: what form it is, anything hashable; ``make`` must depend on it and on the weight only.
    """
    owner = _owner(weight)
    if owner is None:
        return make()
    forms, key = owner.forms, _key(owner, weight, kind)  # a change of the weight puts a new dictionary there: what is being made
    form = forms.get(key)  # now goes with the old one
    return _made(owner, forms, key, make) if form is None else form


def keeper(weight: np.ndarray, kind, make):
    """A function that answers as :func:`prepared` does, for one part of a packed array, again and again."""
    owner = _owner(weight)
    key = _key(owner, weight, kind)

    def form():
        forms = owner.forms
        found = forms.get(key)
        return _made(owner, forms, key, make) if found is None else found

    return form


def _made(owner, forms, key, make):
    """A new form. It is kept unless it is the weight itself seen otherwise: an owner that holds its own view would never be freed."""
    form = make()
    if not any(type(part) is np.ndarray and _owner(part) is owner for part in (form if type(form) is tuple else (form,))):
        forms[key] = form
    return form


def _key(owner, weight, kind):
    whole = weight.size == owner.size and weight.flags.c_contiguous  # then it begins where the owner does
    return kind, weight.shape, weight.strides, 0 if whole else weight.__array_interface__["data"][0]
