"""What compiled code of somebody else's functions is kept under: a hash of their code and of all that it refers to.

The library's own sources are hashed as files (jit.py). A kernel in a script, a notebook or another package may have the name of
a hundred others and be edited between two runs, and so may the functions and constants that it uses.
"""

from __future__ import annotations

import hashlib
import sys
import types

import numpy as np
from llvmlite import ir
from numba.core import types as numba_types
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic

_PACKAGE = __name__.partition(".")[0]
_PLAIN = (int, float, complex, str, bytes, bool, type(None), np.generic, np.dtype, numba_types.Type, ir.Type, ir.Constant)
# of these, a kernel's code sees functions by name, and what these do changes with a version that jit.py's key has
_KNOWN = frozenset(("numpy", "numba", "llvmlite", "builtins", _PACKAGE)) | sys.stdlib_module_names


def is_ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


def fingerprint(function) -> str | None:
    """A hash of a Python function's code and of the functions, constants and arrays that it reaches; None where it reaches
    something that has no such hash, and what is compiled of it can't be known again."""
    digest = hashlib.sha256()
    try:
        _add(digest, function, set())
    except _Unknown:
        return None
    return digest.hexdigest()[:24]


class _Unknown(Exception):
    pass


def _add(digest, value, seen):
    """Everything ends in the digest with its kind and its length, so that no two things look the same side by side."""
    if isinstance(value, _PLAIN):
        _text(digest, type(value).__name__, repr(value))
    elif isinstance(value, (tuple, list, frozenset)):
        parts = sorted(value, key=repr) if isinstance(value, frozenset) else value
        _text(digest, type(value).__name__, str(len(parts)))
        for part in parts:
            _add(digest, part, seen)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        _text(digest, "array", f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value)).hexdigest()}")
    elif isinstance(value, types.ModuleType):
        _text(digest, "module", value.__name__)
    elif isinstance(value, Dispatcher):
        _text(digest, "compiled", repr(sorted(value.targetoptions.items(), key=repr)))
        _add(digest, value.py_func, seen)
    elif isinstance(value, _Intrinsic):
        _add(digest, value._defn, seen)
    elif _is_known(value):
        _text(digest, "named", f"{value.__module__}.{value.__qualname__}")
    elif isinstance(value, types.FunctionType):
        _function(digest, value, seen)
    elif isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields"):
        _text(digest, "named tuple", repr(value._fields))
    else:
        raise _Unknown(repr(value))


def _is_known(value):
    """Whether its name says all: not what a factory made, however well known, for that depends on what the factory was given."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return bool(module and name) and module.partition(".")[0] in _KNOWN and "<locals>" not in name


def _function(digest, function, seen):
    if id(function) in seen:  # it calls itself, or was there before
        _text(digest, "seen", function.__qualname__)
        return
    seen.add(id(function))
    try:
        _add(digest, [cell.cell_contents for cell in function.__closure__ or ()], seen)
    except ValueError:  # a cell that nothing was put in
        raise _Unknown from None
    _add(digest, [function.__defaults__, sorted((function.__kwdefaults__ or {}).items())], seen)
    _code(digest, function.__code__, function.__globals__, seen)


def _code(digest, code, names, seen):
    _text(digest, "code", f"{code.co_argcount} {code.co_flags} {code.co_varnames} {code.co_names} {code.co_code.hex()}")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _code(digest, constant, names, seen)
        else:
            _add(digest, constant, seen)
    for name in code.co_names:
        if name not in names:
            continue  # of builtins, or an attribute
        value = names[name]
        _add(digest, value, seen)
        if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in _KNOWN:
            for attribute in code.co_names:  # which of them are this module's cannot be seen: all that it has
                if hasattr(value, attribute):
                    _add(digest, getattr(value, attribute), seen)


def _text(digest, kind, text):
    data = f"{kind} {text}".encode()
    digest.update(f"{len(data)} ".encode() + data)
