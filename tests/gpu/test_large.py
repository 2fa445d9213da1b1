"""Tensors of more than 2^31 elements in dense memory: the last elements are right, where 32 bits would not reach.

Of each launch the last program alone runs, on memory that is reserved and not touched. Strided operands of matrix products and
convolutions: test_matmul.py and test_conv.py.
"""

import pytest
import torch
from cases import DEVICE, randn

import fastdl.functional as F

if DEVICE == "cuda":
    pytest.skip("these run in the interpreter; a GPU would have to hold the tensors", allow_module_level=True)

from last_programs import only_the_last, reserved

TF = torch.nn.functional
OVER = (1 << 31) + 7000  # elements


@pytest.fixture(autouse=True)
def _unfilled(monkeypatch):
    """New memory is reserved too: what is not written costs nothing."""
    empty = torch.empty

    def large(*shape, dtype=torch.float32, device=None, **rest):
        size = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        return reserved(size, dtype) if size.numel() > 1 << 28 else empty(size, dtype=dtype, device=device, **rest)

    monkeypatch.setattr(torch, "empty", large)
    monkeypatch.setattr(torch, "empty_like", lambda t, **rest: large(t.shape, dtype=t.dtype).as_strided(t.shape, t.stride()))
    with only_the_last():
        yield


def given(shape, last, values):
    """A large tensor whose last entries along the first axis are those of values."""
    x = reserved(shape)
    x[-last:] = values.half()
    return x


def close(got, want, bound=2e-3):
    assert (got.double() - want.double()).abs().max() <= bound * want.double().abs().max()


def test_pointwise():
    """80 elements, for the last program has not a whole block."""
    values = randn(80)
    x = given((OVER,), 80, values).requires_grad_()
    y = F.gelu(x)
    close(y[-80:].detach(), TF.gelu(values.half().double()))
    y.backward(given((OVER,), 80, torch.ones(80)))
    want = values.half().double().requires_grad_()
    TF.gelu(want).sum().backward()
    close(x.grad[-80:], want.grad)


def test_dropout():
    y = F.dropout(given((OVER,), 20, torch.ones(20)), 0.5, seed=3)
    assert sorted(set(y[-20:].tolist())) == [0.0, 2.0]


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name):
    values = randn(1, 48)
    x = given((OVER // 48, 48), 1, values).requires_grad_()
    y = getattr(F, name)(x, 1)
    want = values.half().double().requires_grad_()
    z = getattr(TF, name)(want, 1)
    close(y[-1:].detach(), z.detach())
    g = randn(1, 48, seed=1)
    y.backward(given(x.shape, 1, g))
    z.backward(g.half().double())
    close(x.grad[-1:], want.grad, 1e-2)


def test_layer_norm():
    values = randn(1, 60)
    y = F.layer_norm(given((OVER // 60, 60), 1, values), 60)
    close(y[-1:], TF.layer_norm(values.half().double(), (60,)))


def test_cross_entropy():
    values, rows = randn(1, 1000), OVER // 1000
    x = given((rows, 1000), 1, values)
    target = torch.zeros(rows, dtype=torch.int64)
    target[-1] = 7
    losses = F.cross_entropy(x, target, reduction="none")
    close(losses[-1:], TF.cross_entropy(values.half().double(), target[-1:], reduction="none"))


@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_norm(channels_last):
    images = OVER // (4 * 256)
    values = randn(1, 4, 16, 16)
    if channels_last:
        x = given((images, 16, 16, 4), 1, values.movedim(1, -1)).movedim(-1, 1)
    else:
        x = given((images, 4, 16, 16), 1, values)
    mean, var = randn(4).half(), randn(4, seed=1).abs().half() + 1
    y = F.batch_norm(x, mean, var)
    want = TF.batch_norm(values.half().double(), mean.double(), var.double())
    close(y[-1, -1, -1, -2:], want[-1, -1, -1, -2:])


@pytest.mark.parametrize("channels_last", [False, True])
def test_group_norm(channels_last):
    images, values = OVER // 256, randn(1, 4, 8, 8)
    if channels_last:
        x = given((images, 8, 8, 4), 1, values.movedim(1, -1)).movedim(-1, 1)
    else:
        x = given((images, 4, 8, 8), 1, values)
    y = F.group_norm(x, 2)
    close(y[-1, 2:], TF.group_norm(values.half().double(), 2)[0, 2:])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pool(kind, channels_last):
    images, values = OVER // 256, randn(1, 4, 8, 8)
    if channels_last:
        x = given((images, 8, 8, 4), 1, values.movedim(1, -1)).movedim(-1, 1)
    else:
        x = given((images, 4, 8, 8), 1, values)
    x.requires_grad_()
    y = getattr(F, f"{kind}_pool2d")(x, 2)
    want = values.half().double().requires_grad_()
    z = getattr(TF, f"{kind}_pool2d")(want, 2)
    close(y[-1, -1, -1].detach(), z[0, -1, -1].detach())
    g = reserved(y.shape).as_strided(y.shape, y.stride())
    g[-1] = 1
    y.backward(g)
    z.sum().backward()
    assert torch.equal(x.grad[-1, -1, -1].double(), want.grad[0, -1, -1])


def test_from_planar_to_channels_last_and_back():
    from fastdl.ops.triton_layout import channels_last, planar

    images, values = OVER // 256, randn(1, 4, 8, 8).half()
    y = channels_last(given((images, 4, 8, 8), 1, values))
    assert torch.equal(y[-1, :, -1, -1], values[0, :, -1, -1])
    back = planar(given((images, 8, 8, 4), 1, values.movedim(1, -1)).movedim(-1, 1))
    assert torch.equal(back[-1, -1, -1], values[0, -1, -1])


def test_depthwise():
    images, values, w = OVER // 256, randn(1, 4, 8, 8), randn(4, 1, 3, 3)
    y = F.conv2d(given((images, 8, 8, 4), 1, values.movedim(1, -1)).movedim(-1, 1), w.half(), padding=1, groups=4)
    want = TF.conv2d(values.half().double(), w.half().double(), padding=1, groups=4)
    close(y[-1, :, -1, -2:], want[0, :, -1, -2:])


def test_convolution():
    images, values, w = OVER // (17 * 64), randn(1, 17, 8, 8), randn(5, 17, 3, 3)
    y = F.conv2d(given((images, 8, 8, 17), 1, values.movedim(1, -1)).movedim(-1, 1), w.half(), padding=1)
    want = TF.conv2d(values.half().double(), w.half().double(), padding=1)
    close(y[-1, :, -1, -2:], want[0, :, -1, -2:])
