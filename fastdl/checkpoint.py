"""A run's whole state in one file, so that an interrupted run goes on as if nothing had happened.

    checkpoint = Checkpoint("run.safetensors", resume=True)
    start = checkpoint.restore(model=model, optimizer=optimizer).get("epoch", 0)
    for epoch in range(start, epochs):
        ...
        checkpoint.save({"epoch": epoch + 1}, model=model, optimizer=optimizer)

The file holds each part's ``state_dict()``, the values given, and the state of the generator that layers draw from.
"""

from __future__ import annotations

import json
import os

import numpy as np

from . import nn
from .nn.parameter import as_array

_TREE = "checkpoint.json"  # the name of the array that holds everything but arrays, as JSON in UTF-8


class CheckpointError(ValueError):
    """A file that the run at hand cannot go on from."""


class Checkpoint:
    """A file that a run writes after each epoch and an interrupted one goes on from.

    path: the file, a safetensors file. resume: whether ``restore`` reads it. settings: what must be the same for the run
    to be the same (plain values: seed, batch size, ...); a file of another run is refused.

    A write is atomic: Ctrl-C or a full disk leave the old file whole. Needs safetensors.
    """

    def __init__(self, path, *, resume: bool = False, settings: dict | None = None):
        self.path = os.fspath(path)
        self.resume = bool(resume)
        self.settings = _plain(settings or {})

    def save(self, values: dict | None = None, **parts) -> None:
        """Write the parts' states (anything with ``state_dict``) and plain values. Raises OSError, and TypeError for a value
        that is neither an array nor fit for JSON."""
        arrays = {}
        tree = {"settings": self.settings, "values": dict(values or {}), "rng": nn.get_rng_state(),
                "parts": {name: _without_arrays(part.state_dict(), name, arrays) for name, part in parts.items()}}
        nn.save({_TREE: np.frombuffer(json.dumps(tree).encode(), np.uint8), **arrays}, self.path)

    def restore(self, **parts) -> dict:
        """Put the parts and the generator where ``save`` found them; the values. Without ``resume``, or where there is no file
        yet, nothing changes and the answer is empty.

        Raises CheckpointError where the file is no checkpoint, was made with other settings, or does not fit the parts.
        """
        if not self.resume or not os.path.exists(self.path):
            return {}
        try:
            arrays = nn.load(self.path)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        if _TREE not in arrays:
            raise CheckpointError(f"Checkpoint: {self.path} holds weights but is no checkpoint; give the file that the run wrote")
        tree = json.loads(arrays[_TREE].tobytes())
        self._compare(tree["settings"])
        if set(tree["parts"]) != set(parts):
            names = [", ".join(sorted(each)) for each in (tree["parts"], parts)]
            raise CheckpointError(f"Checkpoint: {self.path} holds {names[0]}; the run has {names[1]}")
        for name, part in parts.items():
            try:
                part.load_state_dict(_with_arrays(tree["parts"][name], arrays))
            except ValueError as error:
                raise CheckpointError(f"Checkpoint: {self.path} does not fit: {error}") from error
        nn.set_rng_state(tree["rng"])
        return tree["values"]

    def _compare(self, old):
        for name in sorted({*old, *self.settings}):
            if old.get(name) != self.settings.get(name):
                raise CheckpointError(f"Checkpoint: {self.path} was made with {name}={old.get(name)}, this run has "
                                 f"{name}={self.settings.get(name)}; resume with the same, or start anew")


def _plain(settings):
    """As JSON gives them back."""
    return json.loads(json.dumps(settings))


def _without_arrays(value, name, arrays):
    """value with each array replaced by its name in ``arrays``."""
    if isinstance(value, dict):
        return {key: _without_arrays(v, f"{name}/{key}", arrays) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_without_arrays(v, f"{name}/{i}", arrays) for i, v in enumerate(value)]
    array = as_array(value)
    if array is None:
        return value
    arrays[name] = array
    return {"array": name}


def _with_arrays(value, arrays):
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return arrays[value["array"]]
        return {key: _with_arrays(v, arrays) for key, v in value.items()}
    return [_with_arrays(v, arrays) for v in value] if isinstance(value, list) else value
