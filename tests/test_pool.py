"""Pooling against torch, and, where torch has no such thing (one-sided padding, "same"), against plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from checker import LAYOUTS, assert_close, channels_last, check, strided
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdl
import fastdl.functional as F
from fastdl.ops.layout import empty_like_layout, is_channels_last

BACKENDS = ["reference", "numba"]
NDIMS = (1, 2, 3)
KINDS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", ["f4", "f8"])
each_layout = pytest.mark.parametrize("layout", list(LAYOUTS))
each_ndim = pytest.mark.parametrize("ndim", NDIMS)


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """Waking torch's threads takes longer than any of these cases."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ours(kind, ndim):
    return getattr(F, f"{kind}{ndim}d")


def theirs(kind, ndim):
    return getattr(T, f"{kind}{ndim}d")


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def few_values(shape, seed=0):
    """Many equal elements."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float64)


def compare(kind, ndim, x, options, window=1, **how):
    """Against torch. A maximum moves values, so forward is exact; its gradient and all else hold sums of ``window``."""
    if "max" in kind:
        check(ours(kind, ndim), theirs(kind, ndim), [x], options, kind="exact", gradients=False, **how)
    check(ours(kind, ndim), theirs(kind, ndim), [x], options, kind="transcendental" if kind == "lp_pool" else "sum", n=window, **how)


def elements(ndim, options):
    """How many elements a window has."""
    k = options["kernel_size"]
    return math.prod(k) if isinstance(k, tuple) else k**ndim


# dimensions, shape, options of max_pool; the others take those they know
WINDOWED = [
    (1, (2, 3, 8), {"kernel_size": 2}),
    (1, (1, 1, 1), {"kernel_size": 1}),
    (1, (2, 1, 7), {"kernel_size": (3,), "stride": 1}),  # overlap
    (1, (3, 5, 17), {"kernel_size": 3, "stride": 2, "padding": 1}),
    (1, (1, 2, 11), {"kernel_size": 2, "stride": 5}),  # gaps
    (1, (2, 3, 10), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    (1, (2, 3, 4), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    (1, (2, 3, 5), {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True}),  # the last window would start in the padding
    (1, (2, 3, 3), {"kernel_size": 4, "stride": 2, "ceil_mode": True}),  # a window longer than the input
    (1, (2, 3, 19), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 3}),
    (1, (4, 9), {"kernel_size": 3, "padding": 1}),
    (2, (2, 3, 8, 8), {"kernel_size": 2}),
    (2, (1, 1, 1, 1), {"kernel_size": 1}),
    (2, (2, 5, 7, 9), {"kernel_size": 3, "stride": 2, "padding": 1}),
    (2, (1, 17, 6, 5), {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)}),
    (2, (2, 3, 9, 4), {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 1), "ceil_mode": True}),
    (2, (2, 33, 5, 5), {"kernel_size": 5}),  # global
    (2, (3, 4, 1, 13), {"kernel_size": (1, 4), "stride": 1, "padding": (0, 2)}),
    (2, (2, 3, 13, 11), {"kernel_size": (3, 2), "stride": (1, 2), "padding": 1, "dilation": (2, 4), "ceil_mode": True}),
    (2, (3, 6, 7), {"kernel_size": 2, "stride": 1}),
    (2, (1, 4, 6, 7), {"kernel_size": 1, "stride": 2}),
    (3, (2, 3, 4, 4, 4), {"kernel_size": 2}),
    (3, (1, 2, 5, 6, 7), {"kernel_size": (3, 2, 1), "stride": (2, 1, 3), "padding": (1, 1, 0)}),
    (3, (2, 3, 5, 4, 6), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    (3, (1, 9, 3, 3, 3), {"kernel_size": 3, "stride": 1, "padding": 1}),
    (3, (1, 2, 7, 8, 9), {"kernel_size": 2, "stride": (1, 2, 3), "padding": 1, "dilation": (3, 1, 2)}),
    (3, (3, 4, 5, 6), {"kernel_size": 2}),
]


# ------------------------------------------------------------------------------------------------ windows
@each_layout
@each_dtype
@each_backend
@pytest.mark.parametrize("ndim,shape,options", WINDOWED)
def test_max_pool(ndim, shape, options, backend, dtype, layout):
    how = {"window": elements(ndim, options), "backend": backend, "dtype": dtype, "layout": layout}
    for x, indices in itertools.product((normal(shape), few_values(shape)), (False, True)):
        compare("max_pool", ndim, x, {**options, "return_indices": indices}, **how)


@each_layout
@each_dtype
@each_backend
@pytest.mark.parametrize("ndim,shape,options", [case for case in WINDOWED if "dilation" not in case[2]])
def test_avg_pool(ndim, shape, options, backend, dtype, layout):
    x = normal(shape)
    how = {"window": elements(ndim, options), "backend": backend, "dtype": dtype, "layout": layout}
    for counted in (True, False):
        compare("avg_pool", ndim, x, {**options, "count_include_pad": counted}, **how)
        for divisor in (7, -2) if ndim > 1 else ():
            compare("avg_pool", ndim, x, {**options, "count_include_pad": counted, "divisor_override": divisor}, **how)


@pytest.mark.parametrize("dtype,layout", [("f4", "contiguous"), ("f8", "strided"), ("f4", "channels_last")])
@each_backend
@pytest.mark.parametrize("norm", [1, 2, 3, 4, 0.5, 2.5, math.inf])
@pytest.mark.parametrize("ndim,shape,options", [case for case in WINDOWED if not case[2].keys() & {"dilation", "padding"}])
def test_lp_pool(ndim, shape, options, norm, backend, dtype, layout):
    x = normal(shape)
    if norm not in (1, 2, 4, math.inf):
        x = np.abs(x) + 0.1  # odd and fractional powers of negative numbers are in test_lp_pool_special_values
    options = {k: v[0] if ndim == 1 and isinstance(v, tuple) else v for k, v in options.items()}  # torch's takes no tuple there
    compare("lp_pool", ndim, x, {"norm_type": norm, **options}, elements(ndim, options), backend=backend, dtype=dtype, layout=layout)


ADAPTIVE = [
    ((2, 3, 8), 4), ((2, 3, 7), 3), ((1, 2, 5), 7), ((2, 3, 9), 1), ((3, 10), 4), ((1, 1, 1), 1), ((1, 1, 1), (3,)),
    ((2, 3, 8, 8), (4, 4)), ((2, 5, 7, 9), (3, 5)), ((1, 17, 5, 4), (1, 1)), ((2, 3, 4, 5), (6, 3)), ((2, 3, 6, 7), (None, 2)),
    ((3, 6, 7), (2, 7)), ((2, 3, 6, 7), (5, None)), ((1, 2, 3, 11), (2, 10)),
    ((2, 3, 4, 4, 4), (2, 2, 2)), ((1, 2, 5, 6, 7), (3, 4, 2)), ((1, 9, 3, 4, 5), (1, 1, 1)), ((2, 1, 2, 3, 4), (5, 2, None)),
    ((2, 5, 3, 4), (2, 2, 3)),
]


@each_layout
@each_dtype
@each_backend
@pytest.mark.parametrize("shape,size", ADAPTIVE)
def test_adaptive(shape, size, backend, dtype, layout):
    ndim = len(size) if isinstance(size, tuple) else 1
    sizes = size if isinstance(size, tuple) else (size,)
    n = math.prod(-(-full // (part or full)) + 1 for full, part in zip(shape[-ndim:], sizes, strict=True))
    how = {"window": n, "backend": backend, "dtype": dtype, "layout": layout}
    compare("adaptive_avg_pool", ndim, normal(shape), {"output_size": size}, **how)
    for x, indices in itertools.product((normal(shape), few_values(shape)), (False, True)):
        compare("adaptive_max_pool", ndim, x, {"output_size": size, "return_indices": indices}, **how)


@each_backend
@each_ndim
def test_adaptive_sizes_by_hand(ndim, backend):
    """One integer stands for all dimensions; None in one dimension keeps its size (torch takes none there in 1-D)."""
    x = normal((2, 3, 4, 5, 6)[: ndim + 2])
    with fastdl.use_backend(backend):
        for kind in ("adaptive_avg_pool", "adaptive_max_pool"):
            np.testing.assert_array_equal(ours(kind, ndim)(x, (None,) * ndim), x)
            np.testing.assert_array_equal(ours(kind, ndim)(x, 2), ours(kind, ndim)(x, [2] * ndim))
            y, pullback = fastdl.vjp(ours(kind, ndim), x, 0)  # torch answers this too, but has no gradient
            assert y.shape == (2, 3) + (0,) * ndim
            np.testing.assert_array_equal(pullback(y)[0], np.zeros_like(x))


# ------------------------------------------------------------------------------------------------ beyond torch: plain loops
def loops(x, window, stride, pairs, dilation, out, counted=None):
    """Every window of x (N, C, spatial...) by a Python loop: maxima and flat indices, or with ``counted`` means."""
    size = x.shape[2:]
    planes = x.reshape(*x.shape[:2], -1)
    y, index = np.full(x.shape[:2] + out, -np.inf), np.full(x.shape[:2] + out, -1)
    for cell in np.ndindex(out):
        start = [o * s - p[0] for o, s, p in zip(cell, stride, pairs, strict=True)]
        at = [[a + k * d for k in range(w) if 0 <= a + k * d < n] for a, w, d, n in zip(start, window, dilation, size, strict=True)]
        flat = [int(np.ravel_multi_index(p, size)) for p in itertools.product(*at)]
        where = (slice(None), slice(None), *cell)
        if counted is not None:
            inside = math.prod(min(a + w, n + p[1]) - a for a, w, n, p in zip(start, window, size, pairs, strict=True))
            y[where] = planes[:, :, flat].sum(-1) / (inside if counted else len(flat))
        elif flat:
            best = planes[:, :, flat].argmax(-1)
            index[where] = np.array(flat)[best]
            y[where] = planes[:, :, flat].max(-1)
    return y if counted is not None else (y, index)


def check_by_loops(shape, window, stride, padding, pairs, dilation, out, ceil_mode, backend, layout="contiguous"):
    x = LAYOUTS[layout](few_values(shape) + 0.25)
    ndim = len(window)
    with fastdl.use_backend(backend):
        (y, index), pullback = fastdl.vjp(ours("max_pool", ndim), x, window, stride, padding, dilation, ceil_mode, True)
        want, want_index = loops(x, window, stride, pairs, dilation, out)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(index, want_index)
        np.testing.assert_array_equal(ours("max_pool", ndim)(x, window, stride, padding, dilation, ceil_mode), want)
        grad = normal(y.shape)
        expected = np.zeros((*x.shape[:2], math.prod(x.shape[2:])))
        for at in np.ndindex(y.shape):
            if index[at] >= 0:
                expected[(*at[:2], index[at])] += grad[at]
        (dx,) = pullback((grad, None))
        assert_close(dx, expected.reshape(x.shape), "sum", math.prod(window))
        if max(dilation) > 1:
            return
        for counted in (True, False):
            y, pullback = fastdl.vjp(ours("avg_pool", ndim), x, window, stride, padding, ceil_mode, counted)
            assert_close(y, loops(x, window, stride, pairs, dilation, out, counted), "sum", math.prod(window))
            (dx,) = pullback(grad)
            v = normal(x.shape, 1)  # the mean is linear: <grad, f(v)> = <dx, v>
            f = loops(v, window, stride, pairs, dilation, out, counted)
            np.testing.assert_allclose((grad * f).sum(), (dx * v).sum(), rtol=1e-10, atol=1e-10)


# size, window, stride, dilation -> the padding that TensorFlow's rule gives, and the output size
SAME = [(5, 3, 2, 1, (1, 1), 3), (6, 3, 2, 1, (0, 1), 3), (4, 2, 1, 1, (0, 1), 4), (7, 3, 1, 2, (2, 2), 7), (7, 2, 3, 1, (0, 1), 3),
        (7, 1, 3, 1, (0, 0), 3), (1, 4, 1, 1, (1, 2), 1), (9, 3, 4, 1, (1, 1), 3), (10, 2, 2, 3, (1, 1), 5), (8, 2, 2, 1, (0, 0), 4),
        (1, 2, 1, 2, (1, 1), 1)]  # the last: a dilated window that meets no element


@each_backend
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size,window,stride,dilation,pair,out", SAME)
def test_same_padding(size, window, stride, dilation, pair, out, ceil_mode, backend):
    check_by_loops((2, 3, size), (window,), (stride,), "same", (pair,), (dilation,), (out,), ceil_mode, backend)


@each_layout
@each_backend
def test_same_padding_in_two_and_three_dimensions(backend, layout):
    check_by_loops((2, 3, 6, 5), (3, 2), (2, 1), "same", ((0, 1), (0, 1)), (1, 1), (3, 5), False, backend, layout)
    check_by_loops((1, 2, 4, 6, 5), (2, 3, 3), (1, 2, 2), "same", ((0, 1), (0, 1), (1, 1)), (1, 1, 1), (4, 3, 3), False, backend, layout)


# shape, window, stride, padding as given, as pairs, dilation, output size, ceil_mode
SIDED = [
    ((2, 3, 7), (3,), (2,), ((0, 1),), ((0, 1),), (1,), (3,), False),
    ((2, 3, 7), (3,), (2,), ((1, 0),), ((1, 0),), (1,), (3,), False),
    ((2, 3, 7), (4,), (3,), ((2, 0),), ((2, 0),), (1,), (3,), True),
    ((2, 3, 7), (4,), (4,), ((0, 2),), ((0, 2),), (1,), (2,), True),  # the last window ends beyond neither padding nor input
    ((2, 3, 6), (4,), (3,), ((0, 2),), ((0, 2),), (1,), (2,), True),  # a third would start in the padding after
    ((2, 3, 6), (4,), (5,), ((1, 0),), ((1, 0),), (1,), (2,), True),  # cut off by the input's end
    ((2, 3, 5, 6), (3, 2), (2, 2), ((1, 0), (0, 1)), ((1, 0), (0, 1)), (1, 1), (2, 3), False),
    ((2, 3, 5, 6), (3, 2), (2, 3), ((0, 1), 1), ((0, 1), (1, 1)), (1, 1), (2, 3), False),
    ((1, 4, 5, 5), (3, 3), (1, 1), ((1, 0),), ((1, 0), (1, 0)), (1, 1), (4, 4), False),
    ((2, 3, 5, 6), (2, 3), (2, 1), "valid", ((0, 0), (0, 0)), (1, 1), (2, 4), False),
    ((1, 2, 3, 4, 5), (2, 2, 3), (1, 2, 2), ((1, 0), (0, 1), (1, 1)), ((1, 0), (0, 1), (1, 1)), (1, 1, 1), (3, 2, 3), False),
    ((2, 3, 9, 8), (3, 2), (2, 2), ((0, 2), (1, 0)), ((0, 2), (1, 0)), (2, 2), (4, 4), False),
    ((1, 2, 1), (2,), (1,), 3, ((3, 3),), (5,), (2,), False),  # dilated windows that meet no element at all
    ((1, 2, 2, 2), (2, 2), (1, 1), 1, ((1, 1), (1, 1)), (3, 1), (1, 3), False),
]


@each_layout
@each_backend
@pytest.mark.parametrize("shape,window,stride,padding,pairs,dilation,out,ceil_mode", SIDED)
def test_sided_padding(shape, window, stride, padding, pairs, dilation, out, ceil_mode, backend, layout):
    check_by_loops(shape, window, stride, padding, pairs, dilation, out, ceil_mode, backend, layout)


# ------------------------------------------------------------------------------------------------ any case at all
@st.composite
def cases(draw):
    ndim = draw(st.sampled_from(NDIMS))
    per_dimension = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(ndim))
    size, window, stride, dilation = per_dimension(1, (20, 9, 6)[ndim - 1]), per_dimension(1, 4), per_dimension(1, 4), per_dimension(1, 3)
    padding = tuple(draw(st.integers(0, k // 2)) for k in window)
    lead = (draw(st.integers(1, 9)),) if draw(st.booleans()) else (draw(st.integers(0, 3)), draw(st.integers(1, 9)))
    return {"ndim": ndim, "shape": lead + size, "window": window, "stride": draw(st.sampled_from([stride, None])), "padding": padding,
            "dilation": dilation if draw(st.booleans()) else (1,) * ndim, "ceil_mode": draw(st.booleans()), "out": per_dimension(1, 6),
            "layout": draw(st.sampled_from(sorted(LAYOUTS))), "dtype": draw(st.sampled_from(["f4", "f8"])), "other": draw(st.booleans())}


def torch_refuses(f, x, options):
    try:
        f(torch.tensor(x), **options)
    except RuntimeError:
        return True
    return False


@each_backend
@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=cases())
def test_any_case(backend, case):
    """Every operator does what torch does; what torch refuses, it refuses."""
    ndim, layout, dtype = case["ndim"], case["layout"], case["dtype"]
    # torch's lp_pool1d takes no tuple
    window = case["window"] if ndim > 1 else case["window"][0]
    options = {"kernel_size": window, "stride": case["stride"], "padding": case["padding"], "ceil_mode": case["ceil_mode"]}
    how = {"window": 1000, "backend": backend, "dtype": dtype, "layout": layout}
    x, positive = few_values(case["shape"]), np.abs(normal(case["shape"])) + 0.1
    windowed = {**options, "dilation": case["dilation"], "return_indices": case["other"]}
    if torch_refuses(theirs("max_pool", ndim), x, windowed):
        with pytest.raises(ValueError, match="window spans"):
            ours("max_pool", ndim)(x, **windowed)
    # torch's gradient writes out of bounds where a dilated window meets no element
    elif torch.isfinite(theirs("max_pool", ndim)(torch.tensor(x), **{**windowed, "return_indices": False})).all():
        compare("max_pool", ndim, x, windowed, **how)
    average = {**options, "count_include_pad": case["other"]}
    # torch's 3-D average asks for an input as large as the window, its other operators for a padded input
    if not torch_refuses(theirs("avg_pool", ndim), x, average):
        compare("avg_pool", ndim, positive, average, **how)
        if not any(case["padding"]):
            compare("lp_pool", ndim, positive, {"norm_type": 2, **{k: v for k, v in options.items() if k != "padding"}}, **how)
    compare("adaptive_avg_pool", ndim, positive, {"output_size": case["out"]}, **how)
    compare("adaptive_max_pool", ndim, x, {"output_size": case["out"], "return_indices": case["other"]}, **how)


# ------------------------------------------------------------------------------------------------ special values
def special(shape, values, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, shape).astype(np.float64)
    return np.where(rng.random(shape) < 0.4, rng.choice(values, shape), x)


@each_layout
@each_dtype
@each_backend
@each_ndim
@pytest.mark.parametrize("values", [[np.nan], [np.nan, np.inf, -np.inf], [-np.inf], [np.inf]])
def test_nan_and_infinities(values, ndim, backend, dtype, layout):
    x = special((2, 3, 6, 5, 7)[: ndim + 2], values)
    x[0, 0] = -np.inf
    x[1, 1] = np.nan
    how = {"window": 64, "backend": backend, "dtype": dtype, "layout": layout}
    for options in ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2, "stride": 1, "ceil_mode": True}):
        for indices in (False, True):
            compare("max_pool", ndim, x, {**options, "return_indices": indices}, **how)
        compare("avg_pool", ndim, x, options, **how)
    for size in (2, 4):
        compare("adaptive_avg_pool", ndim, x, {"output_size": (size,) * ndim}, **how)
        compare("adaptive_max_pool", ndim, x, {"output_size": (size,) * ndim, "return_indices": True}, **how)
    for norm in (1, 2, 3, math.inf):
        compare("lp_pool", ndim, x, {"norm_type": norm, "kernel_size": 2, "stride": 1}, **how)


@each_dtype
@each_backend
@pytest.mark.parametrize("padding,ceil_mode", list(itertools.product((0, 1), (False, True))))
def test_windows_of_three_two_apart(padding, ceil_mode, backend, dtype):
    """At every width of row up to two vectors of cells and more, with NaN at each place of a window."""
    options = {"stride": 2, "padding": padding, "ceil_mode": ceil_mode}
    for width in range(3 - 2 * padding, 71):
        x = special((1, 2, 5, width), [np.nan, -np.inf, np.inf], seed=width)
        mean = few_values((1, 2, 5, width), seed=width)
        alone = np.zeros((3, width, 3, width))
        for row, column in itertools.product(range(3), range(width)):
            alone[row, column, row, column] = np.nan
        with fastdl.use_backend(backend):
            maxima = [F.max_pool2d(a.astype(dtype), 3, **options) for a in (x, alone)]
            means = F.avg_pool2d(mean.astype(dtype), 3, **options)
        for got, a in zip(maxima, (x, alone), strict=True):
            assert_close(got, T.max_pool2d(torch.from_numpy(a), 3, **options).numpy(), "exact")
        assert_close(means, T.avg_pool2d(torch.from_numpy(mean), 3, **options).numpy(), "sum", 9)
    x = special((1, 2, 5, 7, 39), [np.nan], seed=1)
    with fastdl.use_backend(backend):
        got = F.max_pool3d(x.astype(dtype), 3, **options)
    assert_close(got, T.max_pool3d(torch.from_numpy(x), 3, **options).numpy(), "exact")


@each_backend
@each_ndim
def test_which_element_wins(ndim, backend):
    """Of equals the first, of NaN the last, of nothing but -inf the first in the window."""
    nan, inf = np.nan, np.inf
    rows = [([1, 3, 3, 2], 3, 1), ([nan, 5, nan, 7], nan, 2), ([-inf] * 4, -inf, 0), ([-inf, -inf, 1, 1], 1, 2), ([nan] * 4, nan, 3),
            ([2, 2, 2, 2], 2, 0), ([inf, nan, inf, 0], nan, 1), ([0.0, -0.0, 0.0, -0.0], 0, 0)]
    x = np.array([r for r, _, _ in rows]).reshape(1, len(rows), *(1,) * (ndim - 1), 4)
    with fastdl.use_backend(backend):
        for f, argument in ((ours("max_pool", ndim), (1,) * (ndim - 1) + (4,)), (ours("adaptive_max_pool", ndim), 1)):
            for a in (x, channels_last(x)):
                y, index = f(a, argument, return_indices=True)
                np.testing.assert_array_equal(y.ravel(), [v for _, v, _ in rows])
                np.testing.assert_array_equal(index.ravel(), [i for _, _, i in rows])
                np.testing.assert_array_equal(f(a, argument).ravel(), [v for _, v, _ in rows])


@each_dtype
@each_backend
@pytest.mark.parametrize("norm", [0.5, 1, 1.5, 2, 3, 4, math.inf])
def test_lp_pool_special_values(norm, backend, dtype):
    """Windows of zeros (no gradient), of a sum of zero, of negative numbers under odd and fractional powers, of NaN."""
    nan, inf = np.nan, np.inf
    x = np.array([[0, 0, 0, 0], [1, -1, 2, -2], [-1, -2, -3, -4], [3, 0, -2, 1], [nan, 1, 2, 3], [nan] * 4, [inf, 1, 2, 3],
                  [0, -0.0, 0, 5]])[None, :, None, :]
    # a root's slope at 0 is infinite, with the sign that the library's pow gives -0.0
    x = np.concatenate([x, -x], axis=2) if norm >= 1 else x + 0.0
    compare("lp_pool", 2, x, {"norm_type": norm, "kernel_size": (1, 4)}, 4, backend=backend, dtype=dtype)
    compare("lp_pool", 2, x, {"norm_type": norm, "kernel_size": (1, 2), "stride": 1}, 4, backend=backend, dtype=dtype)


@each_backend
def test_no_warnings(backend, recwarn):
    x = special((2, 3, 6, 6), [np.nan, np.inf, -np.inf]).astype("f4")
    with fastdl.use_backend(backend):
        for kind in KINDS:
            arguments = {"lp_pool": (3, 2), "max_pool": (3, 1, 1), "avg_pool": (3, 1, 1)}.get(kind, (4,))
            _, pullback = fastdl.vjp(ours(kind, 2), x, *arguments)
            pullback(1.0)
            ours(kind, 2)(x, *arguments)
    assert not recwarn.list


# ------------------------------------------------------------------------------------------------ overlap, emptiness, gradients
@each_backend
@each_ndim
def test_overlapping_windows_add_their_gradients(ndim, backend):
    x = np.zeros((1, 2) + (5,) * ndim, "f4")
    x[(0, slice(None)) + (2,) * ndim] = 1  # every 3-wide window holds the middle
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(ours("max_pool", ndim), x, 3, 1)
        (dx,) = pullback(np.ones_like(y))
        np.testing.assert_array_equal(dx, x * 3**ndim)
        y, pullback = fastdl.vjp(ours("avg_pool", ndim), x, 3, 1)
        (dx,) = pullback(3.0**ndim)
        steps = np.array([1, 2, 3, 2, 1], "f4")
        want = np.prod(np.meshgrid(*[steps] * ndim, indexing="ij"), axis=0)
        np.testing.assert_allclose(dx, np.broadcast_to(want, x.shape), rtol=1e-6)


@each_dtype
@each_backend
@each_ndim
def test_empty_batch(ndim, backend, dtype):
    x = np.zeros((0, 3) + (5,) * ndim, dtype)
    with fastdl.use_backend(backend):
        for kind in KINDS:
            arguments = (2, 2) if kind == "lp_pool" else (2,)
            y, pullback = fastdl.vjp(ours(kind, ndim), x, *arguments)
            assert y.shape == (0, 3) + (2,) * ndim and y.dtype == x.dtype
            (dx,) = pullback(y)
            assert dx.shape == x.shape and dx.dtype == x.dtype
            if "max" in kind:
                y, index = ours(kind, ndim)(x, 2, return_indices=True)
                assert index.shape == y.shape and index.dtype == np.int64


@each_backend
def test_pullback(backend):
    """It may run twice, skips what nobody needs, takes a tuple for a tuple, and None for no gradient."""
    x = normal((2, 3, 6, 6))
    with fastdl.use_backend(backend):
        for kind in KINDS:
            y, pullback = fastdl.vjp(ours(kind, 2), x, *((2, 3) if kind == "lp_pool" else (3,)))
            grad = normal(y.shape)
            (a,), (b,) = pullback(grad), pullback(grad)
            np.testing.assert_array_equal(a, b)
            assert a.shape == x.shape and np.any(a)
            assert pullback(grad, needs=(False,)) == (None,)
            if "max" in kind:
                (_, _), pairs = fastdl.vjp(ours(kind, 2), x, 3, return_indices=True)
                np.testing.assert_array_equal(pairs((grad, None))[0], a)
                assert not np.any(pairs((None, None))[0])


@each_backend
@each_ndim
def test_output_is_new_memory(ndim, backend):
    """Windows of one element copy."""
    x = normal((2, 3) + (4,) * ndim)
    with fastdl.use_backend(backend):
        for kind in KINDS:
            y = ours(kind, ndim)(x, *{"lp_pool": (1, 1), "max_pool": (1,), "avg_pool": (1,)}.get(kind, (4,)))
            np.testing.assert_array_equal(y, x)
            assert not np.shares_memory(x, y)


def test_input_is_taken_without_a_copy():
    for ndim in NDIMS:
        for x in (normal((2, 3) + (4,) * ndim), normal((3,) + (4,) * ndim), strided(normal((2, 3) + (4,) * ndim))):
            (view,), params, _ = ours("max_pool", ndim).prepare(x, 2)
            assert np.shares_memory(view, x) and view.ndim == 5 and all(len(v) == 3 for v in params[:5])


@each_backend
def test_unaligned_input(backend):
    data = np.zeros(2 * 3 * 8 * 8 * 4 + 1, np.uint8)
    x = data[1:].view("f4").reshape(2, 3, 8, 8)
    x[...] = normal(x.shape)
    assert not x.flags.aligned
    with fastdl.use_backend(backend):
        for kind in KINDS:
            arguments = (2, 2) if kind == "lp_pool" else (3,)
            (y, pullback), (z, pullback_z) = fastdl.vjp(ours(kind, 2), x, *arguments), fastdl.vjp(ours(kind, 2), x.copy(), *arguments)
            assert_close(y, z, "sum", 9)
            assert_close(pullback(y)[0], pullback_z(z)[0], "sum", 9)


# ------------------------------------------------------------------------------------------------ layout
@each_dtype
@each_backend
@each_ndim
@pytest.mark.parametrize("kind", KINDS)
def test_answers_in_kind(kind, ndim, backend, dtype):
    x = normal((2, 3, 6, 8, 7)[: ndim + 2]).astype(dtype)
    arguments = {"lp_pool": (2, 2), "max_pool": (3, 2, 1), "avg_pool": (3, 2, 1)}.get(kind, (3,))
    with fastdl.use_backend(backend):
        f = ours(kind, ndim)
        for last, a in [(False, x), (True, channels_last(x)), (True, channels_last(x)[:, :, ::-1]), (False, strided(x))]:
            y, pullback = fastdl.vjp(f, a, *arguments)
            for z in (y, f(a, *arguments), pullback(y)[0], *(f(a, *arguments, return_indices=True) if "max" in kind else ())):
                assert_layout(z, last)
        single = channels_last(x)[0]
        assert_layout(f(single, *arguments)[None], True)


def assert_layout(y, last):
    assert y.flags.c_contiguous != last, (y.shape, y.strides)
    assert np.moveaxis(y, 1, -1).flags.c_contiguous == last, (y.shape, y.strides)


def test_is_channels_last():
    x = np.zeros((2, 3, 4, 5, 6))
    assert not is_channels_last(x)
    assert is_channels_last(channels_last(x))
    assert is_channels_last(channels_last(x)[:, :, 1::2, ::-1])
    assert not is_channels_last(channels_last(x)[:, ::2])
    assert not is_channels_last(strided(x))
    assert not is_channels_last(channels_last(x[:, :1]))
    assert not is_channels_last(channels_last(x[:, :, :1, :1, :1]))
    assert is_channels_last(channels_last(x[:1, :, :1, :1]))
    assert is_channels_last(empty_like_layout((1, 2, 3, 1, 1), "i8", channels_last(x)))
    assert empty_like_layout((1, 2, 3, 1, 1), "i8", x).flags.c_contiguous


# ------------------------------------------------------------------------------------------------ bad input
X1, X2, X3 = np.zeros((2, 3, 8)), np.zeros((2, 3, 8, 8)), np.zeros((2, 3, 8, 8, 8))
BAD = [
    ("max_pool2d", (X2[0, 0], 2), ValueError, r"max_pool2d: input has 2 dimensions \(8, 8\); the rule is 3 or 4"),
    ("max_pool1d", (X2, 2), ValueError, r"max_pool1d: input has 4 dimensions .*; the rule is 2 or 3"),
    ("max_pool3d", (X1, 2), ValueError, r"max_pool3d: input has 3 dimensions .*; the rule is 4 or 5"),
    ("max_pool2d", (X2.astype("i4"), 2), TypeError, "max_pool2d: input has dtype int32; the rule is float32 or float64"),
    ("avg_pool2d", (X2.astype("f2"), 2), TypeError, "avg_pool2d: input has dtype float16"),
    ("max_pool2d", ([[[[1.0]]]], 1), TypeError, "max_pool2d: input must be a numpy array or a torch tensor, got list"),
    ("max_pool2d", (X2[:, :, :0], 2), ValueError, r"max_pool2d: input has shape \(2, 3, 0, 8\); the rule is at least 1 for every size but"),
    ("avg_pool1d", (X1[:, :0], 2), ValueError, r"avg_pool1d: input has shape \(2, 0, 8\); the rule is at least 1"),
    ("adaptive_max_pool3d", (X3[:, :, :, :0], 2), ValueError, r"adaptive_max_pool3d: input has shape .*; the rule is at least 1"),
    ("max_pool2d", (X2[:0, 0], 2), ValueError, r"max_pool2d: input has shape \(0, 8, 8\); the rule is at least 1"),
    ("max_pool2d", (X2, 0), ValueError, "max_pool2d: kernel_size is 0; the rule is at least 1"),
    ("max_pool2d", (X2, 2.0), TypeError, "max_pool2d: kernel_size must be an integer, got 2.0"),
    ("avg_pool3d", (X3, (2, 2)), ValueError, "avg_pool3d: kernel_size has 2 entries; the rule is an integer or 3 of them"),
    ("max_pool1d", (X1, (2, 2)), ValueError, "max_pool1d: kernel_size has 2 entries"),
    ("max_pool2d", (X2, 2, 0), ValueError, "max_pool2d: stride is 0; the rule is at least 1"),
    ("lp_pool2d", (X2, 2, 2, (1, -1)), ValueError, "lp_pool2d: stride is -1; the rule is at least 1"),
    ("max_pool2d", (X2, 2, 2, 0, 0), ValueError, "max_pool2d: dilation is 0; the rule is at least 1"),
    ("max_pool2d", (X2, 2, 2, 0, 1.0), TypeError, "max_pool2d: dilation must be an integer, got 1.0"),
    ("max_pool2d", (X2, 2, 2, -1), ValueError, "max_pool2d: padding is -1; the rule is at least 0"),
    ("max_pool2d", (X2, 3, 1, 2), ValueError, r"padding is \(\(2, 2\), \(2, 2\)\), the window spans \(3, 3\); the rule is at most half"),
    ("avg_pool1d", (X1, 4, 1, ((0, 3),)), ValueError, r"padding is \(\(0, 3\),\), the window spans \(4,\); the rule is at most half"),
    ("avg_pool2d", (X2, 3, 1, (1, 1, 1)), ValueError, r"avg_pool2d: padding is \(1, 1, 1\); the rule is an integer, 2 integers, 2 pairs"),
    ("avg_pool2d", (X2, 3, 1, ((1, 1, 1), (1, 1))), ValueError, "avg_pool2d: padding is .*; the rule is an integer, 2 integers, 2 pairs"),
    ("max_pool1d", (X1, 3, 1, (0, 1)), ValueError, "max_pool1d: padding is .*; the rule is an integer, 1 integers, 1 pairs"),
    ("max_pool2d", (X2, 3, 1, "full"), ValueError, "max_pool2d: padding is 'full'; the rule is one of 'valid', 'same'"),
    ("max_pool2d", (X2, 3, 1, 0.5), TypeError, "max_pool2d: padding must be an integer, got 0.5"),
    ("max_pool2d", (X2, 9), ValueError, r"max_pool2d: the window spans \(9, 9\), the padded input is \(8, 8\); the rule is a window"),
    ("max_pool1d", (X1, 3, 1, 1, 5), ValueError, r"spans \(11,\) \(kernel_size \(3,\), dilation \(5,\)\), the padded input is \(10,\)"),
    ("lp_pool3d", (X3, 2, (1, 1, 9)), ValueError, r"lp_pool3d: the window spans \(1, 1, 9\), the padded input is \(8, 8, 8\)"),
    ("avg_pool2d", (X2, 2, 2, 0, False, True, 0), ValueError, "avg_pool2d: divisor_override is 0; the rule is any other integer, or None"),
    ("avg_pool3d", (X3, 2, 2, 0, False, True, 1.5), TypeError, "avg_pool3d: divisor_override must be an integer, got 1.5"),
    ("adaptive_avg_pool2d", (X2, -1), ValueError, "adaptive_avg_pool2d: output_size is -1; the rule is at least 0"),
    ("adaptive_avg_pool2d", (X2, (2, 1.5)), TypeError, "adaptive_avg_pool2d: output_size must be an integer, got 1.5"),
    ("adaptive_avg_pool2d", (X2, (2,)), ValueError, "adaptive_avg_pool2d: output_size has 1 entries; the rule is an integer or 2 of them"),
    ("adaptive_max_pool1d", (X1, (2, 2)), ValueError, "adaptive_max_pool1d: output_size has 2 entries"),
    ("adaptive_max_pool3d", (X3, None), TypeError, "adaptive_max_pool3d: output_size must be an integer, got None"),
    ("lp_pool2d", (X2, 0, 2), ValueError, r"lp_pool2d: norm_type is 0.0; the rule is larger than 0 \(inf is allowed\)"),
    ("lp_pool1d", (X1, -2, 2), ValueError, "lp_pool1d: norm_type is -2.0; the rule is larger than 0"),
    ("lp_pool1d", (X1, math.nan, 2), ValueError, "lp_pool1d: norm_type is nan; the rule is larger than 0"),
    ("lp_pool2d", (X2, "two", 2), TypeError, "lp_pool2d: norm_type must be a number, got 'two'"),
]


@pytest.mark.parametrize("name,arguments,error,message", BAD)
def test_bad_input(name, arguments, error, message):
    f = getattr(F, name)
    with pytest.raises(error, match=message):
        f(*arguments)
    with pytest.raises(error, match=message):
        fastdl.vjp(f, *arguments)


@each_ndim
@pytest.mark.parametrize("kind", KINDS)
def test_signature_is_torchs(kind, ndim):
    """Names, order and defaults, as far as torch's documentation gives them."""
    import inspect

    windowed = {"kernel_size": ..., "stride": None}
    want = {"max_pool": {**windowed, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False},
            "avg_pool": {**windowed, "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None},
            "lp_pool": {"norm_type": ..., **windowed, "ceil_mode": False},
            "adaptive_avg_pool": {"output_size": ...}, "adaptive_max_pool": {"output_size": ..., "return_indices": False}}[kind]
    if ndim == 1:
        want.pop("divisor_override", None)
    got = {p.name: ... if p.default is p.empty else p.default for p in inspect.signature(ours(kind, ndim)).parameters.values()}
    assert list(got.items()) == list({"input": ..., **want}.items())
