"""The PyTorch face: operators called with torch tensors.

``F.linear(x, w)`` with tensors comes here from ``op.py``. A CPU tensor and a numpy array are two views of the same
memory, so nothing is copied on the way in, and on the way out only what torch cannot hold (a read-only or reversed view)
or what would make two tensors share memory behind autograd's back. Tensors on a GPU go on to gpu/dispatch.py. Gradients
are torch.autograd's: one Function, made from the operator's own vjp. A function compiled by torch.compile calls operators
between its graphs (a graph break).

Not supported, and refused: a gradient of a gradient, torch.func's transforms, forward-mode derivatives.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import forward_ad

from ..op import _flatten, current_backend

_FLOATS = {torch.float32, torch.float64}
_DTYPES = _FLOATS | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


_outside_graphs = None  # _call, hidden from torch.compile


def call(op, args, kwargs):
    """An operator's answer to arguments among which are tensors."""
    global _outside_graphs
    if "torch._dynamo" not in sys.modules:  # to import it takes seconds; until somebody has, nothing is being compiled
        return _call(op, args, kwargs)
    if _outside_graphs is None:
        _outside_graphs = torch.compiler.disable(_call)
    return _outside_graphs(op, args, kwargs)


def _call(op, args, kwargs):
    if _transforms_active() or forward_ad._current_level >= 0:
        raise RuntimeError(f"{op.name}: torch.func's transforms and forward-mode derivatives are not supported; use torch.autograd")
    if args and getattr(args[0], "is_cuda", False):
        return _on_gpu(op, args, kwargs)
    tensors = []
    plain = _collect([*args, *kwargs.values()], tensors)
    if not plain or current_backend() == "triton":
        if _for_gpu(args, kwargs):
            return _on_gpu(op, args, kwargs)
        if not plain:
            _refuse(op, args, kwargs)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        flat = _flatten(op._given(args, kwargs))
        if any(t.requires_grad and not any(t is f for f in flat) for t in tensors):
            _refuse_gradient(op, args, kwargs, flat)
        return _Differentiable.apply(_Call(op, args, kwargs, tensors, flat), *(f for f in flat if isinstance(f, torch.Tensor)))
    arrays = [_array(t) for t in tensors]
    args, kwargs = _with_arrays(args, kwargs, arrays)
    return _tensors(op(*args, **kwargs), arrays)


def _on_gpu(op, args, kwargs):
    global _dispatch
    if _dispatch is None:
        from ..gpu import dispatch as _dispatch
    return _dispatch.call(op, args, kwargs)


_dispatch = None  # gpu/dispatch.py, imported where it is needed
_IN_PLACE = {"running_mean", "running_var"}  # arguments that an operator writes to


def flat_vjp(op, args, kwargs):
    """``(y, pullback)`` of an operator over tensors, as ``op.flat_vjp`` over arrays, by torch.autograd."""
    leaves = []  # for each of the operator's tensor arguments, flattened: a leaf of the graph, or None

    def leaf(name, v):
        if isinstance(v, (tuple, list)):
            return type(v)([leaf(name, e) for e in v])
        if isinstance(v, torch.Tensor):
            v = v.detach()
            if v.is_floating_point() and name not in _IN_PLACE:
                v.requires_grad_()
        leaves.append(v if isinstance(v, torch.Tensor) and v.requires_grad else None)
        return v

    args, kwargs = list(args), dict(kwargs)
    for i, name in op._positions:
        if i < len(args):
            args[i] = leaf(name, args[i])
        elif name in kwargs:
            kwargs[name] = leaf(name, kwargs[name])
        else:
            leaves.append(None)
    with torch.enable_grad():
        y = op(*args, **kwargs)
    outputs = y if isinstance(y, tuple) else (y,)
    edges = [torch.autograd.graph.get_gradient_edge(t) if t.requires_grad else None for t in outputs]  # these do not keep y alive
    forms = [(t.shape, t.dtype, t.device) for t in outputs]

    def pullback(grad, needs=None):
        if isinstance(y_form, tuple) and (not isinstance(grad, (tuple, list)) or len(grad) != len(forms)):
            raise TypeError(f"{op.name}: the output is a tuple of {len(forms)}, so the pullback takes one of as many "
                            "(None where there is no gradient)")
        given = [(edge, _gradient_of_output(op.name, g, *form))
                 for edge, g, form in zip(edges, grad if isinstance(y_form, tuple) else (grad,), forms, strict=True)
                 if edge is not None and g is not None]
        wanted = [i for i, v in enumerate(leaves) if v is not None and (needs is None or needs[i])]
        found = [None] * len(leaves)
        if given and wanted:
            answers = torch.autograd.grad([edge for edge, _ in given], [leaves[i] for i in wanted], [g for _, g in given],
                                          retain_graph=True, allow_unused=True)
            for i, g in zip(wanted, answers, strict=True):
                found[i] = g
        return tuple(found)

    y_form = (None,) if isinstance(y, tuple) else None
    return tuple(t.detach() for t in y) if isinstance(y, tuple) else y.detach(), pullback


