"""What a layer is: its parameters, its state, and the two ways to call it.

    y = layer(x)                     inference: ``forward``
    y, pullback = layer.vjp(x)       training
    dx = pullback(dy)                the input's gradient; adds into each ``parameter.grad``

A pullback holds everything its backward pass needs, so a layer may be used twice before either pullback runs, and from
several threads. ``pullback(dy, needs=False)`` skips the work for ``dx`` and answers None; parameters with
``requires_grad = False`` cost nothing either. Layers such as Dropout and BatchNorm obey ``training`` in both calls, as
torch's do: call ``model.eval()`` before inference.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from typing import NamedTuple

import numpy as np

from .. import functional as F
from ..op import _is_torch as is_tensor
from ..op import generation
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
        return tuple(self.data.shape)

    @property
    def dtype(self):
        return self.data.dtype

    @property
    def size(self):
        return math.prod(self.shape)

    def __repr__(self):
        frozen = "" if self.requires_grad else ", requires_grad=False"
        return f"Parameter({self.shape}, {self.dtype}{frozen})"


@contextlib.contextmanager
def edit_all(parameters):
    """The arrays of many parameters, to write to, as ``edit`` gives one."""
    try:
        yield [p._array for p in parameters]
    finally:
        for p in parameters:
            p._owner.forms = {}


_WORKED_OUT = ("_bound", "_steps", "_version")  # names of what modules keep beside their state
_changes = 0


def changes() -> int:
    """How often an attribute of any module was set: what was worked out from attributes holds while this number stays."""
    return _changes


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict(strict=False)`` left aside."""

    missing_keys: list
    unexpected_keys: list


