"""Layers and optimisers over torch tensors: the same answers and gradients as over arrays."""

import copy
import pickle

import numpy as np
import pytest
import torch
from test_nn import IDS, ONE_INPUT, SEQUENCES

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.checkpoint import Checkpoint
from fastdl.nn.parameter import accumulate
from fastdl.train import evaluate, fit

CLOSE = dict(rtol=1e-9, atol=1e-11)


@pytest.fixture(autouse=True)
def reference():
    nn.manual_seed(0)
    with fastdl.use_backend("reference"):
        yield


def random(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape)


def made(name, args, options):
    """A layer in float64, and a copy of it over tensors."""
    takes_dtype = name.startswith(("Linear", "Conv", "RNN", "GRU", "LSTM", "BatchNorm", "LayerNorm", "GroupNorm", "Embedding"))
    layer = getattr(nn, name)(*args, **options, **({"dtype": "f8"} if takes_dtype else {}))
    return layer, copy.deepcopy(layer).to("cpu")


def nested(f, v):
    return tuple(nested(f, e) for e in v) if isinstance(v, (tuple, list)) else None if v is None else f(v)


def same(tensors, arrays):
    if isinstance(arrays, (tuple, list)):
        for t, a in zip(tensors, arrays, strict=True):
            same(t, a)
    elif arrays is not None:
        assert isinstance(tensors, torch.Tensor)
        np.testing.assert_allclose(tensors.numpy(), arrays, **CLOSE)


def compare(array_layer, tensor_layer, *inputs):
    tensors = nested(torch.from_numpy, inputs)
    y, pullback = array_layer.vjp(*inputs)
    z, tensor_pullback = tensor_layer.vjp(*tensors)
    same(z, y)
    seed = iter(range(100))
    dy = nested(lambda a: random(a.shape, next(seed)), y)
    for _ in range(2):  # a pullback may be used again, and adds
        same(tensor_pullback(nested(torch.from_numpy, dy)), pullback(dy))
    for (name, p), (_, q) in zip(array_layer.named_parameters(), tensor_layer.named_parameters(), strict=True):
        np.testing.assert_allclose(q.grad.numpy(), p.grad, err_msg=name, **CLOSE)
    array_layer.eval()
    tensor_layer.eval()
    same(tensor_layer(*tensors), array_layer(*inputs))
    for name, buffer in array_layer.named_buffers():
        np.testing.assert_allclose(dict(tensor_layer.named_buffers())[name].numpy(), buffer, **CLOSE)


@pytest.mark.parametrize("name,args,options,shape,kind", ONE_INPUT, ids=IDS)
def test_layer(name, args, options, shape, kind):
    compare(*made(name, args, options), random(shape))


@pytest.mark.parametrize("name,args,options", SEQUENCES)
def test_sequence(name, args, options):
    layer, other = made(name, args, options)
    x = random((3, 2, 5))
    compare(layer, other, x)
    n = layer.num_layers * (1 + layer.bidirectional)
    batch = 3 if layer.batch_first else 2
    h = random((n, batch, layer.proj_size or 4), 2)
    compare(layer.train(), other.train(), x, (h, random((n, batch, 4), 3)) if name == "LSTM" else h)


def test_cells_and_embedding():
    compare(*made("LSTMCell", (5, 4), {}), random((3, 5)))
    compare(*made("GRUCell", (5, 4), {}), random((3, 5)), random((3, 4)))
    layer, other = made("Embedding", (7, 3, 2), {})
    rows = np.array([[1, 2, 6], [2, 2, 0]])
    y, pullback = layer.vjp(rows)
    z, tensor_pullback = other.vjp(torch.from_numpy(rows))
    same(z, y)
    assert tensor_pullback(torch.ones(2, 3, 3, dtype=torch.float64)) is None and pullback(np.ones((2, 3, 3))) is None
    np.testing.assert_allclose(other.weight.grad.numpy(), layer.weight.grad)


def network(dtype="f8"):
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, dtype=dtype), nn.BatchNorm2d(4, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(16, 3, dtype=dtype))


