"""An operator called with tensors on a GPU: its checks, its kernel, its gradient.

The checks are the operator's own (tensors.py lets them read a tensor). The kernels are those of the ``triton`` backend, a module
``triton_backend.py`` in a room, with the signatures that op.py describes, over plain tensors. Where they cannot serve a call
(no such kernel, no Triton, a GPU too old), torch's operator of the same name does, and a warning says so once; a call
under ``use_backend("triton")`` raises instead.
"""

from __future__ import annotations

import contextlib
import operator
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch

from ..op import _flatten, _reshape, current_backend
from ..torch import _Gradient
from . import configs, device, fallback, tape
from .tensors import DeviceTensor

_calls = tape.Memory()
_backward_calls: dict[Any, tape.Memory] = {}  # of calls with a gradient, by their look: backward passes, by their gradients' look


@configs.also_forget.append
def _forget():
    _calls.forget()
    _backward_calls.clear()


def _backwards(key):
    if key is None:
        return None
    if len(_backward_calls) >= tape.ENTRIES:
        _backward_calls.clear()
    return _backward_calls.setdefault(key, tape.Memory())


def call(op, args, kwargs):
    """The operator's answer to arguments among which are tensors on a GPU."""
    tensors: list[torch.Tensor] = []
    key, record = _look(op, args, kwargs, tensors), False
    if key is not None:
        played, record = _calls.get(key)
        if played is not None:
            if played.call is None:
                return played.answer(played.tape.play(tensors))
            return _Differentiable.apply(played, *tensors)
    recorder = tape.Recorder(tensors) if record else None
    return _serve(op, args, kwargs, recorder, key)


def _look(op, args, kwargs, tensors):
    """What decides all that the call's host code does, hashable, and its tensors in the operator's order; None for odd calls."""
    if configs.forced():
        return None
    try:
        looks = [tape.look(v, tensors) for v in args]
        for i, name in op._positions:  # the operator's order also where they are named
            if i >= len(args):
                looks.append(tape.look(kwargs.get(name), tensors))
        looks += [(name, tape.look(v, [])) for name, v in kwargs.items() if name not in op.tensors]
    except tape.Odd:
        return None
    given = [v for v in _flatten(op._given(args, kwargs)) if v is not None]
    if not tensors or tensors[0].device.type == "meta" or len(tensors) != len(given) or any(map(operator.is_not, tensors, given)):
        return None
    flags = None
    if any(t.dtype is torch.float32 for t in tensors):
        flags = [device.tf32_allowed(kind) for kind in ("matmul", "conv", "rnn")]
    return (op.name, *looks, torch.is_grad_enabled(), current_backend(), *(flags or ()))


def _serve(op, args, kwargs, recorder, key):
    """The usual way to an answer, recorded where there is a recorder."""
    tensors = _operands(op, args, kwargs)
    chosen = current_backend()
    if chosen not in (None, "triton"):
        raise ValueError(f"{op.name}: the tensors are on {tensors[0].device} and the backend {chosen!r} was chosen, which takes arrays on "
                         "the CPU; the rule is use_backend('triton') or none")
    implementation = op.on("triton")
    reason = implementation if isinstance(implementation, str) else device.refusal(tensors[0])
    if reason is not None and tensors[0].device.type == "cpu":
        raise ValueError(f"{op.name}: use_backend('triton') was chosen: {reason}")
    with recorder or contextlib.nullcontext():
        arrays, params, shapes = op.prepare(*_wrapped(args), **_wrapped_options(op, kwargs))
        arrays = tuple(None if a is None else a.tensor for a in arrays)
        if reason is None and implementation.supports is not None:
            reason = implementation.supports(arrays, params)
    if reason is not None:
        if recorder:
            _calls.keep(key, None)
        return _fall_through(op, args, kwargs, reason)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        flat = _flatten(op._given(args, kwargs))
        record = _Call(op.name, implementation, arrays, params, shapes, flat, recorder, key, _backwards(key))
        return _Differentiable.apply(record, *(f for f in flat if isinstance(f, torch.Tensor)))
    with recorder or contextlib.nullcontext():
        y, _ = implementation.forward(arrays, params, False)
        y = y if shapes is None else _reshape(y, shapes)
    if recorder:
        _keep(recorder, key, y)
    return y


class _Played(NamedTuple):
    """A recorded call."""

    tape: tape.Tape
    single: bool  # it answers one tensor
    many: int  # how many it answers
    # for calls with a gradient, else None
    call: Any = None
    form: Any = None
    saved: Any = None  # with places for tensors, as ``inputs``
    inputs: Any = None
    integers: tuple = ()  # which outputs have no gradient

    def answer(self, tensors):
        return tensors[0] if self.single else tuple(tensors[: self.many])


