"""Tensors that go to the GPU's kernels: autograd's promises, torch.compile, what is refused."""

import pytest
import torch
from cases import DEVICE, randn

import fastdl
import fastdl.functional as F


def leaf(*shape, seed=0):
    return randn(*shape, seed=seed).float().to(DEVICE).requires_grad_()


def test_only_the_gradients_that_are_needed():
    x, w = leaf(3, 4), leaf(5, 4)
    y = F.linear(x.detach(), w)
    y.sum().backward()
    assert w.grad is not None and x.grad is None
    assert not F.linear(x.detach(), w.detach()).requires_grad
    with torch.no_grad():
        assert not F.linear(x, w).requires_grad


def test_a_graph_may_be_kept_and_is_freed_else():
    x, w = leaf(3, 4), leaf(5, 4)
    y = F.linear(x, w, activation="tanh").sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y, x)[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x)


def test_a_change_in_place_is_noticed():
    x, w = leaf(3, 4), leaf(5, 4)
    y = F.linear(x, w, activation="tanh")
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_gradient_of_a_gradient_is_refused():
    x, w = leaf(3, 4), leaf(5, 4)
    (g,) = torch.autograd.grad(F.linear(x, w, activation="tanh").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="linear: the gradient of its gradient is not supported"):
        g.sum().backward()


def test_an_expanded_gradient():
    x, w = leaf(2, 17, 5, 5), leaf(4, 17, 3, 3)
    F.conv2d(x, w, padding=1, activation="relu").sum().backward()
    a, b = x.detach().cpu().double().requires_grad_(), w.detach().cpu().double().requires_grad_()
    torch.relu(torch.nn.functional.conv2d(a, b, padding=1)).sum().backward()
    torch.testing.assert_close(w.grad.cpu().double(), b.grad, rtol=1e-4, atol=1e-4)


def test_negated_views():
    x = torch.randn(3, 4, dtype=torch.complex64).to(DEVICE).conj().imag  # a view whose values torch negates when they are read
    assert x.is_neg()
    torch.testing.assert_close(F.relu(x), torch.relu(x))


def test_compiled_functions_call_operators_between_their_graphs():
    def f(x, w):
        return F.linear(x * 2, w, activation="relu") + 1

    x, w = randn(3, 4).float().to(DEVICE), randn(5, 4).float().to(DEVICE)
    torch.testing.assert_close(torch.compile(f, backend="eager")(x, w), f(x, w))


def test_mixed():
    x = randn(3, 4).float().to(DEVICE)
    with pytest.raises(TypeError, match="weight is a numpy array and input is a torch tensor"):
        F.linear(x, randn(5, 4).float().numpy())
    with pytest.raises(TypeError, match="input has dtype float64; the rule on a GPU"):
        F.relu(x.double())
    with fastdl.use_backend("reference"):
        if DEVICE == "cuda":
            with pytest.raises(ValueError, match="the backend 'reference' was chosen"):
                F.relu(x)
