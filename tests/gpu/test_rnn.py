"""Recurrent networks on a GPU against torch in float64.

Rows that go through a sequence by themselves (small hidden sizes), programs that wait for one another, and a launch a step.
"""

import contextlib

import numpy as np
import pytest
import torch
from cases import DEVICE, DTYPES, NAMES, check, randn

import fastdl
import fastdl.functional as F
from fastdl.gpu import configs

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}


def parameters(mode, features, hidden, layers=1, directions=1, biases=True):
    made, seed = [], 0
    for layer in range(layers):
        for _ in range(directions):
            rows, width = GATES[mode] * hidden, features if layer == 0 else directions * hidden
            shapes = [(rows, width), (rows, hidden)] + [(rows,)] * 2 * biases
            made += [randn(*s, seed=(seed := seed + 1)) * 0.3 for s in shapes]
    return made


def states(mode, n, batch, hidden):
    h = randn(n, batch, hidden, seed=5) * 0.5
    return (h, randn(n, batch, hidden, seed=6) * 0.5) if mode == "lstm" else h


def run(mode, steps=3, batch=5, features=7, hidden=9, layers=1, directions=1, biases=True, batch_first=False, dtype=torch.float32):
    x = randn(*((batch, steps) if batch_first else (steps, batch)), features)
    options = (biases, layers, 0.0, False, directions == 2, batch_first)
    check(lambda x, hx, p: getattr(F, mode)(x, hx, p, *options), lambda x, hx, p: getattr(torch, mode)(x, hx, p, *options),
          [x, states(mode, layers * directions, batch, hidden), parameters(mode, features, hidden, layers, directions, biases)],
          kind="recurrent", n=hidden * steps, dtype=dtype)


@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("hidden,batch", [(9, 17), (20, 5)])
@pytest.mark.parametrize("directions", [1, 2])
def test_one_layer(mode, directions, hidden, batch):
    run(mode, hidden=hidden, batch=batch, directions=directions)


@contextlib.contextmanager
def programs_wait():
    """No hidden state is small enough for one program, and a launch's programs run at once: a GPU's do, the interpreter needs threads."""
    alone = dict(BB=16, WEIGHTS=0, num_warps=4)
    with contextlib.ExitStack() as held:
        held.enter_context(configs.use("sequence", **alone))
        held.enter_context(configs.use("sequence_backward", **alone))
        if DEVICE == "cpu":
            from concurrent_programs import programs_at_once

            held.enter_context(programs_at_once())
        yield


@pytest.mark.parametrize("resident", [0, 1 << 30])
@pytest.mark.parametrize("mode", GATES)
def test_programs_wait_for_one_another(mode, resident, monkeypatch):
    """One launch for all steps: several programs a row of the batch, two parts of it, both directions, rows left over."""
    from fastdl.ops.rnn import triton_backend

    monkeypatch.setattr(triton_backend, "_programs_at_once", lambda where: 8)
    plans = []
    plan = triton_backend._plan
    monkeypatch.setattr(triton_backend, "_plan", lambda *a: plans.append(plan(*a)) or plans[-1])
    blocks = dict(BB=16, BN=16, BK=16, RESIDENT=resident, num_warps=4, num_stages=1)
    with configs.use("advance", **blocks), configs.use("retreat", **blocks, SLICES=2, SLICE=16), programs_wait():
        run(mode, hidden=20, batch=34, directions=2)
    assert [p.grid for p in plans] == [(2, 2, 2)] * 2 and all(p.options["ONE_LAUNCH"] for p in plans)
    assert all(p.options["RESIDENT"] is bool(resident) for p in plans)


@pytest.mark.parametrize("mode", GATES)
def test_tiles_beyond_the_hidden_state(mode, monkeypatch):
    """48 units in tiles of 32, chunks and slices with tails."""
    from fastdl.ops.rnn import triton_backend

    monkeypatch.setattr(triton_backend, "_programs_at_once", lambda where: 4)
    blocks = dict(BB=16, BN=32, BK=32, RESIDENT=1 << 30, num_warps=4, num_stages=1)
    with configs.use("advance", **blocks), configs.use("retreat", **blocks, SLICES=4, SLICE=16), programs_wait():
        run(mode, hidden=48, batch=18, steps=2)


@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("hidden", [16, 32])
def test_whole_tiles(mode, hidden):
    """No unit is padding."""
    run(mode, hidden=hidden, batch=16, directions=2)