def _gradient_of_output(name, grad, shape, dtype, device):
    """The gradient given to a pullback as a tensor of the output's form; a number stands for a constant one."""
    if isinstance(grad, np.ndarray) and grad.ndim:
        raise TypeError(f"{name}: the pullback takes a torch tensor, got a numpy array")
    if not isinstance(grad, torch.Tensor):
        return torch.full(shape, float(grad), dtype=dtype, device=device)
    if grad.ndim == 0 and shape:
        return grad.to(dtype).expand(shape)
    if grad.shape != shape:
        raise ValueError(f"{name}: the gradient given to the pullback has shape {tuple(grad.shape)}, the output has {tuple(shape)}")
    return grad.to(dtype)


class _Call(NamedTuple):
    op: Any
    args: tuple
    kwargs: dict
    tensors: list  # all, in the order of the arguments
    flat: list  # the operator's tensor arguments in the order of its gradients, lists and tuples opened


class _Differentiable(torch.autograd.Function):
    """An operator with its pullback, for torch.autograd."""

    @staticmethod
    def forward(ctx, call, *tensors):
        arrays = [_array(t) for t in call.tensors]
        args, kwargs = _with_arrays(call.args, call.kwargs, arrays)
        y, ctx.pullback = call.op.flat_vjp(*args, **kwargs)
        result = _tensors(y, arrays)
        ctx.is_tensor = [isinstance(f, torch.Tensor) for f in call.flat]
        ctx.name = call.op.name
        ctx.many = isinstance(result, tuple)
        outputs = [(t, a) for t, a in zip(result, y, strict=True)] if ctx.many else [(result, y)]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for t, _ in outputs if t.dtype not in _FLOATS))
        # The kernel reads this memory again in its backward pass. Saved this way, torch refuses (as it does for its own
        # operators) when one of them was changed in place in between.
        kept = _arrays_in(ctx.pullback.saved)
        ctx.save_for_backward(*tensors, *(t for t, a in outputs if any(np.may_share_memory(a, k) for k in kept)))
        return result

    @staticmethod
    def backward(ctx, *grads):
        inputs = ctx.saved_tensors  # torch's check that they are unchanged, and not freed by an earlier pass
        arrays = [None if g is None else _array(g) for g in grads]
        wanted = iter(ctx.needs_input_grad[1:])
        needs = tuple(is_tensor and next(wanted) for is_tensor in ctx.is_tensor)
        if all(a is None for a in arrays):
            found = (None,) * len(needs)
        else:
            found = ctx.pullback(tuple(arrays) if ctx.many else arrays[0], needs)
        if not _graph_is_kept():
            ctx.pullback = None  # torch frees its saved tensors here; the graph itself may live as long as the loss does
        found = _tensors(found, [a for a in arrays if a is not None])
        found = tuple(f for f, is_tensor in zip(found, ctx.is_tensor, strict=True) if is_tensor)
        return (None, *(_Gradient.apply(ctx.name, len(found), *found, *inputs, *grads) if torch.is_grad_enabled() else found))


class _Gradient(torch.autograd.Function):
    """The gradients of an operator where a graph of them is asked for: torch finds its way through them to a clear error."""

    @staticmethod
    def forward(ctx, name, n, *tensors):
        ctx.name = name
        return tensors[:n]

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(f"{ctx.name}: the gradient of its gradient is not supported")


