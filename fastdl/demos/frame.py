"""What the demos share: the packages they need, the folder they write to, runs from several seeds.

A demo's ``run(out=..., resume=..., ...)`` makes an :class:`Output`, trains inside ``nn.seeded(seed)`` with a checkpoint of
that Output, and leaves there weights (safetensors), the history (JSON), report.json and a PNG. Every file is written whole
or not at all. The same seed gives the same bits on one machine, whether the run was interrupted and resumed or not.
"""

from __future__ import annotations

import importlib
import io
import json
import pathlib
import statistics
from typing import NamedTuple

import numpy as np

from .. import nn
from ..checkpoint import Checkpoint
from ..nn.weights import atomic_write
from ..train import History


def require(*packages: str) -> None:
    """Raise ModuleNotFoundError, with the command that mends it, where one of the packages is missing."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ModuleNotFoundError(f"the demo needs {package}: pip install fastdl[demo]", name=package) from error


class Output:
    """A demo's folder. settings: what makes the run what it is; a run resumed with others is refused.

    Raises ModuleNotFoundError where one of ``packages``, or of those that every demo needs, is missing, before any work.
    """

    def __init__(self, name, out, *, resume=False, packages=(), **settings):
        require("matplotlib", "safetensors", *packages)
        self.name, self.resume, self.settings = name, resume, {"demo": name, **settings}
        self.folder = pathlib.Path(f"out/{name}" if out is None else out)
        self.folder.mkdir(parents=True, exist_ok=True)

    def checkpoint(self, tag="", **settings) -> Checkpoint:
        return Checkpoint(self.folder / f"checkpoint{tag}.safetensors", resume=self.resume, settings={**self.settings, **settings})

    def weights(self, model, tag="") -> None:
        nn.save(model, self.folder / f"weights{tag}.safetensors")

    def history(self, history: History, tag="") -> None:
        self.write(f"history{tag}.json", history.to_json())

    def report(self, **values) -> dict:
        """Write report.json: the settings, then the values; both as one dict."""
        report = {**self.settings, **values}
        self.write("report.json", json.dumps(report, indent=1))
        return report

    def picture(self, figure, name=None, dpi=110) -> pathlib.Path:
        """Write a figure as a PNG, by default of the demo's name."""
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=dpi)
        return self.write(name or f"{self.name}.png", content.getvalue())

    def write(self, name, content: str | bytes) -> pathlib.Path:
        atomic_write(self.folder / name, content.encode() if isinstance(content, str) else content)
        return self.folder / name


class Reading(NamedTuple):
    """What one seed's network made of held-out data."""

    seed: int
    history: History
    inputs: tuple
    labels: np.ndarray
    read: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.read == self.labels))


def seed_list(demo, seeds) -> list[int]:
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeds:
        raise ValueError(f"{demo}: seeds is empty; the rule is at least one")
    return seeds


def classify(output: Output, seeds, train) -> list[Reading]:
    """Train a classifier from each seed and read held-out data with it.

    train(seed, checkpoint) -> (model, history, inputs, labels): the trained model, and the held-out data as a tuple of
    arrays and their labels.
    """
    readings = []
    for seed in seeds:
        with nn.seeded(seed):
            model, history, inputs, labels = train(seed, output.checkpoint(f"-seed{seed}", seed=seed))
        output.weights(model, f"-seed{seed}")
        output.history(history, f"-seed{seed}")
        readings.append(Reading(seed, history, inputs, labels, predict(model, *inputs)))
        share, seconds = readings[-1].accuracy, sum(history.seconds)
        print(f"seed {seed}: {share:.1%} of {len(labels)} held out are read rightly, {seconds:.0f} s", flush=True)
    if len(readings) > 1:
        print(f"mean of {len(readings)} seeds: {statistics.fmean(r.accuracy for r in readings):.2%}", flush=True)
    return readings


def predict(model, *inputs, rows=250) -> np.ndarray:
    """The class of the largest score, for each row."""
    parts = [model(*(a[i : i + rows] for a in inputs)) for i in range(0, len(inputs[0]), rows)]
    return np.concatenate(parts).argmax(axis=1)


def accuracies(readings) -> dict:
    """What a report says of them."""
    each = [r.accuracy for r in readings]
    return {"seeds": [r.seed for r in readings], "accuracy": each, "mean_accuracy": statistics.fmean(each)}
