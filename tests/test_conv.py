"""conv1d, conv2d and conv3d against torch; padding beyond torch's is made explicit there with torch's pad."""

import math

import numpy as np
import pytest
import torch
from checker import assert_close, channels_last, check
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastdl
import fastdl.functional as F
from fastdl.ops.conv import numba_backend, numba_lines_plan, numba_pointwise
from fastdl.ops.conv.geometry import ALGORITHMS, is_channels_last

BACKENDS = ["reference", "numba"]
LAYOUTS = ["contiguous", "strided", "channels_last"]
OURS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TORCH = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}


def spans(kernel, dilation):
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]


def pairs_of(padding, size, kernel, stride, dilation):
    """(before, after) of each dimension, for every form that padding takes."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [max((math.ceil(n / s) - 1) * s + span - n, 0) for n, s, span in zip(size, stride, spans(kernel, dilation), strict=True)]
        return [(t // 2, t - t // 2) for t in totals]
    if isinstance(padding, int):
        padding = [padding] * len(size)
    return [p if isinstance(p, tuple) else (p, p) for p in padding]


def each(value, n):
    return (value,) * n if isinstance(value, int) else tuple(value)


def torch_conv(activation=None, **options):
    """torch's convolution with our padding and activation."""

    def call(x, w, b=None):
        n = w.ndim - 2
        stride, dilation = each(options.get("stride", 1), n), each(options.get("dilation", 1), n)
        pairs = pairs_of(options.get("padding", 0), x.shape[-n:], w.shape[2:], stride, dilation)
        padded = torch.nn.functional.pad(x, [p for pair in reversed(pairs) for p in pair])
        y = TORCH[n](padded, w, b, stride, 0, dilation, options.get("groups", 1))
        return getattr(torch.nn.functional, activation)(y) if activation else y

    return call


def operands(x, w, bias=True, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(x), rng.standard_normal(w), rng.standard_normal(w[0]) if bias else None]


def compare(x, w, options=None, *, bias=True, activation=None, seed=0, kind="sum", **how):
    options = options or {}
    ours = {**options, "activation": activation} if activation else options
    return check(OURS[len(w) - 2], torch_conv(activation, **options), operands(x, w, bias, seed), ours, torch_options={},
                 kind=kind, n=math.prod(w[1:]), **how)