def test_state_goes_both_ways(tmp_path):
    net, other = network(), network().to("cpu")
    other.load_state_dict(net.state_dict())
    x = random((2, 2, 4, 4))
    net.eval(), other.eval()
    same(other(torch.from_numpy(x)), net(x))
    assert all(isinstance(v, torch.Tensor) for v in other.state_dict().values())
    net.load_state_dict(other.state_dict())
    nn.save(other, tmp_path / "w.safetensors")
    other.load_state_dict(nn.load(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match=r"0.weight has shape \(1,\)"):
        other.load_state_dict({**net.state_dict(), "0.weight": np.ones(1)})
    again = pickle.loads(pickle.dumps(other))
    same(again(torch.from_numpy(x)), net(x))
    assert other.numpy() is other and isinstance(other.state_dict()["0.weight"], np.ndarray)
    np.testing.assert_array_equal(other(x), net(x))
    half = network("f4").to("cpu", torch.bfloat16)
    half.load_state_dict(net.state_dict())
    assert half.state_dict()["1.running_mean"].dtype is torch.bfloat16 and half.state_dict()["1.num_batches_tracked"].dtype is torch.int64
    assert half.numpy().state_dict()["0.weight"].dtype == np.float32


def test_parameters():
    p = nn.Parameter(np.ones((2, 3), "f4"))
    p.grad = np.full((2, 3), 2.0, "f4")
    p.to("cpu", torch.float64)
    assert p.shape == (2, 3) and p.size == 6 and p.dtype is torch.float64 and repr(p) == "Parameter((2, 3), torch.float64)"
    assert p.grad.dtype is torch.float64
    p.data = np.zeros((2, 3))
    with p.edit() as tensor:
        tensor[0, 0] = 5
    assert p.data[0, 0] == 5 and not p.data[1].any()
    with pytest.raises(ValueError, match="data of shape"):
        p.data = torch.ones(3)
    p.numpy()
    assert p.data.dtype == np.float64 and p.grad.sum() == 12


@pytest.mark.parametrize("make", [
    lambda p: optim.SGD(p, lr=0.1), lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.1),
    lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), lambda p: optim.Adam(p, lr=0.1, weight_decay=0.1),
    lambda p: optim.AdamW(p, lr=0.1, amsgrad=True)])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_optimisers(make, max_norm):
    net = network()
    other = copy.deepcopy(net).to("cpu")
    f, g = make(net.parameters()), make(other.parameters())
    for step in range(4):
        for i, (p, q) in enumerate(zip(net.parameters(), other.parameters(), strict=True)):
            p.grad = None if (i, step) in ((1, 0), (2, 2)) else random(p.shape, step)  # one starts later, one misses a step
            q.grad = None if p.grad is None else torch.from_numpy(p.grad.copy())
        f.step(max_norm)
        g.step(max_norm)
        if step == 1:
            resumed = make(other.parameters())
            resumed.load_state_dict(f.state_dict())
            g = resumed
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(q.data.numpy(), p.data, rtol=1e-7, atol=1e-9)


def test_clipping():
    net = network()
    other = copy.deepcopy(net).to("cpu")
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        p.grad = random(p.shape)
        q.grad = torch.from_numpy(p.grad.copy())
    for norm_type in (2.0, 3.0, np.inf):
        ours, theirs = (optim.clip_grad_norm_(m.parameters(), 0.7, norm_type) for m in (other, net))
        assert ours == pytest.approx(theirs, rel=1e-6)
    optim.clip_grad_value_(net.parameters(), 0.01)
    optim.clip_grad_value_(other.parameters(), 0.01)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(q.grad.numpy(), p.grad, rtol=1e-6)


def test_penalty():
    net = network()
    other = copy.deepcopy(net).to("cpu")
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        p.grad = random(p.shape)
        q.grad = torch.from_numpy(p.grad.copy())
    a, b = (optim.Penalty(m.parameters(), l1=0.1, l2=0.2) for m in (net, other))
    assert b.value() == pytest.approx(a.value())
    a.add_gradients()
    b.add_gradients()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(q.grad.numpy(), p.grad, rtol=1e-6)


def test_a_gradient_shares_no_memory():
    """With what the caller goes on using, nor with itself: it is added to and clipped in place."""
    p, q = (nn.Parameter(np.zeros((2, 3))) for _ in range(2))
    p.to("cpu"), q.to("cpu")
    dy = torch.ones(2, 3, dtype=torch.float64)
    accumulate([p, q], [dy.view(2, 3), torch.ones(3, dtype=torch.float64).expand(2, 3)], dy)
    accumulate([p, q], [dy, dy], dy)
    optim.clip_grad_value_([p, q], 1.5)
    assert torch.equal(dy, torch.ones_like(dy)) and (p.grad == 1.5).all() and (q.grad == 1.5).all()


