"""Activations, softmax and dropout on a GPU."""

import numpy as np
import pytest
import torch
from cases import DEVICE, DTYPES, NAMES, check, randn

import fastdl
import fastdl.functional as F

TF = torch.nn.functional
ACTIVATIONS = {"relu": {}, "leaky_relu": {"negative_slope": -0.3}, "elu": {"alpha": 1.5}, "gelu": {}, "sigmoid": {}, "tanh": {},
               "softplus": {"beta": 2.0, "threshold": 1.0}}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_activation(name, dtype):
    torch_op = getattr(torch, name) if name in ("sigmoid", "tanh") else getattr(TF, name)
    x = 4 * randn(3, 5, 17)
    x[0, 0, :4] = torch.tensor([0.0, 1e-3, -1e-3, 1.0 if name == "elu" else float("nan")])  # torch's gradient of elu's NaN varies
    check(getattr(F, name), torch_op, [x], ACTIVATIONS[name], kind="transcendental", dtype=dtype)
    for layout in ("channels_last", "strided"):
        check(getattr(F, name), torch_op, [x], ACTIVATIONS[name], kind="transcendental", dtype=dtype, layout=layout)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (300,)])
def test_shapes(shape):
    check(F.gelu, TF.gelu, [randn(*shape)], {"approximate": "tanh"}, kind="transcendental")


def test_small_values_keep_their_digits():
    x = torch.tensor([1e-8, -3e-5, 2e-3, -0.1, 0.2499, 0.2501, -0.39, -0.41]).to(DEVICE)
    for f, want in ((F.tanh, torch.tanh), (F.elu, TF.elu)):
        torch.testing.assert_close(f(x).cpu().double(), want(x.cpu().double()), rtol=4e-7, atol=0)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("shape,dim", [((7, 33), 1), ((7, 33), 0), ((3, 200), -1), ((2, 5, 3, 4), 1), ((2, 130, 5), 1), ((0, 3), 1),
                                       ((4,), 0)])
def test_softmax(name, shape, dim, dtype):
    """Rows that fit a tile and rows that do not, along the last and along a middle axis."""
    for layout in ("contiguous", "channels_last") if len(shape) > 2 else ("contiguous",):
        check(getattr(F, name), getattr(TF, name), [3 * randn(*shape)], {"dim": dim}, kind="transcendental", n=shape[dim], dtype=dtype,
              layout=layout)


@pytest.mark.parametrize("n", [5, 150])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_what_is_not_finite(name, n):
    x = randn(5, n).float()
    x[0, 1], x[1, 2], x[2, 3], x[3] = float("nan"), float("inf"), float("-inf"), float("-inf")
    got, want = getattr(F, name)(x.to(DEVICE), 1).cpu(), getattr(TF, name)(x, 1)
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("shape", [(1001,), (3, 5, 7), (2, 4, 3, 3)])
def test_dropout_draws_what_the_cpu_draws(shape, dtype):
    x = randn(*shape, seed=3).to(dtype)
    x[(0,) * x.ndim] = float("nan")
    for p, seed in ((0.3, 7), (0.0, 1), (1.0, 2), (0.999, 2**64 - 1), (0.5, 2**31)):
        for t in (x, x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 2 else x):
            got = F.dropout(t.to(DEVICE), p, seed=seed)
            with fastdl.use_backend("reference"):
                want = F.dropout(t.float().numpy(), p, seed=seed)
            np.testing.assert_allclose(got.cpu().float().numpy(), want, rtol=0.01)
            assert got.stride() == t.stride()
    x = x.nan_to_num().to(DEVICE).requires_grad_()
    y = F.dropout(x, 0.4, seed=5)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad * x.detach(), y.detach())