@pytest.mark.parametrize("mode", ["gru", "lstm"])
def test_one_launch_has_the_bits_of_a_launch_a_step(mode, monkeypatch):
    """With rows of several lengths."""
    from fastdl.ops.rnn import triton_backend

    blocks = dict(BB=16, BN=16, BK=16, RESIDENT=0, num_warps=4, num_stages=1)
    p = [w.float().to(DEVICE) for w in parameters(mode, 4, 20, directions=2)]

    def answers(at_once):
        monkeypatch.setattr(triton_backend, "_programs_at_once", lambda where: at_once)
        x = randn(4, 18, 4).float().to(DEVICE).requires_grad_()
        y = getattr(F, mode)(x, None, p, bidirectional=True, lengths=[4] * 3 + [2] * 10 + [1] * 5)[0]
        y.backward(randn(*y.shape).float().to(DEVICE))
        return y.detach(), x.grad

    with configs.use("advance", **blocks), configs.use("retreat", **blocks, SLICES=2, SLICE=16):
        with programs_wait():
            by_steps, at_once = answers(0), answers(8)
    assert all(torch.equal(a, b) for a, b in zip(by_steps, at_once, strict=True))


@pytest.mark.parametrize("mode", GATES)
def test_layers_without_biases(mode):
    run(mode, layers=2, directions=2, biases=False, batch_first=True, batch=3)
    run(mode, hidden=17, layers=2, biases=True, batch=3, steps=2)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=NAMES[1:])
@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("hidden", [9, 20])
def test_halves(mode, dtype, hidden):
    run(mode, hidden=hidden, dtype=dtype)


@pytest.mark.parametrize("hidden", [6, 18])
@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("packed", [False, True])
def test_variable_lengths(mode, hidden, packed):
    """Against torch over packed sequences, both directions, with NaN in the padding."""
    lengths, features, batch = [4, 3, 1], 5, 3
    x = randn(4, batch, features)
    p = parameters(mode, features, hidden, directions=2)
    hx = states(mode, 2, batch, hidden)
    padded = x.clone()
    for b, n in enumerate(lengths):
        padded[n:, b] = float("nan")

    def ours(t):
        return t.float().to(DEVICE).requires_grad_()

    pack = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    mine = ours(pack.data if packed else padded)
    my_p, my_hx = [ours(w) for w in p], tuple(map(ours, hx)) if mode == "lstm" else ours(hx)
    extra = {"batch_sizes": tuple(pack.batch_sizes.tolist())} if packed else {"lengths": lengths}
    y, *finals = getattr(F, mode)(mine, my_hx, my_p, bidirectional=True, **extra)

    data = pack.data.clone().requires_grad_()
    their_p = [w.clone().requires_grad_() for w in p]
    their_hx = tuple(h.clone().requires_grad_() for h in hx) if mode == "lstm" else hx.clone().requires_grad_()
    want, *want_finals = getattr(torch, mode)(data, pack.batch_sizes, their_hx, their_p, True, 1, 0.0, False, True)

    def unpacked(t):
        padded_again = torch.nn.utils.rnn.PackedSequence(t, pack.batch_sizes)
        return t if packed else torch.nn.utils.rnn.pad_packed_sequence(padded_again, total_length=4)[0]

    close = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y.cpu().double(), unpacked(want), **close)
    for a, b in zip(finals, want_finals, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, **close)
    seeds = [randn(*t.shape, seed=i) for i, t in enumerate((want, *want_finals))]
    torch.autograd.backward((y, *finals), [unpacked(seeds[0]).float().to(DEVICE), *(s.float().to(DEVICE) for s in seeds[1:])])
    torch.autograd.backward((want, *want_finals), seeds)
    torch.testing.assert_close(mine.grad.cpu().double(), unpacked(data.grad), **close)
    as_list = (lambda h: list(h) if isinstance(h, tuple) else [h])
    for a, b in zip(my_p + as_list(my_hx), their_p + as_list(their_hx), strict=True):
        torch.testing.assert_close(a.grad.cpu().double(), b.grad, **close)


@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("biases", [True, False])
def test_cells(mode, biases):
    name = mode + "_cell"
    h = tuple(randn(3, 9, seed=i) for i in range(2)) if mode == "lstm" else randn(3, 9)
    check(lambda x, h, p: getattr(F, name)(x, h, *p), lambda x, h, p: getattr(torch, name)(x, h, *p),
          [randn(3, 5), h, parameters(mode, 5, 9, biases=biases)], kind="recurrent", n=9)


