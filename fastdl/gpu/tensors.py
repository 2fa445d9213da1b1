"""A tensor as the checks of an operator see it.

A prepare step (``ops/<room>/__init__.py``) is written for numpy's names: ``shape``, ``ndim``, ``dtype.kind``, ``reshape``,
indexing. :class:`DeviceTensor` gives a torch tensor those names, so that one function checks an operator's arguments whatever
they are. Kernels receive plain tensors again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class DType(NamedTuple):
    """What checks ask of a dtype."""

    name: str
    kind: str  # "f" floats that kernels take, "i" and "u" integers, "b" booleans, "o" others
    itemsize: int

    def __str__(self):
        return self.name

    __repr__ = __str__


def _dtype(dtype):
    size = torch.empty((), dtype=dtype).element_size()
    if dtype in (torch.float32, torch.float16, torch.bfloat16):
        kind = "f"
    elif dtype is torch.bool:
        kind = "b"
    elif dtype.is_floating_point or dtype.is_complex:
        kind = "o"
    else:
        kind = "i" if torch.iinfo(dtype).min < 0 else "u"
    return DType(str(dtype).removeprefix("torch."), kind, size)


class _DTypes(dict):
    def __missing__(self, dtype):
        self[dtype] = found = _dtype(dtype)
        return found


_DTYPES = _DTypes()


class _Flags(NamedTuple):
    aligned: bool = True
    writeable: bool = True


class DeviceTensor:
    """A torch tensor under numpy's names, as far as checks and shape rules use them."""

    __slots__ = ("dtype", "ndim", "shape", "tensor")
    is_device_tensor = True  # check.py recognises it so, without importing this
    flags = _Flags()

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.ndim = len(self.shape)
        self.dtype = _DTYPES[tensor.dtype]

    @property
    def size(self) -> int:
        return self.tensor.numel()

    def __getitem__(self, index):
        return DeviceTensor(self.tensor[index])

    def reshape(self, *shape):
        return DeviceTensor(self.tensor.reshape(*shape))

    def swapaxes(self, a, b):
        return DeviceTensor(self.tensor.transpose(a, b))

    def broadcast_to(self, shape):
        return DeviceTensor(self.tensor.broadcast_to(shape))

    def astype(self, dtype, copy=False):
        """Itself: kernels take indices of every integer type."""
        return self
