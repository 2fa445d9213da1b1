"""Activations, softmax and dropout against torch."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from checker import channels_last, check, strided
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdl
import fastdl.functional as F
from fastdl.ops import philox

BACKENDS = ["reference", "numba"]
LAYOUTS = ["contiguous", "strided", "channels_last"]
SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (2, 3, 5, 7), (0,), (3, 0), (0, 4, 2)]
ACTIVATIONS = [
    ("relu", {}), ("leaky_relu", {}), ("leaky_relu", {"negative_slope": -0.3}), ("leaky_relu", {"negative_slope": 1.7}),
    ("leaky_relu", {"negative_slope": 0}), ("elu", {}), ("elu", {"alpha": 0.3}), ("elu", {"alpha": -2.0}), ("gelu", {}),
    ("gelu", {"approximate": "tanh"}), ("sigmoid", {}), ("tanh", {}), ("softplus", {}), ("softplus", {"beta": 3, "threshold": 2}),
    ("softplus", {"beta": -2.0}),
]


SERVED = [(backend, name, options) for backend in BACKENDS for name, options in ACTIVATIONS]


def check_activation(name, options, x, **how):
    peer = getattr(torch, name) if name in ("sigmoid", "tanh") else getattr(T, name)
    check(getattr(F, name), peer, [x], options, kind="exact" if name == "relu" else "transcendental", **how)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend,name,options", SERVED)
def test_activation(backend, name, options, dtype, layout):
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        check_activation(name, options, np.asarray(3 * rng.standard_normal(shape)), backend=backend, dtype=dtype, layout=layout)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend,name,options", SERVED)
def test_activation_of_special_values(backend, name, options, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kernel that overflows on the way says nothing
        check_activation(name, options, np.array([np.nan, np.inf, -np.inf, 0.0, -0.0]), backend=backend, dtype=dtype)
        sizes = np.array([1e-30, -1e-30, 3, -3, 19.5, 20.5, -19.5, -20.5, 60, -60, 1e15])
        check_activation(name, options, sizes, backend=backend, dtype=dtype)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "sigmoid", "tanh"])
def test_threads_and_layouts_give_the_same_bits(name):
    """More than a chunk of elements, in memory of any order, and a gradient whose memory has another order."""
    x = np.random.default_rng(0).standard_normal((3, 17, 40, 33)).astype("f4")
    with fastdl.use_backend("numba"):
        y, pullback = fastdl.vjp(getattr(F, name), x)
        (dx,) = pullback(x)
        last = channels_last(x)
        y_last, pullback_last = fastdl.vjp(getattr(F, name), last)
        threads = fastdl.get_num_threads()
        fastdl.set_num_threads(1)
        try:
            assert (getattr(F, name)(x) == y).all()
        finally:
            fastdl.set_num_threads(threads)
    assert y_last.strides == last.strides
    assert (y_last == y).all() and (pullback_last(x)[0] == dx).all()


def _gelu_tanh(x):
    return x / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("dtype,bound", [("f4", 1e-5), ("f8", 1e-13)])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name,options,exact", [
    ("elu", {}, lambda x: math.expm1(x) if x < 0 else x), ("sigmoid", {}, lambda x: 1 / (1 + math.exp(-x))),
    ("tanh", {}, math.tanh), ("gelu", {"approximate": "tanh"}, _gelu_tanh),
    ("softplus", {}, lambda x: math.log1p(math.exp(x))), ("gelu", {}, lambda x: x * 0.5 * math.erfc(-x * math.sqrt(0.5)))])
def test_small_results_keep_their_digits(name, options, exact, backend, dtype, bound):
    """Each result to its own relative error, where 1 + tanh and 1 + erf cancel and exp is about to underflow."""
    x = np.array([-1e-8, 1e-8, -0.1, 0.1, -0.46875, -0.5, -1, -2, -3.9, -4.1, -5.7, -9.3 if name != "gelu" else -6.1], dtype)
    with fastdl.use_backend(backend):
        np.testing.assert_allclose(getattr(F, name)(x, **options), [exact(float(v)) for v in x], rtol=bound)


@pytest.mark.parametrize("dtype,bound", [("f4", 1e-6), ("f8", 1e-14)])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["elu", "sigmoid", "softplus"])
def test_small_gradients_keep_their_digits(name, backend, dtype, bound):
    x = np.array([-5, -10, -20, -40], dtype)
    with fastdl.use_backend(backend):
        (dx,) = fastdl.vjp(getattr(F, name), x)[1](1.0)
    exact = np.exp(x.astype("f8"))
    np.testing.assert_allclose(dx, {"elu": exact, "sigmoid": exact / (1 + exact) ** 2, "softplus": exact / (1 + exact)}[name], rtol=bound)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relu_gradient_of_infinite_gradients(backend):
    """A closed gate gives 0, not 0 * inf; NaN in the input lets the gradient through, as in torch."""
    with fastdl.use_backend(backend):
        _, pullback = fastdl.vjp(F.relu, np.array([-1, 1, 0, np.nan, -1], "f4"))
        (dx,) = pullback(np.array([np.inf, np.inf, np.nan, 2, -5], "f4"))
    np.testing.assert_array_equal(dx, [0, np.inf, 0, 2, 0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threshold", [1e3, np.inf])
def test_softplus_never_overflows(backend, threshold):
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(F.softplus, np.array([500, -500], "f4"), threshold=threshold)
    np.testing.assert_array_equal(y, [500, 0])
    np.testing.assert_array_equal(pullback(1.0)[0], [1, 0])


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "gelu", "sigmoid", "tanh", "softplus", "dropout"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_is_kept(name, backend):
    x = channels_last(np.ones((2, 3, 4, 5), "f4"))
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(getattr(F, name), x)
        assert y.strides == x.strides
        assert pullback(channels_last(y))[0].strides == x.strides


@pytest.mark.parametrize("backend", BACKENDS)
def test_unaligned_memory(backend):
    x = np.frombuffer(b"." + np.linspace(-2, 2, 12, dtype="f4").tobytes(), "u1")[1:].view("f4").reshape(3, 4)
    assert not x.flags.aligned
    with fastdl.use_backend(backend):
        for name in ("relu", "leaky_relu", "gelu", "sigmoid"):
            op = getattr(F, name)
            y, pullback = fastdl.vjp(op, x)
            y2, pullback2 = fastdl.vjp(op, x.copy())
            np.testing.assert_array_equal(y, y2)
            np.testing.assert_array_equal(pullback(x)[0], pullback2(x.copy())[0])


# ------------------------------------------------------------------------------------------------ softmax
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, backend, dtype, layout):
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for dim in range(-max(1, len(shape)), max(1, len(shape))):
            n = shape[dim] if shape else 1
            x = np.asarray(4 * rng.standard_normal(shape))
            check(getattr(F, name), getattr(T, name), [x], {"dim": dim}, kind="transcendental", n=n, backend=backend, dtype=dtype,
                  layout=layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_special_values(name, backend):
    inf, nan = np.inf, np.nan
    x = np.array([[1e30, 1, 2], [-inf, 1, 2], [inf, 1, 2], [nan, 1, 2], [-inf, -inf, -inf], [800, -800, 0], [-1e4, -1e4, -1e4]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(getattr(F, name), getattr(T, name), [x], {"dim": 1}, kind="transcendental", backend=backend)


@given(shape=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 99), data=st.data(), layout=st.sampled_from(LAYOUTS),
       dtype=st.sampled_from(["f4", "f8"]), backend=st.sampled_from(BACKENDS))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_shape(shape, seed, data, layout, dtype, backend):
    x = np.random.default_rng(seed).standard_normal(shape)
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    for name in ("softmax", "log_softmax"):
        check(getattr(F, name), getattr(T, name), [x], {"dim": dim}, kind="transcendental", n=shape[dim], backend=backend, dtype=dtype,
              layout=layout)
    name, options = data.draw(st.sampled_from(ACTIVATIONS))
    check_activation(name, options, x, backend=backend, dtype=dtype, layout=layout)


# ------------------------------------------------------------------------------------------------ dropout
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0, 0.1, 0.5, 0.9, 1])
def test_dropout_scales_what_stays(p, backend, dtype):
    x = 1 + np.random.default_rng(0).random((40, 50)).astype(dtype)
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(F.dropout, x, p, seed=3)
    kept = y != 0
    assert y.dtype == dtype
    assert abs(kept.mean() - (1 - p)) <= 4 * np.sqrt(p * (1 - p) / x.size)  # four standard deviations
    scale = 1 / (1 - p) if p < 1 else 0
    np.testing.assert_allclose(y, np.where(kept, x * scale, 0), rtol=1e-6)
    (dx,) = pullback(2 * x)
    np.testing.assert_allclose(dx, np.where(kept, 2 * x * scale, 0), rtol=1e-6)
    assert dx.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_mask_is_a_function_of_seed_and_index(backend):
    x = np.ones((4, 3, 5, 7), "f4")
    with fastdl.use_backend(backend):
        y = F.dropout(x, 0.3, seed=11)
        for other in (channels_last(x), strided(x), x.astype("f8")):
            np.testing.assert_array_equal(F.dropout(other, 0.3, seed=11) != 0, y != 0)
        for n in (0, 1, 2, 7, 64):
            np.testing.assert_array_equal(F.dropout(np.ones(n, "f4"), 0.3, seed=11), y.reshape(-1)[:n])
        assert (F.dropout(x, 0.3, seed=12) != y).any()
        assert (F.dropout(x, 0.3) != F.dropout(x, 0.3)).any()
        assert F.dropout(np.ones(()), 0.3).shape == ()
    np.testing.assert_array_equal(y != 0, philox.words(x.size, 11).reshape(x.shape) >= 0.3 * 2**32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_for_inference_is_a_copy(backend):
    x = np.array([1, np.nan, -np.inf], "f4")
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(F.dropout, x, 0.5, False)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(pullback(x)[0], x)
    assert not np.shares_memory(y, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_special_values(backend):
    """Dropped NaN and infinities are NaN (0 * inf), as in torch."""
    with fastdl.use_backend(backend):
        np.testing.assert_array_equal(F.dropout(np.array([np.nan, 1, np.inf], "f4"), 1.0), [np.nan, 0, np.nan])
        y = F.dropout(np.full(64, np.inf, "f4"), 0.5, seed=0)
        assert np.isnan(y).any() and np.isinf(y).any() and not np.isfinite(y).any()


# ------------------------------------------------------------------------------------------------ bad input
X = np.ones((2, 3), "f4")
BAD = [
    (lambda: F.relu([1.0]), TypeError, "relu: input must be a numpy array .* got list"),
    (lambda: F.relu(np.ones(3, "i4")), TypeError, "relu: input has dtype int32; the rule is float32 or float64"),
    (lambda: F.tanh(np.ones(3, "f2")), TypeError, "tanh: input has dtype float16"),
    (lambda: F.leaky_relu(X, "a"), TypeError, "leaky_relu: negative_slope must be a number, got 'a'"),
    (lambda: F.elu(X, None), TypeError, "elu: alpha must be a number, got None"),
    (lambda: F.gelu(X, "erf"), ValueError, "gelu: approximate is 'erf'; the rule is one of 'none', 'tanh'"),
    (lambda: F.softplus(X, 0), ValueError, "softplus: beta is 0; the rule is a number other than 0"),
    (lambda: F.softplus(X, 1, "x"), TypeError, "softplus: threshold must be a number"),
    (lambda: F.softmax(X), TypeError, "softmax: dim is not given; .* implicit dim is deprecated"),
    (lambda: F.log_softmax(X), TypeError, "log_softmax: dim is not given"),
    (lambda: F.softmax(X, 2), ValueError, "softmax: dim is 2, input has 2 dimensions; the rule is -2 to 1"),
    (lambda: F.softmax(X, -3), ValueError, "softmax: dim is -3"),
    (lambda: F.softmax(X[0, 0, ...].reshape(()), 1), ValueError, "softmax: dim is 1, input has 0 dimensions; the rule is -1 to 0"),
    (lambda: F.log_softmax(X, 0.5), TypeError, "log_softmax: dim must be an integer, got 0.5"),
    (lambda: F.dropout(X, 1.5), ValueError, "dropout: p is 1.5; the rule is 0 to 1"),
    (lambda: F.dropout(X, np.nan), ValueError, "dropout: p is nan"),
    (lambda: F.dropout(X, seed=-1), ValueError, r"dropout: seed is -1; the rule is 0 to 2\*\*64 - 1"),
    (lambda: F.dropout(X, seed=2**64), ValueError, "dropout: seed is 18446744073709551616"),
    (lambda: F.dropout(X, seed=0.5), TypeError, "dropout: seed must be an integer, got 0.5"),
]


@pytest.mark.parametrize("call,error,message", BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
