"""A recurrent network learns to tell speakers by their voice: ``fastdl demo rnn``.

Nine men say the Japanese vowels /ae/: each recording is a series of 12 LPC cepstrum coefficients, 7 to 29 frames long. A
gated recurrent unit reads it in both directions; the mean of its outputs over the recording's own frames decides. The data's
own split: 270 recordings to train on, 370 to test on; once for each seed.
"""

from __future__ import annotations

import numpy as np

import fastdl.functional as F

from .. import nn, optim
from ..data import Batches, load_japanese_vowels
from ..data.augment import Compose, Noise, TimeWarp
from ..train import fit
from . import frame, pictures


class Speaker(nn.Module):
    """Padded sequences (N, steps, 12) and their lengths (N,) -> scores (N, 9)."""

    def __init__(self, hidden=64, dropout=0.3):
        self.gru = nn.GRU(12, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * hidden, 9))

    def forward(self, x, lengths):
        y, _ = self.gru(x, lengths=lengths)
        return self.head(self._mean(y, lengths))

    def vjp(self, x, lengths):
        (y, _), gru_pullback = self.gru.vjp(x, lengths=lengths)
        scores, head_pullback = self.head.vjp(self._mean(y, lengths))

        def pullback(dscores, needs=True):
            dmean = head_pullback(dscores) / lengths[:, None].astype(y.dtype)
            # what lies behind a row's end is 0 whatever the weights are, so its gradient may be anything
            return gru_pullback((np.broadcast_to(dmean[:, None], y.shape), None), needs=needs)

        return scores, pullback

    @staticmethod
    def _mean(y, lengths):
        return y.sum(axis=1) / lengths[:, None].astype(y.dtype)  # y is 0 behind a row's end


def standardised(train, test):
    """Both parts with mean 0 and deviation 1 in each channel, by the training part's frames; padding stays 0."""
    inside = np.arange(train.x.shape[1]) < train.lengths[:, None]
    mean, deviation = train.x[inside].mean(axis=0), train.x[inside].std(axis=0)
    for part in (train, test):
        inside = np.arange(part.x.shape[1]) < part.lengths[:, None]
        yield part._replace(x=np.where(inside[..., None], (part.x - mean) / deviation, np.float32(0)))


def run(out=None, seeds=3, epochs=60, batch_size=27, lr=3e-3, resume=False) -> dict:
    """Train, save and show.

    out: the folder (default: out/rnn) for, of each seed, weights (safetensors), history (JSON) and a checkpoint; and for
        report.json and rnn.png: learning curves, the confusion matrix and the misread recordings of all seeds together.
    seeds: how many (from 0), or which. epochs, batch_size, lr: of the training, AdamW with a cosine schedule.
    resume: go on from the checkpoints in ``out``.

    Returns what report.json holds: the share of the test part's recordings whose speaker is told, for each seed and on average.
    """
    output = frame.Output("rnn", out, resume=resume, epochs=epochs, batch_size=batch_size, lr=lr)
    seeds = frame.seed_list("rnn", seeds)
    learn, test = standardised(*load_japanese_vowels())

    def train(seed, checkpoint):
        model = Speaker()
        optimizer = optim.AdamW(model.parameters(), lr=lr)
        data = Batches(*learn, batch_size=batch_size, seed=seed, transform=Compose(TimeWarp(0.3, lengths=True), Noise(0.3)))
        history = fit(model, data, loss=F.cross_entropy, loss_options={"label_smoothing": 0.1}, optimizer=optimizer, epochs=epochs,
                      validation=tuple(test), schedule=optim.CosineAnnealingLR(optimizer, epochs), clip_norm=1.0, progress="run",
                      checkpoint=checkpoint)
        return model, history, (test.x, test.lengths), test.labels

    readings = frame.classify(output, seeds, train)
    path = output.picture(pictures.classifier(readings, range(1, 10), "recordings", lambda x, length: x[:length].T,
                                               cmap="coolwarm", vmin=-3, vmax=3))
    print(f"weights, histories and {path.name} are in {output.folder}")
    return output.report(**frame.accuracies(readings))

