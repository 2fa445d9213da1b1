"""Layers against torch.nn: outputs, gradients, names of the state, and what a pullback promises."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from checker import assert_close

import fastdl
import fastdl.functional as F
from fastdl import nn

# name, constructor's arguments and options (the same for both), input shape, kind of error
ONE_INPUT = [
    ("Linear", (5, 7), {}, (3, 5), "sum"),
    ("Linear", (5, 7, False), {}, (2, 3, 5), "sum"),
    ("Conv1d", (4, 6, 3, 2, 1, 2, 2), {}, (2, 4, 11), "sum"),
    ("Conv2d", (3, 4, 3), {"padding": (1, 2)}, (2, 3, 7, 6), "sum"),
    ("Conv2d", (4, 8, (3, 2)), {"stride": 2, "groups": 4, "bias": False}, (2, 4, 7, 6), "sum"),
    ("Conv2d", (2, 3, 3), {"padding": "same"}, (2, 5, 6), "sum"),
    ("Conv2d", (2, 3, 3), {"padding": (2, 1), "padding_mode": "reflect"}, (2, 2, 5, 6), "sum"),
    ("Conv2d", (2, 3, 3), {"padding": (2, 1), "padding_mode": "replicate"}, (2, 2, 5, 6), "sum"),
    ("Conv1d", (2, 3, 4), {"padding": "same", "padding_mode": "circular"}, (2, 2, 7), "sum"),
    ("Conv3d", (2, 3, 2), {"padding": 1}, (2, 2, 3, 4, 5), "sum"),
    ("ConvTranspose1d", (4, 6, 3, 2), {"groups": 2}, (2, 4, 5), "sum"),
    ("ConvTranspose2d", (3, 4, 5, 2, 2, 1), {}, (2, 3, 5, 4), "sum"),
    ("ConvTranspose3d", (2, 3, 2), {"dilation": 2, "bias": False}, (2, 2, 3, 2, 3), "sum"),
    ("MaxPool1d", (3, 2), {}, (2, 3, 9), "sum"),
    ("MaxPool2d", (2,), {"ceil_mode": True}, (2, 3, 7, 5), "exact"),
    ("MaxPool3d", (2, 1), {"padding": 1}, (2, 3, 4, 3, 5), "sum"),
    ("AvgPool1d", (3, 2, 1), {"count_include_pad": False}, (2, 3, 9), "sum"),
    ("AvgPool2d", ((2, 3),), {"divisor_override": 5}, (2, 3, 7, 6), "sum"),
    ("AvgPool3d", (2,), {}, (2, 3, 4, 4, 4), "sum"),
    ("AdaptiveAvgPool1d", (3,), {}, (2, 3, 7), "sum"),
    ("AdaptiveAvgPool2d", ((None, 2),), {}, (2, 3, 4, 5), "sum"),
    ("AdaptiveAvgPool3d", (2,), {}, (2, 3, 4, 3, 5), "sum"),
    ("AdaptiveMaxPool1d", (3,), {}, (2, 3, 7), "sum"),
    ("AdaptiveMaxPool2d", ((3, 2),), {}, (2, 3, 4, 5), "sum"),
    ("AdaptiveMaxPool3d", (2,), {}, (2, 3, 4, 3, 5), "sum"),
    ("LPPool1d", (2, 3), {}, (2, 3, 9), "transcendental"),
    ("LPPool2d", (3, 2), {"stride": 1}, (2, 3, 4, 5), "transcendental"),
    ("LPPool3d", (2, 2), {}, (2, 3, 4, 4, 4), "transcendental"),
    ("RNNCell", (5, 4), {"nonlinearity": "relu"}, (3, 5), "recurrent"),
    ("RNNCell", (5, 4, False), {}, (5,), "recurrent"),
    ("GRUCell", (5, 4), {}, (3, 5), "recurrent"),
    ("BatchNorm1d", (4,), {}, (6, 4), "transcendental"),
    ("BatchNorm1d", (4,), {"momentum": None}, (6, 4, 3), "transcendental"),
    ("BatchNorm2d", (3,), {"eps": 1e-3, "momentum": 0.3}, (4, 3, 5, 2), "transcendental"),
    ("BatchNorm2d", (3,), {"affine": False}, (4, 3, 5, 2), "transcendental"),
    ("BatchNorm3d", (3,), {"track_running_stats": False}, (4, 3, 2, 3, 2), "transcendental"),
    ("LayerNorm", ((3, 5),), {}, (4, 3, 5), "transcendental"),
    ("LayerNorm", (5,), {"bias": False}, (4, 3, 5), "transcendental"),
    ("LayerNorm", (5,), {"elementwise_affine": False}, (4, 3, 5), "transcendental"),
    ("GroupNorm", (2, 6), {}, (3, 6, 4), "transcendental"),
    ("GroupNorm", (3, 6), {"affine": False}, (3, 6, 4), "transcendental"),
    ("Flatten", (), {}, (2, 3, 4), "exact"),
    ("Flatten", (0, 1), {}, (2, 3, 4), "exact"),
    ("Unflatten", (1, (2, -1)), {}, (3, 6, 2), "exact"),
    ("Identity", (), {}, (2, 3), "exact"),
    ("ReLU", (), {"inplace": True}, (4, 5), "exact"),
    ("LeakyReLU", (0.2,), {}, (4, 5), "sum"),
    ("ELU", (1.5,), {}, (4, 5), "transcendental"),
    ("GELU", (), {}, (4, 5), "transcendental"),
    ("GELU", ("tanh",), {}, (4, 5), "transcendental"),
    ("Sigmoid", (), {}, (4, 5), "transcendental"),
    ("Tanh", (), {}, (4, 5), "transcendental"),
    ("Softplus", (2.0, 3.0), {}, (4, 5), "transcendental"),
    ("Softmax", (1,), {}, (4, 5), "transcendental"),
    ("LogSoftmax", (-1,), {}, (4, 5), "transcendental"),
    ("Dropout", (0.0,), {}, (4, 5), "exact"),
]
IDS = [f"{i}-{case[0]}" for i, case in enumerate(ONE_INPUT)]
SEQUENCES = [
    ("RNN", (5, 4), {}),
    ("RNN", (5, 4, 2, "relu"), {"bidirectional": True}),
    ("GRU", (5, 4, 2), {"batch_first": True}),
    ("GRU", (5, 4), {"bias": False}),
    ("LSTM", (5, 4), {}),
    ("LSTM", (5, 4, 2), {"bidirectional": True, "batch_first": True, "proj_size": 3}),
]


@pytest.fixture(autouse=True)
def reference():
    nn.manual_seed(0)
    with fastdl.use_backend("reference"):
        yield


def pair(name, args, options, dtype="f8", **more):
    """Our layer and torch's in float64, with the same weights; torch's names are ours."""
    takes_dtype = name.startswith(("Linear", "Conv", "RNN", "GRU", "LSTM", "BatchNorm", "LayerNorm", "GroupNorm", "Embedding"))
    ours = getattr(nn, name)(*args, **options, **({"dtype": dtype} if takes_dtype else {}), **more)
    theirs = getattr(torch.nn, name)(*args, **options).double()
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict({k: torch.tensor(v.astype("f8") if v.dtype.kind == "f" else v) for k, v in state.items()})
    return ours, theirs


def random(shape, dtype="f8", seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def as_torch(x):
    return torch.tensor(x.astype("f8"), requires_grad=True)


def compare_parameters(ours, theirs, kind, n):
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, expected[name].grad.numpy(), kind, n, name)
        assert parameter.grad.dtype == parameter.dtype


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name,args,options,shape,kind", ONE_INPUT, ids=IDS)
def test_layer(name, args, options, shape, kind, dtype):
    ours, theirs = pair(name, args, options, dtype)
    x = random(shape, dtype)
    tx = as_torch(x)
    y, pullback = ours.vjp(x)
    ty = theirs(tx + 0)  # an in-place torch layer may not write to a leaf
    n = 100  # the longest sum here: a bias gradient over a batch of small images
    assert_close(y, ty.detach().numpy(), kind, n, "y of vjp")
    dy = random(y.shape, dtype, 2)
    dx = pullback(dy)
    ty.backward(torch.tensor(dy.astype("f8")))
    assert_close(dx, tx.grad.numpy(), kind, n, "dx")
    compare_parameters(ours, theirs, kind, n)
    for (key, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, err_msg=key)
    for layer in (ours, theirs):
        layer.eval()
    assert_close(ours(x), theirs(tx + 0).detach().numpy(), kind, n, "y in evaluation")
    _, pullback = ours.vjp(x)
    tx.grad = None
    theirs(tx + 0).backward(torch.tensor(dy.astype("f8")))
    assert_close(pullback(dy), tx.grad.numpy(), kind, n, "dx in evaluation")
    assert pullback(dy, needs=False) is None


@pytest.mark.parametrize("name,args,options,shape,kind", ONE_INPUT, ids=IDS)
def test_frozen_parameters_get_no_gradient(name, args, options, shape, kind):
    ours, _ = pair(name, args, options)
    for parameter in ours.parameters():
        parameter.requires_grad = False
    y, pullback = ours.vjp(random(shape))
    assert pullback(random(y.shape)).shape == shape
    assert pullback(random(y.shape), needs=False) is None
    assert all(p.grad is None for p in ours.parameters())


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("name,args,options", SEQUENCES)
def test_sequence(name, args, options, unbatched, given):
    ours, theirs = pair(name, args, options)
    x = random((6, 5) if unbatched else (3, 6, 5))
    batch = () if unbatched else (3 if options.get("batch_first") else 6,)
    states = ours.num_layers * (1 + ours.bidirectional)
    shapes = [(states, *batch, options.get("proj_size", 4)), (states, *batch, 4)][: 1 + (name == "LSTM")]
    hx = [random(s, seed=3 + i) for i, s in enumerate(shapes)] if given else None
    thx = hx and [as_torch(h) for h in hx]
    hx, thx = (h and (tuple(h) if name == "LSTM" else h[0]) for h in (hx, thx))
    tx = as_torch(x)
    ty, th = theirs(tx, thx)
    y, h = ours(x, hx)
    (y2, h2), pullback = ours.vjp(x, hx)
    leaves, leaves2, tleaves = ((h if isinstance(h, tuple) else (h,)) for h in (h, h2, th))
    for a, b, c in zip((y, *leaves), (y2, *leaves2), (ty, *tleaves), strict=True):
        assert_close(a, c.detach().numpy(), "recurrent", 100)
        assert_close(b, c.detach().numpy(), "recurrent", 100)
    dy, dh = random(y.shape, seed=5), tuple(random(leaf.shape, seed=6) for leaf in leaves)
    got = pullback((dy, dh if name == "LSTM" else dh[0]))
    total = (ty * torch.tensor(dy)).sum() + sum((a * torch.tensor(b)).sum() for a, b in zip(tleaves, dh, strict=True))
    total.backward()
    dx, dhx = got if given else (got, None)
    assert_close(dx, tx.grad.numpy(), "recurrent", 100, "dx")
    if given:
        for a, b in zip(dhx if name == "LSTM" else [dhx], thx if name == "LSTM" else [thx], strict=True):
            assert_close(a, b.grad.numpy(), "recurrent", 100, "dhx")
    compare_parameters(ours, theirs, "recurrent", 100)


@pytest.mark.parametrize("given", [False, True])
def test_lstm_pullback_takes_none_for_the_state(given):
    ours, theirs = pair("LSTM", (5, 4, 2), {})
    x, tx = random((3, 2, 5)), as_torch(random((3, 2, 5)))
    hx = (random((2, 2, 4)), random((2, 2, 4))) if given else None
    (y, _), pullback = ours.vjp(x, hx)
    dy = random(y.shape)
    got = pullback((dy, None))
    theirs(tx, hx and tuple(map(torch.tensor, hx)))[0].backward(torch.tensor(dy))
    assert_close(got[0] if given else got, tx.grad.numpy(), "recurrent", 100)
    compare_parameters(ours, theirs, "recurrent", 100)
    if given:
        dx, dhx = pullback((dy, (None, None)), needs=(False, True))
        assert dx is None and dhx[1].shape == (2, 2, 4)
        with pytest.raises(ValueError, match=r"LSTM: needs has 3 entries, the layer was given 2 arguments"):
            pullback((dy, None), needs=(True, True, True))
    with pytest.raises(TypeError, match=r"LSTM: the layer answers \(y, h\), so the pullback takes \(dy, dh\)"):
        pullback(dy)
    with pytest.raises(TypeError, match=r"LSTM: .*\(dy, \(dh, dc\)\) or \(dy, None\)"):
        pullback((dy, dy))


def test_lstm_cell():
    ours, theirs = pair("LSTMCell", (5, 4), {})
    x, tx = random((3, 5)), as_torch(random((3, 5)))
    (h, c), pullback = ours.vjp(x)
    th, tc = theirs(tx)
    assert_close(h, th.detach().numpy(), "recurrent", 100)
    assert_close(c, tc.detach().numpy(), "recurrent", 100)
    dc = random(c.shape)
    tc.backward(torch.tensor(dc))
    assert_close(pullback((None, dc)), tx.grad.numpy(), "recurrent", 100)
    compare_parameters(ours, theirs, "recurrent", 100)
    _, pullback = ours.vjp(x, (h, c))
    dx, (dh, dc) = pullback((h, None))
    assert dx.shape == x.shape and dh.shape == h.shape and dc.shape == c.shape


def test_padded_and_packed_sequences():
    ours, theirs = pair("GRU", (5, 4), {"bidirectional": True})
    x, lengths = random((6, 3, 5)), [6, 4, 1]
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), lengths)
    want, h = theirs(packed)
    got, gh = ours(packed.data.numpy(), batch_sizes=packed.batch_sizes.numpy())
    assert_close(got, want.data.detach().numpy(), "recurrent", 100)
    assert_close(gh, h.detach().numpy(), "recurrent", 100)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(want)
    (y, _), pullback = ours.vjp(x, lengths=lengths)
    assert_close(y, padded.detach().numpy(), "recurrent", 100)
    assert not pullback((np.ones_like(y), None))[4:, 1].any()


def test_embedding():
    ours, theirs = pair("Embedding", (6, 3), {"padding_idx": -2})
    index = np.array([[1, 4, 1], [0, 5, 4]])
    y, pullback = ours.vjp(index)
    ty = theirs(torch.tensor(index))
    assert_close(y, ty.detach().numpy(), "exact")
    dy = random(y.shape)
    assert pullback(dy) is None
    ty.backward(torch.tensor(dy))
    compare_parameters(ours, theirs, "sum", 4)
    assert not ours.weight.data[4].any()


def test_max_pool_with_indices():
    layer = nn.MaxPool2d(2, return_indices=True)
    x = random((1, 2, 4, 4))
    (y, indices), pullback = layer.vjp(x)
    ty, tindices = torch.nn.MaxPool2d(2, return_indices=True)(torch.tensor(x))
    np.testing.assert_array_equal(y, ty.numpy())
    np.testing.assert_array_equal(indices, tindices.numpy())
    assert pullback((np.ones_like(y), None)).sum() == y.size


@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.2)])
def test_fused_activation(activation):
    slope = 0.0 if activation == "relu" else 0.2
    x = random((2, 3, 5, 5))
    for layer in (nn.Conv2d(3, 4, 3, activation=activation, dtype="f8"), nn.ConvTranspose2d(3, 4, 3, activation=activation, dtype="f8"),
                  nn.Linear(5, 4, activation=activation, dtype="f8")):
        fused, fused_pullback = layer.vjp(x)
        fused_dx = fused_pullback(fused)
        fused_grads = [p.grad for p in layer.parameters()]
        layer.zero_grad()
        layer.activation = None
        plain, pullback = nn.Sequential(layer, nn.LeakyReLU(slope)).vjp(x)
        np.testing.assert_allclose(fused, plain, rtol=1e-12)
        np.testing.assert_allclose(fused_dx, pullback(plain), rtol=1e-12)
        for a, p in zip(fused_grads, layer.parameters(), strict=True):
            np.testing.assert_allclose(a, p.grad, rtol=1e-12)


def test_padding_beyond_torch():
    x = random((1, 2, 5, 6), "f4")
    assert nn.Conv2d(2, 3, 3, padding="same", stride=2)(x).shape == (1, 3, 3, 3)
    assert nn.Conv2d(2, 3, 3, padding=((1, 0), (2, 1)))(x).shape == (1, 3, 4, 7)
    assert nn.Conv2d(2, 3, 3, padding="same", stride=2, padding_mode="reflect")(x).shape == (1, 3, 3, 3)
    assert nn.ConvTranspose2d(2, 3, 5, padding="same", stride=2)(x).shape == (1, 3, 10, 12)
    assert nn.MaxPool2d(2, padding="same")(x).shape == (1, 2, 3, 3)


def test_conv_transpose_output_size():
    ours, theirs = pair("ConvTranspose2d", (3, 4, 3, 2, 1), {})
    x = random((2, 3, 4, 5))
    assert_close(ours(x, (8, 9)), theirs(torch.tensor(x), (8, 9)).detach().numpy(), "sum", 100)
    y, pullback = ours.vjp(x, (8, 9))
    assert pullback(y).shape == x.shape
    with pytest.raises(ValueError, match=r"ConvTranspose2d: output_size is \(7, 11\); the rule for this input is \(7, 9\) to \(8, 10\)"):
        ours(x, (7, 11))


def test_dropout():
    layer, x = nn.Dropout(0.25), np.ones((400, 50), "f4")
    y, pullback = layer.vjp(x)
    assert abs((y == 0).mean() - 0.25) < 0.02 and abs(y.mean() - 1) < 0.02
    np.testing.assert_array_equal(pullback(x), y)  # the same mask
    assert (layer(x) != y).any()  # another call, another mask
    nn.manual_seed(0)
    np.testing.assert_array_equal(layer(x), y)
    layer.eval()
    np.testing.assert_array_equal(layer(x), x)


def test_recurrent_dropout_follows_training_and_seed():
    layer, x = nn.LSTM(5, 4, 2, dropout=0.5), random((6, 2, 5), "f4")
    nn.manual_seed(1)
    first = layer(x)[0]
    assert (layer(x)[0] != first).any()
    nn.manual_seed(1)
    np.testing.assert_array_equal(layer(x)[0], first)
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0], layer(x)[0])


# ------------------------------------------------------------------------------------------------ what a pullback promises
def test_a_layer_may_be_used_twice_before_either_pullback():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    a, b = random((4, 1, 6, 6), "f4"), random((5, 1, 6, 6), "f4", 2)
    (ya, pull_a), (yb, pull_b) = model.vjp(a), model.vjp(b)
    da, db = pull_a(np.ones_like(ya)), pull_b(np.ones_like(yb))
    together = [p.grad for p in model.parameters()]
    alone = []
    for x, dx in ((a, da), (b, db)):
        model.zero_grad()
        y, pullback = model.vjp(x)
        np.testing.assert_array_equal(pullback(np.ones_like(y)), dx)
        alone.append([p.grad for p in model.parameters()])
    for total, first, second in zip(together, *alone, strict=True):
        np.testing.assert_allclose(total, first + second, rtol=1e-4, atol=1e-4)


def test_gradients_add_up_and_never_share_memory():
    layer = nn.GRU(3, 4)
    x = random((2, 1, 3), "f4")
    (y, _), pullback = layer.vjp(x)
    dx = pullback((y, None))
    once = {n: p.grad.copy() for n, p in layer.named_parameters()}
    pullback((y, None))
    for n, p in layer.named_parameters():
        np.testing.assert_allclose(p.grad, 2 * once[n], rtol=1e-5)
        assert not np.shares_memory(p.grad, dx) and not np.shares_memory(p.grad, y)
    grads = [p.grad for p in layer.parameters()]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(grads) for b in grads[:i])


def test_gradient_that_is_the_output_gradient_is_copied():
    class Bias(nn.Module):
        def __init__(self):
            self.b = nn.Parameter(np.zeros(3))

        def vjp(self, x):
            def pullback(dy, needs=True):
                nn.parameter.accumulate([self.b], [dy], dy)
                return dy

            return x + self.b.data, pullback

    layer, dy = Bias(), np.ones(3)
    _, pullback = layer.vjp(np.zeros(3))
    pullback(dy)
    pullback(dy)
    np.testing.assert_array_equal(dy, 1)
    np.testing.assert_array_equal(layer.b.grad, 2)


def test_threads_share_a_model():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    x = random((8, 6), "f4")
    errors = []

    def work():
        try:
            for _ in range(20):
                y, pullback = model.vjp(x)
                pullback(np.ones_like(y))
        except Exception as error:  # a thread's failure must reach the test
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert model[1].num_batches_tracked == 80
    np.testing.assert_allclose(model[2].bias.grad, 80 * 8, rtol=1e-6)


class Counting:
    """Counts the calls of pullbacks with and without the input's gradient."""

    def __init__(self, layer):
        self.calls, vjp = [], layer.vjp

        def counted(x):
            y, pullback = vjp(x)

            def inner(dy, needs=True):
                self.calls.append(needs)
                return pullback(dy, needs=needs)

            return y, inner

        layer.vjp = counted


