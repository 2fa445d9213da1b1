"""Every backend of a room has the reference's functions, with the reference's signatures."""

import inspect
from pathlib import Path

import pytest

import fastdl.ops
from fastdl import functional, op

ROOMS = sorted(p.parent.name for p in Path(fastdl.ops.__file__).parent.glob("*/reference.py"))
BACKENDS = [name for name, usable, _ in op.backend_report() if usable]


def operators(room):
    return [o for o in op.operators.values() if o.room == room]


ARGUMENTS = {"": 3, "_backward": 5, "_supports": 2}  # (arrays, params, train), (grad, arrays, saved, params, needs), (arrays, params)


def check_signature(function, count):
    """count arguments, all by position: a kernel may name what it saved, and a parameter that it does not use."""
    given = list(inspect.signature(function).parameters.values())
    assert [(p.kind, p.default) for p in given] == [(inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty)] * count, function


@pytest.mark.parametrize("room", ROOMS)
def test_reference_is_complete(room):
    """The reference serves every operator of its room, forward and backward, and refuses nothing."""
    module = op._backends["reference"].kernels(room)
    assert operators(room), f"no public operator uses the room {room}"
    for o in operators(room):
        check_signature(getattr(module, o.kernel), 3)
        check_signature(getattr(module, o.kernel + "_backward"), 5)
        assert not hasattr(module, o.kernel + "_supports")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("room", ROOMS)
def test_same_signatures(room, backend):
    module = op._backends[backend].kernels(room)
    if module is None:  # the backend has nothing in this room: calls go to the next
        return
    served = 0
    for kernel in {o.kernel for o in operators(room)}:
        found = {suffix: getattr(module, kernel + suffix, None) for suffix in ARGUMENTS}
        for suffix, function in found.items():
            if function is not None:
                check_signature(function, ARGUMENTS[suffix])
        served += found[""] is not None
        assert found[""] or not found["_backward"], f"{module.__name__}: {kernel} goes back but not forward"
    assert served, f"{module.__name__} has no kernel of the room's"


def test_every_operator_is_public():
    for name, o in op.operators.items():
        assert getattr(functional, name) is o
        assert name in functional.__all__
    assert functional.__all__ == sorted(functional.__all__)


def test_every_operator_is_documented():
    for name in functional.__all__:
        f = getattr(functional, name)
        assert f.__doc__ and len(f.__doc__.splitlines()[0]) > 20, name
        assert isinstance(f, op.Operator), f"{name} is no operator"


def test_tensor_arguments_are_parameters():
    for name, o in op.operators.items():
        assert set(o.tensors) <= set(inspect.signature(o.prepare).parameters), name
