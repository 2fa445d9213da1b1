"""How long the CNN demo's training step takes, and torch's beside it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import fastdl
import fastdl.functional as F

from .. import optim
from ..cpu.parallel import get_num_threads
from . import cnn


def step_times(images, labels, batch_size=64, compare=True, rounds=4, steps=6) -> dict[str, float]:
    """The median time of a training step in milliseconds: {"fastdl": ..., "torch": ..., "torch channels-last": ...}.

    The two take turns, so that both see the machine in the same state; torch runs in a process of its own, because two
    thread pools in one process slow each other down. torch is absent where it is not installed.
    """
    x, y = images[:batch_size], labels[:batch_size]
    model = cnn.build()
    optimizer = optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    def step():
        optimizer.zero_grad()
        logits, pullback = model.vjp(x)
        _, loss_pullback = fastdl.vjp(F.cross_entropy, logits, y)
        pullback(loss_pullback(1.0)[0], needs=False)
        optimizer.step()

    times = {"fastdl": []}
    with contextlib.ExitStack() as stack:
        torch = stack.enter_context(TorchSteps(batch_size)) if compare else None
        for counted in (False, *[True] * rounds):  # the first round warms up
            for name, ms in [("fastdl", _timed(step)) for _ in range(steps)] + (torch.run(steps) if torch else []):
                times.setdefault(name, [])
                if counted:
                    times[name].append(ms)
    return {name: statistics.median(ms) for name, ms in times.items()}


def _timed(step):
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


class TorchSteps:
    """A process that times torch's steps when asked; none where torch is not installed."""

    def __init__(self, batch_size):
        self.command = [sys.executable, "-m", "fastdl.demos.torch_step", str(batch_size), str(get_num_threads())]

    def __enter__(self):
        if importlib.util.find_spec("torch") is None:
            return None
        folder = str(pathlib.Path(fastdl.__file__).parents[1])
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, "PYTHONPATH": path})
        return self

    def __exit__(self, *_):
        if hasattr(self, "process"):
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()

    def run(self, steps):
        """(name, milliseconds) of each of ``steps`` steps in each memory layout; empty where the process has failed."""
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return []
        line = self.process.stdout.readline()
        return [tuple(entry) for entry in json.loads(line)] if line else []
