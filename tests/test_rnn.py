"""Recurrent sequences against torch in float64, and against an explicit loop over rows and steps for what torch has not."""

import itertools

import numpy as np
import pytest
import torch
from checker import assert_close, check
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastdl
import fastdl.functional as F
from fastdl.cpu import parallel

BACKENDS = ["reference", "numba"]
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
MODES = list(GATES)


# ------------------------------------------------------------------------------------------------ cases
def pairwise(**options):
    """A short list of combinations in which every pair of values of two options occurs.

    A greedy covering array: a row begins with a pair that is missing; each other option takes the value that covers most.
    """
    names, values = list(options), list(options.values())
    columns = range(len(names))
    cells = [(i, a) for i in columns for a in range(len(values[i]))]
    missing = {(one, other) for one, other in itertools.combinations(cells, 2) if one[0] != other[0]}
    chosen = []
    while missing:
        row = dict(min(missing))
        for i in columns:
            if i not in row:
                covered = [sum(tuple(sorted([(i, a), cell])) in missing for cell in row.items()) for a in range(len(values[i]))]
                row[i] = covered.index(max(covered))
        chosen.append({names[i]: values[i][row[i]] for i in columns})
        missing -= set(itertools.combinations(sorted(row.items()), 2))
    return chosen


def test_pairwise_covers_every_pair():
    options = {"a": [1, 2, 3], "b": [None, True], "c": ["x", "y"], "d": [0, 1, 2, 3]}
    table = pairwise(**options)
    for one, other in itertools.combinations(options, 2):
        for pair in itertools.product(options[one], options[other]):
            assert any((row[one], row[other]) == pair for row in table), (one, other, pair)
    assert len(table) < 20 < 3 * 2 * 2 * 4


TABLE = pairwise(form=["padded", "lengths", "packed", "unbatched"], layers=[1, 2], bidirectional=[False, True], batch_first=[False, True],
                 bias=[True, False], proj=[0, 2], hx=[True, False])


