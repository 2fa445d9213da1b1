"""Triton's interpreter with all programs of a grid at once, a thread each: for kernels whose programs wait for one another.

The interpreter by itself runs one program after another, where a program that waits would wait for ever.
"""

import contextlib
import inspect
import math
import sys
import threading
import time
import types

import triton.runtime.interpreter as interpreter

_here = threading.local()


class _Builder(type(interpreter.interpreter_builder)):
    """The interpreter's builder, which knows by the thread in which program it is."""

    @property
    def grid_idx(self):
        return getattr(_here, "program", None)

    @grid_idx.setter
    def grid_idx(self, value):
        _here.program = value


def _together(fn, grid):
    """``fn`` for every program, which the interpreter calls in turn: at the last call all of them run, each in a thread."""
    waiting, failures = [], []

    def program(where, arguments):
        _here.program = where
        try:
            fn(**arguments)
        except BaseException as error:
            failures.append(error)

    def called(arguments):
        waiting.append(threading.Thread(target=program, args=(interpreter.interpreter_builder.grid_idx, arguments), daemon=True))
        if len(waiting) == math.prod(grid):
            for thread in waiting:
                thread.start()
                time.sleep(0.01)  # so that one which does not wait is far ahead
            for thread in waiting:
                thread.join(120)
            if failures or any(thread.is_alive() for thread in waiting):
                raise RuntimeError(f"programs failed: {failures}, or still wait for one another")

    def stand_in(**arguments):
        called(arguments)

    # with the globals and the signature of fn, which the interpreter looks at
    made = types.FunctionType(stand_in.__code__, fn.__globals__, fn.__name__, None, stand_in.__closure__)
    made.__signature__, made.__annotations__ = inspect.signature(fn), fn.__annotations__
    return made


@contextlib.contextmanager
def programs_at_once():
    builder, original, interval = interpreter.interpreter_builder, interpreter.GridExecutor.__call__, sys.getswitchinterval()
    of_builder = type(builder)
    builder.__dict__.pop("grid_idx", None)
    builder.__class__ = _Builder

    def call(self, *args, **kwargs):
        self.fn = _together(self.fn, self.grid)
        return original(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = call
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        interpreter.GridExecutor.__call__ = original
        builder.__class__ = of_builder
        builder.grid_idx = None
