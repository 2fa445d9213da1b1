"""Calls that look like earlier ones are played from a record: the same bits as the usual way gives, of other tensors."""

import pytest
import torch
from cases import DEVICE, channels_last, randn

import fastdl.functional as F
from fastdl.gpu import configs, dispatch, tape


@pytest.fixture(autouse=True)
def _nothing_remembered():
    configs.forget()


def t(*shape, seed=0, last=False):
    made = randn(*shape, seed=seed).float().to(DEVICE)
    return channels_last(made) if last else made


def weights(gates, features, hidden, directions, layers, seed):
    sizes = [(features if layer == 0 else directions * hidden, hidden) for layer in range(layers) for _ in range(directions)]
    return [t(*s, seed=seed + i) * 0.5 for k, h in sizes
            for i, s in enumerate(((gates * h, k), (gates * h, h), (gates * h,), (gates * h,)))]


# each: (operator, seed -> its tensors, nested as it takes them, options)
CASES = {
    "matmul": (F.matmul, lambda s: (t(5, 7, seed=s), t(7, 6, seed=s)), {}),
    "matmul, a view": (F.matmul, lambda s: (t(5, 7, seed=s).mT, t(5, 6, seed=s)), {}),
    "matmul, broadcast": (F.matmul, lambda s: (t(2, 3, 5, 7, seed=s), t(7, 6, seed=s)), {}),
    "matmul, vectors": (F.matmul, lambda s: (t(7, seed=s), t(7, seed=s + 1)), {}),
    "linear": (F.linear, lambda s: (t(4, 9, seed=s), t(8, 9, seed=s), t(8, seed=s)), dict(activation="gelu")),
    "conv": (F.conv2d, lambda s: (t(2, 3, 6, 7, seed=s), t(4, 3, 3, 3, seed=s), t(4, seed=s)), dict(padding=1, activation="relu")),
    "conv, channels-last": (F.conv2d, lambda s: (t(2, 8, 6, 7, seed=s, last=True), t(8, 8, 3, 3, seed=s, last=True)), dict(stride=2)),
    "conv, depthwise": (F.conv2d, lambda s: (t(2, 4, 6, 7, seed=s), t(4, 1, 3, 3, seed=s)), dict(groups=4)),
    "conv, unbatched": (F.conv1d, lambda s: (t(3, 9, seed=s), t(4, 3, 3, seed=s)), {}),
    "conv_transpose": (F.conv_transpose2d, lambda s: (t(2, 3, 5, 4, seed=s), t(3, 4, 3, 3, seed=s), t(4, seed=s)), dict(stride=2)),
    "max_pool": (F.max_pool2d, lambda s: (t(2, 3, 6, 7, seed=s),), dict(kernel_size=2)),
    "max_pool, indices": (F.max_pool2d, lambda s: (t(2, 3, 6, 7, seed=s),), dict(kernel_size=3, stride=2, return_indices=True)),
    "avg_pool": (F.avg_pool2d, lambda s: (t(2, 3, 6, 7, seed=s, last=True),), dict(kernel_size=2)),
    "softmax": (F.softmax, lambda s: (t(5, 9, seed=s),), dict(dim=1)),
    "relu": (F.relu, lambda s: (t(3, 5, seed=s),), {}),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, x.shape[1:], w, b), lambda s: (t(5, 9, seed=s), t(9, seed=s), t(9, seed=s + 1)), {}),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), lambda s: (t(4, 3, 5, seed=s), t(3, seed=s), t(3, seed=s + 1)),
                   {}),
    "cross_entropy": (F.cross_entropy, lambda s: (t(6, 9, seed=s), ((t(6, seed=s).abs() * 3).long() % 9)), {}),
    "gru": (lambda x, h, *w: F.gru(x, h, list(w)), lambda s: (t(4, 3, 5, seed=s), t(1, 3, 6, seed=s), *weights(3, 5, 6, 1, 1, s)), {}),
    "lstm": (lambda x, *w: F.lstm(x, None, list(w), num_layers=2, bidirectional=True),
             lambda s: (t(4, 3, 5, seed=s), *weights(4, 5, 6, 2, 2, s)), {}),
    "rnn": (lambda x, *w: F.rnn_tanh(x, None, list(w)), lambda s: (t(4, 3, 5, seed=s), *weights(1, 5, 40, 1, 1, s)), {}),
}


def run(op, given, options, gradients):
    """Every answer of a call, and every gradient."""
    given = [v.clone(memory_format=torch.preserve_format) if v.is_contiguous() or v.ndim > 2 else v for v in given]
    if gradients:
        given = [v.detach().requires_grad_() if v.is_floating_point() else v for v in given]
    y = op(*given, **options)
    flat = []
    for v in y if isinstance(y, tuple) else (y,):
        flat += v if isinstance(v, tuple) else [v]
    if gradients:
        wanted = [v for v in given if v.requires_grad]
        outs = [v for v in flat if v.requires_grad]
        flat = flat + list(torch.autograd.grad(outs, wanted, [torch.cos(v.detach() * 9) for v in outs]))
    return [v.detach() for v in flat]


