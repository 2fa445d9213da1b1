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
   ``conv_bound(arrays, params)`` returns a new function of arrays like ``arrays`` that answers as ``conv`` would, or None
   where there is none: what follows from the call's form is worked out before. It holds on to none of the arrays but packed ones;
3. its **dispatch**, here: which backend serves a call.

So a call takes three steps: ``F.conv2d`` -> the backend's ``conv`` -> the compiled kernel. Where checks look at the arrays' forms
alone (``by_form``), a call of a form that was seen before takes the last two.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import numpy as np

from . import backends
from .arguments import (
    _check_gradient,
    _flatten,
    _Form,
    _is_torch,
    _reshape,
    _same_memory,
    _spread,
    _torch_of,
    are_of_forms,
    even,
    form_of,
    is_of_form,
)
from .backends import (
    Backend,
    _backends,
    _default_order,
    backend_report,
    current_backend,
    generation,
    register_backend,
    unregister_backend,
    use_backend,
)
from .packing import is_packed

__all__ = [
    "Backend", "Call", "Implementation", "Operator", "_backends", "_default_order", "_flatten", "_is_torch", "_reshape", "backend_report",
    "current_backend", "even", "generation", "operator", "operators", "register_backend", "unregister_backend", "use_backend",
]

ndarray = np.ndarray
_MOST_FORMS = 256  # of calls that an operator remembers
_SEEN, _NEVER = "", ()  # a form met once: what serves it is worked out when it comes again; one that nothing else serves


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


# ------------------------------------------------------------------------------------------------ operators
operators: dict[str, Operator] = {}