def test_sequential_skips_what_nobody_needs():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    counts = [Counting(layer) for layer in model]
    with nn.fusion(False):
        y, pullback = model.vjp(random((5, 2, 2), "f4"))
    assert pullback(y, needs=False) is None
    assert [c.calls for c in counts] == [[], [False], [True], [True]]
    model[1].weight.requires_grad = model[1].bias.requires_grad = False
    assert pullback(y).shape == (5, 2, 2)
    for c in counts:
        c.calls.clear()
    pullback(y, needs=False)
    assert [c.calls for c in counts] == [[], [], [], [False]]
    assert nn.Sequential(nn.ReLU()).vjp(random((2, 2)))[1](1.0, needs=False) is None


def test_sequential_is_a_list():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    model.append(nn.Linear(3, 4))
    assert len(model) == 3 and model[-1].out_features == 4 and list(model[1:].state_dict()) == ["2.weight", "2.bias"]
    model[1] = nn.Tanh()
    assert [type(m).__name__ for m in model] == ["Linear", "Tanh", "Linear"]
    named = nn.Sequential({"first": nn.Linear(2, 3), "second": nn.Linear(3, 1)})
    assert list(named.state_dict()) == ["first.weight", "first.bias", "second.weight", "second.bias"]
    with pytest.raises(TypeError, match="Sequential: layer 0 must be a Module, got 3"):
        nn.Sequential(3)
    with pytest.raises(ValueError, match=r"'a\.b' cannot be a layer's name"):
        nn.Sequential({"a.b": nn.ReLU()})
    with pytest.raises(ValueError, match="'forward' cannot be a layer's name"):
        nn.Sequential({"forward": nn.ReLU()})


