"""What a call does on a GPU, written down once and then only done.

What an operator's host code decides (its checks, the kernel, the configuration, the grid, what Triton makes of the arguments) depends
on what the tensors look like and on options, never on values: nobody looks at those before a kernel runs. So the second call that looks
the same is recorded: the memory it asks for, torch's operators, its launches. Each later one plays the record, with its own tensors in
the places of those: a few microseconds a launch where the way through Python and Triton takes a hundred and more.

:class:`Recorder` is a TorchDispatchMode, which sees every operator of torch; launch.py tells it of launches. It answers no tape where
something happened that cannot be repeated so: a value that the host looked at, a tensor that came from elsewhere (an array of numpy's),
random bits (:func:`refuse`).
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_current = threading.local()
ENTRIES = 4096  # as many looks as are remembered; then all are forgotten
_aten = torch.ops.aten
_FRESH = {_aten.empty, _aten.empty_strided, _aten.empty_like, _aten.new_empty, _aten.new_empty_strided}  # memory that holds nothing yet


class View(NamedTuple):
    """Where in the memory of a root (a tensor that was given or made) a tensor lies."""

    root: int
    size: tuple
    stride: tuple
    offset: int  # bytes from the root's first element
    whole: bool = False  # it is the root itself

    def settled(self, forms):
        """With the last word on whether it is the root itself; forms: (size, stride) of all roots."""
        return self._replace(whole=self.offset == 0 and forms[self.root] == (self.size, self.stride))

    def of(self, roots):
        tensor = roots[self.root]
        if self.whole:
            return tensor
        return tensor.as_strided(self.size, self.stride, tensor.storage_offset() + self.offset // tensor.element_size())


class Recorder(TorchDispatchMode):
    """Records what happens to the given tensors while it is active; it may be entered several times."""

    def __init__(self, given):
        super().__init__()
        self.steps: list[Any] = []
        self.refusal: str | None = None
        self._views: dict[int, View] = {}  # by the tensor's id
        self._alive: list = []  # so that no id is given twice
        self._dtypes: list[torch.dtype] = []  # of roots
        self._forms: list[tuple] = []  # (size, stride)
        self._first: list[int] = []  # the address of a root's first element
        self.aside = False  # a kernel is interpreted, which is no part of the call
        for tensor in given:
            self._root(tensor)
        self.given = len(self._first)

    def __enter__(self):
        self._before = getattr(_current, "recorder", None)
        _current.recorder = self
        return super().__enter__()

    def __exit__(self, *exception):
        _current.recorder = self._before
        return super().__exit__(*exception)

    def _root(self, tensor):
        place = View(len(self._first), tuple(tensor.shape), tensor.stride(), 0)
        self._forms.append((place.size, place.stride))
        self._first.append(tensor.data_ptr())
        self._dtypes.append(tensor.dtype)
        self._know(tensor, place)

    def _know(self, tensor, place):
        self._views[id(tensor)] = place
        self._alive.append(tensor)

    def view(self, tensor) -> View | None:
        found = self._views.get(id(tensor))
        if found is None:
            self.refusal = self.refusal or "a tensor came from elsewhere"
        return found

    def _made_of(self, tensor, place):
        """Know a view of what lies at ``place``."""
        if tensor.dtype is not self._dtypes[place.root] or tensor.is_neg() or tensor.is_conj():
            self.refusal = self.refusal or "memory is seen as another dtype"
        offset = tensor.data_ptr() - self._first[place.root] if tensor.numel() else 0
        self._know(tensor, View(place.root, tuple(tensor.shape), tensor.stride(), offset))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        answer = func(*args, **kwargs)
        if self.refusal or self.aside:
            return answer
        answers = answer if isinstance(answer, (tuple, list)) else (answer,)
        if not all(isinstance(t, torch.Tensor) for t in answers):
            self.refusal = f"{func} answered the host"
            return answer
        operands = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        places = [self.view(t) for t in operands]
        if self.refusal:
            return answer
        new = []
        for tensor in answers:
            if any(tensor is t for t in operands):
                new.append(None)  # written in place
                continue
            memory = tensor.untyped_storage().data_ptr()
            source = next((p for t, p in zip(operands, places, strict=True) if memory and t.untyped_storage().data_ptr() == memory), None)
            if source is not None:
                self._made_of(tensor, source)
            else:
                self._root(tensor)
                new.append(self._views[id(tensor)].root)
        if not new:
            return answer  # a view of what is known
        if func.overloadpacket in _FRESH:
            (tensor,) = answers
            self.steps.append(_Memory(new[0], tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device))
        else:
            self.steps.append(_TorchOperator(func, self._in_places(args), self._in_places(kwargs), new))
        return answer

    def _in_places(self, values):
        return tree_map(lambda v: self._views[id(v)] if isinstance(v, torch.Tensor) else v, values)

    def launched(self, kernel, grid, like, args, options, compiled) -> None:
        """A launch that just happened. compiled: what Triton compiled for it, None where it was interpreted."""
        from triton.tools.tensor_descriptor import TensorDescriptor

        tensors, descriptors, plain = [], [], []
        for i, a in enumerate(args):
            described = isinstance(a, TensorDescriptor)
            place = self.view(a.base) if described else self.view(a) if isinstance(a, torch.Tensor) else None
            if place is not None:
                (descriptors if described else tensors).append((i, place, vars(a) if described else None))
            plain.append(None if place is not None else a)
        if self.refusal is None:
            descriptors = [(i, place, {name: v for name, v in fields.items() if name != "base"}) for i, place, fields in descriptors]
            device = like.device.index if like.is_cuda else None
            self.steps.append(_Launch.of(kernel, grid, device, plain, options, [t[:2] for t in tensors], descriptors, compiled))

    def finish(self, tensors) -> Tape | None:
        """The tape that ends with these tensors; None where what happened cannot be repeated."""
        places = [self.view(t) for t in tensors]
        self._alive.clear()
        self._views.clear()
        if self.refusal:
            return None
        made = {step.root: i for i, step in enumerate(self.steps) if type(step) is _Memory}
        for place in places:  # what is answered is made in the form in which it is answered
            number = made.pop(place.root, None)
            if number is not None and place.offset == 0 and math.prod(place.size) == math.prod(self._forms[place.root][0]):
                self._forms[place.root] = place.size, place.stride
                self.steps[number] = self.steps[number]._replace(size=place.size, stride=place.stride)
        return Tape(self.given, len(self._first), [step.settled(self._forms) for step in self.steps],
                    [place.settled(self._forms) for place in places])


class _Memory(NamedTuple):
    root: int
    size: tuple
    stride: tuple
    dtype: torch.dtype
    device: torch.device

    def roots(self):
        return [self.root]

    def settled(self, forms):
        return self

    def do(self, roots):
        roots[self.root] = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)


class _TorchOperator(NamedTuple):
    func: Any
    args: tuple
    kwargs: dict
    new: list  # the root that each answer becomes, None where it was written in place

    def roots(self):
        given: list = []
        _with_each(self.args + tuple(self.kwargs.values()), lambda place: given.append(place.root))
        return given + [r for r in self.new if r is not None]

    def settled(self, forms):
        def settled(place):
            return place.settled(forms)

        return self._replace(args=_with_each(self.args, settled), kwargs={n: _with_each(v, settled) for n, v in self.kwargs.items()})

    def do(self, roots):
        def tensor(place):
            return place.of(roots)

        answer = self.func(*_with_each(self.args, tensor), **{n: _with_each(v, tensor) for n, v in self.kwargs.items()})
        for root, made in zip(self.new, answer if isinstance(answer, (tuple, list)) else (answer,), strict=True):
            if root is not None:
                roots[root] = made


def _with_each(value, f):
    """The arguments of one of torch's operators with f(place) for every place."""
    kind = type(value)
    if kind is View:
        return f(value)
    return kind([_with_each(v, f) for v in value]) if kind is tuple or kind is list else value


