"""batch_norm, layer_norm and group_norm against torch."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from checker import LAYOUTS as LAY
from checker import assert_close, channels_last, check, strided
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdl
import fastdl.functional as F
from fastdl.ops.norm import reference

BACKENDS = ["reference", "numba"]
LAYOUTS = ["contiguous", "strided", "channels_last"]
SHAPES = [(4, 1), (5, 3), (1, 3, 2), (4, 6, 7), (3, 2, 1, 1), (2, 4, 5, 3), (1, 6, 2, 3, 4), (17, 4, 9, 9)]
# With an eps that is small beside the variance of two or three values the gradient is all cancellation, in torch's
# float64 too; a large one keeps tiny shapes comparable. test_default_eps has large shapes.
EPS = 0.5
EMPTY = [(0, 4), (0, 4, 3), (2, 4, 0), (0, 4, 0, 2)]


def data(shape, seed=0, offset=0.5):
    # not the checker's seeds: a gradient that is x plus a constant is pulled back to 0
    return offset + np.random.default_rng(1000 + seed).standard_normal(shape)


class Normalised:
    """batch_norm with its running statistics bound, so that the checker sees the arguments that have a gradient.

    Every call gets fresh copies: training writes to them.
    """

    def __init__(self, mean=None, var=None):
        self.mean, self.var = mean, var

    def statistics(self, x, of=lambda a: a.copy()):
        return (None, None) if self.mean is None else (of(self.mean.astype(x.dtype)), of(self.var.astype(x.dtype)))

    def __call__(self, x, weight=None, bias=None, **options):
        return F.batch_norm(x, *self.statistics(x), weight, bias, **options)

    def vjp(self, x, weight=None, bias=None, **options):
        y, pullback = fastdl.vjp(F.batch_norm, x, *self.statistics(x), weight, bias, **options)

        def of_the_rest(grad):
            dx, dmean, dvar, dweight, dbias = pullback(grad)
            assert dmean is None and dvar is None
            return dx, dweight, dbias

        return y, of_the_rest

    def torch(self, dtype):
        def call(x, weight=None, bias=None, **options):
            mean, var = (None, None) if self.mean is None else (torch.tensor(a.astype(dtype).astype("f8")) for a in (self.mean, self.var))
            return T.batch_norm(x, mean, var, weight, bias, **options)

        return call


def check_batch_norm(shape, training, running, affine, *, dtype="f4", seed=0, eps=EPS, **how):
    c = shape[1]
    op = Normalised(data(c, 201), 0.5 + np.abs(data(c, 202))) if running else Normalised()
    parameters = [data(c, 203), data(c, 204)] if affine else [None, None]
    check(op, op.torch(dtype), [data(shape, seed), *parameters], {"training": training, "eps": eps}, dtype=dtype, kind="transcendental",
          n=max(1, int(np.prod(shape)) // max(1, c)), **how)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training,running,affine", [(True, True, True), (True, False, True), (True, False, False), (False, True, True),
                                                     (False, True, False)])
def test_batch_norm(training, running, affine, backend, dtype, layout):
    for shape in SHAPES + EMPTY:
        check_batch_norm(shape, training, running, affine, backend=backend, dtype=dtype, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
def test_running_statistics(shape, momentum, backend, dtype, layout):
    """Training moves them by momentum, with the unbiased variance, in the caller's memory, views included."""
    c = shape[1]
    x = LAY[layout](data(shape).astype(dtype))
    mean, var = data(c, 201).astype(dtype), 0.5 + np.abs(data(c, 202)).astype(dtype)
    store = np.zeros((c, 3), dtype)
    ours = store[::-1, 0], store[:, 2]
    ours[0][...], ours[1][...] = mean, var
    theirs = torch.tensor(mean.astype("f8")), torch.tensor(var.astype("f8"))
    T.batch_norm(torch.tensor(x.astype("f8", order="C")), *theirs, training=True, momentum=momentum)
    with fastdl.use_backend(backend):
        F.batch_norm(x, *ours, training=True, momentum=momentum)
    for got, want in zip(ours, theirs, strict=True):
        assert_close(got, want.numpy(), "transcendental", max(1, x.size // c))
    assert not store[:, 1].any()
    with fastdl.use_backend(backend):
        before = store.copy()
        F.batch_norm(x, *ours, momentum=momentum)
    np.testing.assert_array_equal(store, before)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_pullback_does_not_see_later_updates(backend, training):
    x, mean, var = data((4, 3)).astype("f4"), np.zeros(3, "f4"), np.ones(3, "f4")
    weight = np.full(3, 2, "f4")
    with fastdl.use_backend(backend):
        _, pullback = fastdl.vjp(F.batch_norm, x, mean, var, weight, None, training)
        first = pullback(x)
        F.batch_norm(x + 7, mean, var, training=True)
        for a, b in zip(first, pullback(x), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)


class Keyword:
    """layer_norm and group_norm with their second argument bound, as it is no array."""

    def __init__(self, f, value):
        self.f, self.value = f, value

    def __call__(self, x, weight, bias, **options):
        return self.f(x, self.value, weight, bias, **options)

    def vjp(self, x, weight, bias, **options):
        return fastdl.vjp(self.f, x, self.value, weight, bias, **options)


def check_layer_norm(shape, ndim, affine, eps=EPS, **how):
    sizes = shape[len(shape) - ndim:]
    parameters = [data(sizes, 203), data(sizes, 204)] if affine else [None, None]
    check(Keyword(F.layer_norm, sizes), Keyword(T.layer_norm, sizes), [data(shape), *parameters], {"eps": eps}, kind="transcendental",
          n=max(1, int(np.prod(sizes))), **how)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(affine, backend, dtype, layout):
    for shape, ndim in [((7,), 1), ((3, 5), 1), ((3, 5), 2), ((2, 3, 4), 2), ((2, 1, 3, 33), 1), ((2, 3, 4, 5), 3), ((0, 5), 1),
                        ((3, 0), 1), ((0, 3, 2), 2)]:
        check_layer_norm(shape, ndim, affine, backend=backend, dtype=dtype, layout=layout)


def check_group_norm(shape, groups, affine, eps=EPS, **how):
    parameters = [data(shape[1], 203), data(shape[1], 204)] if affine else [None, None]
    check(Keyword(F.group_norm, groups), Keyword(T.group_norm, groups), [data(shape), *parameters], {"eps": eps}, kind="transcendental",
          n=max(1, int(np.prod(shape[1:])) // groups), **how)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(affine, backend, dtype, layout):
    for shape, groups in [((3, 6), 2), ((2, 6, 5), 3), ((1, 4, 3, 2), 1), ((2, 4, 5, 3), 4), ((2, 6, 2, 3, 2), 2), ((0, 4, 2), 2),
                          ((0, 4), 4)]:
        check_group_norm(shape, groups, affine, backend=backend, dtype=dtype, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_default_eps(backend, dtype, layout):
    how = {"eps": 1e-5, "backend": backend, "dtype": dtype, "layout": layout}
    check_batch_norm((9, 4, 13, 11), True, True, True, **how)
    check_batch_norm((9, 4, 13, 11), False, True, True, **how)
    check_layer_norm((9, 4, 131), 1, True, **how)
    check_group_norm((3, 12, 13, 11), 3, True, **how)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_value_is_its_own_mean(backend):
    x, bias = data((2, 3)).astype("f4"), data(3, 1).astype("f4")
    with fastdl.use_backend(backend):
        for f, value, b in ((F.layer_norm, 1, bias[:1]), (F.group_norm, 3, bias)):
            a = x.reshape(2, 3, 1) if f is F.layer_norm else x
            y, pullback = fastdl.vjp(f, a, value, b, b)
            np.testing.assert_array_equal(y, np.broadcast_to(b, a.shape))
            dx, dweight, _ = pullback(a)
            assert not dx.any() and not dweight.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_group_norm_without_elements(backend):
    """Nothing to sum is 0; torch's gradient of weight is NaN here."""
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(F.group_norm, np.zeros((2, 4, 0), "f4"), 2, np.ones(4, "f4"), np.ones(4, "f4"))
        dx, dweight, dbias = pullback(1.0)
    assert y.shape == dx.shape == (2, 4, 0)
    np.testing.assert_array_equal([dweight, dbias], np.zeros((2, 4)))
    with fastdl.use_backend(backend):
        assert F.batch_norm(np.zeros((2, 0, 3), "f4"), np.zeros(0, "f4"), np.zeros(0, "f4"), training=True).shape == (2, 0, 3)
        assert F.group_norm(np.zeros((2, 0, 3), "f4"), 2, np.zeros(0, "f4")).shape == (2, 0, 3)


def test_nothing_behind_an_empty_array_is_read():
    """np.einsum multiplies a sum of nothing by the first value of an operand whose strides are 0, which is not its own."""
    memory = np.full(64, np.nan, "f4")
    grad, normal = (np.ndarray((2, 2, 2, 0), "f4", memory, strides=s) for s in ((16, 8, 4, 4), (0, 0, 0, 0)))
    np.testing.assert_array_equal(reference._sum_product(grad, normal, (0, 3)), np.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(reference._channel_sum(grad, normal), np.zeros(2))


@given(shape=st.tuples(st.integers(0, 5), st.sampled_from([1, 2, 3, 4, 6]), *[st.integers(1, 6)] * 2), spatial=st.integers(0, 2),
       seed=st.integers(0, 99), draw=st.data(), layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(["f4", "f8"]),
       backend=st.sampled_from(BACKENDS))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_shape(shape, spatial, seed, draw, layout, dtype, backend):
    shape = shape[:2 + spatial]
    how = {"layout": layout, "dtype": dtype, "backend": backend, "seed": seed}
    training = draw.draw(st.booleans())
    if not training or shape[0] * int(np.prod(shape[2:])) != 1:
        check_batch_norm(shape, training, not training, draw.draw(st.booleans()), **how)
    how.pop("seed")
    ndim = draw.draw(st.integers(1, len(shape)))
    if np.prod(shape[-ndim:]) > 1:
        check_layer_norm(shape, ndim, draw.draw(st.booleans()), **how)
    groups = draw.draw(st.sampled_from([g for g in range(1, 7) if shape[1] % g == 0]))
    if shape[1] // groups * int(np.prod(shape[2:])) > 1:
        check_group_norm(shape, groups, draw.draw(st.booleans()), **how)


# ------------------------------------------------------------------------------------------------ numerics, memory
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_large_mean(backend, layout):
    """A mean of 1000 standard deviations costs three digits, not six: the variance is taken about the mean."""
    x = LAY[layout]((1000 + np.random.default_rng(0).standard_normal((8, 4, 12, 12))).astype("f4"))
    exact = T.batch_norm(torch.tensor(x.astype("f8", order="C")), None, None, training=True).numpy()
    with fastdl.use_backend(backend):
        np.testing.assert_allclose(F.batch_norm(x, None, None, training=True), exact, atol=2e-3)
        rows = x.reshape(32, 144)
        exact = T.layer_norm(torch.tensor(rows.astype("f8", order="C")), (144,)).numpy()
        np.testing.assert_allclose(F.layer_norm(rows, 144), exact, atol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_values(backend):
    inf, nan = np.inf, np.nan
    x = np.array([[[1, 2, nan], [1, 2, 3]], [[3, 4, 5], [inf, 2, 3]], [[1, 5, 2], [-4, 2, 3]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(Normalised(), Normalised().torch("f4"), [x, None, None], {"training": True}, kind="transcendental", backend=backend)
        stats = Normalised(np.array([0.5, nan]), np.array([0.0, 2.0]))
        check(stats, stats.torch("f4"), [x, None, None], {"eps": 1e-3}, kind="transcendental", backend=backend)
        stats = Normalised(np.array([0.5, 1.0]), np.array([-1.0, 2.0]))  # the square root of a negative number
        check(stats, stats.torch("f4"), [x, None, None], {"eps": 0.0}, kind="transcendental", backend=backend)
        check(Keyword(F.layer_norm, (3,)), Keyword(T.layer_norm, (3,)), [x, None, None], kind="transcendental", backend=backend)
        check(Keyword(F.group_norm, 2), Keyword(T.group_norm, 2), [x, None, None], kind="transcendental", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_is_kept(backend):
    x = channels_last(data((2, 4, 5, 3)).astype("f4"))
    with fastdl.use_backend(backend):
        for y, pullback in (fastdl.vjp(F.batch_norm, x, None, None, np.ones(4, "f4"), training=True),
                            fastdl.vjp(F.group_norm, x, 2, np.ones(4, "f4"))):
            assert y.strides == x.strides
            assert pullback(x)[0].strides == x.strides


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_nobody_needs(backend):
    x, weight, bias = data((4, 6, 3)).astype("f4"), data(6).astype("f4"), data(6, 1).astype("f4")
    with fastdl.use_backend(backend):
        _, batch = fastdl.vjp(F.batch_norm, x, np.zeros(6, "f4"), np.ones(6, "f4"), weight, bias, True)
        _, layer = fastdl.vjp(F.layer_norm, x.swapaxes(1, 2), 6, weight, bias)
        _, group = fastdl.vjp(F.group_norm, x, 2, weight, bias)
        for pullback, size, tensors in ((batch, 5, (0, 3, 4)), (layer, 3, (0, 1, 2)), (group, 3, (0, 1, 2))):
            grad = x if pullback is not layer else x.swapaxes(1, 2)
            full = pullback(grad)
            for i in tensors:
                some = pullback(grad, needs=[k == i for k in range(size)])
                assert [g is not None for g in some] == [k == i for k in range(size)]
                np.testing.assert_array_equal(some[i], full[i])


# ------------------------------------------------------------------------------------------------ bad input
X, C, D = np.ones((2, 3, 4), "f4"), np.ones(3, "f4"), np.ones(4, "f4")
BAD = [
    (lambda: F.batch_norm(C, C, C), ValueError, r"batch_norm: input has 1 dimensions \(3,\); the rule is at least 2"),
    (lambda: F.batch_norm(X, None, None), ValueError, "batch_norm: running_mean and running_var are None; .* where training is False"),
    (lambda: F.batch_norm(X, C, None), ValueError, "batch_norm: one of running_mean and running_var is None; the rule is both or neither"),
    (lambda: F.batch_norm(X, C, D), ValueError, r"batch_norm: running_var has shape \(4,\), input has \(2, 3, 4\); the rule is \(3,\)"),
    (lambda: F.batch_norm(X, C, C, D), ValueError, r"batch_norm: weight has shape \(4,\)"),
    (lambda: F.batch_norm(X, C, C, C, C.astype("f8")), TypeError, "batch_norm: bias is float64, input is float32"),
    (lambda: F.batch_norm(X, C.tolist(), C), TypeError, "batch_norm: running_mean must be a numpy array .* got list"),
    (lambda: F.batch_norm(X[:1, :, :1], C, C, training=True), ValueError, r"batch_norm: input has shape \(1, 3, 1\), one value"),
    (lambda: F.batch_norm(X, None, None, training=True, eps=0), ValueError, "batch_norm: eps is 0.0; the rule is greater than 0"),
    (lambda: F.batch_norm(X, C, C, momentum=None), TypeError, "batch_norm: momentum must be a number, got None"),
    (lambda: F.batch_norm(X, strided(C), C.copy(), training=True), ValueError, "batch_norm: running_mean is read-only"),
    (lambda: F.layer_norm(X, ()), ValueError, r"layer_norm: .* normalized_shape is \(\); the rule is at least one size"),
    (lambda: F.layer_norm(X, (3,)), ValueError, r"layer_norm: input has shape \(2, 3, 4\), normalized_shape is \(3,\)"),
    (lambda: F.layer_norm(X, (1, 2, 3, 4)), ValueError, "layer_norm: input has shape"),
    (lambda: F.layer_norm(X, (4.0,)), TypeError, "layer_norm: normalized_shape must be an integer, got 4.0"),
    (lambda: F.layer_norm(X, (4,), C), ValueError, r"layer_norm: weight has shape \(3,\)"),
    (lambda: F.layer_norm(X, 4, D, D.astype("f8")), TypeError, "layer_norm: bias is float64"),
    (lambda: F.layer_norm(X, 4, eps="small"), TypeError, "layer_norm: eps must be a number"),
    (lambda: F.group_norm(X, 2), ValueError, "group_norm: input has 3 channels, num_groups is 2; the rule is that it divides them"),
    (lambda: F.group_norm(X, 0), ValueError, "group_norm: num_groups is 0; the rule is at least 1"),
    (lambda: F.group_norm(C, 1), ValueError, "group_norm: input has 1 dimensions"),
    (lambda: F.group_norm(X[:1, :, :1], 3), ValueError, r"group_norm: input has shape \(1, 3, 1\), one value"),
    (lambda: F.group_norm(X, 3, D), ValueError, r"group_norm: weight has shape \(4,\)"),
]


@pytest.mark.parametrize("call,error,message", BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