def test_module_of_ones_own():
    class Residual(nn.Module):
        def __init__(self, body):
            self.body = body

        def forward(self, x):
            return x + self.body(x)

        def vjp(self, x):
            y, body_pullback = self.body.vjp(x)
            return x + y, lambda dy, needs=True: dy + body_pullback(dy)

    model = nn.Sequential(nn.Linear(3, 3), Residual(nn.Linear(3, 3)))
    assert list(model.state_dict())[2:] == ["1.body.weight", "1.body.bias"]
    y, pullback = fastdl.vjp(model, random((2, 3), "f4"))
    assert pullback(y).shape == (2, 3)
    with pytest.raises(TypeError, match="Module defines no vjp"):
        nn.Module().vjp(1)
    with pytest.raises(TypeError, match="Module defines no forward"):
        nn.Module()(1)


def test_walks_modes_and_copies():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), shared))
    assert len(list(model.parameters())) == 4 and len(model.state_dict()) == 9  # a shared layer's names appear twice, as in torch
    assert [n for n, _ in model.named_modules()] == ["", "0", "1", "2", "2.0"]
    assert [n for n, _ in model.named_buffers()] == ["2.0.running_mean", "2.0.running_var", "2.0.num_batches_tracked"]
    assert model.train() is model and model.eval() is model and not any(m.training for m in model.modules())
    x = random((3, 2), "f4")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other(x), model(x))
        assert not np.shares_memory(other[0].weight.data, shared.weight.data)