class _Address:
    """Stands for a tensor where only the address of its first element is asked for."""

    __slots__ = ("address",)

    def __init__(self, address):
        self.address = address

    def data_ptr(self):
        return self.address


class _Launch:
    """A launch of a compiled kernel, all its arguments in order; tensors are addresses."""

    def __init__(self, run, device, args, tensors, descriptors):
        self.run, self.device, self.args, self.tensors, self.descriptors = run, device, args, tensors, descriptors

    @staticmethod
    def of(kernel, grid, device, args, options, tensors, descriptors, compiled):
        if compiled is None:
            return _Interpreted(kernel, grid, args, options, tensors, descriptors)
        rest = {p.name: p.default for p in kernel.params if p.has_default} | options
        args = args + [rest[name] for name in kernel.arg_names[len(args):]]
        return _Launch(compiled[(*grid, 1, 1)[:3]], device, args, tensors, descriptors)

    def roots(self):
        return [place.root for _, place, *_ in (*self.tensors, *self.descriptors)]

    def settled(self, forms):
        return self  # addresses are enough

    def do(self, roots):
        from triton.tools.tensor_descriptor import TensorDescriptor

        args = self.args.copy()
        for i, place in self.tensors:
            args[i] = roots[place.root].data_ptr() + place.offset
        for i, place, fields in self.descriptors:
            args[i] = described = object.__new__(TensorDescriptor)  # its checks were passed when this was recorded
            described.__dict__.update(fields)
            described.base = _Address(roots[place.root].data_ptr() + place.offset)
        if self.device is not None and self.device != torch.cuda.current_device():
            with torch.cuda.device(self.device):
                self.run(*args)
        else:
            self.run(*args)