def make(mode, steps=5, batch=3, features=4, hidden=3, layers=1, bidirectional=False, bias=True, proj=0, hx=True, form="padded",
         batch_first=False, seed=0, **_):
    """(x, hx, params) in float64, laid out as ``form`` and ``batch_first`` say, except packed: time-major and padded."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape)
    # small weights keep the gates far from saturation, where 1 - y * y cancels
    weight = lambda rows, columns: draw(rows, columns) * 0.5 / np.sqrt(max(1, columns))
    n, out = (2 if bidirectional else 1), proj or hidden
    params = []
    for layer, _ in itertools.product(range(layers), range(n)):
        rows = GATES[mode] * hidden
        params += [weight(rows, features if layer == 0 else n * out), weight(rows, out)]
        params += [draw(rows) / 4, draw(rows) / 4] if bias else []
        params += [weight(out, hidden)] if proj else []
    lead = (steps,) if form == "unbatched" else (batch, steps) if batch_first and form != "packed" else (steps, batch)
    states = (layers * n,) if form == "unbatched" else (layers * n, batch)
    state = None
    if hx:
        state = (draw(*states, out), draw(*states, hidden)) if mode == "lstm" else draw(*states, hidden)
    return draw(*lead, features), state, params


def some_lengths(steps, batch, seed=0):
    """Unsorted, one of them 1; not always one of them steps."""
    return [1 + (i * 3 + seed) % steps for i in range(batch)]


def torch_sequence(mode, bias=True, layers=1, bidirectional=False, batch_first=False, lengths=None, batch_sizes=None, unbatched=False):
    """fastdl's operator made of torch's."""
    op, lstm = getattr(torch, mode), mode == "lstm"

    def call(x, hx, params, *_):
        params = list(params)
        if unbatched:
            x, batch_axis = x[:, None], False
            hx = None if hx is None else tuple(h[:, None] for h in hx) if lstm else hx[:, None]
        else:
            batch_axis = batch_first
        batch = batch_sizes[0] if batch_sizes is not None else x.shape[0 if batch_axis else 1]
        if hx is None:
            n = layers * (2 if bidirectional else 1)
            zero = torch.zeros(n, batch, params[1].shape[1], dtype=x.dtype)
            hx = (zero, torch.zeros(n, batch, params[1].shape[0] // 4, dtype=x.dtype)) if lstm else zero
        options = (bias, layers, 0.0, False, bidirectional)
        if batch_sizes is not None:
            return op(x, torch.tensor(batch_sizes), hx, params, *options)
        if lengths is None:
            results = op(x, hx, params, *options, batch_axis)
        else:
            packed = pack_padded_sequence(x, torch.tensor(lengths), batch_axis, enforce_sorted=False)
            order, back = packed.sorted_indices, packed.unsorted_indices
            hx = tuple(h[:, order] for h in hx) if lstm else hx[:, order]
            data, *last = op(packed.data, packed.batch_sizes, hx, params, *options)
            y, _ = pad_packed_sequence(packed._replace(data=data), batch_axis, total_length=x.shape[1 if batch_axis else 0])
            results = (y, *(h[:, back] for h in last))
        return tuple(r[:, 0] for r in results) if unbatched else tuple(results)

    return call


def run(mode, case, backend, dtype="f8", layout="contiguous", steps=5, batch=4, hidden=3, **sizes):
    """One case of the table against torch."""
    case = {**case, "proj": case["proj"] if mode == "lstm" else 0}
    x, hx, params = make(mode, steps=steps, batch=batch, hidden=hidden, **case, **sizes)
    form, extra = case["form"], {}
    if form == "lengths":
        extra["lengths"] = some_lengths(steps, batch)
        inside = np.arange(steps)[:, None] < np.array(extra["lengths"])
        x[~(inside.T if case["batch_first"] else inside)] = np.nan  # what lies in the padding has no influence
    elif form == "packed":
        lengths = np.sort(some_lengths(steps, batch))[::-1]
        inside = np.arange(lengths[0])[:, None] < lengths
        x, extra["batch_sizes"] = x[:lengths[0]][inside], inside.sum(axis=1).tolist()
    names = ("layers", "bidirectional", "batch_first", "bias")
    theirs = torch_sequence(mode, **{k: case[k] for k in names}, **extra, unbatched=form == "unbatched")
    options = {"has_biases": case["bias"], "num_layers": case["layers"], "bidirectional": case["bidirectional"],
               "batch_first": case["batch_first"], **extra}
    return check(getattr(F, mode), theirs, [x, hx, params], options, torch_options={}, kind="recurrent", n=hidden * steps,
                 backend=backend, dtype=dtype, layout=layout)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("case", TABLE, ids=lambda c: "-".join(str(v) for v in c.values()))
@pytest.mark.parametrize("mode", MODES)
def test_whole_blocks_of_units(mode, case, dtype):
    """States that fill their vectors are kept in the output alone, but for rows that begin later than others."""
    run(mode, case, "numba", dtype, steps=4, batch=6, hidden=32)


@pytest.mark.parametrize("dtype,layout", [("f4", "contiguous"), ("f8", "strided"), ("f4", "channels_last")])
@pytest.mark.parametrize("case", TABLE, ids=lambda c: "-".join(str(v) for v in c.values()))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_torch(backend, mode, case, dtype, layout):
    run(mode, case, backend, dtype, layout)


PLAIN = {"form": "padded", "layers": 1, "bidirectional": False, "batch_first": False, "bias": True, "proj": 0, "hx": True}
BOTH = {"form": "lengths", "layers": 2, "bidirectional": True, "batch_first": True, "bias": True, "proj": 0, "hx": True}


SIZES = [(1, 1, 1, 1), (1, 4, 3, 5), (7, 1, 3, 17), (2, 3, 33, 16), (3, 17, 5, 31), (20, 2, 2, 8)]


@pytest.mark.parametrize("steps,batch,features,hidden", SIZES)
@pytest.mark.parametrize("case", [PLAIN, BOTH], ids=["plain", "both"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes(backend, mode, case, steps, batch, features, hidden):
    run(mode, case, backend, "f4", steps=steps, batch=batch, features=features, hidden=hidden)


@pytest.mark.parametrize("steps,batch,hidden", [(3, 1, 70), (2, 2, 36), (3, 5, 70), (2, 14, 40), (2, 33, 24)])
@pytest.mark.parametrize("case", [PLAIN, {**BOTH, "layers": 1, "proj": 20}], ids=["plain", "both"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks(backend, mode, case, steps, batch, hidden):
    """Units of several vectors, rows of several tiles, and what is left of each."""
    run(mode, case, backend, "f4", steps=steps, batch=batch, features=7, hidden=hidden)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_features(backend, mode):
    run(mode, PLAIN, backend, features=0)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_sizes(backend, data):
    mode = data.draw(st.sampled_from(MODES))
    case = {"form": data.draw(st.sampled_from(["padded", "lengths", "packed", "unbatched"])), "layers": data.draw(st.integers(1, 3)),
            "proj": data.draw(st.integers(0, 3)), **{k: data.draw(st.booleans()) for k in ("bidirectional", "batch_first", "bias", "hx")}}
    sizes = {k: data.draw(st.integers(1, 9)) for k in ("steps", "batch", "features")}
    sizes["hidden"] = case["proj"] + data.draw(st.integers(1, 9))  # torch has no projection to hidden or more
    run(mode, case, backend, data.draw(st.sampled_from(["f4", "f8"])), **sizes)


@pytest.mark.parametrize("case", [PLAIN, {**BOTH, "form": "padded"}], ids=["plain", "both"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend, mode, case):
    y, h_n, *_ = run(mode, case, backend, "f4", batch=0)
    assert y.size == 0 and h_n.shape[1] == 0
    x, hx, params = make(mode, batch=0)
    with fastdl.use_backend(backend):
        got = getattr(F, mode)(x, hx, params, lengths=[])
    assert got[0].shape == (5, 0, 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity(backend, mode):
    x, hx, params = make(mode, batch=5)
    x[2, 1, 0], x[1, 3, 2], x[3, 4, 1] = np.nan, np.inf, -np.inf
    y, *_ = check(getattr(F, mode), torch_sequence(mode), [x, hx, params], torch_options={}, kind="recurrent", n=20, backend=backend)
    assert np.isnan(y[2:, 1]).all() and np.isfinite(y[:, [0, 2]]).all()  # a row's trouble is its own


# ------------------------------------------------------------------------------------------------ beyond torch
def by_hand(mode, layers=1, bidirectional=False, bias=True, proj=0, lengths=None, before_reset=True, kept=None, rate=0.0):
    """The operators as an explicit loop over rows and steps, for autograd. kept: what dropout leaves of each layer's output."""
    n = 2 if bidirectional else 1
    per = 2 + 2 * bias + (proj > 0)

    def step(gates_x, h, c, w_hh, b_hh, w_hr, p):
        hid = len(w_hh) // GATES[mode]
        if mode == "gru":
            a, s = gates_x.split(hid), (w_hh @ h + b_hh).split(hid)
            r, z = torch.sigmoid(a[0] + s[0]), torch.sigmoid(a[1] + s[1])
            inner = r * s[2] if before_reset else w_hh[2 * hid:] @ (r * h) + b_hh[2 * hid:]
            return (1 - z) * torch.tanh(a[2] + inner) + z * h, c
        gates = gates_x + w_hh @ h + b_hh
        if mode != "lstm":
            return (torch.tanh if mode == "rnn_tanh" else torch.relu)(gates), c
        i, f, g, o = gates.split(hid)
        p_i, p_f, p_o = (0, 0, 0) if p is None else p.split(hid)
        c_new = torch.sigmoid(f + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(g)
        m = torch.sigmoid(o + p_o * c_new) * torch.tanh(c_new)
        return (m if w_hr is None else w_hr @ m), c_new

    def call(x, hx, params, *rest):
        peepholes = rest[-1] if rest and isinstance(rest[-1], (list, tuple)) else None
        h0, c0 = hx if mode == "lstm" else (hx, hx)
        last_h, last_c = [], []
        for layer in range(layers):
            outputs = []
            for k in range(layer * n, layer * n + n):
                w_ih, w_hh, *more = params[k * per:(k + 1) * per]
                b_ih, b_hh = more[:2] if bias else (torch.zeros(len(w_ih), dtype=x.dtype),) * 2
                rows, hs, cs = [], [], []
                for row in range(x.shape[1]):
                    length = x.shape[0] if lengths is None else lengths[row]
                    h, c, out = h0[k, row], c0[k, row], [torch.zeros_like(h0[k, row])] * x.shape[0]
                    for t in range(length)[::-1 if k % n else 1]:
                        h, c = step(w_ih @ x[t, row] + b_ih, h, c, w_hh, b_hh, more[-1] if proj else None, peepholes and peepholes[k])
                        out[t] = h
                    rows.append(torch.stack(out))
                    hs.append(h)
                    cs.append(c)
                outputs.append(torch.stack(rows, dim=1))
                last_h.append(torch.stack(hs))
                last_c.append(torch.stack(cs))
            x = torch.cat(outputs, dim=2)
            if kept is not None and layer < layers - 1:
                x = x * torch.tensor(kept[layer] / (1 - rate))
        results = (x, torch.stack(last_h), torch.stack(last_c))
        return results if mode == "lstm" else results[:2]

    return call


@pytest.mark.parametrize("mode", MODES)
def test_loop_by_hand_is_torch(mode):
    options = {"layers": 2, "bidirectional": True, "lengths": [2, 4, 1]}
    x, hx, params = make(mode, steps=4, batch=3, **options)
    t = lambda v: torch.tensor(v)
    arguments = t(x), tuple(map(t, hx)) if mode == "lstm" else t(hx), list(map(t, params))
    for got, want in zip(by_hand(mode, **options)(*arguments), torch_sequence(mode, **options)(*arguments), strict=True):
        assert_close(got.numpy(), want.numpy(), "recurrent", 12)


EXTRAS = pairwise(layers=[1, 2], bidirectional=[False, True], bias=[True, False], proj=[0, 2], lengths=[None, (2, 4, 1)],
                  dtype=["f4", "f8"])


@pytest.mark.parametrize("case", EXTRAS, ids=lambda c: "-".join(str(v) for v in c.values()))
@pytest.mark.parametrize("backend", BACKENDS)
def test_peepholes(backend, case):
    case = dict(case)
    dtype = case.pop("dtype")
    x, hx, params = make("lstm", steps=4, batch=3, **case)
    n = hx[0].shape[0]
    peepholes = list(np.random.default_rng(1).standard_normal((n, 9)))
    positional = [x, hx, params, case["bias"], case["layers"], 0.0, False, case["bidirectional"], False, peepholes]
    check(F.lstm, by_hand("lstm", **case), positional, {"lengths": case["lengths"]}, torch_options={}, kind="recurrent", n=12,
          backend=backend, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_peepholes_by_keyword_and_unbatched(backend):
    x, _, params = make("lstm", form="unbatched")
    peepholes = [np.random.default_rng(1).standard_normal(9)]
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(F.lstm, x, None, params, peepholes=peepholes)
        same = F.lstm(x[:, None], None, params, peepholes=peepholes)
    for a, b in zip(y, same, strict=True):
        np.testing.assert_array_equal(a, b[:, 0])
    dx, dhx, dparams = pullback((np.ones_like(y[0]), None, None))
    assert dx.shape == x.shape and dhx is None and [g.shape for g in dparams] == [p.shape for p in params]


@pytest.mark.parametrize("case", EXTRAS, ids=lambda c: "-".join(str(v) for v in c.values()))
@pytest.mark.parametrize("backend", BACKENDS)
def test_gru_reset_before_product(backend, case):
    case = {**case, "proj": 0}
    dtype = case.pop("dtype")
    x, hx, params = make("gru", steps=4, batch=3, **case)
    options = {"has_biases": case["bias"], "num_layers": case["layers"], "bidirectional": case["bidirectional"], "lengths": case["lengths"],
               "linear_before_reset": False}
    check(F.gru, by_hand("gru", before_reset=False, **case), [x, hx, params], options, torch_options={}, kind="recurrent", n=12,
          backend=backend, dtype=dtype)


# ------------------------------------------------------------------------------------------------ every option with every other
VARIANTS = {"rnn_tanh": ("rnn_tanh", {}), "rnn_relu": ("rnn_relu", {}), "gru": ("gru", {}),
            "gru, reset first": ("gru", {"reset_first": True}), "lstm": ("lstm", {}), "lstm, peepholes": ("lstm", {"peepholes": True})}
EVERY = pairwise(variant=list(VARIANTS), form=["padded", "lengths", "packed", "unbatched"], layers=[1, 2, 3], bidirectional=[False, True],
                 batch_first=[False, True], bias=[True, False], proj=[0, 2], hx=[True, False], dropout=[0.0, 0.4],
                 checkpoint=[None, 1, 3, 9], size=[(5, 3, 3), (7, 1, 17), (4, 13, 40)], dtype=["f8", "f4"],
                 layout=["contiguous", "strided"])


@pytest.mark.parametrize("case", EVERY, ids=lambda c: "-".join(str(v) for v in c.values()))
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_option_with_every_other(backend, case):
    """Outputs and all gradients against autograd through the loop by hand, in float64."""
    mode, extra = VARIANTS[case["variant"]]
    layers, bidirectional, form = case["layers"], case["bidirectional"], case["form"]
    steps, batch, hidden = case["size"]
    batch = 1 if form == "unbatched" else batch
    sizes = {**case, "proj": case["proj"] if mode == "lstm" else 0, "steps": steps, "batch": batch, "hidden": hidden, "features": 4}
    x, hx, params = make(mode, **sizes)
    n, out, given = 2 if bidirectional else 1, sizes["proj"] or hidden, {}
    lengths = np.array([steps] * batch)
    if form in ("lengths", "packed"):
        lengths = np.array(some_lengths(steps, batch))
    if form == "packed":
        lengths = np.sort(lengths)[::-1]
        steps = int(lengths[0])
    inside = np.arange(steps)[:, None] < lengths
    first = case["batch_first"] and form in ("padded", "lengths")
    if form == "lengths":
        given["lengths"] = lengths.tolist()
    elif form == "packed":
        x, given["batch_sizes"] = x[:steps][inside], inside.sum(axis=1).tolist()
    kept = None
    if case["dropout"]:
        rng = np.random.Generator(np.random.Philox(7))
        kept = [rng.random((steps, batch, n * out), dtype=np.float32) >= 0.4 for _ in range(layers - 1)]
    loop = by_hand(mode, layers, bidirectional, case["bias"], sizes["proj"], lengths.tolist(), not extra.get("reset_first"), kept, 0.4)

    def theirs(x, hx, params, *rest):
        if form == "packed":
            rows, x = x, torch.zeros(steps, batch, x.shape[1], dtype=x.dtype)
            x = x.index_put((torch.tensor(inside),), rows)
        elif form == "unbatched":
            x = x[:, None]
            hx = hx if hx is None else tuple(h[:, None] for h in hx) if mode == "lstm" else hx[:, None]
        elif first:
            x = x.transpose(0, 1)
        if hx is None:
            h, c = (torch.zeros(layers * n, batch, size, dtype=x.dtype) for size in (out, hidden))
            hx = (h, c) if mode == "lstm" else h
        y, *last = loop(x, hx, params, *rest)
        y = y[torch.tensor(inside)] if form == "packed" else y.transpose(0, 1) if first else y
        return tuple(v[:, 0] for v in (y, *last)) if form == "unbatched" else (y, *last)

    arguments = [x, hx, params, case["bias"], layers, case["dropout"], True, bidirectional, case["batch_first"]]
    if extra.get("peepholes"):
        arguments.append(list(np.random.default_rng(1).standard_normal((layers * n, 3 * hidden)) / 2))
    options = {**given, "seed": 7, "checkpoint": case["checkpoint"]}
    if extra.get("reset_first"):
        options["linear_before_reset"] = False
    check(getattr(F, mode), theirs, arguments, options, torch_options={}, kind="recurrent", n=hidden * steps, backend=backend,
          dtype=case["dtype"], layout=case["layout"])


# ------------------------------------------------------------------------------------------------ dropout
@pytest.mark.parametrize("lengths", [None, [2, 4, 1]])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout(backend, mode, lengths):
    x, hx, params = make(mode, steps=4, batch=3, layers=3, bidirectional=True)
    rng = np.random.Generator(np.random.Philox(7))
    kept = [rng.random((4, 3, 6), dtype=np.float32) >= 0.4 for _ in range(2)]
    theirs = by_hand(mode, layers=3, bidirectional=True, lengths=lengths, kept=kept, rate=0.4)
    options = {"num_layers": 3, "bidirectional": True, "dropout": 0.4, "train": True, "lengths": lengths, "seed": 7}
    check(getattr(F, mode), theirs, [x, hx, params], options, torch_options={}, kind="recurrent", n=12, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_seed(backend):
    x, hx, params = make("gru", layers=2)
    options = {"num_layers": 2, "dropout": 0.5}
    with fastdl.use_backend(backend):
        one, same, other, fresh, again = (F.gru(x, hx, params, **options, train=True, seed=s)[0] for s in (1, 1, 2, None, None))
        still, plain = F.gru(x, hx, params, **options, seed=1)[0], F.gru(x, hx, params, num_layers=2)[0]
        single = make("gru")
        np.testing.assert_array_equal(F.gru(*single, dropout=0.5, train=True)[0], F.gru(*single)[0])  # one layer: nothing between
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(still, plain)
    for a, b in itertools.combinations([one, other, fresh, again, plain], 2):
        assert (a != b).any()


@pytest.mark.parametrize("rate", [0.25, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_rate_and_mean(backend, rate):
    x, _, params = make("rnn_relu", steps=50, batch=40, features=4, hidden=8, bias=False)
    through = [np.eye(8), np.zeros((8, 8))]  # a second layer that hands on what it gets
    with fastdl.use_backend(backend):
        first = F.rnn_relu(x, None, params, False)[0]
        y = F.rnn_relu(x, None, params + through, False, 2, rate, True, seed=3)[0]
    dropped = (y == 0) & (first > 0)
    share = dropped.sum() / (first > 0).sum()
    if rate == 1.0:
        assert not y.any()
        return
    np.testing.assert_allclose(y[~dropped], first[~dropped] / (1 - rate), rtol=1e-12)
    assert abs(share - rate) < 0.02
    assert abs(y.mean() / first.mean() - 1) < 0.03


# ------------------------------------------------------------------------------------------------ threads
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("steps,batch,hidden", [(6, 1, 40), (4, 3, 40), (3, 14, 40), (3, 33, 40), (4, 22, 64)])
@pytest.mark.parametrize("mode,extra", [*((m, {}) for m in MODES), ("gru", {"linear_before_reset": False}), ("lstm", {"proj": 5})])
def test_any_number_of_threads(mode, extra, steps, batch, hidden, lengths, monkeypatch):
    """The same bits, however rows and units are split."""
    from fastdl.cpu import thresholds

    extra = dict(extra)
    x, hx, params = make(mode, steps=steps, batch=batch, features=7, hidden=hidden, layers=2, bidirectional=True, proj=extra.pop("proj", 0))
    options = {"num_layers": 2, "bidirectional": True, "lengths": some_lengths(steps, batch) if lengths else None, **extra}

    def leaves(values):
        return [leaf for v in values for leaf in (leaves(v) if isinstance(v, (tuple, list)) else [v])]

    def run():
        with fastdl.use_backend("numba"):
            y, pullback = fastdl.vjp(getattr(F, mode), x, hx, params, **options)
            return leaves([y, pullback(y), getattr(F, mode)(x, hx, params, **options)])

    threads = parallel.get_num_threads()
    try:
        parallel.set_num_threads(1)
        want = run()
        for n, at_least in [(2, 1), (3, 1), (5, 1), (2, 1 << 12)]:
            parallel.set_num_threads(n)
            monkeypatch.setattr(thresholds, "MULTIPLY_ADDS", 0)  # or one thread would do these few
            monkeypatch.setattr(thresholds, "STEP_MULTIPLY_ADDS", at_least)
            monkeypatch.setattr(thresholds, "TEAM_MULTIPLY_ADDS", at_least)
            for got, expected in zip(run(), want, strict=True):
                np.testing.assert_array_equal(got, expected)
    finally:
        parallel.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------ the pullback
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_pullback_of_some(backend, mode):
    """Outputs without a gradient, gradients nobody needs, and a second call."""
    x, hx, params = make(mode, layers=2)
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(getattr(F, mode), x, hx, params, num_layers=2)
    seeds = [np.random.default_rng(i).standard_normal(a.shape) for i, a in enumerate(y)]
    leaves = lambda grads: [grads[0], *(grads[1] if mode == "lstm" else [grads[1]]), *grads[2]]
    whole = leaves(pullback(tuple(seeds)))
    parts = [leaves(pullback(tuple(s if i == j else None for j, s in enumerate(seeds)))) for i in range(len(y))]
    for total, *shares in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(total, sum(shares), rtol=1e-9, atol=1e-12)
    for wanted in range(len(params)):
        needs = (False, False, [i == wanted for i in range(len(params))])
        dx, dhx, dparams = pullback(tuple(seeds), needs)
        assert dx is None and all(g is None for g in (dhx if mode == "lstm" else [dhx]))
        for i, g in enumerate(dparams):
            if i == wanted:
                np.testing.assert_array_equal(g, whole[(3 if mode == "lstm" else 2) + i])
            else:
                assert g is None
    dx, _, dparams = pullback(tuple(seeds), (True, False, False))
    np.testing.assert_array_equal(dx, whole[0])
    assert all(g is None for g in dparams)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_as_array_and_packed_agree(backend):
    x, hx, params = make("lstm", steps=6, batch=3)
    lengths = np.array([6, 4, 1], dtype=np.int32)
    inside = np.arange(6)[:, None] < lengths
    with fastdl.use_backend(backend):
        y, h, c = F.lstm(x, hx, params, lengths=lengths)
        packed, h2, c2 = F.lstm(x[inside], hx, tuple(params), batch_sizes=inside.sum(axis=1))
    np.testing.assert_allclose(packed, y[inside], rtol=1e-12)
    assert not y[~inside].any()
    np.testing.assert_allclose(h2, h, rtol=1e-12)
    np.testing.assert_allclose(c2, c, rtol=1e-12)


def test_weights_of_a_subclass_are_taken(tmp_path):
    x, hx, params = make("gru")
    mapped = np.memmap(tmp_path / "w", dtype="f8", mode="w+", shape=params[0].shape)
    mapped[:] = params[0]
    np.testing.assert_array_equal(F.gru(x, hx, [mapped, *params[1:]])[0], F.gru(x, hx, params)[0])