class Operator:
    """A public function with its kernels. See the module's docstring; made by :func:`operator`."""

    def __init__(self, prepare, room, kernel, tensors, by_form=False):
        functools.update_wrapper(self, prepare)
        self.prepare = prepare
        self.name = prepare.__name__
        self.room = room
        self.kernel = kernel
        self.tensors = tensors
        self.by_form = by_form
        names = list(inspect.signature(prepare).parameters)
        self._positions = [(names.index(t), t) for t in tensors]
        self._generation = -1
        self._candidates: tuple[Implementation, ...] = ()
        self._refusals: list[str] = []
        self._forward = None  # of the first candidate, where that serves every call
        self._at_once = None
        self._by_name: dict[str, Implementation] = {}
        self._forms: dict = {}  # what serves a call of a form

    def __repr__(self):
        return f"<fastdl operator {self.name}>"

    def __reduce__(self):
        return (_operator_by_name, (self.name,))

    # ---- calls
    def __call__(self, *args, **kwargs):
        form = None
        if args and type(first := args[0]) is ndarray:
            if self._generation == backends._generation:
                # A kernel that is offered the arguments as they are: it answers None to whatever is not the plain, small case,
                # or is wrong, which then goes the usual way.
                at_once = self._at_once
                if at_once is not None and len(args) == at_once.arity and not kwargs:
                    serve = at_once.get(first.dtype.char)
                    if serve is not None and (y := serve(*args)) is not None:
                        return y
                if self.by_form and (form := form_of(args, kwargs)) is not None:
                    if known := self._forms.get(form):
                        take, run, shapes = known[0]
                        y = run(*(args if take is None else take(args, kwargs)))
                        return y if shapes is None else y.reshape(shapes) if type(y) is ndarray else _reshape(y, shapes)
        elif torch := _torch_of(args, kwargs):
            return torch.call(self, args, kwargs)
        arrays, params, shapes = self.prepare(*args, **kwargs) if kwargs else self.prepare(*args)
        forward = self._forward
        if forward is None or self._generation != backends._generation:
            forward = self.implementation(arrays, params).forward
        y = forward(arrays, params, False)[0]
        if form is not None:
            self._remember(form, args, kwargs, arrays, params, shapes)
        return y if shapes is None else _reshape(y, shapes)

    def _remember(self, form, args, kwargs, arrays, params, shapes):
        """Take down a call that was served; of one that came twice, all that the next ones need."""
        if self.by_form is not True and not self.by_form(params):
            return
        forms = self._forms
        known = forms.get(form)
        if known is None:
            if len(forms) >= _MOST_FORMS:
                forms.clear()
            forms[form] = _SEEN
        elif known is _SEEN:
            forms[form] = self._known(args, kwargs, arrays, params, shapes) or _NEVER

    def _known(self, args, kwargs, arrays, params, shapes):
        """What serves calls of this one's form; None where its arrays are more than views of the arguments."""
        given = _flatten(self._given(args, kwargs))
        if len(arrays) != len(given) or not all(_is_view(a, g) for a, g in zip(arrays, given, strict=True)):
            return None
        views = [None if a is None or a.shape == g.shape else a.shape for a, g in zip(arrays, given, strict=True)]
        implementation = self.implementation(arrays, params)
        run = None if implementation.bound is None else implementation.bound(arrays, params)
        if run is None:
            forward = implementation.forward

            def run(*arrays):
                return forward(arrays, params, False)[0]
        places = [at if at < len(args) else name for at, name in self._positions]
        nested = [type(arg) in (tuple, list) for arg in self._given(args, kwargs)]
        take = _taking(places, len(args), views, nested)
        return _Known((take, run, shapes), take, params, shapes, implementation, _float_flags(arrays), _shapes(given))

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
        else:
            run.__defaults__ = others  # the function is this call's own
        view = first.shape
        if view == x.shape:
            return run if shapes is None else lambda x: _reshape(run(x), shapes)
        return (lambda x: run(x.reshape(view))) if shapes is None else lambda x: _reshape(run(x.reshape(view)), shapes)

    def vjp(self, *args, **kwargs):
        """``(y, pullback)``; see :func:`fastdl.vjp`."""
        torch = None if args and type(args[0]) is ndarray else _torch_of(args, kwargs)
        y, flat_pullback = torch.flat_vjp(self, args, kwargs) if torch else self.flat_vjp(*args, **kwargs)
        given = self._given(args, kwargs)
        returned = [i < len(args) for i, _ in self._positions]
        count, nested = sum(returned), any([type(arg) in (tuple, list) for arg in given])

        def pullback(grad, needs=None):
            if needs is not None:
                if len(needs) != count:
                    raise ValueError(f"{self.name}: needs has {len(needs)} entries, the pullback has {count} gradients")
                if nested or count < len(given):
                    wanted = iter(needs)
                    needs = [n for arg, r in zip(given, returned, strict=True) for n in _spread(arg, next(wanted) if r else False)]
            grads = flat_pullback(grad, needs)
            if nested:
                flat = iter(grads)
                grads = [type(arg)(next(flat) for _ in arg) if isinstance(arg, (tuple, list)) else next(flat) for arg in given]
            elif count == len(given):
                return grads
            return tuple([g for g, r in zip(grads, returned, strict=True) if r])

        return y, pullback

    def flat_vjp(self, *args, **kwargs):
        """``(y, pullback)`` where the pullback answers one gradient for each of the flattened tensor arguments."""
        form = known = None
        if self.by_form and self._generation == backends._generation and (form := form_of(args, kwargs)) is not None:
            known = self._forms.get(form)
        if known:
            arrays = args if known.take is None else known.take(args, kwargs)
            _, _, params, shapes, implementation, floats, shape_of = known
        else:
            arrays, params, shapes = self.prepare(*args, **kwargs)
            implementation, floats, shape_of = self.implementation(arrays, params), _float_flags(arrays), None
            if form is not None:
                self._remember(form, args, kwargs, arrays, params, shapes)
        if implementation.backward is None:
            raise ValueError(f"{self.name}: the {implementation.backend} backend has no gradient for it")
        y, saved = implementation.forward(arrays, params, True)
        kernel_form = of_y = tuple(map(_Form.of, y)) if type(y) is tuple else _Form(y.shape, y.dtype)
        if shapes is not None:
            y = _reshape(y, shapes)
            of_y = tuple(map(_Form.of, y)) if type(y) is tuple else _Form(y.shape, y.dtype)
        if shape_of is None:
            shape_of = _shapes(_flatten(self._given(args, kwargs)))

        def pullback(grad, needs=None):
            fits = are_of_forms if type(grad) is tuple and type(of_y) is tuple else is_of_form if type(grad) is ndarray else None
            if fits is None or of_y is not kernel_form or not fits(grad, of_y):
                grad = _check_gradient(self.name, grad, of_y, kernel_form)
            needs = floats if needs is None else tuple([bool(n) and f for n, f in zip(needs, floats, strict=True)])
            grads = implementation.backward(grad, arrays, saved, params, needs)
            return tuple([
                None if g is None or not n else g if s is None or g.shape == s else g.reshape(s)
                for g, n, s in zip(grads, needs, shape_of, strict=True)
            ])

        pullback.saved = saved  # what it keeps alive, for the torch face
        return y, pullback

    def _given(self, args, kwargs):
        return [args[i] if i < len(args) else kwargs.get(name) for i, name in self._positions]

    # ---- dispatch
    def implementation(self, arrays, params) -> Implementation:
        """The first backend in the order that serves this call."""
        if self._generation != backends._generation:
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
        generation, found, refusals, at_once = backends._generation, [], [], None
        for name in [backends._chosen] if backends._chosen else _default_order:
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
        self._at_once, self._forms = at_once, {}
        self._candidates, self._refusals, self._generation = tuple(found), refusals, generation