# ------------------------------------------------------------------------------------------------ first weights
@pytest.mark.parametrize("name,args,bound", [("Linear", (100, 50), 0.1), ("Conv2d", (4, 8, 5), 0.1), ("ConvTranspose2d", (8, 4, 5), 0.1),
                                             ("LSTM", (30, 25), 0.2), ("GRUCell", (30, 25), 0.2)])
def test_first_weights_are_torchs(name, args, bound):
    ours, theirs = getattr(nn, name)(*args), getattr(torch.nn, name)(*args)
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        for values in (a.data, b.detach().numpy()):
            assert np.abs(values).max() <= bound * (1 + 1e-6), key
            if values.size > 1000:
                assert abs(values.std() / bound * 3**0.5 - 1) < 0.1 and abs(values.mean()) < 0.1 * bound


def test_seeds():
    nn.manual_seed(3)
    a = nn.Linear(4, 4)
    nn.manual_seed(3)
    b, c = nn.Linear(4, 4), nn.Linear(4, 4)
    np.testing.assert_array_equal(a.weight.data, b.weight.data)
    assert (b.weight.data != c.weight.data).any()
    d, e = nn.Linear(4, 4, rng=7), nn.Linear(4, 4, rng=np.random.default_rng(7))
    np.testing.assert_array_equal(d.weight.data, e.weight.data)


