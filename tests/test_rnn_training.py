"""Recurrent layers for training and streams: what is kept for the gradient, long sequences, one step at a time, packed weights."""

import tracemalloc

import numpy as np
import pytest
from checker import assert_close

import fastdl
import fastdl.functional as F
from fastdl import nn
from fastdl.cpu import workspace

KINDS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


def data(*shape, dtype="f4", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def flat(values):
    return [leaf for v in values for leaf in (flat(v) if isinstance(v, (tuple, list)) else [v])]


# ------------------------------------------------------------------------------------------------ memory
# for each unit and step besides y: rnn keeps y again, gru r, z, n and what r multiplies, lstm i, f, g, o and c
@pytest.mark.parametrize("kind,values", [("RNN", 1), ("GRU", 4), ("LSTM", 5)])
@pytest.mark.parametrize("batch", [1, 16])
def test_values_kept_for_the_gradient(kind, values, batch):
    steps, hidden = 400, 64
    layer, x = KINDS[kind](8, hidden), data(steps, batch, 8)
    layer.vjp(x)  # whatever is made once
    workspace.forget_idle()
    tracemalloc.start()
    try:
        (y, last), pullback = layer.vjp(x)
        kept = tracemalloc.get_traced_memory()[0] - y.nbytes
        assert pullback is not None
        assert kept / (steps * batch * hidden * 4) < values + 0.15
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_sequence_within_memory(kind):
    """10000 steps with checkpoints: y, a state for every 100 steps, gates of 100 steps, and the gradients: less than what
    the gates of all steps would be."""
    steps, hidden, features = 10_000, 32, 4
    plain, x = KINDS[kind](features, hidden), data(steps, 1, features)
    layer = KINDS[kind](features, hidden, checkpoint=100)
    layer.load_state_dict(plain.state_dict())
    dy = data(steps, 1, hidden, seed=1)
    layer.vjp(x)[1]((dy, None))  # what is made once for so many steps
    layer.zero_grad()
    workspace.forget_idle()
    tracemalloc.start()
    try:
        (y, _), pullback = layer.vjp(x)
        kept = tracemalloc.get_traced_memory()[0] - y.nbytes
        dx = pullback((dy, None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert kept < 0.1 * y.nbytes
    assert peak < 1.6 * y.nbytes + 2 * dx.nbytes
    (want_y, _), want = plain.vjp(x)
    np.testing.assert_array_equal(y, want_y)
    assert_close(dx, want((dy, None)), "recurrent", hidden * 100)
    for (name, p), (_, q) in zip(layer.named_parameters(), plain.named_parameters(), strict=True):
        assert_close(p.grad, q.grad, "recurrent", steps, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpoint", [1, 4, 7, 100])
def test_checkpoint_changes_nothing(kind, checkpoint):
    """float64: gradients differ by the order of a sum over steps only; pullbacks may be called twice."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": np.float64}
    plain, layer = KINDS[kind](3, 5, **options), KINDS[kind](3, 5, checkpoint=checkpoint, **options)
    layer.load_state_dict(plain.state_dict())
    x, lengths = data(13, 4, 3, dtype="f8"), [5, 13, 1, 8]
    results = []
    for m in (plain, layer):
        y, pullback = m.vjp(x, lengths=lengths)
        dx = pullback(y)
        again = pullback(y)
        np.testing.assert_array_equal(dx, again)
        results.append(flat([y, dx]) + [p.grad for p in m.parameters()])
    for got, want in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)


def test_memory_is_used_again_when_it_is_free():
    workspace.forget_idle()
    dtype = np.dtype("f4")
    first = workspace.recycled(1 << 16, dtype)
    address, part = first.ctypes.data, first[5:9]
    assert address % 64 == 0
    del first
    second = workspace.recycled(1 << 16, dtype)
    assert second.ctypes.data != address  # a view of the first is alive
    del part
    assert workspace.recycled(60_000, dtype).ctypes.data == address
    assert workspace.recycled(1 << 16, dtype).ctypes.data == address
    assert workspace.recycled((5, 1 << 15), dtype).shape == (5, 1 << 15)
    assert workspace.recycled(1 << 10, dtype).base is None
    del second
    workspace.forget_idle()
    assert not workspace._idle


def test_kept_memory_on_large_pages():
    """Pieces that share a page do not overlap, begin at a cache line, and outlive one another."""
    dtype, sizes = np.dtype("f4"), [1 << 16, 100_001, 70_000, 1 << 19, 700_003, 1 << 20, 65_537]
    pieces = [workspace.aligned(n, dtype) for n in sizes]
    for i, (n, piece) in enumerate(zip(sizes, pieces, strict=True)):
        assert piece.shape == (n,) and piece.dtype == dtype and piece.ctypes.data % 64 == 0
        piece[:] = i
    places = sorted((piece.ctypes.data, piece.ctypes.data + piece.nbytes) for piece in pieces)
    assert all(end <= start for (_, end), (start, _) in zip(places, places[1:], strict=False))
    del pieces[::2]
    more = workspace.aligned(1 << 16, dtype)
    more[:] = -1
    assert all((piece == i).all() for i, piece in zip((1, 3, 5), pieces, strict=True))


# ------------------------------------------------------------------------------------------------ one step at a time
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("kind,options", [
    ("RNN", {"nonlinearity": "relu"}), ("RNN", {}), ("GRU", {}), ("GRU", {"num_layers": 3, "bias": False}), ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "proj_size": 3, "batch_first": True})])
@pytest.mark.parametrize("batch", [None, 1, 5])
def test_steps_are_the_sequence(kind, options, batch, dtype):
    layer = KINDS[kind](4, 9, dtype=np.dtype(dtype), **options)
    x = data(*(6, 4) if batch is None else (6, batch, 4), dtype=dtype)
    given = x.swapaxes(0, 1) if options.get("batch_first") and batch is not None else x
    want, last = layer(given)
    want = want.swapaxes(0, 1) if given is not x else want
    state, steps = None, []
    for row in x:
        y, state = layer.step(row, state)
        steps.append(y)
    assert_close(np.stack(steps), want.astype("f8"), "recurrent", 9)
    for got, expected in zip(flat([state]), flat([last]), strict=True):
        assert_close(got, expected.astype("f8"), "recurrent", 9)


def test_step_of_the_reference_backend():
    layer, x = nn.LSTM(3, 4, 2), data(2, 3)
    want = layer.step(x)
    with fastdl.use_backend("reference"):
        got = layer.step(x)
    for a, b in zip(flat(got), flat(want), strict=True):
        assert_close(a, b.astype("f8"), "recurrent", 8)


def test_step_refuses():
    with pytest.raises(ValueError, match=r"GRU: step goes forwards only; the layer is bidirectional"):
        nn.GRU(3, 4, bidirectional=True).step(data(2, 3))
    layer = nn.LSTM(3, 4)
    with pytest.raises(ValueError, match=r"LSTM: input has 3 dimensions \(1, 2, 3\); the rule is 1 or 2"):
        layer.step(data(1, 2, 3))
    layer.step(data(2, 3))
    with pytest.raises(ValueError, match=r"lstm: hx\[0\] \(h0\) has shape \(1, 3, 4\); the rule is .* = \(1, 2, 4\)"):
        layer.step(data(2, 3), (data(1, 3, 4), data(1, 2, 4)))
    with pytest.raises(ValueError, match=r"weight_ih_l0\) has shape \(16, 3\); the rule is .* = \(16, 5\)"):
        layer.step(data(2, 5))
    with pytest.raises(TypeError, match=r"lstm: hx must be a tuple \(h0, c0\), got ndarray"):
        layer.step(data(2, 3), data(1, 2, 4))


# ------------------------------------------------------------------------------------------------ packed weights
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False}])
@pytest.mark.parametrize("steps,batch,hidden", [(5, 1, 70), (3, 14, 33), (1, 1, 16), (4, 2, 256)])
def test_packed_weights_give_the_same_bits(kind, options, steps, batch, hidden):
    """The road without checks is the road with them: batch first, unbatched, strided and wrong arguments too."""
    layer = KINDS[kind](6, hidden, **options)
    params = [np.array(p.data) for p in layer.parameters()]
    operator = getattr(F, layer.operator)
    where = (layer.bias, layer.num_layers, 0.0, False, layer.bidirectional, layer.batch_first)
    x = data(batch, steps, 6) if layer.batch_first else data(steps, batch, 6)
    n = layer.num_layers * (1 + layer.bidirectional)
    h = data(n, batch, hidden, seed=3)
    for hx in (None, (h, h[:, ::-1].copy()) if kind == "LSTM" else h, (h[:, ::-1], h) if kind == "LSTM" else h[:, ::-1]):
        for given in (x, np.repeat(x, 2, axis=2)[..., ::2]):
            for got, want in zip(flat(layer(given, hx)), flat(operator(given, hx, params, *where)), strict=True):
                if steps > 1:
                    np.testing.assert_array_equal(got, want)
                else:  # a single step with plain weights does not pack them, and sums in another order
                    assert_close(got, want.astype("f8"), "recurrent", hidden)
    if batch == 1 and not layer.batch_first:
        for got, want in zip(flat(layer(x[:, 0])), flat(layer(x)), strict=True):
            np.testing.assert_array_equal(got, want[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_weight_is_seen(kind):
    layer, x = KINDS[kind](3, 5), data(4, 2, 3)
    before = layer(x)[0]
    for p in layer.parameters():
        with p.edit() as array:
            array *= 1.5
        after = layer(x)[0]
        assert (after != before).any()
        plain = getattr(F, layer.operator)(x, None, [np.array(q.data) for q in layer.parameters()])[0]
        np.testing.assert_array_equal(after, plain)
        before = after


def test_a_view_of_a_packed_weight_is_not_the_weight():
    """Square weights have views of their own shape."""
    x = data(5, 1, 4)
    packed = [fastdl.pack(data(4, 4, seed=i)) for i in range(2)] + [fastdl.pack(data(4, seed=i)) for i in range(2)]
    straight = F.rnn_tanh(x, None, packed, True, 1, 0.0, False, False, False)[0]
    turned = F.rnn_tanh(x, None, [packed[0], packed[1].T, *packed[2:]], True, 1, 0.0, False, False, False)[0]
    want = F.rnn_tanh(x, None, [np.array(packed[0]), np.array(packed[1].T), *map(np.array, packed[2:])])[0]
    np.testing.assert_array_equal(turned, want)
    assert (turned != straight).any()


def test_a_layer_is_freed():
    """What is kept with packed weights does not keep them."""
    import gc
    import weakref

    layer = nn.LSTM(3, 4)
    layer(data(2, 1, 3))
    owner = weakref.ref(layer.weight_hh_l0.packed)
    gc.disable()
    try:
        del layer
        assert owner() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("hidden", [256, 300])
def test_weights_as_streams(kind, hidden, dtype):
    """One row with weights as large as a second-level cache reads them in another order than a batch, or training, does."""
    steps, features = 9, 20
    layer = KINDS[kind](features, hidden, bidirectional=True, dtype=np.dtype(dtype))
    x = data(steps, 3, features, dtype=dtype)
    whole, _ = layer(x)
    threads = fastdl.get_num_threads()
    try:
        for n in (1, 2):
            fastdl.set_num_threads(n)
            for i in range(3):
                one = np.ascontiguousarray(x[:, i:i + 1])
                np.testing.assert_array_equal(layer(one)[0], whole[:, i:i + 1])
                np.testing.assert_array_equal(layer.vjp(one)[0][0], whole[:, i:i + 1])
    finally:
        fastdl.set_num_threads(threads)
    layer.weight_hh_l0.data = layer.weight_hh_l0.data / 2
    np.testing.assert_array_equal(layer(one)[0], layer(x)[0][:, 2:])


def test_weights_as_streams_with_peepholes():
    layer, x = nn.LSTM(6, 300), data(5, 1, 6)
    weights, peepholes = [p.data for p in layer.parameters()], [data(900, seed=1)]
    h = np.zeros((1, 1, 300), np.float32)
    packed = F.lstm(x, (h, h), [fastdl.pack(w) for w in weights], True, 1, 0.0, False, False, False, peepholes=peepholes)
    for got, want in zip(packed, F.lstm(x, (h, h), weights, True, 1, 0.0, False, False, False, peepholes=peepholes), strict=True):
        np.testing.assert_array_equal(got, want)