def _keep(recorder, key, y, kept=(), **rest):
    """Remember what was recorded, where it can be repeated."""
    answers = y if isinstance(y, tuple) else (y,)
    made = recorder.finish([*answers, *kept]) if all(isinstance(t, torch.Tensor) for t in answers) else None
    if made is not None and made.answers_given(len(answers)):
        made = None  # what autograd is to make of a view of an operand, it is told the usual way
    _calls.keep(key, None if made is None else _Played(made, not isinstance(y, tuple), len(answers), **rest))


_said: set[str] = set()


def _fall_through(op, args, kwargs, reason):
    if current_backend() == "triton":
        raise ValueError(f"{op.name}: the triton backend cannot serve this call: {reason}")
    function = fallback.torch_function(op.name, args, kwargs)
    if isinstance(function, str):
        raise ValueError(f"{op.name}: Triton's kernels cannot serve this call ({reason}), nor can torch's operator ({function})")
    if op.name not in _said:
        _said.add(op.name)
        warnings.warn(f"{op.name}: torch's operator serves this call ({reason}); said once", stacklevel=5)
    return function()


# ------------------------------------------------------------------------------------------------ arguments
def _operands(op, args, kwargs):
    """The tensors among the operator's array arguments: all on one device."""
    named = []
    for i, name in op._positions:
        value = args[i] if i < len(args) else kwargs.get(name)
        if isinstance(value, (tuple, list)):
            named += [(f"{name}[{j}]", v) for j, v in enumerate(_flatten(value))]
        else:
            named.append((name, value))
    tensors = [(name, v) for name, v in named if isinstance(v, torch.Tensor)]
    if not tensors:
        raise TypeError(f"{op.name}: an option is a tensor on a GPU and {named[0][0]} is no tensor; the rule is one kind for all")
    first, tensor = tensors[0]
    for name, v in named:
        if isinstance(v, np.ndarray):
            raise TypeError(f"{op.name}: {name} is a numpy array and {first} is a torch tensor; the rule is one kind for all")
    for name, v in tensors:
        if v.device != tensor.device:
            raise ValueError(f"{op.name}: {name} is on {v.device}, {first} is on {tensor.device}; the rule is one device for all")
        if v.layout is not torch.strided:
            raise TypeError(f"{op.name}: {name} has layout {v.layout}; the rule is torch.strided (dense)")
    return [t for _, t in tensors]


def _wrap(value):
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return DeviceTensor(value.resolve_neg() if value.is_neg() else value)
    if isinstance(value, (tuple, list)):
        return type(value)(map(_wrap, value)) if type(value) in (tuple, list) else tuple(map(_wrap, value))
    return value


def _wrapped(args):
    return tuple(map(_wrap, args))


def _wrapped_options(op, kwargs):
    """Array arguments as the checks see them; an option's tensor (the lengths of sequences) as an array, which waits for the GPU."""
    return {name: v.detach().cpu().numpy() if isinstance(v, torch.Tensor) and name not in op.tensors else _wrap(v)
            for name, v in kwargs.items()}


# ------------------------------------------------------------------------------------------------ gradients
class _Call(NamedTuple):
    name: str
    implementation: Any
    arrays: tuple
    params: Any
    shapes: Any
    flat: list  # the operator's tensor arguments in the order of its gradients
    recorder: Any
    key: Any
    backwards: Any  # recorded backward passes of calls that look the same, None for odd ones


