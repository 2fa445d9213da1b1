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

from typing import NamedTuple

import numpy as np

from ..op import _is_torch as is_tensor
from .parameter import Parameter, as_array, data_of

_WORKED_OUT = ("_bound", "_chains", "_steps", "_training_steps", "_version")  # names of what modules keep beside their state
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

    def run_for(self, x, options):
        """What a call with x and options does, as a function of arrays of x's form whose answers all have one form; None where there
        is no such function. It holds until an attribute of this module is set."""
        return None

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
