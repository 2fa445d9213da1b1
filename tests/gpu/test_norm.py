"""Normalisation on a GPU."""

import pytest
import torch
from cases import DEVICE, DTYPES, NAMES, check, randn

import fastdl.functional as F

TF = torch.nn.functional


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("shape,normalized", [((5, 33), (33,)), ((3, 4, 6), (4, 6)), ((130, 7), (7,)), ((2, 1), (1,)), ((0, 4), (4,))])
def test_layer_norm(shape, normalized, dtype):
    x, w, b = randn(*shape) + 3, randn(*normalized), randn(*normalized, seed=1)
    n = max(1, w.numel())
    if n == 1:  # the gradient is the cancelled rest of equal terms
        torch.testing.assert_close(F.layer_norm(x.to(dtype).to(DEVICE), normalized).cpu(), torch.zeros(shape, dtype=dtype))
        return
    # the normalised value is rounded before it meets the weight's gradient: a few more half epsilons
    check(lambda x, w, b: F.layer_norm(x, normalized, w, b), lambda x, w, b: TF.layer_norm(x, normalized, w, b), [x, w, b],
          kind="transcendental", n=n, dtype=dtype)
    check(lambda x: F.layer_norm(x, normalized), lambda x: TF.layer_norm(x, normalized), [x], kind="transcendental", n=n, dtype=dtype,
          layout="strided")


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 4, 6), (2, 9, 11), (2, 3, 2, 3, 4)])
def test_batch_norm(shape, layout, dtype):
    c = shape[1]
    mean, var = randn(c).to(dtype), randn(c).abs().to(dtype) + 0.5
    for training in (True, False):
        state, want = [t.clone().to(DEVICE) for t in (mean, var)], [mean.double(), var.double()]
        check(lambda x, w, b, state=state, training=training: F.batch_norm(x, *state, w, b, training, 0.2),
              lambda x, w, b, want=want, training=training: TF.batch_norm(x, *want, w, b, training, 0.2),
              [2 * randn(*shape) + 5, randn(c, seed=2), randn(c, seed=3)], kind="transcendental", n=4 * shape[0], dtype=dtype,
              layout=layout)
        eps = 1e-5 if dtype is torch.float32 else 0.02
        for s, t in zip(state, want, strict=True):
            torch.testing.assert_close(s.cpu().double(), t, rtol=eps, atol=eps)


def test_batch_norm_of_a_large_mean():
    x = 1e4 + randn(64, 3, 5).float()
    got = F.batch_norm(x.to(DEVICE), None, None, training=True).cpu().double()
    want = TF.batch_norm(x.double(), None, None, training=True)
    assert (got - want).abs().max() < 2e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape,groups", [((2, 6, 5, 4), 3), ((3, 10, 9), 2), ((2, 4, 3, 3), 1), ((2, 4, 3, 3), 4)])
def test_group_norm(shape, groups, layout, dtype):
    arrays = [2 * randn(*shape) + 1, randn(shape[1]), randn(shape[1], seed=1)]
    check(lambda x, w, b: F.group_norm(x, groups, w, b), lambda x, w, b: TF.group_norm(x, groups, w, b), arrays, kind="transcendental",
          n=shape[2] * 4, dtype=dtype, layout=layout)
    check(lambda x: F.group_norm(x, groups), lambda x: TF.group_norm(x, groups), arrays[:1], kind="transcendental", n=shape[2] * 4,
          dtype=dtype, layout=layout)


def test_nan_stays_in_what_is_normalised_together():
    x = randn(4, 6, 5, 3)
    x[1, 2, 3, 1] = float("nan")
    for layout in (lambda t: t, lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1)):
        given = layout(x.float()).to(DEVICE)
        for ours, theirs in ((lambda t: F.batch_norm(t, None, None, training=True), lambda t: TF.batch_norm(t, None, None, training=True)),
                             (lambda t: F.group_norm(t, 3), lambda t: TF.group_norm(t, 3)),
                             (lambda t: F.layer_norm(t, 3), lambda t: TF.layer_norm(t, (3,)))):
            assert torch.equal(ours(given).cpu().isnan(), theirs(x).isnan())