# ------------------------------------------------------------------------------------------------ reading and refusing
@pytest.mark.parametrize("name,args,options", [(c[0], c[1], c[2]) for c in ONE_INPUT if c[0] not in ("Identity", "AvgPool1d")] + SEQUENCES)
def test_repr_is_torchs(name, args, options):
    want = repr(getattr(torch.nn, name)(*args, **options))
    got = repr(getattr(nn, name)(*args, **options))
    assert got == want or got.replace(", nonlinearity=relu", "") == want


def test_repr_of_models():
    args = lambda m: m.Sequential(m.Conv2d(1, 2, 3), m.Sequential(m.ReLU(), m.Flatten()))
    assert repr(args(nn)) == repr(args(torch.nn))
    assert "activation='relu'" in repr(nn.Linear(2, 3, activation="relu"))
    assert repr(nn.Parameter(np.zeros((2, 3), "f4"))) == "Parameter((2, 3), float32)"


@pytest.mark.parametrize("make,error,message", [
    (lambda: nn.Linear(-1, 3), ValueError, "Linear: in_features is -1; the rule is at least 0"),
    (lambda: nn.Linear(2.5, 3), TypeError, "Linear: in_features must be an integer, got 2.5"),
    (lambda: nn.Linear(2, 3, activation="swish"), ValueError, "Linear: activation is 'swish'"),
    (lambda: nn.Linear(2, 3, dtype="i4"), TypeError, "Linear: dtype is int32; the rule is float32 or float64"),
    (lambda: nn.Linear(2, 3, rng="x"), TypeError, "rng must be an integer"),
    (lambda: nn.Conv2d(3, 4, 0), ValueError, "Conv2d: kernel_size is 0; the rule is at least 1"),
    (lambda: nn.Conv2d(3, 4, (3, 3, 3)), ValueError, "Conv2d: kernel_size has 3 entries"),
    (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "Conv2d: in_channels is 3, groups is 2; the rule is that groups divides it"),
    (lambda: nn.Conv2d(3, 4, 3, padding="full"), ValueError, "Conv2d: padding is 'full'"),
    (lambda: nn.Conv2d(3, 4, 3, padding_mode="mirror"), ValueError, "Conv2d: padding_mode is 'mirror'"),
    (lambda: nn.ConvTranspose2d(3, 4, 3, padding_mode="reflect"), ValueError, "ConvTranspose2d: padding_mode is 'reflect'"),
    (lambda: nn.MaxPool2d(-2), ValueError, "MaxPool2d: kernel_size is -2"),
    (lambda: nn.AvgPool2d(2, divisor_override=0), ValueError, "AvgPool2d: divisor_override is 0"),
    (lambda: nn.AdaptiveAvgPool2d((1, 2, 3)), ValueError, "AdaptiveAvgPool2d: output_size has 3 entries"),
    (lambda: nn.LPPool2d(0, 2), ValueError, "LPPool2d: norm_type is 0"),
    (lambda: nn.LSTM(3, 4, proj_size=4), ValueError, r"LSTM: proj_size is 4; the rule is below hidden_size \(4\)"),
    (lambda: nn.GRU(3, 4, dropout=1.5), ValueError, "GRU: dropout is 1.5"),
    (lambda: nn.RNN(3, 4, nonlinearity="sin"), ValueError, "RNN: nonlinearity is 'sin'"),
    (lambda: nn.GroupNorm(4, 6), ValueError, "GroupNorm: num_channels is 6, num_groups is 4"),
    (lambda: nn.LayerNorm(()), ValueError, "LayerNorm: normalized_shape is empty"),
    (lambda: nn.Dropout(2), ValueError, "Dropout: p is 2.0"),
    (lambda: nn.Embedding(3, 2, padding_idx=3), ValueError, "Embedding: padding_idx is 3"),
    (lambda: nn.Unflatten(1, (-1, -1)), ValueError, "more than one -1"),
    (lambda: nn.Parameter(np.arange(3)), TypeError, "Parameter: data has dtype int64"),
    (lambda: nn.manual_seed(-1), ValueError, "manual_seed: seed is -1"),
    (lambda: nn.BatchNorm2d(3)(np.zeros((2, 3), "f4")), ValueError, "BatchNorm2d: input has 2 dimensions"),
    (lambda: nn.Flatten(2, 1)(np.zeros((2, 3, 4))), ValueError, "Flatten: start_dim 2 comes after end_dim 1"),
    (lambda: nn.Flatten(5)(np.zeros((2, 3, 4))), ValueError, "Flatten: start_dim is 5, x has 3 dimensions"),
    (lambda: nn.Unflatten(1, (2, 4))(np.zeros((2, 6))), ValueError, "does not make up dimension 1"),
    (lambda: nn.Conv1d(1, 1, 3, padding=4, padding_mode="reflect")(np.zeros((1, 1, 4), "f4")), ValueError,
     "more than a reflect border of 4 cells can be"),
    (lambda: nn.Linear(3, 2)(np.zeros((2, 4), "f4")), ValueError, "linear: "),
])
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_losses_join_layers():
    model, x, labels = nn.Linear(4, 3, dtype="f8"), random((5, 4)), np.array([0, 2, 1, 1, 0])
    y, pullback = model.vjp(x)
    loss, loss_pullback = fastdl.vjp(F.cross_entropy, y, labels)
    dlogits, none = loss_pullback(1.0)
    assert none is None
    pullback(dlogits)
    tx = torch.tensor(x)
    weight = torch.tensor(model.weight.data, requires_grad=True)
    want = torch.nn.functional.cross_entropy(tx @ weight.T + torch.tensor(model.bias.data), torch.tensor(labels))
    want.backward()
    assert_close(loss, want.detach().numpy(), "transcendental", 10)
    assert_close(model.weight.grad, weight.grad.numpy(), "transcendental", 10)