def _is_view(array, given):
    """Whether an array of a call is an argument, or one seen in another shape; packed arrays, which kernels hold on to, do not count."""
    if given is None:
        return array is None
    if array is None or array.size != given.size or is_packed(given) or any(step % given.itemsize for step in given.strides):
        return False
    return array is given or _same_memory(given.reshape(array.shape), array)


class _Known(NamedTuple):
    """What is known of calls of one form."""

    call: tuple  # take, a function of the arrays that answers in the kernel's shape, and shapes
    take: Any  # (args, kwargs) -> the arrays; None where these are args
    params: Any
    shapes: Any
    implementation: Implementation
    floats: tuple  # of each array, whether it may have a gradient
    given: tuple  # the shape of each array argument


def _taking(places, count, views, nested):
    """The arrays at some places among the arguments, by number or name, seen in other shapes if any; None where they are the arguments.

    count: of positional arguments. nested: which of those are tuples or lists. It is written out for the case at hand, for it is a part of
    every call.
    """
    as_given = all([view is None for view in views])
    if as_given and not any(nested) and places == list(range(count)):
        return None
    parts = [f"args[{place}]" if type(place) is int else f"kwargs.get({place!r})" for place in places]
    if any(nested):
        flat = ", ".join([f"*{part}" if of_many else part for part, of_many in zip(parts, nested, strict=True)])
        parts = [f"flat[{i}]" for i in range(len(views))]
    seen = "".join([f"{part}, " if view is None else f"{part}.reshape({view}), " for part, view in zip(parts, views, strict=True)])
    if not any(nested):
        return eval(f"lambda args, kwargs: ({seen})")
    if as_given:
        return eval(f"lambda args, kwargs: ({flat},)")
    view = eval(f"lambda flat: ({seen})")
    return eval(f"lambda args, kwargs: view(({flat},))", {"view": view})


def _float_flags(arrays):
    return tuple([a is not None and a.dtype.kind == "f" for a in arrays])


def _shapes(given):
    return tuple([None if a is None else a.shape for a in given])


def operator(room: str, kernel: str, tensors: str, by_form=False):
    """Make a prepare function an operator.

    room: the folder under ``ops/``; kernel: the name of its kernels there; tensors: the names of the arguments that are
    arrays, or tuples or lists of arrays, in the order in which the prepare step's ``Call.arrays`` holds them. by_form: whether the
    prepare step looks at nothing but the arrays' shapes, strides and dtypes and the other arguments, never at values or flags, and
    draws nothing; or a function of the params that answers so for a call.
    """

    def decorate(prepare) -> Operator:
        made = Operator(prepare, room, kernel, tuple(tensors.split()), by_form)
        operators[made.name] = made
        return made

    return decorate


def _operator_by_name(name):
    import fastdl.functional  # noqa: F401 - fills the table

    return operators[name]
