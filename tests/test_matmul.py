"""matmul, bmm and linear against torch."""

import numpy as np
import pytest
import torch
from checker import check

import fastdl.functional as F

BACKENDS = ["reference", "numba"]
SIZES = [
    ((3, 4), (4, 5)),
    ((1, 1), (1, 1)),
    ((17, 33), (33, 19)),
    ((4,), (4, 3)),
    ((3, 4), (4,)),
    ((5,), (5,)),
    ((2, 3, 4), (4, 5)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((0, 4), (4, 3)),
    ((3, 0), (0, 4)),
    ((2, 3, 4), (2, 4, 5)),
]


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("a,b", SIZES)
def test_matmul(a, b, backend, dtype, layout):
    rng = np.random.default_rng(0)
    check(F.matmul, torch.matmul, [rng.standard_normal(a), rng.standard_normal(b)], n=a[-1], backend=backend, dtype=dtype, layout=layout)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "leaky_relu", "elu", "tanh", "sigmoid", "softplus"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_activation(backend, activation):
    rng = np.random.default_rng(0)
    act = getattr(torch.nn.functional, activation) if activation else lambda z: z
    check(
        F.linear,
        lambda x, w, b: act(torch.nn.functional.linear(x, w, b)),
        [rng.standard_normal((7, 13)), rng.standard_normal((9, 13)), rng.standard_normal(9)],
        {"activation": activation},
        torch_options={},
        kind="transcendental",
        n=13,
        backend=backend,
    )
