"""What an operator is, and how a call finds its kernel.

An operator is a public function (``F.conv2d``) made of three parts:

1. its **prepare** step, the function you read in ``ops/<room>/__init__.py``: it checks every argument, applies the
   shape rule and returns a :class:`Call`: normalised arrays and one small ``params`` record;
2. its **kernels**, one pair of functions per backend, found by name in the room's backend modules::

       def conv(arrays, params, train):                          # -> (y, saved)
       def conv_backward(grad, arrays, saved, params, needs):    # -> one gradient (or None) for each of ``arrays``

   ``saved`` is whatever the backward pass of the *same* backend wants (``None`` unless ``train``); ``grad`` has the form
   of ``y`` (a tuple, with ``None`` for what has no gradient, where ``y`` is a tuple); ``needs`` is a tuple of bools;
   an optional ``conv_supports(arrays, params)`` returns the reason why a call cannot be served, or None; an optional
   ``conv_bound(arrays, params)`` returns a function of an array like ``arrays[0]`` that answers as ``conv`` would, or None
   where there is none: what follows from the call's form is worked out before;
3. its **dispatch**, here: which backend serves a call.

So a call takes three steps: ``F.conv2d`` -> the backend's ``conv`` -> the compiled kernel.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from typing import Any, NamedTuple

import numpy as np

ndarray = np.ndarray


class Call(NamedTuple):
    """What a prepare step returns: kernels see this and nothing else."""

    arrays: tuple  # every tensor argument, lists and tuples of tensors flattened, absent ones None
    params: Any  # a NamedTuple of plain values, or None
    shapes: Any = None  # the shape(s) to give the output(s) where the kernel's differ (unbatched input)


class Implementation(NamedTuple):
    backend: str
    forward: Any
    backward: Any
    supports: Any
    bound: Any = None


# ------------------------------------------------------------------------------------------------ backends
class Backend:
    """A set of kernels: a name, the module of each room that holds them, and whether it can run here."""

    def __init__(self, name, module="", requires=(), rooms=None, takes="numpy arrays"):
        self.name = name
        self.takes = takes
        self.module = module  # the module's name within each room
        self.requires = requires  # modules that must be importable
        self.rooms = rooms  # {room: module-like object}, for a backend that lives elsewhere

    @functools.cached_property
    def missing(self) -> str | None:
        """Why this backend cannot run here, or None."""
        for name in self.requires:
            try:
                importlib.import_module(name)
            except Exception as error:  # an import may fail in any way (a broken numba raises SystemError)
                return f"importing {name} failed: {type(error).__name__}: {error}"
        return None

    def kernels(self, room):
        """The module that holds a room's kernels, or None where this backend has none."""
        if self.rooms is not None:
            return self.rooms.get(room)
        name = f"fastdl.ops.{room}.{self.module}"
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            return None


_backends: dict[str, Backend] = {}
_default_order: list[str] = []
_chosen: str | None = None  # the backend asked for by name
_generation = 0  # grows whenever the answer to "which kernel?" may change


def register_backend(backend: Backend, *, by_default: bool = True) -> None:
    """Add a backend; ``by_default`` puts it last in the order that a call tries."""
    global _generation
    _backends[backend.name] = backend
    if by_default and backend.name not in _default_order:
        _default_order.append(backend.name)
    _generation += 1


def unregister_backend(name: str) -> None:
    global _generation
    del _backends[name]
    if name in _default_order:
        _default_order.remove(name)
    _generation += 1


def backend_report() -> list[tuple[str, bool, str]]:
    """(name, usable, why not) of every backend, in the order a call tries them."""
    return [(name, (why := _backends[name].missing) is None, why or "") for name in _default_order]


def check_backend(name: str, source: str = "use_backend: name") -> None:
    if name not in _backends:
        raise ValueError(f"{source} is {name!r}; the backends are {', '.join(sorted(_backends))}")
    if why := _backends[name].missing:
        raise ValueError(f"{source} is {name!r}, which cannot run here: {why}")


