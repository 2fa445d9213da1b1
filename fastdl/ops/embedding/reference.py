"""Table look-up in plain numpy: the specification."""

from __future__ import annotations

import numpy as np


def embedding(arrays, params, train):
    index, weight = arrays
    return weight[index], None


@np.errstate(all="ignore")
def embedding_backward(grad, arrays, saved, params, needs):
    index, weight = arrays
    if not needs[1]:
        return None, None
    if params.padding_idx is not None:
        kept = index != params.padding_idx
        index, grad = index[kept], grad[kept]
    dweight = np.zeros(weight.shape, weight.dtype)
    # a stable sort keeps the order of a row's terms; half the time of np.add.at
    order = np.argsort(index, kind="stable")
    index = index[order]
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    if starts.size:
        dweight[index[starts]] = np.add.reduceat(grad[order], starts, axis=0)
    return None, dweight