def _graph_is_kept() -> bool:
    """Whether the backward pass that runs now was asked to retain_graph."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or ask()


# ------------------------------------------------------------------------------------------------ tensors and arrays
def _collect(values, tensors) -> bool:
    """Append the tensors among values, in order, nested ones too; False where there is something that cannot be taken."""
    for v in values:
        if isinstance(v, torch.Tensor):
            if not v.is_cpu or v.dtype not in _DTYPES or v.layout is not torch.strided:
                return False
            tensors.append(v)
        elif isinstance(v, (tuple, list)):
            if not _collect(v, tensors):
                return False
        elif isinstance(v, np.ndarray):
            return False
    return True


def _for_gpu(args, kwargs) -> bool:
    """Whether the call goes to the GPU's kernels, which says itself what it does not take."""
    values = [v for v in _flatten([*args, *kwargs.values()]) if isinstance(v, torch.Tensor)]
    return current_backend() == "triton" or any(v.device.type in ("cuda", "meta") for v in values)


def _with_arrays(args, kwargs, arrays):
    """The same arguments with arrays where there were tensors."""
    rest = iter(arrays)

    def replaced(v):
        if isinstance(v, torch.Tensor):
            return next(rest)
        if isinstance(v, (tuple, list)):
            return [replaced(e) for e in v] if isinstance(v, list) else tuple(replaced(e) for e in v)
        return v

    return tuple(replaced(v) for v in args), {name: replaced(v) for name, v in kwargs.items()}


def _array(tensor) -> np.ndarray:
    """A view of a tensor's memory."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).numpy()


def _tensors(y, taken):
    """Tensors over the memory of an array or of a tuple of them (None for None).

    What overlaps the memory of ``taken`` or of an earlier entry is copied: torch believes that they are separate.
    """
    if isinstance(y, tuple):
        taken = list(taken)
        made = []
        for a in y:
            made.append(None if a is None else _tensors(a, taken))
            if a is not None:
                taken.append(a)
        return tuple(made)
    a = np.asarray(y)
    if not a.flags.writeable or min(a.strides, default=0) < 0 or any(np.may_share_memory(a, t) for t in taken):
        a = a.copy(order="K")
    return torch.from_numpy(a)


def _arrays_in(saved):
    """The arrays in what a kernel saved, a nest of tuples, lists and dicts."""
    if isinstance(saved, np.ndarray):
        return [saved]
    if isinstance(saved, dict):
        saved = tuple(saved.values())
    return [a for s in saved for a in _arrays_in(s)] if isinstance(saved, (tuple, list)) else []


# ------------------------------------------------------------------------------------------------ refusals
@functools.cache
def _argument_names(op):
    return tuple(inspect.signature(op.prepare).parameters)


def _named(op, args, kwargs):
    """(name, value) of every argument, ("weights[2]", value) within lists and tuples."""

    def within(name, v):
        if isinstance(v, (tuple, list)):
            for i, e in enumerate(v):
                yield from within(f"{name}[{i}]", e)
        else:
            yield name, v

    names = _argument_names(op)
    for i, v in enumerate(args):
        yield from within(names[i] if i < len(names) else f"argument {i + 1}", v)
    for name, v in kwargs.items():
        yield from within(name, v)


def _refuse(op, args, kwargs):
    """Say which argument cannot be taken, and why."""
    named = list(_named(op, args, kwargs))
    tensors = [(name, v) for name, v in named if isinstance(v, torch.Tensor)]
    first, tensor = tensors[0]
    for name, v in named:
        if isinstance(v, np.ndarray):
            raise TypeError(f"{op.name}: {name} is a numpy array and {first} is a torch tensor; the rule is one kind for all")
    for name, v in tensors:
        if v.device != tensor.device:
            raise ValueError(f"{op.name}: {name} is on {v.device}, {first} is on {tensor.device}; the rule is one device for all")
    for name, v in tensors:
        if not v.is_cpu:
            raise ValueError(f"{op.name}: {name} is on {v.device}; the rule is the CPU")
        if v.layout is not torch.strided:
            raise TypeError(f"{op.name}: {name} has layout {v.layout}; the rule is torch.strided (dense)")
        if v.dtype not in _DTYPES:
            raise TypeError(f"{op.name}: {name} has dtype {v.dtype}; the rule on the CPU is float32 or float64 (or integers, for labels)")


def _refuse_gradient(op, args, kwargs, flat):
    name = next(n for n, v in _named(op, args, kwargs)
                if isinstance(v, torch.Tensor) and v.requires_grad and not any(v is f for f in flat))
    raise TypeError(f"{op.name}: {name} requires a gradient and is an option, which has none; give a number or {name}.detach()")
