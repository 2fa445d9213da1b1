"""Arrays in mini-batches, and in two parts."""

from __future__ import annotations

import math

import numpy as np

from .. import check


class Batches:
    """Iterates over arrays in step, as tuples of ``batch_size`` rows: ``for x, y in Batches(images, labels, batch_size=64)``.

    shuffle: draw a new order each epoch, from (seed, epoch) alone: a resumed run that calls ``set_epoch`` sees what an
    uninterrupted one would have. Each iteration starts the next epoch. drop_last: leave out a last, smaller batch.
    transform: called as ``transform(rng, *batch)`` with a generator that (seed, epoch) determine too; answers the batch
    to use (random shifts, noise).

    Raises TypeError where an argument is not an array, ValueError where their lengths differ or are 0.
    """

    def __init__(self, *arrays, batch_size, shuffle=True, seed=0, drop_last=False, transform=None):
        _check_arrays("Batches", arrays)
        if not len(arrays[0]):
            raise ValueError("Batches: the arrays are empty; the rule is at least one row")
        self.arrays = arrays
        self.batch_size = check.integer("Batches", "batch_size", batch_size, 1)
        self.shuffle = bool(shuffle)
        self.seed = check.integer("Batches", "seed", seed, 0)
        self.drop_last = bool(drop_last)
        self.transform = transform
        self.epoch = 0
        if drop_last and len(arrays[0]) < batch_size:
            raise ValueError(f"Batches: {len(arrays[0])} rows do not fill one batch of {batch_size}, and drop_last is True")

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is, from 0."""
        self.epoch = check.integer("Batches", "epoch", epoch, 0)

    def __len__(self):
        """How many batches an epoch has."""
        n = len(self.arrays[0])
        return n // self.batch_size if self.drop_last else math.ceil(n / self.batch_size)

    def __iter__(self):
        epoch, self.epoch = self.epoch, self.epoch + 1  # now, not at the first next(): an iterator is one epoch's
        return self._batches(np.random.default_rng([self.seed, epoch]))

    def _batches(self, rng):
        n, size = len(self.arrays[0]), self.batch_size
        order = rng.permutation(n) if self.shuffle else None
        for i in range(len(self)):
            rows = slice(i * size, min((i + 1) * size, n))
            batch = tuple(a[rows if order is None else order[rows]] for a in self.arrays)
            yield batch if self.transform is None else self.transform(rng, *batch)


def train_test_split(*arrays, test_size=0.2, seed=0, stratify=None) -> list[np.ndarray]:
    """Two random parts of each array: ``x_train, x_test, y_train, y_test = train_test_split(x, y)``, as in scikit-learn.

    test_size: a share of the rows (rounded up) or, an integer, how many. stratify: labels; each class then has the same
    share of both parts (by largest remainder). Rows keep their order within a part.

    Raises TypeError where an argument is not an array, ValueError where lengths differ or a part would be empty.
    """
    _check_arrays("train_test_split", arrays if stratify is None else (*arrays, stratify))
    n = len(arrays[0])
    if isinstance(test_size, (float, np.floating)):
        tests = math.ceil(n * check.number("train_test_split", "test_size", test_size, 0, 1))
    else:
        tests = check.integer("train_test_split", "test_size", test_size, 0)
    if not 0 < tests < n:
        raise ValueError(f"train_test_split: test_size is {test_size}, of {n} rows; the rule is that no part is empty")
    rng = np.random.default_rng(check.integer("train_test_split", "seed", seed, 0))
    chosen = np.zeros(n, bool)
    if stratify is None:
        chosen[rng.permutation(n)[:tests]] = True
    else:
        _, classes, counts = np.unique(stratify, return_inverse=True, return_counts=True)
        share = counts * (tests / n)
        take = np.floor(share).astype(int)
        take[np.argsort(take - share, kind="stable")[: tests - take.sum()]] += 1
        for c, count in enumerate(take):
            chosen[rng.permutation(np.flatnonzero(classes == c))[:count]] = True
    return [part for a in arrays for part in (a[~chosen], a[chosen])]


def _check_arrays(op, arrays):
    if not arrays:
        raise TypeError(f"{op}: give at least one array")
    for i, a in enumerate(arrays):
        if not isinstance(a, np.ndarray) or not a.ndim:
            raise TypeError(f"{op}: argument {i} must be a numpy array of rows, got {type(a).__name__}")
        if len(a) != len(arrays[0]):
            raise ValueError(f"{op}: argument {i} has {len(a)} rows, the first has {len(arrays[0])}")
