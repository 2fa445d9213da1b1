"""Recorded speech that comes with the package, and the format it is in."""

from __future__ import annotations

import gzip
import pathlib
from typing import NamedTuple

import numpy as np


class Sequences(NamedTuple):
    """Sequences of several lengths: x float32 (N, longest, channels), 0 past a row's end; lengths int64 (N,); labels int64 (N,)."""

    x: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


def load_japanese_vowels() -> tuple[Sequences, Sequences]:
    """(training part, test part): nine speakers (labels 0 to 8) say /ae/; 12 LPC cepstrum coefficients, 7 to 29 frames.

    270 recordings to train on and 370 to test on, the data set's own split, in the order of its files. They come with
    fastdl, under CC BY 4.0: JapaneseVowels.md beside them says whose they are. Source: M. Kudo et al.,
    "Multidimensional curve classification using passing-through regions", Pattern Recognition Letters 20 (1999).
    """
    folder = pathlib.Path(__file__).parent
    train, test = (read_ts(folder / f"JapaneseVowels_{part}.ts.gz") for part in ("TRAIN", "TEST"))
    return train, test


def read_ts(path) -> Sequences:
    """A file in the ``.ts`` format of the time-series classification archive (compressed, where its name ends in .gz).

    After the line ``@data``, a series is a line: channels separated by ":", values by ",", the class last. Labels are
    numbered in the order of ``@classLabel``. Raises OSError, and ValueError naming the line that is not of this form.
    """
    path = pathlib.Path(path)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        classes, series, labels, data = None, [], [], False
        for number, line in enumerate(file, 1):
            line = line.strip()
            if not data:
                data = line.lower() == "@data"
                if line.lower().startswith("@classlabel true"):
                    classes = line.split()[2:]
            elif line:
                *channels, label = line.split(":")
                try:
                    series.append(np.array([channel.split(",") for channel in channels], np.float32).T)
                    labels.append(classes.index(label))
                except (AttributeError, ValueError) as error:
                    raise ValueError(f"read_ts: {path}, line {number} is no series with one of the classes {classes}: {error}") from error
    if not series or len({s.shape[1] for s in series}) != 1:
        raise ValueError(f"read_ts: {path} holds no series after @data, or series with several numbers of channels")
    lengths = np.array([len(s) for s in series], np.int64)
    x = np.zeros((len(series), lengths.max(), series[0].shape[1]), np.float32)
    for row, s in zip(x, series, strict=True):
        row[: len(s)] = s
    return Sequences(x, lengths, np.array(labels, np.int64))
