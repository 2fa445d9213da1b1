"""Weights on disk, in the safetensors format: the library's own files, Hugging Face's, and those torch users save."""

from __future__ import annotations

import contextlib
import os
import secrets

import numpy as np

from .module import Module
from .parameter import as_array


def save(model_or_state, path) -> None:
    """Write a model's ``state_dict()``, or a dict of names to arrays (or torch tensors), to a safetensors file.

    The write is atomic: a new file in the same folder takes the place of ``path`` once it is whole and on the disk, so
    a failed save leaves the old file as it was.

    Raises ImportError where safetensors is not installed, TypeError where a value is not an array, and OSError.
    """
    numpy_format = _safetensors()
    state = model_or_state.state_dict() if isinstance(model_or_state, Module) else model_or_state
    arrays = {}
    for name, value in state.items():
        array = as_array(value)
        if array is None or array.dtype.kind not in "fiub":
            what = type(value).__name__ if array is None else f"{array.dtype} array"
            raise TypeError(f"save: {name} is a {what}; the rule is an array or tensor of numbers")
        arrays[name] = np.array(array, order="C")  # the format holds dense rows; ascontiguousarray would lose 0-d shapes
    atomic_write(path, numpy_format.save(arrays))


def load(path) -> dict[str, np.ndarray]:
    """The state in a safetensors file: ``model.load_state_dict(nn.load(path))``.

    Raises ImportError where safetensors is not installed, OSError where the file cannot be read, and ValueError naming
    the file where it is not a whole safetensors file.
    """
    numpy_format = _safetensors()
    with open(path, "rb") as file:
        content = file.read()
    from safetensors import SafetensorError

    try:
        return numpy_format.load(content)
    except SafetensorError as error:
        raise ValueError(f"load: {os.fspath(path)} is not a whole safetensors file: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:  # a dtype that numpy lacks: bfloat16, float8
        raise ValueError(f"load: {os.fspath(path)} holds a dtype that numpy lacks: {error}") from error


def atomic_write(path, content: bytes) -> None:
    """Put ``content`` at ``path``, whole or not at all. A link is followed, as by ``open(path, "wb")``."""
    path = os.path.realpath(os.fspath(path))
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ModuleNotFoundError("saving and loading weights needs safetensors: pip install fastdl[demo]", name="safetensors") from error
    return safetensors.numpy
