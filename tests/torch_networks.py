"""The demos' networks in torch, to compare gradients with: the same parameters in the same order."""

from __future__ import annotations

import torch
from torch import nn


class Speaker(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.gru = nn.GRU(12, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, 9)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.linear(y.sum(1) / lengths[:, None])


class CharacterModel(nn.Module):
    def __init__(self, characters, embedding, hidden):
        super().__init__()
        self.embedding = nn.Embedding(characters, embedding)
        self.gru = nn.GRU(embedding, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, characters)

    def forward(self, x):
        return self.linear(self.gru(self.embedding(x))[0]).transpose(1, 2)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))


def cnn(first, second, hidden):
    return nn.Sequential(
        nn.Conv2d(1, first, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(second * 49, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def select_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 10))


def regress(window):
    return nn.Sequential(nn.Linear(window, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def autoencoder(code):
    up = {"stride": 2, "padding": 2, "output_padding": 1}
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, code), nn.Linear(code, 1568), nn.ReLU(), nn.Unflatten(1, (32, 7, 7)),
        nn.ConvTranspose2d(32, 16, 5, **up), nn.ReLU(), nn.ConvTranspose2d(16, 1, 5, **up))


def generator(noise):
    up = {"stride": 2, "padding": 2, "output_padding": 1}
    norm = lambda kind, n: [kind(n), nn.LeakyReLU(0.2)]
    return nn.Sequential(
        nn.Linear(noise, 1024, bias=False), *norm(nn.BatchNorm1d, 1024),
        nn.Linear(1024, 12544, bias=False), *norm(nn.BatchNorm1d, 12544), nn.Unflatten(1, (256, 7, 7)),
        nn.ConvTranspose2d(256, 128, 5, **up, bias=False), *norm(nn.BatchNorm2d, 128),
        nn.ConvTranspose2d(128, 64, 5, **up, bias=False), *norm(nn.BatchNorm2d, 64),
        nn.ConvTranspose2d(64, 1, 5, **up), nn.Sigmoid())


def discriminator():
    conv = lambda a, b, **options: nn.Conv2d(a, b, 5, stride=2, padding=2, **options)
    return nn.Sequential(
        conv(1, 64), nn.LeakyReLU(0.2), conv(64, 128, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2),
        conv(128, 256, bias=False), nn.BatchNorm2d(256), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(12544, 1))


def take_weights(theirs, ours):
    """Give a float64 torch network our weights, in order."""
    theirs.double()
    theirs_all, ours_all = list(theirs.parameters()), list(ours.parameters())
    assert [tuple(p.shape) for p in theirs_all] == [p.shape for p in ours_all]
    with torch.no_grad():
        for t, p in zip(theirs_all, ours_all, strict=True):
            t.copy_(torch.tensor(p.data))
            t.grad = None
    return theirs
