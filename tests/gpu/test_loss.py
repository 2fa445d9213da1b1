"""Losses on a GPU."""

import pytest
import torch
from cases import DEVICE, DTYPES, NAMES, check, randn

import fastdl
import fastdl.functional as F

TF = torch.nn.functional


def labels(*shape, classes):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 2}, {"ignore_index": 1, "label_smoothing": 0.2}])
@pytest.mark.parametrize("shape", [(9, 5), (5,), (3, 150), (2, 5, 3, 2), (2, 90, 4)])
def test_cross_entropy(shape, options, reduction):
    classes = shape[0] if len(shape) == 1 else shape[1]
    target = labels(*(shape[:1] + shape[2:] if len(shape) > 1 else ()), classes=classes)
    for weight in (None, randn(classes).abs()):
        def torch_op(x, t, w, **rest):
            return TF.cross_entropy(x, t, None if w is None else w.detach(), **rest)

        for layout in ("contiguous", "channels_last") if len(shape) > 2 else ("contiguous",):
            check(F.cross_entropy, torch_op, [randn(*shape), target, None if weight is None else weight.to(DEVICE)],
                  {**options, "reduction": reduction}, kind="transcendental", n=classes, layout=layout) if weight is None else None
        if weight is not None:
            x = randn(*shape).float().to(DEVICE).requires_grad_()
            y = F.cross_entropy(x, target.to(DEVICE), weight.float().to(DEVICE), reduction=reduction, **options)
            x64 = x.detach().cpu().double().requires_grad_()
            want = TF.cross_entropy(x64, target, weight.float().double(), reduction=reduction, **options)
            torch.testing.assert_close(y.cpu().double(), want, rtol=1e-5, atol=1e-6, check_dtype=False)
            y.sum().backward()
            want.sum().backward()
            torch.testing.assert_close(x.grad.cpu().double(), x64.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=NAMES[1:])
def test_halves(dtype):
    check(F.cross_entropy, TF.cross_entropy, [randn(20, 70), labels(20, classes=70)], kind="transcendental", n=70, dtype=dtype)


def test_a_label_out_of_range_is_loud():
    x = randn(3, 4).float().to(DEVICE)
    losses = F.cross_entropy(x, torch.tensor([1, 4, -7]).to(DEVICE), reduction="none")
    assert losses.isnan().tolist() == [False, True, True]


def test_an_ignored_row_may_hold_nan():
    x = randn(3, 4).float()
    x[1] = float("nan")
    x = x.to(DEVICE).requires_grad_()
    y = F.cross_entropy(x, torch.tensor([1, -100, 2]).to(DEVICE))
    y.backward()
    assert y.isfinite() and x.grad.isfinite().all() and not x.grad[1].any()


def test_probabilities_are_torchs():
    x, q = randn(3, 4).float().to(DEVICE), torch.softmax(randn(3, 4, seed=1), 1).float().to(DEVICE)
    with pytest.raises(ValueError, match="target holds probabilities"):
        F.cross_entropy(x, q)
    if DEVICE == "cuda":
        with fastdl.use_backend(None), pytest.warns(UserWarning, match="cross_entropy: torch's operator"):
            torch.testing.assert_close(F.cross_entropy(x, q), TF.cross_entropy(x, q))