class _Differentiable(torch.autograd.Function):
    """An operator with its backward kernels, for torch.autograd: served the usual way (a _Call) or played (a _Played)."""

    @staticmethod
    def forward(ctx, given, *tensors):
        if type(given) is _Played:
            played = given
            tensors_made = played.tape.play(tensors)
            answers, kept = _own(tensors_made[: played.many], tensors_made[played.many :])
            result = played.answer(answers)
            ctx.form, ctx.saved, ctx.inputs, ctx.call = played.form, played.saved, played.inputs, played.call
            if played.integers:
                ctx.mark_non_differentiable(*(answers[i] for i in played.integers))
        else:
            result, kept = _Differentiable.serve(ctx, given)
        # saved_tensors makes torch refuse, as for its own operators, when one was changed in place in between
        ctx.save_for_backward(*tensors, *kept)
        ctx.given = len(tensors)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def serve(ctx, call):
        if call.implementation.backward is None:
            raise ValueError(f"{call.name}: the triton backend has no gradient for it")
        with call.recorder or contextlib.nullcontext():
            y, saved = call.implementation.forward(call.arrays, call.params, True)
            result = y if call.shapes is None else _reshape(y, call.shapes)
        ctx.form = tuple(t.shape for t in y) if isinstance(y, tuple) else y.shape
        kept: list[torch.Tensor] = []
        ctx.saved = _put_away(saved, kept)
        ctx.inputs = _put_away(call.arrays, kept)
        ctx.call = call._replace(arrays=None, recorder=None, key=None,
                                 flat=[None if f is None else (f.shape, isinstance(f, torch.Tensor)) for f in call.flat])
        outputs, kept_own = _own(list(result) if isinstance(result, tuple) else [result], kept)
        integers = tuple(i for i, t in enumerate(outputs) if not t.is_floating_point())
        ctx.mark_non_differentiable(*(outputs[i] for i in integers))
        if call.recorder:
            _keep(call.recorder, call.key, result, kept, call=ctx.call, form=ctx.form, saved=ctx.saved, inputs=ctx.inputs,
                  integers=integers)
        return tuple(outputs) if isinstance(result, tuple) else outputs[0], kept_own

    @staticmethod
    def backward(ctx, *grads):
        tensors = ctx.saved_tensors
        inputs, kept = tensors[: ctx.given], tensors[ctx.given :]
        with torch.no_grad():
            found = _Differentiable.answer(ctx, kept, grads)
        # where a graph of the gradients is asked for, torch finds its way through them to a clear error
        return (None, *(_Gradient.apply(ctx.call.name, len(found), *found, *inputs, *grads) if torch.is_grad_enabled() else found))

    @staticmethod
    def answer(ctx, kept, grads):
        """The gradients: played where a backward pass that looks the same was recorded."""
        key, given, record, backwards = None, [], False, ctx.call.backwards
        if backwards is not None and not configs.forced():
            with contextlib.suppress(tape.Odd):
                key = (ctx.needs_input_grad, *[tape.look(g, given) for g in grads])
                played, record = backwards.get(key)
                if played is not None:
                    found = iter(played.tape.play([*given, *kept]))
                    return tuple(next(found) if there else None for there in played.form)
        recorder = tape.Recorder([*given, *kept]) if record else None
        with recorder or contextlib.nullcontext():
            found = _Differentiable.gradients(ctx, kept, grads)
        if recorder:
            there = tuple(g is not None for g in found)
            made = recorder.finish([g for g in found if g is not None])
            backwards.keep(key, None if made is None else _Played(made, False, sum(there), form=there))
        return found

    @staticmethod
    def gradients(ctx, kept, grads):
        call, form = ctx.call, ctx.form
        arrays, saved = _take_out(ctx.inputs, kept), _take_out(ctx.saved, kept)
        wanted = iter(ctx.needs_input_grad[1:])
        flat_needs = tuple(f is not None and f[1] and next(wanted) for f in call.flat)
        if all(g is None for g in grads):
            return (None,) * (len(ctx.needs_input_grad) - 1)
        needs = tuple(bool(n) and a is not None and a.is_floating_point() for n, a in zip(flat_needs, arrays, strict=True))
        if not isinstance(form, torch.Size):  # several outputs
            given = tuple(None if g is None else g.reshape(s) for g, s in zip(grads, form, strict=True))
        else:
            given = grads[0].reshape(form)
        found = call.implementation.backward(given, arrays, saved, call.params, needs)
        return tuple(None if g is None or not n else g.reshape(f[0])
                     for g, n, f in zip(found, needs, call.flat, strict=True) if f is not None and f[1])


def _own(answers, kept):
    """The same where no answer is a view of a tensor that nobody sees: torch lets nobody change such a one in place.

    What is kept of an answer's memory becomes a view of the answer, so that a change is noticed.
    """
    for i, y in enumerate(answers):
        if y._is_view():
            memory = y.untyped_storage()
            answers[i] = own = torch.empty(0, dtype=y.dtype, device=y.device).set_(memory, y.storage_offset(), y.shape, y.stride())
            start = memory.data_ptr()
            kept = [own.as_strided(t.shape, t.stride(), t.storage_offset()) if t.untyped_storage().data_ptr() == start and start else t
                    for t in kept]
    return answers, kept


def _put_away(value, kept):
    """``value`` with places in ``kept`` for its tensors."""
    if isinstance(value, torch.Tensor):
        kept.append(value)
        return _Place(len(kept) - 1)
    if isinstance(value, (tuple, list)):
        items = [_put_away(v, kept) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


class _Place(NamedTuple):
    index: int


def _take_out(value, kept):
    if isinstance(value, _Place):
        return kept[value.index]
    if isinstance(value, (tuple, list)):
        items = [_take_out(v, kept) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