def test_fit():
    x, t = random((12, 2, 4, 4)), np.arange(12) % 3
    net = network()
    other = copy.deepcopy(net).to("cpu")
    batches = [(x[i:i + 4], t[i:i + 4]) for i in (0, 4, 8)]
    tensors = [nested(torch.from_numpy, batch) for batch in batches]
    options = dict(loss=F.cross_entropy, epochs=2, patience=2, clip_norm=1.0, progress=False)
    h = fit(net, batches, optimizer=optim.SGD(net.parameters(), lr=0.1), validation=batches, **options)
    g = fit(other, tensors, optimizer=optim.SGD(other.parameters(), lr=0.1), validation=tensors, **options)
    np.testing.assert_allclose(g.loss, h.loss, rtol=1e-6)
    assert g.accuracy == pytest.approx(h.accuracy) and g.val_loss == pytest.approx(h.val_loss)
    assert evaluate(other, tensors, loss=F.cross_entropy) == pytest.approx(evaluate(net, batches, loss=F.cross_entropy))


def test_vjp_of_operators():
    x, w = (torch.from_numpy(random(s)) for s in ((2, 3), (4, 3)))
    y, pullback = fastdl.vjp(F.linear, x, w, activation="tanh")
    assert not y.requires_grad and not x.requires_grad
    dx, dw = pullback(1.0)
    want = fastdl.vjp(F.linear, x.numpy(), w.numpy(), activation="tanh")[1](1.0)
    same((dx, dw), want)
    assert pullback(torch.ones(2, 4), needs=(False, True))[0] is None
    layers = [torch.from_numpy(random(s)) for s in ((8, 3), (8, 2), (8,), (8,))]
    state = [torch.zeros(1, 2, 2, dtype=torch.float64) for _ in range(2)]
    (y, h, c), pullback = fastdl.vjp(F.lstm, torch.from_numpy(random((4, 2, 3))), state, layers)
    dx, dstate, dlayers = pullback((None, None, torch.ones_like(c)))
    assert len(dstate) == 2 and len(dlayers) == 4 and dx.shape == (4, 2, 3)
    with pytest.raises(TypeError, match="lstm: the output is a tuple of 3"):
        pullback(torch.ones_like(y))
    y, pullback = fastdl.vjp(F.linear, x, w)
    with pytest.raises(ValueError, match=r"linear: the gradient given to the pullback has shape \(3, 4\), the output has \(2, 4\)"):
        pullback(torch.ones(3, 4))
    with pytest.raises(TypeError, match="linear: the pullback takes a torch tensor, got a numpy array"):
        pullback(np.ones((2, 4)))
    with pytest.raises(ValueError, match="needs has 1 entries"):
        pullback(1.0, needs=(True,))


def test_arrays_and_tensors_do_not_mix():
    net = network().to("cpu")
    with pytest.raises(TypeError, match="conv2d: weight is a torch tensor and another argument is a numpy array; give all of one kind"):
        net(random((2, 2, 4, 4)))
    with pytest.raises(TypeError, match="conv2d: weight is a numpy array and input is a torch tensor"):
        net.numpy()(torch.ones(2, 2, 4, 4, dtype=torch.float64))


def test_a_run_is_resumed(tmp_path):
    """A checkpoint holds tensors as it holds arrays: what was interrupted ends with the same bits."""
    x, t = torch.from_numpy(random((8, 2, 4, 4))), torch.arange(8) % 3
    batches = [(x[:4], t[:4]), (x[4:], t[4:])]

    def run(epochs, checkpoint=None):
        with nn.seeded(3):
            net = network().to("cpu")
        fit(net, batches, loss=F.cross_entropy, optimizer=optim.Adam(net.parameters(), lr=0.01), epochs=epochs, progress=False,
            checkpoint=checkpoint)
        return net.state_dict()

    whole = run(3)
    run(1, Checkpoint(tmp_path / "c"))
    resumed = run(3, Checkpoint(tmp_path / "c", resume=True))
    assert all(torch.equal(v, resumed[name]) for name, v in whole.items())


def test_a_layer_that_was_called_before_it_moved():
    """What a layer remembers of its calls with arrays does not outlive the arrays."""
    layer, x = nn.Linear(5, 4), np.ones((2, 5), "f4")
    layer(x)
    layer.to("cpu")
    layer.weight.data = torch.zeros(4, 5)
    layer.numpy()
    np.testing.assert_array_equal(layer(x), np.broadcast_to(layer.bias.data, (2, 4)))
