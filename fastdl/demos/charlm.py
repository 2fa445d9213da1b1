"""A recurrent network learns to write like Python's manual, a character after the other: ``fastdl demo charlm``.

The text is what ``help()`` shows (it comes with CPython), nine tenths to learn from and the last tenth held out. The measure
is bits per character: minus the mean base-2 logarithm of the probability that the network gives to what comes next.
"""

from __future__ import annotations

import math

import numpy as np

import fastdl.functional as F

from .. import nn, optim
from ..data import Batches, load_manual
from ..train import fit
from . import frame, pictures

STEPS = 128  # characters in a training sequence


class CharacterModel(nn.Module):
    """Character numbers (N, steps) -> scores of the next character (N, characters, steps)."""

    def __init__(self, characters, embedding=64, hidden=256):
        self.embedding = nn.Embedding(characters, embedding)
        self.gru = nn.GRU(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, x):
        return self.advance(x)[0]

    def advance(self, x, state=None):
        """The scores, and the state to go on from: (1, N, hidden)."""
        y, state = self.gru(self.embedding(x), state)
        return self.head(y).swapaxes(1, 2), state

    def vjp(self, x):
        e, embedding_pullback = self.embedding.vjp(x)
        (y, _), gru_pullback = self.gru.vjp(e)
        scores, head_pullback = self.head.vjp(y)

        def pullback(dscores, needs=False):
            return embedding_pullback(gru_pullback((head_pullback(dscores.swapaxes(1, 2)), None)))

        return scores.swapaxes(1, 2), pullback


class Passages:
    """Batches of passages from a text (numbers): ``batch_size`` places drawn at random, as many batches as read the text once.

    Each is (x, y) of (batch_size, steps), y being x one character on. What an epoch draws follows from (seed, epoch).
    """

    def __init__(self, text, batch_size, steps, seed=0):
        if len(text) <= steps:
            raise ValueError(f"Passages: the text has {len(text)} characters; the rule is more than the {steps} of a passage")
        self.windows = np.lib.stride_tricks.sliding_window_view(text, steps + 1)
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return math.ceil(len(self.windows) / (self.batch_size * (self.windows.shape[1] - 1)))

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        for _ in range(len(self)):
            batch = self.windows[rng.integers(0, len(self.windows), self.batch_size)]
            yield batch[:, :-1], batch[:, 1:]


def passages_in_order(text, batch_size, steps):
    """A text in passages side by side, to measure on."""
    n = (len(text) - 1) // steps
    return Batches(text[: n * steps].reshape(n, steps), text[1 : n * steps + 1].reshape(n, steps), batch_size=batch_size, shuffle=False)


def sample(model, characters, start, length, seed=0, temperature=0.7) -> str:
    """``length`` characters written after ``start``, each drawn from the model's probabilities, sharpened by the temperature."""
    rng = np.random.default_rng(seed)
    number = {c: i for i, c in enumerate(characters)}
    given, state, written = np.array([[number[c] for c in start]]), None, []
    for _ in range(length):
        scores, state = model.advance(given, state)
        p = F.softmax(scores[0, :, -1].astype(np.float64) / temperature, dim=0)
        given = np.array([[rng.choice(len(characters), p=p / p.sum())]])
        written.append(characters[given.item()])
    return start + "".join(written)


def run(out=None, seed=0, epochs=30, batch_size=32, lr=3e-3, resume=False) -> dict:
    """Train, save and show.

    out: the folder (default: out/charlm) for weights (safetensors), history (JSON), a checkpoint, report.json, sample.txt and
        charlm.png: bits per character after each epoch. epochs: each reads as many characters as the text has.
    seed, batch_size, lr: of the training, AdamW with a cosine schedule on passages of 128 characters.
    resume: go on from the checkpoint in ``out``.

    Returns what report.json holds: bits per character of the held-out tenth, at the end and after two minutes of training.
    """
    text = load_manual()
    characters = sorted(set(text))
    output = frame.Output("charlm", out, resume=resume, seed=seed, epochs=epochs, batch_size=batch_size, lr=lr, text=len(text))
    table = {ord(c): i for i, c in enumerate(characters)}
    numbers = np.array([table[ord(c)] for c in text])
    learn, test = np.split(numbers, [len(numbers) * 9 // 10])
    with nn.seeded(seed):
        model = CharacterModel(len(characters))
        optimizer = optim.AdamW(model.parameters(), lr=lr)
        history = fit(model, Passages(learn, batch_size, STEPS, seed), loss=F.cross_entropy, optimizer=optimizer, epochs=epochs,
                      validation=passages_in_order(test, batch_size, 4 * STEPS), schedule=optim.CosineAnnealingLR(optimizer, epochs),
                      clip_norm=1.0, checkpoint=output.checkpoint())
    output.weights(model)
    output.history(history)
    written = sample(model, characters, "The ", 1500, seed)
    output.write("sample.txt", written)
    bits = [loss / math.log(2) for loss in history.val_loss]
    path = output.picture(_draw(history, bits))
    early = int(np.searchsorted(np.cumsum(history.seconds), 120, side="right"))
    report = output.report(bits_per_character=bits[-1], after_two_minutes=bits[early - 1] if early else None,
                           unigram=_entropy(learn, test, len(characters)))
    print(written[:600])
    print(f"\n{bits[-1]:.3f} bits per held-out character after {len(history)} epochs, {sum(history.seconds):.0f} s"
          + (f"; {report['after_two_minutes']:.3f} after two minutes ({early} epochs)" if early else "")
          + f"; the frequency of characters alone gives {report['unigram']:.3f}")
    print(f"weights, history, sample.txt and {path.name} are in {output.folder}")
    return report


def _entropy(learn, test, characters):
    """Bits per character of a model that knows how often each occurs, and no more."""
    counts = np.bincount(learn, minlength=characters) + 1
    return float(-np.log2(counts / counts.sum())[test].mean())


def _draw(history, bits):
    figure = pictures.new_figure(8, 5)
    axes = figure.subplots()
    epochs = np.arange(1, len(history) + 1)
    axes.plot(epochs, np.array(history.loss) / math.log(2), label="training")
    axes.plot(epochs, bits, "--", label="held out")
    axes.set(title="A character model of Python's manual", xlabel="epoch", ylabel="bits per character")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