def count(monkeypatch):
    plays = []
    play = tape.Tape.play
    monkeypatch.setattr(tape.Tape, "play", lambda self, given: plays.append(self) or play(self, given))
    return plays


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_played(name, gradients, monkeypatch):
    op, make, options = CASES[name]
    plays = count(monkeypatch)
    for seed in range(2):  # seen, then recorded
        run(op, make(seed), options, gradients)
    assert not plays
    played = [run(op, make(seed), options, gradients) for seed in (2, 3)]
    assert len(plays) == (4 if gradients else 2)
    monkeypatch.setattr(dispatch, "_look", lambda *_: None)
    for seed, got in zip((2, 3), played, strict=True):
        want = run(op, make(seed), options, gradients)
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.mark.parametrize("other", ["shape", "stride", "dtype", "option", "twice", "alignment"])
def test_what_looks_different_is_not_played(other, monkeypatch):
    plays = count(monkeypatch)
    for _ in range(3):
        F.linear(t(4, 8), t(8, 8))
    assert len(plays) == 1
    x, w, options = t(4, 8, seed=1), t(8, 8, seed=1), {}
    if other == "shape":
        x = t(3, 8)
    elif other == "stride":
        w = w.mT
    elif other == "dtype":
        x, w = x.half(), w.half()
    elif other == "option":
        options = dict(activation="relu")
    elif other == "twice":
        x = w = t(8, 8)
    else:
        x = t(33)[1:].view(4, 8)
    got = F.linear(x, w, **options)
    assert len(plays) == 1
    want = x.double() @ w.double().mT
    torch.testing.assert_close(got.double(), want.relu() if options else want, rtol=1e-2, atol=1e-2)


def test_one_tensor_given_twice_is_not_taken_for_two():
    for _ in range(4):
        F.matmul(a := t(6, 6), a)
    b = t(6, 6, seed=1)
    torch.testing.assert_close(F.matmul(a, b), a @ b, rtol=1e-4, atol=1e-4)


def test_parts_of_one_tensor(monkeypatch):
    """Operands in one memory, which on the tape are roots of their own."""
    plays = count(monkeypatch)
    for seed in range(4):
        both = t(2, 6, 6, seed=seed)
        got = F.matmul(both[0], both[1])
        torch.testing.assert_close(got, both[0] @ both[1], rtol=1e-4, atol=1e-4)
    a, b = t(6, 6, seed=8), t(6, 6, seed=9)
    torch.testing.assert_close(F.matmul(a, b), a @ b, rtol=1e-4, atol=1e-4)
    assert len(plays) >= 2


def test_dropout_is_drawn_anew(monkeypatch):
    plays = count(monkeypatch)
    x = torch.ones(400, device=DEVICE)
    seen = [F.dropout(x) for _ in range(5)]
    assert not plays and not any(torch.equal(seen[0], y) for y in seen[1:])
    w = weights(1, 5, 6, 1, 2, 0)
    seen = [F.rnn_tanh(t(4, 3, 5), None, w, True, 2, 0.5, True)[0] for _ in range(5)]
    assert not plays and not any(torch.equal(seen[0], y) for y in seen[1:])


def test_values_of_lengths_count():
    w = weights(1, 5, 6, 1, 1, 0)
    x = t(4, 3, 5)
    for lengths in ([4, 2, 1], [4, 2, 1], [4, 2, 1], [1, 4, 4]):
        y = F.rnn_tanh(x, None, w, lengths=lengths)[0]
    assert y[3, 0].abs().sum() == 0 and y[3, 1].abs().sum() > 0


def test_statistics_are_updated_by_what_is_played(monkeypatch):
    plays = count(monkeypatch)
    means = []
    for take in (True, False):
        mean, variance = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
        if not take:
            monkeypatch.setattr(dispatch, "_look", lambda *_: None)
        for seed in range(5):
            F.batch_norm(t(4, 3, 5, seed=seed), mean, variance, None, None, True, 0.1)
        means.append((mean, variance))
    assert len(plays) == 3
    assert all(torch.equal(a, b) for a, b in zip(*means, strict=True))


def test_a_change_in_place_is_noticed_after_a_play_too():
    for _ in range(4):
        x, w = t(3, 4).requires_grad_(), t(5, 4).requires_grad_()
        y = F.linear(x, w, activation="tanh")
        y.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_answers_may_be_changed_in_place():
    """As torch's: relu_ after a convolution is what many models say."""
    for _ in range(4):
        x, w = t(2, 3, 6, 5).requires_grad_(), t(4, 3, 3, 3).requires_grad_()
        y = F.conv2d(x, w)
        assert not y._is_view()
        y.relu_()
        (g,) = torch.autograd.grad(y.sum(), w)
        a = w.detach().clone().requires_grad_()
        (want,) = torch.autograd.grad(torch.relu(torch.nn.functional.conv2d(x.detach(), a)).sum(), a)
        torch.testing.assert_close(g, want, rtol=1e-3, atol=1e-3)
        x = t(2, 3, 6, 5, last=True).requires_grad_()
        with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):  # its own backward pass wants the answer
            F.conv2d(x, w, activation="tanh").mul_(2).sum().backward()


def test_errors_come_each_time():
    for _ in range(4):
        with pytest.raises(ValueError, match="linear"):
            F.linear(t(3, 4), t(5, 6))


def test_only_the_gradients_that_are_needed():
    for i in range(8):
        x, w = t(3, 4, seed=i), t(5, 4, seed=i)
        (x if i % 2 else w).requires_grad_()
        F.linear(x, w).sum().backward()
        assert (x.grad is None) == (i % 2 == 0) and (w.grad is None) == (i % 2 == 1)


def test_a_few_thousand_looks_are_remembered(monkeypatch):
    monkeypatch.setattr(tape, "ENTRIES", 3)
    for n in (1, 2, 3, 4, 1, 2, 3, 4):
        assert F.relu(t(n)).shape == (n,)
    assert len(dispatch._calls._found) <= 3
