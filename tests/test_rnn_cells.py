"""Recurrent cells against torch in float64."""

import itertools

import numpy as np
import pytest
import torch
from checker import check
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdl
import fastdl.functional as F

BACKENDS = ["reference", "numba"]
GATES = {"rnn_tanh_cell": 1, "rnn_relu_cell": 1, "gru_cell": 3, "lstm_cell": 4}
CELLS = list(GATES)
SIZES = [(1, 1, 1), (1, 3, 5), (3, 4, 2), (17, 33, 19), (2, 5, 16), (5, 0, 3), (0, 4, 3)]


def make(cell, batch=3, features=4, hidden=5, biases=(True, True), seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape)
    rows, lead = GATES[cell] * hidden, () if batch is None else (batch,)
    hx = (draw(*lead, hidden), draw(*lead, hidden)) if cell == "lstm_cell" else draw(*lead, hidden)
    weights = [draw(rows, features), draw(rows, hidden) / np.sqrt(hidden), *(draw(rows) if b else None for b in biases)]
    return [draw(*lead, features), hx, *weights]


def torch_cell(cell, unbatched=False):
    """torch's cell; where unbatched, on a batch of one. With one bias torch's needs the other."""
    op = getattr(torch, cell)

    def call(x, hx, w_ih, w_hh, b_ih, b_hh):
        zero = torch.zeros(len(w_ih), dtype=x.dtype)
        b_ih, b_hh = zero if b_ih is None else b_ih, zero if b_hh is None else b_hh
        if not unbatched:
            return op(x, hx, w_ih, w_hh, b_ih, b_hh)
        y = op(x[None], tuple(h[None] for h in hx) if isinstance(hx, tuple) else hx[None], w_ih, w_hh, b_ih, b_hh)
        return tuple(a[0] for a in y) if isinstance(y, tuple) else y[0]

    return call


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("batch,features,hidden", SIZES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_torch(backend, cell, batch, features, hidden, dtype, layout):
    check(getattr(F, cell), torch_cell(cell), make(cell, batch, features, hidden), kind="recurrent", n=features + hidden, backend=backend,
          dtype=dtype, layout=layout)


@pytest.mark.parametrize("biases", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_biases_and_unbatched(backend, cell, batch, biases):
    check(getattr(F, cell), torch_cell(cell, batch is None), make(cell, batch, biases=biases), kind="recurrent", n=9, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(cell=st.sampled_from(CELLS), batch=st.none() | st.integers(0, 9), features=st.integers(0, 40), hidden=st.integers(1, 40),
       biases=st.tuples(st.booleans(), st.booleans()))
def test_any_sizes(backend, cell, batch, features, hidden, biases):
    check(getattr(F, cell), torch_cell(cell, batch is None), make(cell, batch, features, hidden, biases), kind="recurrent",
          n=features + hidden, backend=backend)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity(backend, cell):
    arrays = make(cell, 4)
    arrays[0][1, 0], arrays[0][2, 1], arrays[0][3, 2] = np.nan, np.inf, -np.inf
    check(getattr(F, cell), torch_cell(cell), arrays, kind="recurrent", n=9, backend=backend)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_cell_is_a_step_of_the_sequence(backend, cell):
    sequence = cell.removesuffix("_cell")
    x, hx, *weights = make(cell)
    steps = np.stack([x, 2 * x, -x])
    with fastdl.use_backend(backend):
        first = tuple(h[None] for h in hx) if isinstance(hx, tuple) else hx[None]
        y, *last = getattr(F, sequence)(steps, first, weights)
        for t in range(3):
            hx = getattr(F, cell)(steps[t], hx, *weights)
            np.testing.assert_allclose(y[t], hx[0] if isinstance(hx, tuple) else hx, rtol=1e-12, atol=1e-14)
    for a, b in zip(last, hx if isinstance(hx, tuple) else (hx,), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pullback_of_some(backend):
    arrays = make("lstm_cell")
    with fastdl.use_backend(backend):
        (h, c), pullback = fastdl.vjp(F.lstm_cell, *arrays)
    whole, of_h, of_c = pullback((h, c)), pullback((h, None)), pullback((None, c))
    for total, a, b in zip(whole, of_h, of_c, strict=True):
        for t, p, q in zip(total, a, b, strict=True) if isinstance(total, tuple) else [(total, a, b)]:
            np.testing.assert_allclose(t, p + q, rtol=1e-9, atol=1e-12)
    dx, (dh, dc), *dweights = pullback((h, c), (False, (True, False), False, True, False, False))
    assert dx is None and dc is None and dweights[0] is None and dweights[2:] == [None, None]
    np.testing.assert_array_equal(dh, whole[1][0])
    np.testing.assert_array_equal(dweights[1], whole[3])


def z(*shape, dtype="f8"):
    return np.zeros(shape, dtype)


X, H, WI, WH, B = z(2, 3), z(2, 4), z(12, 3), z(12, 4), z(12)
BAD = [
    ("gru_cell", (None, H, WI, WH), TypeError, r"gru_cell: input must be a numpy array or a torch tensor, got NoneType"),
    ("gru_cell", (z(1, 2, 3), H, WI, WH), ValueError, r"gru_cell: input has 3 dimensions \(1, 2, 3\); the rule is 1 or 2"),
    ("gru_cell", (X, None, WI, WH), TypeError, r"gru_cell: hx must be a numpy array or a torch tensor, got NoneType"),
    ("gru_cell", (X, (H, H), WI, WH), TypeError, r"gru_cell: hx must be a numpy array or a torch tensor, got tuple"),
    ("gru_cell", (X, z(3, 4), WI, WH), ValueError, r"gru_cell: hx has shape \(3, 4\); the rule is \(batch, hidden\) = \(2, 4\)"),
    ("gru_cell", (X[0], H, WI, WH), ValueError, r"gru_cell: hx has shape \(2, 4\); the rule is \(hidden,\) = \(4,\)"),
    ("gru_cell", (X, H, z(12, 5), WH), ValueError,
     r"gru_cell: w_ih has shape \(12, 5\); the rule is \(3\*hidden, input features\) = \(12, 3\)"),
    ("gru_cell", (X, H, WI, z(8, 4)), ValueError, r"gru_cell: w_hh has shape \(8, 4\); the rule is \(3\*hidden, hidden\) = \(12, 4\)"),
    ("gru_cell", (X, H, WI, z(0, 0)), ValueError, r"gru_cell: w_hh has shape \(0, 0\); the rule is .* hidden at least 1"),
    ("gru_cell", (X, H, WI, WH, z(4)), ValueError, r"gru_cell: b_ih has shape \(4,\); the rule is \(3\*hidden,\) = \(12,\)"),
    ("gru_cell", (X, H, WI, WH, B, z(12, 1)), ValueError, r"gru_cell: b_hh has shape \(12, 1\); the rule is"),
    ("gru_cell", (X, H, WI, z(12, 4, dtype="f4")), TypeError,
     r"gru_cell: w_hh is float32, input is float64; the rule is one dtype for all"),
    ("rnn_tanh_cell", (X, H, WI, WH), ValueError, r"rnn_tanh_cell: w_hh has shape \(12, 4\); the rule is \(hidden, hidden\) = \(4, 4\)"),
    ("rnn_relu_cell", (X, z(2, 4, dtype="f4"), z(4, 3), z(4, 4)), TypeError, r"rnn_relu_cell: hx is float32, input is float64"),
    ("lstm_cell", (X, H, z(16, 3), z(16, 4)), TypeError, r"lstm_cell: hx must be a tuple \(h0, c0\), got ndarray"),
    ("lstm_cell", (X, (H,), z(16, 3), z(16, 4)), ValueError, r"lstm_cell: hx has 1 entries; the rule is two"),
    ("lstm_cell", (X, (H, z(2, 5)), z(16, 3), z(16, 4)), ValueError,
     r"lstm_cell: hx\[1\] \(c\) has shape \(2, 5\); the rule is \(batch, hidden\)"),
]


@pytest.mark.parametrize("cell,arguments,error,message", BAD)
def test_bad_arguments(cell, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(F, cell)(*arguments)