# (input, weight, options); sizes with remainders for any tile, one and seventeen channels, every option alone and together
CASES = [
    # 2-D
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((2, 17, 5, 7), (9, 17, 1, 1), {}),
    ((2, 3, 6, 5), (17, 3, 1, 1), {"stride": 2}),
    ((1, 9, 5, 7), (6, 9, 1, 1), {}),  # 1 x 1 as a product: one image, and two large ones
    ((2, 40, 9, 10), (50, 40, 1, 1), {}),
    ((1, 1, 9, 9), (17, 1, 3, 3), {"padding": 1}),
    ((2, 17, 7, 6), (17, 17, 3, 3), {"padding": (1, 0)}),
    ((3, 4, 8, 9), (5, 4, 3, 3), {"stride": 2, "padding": 1}),
    ((2, 3, 9, 7), (4, 3, 5, 5), {"padding": 2}),
    ((1, 3, 9, 9), (8, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((2, 2, 9, 8), (3, 2, 2, 3), {"stride": (1, 3), "padding": (0, 2)}),
    ((1, 2, 9, 9), (3, 2, 2, 1), {"stride": (4, 3)}),  # cells that no kernel position sees
    ((1, 2, 3, 4), (3, 2, 3, 3), {"stride": 9, "padding": 4}),  # the only kernel position sees padding alone
    ((2, 3, 9, 9), (2, 3, 3, 3), {"dilation": 2, "padding": 2}),
    ((2, 3, 9, 9), (2, 3, 3, 2), {"dilation": (4, 3), "stride": (1, 2), "padding": (0, 1)}),
    ((2, 4, 6, 5), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    ((1, 17, 5, 5), (17, 1, 3, 3), {"groups": 17, "padding": 1}),  # depthwise
    ((2, 6, 7, 5), (18, 1, 3, 3), {"groups": 6, "stride": 2, "padding": 1}),  # depthwise, three outputs a channel
    ((2, 19, 9, 37), (19, 1, 5, 5), {"groups": 19, "padding": 2}),
    ((2, 18, 13, 12), (18, 1, 3, 3), {"groups": 18, "stride": 2, "padding": "same"}),
    ((1, 9, 12, 21), (9, 1, 3, 4), {"groups": 9, "dilation": (3, 2), "stride": (1, 3), "padding": ((4, 0), (1, 5))}),
    ((2, 8, 5, 11), (8, 1, 7, 7), {"groups": 8, "padding": 3}),  # a kernel larger than the image
    ((2, 12, 6, 10), (16, 3, 3, 3), {"groups": 4, "padding": 1}),  # small groups
    ((2, 6, 7, 8), (4, 3, 3, 5), {"groups": 2, "dilation": (2, 1), "stride": (2, 1), "padding": ((1, 2), (3, 0))}),
    ((2, 3, 4, 5), (4, 3, 3, 3), {"padding": ((0, 0), (2, 1))}),
    ((2, 3, 2, 3), (4, 3, 5, 5), {"padding": [3, (1, 2)]}),
    ((2, 3, 5, 4), (4, 3, 3, 3), {"padding": "valid"}),
    ((2, 3, 5, 4), (4, 3, 3, 3), {"padding": "same"}),
    ((2, 3, 5, 4), (4, 3, 2, 4), {"padding": "same"}),
    ((2, 3, 8, 7), (4, 3, 3, 3), {"padding": "same", "stride": 2}),
    ((2, 3, 8, 7), (4, 3, 2, 3), {"padding": "same", "stride": (3, 4), "dilation": (1, 3)}),
    ((1, 3, 7, 7), (4, 3, 1, 2), {"padding": "same", "stride": 4}),
    ((3, 5, 6), (4, 3, 3, 3), {"padding": 1}),  # unbatched
    ((6, 5, 4), (6, 1, 2, 3), {"groups": 6}),
    ((0, 3, 6, 5), (4, 3, 3, 3), {"padding": 1}),  # empty batch
    ((0, 4, 6, 5), (6, 2, 3, 3), {"groups": 2, "stride": 2}),
    # 1-D
    ((1, 1, 1), (1, 1, 1), {}),
    ((2, 17, 9), (5, 17, 3), {"padding": 1}),
    ((3, 4, 8), (6, 2, 4), {"groups": 2, "stride": 3, "padding": ((2, 1),)}),
    ((2, 3, 9), (4, 3, 3), {"dilation": 3, "padding": (2,)}),
    ((2, 3, 9), (4, 3, 4), {"dilation": 2, "padding": "same", "stride": 2}),
    ((2, 3, 7), (4, 3, 2), {"stride": 5}),
    ((5, 9), (10, 1, 3), {"groups": 5}),
    ((2, 17, 40), (17, 1, 4), {"groups": 17, "stride": 2, "padding": 3}),
    ((2, 16, 5), (8, 4, 3), {"groups": 4, "stride": 2, "dilation": 2, "padding": 3}),  # a phase of the input that no tap sees
    ((0, 3, 9), (4, 3, 3), {}),
    # 3-D
    ((1, 1, 1, 1, 1), (1, 1, 1, 1, 1), {}),
    ((2, 3, 3, 5, 4), (4, 3, 2, 3, 3), {"padding": (0, 1, 1)}),
    ((1, 17, 2, 4, 3), (3, 17, 1, 3, 2), {"stride": (1, 2, 1)}),
    ((2, 4, 5, 4, 6), (6, 2, 3, 2, 3), {"groups": 2, "dilation": (2, 1, 2), "padding": ((1, 0), (0, 2), (1, 1))}),
    ((1, 3, 5, 4, 3), (2, 3, 3, 3, 3), {"padding": "same", "stride": (2, 1, 3)}),
    ((3, 3, 4, 5), (3, 1, 2, 2, 2), {"groups": 3, "stride": 2}),
    ((1, 12, 5, 3, 6), (6, 4, 3, 3, 3), {"groups": 3, "stride": 2, "padding": 3, "dilation": (1, 2, 1)}),
    ((0, 2, 3, 3, 3), (2, 2, 2, 2, 2), {}),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x,w,options", CASES)
def test_conv(x, w, options, backend, dtype, layout):
    compare(x, w, options, backend=backend, dtype=dtype, layout=layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x,w,options", CASES[::5])
def test_without_bias(x, w, options, backend):
    compare(x, w, options, bias=False, backend=backend)


# every width around the tiles of sliding windows, and the columns that a row of pixels has at its ends
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40])
def test_depthwise_sizes(width, stride, layout):
    for height in (1, 2, 9):
        compare((2, 9, height, width), (9, 1, 3, 3), {"groups": 9, "padding": 1, "stride": stride}, activation="relu", backend="numba",
                layout=layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_depthwise_infinity_stays_in_its_windows(layout):
    """What a vector reads beyond a row's last position must not reach the gradient of the weight."""
    x = np.ones((1, 9, 5, 11), "f4")
    x[..., 10] = np.inf
    if layout == "channels_last":
        x = channels_last(x)
    w = np.ones((9, 1, 1, 2), "f4")
    y, pullback = fastdl.vjp(F.conv2d, x[..., :11], w, groups=9, padding=0)
    assert np.isfinite(y[..., :9]).all() and np.isinf(y[..., 9]).all()
    _, dw = pullback(np.where(np.isfinite(y), 1, 0).astype("f4"))
    assert np.isnan(dw[..., 1]).all()  # 0 x infinity, of a window that holds it
    assert (dw[..., 0] == 45).all()


# two channels, nine by nine: every size up to a tile and a half
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("height", range(1, 10))
def test_sizes(height, backend):
    for width in range(1, 10):
        compare((1, 2, height, width), (3, 2, 3, 3), {"padding": 1}, backend=backend)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "sigmoid", "tanh", "softplus"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_activation(backend, layout, activation):
    compare((2, 3, 6, 5), (4, 3, 3, 3), {"padding": 1}, activation=activation, kind="transcendental", backend=backend, layout=layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation,torch_activation", [
    (("leaky_relu", 0.3), lambda y: torch.nn.functional.leaky_relu(y, 0.3)),
    (("leaky_relu", -0.3), lambda y: torch.nn.functional.leaky_relu(y, -0.3)),
    (("elu", 0.5), lambda y: torch.nn.functional.elu(y, 0.5)),
])
def test_activation_parameter(activation, torch_activation, backend):
    check(F.conv2d, lambda x, w, b: torch_activation(TORCH[2](x, w, b)), operands((2, 3, 6, 5), (4, 3, 3, 3)), {"activation": activation},
          torch_options={}, kind="transcendental", n=27, backend=backend)


@st.composite
def cases(draw):
    n = draw(st.integers(1, 3))
    small = lambda low, high: st.lists(st.integers(low, high), min_size=n, max_size=n)
    groups = draw(st.integers(1, 3))
    kernel, dilation, stride = draw(small(1, 3)), draw(small(1, 2)), draw(small(1, 4))
    pairs = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=n, max_size=n))
    padding = draw(st.sampled_from(["pairs", "same", "valid"]))
    size = [max(s, 1 if padding == "same" else span - (sum(p) if padding == "pairs" else 0))
            for s, span, p in zip(draw(small(1, 7)), spans(kernel, dilation), pairs, strict=True)]
    batch = draw(st.sampled_from([(), (0,), (1,), (3,)]))
    x = (*batch, groups * draw(st.integers(1, 3)), *size)
    w = (groups * draw(st.integers(1, 3)), x[-n - 1] // groups, *kernel)
    # the checker's bound is relative to the result, which the sum behind a lone gradient may cancel; several do not all cancel
    assume(0 in x or min(math.prod(x), math.prod(w)) >= 6)
    options = {"stride": stride, "dilation": dilation, "groups": groups, "padding": tuple(pairs) if padding == "pairs" else padding}
    return x, w, options, draw(st.booleans()), draw(st.integers(0, 99))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=cases(), layout=st.sampled_from(LAYOUTS))
def test_any_case(backend, case, layout):
    x, w, options, bias, seed = case
    compare(x, w, options, bias=bias, seed=seed, backend=backend, layout=layout, dtype="f8")


# (channels, outputs, groups, kernel, options): one and seventeen channels, remainders of any tile, few channels, small groups, depthwise
FORCED = [
    (1, 1, 1, 1, {}), (1, 17, 1, 3, {"padding": 1}), (17, 1, 1, 5, {"padding": 2}), (17, 34, 1, 3, {"padding": 1}),
    (3, 40, 1, 4, {"stride": 2}), (17, 33, 1, 1, {"stride": 2}), (8, 9, 1, 2, {"stride": 2, "padding": 1}),
    (6, 12, 3, 3, {"padding": 2}), (17, 17, 17, 3, {"padding": 1}),
    (5, 10, 5, 5, {"stride": 2, "padding": 2}), (4, 7, 1, 3, {"dilation": 2, "padding": 3}),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "auto"])
