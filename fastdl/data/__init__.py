"""Mini-batches, splits, and two small sets of handwritten digits."""

from .batches import Batches, train_test_split
from .digits import load_digits8x8, load_mnist5000

__all__ = ["Batches", "load_digits8x8", "load_mnist5000", "train_test_split"]
