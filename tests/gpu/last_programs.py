"""Of every launch, the last program alone, in Triton's interpreter: for tensors whose other elements nobody wants to wait for."""

import contextlib
import inspect
import mmap
import types

import torch
import triton.runtime.interpreter as interpreter


@contextlib.contextmanager
def only_the_last():
    original, builder = interpreter.GridExecutor.__call__, interpreter.interpreter_builder

    def call(self, *args, **kwargs):
        fn, grid = self.fn, tuple(self.grid) + (1,) * (3 - len(self.grid))

        def last(arguments):
            builder.set_grid_dim(*grid)
            builder.set_grid_idx(*(n - 1 for n in grid))
            fn(**arguments)

        def stand_in(**arguments):
            last(arguments)

        self.fn = types.FunctionType(stand_in.__code__, fn.__globals__, fn.__name__, None, stand_in.__closure__)
        self.fn.__signature__, self.fn.__annotations__ = inspect.signature(fn), fn.__annotations__
        self.grid = (1,)
        return original(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = call
    try:
        yield
    finally:
        interpreter.GridExecutor.__call__ = original


def reserved(shape, dtype=torch.float16):
    """A contiguous tensor of zeros of which only what is written to exists."""
    size = torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, size * torch.empty((), dtype=dtype).element_size(), flags=flags)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
