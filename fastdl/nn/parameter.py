"""A layer's parameters: arrays that training changes, their gradients, and what layers do to them from several threads."""

from __future__ import annotations

import contextlib
import math
import os
import threading

import numpy as np

from ..op import _is_torch as is_tensor
from ..packing import owned, version

_gradient_lock = threading.Lock()


def gradient_lock():
    """The lock under which threads that share a model add to its gradients and running statistics."""
    return _gradient_lock


def _new_lock():
    global _gradient_lock
    _gradient_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a child must not inherit a lock that a thread of its parent held
    os.register_at_fork(after_in_child=_new_lock)


class Parameter:
    """An array that training changes; a torch tensor once its module was moved to a device (:meth:`Module.to`).

    data: a float32 or float64 array, kept contiguous. It is read-only, because kernels keep prepared forms of a weight
    and must learn of every change: assign it (``p.data = values`` copies them), or change it in place by
    ``with p.edit() as array: array[...] = ...``. grad: None, or an array of its shape, the sum of what pullbacks have
    added since ``zero_grad``. requires_grad: False freezes it.

    Raises TypeError where data is not of a float dtype.
    """

    __slots__ = ("_array", "_owner", "_packed", "_tensor", "_view", "grad", "requires_grad")

    def __init__(self, data, requires_grad: bool = True):
        data = np.asarray(data)
        if data.dtype not in (np.float32, np.float64):
            raise TypeError(f"Parameter: data has dtype {data.dtype}; the rule is float32 or float64")
        self._own(data)
        self.grad = None
        self.requires_grad = requires_grad

    def _own(self, values):
        self._tensor = None
        self._owner, self._packed, self._array = owned(values)
        self._view = self._array.view()
        self._view.flags.writeable = False

    def to(self, device=None, dtype=None) -> None:
        """As :meth:`Module.to`."""
        import torch

        tensor = torch.from_numpy(np.array(self._array)) if self._tensor is None else self._tensor
        self._tensor = tensor.to(device=device, dtype=dtype)
        self._owner = self._packed = self._array = self._view = None
        if self.grad is not None:
            grad = self.grad if is_tensor(self.grad) else torch.from_numpy(np.array(self.grad))
            self.grad = grad.to(device=device, dtype=dtype)

    def numpy(self) -> None:
        """As :meth:`Module.numpy`."""
        if self._tensor is not None:
            values = as_array(self._tensor)
            self._own(values.astype("f4") if values.dtype == np.float16 else values)
            self.grad = None if self.grad is None else as_array(self.grad)

    @property
    def data(self):
        return self._view if self._tensor is None else self._tensor

    @data.setter
    def data(self, values):
        if self._tensor is not None:
            values = values if is_tensor(values) else self._tensor.new_tensor(np.asarray(values))
        else:
            values = np.asarray(values)
        if values.shape != self.shape:
            raise ValueError(f"Parameter: data of shape {values.shape} was assigned to a parameter of {self.shape}")
        with self.edit() as array:
            if self._tensor is not None:
                array.copy_(values)
            else:
                np.copyto(array, values, casting="same_kind")

    @property
    def packed(self):
        """``data`` with the forms that kernels prepared, for inference (see fastdl.pack)."""
        return self._packed if self._tensor is None else self._tensor

    @property
    def version(self) -> object:
        """An object that is another one after each change of ``data``."""
        return version(self._packed)

    @contextlib.contextmanager
    def edit(self):
        """The array itself, to write to: ``with p.edit() as array: ...``."""
        if self._tensor is not None:
            yield self._tensor
            return
        try:
            yield self._array
        finally:
            self._owner.forms = {}

    def __getstate__(self):
        return np.array(self._array) if self._tensor is None else self._tensor, self.grad, self.requires_grad

    def __setstate__(self, state):
        values, self.grad, self.requires_grad = state
        if is_tensor(values):
            self._owner = self._packed = self._array = self._view = None
            self._tensor = values.clone()
        else:
            self._own(values)

    @property
    def shape(self):
        return self._view.shape if self._tensor is None else tuple(self._tensor.shape)

    @property
    def dtype(self):
        return self._view.dtype if self._tensor is None else self._tensor.dtype

    @property
    def size(self):
        return self._view.size if self._tensor is None else math.prod(self._tensor.shape)

    def __repr__(self):
        frozen = "" if self.requires_grad else ", requires_grad=False"
        return f"Parameter({self.shape}, {self.dtype}{frozen})"


def to_edit(parameters) -> list[np.ndarray]:
    """The arrays of many parameters, to write to; ``edited`` must follow, whatever happens in between."""
    return [p._array for p in parameters]


def edited(parameters) -> None:
    """What kernels prepared of these parameters is no longer true."""
    for p in parameters:
        p._owner.forms = {}


def data_of(value):
    return value.data if isinstance(value, Parameter) else value


def packed_of(value):
    return value.packed if isinstance(value, Parameter) else value


def wants_gradient(tensors) -> tuple[bool, ...]:
    return tuple([isinstance(a, Parameter) and a.requires_grad for a in tensors])


def accumulate(parameters, gradients, *others) -> None:
    """Add a gradient (or None) into each parameter's ``grad``; safe from several threads.

    A first gradient is kept as it is, without a copy, unless its memory is also one of ``others`` (arrays, or tuples of
    them, that the caller goes on using) or another parameter's gradient: a later ``+=`` would write to both.
    """
    for gradient in gradients:
        if type(gradient) is not np.ndarray and is_tensor(gradient):
            return _accumulate_tensors(parameters, gradients, others)
    taken, fresh = set(), []
    for other in others:
        for array in other if isinstance(other, (tuple, list)) else (other,):
            if array is not None:
                taken.add(id(_owner(array)))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and isinstance(parameter, Parameter):
            owner = _owner(gradient)
            if id(owner) in taken or not gradient.flags.writeable:
                gradient = np.array(gradient)
            taken.add(id(owner))
            fresh.append((parameter, gradient))
    with gradient_lock():
        for parameter, gradient in fresh:
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient


def _accumulate_tensors(parameters, gradients, others):
    taken = {t.untyped_storage().data_ptr() for o in others for t in (o if isinstance(o, (tuple, list)) else (o,)) if is_tensor(t)}
    with gradient_lock():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None or not isinstance(parameter, Parameter):
                continue
            if parameter.grad is not None:
                parameter.grad += gradient
                continue
            memory = gradient.untyped_storage().data_ptr()
            parameter.grad = gradient.clone() if memory in taken or 0 in gradient.stride() else gradient
            taken.add(memory)


def _owner(array):
    """The object that owns an array's memory."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def as_array(value):
    """A numpy array of an array's or tensor's values, or None. torch is not imported: a tensor knows how to convert itself."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # numpy has none; float32 holds it exactly
            value = value.float()
        return value.numpy()
    return value if isinstance(value, (np.ndarray, np.generic)) else None