class use_backend:  # noqa: N801 - reads as a function, works as a context manager too
    """Serve every call by one backend: ``use_backend("reference")``, or ``with use_backend("reference"): ...``.

    ``None`` goes back to the default order. The choice holds for all threads of the process. An operator that the
    backend cannot serve raises a ValueError that says why, it does not fall through.

    Raises ValueError where the backend is unknown or cannot run here.
    """

    def __init__(self, name: str | None):
        if name is not None:
            check_backend(name)
        self.previous = _chosen
        _choose(name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        _choose(self.previous)


def _choose(name):
    global _chosen, _generation
    _chosen = name
    _generation += 1


def generation() -> int:
    """A number that is another one whenever the answer to "which kernel?" may be."""
    return _generation


def current_backend() -> str | None:
    """The backend asked for by name, or None where the default order decides."""
    return _chosen


# ------------------------------------------------------------------------------------------------ operators
operators: dict[str, Operator] = {}


class Operator:
    """A public function with its kernels. See the module's docstring; made by :func:`operator`."""

    def __init__(self, prepare, room, kernel, tensors):
        functools.update_wrapper(self, prepare)
        self.prepare = prepare
        self.name = prepare.__name__
        self.room = room
        self.kernel = kernel
        self.tensors = tensors
        names = list(inspect.signature(prepare).parameters)
        self._positions = [(names.index(t), t) for t in tensors]
        self._generation = -1
        self._candidates: tuple[Implementation, ...] = ()
        self._refusals: list[str] = []
        self._forward = None  # of the first candidate, where that serves every call
        self._at_once = None
        self._by_name: dict[str, Implementation] = {}

    def __repr__(self):
        return f"<fastdl operator {self.name}>"

    def __reduce__(self):
        return (_operator_by_name, (self.name,))

    # ---- calls
    def __call__(self, *args, **kwargs):
        if args and type(first := args[0]) is ndarray:
            # A kernel that is offered the arguments as they are: it answers None to whatever is not the plain, small case,
            # or is wrong, which then goes the usual way.
            at_once = self._at_once
            if at_once is not None and len(args) == at_once.arity and not kwargs and self._generation == _generation:
                serve = at_once.get(first.dtype.char)
                if serve is not None and (y := serve(*args)) is not None:
                    return y
        elif torch := _torch_of(args, kwargs):
            return torch.call(self, args, kwargs)
        arrays, params, shapes = self.prepare(*args, **kwargs) if kwargs else self.prepare(*args)
        forward = self._forward
        if forward is None or self._generation != _generation:
            forward = self.implementation(arrays, params).forward
        if shapes is None:
            return forward(arrays, params, False)[0]
        return _reshape(forward(arrays, params, False)[0], shapes)

    def bind(self, x, *args, **kwargs):
        """``run(x)``: this call again, for any array of x's shape, strides and dtype; the other arguments stay.

        Checks and dispatch are done here, once. For operators whose checks depend on the form of arrays and not on values. Other
        arrays may change in place. Raises what the call would; None where there is no such function, for odd memory.
        """
        arrays, params, shapes = self.prepare(x, *args, **kwargs)
        implementation = self.implementation(arrays, params)
        first, others, forward = arrays[0], arrays[1:], implementation.forward
        if first is not x and (first.size != x.size or not _same_memory(x.reshape(first.shape), first)):
            return None
        run = None if implementation.bound is None else implementation.bound(arrays, params)
        if run is None:
            def run(x):
                return forward((x, *others), params, False)[0]
        view = first.shape
        if view == x.shape:
            return run if shapes is None else lambda x: _reshape(run(x), shapes)
        return (lambda x: run(x.reshape(view))) if shapes is None else lambda x: _reshape(run(x.reshape(view)), shapes)

    def vjp(self, *args, **kwargs):
        """``(y, pullback)``; see :func:`fastdl.vjp`."""
        torch = _torch_of(args, kwargs)
        y, flat_pullback = torch.flat_vjp(self, args, kwargs) if torch else self.flat_vjp(*args, **kwargs)
        given = [args[i] if i < len(args) else kwargs.get(name) for i, name in self._positions]
        returned = [i < len(args) for i, _ in self._positions]

        def pullback(grad, needs=None):
            flat_needs = None
            if needs is not None:
                if len(needs) != sum(returned):
                    raise ValueError(f"{self.name}: needs has {len(needs)} entries, the pullback has {sum(returned)} gradients")
                wanted = iter(needs)
                flat_needs = tuple(n for arg, r in zip(given, returned, strict=True) for n in _spread(arg, next(wanted) if r else False))
            grads = iter(flat_pullback(grad, flat_needs))
            nested = [type(arg)(next(grads) for _ in arg) if isinstance(arg, (tuple, list)) else next(grads) for arg in given]
            return tuple(g for g, r in zip(nested, returned, strict=True) if r)

        return y, pullback

    def flat_vjp(self, *args, **kwargs):
        """``(y, pullback)`` where the pullback answers one gradient for each of the flattened tensor arguments."""
        arrays, params, shapes = self.prepare(*args, **kwargs)
        implementation = self.implementation(arrays, params)
        if implementation.backward is None:
            raise ValueError(f"{self.name}: the {implementation.backend} backend has no gradient for it")
        y, saved = implementation.forward(arrays, params, True)
        kernel_form = tuple(map(_Form.of, y)) if isinstance(y, tuple) else _Form.of(y)
        if shapes is not None:
            y = _reshape(y, shapes)
        form = tuple(map(_Form.of, y)) if isinstance(y, tuple) else _Form.of(y)
        shape_of = [None if a is None else a.shape for a in _flatten(self._given(args, kwargs))]

        def pullback(grad, needs=None):
            grad = _check_gradient(self.name, grad, form, kernel_form)
            if needs is None:
                needs = (True,) * len(arrays)
            needs = tuple(bool(n) and a is not None and a.dtype.kind == "f" for n, a in zip(needs, arrays, strict=True))
            grads = implementation.backward(grad, arrays, saved, params, needs)
            return tuple(
                None if g is None or not n else g if s is None or g.shape == s else g.reshape(s)
                for g, n, s in zip(grads, needs, shape_of, strict=True)
            )

        pullback.saved = saved  # what it keeps alive, for the torch face
        return y, pullback

    def _given(self, args, kwargs):
        return [args[i] if i < len(args) else kwargs.get(name) for i, name in self._positions]

    # ---- dispatch
    def implementation(self, arrays, params) -> Implementation:
        """The first backend in the order that serves this call."""
        if self._generation != _generation:
            self._find_candidates()
        reasons = None
        for candidate in self._candidates:
            if candidate.supports is None:
                return candidate
            reason = candidate.supports(arrays, params)
            if reason is None:
                return candidate
            reasons = (reasons or []) + [f"{candidate.backend}: {reason}"]
        raise ValueError(f"{self.name}: no backend serves this call ({'; '.join((reasons or []) + self._refusals)})")

    def on(self, name: str) -> Implementation | str:
        """The kernels of one backend by name, whatever was chosen, or why there are none."""
        found = self._by_name.get(name)
        if found is None:
            backend = _backends[name]
            if backend.missing:
                return backend.missing
            module = backend.kernels(self.room)
            forward = getattr(module, self.kernel, None)
            if forward is None:
                return f"it has no kernel for {self.name}"
            found = self._by_name[name] = self._in_module(name, module, forward)
        return found

    def _in_module(self, backend, module, forward):
        return Implementation(backend, forward, *(getattr(module, self.kernel + end, None) for end in ("_backward", "_supports", "_bound")))

    def _find_candidates(self):
        generation, found, refusals, at_once = _generation, [], [], None
        for name in [_chosen] if _chosen else _default_order:
            backend = _backends[name]
            if backend.missing:
                refusals.append(f"{name}: {backend.missing}")
                continue
            if backend.takes != "numpy arrays":
                refusals.append(f"{name}: it takes {backend.takes}")
                continue
            module = backend.kernels(self.room)
            forward = getattr(module, self.kernel, None)
            if forward is None:
                refusals.append(f"{name}: it has no kernel for {self.name}")
                continue
            if not found:
                at_once = getattr(module, self.name + "_at_once", None)
            found.append(self._in_module(name, module, forward))
        self._forward = found[0].forward if found and found[0].supports is None else None
        self._at_once = at_once
        self._candidates, self._refusals, self._generation = tuple(found), refusals, generation


def operator(room: str, kernel: str, tensors: str):
    """Make a prepare function an operator.

    room: the folder under ``ops/``; kernel: the name of its kernels there; tensors: the names of the arguments that are
    arrays, or tuples or lists of arrays, in the order in which the prepare step's ``Call.arrays`` holds them.
    """

    def decorate(prepare) -> Operator:
        made = Operator(prepare, room, kernel, tuple(tensors.split()))
        operators[made.name] = made
        return made

    return decorate


def _operator_by_name(name):
    import fastdl.functional  # noqa: F401 - fills the table

    return operators[name]


# ------------------------------------------------------------------------------------------------ helpers
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


register_backend(Backend("numba", "numba_backend", requires=("numba",)))
register_backend(Backend("cython", "cython", requires=("fastdl._cython",)))
register_backend(Backend("reference", "reference"))
# Not in the order that a call on arrays tries: tensors on a GPU go to it directly (gpu/dispatch.py).
register_backend(Backend("triton", "triton_backend", requires=("torch", "triton"), takes="CUDA tensors"), by_default=False)
if os.environ.get("FASTDL_BACKEND"):
    check_backend(os.environ["FASTDL_BACKEND"], "the environment variable FASTDL_BACKEND")
    _choose(os.environ["FASTDL_BACKEND"])
