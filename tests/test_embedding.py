"""embedding against torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from checker import check
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdl
import fastdl.functional as F

BACKENDS = ["reference", "numba"]
SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (0,), (2, 0, 3)]


def check_embedding(shape, rows, columns, padding_idx, seed=0, **how):
    rng = np.random.default_rng(1000 + seed)
    index = np.asarray(rng.integers(0, rows, shape))
    n = max(1, index.size)  # a row may be named by every index
    check(F.embedding, T.embedding, [index, rng.standard_normal((rows, columns))], {"padding_idx": padding_idx}, n=n, **how)


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding_idx", [None, 0, 1, -1])
def test_embedding(padding_idx, backend, dtype, layout):
    for shape in SHAPES:
        for rows, columns in ((2, 3), (9, 1), (5, 17), (4, 0)):
            check_embedding(shape, rows, columns, padding_idx, backend=backend, dtype=dtype, layout=layout)


@given(shape=st.lists(st.integers(0, 6), max_size=3).map(tuple), rows=st.integers(1, 9), columns=st.integers(0, 9),
       seed=st.integers(0, 99), draw=st.data(), layout=st.sampled_from(["contiguous", "strided"]), dtype=st.sampled_from(["f4", "f8"]),
       backend=st.sampled_from(BACKENDS))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_shape(shape, rows, columns, seed, draw, layout, dtype, backend):
    padding_idx = draw.draw(st.none() | st.integers(-rows, rows - 1))
    check_embedding(shape, rows, columns, padding_idx, seed, backend=backend, dtype=dtype, layout=layout)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_index_dtypes(backend, dtype):
    weight = np.random.default_rng(0).standard_normal((5, 3)).astype("f4")
    index = np.array([[0, 4], [2, 4]])
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(F.embedding, index.astype(dtype).T, weight)
    np.testing.assert_array_equal(y, weight[index.T])
    none, dweight = pullback(1.0)
    assert none is None
    np.testing.assert_array_equal(dweight, np.array([1, 0, 1, 0, 2], "f4")[:, None] * np.ones(3, "f4"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_values_stay_in_their_row(backend):
    weight = np.array([[np.nan, 1], [np.inf, -np.inf], [3, 4]], "f4")
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(F.embedding, np.array([1, 0, 1, 2]), weight, 0)
    np.testing.assert_array_equal(y, weight[[1, 0, 1, 2]])
    _, dweight = pullback(np.array([[1, np.inf], [np.nan, np.nan], [2, -np.inf], [np.nan, 1]], "f4"))
    np.testing.assert_array_equal(dweight, [[0, 0], [3, np.nan], [np.nan, 1]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_added_in_the_order_of_the_indices(backend):
    """((1e8 + 1) - 1e8) and not another order: bits do not depend on how the terms are gathered."""
    index = np.array([1, 0, 1, 1])
    grad = np.array([[1e8], [5], [1], [-1e8]], "f4")
    with fastdl.use_backend(backend):
        _, pullback = fastdl.vjp(F.embedding, index, np.zeros((2, 1), "f4"))
    expected = (grad[0] + grad[2]) + grad[3]
    np.testing.assert_array_equal(pullback(grad)[1], [[5], expected])


W, I = np.ones((4, 3), "f4"), np.array([0, 3])
BAD = [
    (lambda: F.embedding(np.array([0, 4, -1]), W), ValueError, "embedding: input contains 4, weight has 4 rows; the rule is 0 to 3"),
    (lambda: F.embedding(np.array([0, -1, 4]), W), ValueError, "embedding: input contains -1"),
    (lambda: F.embedding(np.array([2**64 - 1], "u8"), W), ValueError, "embedding: input contains 18446744073709551615"),
    (lambda: F.embedding(I, W[:0]), ValueError, "embedding: input contains 0, weight has 0 rows"),
    (lambda: F.embedding(I.astype("f4"), W), TypeError, "embedding: input has dtype float32; the rule is an integer type"),
    (lambda: F.embedding([0, 1], W), TypeError, "embedding: input must be a numpy array .* got list"),
    (lambda: F.embedding(torch.tensor([0, 1]), W), TypeError, "torch"),
    (lambda: F.embedding(I, W[0]), ValueError, r"embedding: weight has 1 dimensions \(3,\); the rule is 2"),
    (lambda: F.embedding(I, W.astype("i4")), TypeError, "embedding: weight has dtype int32"),
    (lambda: F.embedding(I, W, 4), ValueError, "embedding: padding_idx is 4, weight has 4 rows; the rule is -4 to 3"),
    (lambda: F.embedding(I, W, -5), ValueError, "embedding: padding_idx is -5"),
    (lambda: F.embedding(I, W, 0.5), TypeError, "embedding: padding_idx must be an integer, got 0.5"),
]


@pytest.mark.parametrize("call,error,message", BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
