"""Mini-batches, splits, augmentation, and small real data sets that come with packages: nothing is downloaded."""

from .batches import Batches, train_test_split
from .digits import load_digits8x8, load_mnist5000
from .series import load_manual, load_sunspots
from .speech import load_japanese_vowels, read_ts

__all__ = [
    "Batches", "load_digits8x8", "load_japanese_vowels", "load_manual", "load_mnist5000", "load_sunspots", "read_ts",
    "train_test_split",
]
