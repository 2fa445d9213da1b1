"""conv_transpose1d, 2d and 3d against torch; padding beyond torch's is cut off, or added to, the full output there."""

import math

import numpy as np
import pytest
import torch
from checker import channels_last, check
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastdl
import fastdl.functional as F
from fastdl.ops.conv.geometry import ALGORITHMS

BACKENDS = ["reference", "numba"]
LAYOUTS = ["contiguous", "strided", "channels_last"]
OURS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TORCH = {1: torch.nn.functional.conv_transpose1d, 2: torch.nn.functional.conv_transpose2d, 3: torch.nn.functional.conv_transpose3d}


def each(value, n):
    return (value,) * n if isinstance(value, int) else tuple(value)


def cuts(padding, size, kernel, stride, dilation):
    """What padding cuts off (below 0: adds) before and after each dimension of the full output."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        found = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            before = max((k - 1) * d + 1 - s, 0) // 2
            found.append((before, (n - 1) * s + (k - 1) * d + 1 - before - n * s))
        return found
    return [p if isinstance(p, tuple) else (p, p) for p in each(padding, len(size))]


def torch_conv_transpose(activation=None, **options):
    """torch's transposed convolution with our padding and activation."""

    def call(x, w, b=None):
        n = w.ndim - 2
        stride, dilation = each(options.get("stride", 1), n), each(options.get("dilation", 1), n)
        full = TORCH[n](x, w, None, stride, 0, 0, options.get("groups", 1), dilation)
        pairs = cuts(options.get("padding", 0), x.shape[-n:], w.shape[2:], stride, dilation)
        extra = each(options.get("output_padding", 0), n)
        # add before cutting: with output_padding, the cut before may pass the full output's end
        added = torch.nn.functional.pad(full, [p for (_, after), e in zip(reversed(pairs), reversed(extra), strict=True)
                                               for p in (0, e + max(-after, 0))])
        y = torch.nn.functional.pad(added, [-p for before, after in reversed(pairs) for p in (before, max(after, 0))])
        if b is not None:
            y = y + b[(slice(None),) + (None,) * n]
        return getattr(torch.nn.functional, activation)(y) if activation else y

    return call


def operands(x, w, groups=1, bias=True, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(x), rng.standard_normal(w), rng.standard_normal(w[1] * groups) if bias else None]


