"""Which structure suits the data? 5-fold cross-validation says: ``fastdl demo select``.

Eight networks, from none but the output layer to a small convolutional one, on the 1,797 digits of 8 x 8 that come with
scikit-learn. A fifth of them is put aside; on the rest, each structure is trained five times on four fifths and measured on the
last, all by joblib in parallel. The best of them, trained on all the rest, is tested on what was put aside.
"""

from __future__ import annotations

import functools
import json

import numpy as np

import fastdl

from .. import nn
from ..checkpoint import CheckpointError
from ..data import load_digits8x8, train_test_split
from . import frame, pictures

SHAPE = (1, 8, 8)


def _cnn(shape, outputs, channels=16):
    """A small convolutional network for images of 8 x 8."""
    return nn.Sequential(
        nn.Conv2d(shape[0], channels, 3, padding=1, activation="relu"),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1, activation="relu"),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * 4, outputs),
    )


STRUCTURES = {
    "linear": {"hidden": ()},
    "16": {"hidden": 16},
    "64": {"hidden": 64},
    "256": {"hidden": 256},
    "64-64": {"hidden": (64, 64)},
    "64-64, dropout": {"hidden": (64, 64), "dropout": 0.2},
    "CNN 8-16": {"build": functools.partial(_cnn, channels=8), "input_shape": SHAPE},
    "CNN 16-32": {"build": functools.partial(_cnn, channels=16), "input_shape": SHAPE},
}


def measure(options, x, y, learn, test) -> float:
    """One fold: train on the rows ``learn``, answer the share of the rows ``test`` read rightly. It runs on one thread."""
    from ..sklearn import Classifier

    fastdl.set_num_threads(1)  # the folds are what runs in parallel
    return float(Classifier(**options).fit(x[learn], y[learn]).score(x[test], y[test]))


def run(out=None, seed=0, epochs=20, folds=5, jobs=-1, resume=False) -> dict:
    """Compare, save and show.

    out: the folder (default: out/select) for folds.json, the best structure's weights (safetensors) and history (JSON),
        report.json and select.png. folds, jobs: how many folds, and how many of them at once (-1: as many as there are cores).
    seed, epochs: of every training. resume: skip what folds.json holds.

    Returns what report.json holds: each structure's accuracy on each fold, the best one's name and its accuracy on the digits
    put aside.
    """
    output = frame.Output("select", out, resume=resume, packages=("sklearn", "tqdm"), seed=seed, epochs=epochs, folds=folds)
    from sklearn.model_selection import StratifiedKFold

    from ..sklearn import Classifier

    images, labels = load_digits8x8()
    x, x_test, y, y_test = train_test_split(images.reshape(len(images), -1), labels, test_size=0.2, seed=seed, stratify=labels)
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y))
    fixed = {"epochs": epochs, "random_state": seed}
    scores = _all_folds(output, {name: {**options, **fixed} for name, options in STRUCTURES.items()}, x, y, splits, jobs)
    for name, values in scores.items():
        print(f"{name:16} {np.mean(values):.2%} (folds: {min(values):.2%} to {max(values):.2%})")
    best = max(scores, key=lambda name: np.mean(scores[name]))
    chosen = Classifier(**STRUCTURES[best], **fixed).fit(x, y)
    output.weights(chosen.model_)
    output.history(chosen.history_)
    report = output.report(scores=scores, best=best, held_out=float(chosen.score(x_test, y_test)))
    print(f"best: {best}; it reads {report['held_out']:.1%} of {len(y_test)} digits put aside")
    path = output.picture(_draw(scores, best))
    print(f"weights, history and {path.name} are in {output.folder}")
    return report


def _all_folds(output, structures, x, y, splits, jobs):
    """{structure: [accuracy of each fold]}; folds.json grows with each, so that an interrupted run can go on."""
    import joblib
    from tqdm import tqdm

    done = _done(output)
    todo = [(name, fold) for name in structures for fold in range(len(splits)) if f"{name}/{fold}" not in done]
    work = joblib.Parallel(n_jobs=jobs, return_as="generator")(
        joblib.delayed(measure)(structures[name], x, y, *splits[fold]) for name, fold in todo)
    total = len(structures) * len(splits)
    with tqdm(total=total, initial=total - len(todo), unit="fold") as bar:
        for (name, fold), score in zip(todo, work, strict=True):
            done[f"{name}/{fold}"] = score
            output.write("folds.json", json.dumps({"settings": output.settings, "scores": done}, indent=1))
            bar.set_postfix_str(f"{name}: {score:.1%}", refresh=False)
            bar.update()
    return {name: [done[f"{name}/{fold}"] for fold in range(len(splits))] for name in structures}


def _done(output):
    path = output.folder / "folds.json"
    if not output.resume or not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found["settings"] != output.settings:
        raise CheckpointError(f"select: {path} was made with {found['settings']}, this run has {output.settings}; resume with the same, "
                                    "or start anew")
    return found["scores"]


def _draw(scores, best):
    figure = pictures.new_figure(9, 5)
    axes = figure.subplots()
    for row, (name, values) in enumerate(scores.items()):
        color = "C1" if name == best else "C0"
        axes.plot(np.array(values) * 100, [row] * len(values), "o", color=color, alpha=0.4)
        axes.plot(np.mean(values) * 100, row, "|", color=color, markersize=24, markeredgewidth=3)
    axes.set(title="Digits of 8 x 8: each fold, and the mean", xlabel="% read rightly", yticks=range(len(scores)))
    axes.set_yticklabels(scores)
    axes.grid(alpha=0.3)
    return figure
