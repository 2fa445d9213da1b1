"""Table look-up: embedding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ... import check
from ...op import Call, operator


class EmbeddingParams(NamedTuple):
    padding_idx: int | None  # not negative


@operator("embedding", "embedding", "input weight")
def embedding(input, weight, padding_idx=None):
    """The rows of ``weight`` that ``input`` names. As :func:`torch.nn.functional.embedding` without max_norm,
    scale_grad_by_freq and sparse.

    input: indices, any integer dtype and shape, each from 0 to V - 1. weight: (V, D). padding_idx: a row, from -V to
    V - 1, that gets no gradient, or None. Returns input's shape + (D,).

    The gradient of weight is a dense array; a row's terms are added in the order in which input names it.

    Raises TypeError (input not integers, weight not float32 or float64, padding_idx not an integer) or ValueError
    (weight not of two dimensions, an index or padding_idx out of range).
    """
    index = check.array("embedding", "input", input, kinds="i")
    w = check.array("embedding", "weight", weight, 2)
    rows = w.shape[0]
    if not check.on_device(index) and not check.all_below(index, rows):
        first = index[(index < 0) | (index >= rows)][0]
        raise ValueError(f"embedding: input contains {first}, weight has {rows} rows; the rule is 0 to {rows - 1}")
    if padding_idx is not None:
        padding = check.integer("embedding", "padding_idx", padding_idx)
        if not -rows <= padding < rows:
            raise ValueError(f"embedding: padding_idx is {padding}, weight has {rows} rows; the rule is {-rows} to {rows - 1}")
        padding_idx = padding % rows
    return Call((index.reshape(-1).astype(np.int64, copy=False), w), EmbeddingParams(padding_idx), (*index.shape, w.shape[1]))