def compare(x, w, options=None, *, bias=True, activation=None, seed=0, kind="sum", torch_op=None, **how):
    options = options or {}
    groups = options.get("groups", 1)
    ours = {**options, "activation": activation} if activation else options
    return check(OURS[len(w) - 2], torch_op or torch_conv_transpose(activation, **options), operands(x, w, groups, bias, seed), ours,
                 torch_options=options if torch_op else {}, kind=kind, n=w[0] // groups * math.prod(w[2:]), **how)


# what torch can say itself: (input, weight, options)
PLAIN = [
    # 2-D
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((2, 17, 5, 4), (17, 9, 1, 1), {}),
    ((2, 17, 3, 5), (17, 3, 3, 3), {"padding": 1}),
    ((1, 1, 7, 6), (1, 17, 5, 5), {"stride": 2, "padding": 2, "output_padding": 1}),
    ((2, 4, 3, 5), (4, 5, 2, 2), {"stride": 2}),
    ((2, 4, 5, 3), (4, 5, 4, 4), {"stride": 2, "padding": 1}),
    ((2, 3, 4, 3), (3, 2, 2, 1), {"stride": (4, 3)}),  # output cells that no kernel position reaches
    ((2, 3, 4, 3), (3, 2, 2, 3), {"stride": (5, 2), "output_padding": (4, 1), "padding": (0, 2)}),
    ((2, 3, 4, 5), (3, 2, 3, 2), {"dilation": (2, 3), "padding": (1, 0), "output_padding": (1, 2)}),  # smaller than dilation
    ((2, 3, 4, 5), (3, 2, 3, 3), {"dilation": 2, "stride": 3, "output_padding": 2}),
    ((2, 6, 4, 5), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    ((2, 17, 4, 3), (17, 1, 3, 3), {"groups": 17, "stride": 2, "padding": 1}),  # depthwise
    ((2, 5, 4, 3), (5, 3, 2, 3), {"groups": 5}),  # depthwise, three outputs a channel
    ((3, 4, 5), (3, 2, 3, 3), {"stride": 2}),  # unbatched
    ((0, 3, 4, 5), (3, 2, 3, 3), {"stride": 2, "padding": 1}),  # empty batch
    ((1, 3, 1, 1), (3, 2, 3, 3), {"padding": 1}),
    # 1-D
    ((1, 1, 1), (1, 1, 1), {}),
    ((2, 17, 9), (17, 3, 3), {"padding": 1}),
    ((3, 4, 6), (4, 3, 5), {"groups": 2, "stride": 3, "padding": 2, "output_padding": 2}),
    ((2, 3, 4), (3, 2, 2), {"stride": 5, "dilation": 2}),
    ((4, 6), (4, 1, 3), {"groups": 4}),
    ((0, 3, 4), (3, 2, 3), {}),
    # 3-D
    ((1, 1, 1, 1, 1), (1, 1, 1, 1, 1), {}),
    ((2, 3, 2, 4, 3), (3, 4, 3, 2, 3), {"stride": (1, 2, 3), "padding": (1, 0, 1), "output_padding": (0, 1, 2)}),
    ((1, 4, 3, 2, 3), (4, 3, 2, 3, 2), {"groups": 2, "dilation": (2, 1, 2)}),
    ((3, 2, 3, 4), (3, 2, 2, 2, 2), {"stride": 2}),
    ((0, 2, 3, 3, 3), (2, 2, 2, 2, 2), {}),
]
# padding beyond torch's
BEYOND = [
    ((2, 3, 4, 5), (3, 2, 3, 3), {"padding": ((1, 0), (0, 2))}),
    ((2, 3, 4, 5), (3, 2, 4, 3), {"padding": [(0, 2), 1], "stride": 2, "output_padding": (1, 0)}),
    ((2, 3, 3, 2), (3, 2, 3, 3), {"padding": ((0, 0), (3, 0)), "stride": 3, "output_padding": 2}),
    # the cut before passes the kernel's reach
    ((2, 3, 1, 5), (3, 2, 3, 3), {"padding": ((6, 0), 0), "stride": 3, "dilation": 2, "output_padding": 2}),
    ((2, 3, 4, 5), (3, 2, 3, 3), {"padding": "valid", "stride": 2}),
    ((2, 3, 4, 5), (3, 2, 3, 3), {"padding": "same"}),
    ((2, 3, 4, 5), (3, 2, 3, 4), {"padding": "same", "stride": 2}),
    ((2, 3, 4, 3), (3, 2, 1, 2), {"padding": "same", "stride": (2, 5)}),  # a kernel shorter than the stride
    ((2, 4, 4, 3), (4, 2, 3, 2), {"padding": "same", "stride": (1, 2), "dilation": (3, 2), "groups": 2}),
    ((2, 3, 4), (3, 2, 5), {"padding": "same", "stride": 2}),
    ((2, 3, 4), (3, 2, 5), {"padding": ((3, 1),), "stride": 2}),
    ((1, 2, 2, 3, 4), (2, 3, 3, 2, 4), {"padding": "same", "stride": (1, 3, 2)}),
    ((1, 2, 2, 3, 4), (2, 3, 3, 2, 4), {"padding": ((1, 1), (0, 1), (3, 0))}),
    ((3, 4, 5), (3, 2, 3, 3), {"padding": "same", "stride": 2}),
    ((0, 3, 4, 5), (3, 2, 3, 3), {"padding": "same", "stride": 2}),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x,w,options", PLAIN)
def test_as_torch(x, w, options, backend, dtype, layout):
    compare(x, w, options, torch_op=TORCH[len(w) - 2], backend=backend, dtype=dtype, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x,w,options", BEYOND)
def test_padding_beyond_torch(x, w, options, backend, dtype, layout):
    compare(x, w, options, backend=backend, dtype=dtype, layout=layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x,w,options", PLAIN[::4] + BEYOND[::4])
def test_without_bias(x, w, options, backend):
    compare(x, w, options, bias=False, backend=backend)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("height", [1, 2, 5, 8, 9])
def test_sizes(height, backend, stride):
    for width in range(1, 10):
        compare((1, 2, height, width), (2, 3, 3, 3), {"padding": 1, "stride": stride}, backend=backend)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "sigmoid", "tanh", "softplus"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_activation(backend, layout, activation):
    compare((2, 3, 4, 5), (3, 4, 3, 3), {"stride": 2, "padding": 1}, activation=activation, kind="transcendental", backend=backend,
            layout=layout)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x,w,options", PLAIN[2:6])
def test_algorithm(x, w, options, backend, algorithm):
    compare(x, w, {**options, "algorithm": algorithm}, torch_op=lambda x, w, b, algorithm, **rest: TORCH[2](x, w, b, **rest),
            kind="winograd", backend=backend)


@st.composite
def cases(draw):
    n = draw(st.integers(1, 3))
    small = lambda low, high: st.lists(st.integers(low, high), min_size=n, max_size=n)
    groups = draw(st.integers(1, 3))
    size, kernel, dilation, stride = draw(small(1, 5)), draw(small(1, 3)), draw(small(1, 2)), draw(small(1, 4))
    options = {"stride": stride, "dilation": dilation, "groups": groups, "padding": draw(st.sampled_from(["same", "valid", "pairs"]))}
    if options["padding"] != "same":
        options["output_padding"] = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    if options["padding"] == "pairs":
        pairs = []
        for m, k, s, d, e in zip(size, kernel, stride, dilation, options["output_padding"], strict=True):
            before = draw(st.integers(0, (m - 1) * s + (k - 1) * d + e))
            pairs.append((before, draw(st.integers(0, (m - 1) * s + (k - 1) * d + e - before))))
        options["padding"] = tuple(pairs)
    channels = groups * draw(st.integers(1, 3))
    x = (*draw(st.sampled_from([(), (0,), (1,), (3,)])), channels, *size)
    w = (channels, draw(st.integers(1, 3)), *kernel)
    # the checker's bound is relative to the result, which the sum behind a lone gradient may cancel; several do not all cancel
    assume(0 in x or min(math.prod(x), math.prod(w)) >= 6)
    return x, w, options, draw(st.booleans()), draw(st.integers(0, 99))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=cases(), layout=st.sampled_from(LAYOUTS))
def test_any_case(backend, case, layout):
    x, w, options, bias, seed = case
    compare(x, w, options, bias=bias, seed=seed, backend=backend, layout=layout, dtype="f8")


@pytest.mark.parametrize("padding", ["same", "valid", ((2, 0), (1, 1))])
@pytest.mark.parametrize("stride,dilation", [(1, 1), (2, 1), (3, 2), ((1, 4), (2, 1))])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_data_gradient_of_conv(backend, stride, dilation, padding):
    """One rule for both: with the sizes of a convolution turned round, the transpose is its data gradient."""
    rng = np.random.default_rng(0)
    dy, w = rng.standard_normal((2, 4, 3, 2)), rng.standard_normal((4, 3, 2, 3))
    with fastdl.use_backend(backend):
        x = F.conv_transpose2d(dy, w, stride=stride, dilation=dilation, padding=padding)
        if padding == "same":
            assert x.shape[2:] == tuple(n * s for n, s in zip(dy.shape[2:], each(stride, 2), strict=True))
        y, pullback = fastdl.vjp(F.conv2d, np.zeros_like(x), w, stride=stride, dilation=dilation, padding=padding)
        assert y.shape == dy.shape
        np.testing.assert_allclose(x, pullback(dy)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity(backend, value):
    """They reach the outputs that the kernel puts them on, and no others."""
    arrays = operands((2, 3, 4, 5), (3, 2, 3, 3))
    arrays[0][1, 2, 0, 3] = value
    check(F.conv_transpose2d, TORCH[2], arrays, {"stride": 2}, n=27, backend=backend, gradients=False)
    with fastdl.use_backend(backend):
        y = F.conv_transpose2d(*arrays, stride=2)
        assert not np.isfinite(y[1, :, :3, 6:9]).any() and np.isfinite(y).sum() == y.size - 2 * 3 * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("x,w", [((2, 3, 5, 4), (3, 4, 3, 3)), ((2, 3, 9), (3, 4, 3)), ((2, 3, 4, 5, 4), (3, 4, 3, 3, 3))])
def test_answers_in_kind(x, w, backend):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(x).astype("f4"), rng.standard_normal(w).astype("f4")
    op = OURS[w.ndim - 2]
    with fastdl.use_backend(backend):
        for lay, kept in ((channels_last, lambda a: np.moveaxis(a, 1, -1).flags.c_contiguous),
                          (np.ascontiguousarray, lambda a: a.flags.c_contiguous)):
            y, pullback = fastdl.vjp(op, lay(x), w, stride=2, activation="relu")
            assert kept(y) and kept(op(lay(x), w)) and kept(op(lay(x)[0], w)[None])
            assert kept(pullback(np.ones_like(y))[0])


def test_prepare_makes_views():
    x, w, b = (a.astype("f4") for a in operands((2, 4, 5), (4, 3, 3), 2))
    arrays, params, shapes = F.conv_transpose1d.prepare(x, w, b, 3, ((2, 0),), 1, 2, 2)
    assert [a.shape for a in arrays] == [(2, 4, 1, 1, 5), (4, 3, 1, 1, 3), (6,)]
    assert all(np.shares_memory(a, given) for a, given in zip(arrays, (x, w, b), strict=True))
    assert params == (1, (1, 1, 3), ((0, 0), (0, 0), (2, 0)), (1, 1, 2), 2, (1, 1, 16), None, "auto")
    assert shapes == (2, 6, 16)


X, W, B = np.zeros((2, 4, 5, 5), "f4"), np.zeros((4, 6, 3, 3), "f4"), np.zeros(6, "f4")
BAD = [
    (([1.0], W), {}, TypeError, "conv_transpose2d: input must be a numpy array or a torch tensor, got list"),
    ((X, torch.zeros(4, 6, 3, 3)), {}, TypeError, "conv_transpose2d: weight is a torch tensor and another argument is a numpy array"),
    ((X.astype("i4"), W), {}, TypeError, "conv_transpose2d: input has dtype int32; the rule is float32 or float64"),
    ((X.astype("f8"), W), {}, TypeError, "conv_transpose2d: weight is float32, input is float64; the rule is one dtype for all"),
    ((X, W, B.astype("f8")), {}, TypeError, "conv_transpose2d: bias is float64, input is float32"),
    ((X[0, 0], W), {}, ValueError, r"conv_transpose2d: input has 2 dimensions \(5, 5\); the rule is 3 or 4"),
    ((X, W[0]), {}, ValueError, r"conv_transpose2d: weight has 3 dimensions \(6, 3, 3\); the rule is 4"),
    ((X, W[:3]), {}, ValueError, "conv_transpose2d: weight has 3 input channels, input has 4; the rule for weight"),
    ((X, W), {"groups": 3}, ValueError, "conv_transpose2d: input has 4 channels, groups is 3; the rule is that groups divides them"),
    ((X, W), {"groups": 0}, ValueError, "conv_transpose2d: groups is 0; the rule is at least 1"),
    ((X, W, B), {"groups": 2}, ValueError, r"conv_transpose2d: bias has shape \(6,\); the rule is one entry for each of the 12 output"),
    ((X, W[..., :0]), {}, ValueError, r"conv_transpose2d: weight has shape \(4, 6, 3, 0\); the rule is that no size is 0"),
    ((X, W[:, :0]), {}, ValueError, r"conv_transpose2d: weight has shape \(4, 0, 3, 3\); the rule is that no size is 0"),
    ((X[:, :, :0], W), {}, ValueError, r"conv_transpose2d: input has shape \(2, 4, 0, 5\); the rule is that no size but the batch's"),
    ((X, W), {"stride": 0}, ValueError, "conv_transpose2d: stride is 0; the rule is at least 1"),
    ((X, W), {"dilation": (0, 1)}, ValueError, "conv_transpose2d: dilation is 0; the rule is at least 1"),
    ((X, W), {"padding": -1}, ValueError, "conv_transpose2d: padding is -1; the rule is at least 0"),
    ((X, W), {"padding": (1, 1, 1)}, ValueError, r"conv_transpose2d: padding is \(1, 1, 1\); the rule is an integer, 2 integers, 2 pairs"),
    ((X, W), {"padding": "full"}, ValueError, "conv_transpose2d: padding is 'full'; the rule is one of 'valid', 'same'"),
    ((X, W), {"padding": 4}, ValueError, r"conv_transpose2d: the output size is \(-1, -1\); the rule is at least 1, \(input - 1\)"),
    ((X, W), {"padding": ((5, 2), (0, 0))}, ValueError, r"conv_transpose2d: the output size is \(0, 7\); the rule is at least 1"),
    ((X, W), {"output_padding": -1}, ValueError, "conv_transpose2d: output_padding is -1; the rule is at least 0"),
    ((X, W), {"output_padding": 1}, ValueError,
     r"conv_transpose2d: output_padding is \(1, 1\), stride is \(1, 1\), dilation is \(1, 1\); the rule is"),
    ((X, W), {"output_padding": (2, 3), "stride": 3, "dilation": 2}, ValueError, "smaller than stride or dilation"),
    ((X, W), {"output_padding": (0, 1), "stride": 2, "padding": "same"}, ValueError,
     r"conv_transpose2d: output_padding is \(0, 1\); the rule is 0 with padding='same'"),
    ((X, W), {"activation": "swish"}, ValueError, "conv_transpose2d: activation is 'swish'; the rule is one of"),
    ((X, W), {"algorithm": "fft"}, ValueError, "conv_transpose2d: algorithm is 'fft'; the rule is one of"),
]


@pytest.mark.parametrize("arrays,options,error,message", BAD)
def test_bad_input(arrays, options, error, message):
    with pytest.raises(error, match=message):
        F.conv_transpose2d(*arrays, **options)


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("outputs", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_one_pixel_and_few_outputs(backend, outputs, activation, layout):
    """A pixel that becomes a whole image is a matrix product; few outputs take the planes."""
    rng = np.random.default_rng(0)
    act = getattr(torch, activation) if activation else lambda z: z
    for x, w, options in [((3, 7, 1, 1), (7, outputs, 4, 4), {}),
                          ((2, 7, 1, 1), (7, outputs, 3, 5), {"stride": 2}),
                          ((2, 7, 1, 1), (7, outputs, 4, 4), {"padding": 1}),
                          ((2, 6, 5, 9), (6, outputs, 5, 5), {"stride": 2, "padding": 2})]:
        arrays = [rng.standard_normal(s) for s in (x, w, (outputs,))]
        check(F.conv_transpose2d, lambda *a, **o: act(torch.conv_transpose2d(*a, **o)), arrays, {**options, "activation": activation},
              torch_options=options, kind="transcendental" if activation == "tanh" else "sum", n=7 * 25, backend=backend, layout=layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_kernel_as_large_as_the_image(backend, layout):
    rng = np.random.default_rng(0)
    for x, w, options in [((3, 7, 4, 5), (6, 7, 4, 5), {}),
                          ((1, 300, 4, 4), (1, 300, 4, 4), {"stride": 2}),
                          ((2, 4, 3, 3), (5, 4, 3, 3), {"padding": 1}),
                          ((2, 4, 3, 3), (4, 2, 3, 3), {"groups": 2})]:
        arrays = [rng.standard_normal(s) for s in (x, w, w[:1])]
        check(F.conv2d, torch.conv2d, arrays, options, n=int(np.prod(w[1:])), backend=backend, layout=layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("kernel,options", [(5, {"stride": 2, "padding": 2, "output_padding": 1}), (4, {"stride": 2, "padding": 1}),
                                            (3, {"padding": 1}), (3, {"stride": 3, "dilation": 2}), (2, {"stride": (1, 3)})])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_few_outputs_in_bands(dtype, kernel, options, outputs, layout):
    """Images larger than what is done at a time, the same bits for any number of threads."""
    x, w = (2, 9, 61, 67), (9, outputs, kernel, kernel)
    before = fastdl.get_num_threads()
    answers = []
    for threads in (1, 3):
        fastdl.set_num_threads(threads)
        compare(x, w, options, backend="numba", dtype=dtype, layout=layout)
        answers.append(F.conv_transpose2d(*operands(x, w), **options))
    fastdl.set_num_threads(before)
    assert np.array_equal(*answers)