def test_every_algorithm_on_the_same_cases(algorithm, layout, monkeypatch):
    """Forward and every gradient at 1 to 20 rows, and for no image; what one cannot serve, another one does."""
    served, pick = set(), numba_backend._pick

    def spy(asked, ways):
        run = pick(asked, ways)
        served.update(name for name, _, plan in ways if name == asked and plan() is not None)
        return run

    monkeypatch.setattr(numba_backend, "_pick", spy)
    monkeypatch.setattr(numba_backend, "_plans", {})
    for height in range(1, 21):
        for channels, outputs, groups, kernel, options in (FORCED[height % 11], FORCED[height * 7 % 11]):
            if height + 2 * options.get("padding", 0) < (kernel - 1) * options.get("dilation", 1) + 1:
                continue
            x, w = (height % 3, channels, height, (height * 13) % 37 + 4), (outputs, channels // groups, kernel, kernel)
            kind = "winograd" if algorithm in ("winograd", "lines") else "sum"
            compare(x, w, {**options, "groups": groups, "algorithm": algorithm}, kind=kind, backend="numba", layout=layout, dtype="f4",
                    seed=height)
    assert served == ({algorithm} if algorithm != "direct" else set())


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
def test_few_channels_along_lines(size, activation):
    """Widths with and without a rest, bands of lines, one vector of tiles and several: as accurate as a direct sum, the same bits on any
    number of threads, and the choice for first layers."""
    threads = fastdl.get_num_threads()
    try:
        for N, C, H, W, K, padding in [(3, 1, 28, 28, 32, size // 2), (1, 3, 61, 64, 25, (0, 2)), (2, 2, 7, 30, 9, 1),
                                       (1, 4, 40, 33, 24, (3, 4)), (1, 1, 5, 5, 3, 0), (1, 3, 200, 132, 24, 1)]:
            x, w, bias = (a.astype("f4") for a in operands((N, C, H, W), (K, C, size, size)))
            want = torch_conv(activation, padding=padding)(*(torch.from_numpy(a).double() for a in (x, w, bias))).numpy()
            answers = []
            for count in (1, 2, 5):
                fastdl.set_num_threads(count)
                answers.append(F.conv2d(x, w, bias, padding=padding, activation=activation, algorithm="lines"))
            assert np.linalg.norm(answers[0] - want) <= 2e-6 * np.linalg.norm(want), (N, C, H, W, K)
            for got in answers[1:]:
                np.testing.assert_array_equal(got, answers[0])
    finally:
        fastdl.set_num_threads(threads)
    x, w = np.empty((2, 1, 28, 28), "f4"), np.empty((32, 1, size, size), "f4")
    for name, chosen in (("auto", True), ("direct", False)):
        (x5, w5, _), params, _ = F.conv2d.prepare(x, w, padding=size // 2, algorithm=name)
        run = numba_backend._convolution(x5, w5, params, (2, 32, *params.out), False, (0, 1))
        assert (run.__module__ == numba_lines_plan.__name__) is chosen


TURNED = [(1, 1, 1, 2), (3, 5, 17, 5), (1, 37, 16, 7), (1, 70, 64, 15), (2, 400, 33, 49), (1, 9, 50, 97), (1, 800, 40, 196),
          (1, 30, 1100, 196)]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("N,C,K,pixels", TURNED)
def test_few_pixels_against_a_packed_weight(N, C, K, pixels, dtype, monkeypatch):
    """1 x 1 whose product is made pixel by pixel and turned: the same bits on any number of threads, NaN where it belongs."""
    monkeypatch.setattr(numba_pointwise, "TURNED_GAIN", 0.9)
    monkeypatch.setattr(numba_backend, "_plans", {})
    x, w, bias = (a.astype(dtype) for a in operands((N, C, pixels), (K, C, 1)))
    x[-1, C // 2, pixels // 2] = np.nan
    packed = fastdl.pack(w)
    z = np.einsum("ncp,kc->nkp", x.astype("f8"), w[:, :, 0].astype("f8"))
    threads = fastdl.get_num_threads()
    try:
        for b, activation in ((None, None), (bias, None), (bias, "relu"), (None, "tanh"), (bias, "tanh")):
            want = z if b is None else z + b[:, None].astype("f8")
            want = want if activation is None else np.tanh(want) if activation == "tanh" else np.maximum(want, 0)
            answers = []
            for count in (1, 2, 5):
                fastdl.set_num_threads(count)
                answers.append(F.conv1d(x, packed, b, activation=activation, algorithm="gemm"))
            assert_close(answers[0], want, "sum", C)
            for got in answers[1:]:
                np.testing.assert_array_equal(got, answers[0])
    finally:
        fastdl.set_num_threads(threads)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_is_tensorflows(backend, stride):
    """Sizes are ceil(in / stride), and the odd cell goes after: a one-hot kernel shows where the first cell lands."""
    with fastdl.use_backend(backend):
        for size in range(1, 9):
            for k in range(1, 6):
                y = F.conv2d(np.ones((1, 1, size, size)), np.ones((1, 1, k, k)), stride=stride, padding="same")
                assert y.shape == (1, 1, -(-size // stride[0]), -(-size // stride[1]))
        first = np.zeros((1, 1, 4))
        first[..., 0] = 1
        # two cells of kernel, stride one: nothing before, one zero after
        np.testing.assert_array_equal(F.conv1d(np.array([[1.0, 2, 3]]), first[..., :2], padding="same"), [[1, 2, 3]])
        # four cells of kernel, stride one: one zero before, two after
        np.testing.assert_array_equal(F.conv1d(np.array([[1.0, 2, 3]]), first, padding="same"), [[0, 1, 2]])
        # three cells of kernel, stride two, an even size: nothing before, one zero after
        np.testing.assert_array_equal(F.conv1d(np.array([[1.0, 2, 3, 4]]), first[..., :3], stride=2, padding="same"), [[1, 3]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_equals_torch_at_stride_one(backend):
    for k, dilation in [((3, 3), 1), ((2, 4), 1), ((3, 2), 3)]:
        check(F.conv2d, TORCH[2], operands((2, 3, 6, 5), (4, 3, *k)), {"padding": "same", "dilation": dilation}, n=3 * k[0] * k[1],
              backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity(backend, value):
    """They reach the outputs whose windows hold them, and no others."""
    arrays = operands((2, 3, 7, 6), (4, 3, 3, 3))
    arrays[0][1, 2, 3, 0] = value
    check(F.conv2d, TORCH[2], arrays, {"padding": 1}, n=27, backend=backend, gradients=False)
    check(F.conv2d, TORCH[2], arrays, {"stride": 4}, n=27, backend=backend, gradients=False)
    with fastdl.use_backend(backend):
        y = F.conv2d(*arrays, stride=4, activation="relu")
        assert np.isfinite(y).all()  # no window holds it: they start at row 0 and row 4
        y, pullback = fastdl.vjp(F.conv2d, *arrays, padding=1)
        dx, dw, db = pullback(np.ones_like(y))
        assert np.isfinite(dx).all() and np.isfinite(db).all()
        assert not np.isfinite(dw[:, 2]).all() and np.isfinite(dw[:, :2]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_weight_meets_data(backend):
    arrays = operands((1, 2, 4, 4), (3, 2, 3, 3))
    arrays[1][1, 0, 1, 1] = -np.inf
    check(F.conv2d, TORCH[2], arrays, n=18, backend=backend, gradients=False)


# ------------------------------------------------------------------------------------------------ layout
def is_last(a):
    """Channels fastest and dense, for (N, C, ...)."""
    return np.moveaxis(a, 1, -1).flags.c_contiguous


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x,w", [((2, 3, 5, 4), (4, 3, 3, 3)), ((2, 3, 9), (4, 3, 3)), ((2, 3, 4, 5, 4), (4, 3, 3, 3, 3))])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_answers_in_kind(x, w, activation, backend):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(x).astype("f4"), rng.standard_normal(w).astype("f4")
    op = OURS[w.ndim - 2]
    with fastdl.use_backend(backend):
        for lay, kept in ((channels_last, is_last), (np.ascontiguousarray, lambda a: a.flags.c_contiguous)):
            y, pullback = fastdl.vjp(op, lay(x), w, activation=activation)
            assert kept(y) and kept(op(lay(x), w, activation=activation)) and kept(op(lay(x)[:1], w, activation=activation))
            unbatched = op(lay(x)[0], w, activation=activation)
            assert kept(unbatched[None])
            dx, _ = pullback(np.ones_like(y))
            assert kept(dx)
        # a crop of a channels-last image is one too
        assert is_last(op(channels_last(x)[..., 1:], w))
    # the kernel sees the memory it was given, in five dimensions
    seen = op.prepare(channels_last(x), w).arrays[0]
    assert seen.ndim == 5 and np.shares_memory(seen, op.prepare(seen.reshape(x.shape), w).arrays[0]) and is_channels_last(seen)


def test_is_channels_last():
    last = channels_last(np.zeros((2, 3, 4, 5, 6)))
    assert is_channels_last(last) and is_channels_last(last[:1]) and is_channels_last(last[:, :, ::2, 1:-1, ::-1])
    for a in (np.zeros((2, 3, 4, 5, 6)), channels_last(np.zeros((2, 1, 4, 5, 6))), channels_last(np.zeros((2, 3, 1, 1, 1))),
              np.zeros((2, 3, 4, 5, 6), order="F"), last[:, ::2], np.zeros((0, 3, 4, 5, 6))):
        assert not is_channels_last(a)


def test_prepare_makes_views():
    x, w, b = (a.astype("f4") for a in operands((3, 5, 4), (6, 1, 2, 3)))
    arrays, params, shapes = F.conv2d.prepare(x, w, b, (1, 2), ((1, 0), (2, 1)), 2, 3)
    assert [a.shape for a in arrays] == [(1, 3, 1, 5, 4), (6, 1, 1, 2, 3), (6,)]
    assert all(np.shares_memory(a, given) for a, given in zip(arrays, (x, w, b), strict=True))
    assert params == (2, (1, 1, 2), ((0, 0), (1, 0), (2, 1)), (1, 2, 2), 3, (1, 4, 2), None, "auto")
    assert shapes == (6, 4, 2)
    hash(params)


# ------------------------------------------------------------------------------------------------ calls
@pytest.mark.parametrize("backend", BACKENDS)
def test_needs(backend):
    x, w, b = operands((2, 3, 6, 5), (4, 3, 3, 3))
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(F.conv2d, x, w, b)
        full = pullback(np.ones_like(y))
        for i in range(3):
            needs = tuple(i == j for j in range(3))
            grads = pullback(np.ones_like(y), needs=needs)
            assert [g is not None for g in grads] == list(needs)
            np.testing.assert_array_equal(grads[i], full[i])
        _, pullback = fastdl.vjp(F.conv2d, x, w)
        assert len(pullback(1.0)) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_unaligned(backend):
    arrays = [np.frombuffer(b"\0" + a.astype("f4").tobytes(), "f4", a.size, 1).reshape(a.shape)
              for a in operands((2, 3, 6, 5), (4, 3, 3, 3))]
    assert not arrays[0].flags.aligned
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(F.conv2d, *arrays, padding=1)
        want, expected = fastdl.vjp(F.conv2d, *map(np.array, arrays), padding=1)
        np.testing.assert_array_equal(y, want)
        for g, e in zip(pullback(np.ones_like(y)), expected(np.ones_like(y)), strict=True):
            np.testing.assert_array_equal(g, e)


X, W, B = np.zeros((2, 4, 5, 5), "f4"), np.zeros((6, 4, 3, 3), "f4"), np.zeros(6, "f4")
BAD = [
    (([1.0], W), {}, TypeError, "conv2d: input must be a numpy array or a torch tensor, got list"),
    ((X, torch.zeros(6, 4, 3, 3)), {}, TypeError, "conv2d: weight is a torch tensor and another argument is a numpy array"),
    ((torch.zeros(2, 4, 5, 5), W), {}, TypeError, "conv2d: weight is a numpy array and input is a torch tensor"),
    ((X.astype("i4"), W), {}, TypeError, "conv2d: input has dtype int32; the rule is float32 or float64"),
    ((X.astype("f2"), W), {}, TypeError, "conv2d: input has dtype float16"),
    ((X.astype("f8"), W), {}, TypeError, "conv2d: weight is float32, input is float64; the rule is one dtype for all"),
    ((X, W, B.astype("f8")), {}, TypeError, "conv2d: bias is float64, input is float32"),
    ((X.astype(">f4"), W), {}, TypeError, "conv2d: input has a byte order"),
    ((X[0, 0], W), {}, ValueError, r"conv2d: input has 2 dimensions \(5, 5\); the rule is 3 or 4"),
    ((X, W[0]), {}, ValueError, r"conv2d: weight has 3 dimensions \(4, 3, 3\); the rule is 4"),
    ((X, W[:, :3]), {}, ValueError, r"conv2d: weight has 3 input channels per group, input has 4 \(groups=1\)"),
    ((X, W), {"groups": 2}, ValueError, r"conv2d: weight has 4 input channels per group, input has 4 \(groups=2\)"),
    ((X, W[:, :1]), {"groups": 3}, ValueError, "conv2d: input has 4 channels, groups is 3; the rule is that groups divides them"),
    ((X, W[:, :1]), {"groups": 4}, ValueError, "conv2d: weight has 6 output channels, groups is 4; the rule is that groups divides them"),
    ((X, W), {"groups": 0}, ValueError, "conv2d: groups is 0; the rule is at least 1"),
    ((X, W), {"groups": 1.0}, TypeError, "conv2d: groups must be an integer, got 1.0"),
    ((X, W, B[:5]), {}, ValueError, r"conv2d: bias has shape \(5,\); the rule is one entry for each of the 6 output channels"),
    ((X, W, B[None]), {}, ValueError, r"conv2d: bias has 2 dimensions \(1, 6\); the rule is 1"),
    ((X, W[..., :0]), {}, ValueError, r"conv2d: weight has shape \(6, 4, 3, 0\); the rule is that no size is 0"),
    ((X, W[:0]), {}, ValueError, r"conv2d: weight has shape \(0, 4, 3, 3\); the rule is that no size is 0"),
    ((X[:, :, :0], W), {"padding": 3}, ValueError, r"conv2d: input has shape \(2, 4, 0, 5\); the rule is that no size but the batch's"),
    ((X[:, :0], W), {}, ValueError, r"conv2d: input has shape \(2, 0, 5, 5\); the rule is that no size but the batch's is 0"),
    ((X, W), {"stride": 0}, ValueError, "conv2d: stride is 0; the rule is at least 1"),
    ((X, W), {"stride": (1, -1)}, ValueError, "conv2d: stride is -1; the rule is at least 1"),
    ((X, W), {"stride": (1, 1, 1)}, ValueError, "conv2d: stride has 3 entries; the rule is an integer or 2 of them"),
    ((X, W), {"stride": 1.5}, TypeError, "conv2d: stride must be an integer, got 1.5"),
    ((X, W), {"dilation": 0}, ValueError, "conv2d: dilation is 0; the rule is at least 1"),
    ((X, W), {"dilation": "2"}, TypeError, "conv2d: dilation must be an integer, got '2'"),
    ((X, W), {"padding": -1}, ValueError, "conv2d: padding is -1; the rule is at least 0"),
    ((X, W), {"padding": (0, -2)}, ValueError, "conv2d: padding is -2; the rule is at least 0"),
    ((X, W), {"padding": ((0, 1), (-3, 0))}, ValueError, "conv2d: padding is -3; the rule is at least 0"),
    ((X, W), {"padding": (1, 1, 1)}, ValueError, r"conv2d: padding is \(1, 1, 1\); the rule is an integer, 2 integers, 2 pairs"),
    ((X, W), {"padding": ((1, 1, 1), (1, 1, 1))}, ValueError, r"conv2d: padding is \(\(1, 1, 1\), \(1, 1, 1\)\); the rule is"),
    ((X, W), {"padding": ()}, ValueError, r"conv2d: padding is \(\); the rule is an integer"),
    ((X, W), {"padding": 0.5}, TypeError, "conv2d: padding must be an integer, got 0.5"),
    ((X, W), {"padding": ((1, "a"), (1, 1))}, TypeError, "conv2d: padding must be an integer, got 'a'"),
    ((X, W), {"padding": "full"}, ValueError, "conv2d: padding is 'full'; the rule is one of 'valid', 'same'"),
    ((X, W), {"padding": None}, TypeError, "conv2d: padding must be an integer, got None"),
    ((X[:, :, :1, :1], np.zeros((6, 4, 5, 5), "f4")), {"padding": 1}, ValueError,
     r"conv2d: kernel size \(5, 5\) is larger than the padded input \(3, 3\)"),
    ((X, W), {"dilation": (1, 3)}, ValueError,
     r"conv2d: kernel size \(3, 7\) with dilation \(1, 3\) is larger than the padded input \(5, 5\)"),
    ((X, W), {"activation": "swish"}, ValueError, "conv2d: activation is 'swish'; the rule is one of"),
    ((X, W), {"activation": ("relu", 1)}, ValueError, "conv2d: activation 'relu' takes no parameter"),
    ((X, W), {"algorithm": "fft"}, ValueError, "conv2d: algorithm is 'fft'; the rule is one of 'auto', 'direct', 'winograd', 'gemm'"),
]


@pytest.mark.parametrize("arrays,options,error,message", BAD)
def test_bad_input(arrays, options, error, message):
    with pytest.raises(error, match=message):
        F.conv2d(*arrays, **options)


def test_bad_input_of_other_ranks():
    with pytest.raises(ValueError, match=r"conv1d: input has 4 dimensions \(2, 4, 5, 5\); the rule is 2 or 3"):
        F.conv1d(X, W[0])
    with pytest.raises(ValueError, match=r"conv1d: padding is \(1, 2\); the rule is an integer, 1 integers, 1 pairs"):
        F.conv1d(X[0], np.zeros((6, 5, 3), "f4"), padding=(1, 2))
    with pytest.raises(ValueError, match="conv3d: weight has 4 dimensions"):
        F.conv3d(X[None], W)


def test_a_refusal_is_not_remembered_as_an_answer():
    """The shape rule is remembered; 1.0 and True equal 1, and must be judged all the same."""
    F.conv2d(X, W, stride=(1, 1))
    with pytest.raises(TypeError, match="stride must be an integer"):
        F.conv2d(X, W, stride=(1, 1.0))
    for _ in range(2):
        with pytest.raises(ValueError, match="larger than the padded input"):
            F.conv2d(X, W, dilation=9)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("f,x,w,options", [
    (F.conv2d, (2, 3, 40, 45), (20, 3, 5, 5), {"padding": 2}),  # few channels
    (F.conv2d, (2, 3, 40, 44), (24, 3, 5, 5), {"padding": 2}),  # along lines
    (F.conv2d, (2, 24, 30, 31), (24, 1, 3, 3), {"groups": 24, "padding": 1, "stride": 2}),
    (F.conv2d, (3, 32, 15, 14), (40, 32, 5, 5), {"padding": 2}),  # rows of pixels
    (F.conv2d, (2, 48, 17, 19), (70, 48, 1, 1), {}),
    (F.conv2d, (2, 32, 9, 9), (33, 32, 3, 3), {"padding": 1}),  # Winograd
    (F.conv2d, (1, 24, 20, 20), (48, 12, 3, 3), {"groups": 2}),
    (F.conv3d, (1, 8, 6, 9, 10), (16, 8, 3, 3, 3), {"padding": 1}),
    (F.conv_transpose2d, (2, 40, 9, 8), (40, 20, 5, 5), {"stride": 2, "padding": 2}),
])
def test_any_number_of_threads(f, x, w, options, layout):
    """The same bits, however images, rows and channels are shared out."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(x).astype("f4"), rng.standard_normal(w).astype("f4")
    if layout == "channels_last":
        x = channels_last(x)

    def run():
        y, pullback = fastdl.vjp(f, x, w, **options)
        return [y, *pullback(np.cos(y))]

    threads = fastdl.get_num_threads()
    try:
        fastdl.set_num_threads(1)
        want = run()
        for count in (2, 3):
            fastdl.set_num_threads(count)
            for got, expected in zip(run(), want, strict=True):
                np.testing.assert_array_equal(got, expected)
    finally:
        fastdl.set_num_threads(threads)