class Module:
    """The base of all layers and models.

    Parameters, buffers and child modules are plain attributes, found in the order of assignment; names are torch's
    dotted paths. A model of one's own defines ``forward(x)``, and ``vjp(x)`` where it is to be trained::

        class Residual(nn.Module):
            def __init__(self, body):
                self.body = body

            def forward(self, x):
                return x + self.body(x)

            def vjp(self, x):
                y, body_pullback = self.body.vjp(x)
                return x + y, lambda dy, needs=True: dy + body_pullback(dy)
    """

    training = True
    _buffers: tuple = ()  # names of the attributes that are buffers

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value)
        self._changed()

    def __delattr__(self, name):
        object.__delattr__(self, name)
        self._changed()

    def _changed(self):
        """Forget what was worked out from attributes (see OperatorLayer.forward and Sequential.forward)."""
        global _changes
        _changes += 1
        self.__dict__["_version"] = _changes
        self.__dict__.pop("_bound", None)

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name not in _WORKED_OUT}

    def __call__(self, *inputs, **options):
        return self.forward(*inputs, **options)

    def forward(self, *inputs, **options):
        raise TypeError(f"{type(self).__name__} defines no forward")

    def vjp(self, *inputs, **options):
        """``(y, pullback)``; ``pullback(dy, needs=True)`` answers the input's gradient and adds into each parameter's ``grad``."""
        raise TypeError(f"{type(self).__name__} defines no vjp, so it can be called but not trained")

    # ---- what it holds
    def register_buffer(self, name: str, value) -> None:
        """Make ``value`` (an array or None) part of the state that no optimiser changes."""
        self._buffers = (*self._buffers, name)
        setattr(self, name, value)

    def named_children(self):
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self):
        for _, child in self.named_children():
            yield child

    def named_modules(self, prefix: str = ""):
        """This module and all below it, each once, as (dotted name, module)."""
        yield from self._walk(prefix, set())

    def modules(self):
        for _, module in self.named_modules():
            yield module

    def _walk(self, prefix, seen):
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(f"{prefix}.{name}" if prefix else name, seen)

    def named_parameters(self):
        """(name, Parameter) of each parameter, each once."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}.{name}" if prefix else name, value

    def parameters(self):
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self):
        for prefix, module in self.named_modules():
            for name in module._buffers:
                if getattr(module, name) is not None:
                    yield f"{prefix}.{name}" if prefix else name, getattr(module, name)

    def buffers(self):
        for _, buffer in self.named_buffers():
            yield buffer

    # ---- its state
    def state_dict(self) -> dict[str, np.ndarray]:
        """Every parameter and buffer by its torch name. The arrays are the model's own, not copies, as in torch: to
        keep a snapshot, copy them. A parameter's is read-only (see Parameter). One that two modules share appears under
        both names."""
        return {name: data_of(value) for name, value in self._own_state().items()}

    def _own_state(self) -> dict:
        """As state_dict, with the Parameters themselves."""
        state = {}
        for prefix, module in self._walk("", None):
            dot = f"{prefix}." if prefix else ""
            state.update({dot + name: value for name, value in vars(module).items() if isinstance(value, Parameter)})
            state.update({dot + name: getattr(module, name) for name in module._buffers if getattr(module, name) is not None})
        return state

    def load_state_dict(self, state, strict: bool = True) -> IncompatibleKeys:
        """Copy ``state`` (names to numpy arrays or torch tensors; a torch ``state_dict()`` as it is) into this model.

        A value must have the model's shape and fit its dtype without loss (float16 and bfloat16 into float32, not
        float64 into float32). ``strict=False`` leaves missing and unexpected names aside and returns them.

        Raises ValueError that lists everything missing, unexpected or unfitting; the model is then unchanged.
        """
        own = self._own_state()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        values, problems = {}, []
        for name, target in own.items():
            if name not in state:
                continue
            value = as_array(state[name])
            if value is None:
                problems.append(f"{name} is a {type(state[name]).__name__}, not an array or tensor")
            elif value.shape != target.shape:
                problems.append(f"{name} has shape {value.shape}, the model's is {target.shape}")
            elif not _fits(value.dtype, target):
                problems.append(f"{name} has dtype {value.dtype}, which does not fit the model's {target.dtype} without loss")
            elif isinstance(target, np.ndarray) and not target.flags.writeable:
                problems.append(f"{name} is read-only in the model")
            else:
                values[name] = value
        if strict and unexpected:
            problems.insert(0, f"unexpected: {', '.join(map(str, unexpected))}")
        if strict and missing:
            problems.insert(0, f"missing: {', '.join(missing)}")
        if problems:
            title = f"load_state_dict: the state does not fit {type(self).__name__}; nothing was loaded"
            raise ValueError("\n  ".join([title, *problems]))
        for name, value in values.items():
            if isinstance(own[name], Parameter):
                own[name].data = value
            elif is_tensor(own[name]):
                own[name].copy_(own[name].new_tensor(value))
            else:
                np.copyto(own[name], value)
        return IncompatibleKeys(missing, unexpected)

    # ---- where it lives
    def to(self, device=None, dtype=None):
        """Turn every parameter and buffer into a torch tensor on ``device``, in place; the module.

        It is then called with tensors of that device, forward and by ``vjp``, and kernels of that device serve it: ``"cuda"``,
        or ``"cpu"`` for tensors that share the CPU's kernels. dtype: a torch dtype for the floats among them (``torch.bfloat16``).
        Make optimisers afterwards. :meth:`numpy` is the way back.
        """
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    value.to(device, dtype)
            for name in module._buffers:
                if (value := getattr(module, name)) is not None:
                    setattr(module, name, _to(value, device, dtype))
            module._changed()
        return self

    def numpy(self):
        """Turn every parameter and buffer back into an array (float16 and bfloat16 into float32), in place; the module."""
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    value.numpy()
            for name in module._buffers:
                if is_tensor(value := getattr(module, name)):
                    value = as_array(value)
                    setattr(module, name, value.astype("f4") if value.dtype == np.float16 else value)
            module._changed()
        return self

    def train(self, mode: bool = True):
        """Put this module and all below it into training mode (or out of it)."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self):
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients (each becomes None)."""
        for parameter in self.parameters():
            parameter.grad = None

    # ---- how it reads
    def extra_repr(self) -> str:
        """The constructor's arguments, as they appear between the parentheses of ``repr``."""
        return ""

    def __repr__(self):
        lines = [f"({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.named_children()]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return f"{type(self).__name__}(\n  " + "\n  ".join([extra] * bool(extra) + lines) + "\n)"


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
        fused = more.get("activation") if len(more) == 1 else None
        if self.binds and type(x) is np.ndarray and not extra and (not more or type(fused) in (str, tuple)):
            # checks and choices cost more than a small layer's work: they are made once for each form of x
            key = x.shape, x.strides, x.dtype, generation(), fused
            bound = self.__dict__.get("_bound")
            run = None if bound is None else bound.get(key)
            if run is None:
                run = self._bind(key, x, more)
            return run(x)
        return self._call(x, *extra, **more)

    def _call(self, x, *extra, pool=False, **more):
        positional, options = self.arguments(x, *extra)
        if more:
            options = {**options, **more}
        return self._operator(pool)(x, *map(packed_of, positional), **options)

    def _operator(self, pool):
        return getattr(F, f"{self.operator}_max_pool2d" if pool else self.operator)

    def _bind(self, key, x, more):
        """What serves arrays of x's form from now on."""
        positional, options = self.arguments(x)
        operator = getattr(F, self.operator)
        run = operator.bind(x, *map(packed_of, positional), **{**options, **more}) if _plain(x) else None
        if run is None:
            return lambda x: self._call(x, **more)
        bound = self.__dict__.setdefault("_bound", {})
        if len(bound) >= _MOST_BOUND:
            bound.clear()
        bound[key] = run
        return run

    def vjp(self, x, *extra, pool=False, **more):
        positional, options = self.arguments(x, *extra)
        if more:
            options = {**options, **more}
        y, operator_pullback = self._operator(pool).vjp(x, *map(data_of, positional), **options)
        tensors = [a for a in positional if a is None or isinstance(a, (Parameter, np.ndarray)) or is_tensor(a)]  # one gradient for each

        def pullback(dy, needs=True):
            wanted = (needs, *wants_gradient(tensors))
            if not any(wanted):
                return None
            dx, *gradients = operator_pullback(dy, needs=wanted)
            accumulate(tensors, gradients, dx, dy)
            return dx

        return y, pullback


def _to(value, device, dtype):
    """A buffer as a tensor; dtype is for floats."""
    import torch

    tensor = value if is_tensor(value) else torch.from_numpy(np.array(value))
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _fits(dtype, target) -> bool:
    """Whether values of a numpy dtype can be copied into a parameter or buffer: without loss, or into a tensor of the same kind."""
    if is_tensor(data := data_of(target)):
        return dtype.kind == ("f" if data.is_floating_point() else "i")
    return dtype.kind == target.dtype.kind and np.can_cast(dtype, target.dtype)


_MOST_BOUND = 64  # forms of x that a layer remembers


def _plain(x):
    """Whether kernels take an array as it lies, wherever it lies: of whole elements apart, in the machine's byte order."""
    return x.dtype.isnative and not any(stride % x.itemsize for stride in x.strides)


def data_of(value):
    return value.data if isinstance(value, Parameter) else value


def packed_of(value):
    return value.packed if isinstance(value, Parameter) else value


def wants_gradient(tensors) -> tuple[bool, ...]:
    return tuple(isinstance(a, Parameter) and a.requires_grad for a in tensors)


def accumulate(parameters, gradients, *others) -> None:
    """Add a gradient (or None) into each parameter's ``grad``; safe from several threads.

    A first gradient is kept as it is, without a copy, unless its memory is also one of ``others`` (arrays, or tuples of
    them, that the caller goes on using) or another parameter's gradient: a later ``+=`` would write to both.
    """
    if any(is_tensor(gradient) for gradient in gradients):
        return _accumulate_tensors(parameters, gradients, others)
    taken = {id(_owner(a)) for o in others for a in (o if isinstance(o, (tuple, list)) else (o,)) if a is not None}
    fresh = []
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