def test_no_state_and_no_batch():
    p = [w.float().to(DEVICE) for w in parameters("gru", 4, 6)]
    x = randn(3, 2, 4).float().to(DEVICE)
    zeros = torch.zeros(1, 2, 6, device=DEVICE)
    torch.testing.assert_close(F.gru(x, None, p)[0], F.gru(x, zeros, p)[0])
    torch.testing.assert_close(F.gru(x[:, 0], None, p)[0], F.gru(x, None, p)[0][:, 0], rtol=1e-5, atol=1e-6)
    assert F.gru(x[:, :0], None, p)[0].shape == (3, 0, 6)


@pytest.mark.parametrize("mode", ["gru", "lstm"])
def test_gradients_of_some_outputs_only(mode):
    p = [w.float().to(DEVICE) for w in parameters(mode, 4, 6)]
    for which in (0, 1):
        x = randn(3, 2, 4).float().to(DEVICE).requires_grad_()
        getattr(F, mode)(x, None, p)[which].sum().backward()
        x64 = x.detach().cpu().double().requires_grad_()
        zeros = torch.zeros(1, 2, 6, dtype=torch.float64)
        getattr(torch, mode)(x64, (zeros, zeros) if mode == "lstm" else zeros, [w.cpu().double() for w in p], True, 1, 0.0, False, False,
                             False)[which].sum().backward()
        torch.testing.assert_close(x.grad.cpu().double(), x64.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rate,seed,hidden", [(0.5, 3, 6), (0.3, 2**63 + 11, 7), (1.0, 0, 5)])
def test_dropout_draws_what_the_cpu_draws(rate, seed, hidden):
    """Between three layers of both directions, and in their gradients."""
    p = [w.float() for w in parameters("rnn_tanh", 4, hidden, layers=3, directions=2)]
    x = randn(5, 3, 4).float()
    ours, theirs = [w.to(DEVICE) for w in p], [w.numpy() for w in p]
    mine = x.clone().to(DEVICE).requires_grad_()
    got = F.rnn_tanh(mine, None, ours, True, 3, rate, True, True, seed=seed)[0]
    g = randn(*got.shape).float()
    got.backward(g.to(DEVICE))
    with fastdl.use_backend("reference"):
        (want, _), pullback = fastdl.vjp(F.rnn_tanh, x.numpy(), None, theirs, True, 3, rate, True, True, seed=seed)
        dx, *_ = pullback((g.numpy(), None))
    torch.testing.assert_close(got.detach().cpu(), torch.from_numpy(want), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mine.grad.cpu(), torch.from_numpy(dx), rtol=1e-4, atol=1e-6)


def test_a_layer_s_dropout():
    """The very numbers: words' halves, from the middle of a counter on."""
    from fastdl.ops.rnn.layout import RNNParams, dropout_kept
    from fastdl.ops.rnn.triton_dropout import dropped

    params = RNNParams("gru", 4, 1, 11, 0, True, 1, False, True, False, None, None, 0.4, 12345)
    for layer, kept in enumerate(dropout_kept(params, 5, 3)[:3]):
        got = dropped(torch.ones(5, 3, 11, device=DEVICE), layer, params)
        torch.testing.assert_close(got.cpu(), torch.from_numpy(kept / np.float32(0.6)))


def test_what_is_not_served_is_said():
    p = [w.float().to(DEVICE) for w in parameters("gru", 4, 6)]
    with pytest.raises(ValueError, match="linear_before_reset is False"):
        F.gru(randn(3, 2, 4).float().to(DEVICE), None, p, linear_before_reset=False)


@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("hidden", [9, 20])
def test_nan_stays_in_its_row(mode, hidden):
    """From its step on; of the gradients, that row's."""
    p = [w.float().to(DEVICE) for w in parameters(mode, 4, hidden)]
    x = randn(4, 3, 4).float()
    x[2, 1, 0] = float("nan")
    x = x.to(DEVICE).requires_grad_()
    y = getattr(F, mode)(x, None, p)[0]
    found = y.detach().cpu().isnan()
    assert found[2:, 1].all() and found.sum() == 2 * hidden
    y.backward(torch.ones_like(y))
    assert x.grad[:, [0, 2]].isfinite().all() and (mode == "rnn_relu" or x.grad[2:, 1].isnan().any())