class _Interpreted(_Launch):
    """The same where Triton interprets kernels, which wants tensors."""

    def __init__(self, kernel, grid, args, options, tensors, descriptors):
        super().__init__(lambda *args: kernel[grid](*args, **options), None, args, tensors, descriptors)

    def settled(self, forms):
        self.tensors = [(i, place.settled(forms)) for i, place in self.tensors]
        self.descriptors = [(i, place.settled(forms), fields) for i, place, fields in self.descriptors]
        return self

    def do(self, roots):
        from triton.tools.tensor_descriptor import TensorDescriptor

        args = self.args.copy()
        for i, place in self.tensors:
            args[i] = place.of(roots)
        for i, place, fields in self.descriptors:
            args[i] = TensorDescriptor(place.of(roots), **fields)
        self.run(*args)


class Tape:
    def __init__(self, given, count, steps, places):
        self.given, self.places = given, places
        self.more = [None] * (count - given)
        # A root is let go after the last step that wants it, as the recorded call's own variables were at the latest.
        last: dict[int, int] = {}
        for i, step in enumerate(steps):
            last |= dict.fromkeys(step.roots(), i)
        kept = {place.root for place in places}
        self.steps = [(step.do, [r for r, i in last.items() if i == number and r >= given and r not in kept])
                      for number, step in enumerate(steps)]

    def play(self, given) -> list[torch.Tensor]:
        """The tensors that the recorded call ended with, made from these ones."""
        roots = [*given, *self.more]
        for do, gone in self.steps:
            do(roots)
            for root in gone:
                roots[root] = None
        return [place.of(roots) for place in self.places]

    def answers_given(self, many) -> bool:
        """Whether one of the first ``many`` tensors that it ends with lies in the memory of one that is given."""
        return any(place.root < self.given for place in self.places[:many])


def refuse(why: str) -> None:
    """Say that what is being done, if it is being recorded, must be done anew each time."""
    active = recorder()
    if active is not None and active.refusal is None:
        active.refusal = why


def recorder() -> Recorder | None:
    return getattr(_current, "recorder", None)


# ------------------------------------------------------------------------------------------------ what calls look like
class Odd(Exception):
    """A call that is not recorded: an argument is no plain value."""


_PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.memory_format}
_TENSORS = {torch.Tensor, torch.nn.Parameter}
_NESTED = {tuple, list, torch.Size}


def look(value, tensors):
    """All that host code may ask of an argument, hashable; tensors are appended to ``tensors``. Raises Odd."""
    kind = type(value)
    if kind in _TENSORS:
        if value.is_neg() or any(value is t for t in tensors):  # a tensor given twice would be told from two on the tape by nothing
            raise Odd
        tensors.append(value)
        # the address decides how wide loads are
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad, value.data_ptr() & 15
    if kind in _PLAIN:
        return kind, value
    if kind in _NESTED:
        return kind, *[look(v, tensors) for v in value]
    raise Odd


class Memory:
    """What was seen, by its look: the second time it is recorded."""

    def __init__(self):
        self._found: dict = {}

    def get(self, key):
        """What was kept under a key, or whether it is to be recorded now: (found, record)."""
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= ENTRIES:
                self._found.clear()
            self._found[key] = _SEEN
            return None, False
        if found is _SEEN:
            return None, True
        return (None, False) if found is _NEVER else (found, False)

    def keep(self, key, found):
        """found: None where it cannot be repeated, and need not be recorded again."""
        self._found[key] = _NEVER if found is None else found

    def forget(self):
        self._found.clear()


_SEEN, _NEVER = object(), object()
