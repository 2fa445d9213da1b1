"""Weights used again: ``fastdl.pack``, and the prepared forms that kernels keep behind a packed array.

A packed array is a plain read-only numpy array; what is special is the owner of its memory, which carries a dictionary of
forms (a weight in a kernel's order, a Winograd transform). A kernel asks :func:`prepared` for a form and makes it only if
there is none. Since nobody can write through a packed array, a form is never stale.
"""

from __future__ import annotations

import numpy as np

VERSION = "version"  # the key of what stands for an owner's present values


class Owner(np.ndarray):
    """Memory with prepared forms; seen only as the base of packed arrays."""

    forms: dict


class Plain(np.ndarray):
    """Stands between an Owner and its views that are not packed."""


def owned(values: np.ndarray) -> tuple[Owner, np.ndarray, np.ndarray]:
    """A copy of ``values`` as (owner, packed read-only view, plain view to write to).

    Whoever writes to the plain view must then renew ``owner.forms``. The owner allocates the memory itself: numpy makes
    the base of a view the first array of the chain that owns memory or is of another class.
    """
    owner = Owner(values.shape, values.dtype)
    owner[...] = values
    owner.forms = {}
    packed = owner.view(np.ndarray)
    packed.flags.writeable = False
    return owner, packed, owner.view(Plain).view(np.ndarray)


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
    forms = owner.forms  # a change of the weight puts a new dictionary there: what is being made now goes with the old one
    whole = weight.size == owner.size and weight.flags.c_contiguous  # then it begins where the owner does
    key = (kind, weight.shape, weight.strides, 0 if whole else weight.__array_interface__["data"][0])
    form = forms.get(key)
    if form is None:
        form = forms[key] = make()
    return form
