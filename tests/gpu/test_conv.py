"""Convolution on a GPU against torch in float64."""

import pytest
import torch
from cases import DEVICE, DTYPES, NAMES, check, far_apart, randn

import fastdl
import fastdl.functional as F
from fastdl.gpu import configs

TF = torch.nn.functional
SMALL = dict(BM=16, BN=16, BK=16, num_warps=4, num_stages=1)

# name: (dimensions, transposed, input, weight, options)
CASES = {
    "3x3": (2, 0, (2, 20, 5, 7), (17, 20, 3, 3), {"padding": 1}),
    "1x1": (2, 0, (2, 20, 5, 4), (9, 20, 1, 1), {}),
    "1x1, stride 2": (2, 0, (2, 20, 5, 4), (9, 20, 1, 1), {"stride": 2}),
    "stride 2": (2, 0, (2, 17, 8, 7), (6, 17, 3, 3), {"stride": 2, "padding": 1}),
    "few channels": (2, 0, (2, 3, 9, 8), (5, 3, 5, 5), {"stride": 2, "padding": 2}),
    "dilated": (2, 0, (1, 18, 9, 8), (4, 18, 3, 2), {"dilation": (2, 3), "padding": (2, 1)}),
    "stride 3, dilation 2": (2, 0, (1, 17, 11, 10), (3, 17, 3, 3), {"stride": 3, "dilation": 2, "padding": 2}),
    "stride and dilation share a factor": (2, 0, (1, 17, 11, 10), (3, 17, 3, 3), {"stride": 4, "dilation": 2, "padding": 1}),
    "groups": (2, 0, (2, 36, 5, 6), (8, 18, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": (2, 0, (2, 11, 6, 7), (11, 1, 3, 3), {"groups": 11, "padding": 1, "stride": 2}),
    "depthwise, two each": (2, 0, (2, 5, 6, 7), (10, 1, 3, 2), {"groups": 5}),
    "1d": (1, 0, (2, 18, 12), (7, 18, 3), {"padding": 1, "stride": 2}),
    "3d": (3, 0, (1, 17, 4, 5, 4), (5, 17, 2, 3, 3), {"padding": (0, 1, 1), "stride": (1, 2, 1)}),
    "no batch entries": (2, 0, (0, 4, 5, 5), (3, 4, 3, 3), {}),
    "transposed": (2, 1, (2, 18, 4, 5), (18, 7, 3, 3), {"padding": 1}),
    "transposed, stride 2": (2, 1, (2, 18, 4, 3), (18, 5, 5, 5), {"stride": 2, "padding": 2, "output_padding": 1}),
    "transposed, stride larger than the kernel": (2, 1, (1, 17, 3, 3), (17, 4, 2, 2), {"stride": 3}),
    "transposed, 1x1": (2, 1, (2, 18, 4, 3), (18, 5, 1, 1), {}),
    "transposed, groups": (2, 1, (2, 36, 4, 3), (36, 3, 3, 3), {"groups": 2, "stride": 2}),
    "transposed, depthwise": (2, 1, (2, 6, 4, 3), (6, 2, 3, 3), {"groups": 6, "stride": 2}),
    "transposed, one each": (2, 1, (2, 6, 4, 3), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
    "transposed, 1d": (1, 1, (2, 18, 7), (18, 6, 4), {"stride": 2, "padding": 1}),
    "transposed, 3d": (3, 1, (1, 17, 2, 3, 3), (17, 3, 3, 3, 2), {"stride": 2, "padding": 1}),
}


def operators(ndim, transposed):
    name = f"conv{'_transpose' * transposed}{ndim}d"
    return getattr(F, name), getattr(TF, name)


def run(name, dtype=torch.float32, layout="contiguous", **more):
    ndim, transposed, x, w, options = CASES[name]
    ours, theirs = operators(ndim, transposed)
    outputs = w[1] * options.get("groups", 1) if transposed else w[0]
    n = torch.Size(w[1:]).numel()
    arrays = [randn(*x), randn(*w), randn(outputs)]
    return check(ours, theirs, arrays, {**options, **more}, torch_options=options, n=n, dtype=dtype, layout=layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_conv(name, layout):
    y = run(name, layout=layout)
    if layout == "channels_last" and y.shape[0] and y.shape[1] > 1:
        assert y.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=NAMES[1:])
@pytest.mark.parametrize("name", ["3x3", "1x1", "few channels", "depthwise", "transposed, stride 2"])
def test_halves(name, dtype):
    run(name, dtype, "channels_last")


@pytest.mark.parametrize("layout", ["strided"])
@pytest.mark.parametrize("name", ["3x3", "depthwise", "transposed, stride 2"])
def test_views(name, layout):
    run(name, layout=layout)


@pytest.mark.parametrize("activation", ["relu", "gelu", ("leaky_relu", 0.2), "tanh"])
@pytest.mark.parametrize("name", ["3x3", "1x1", "depthwise", "transposed, stride 2"])
def test_fused_activation(name, activation):
    ndim, transposed, x, w, options = CASES[name]
    ours, theirs = operators(ndim, transposed)
    act, *slope = activation if isinstance(activation, tuple) else (activation,)
    outputs = w[1] * options.get("groups", 1) if transposed else w[0]
    arrays = [randn(*x), randn(*w), randn(outputs)]
    check(ours, lambda x, w, b: getattr(TF, act)(theirs(x, w, b, **options), *slope), arrays, {**options, "activation": activation},
          torch_options={}, kind="transcendental", n=torch.Size(w[1:]).numel(), layout="channels_last")


def test_same_padding():
    x, w = randn(1, 17, 7, 6), randn(4, 17, 3, 2)
    check(lambda x, w: F.conv2d(x, w, padding="same", stride=2), lambda x, w: TF.conv2d(TF.pad(x, (0, 0, 1, 1)), w, stride=2), [x, w],
          n=17 * 6)
    check(lambda x, w: F.conv2d(x, w, padding=((2, 0), (1, 3))), lambda x, w: TF.conv2d(TF.pad(x, (1, 3, 2, 0)), w), [x, w],
          n=17 * 6)


@pytest.mark.parametrize("dtype,activation,outputs_first", [(torch.float16, None, 1), (torch.float16, "gelu", 0),
                                                            (torch.bfloat16, None, 0), (torch.bfloat16, "gelu", 1)])
def test_boxes(dtype, activation, outputs_first):
    """The copy engine's way: boxes over image edges and beyond the batch, dilation, one-sided padding, the data gradient."""
    blocks = dict(BM=32, BN=16, BK=16) if DEVICE == "cpu" else dict(BM=128, BN=64, BK=16)
    by_tiles = dict(GROUP=2, PROGRAMS=1, OUTPUTS_FIRST=outputs_first, num_warps=4, num_stages=1, **blocks)
    with configs.use("correlate_by_tiles", **by_tiles), configs.use("correlate_packed", use=0):
        _boxes(dtype, activation)


def _boxes(dtype, activation):
    act = getattr(TF, activation) if activation else lambda z: z
    for shape, w, options in (((3, 16, 7, 9), (24, 16, 3, 3), {"padding": 1}),
                              ((5, 32, 3, 3), (8, 32, 2, 3), {"dilation": (1, 2), "padding": 2}),
                              # every other cell: of images of even size, forward and backward
                              ((3, 16, 8, 6), (64, 16, 3, 3), {"padding": 1, "stride": 2}),
                              ((2, 64, 6, 10), (64, 64, 1, 1), {"stride": 2}),
                              ((1, 16, 12, 8), (64, 16, 3, 2), {"dilation": (2, 3), "padding": (3, 1), "stride": 2})):
        check(F.conv2d, lambda x, w, b, activation=None, options=options: act(TF.conv2d(x, w, b, **options)),
              [randn(*shape), randn(*w), randn(w[0])], {**options, "activation": activation}, torch_options={}, kind="transcendental",
              dtype=dtype, layout="channels_last")
    x, w, b = (t.to(dtype).to(DEVICE) for t in (randn(2, 16, 5, 4), randn(16, 16, 3, 3), randn(16)))
    for transposed in ((3, 16, 4, 3), (16, 64, 5, 5), {"stride": 2, "padding": 2, "output_padding": 1}), (
            (3, 16, 4, 3), (16, 64, 2, 2), {"stride": 2}):
        shape, k, options = transposed
        check(F.conv_transpose2d, lambda x, w, b, activation=None, options=options: act(TF.conv_transpose2d(x, w, b, **options)),
              [randn(*shape), randn(*k), randn(k[1])], {**options, "activation": activation}, torch_options={}, kind="transcendental",
              dtype=dtype, layout="channels_last")
    from fastdl.ops.conv import triton_tiles

    calls = []
    original, triton_tiles.run = triton_tiles.run, lambda *a, **k: calls.append(1) or original(*a, **k)
    try:
        F.conv2d(x, w, b, padding=((0, 1), (2, 1)))
        even = randn(2, 64, 6, 4).to(dtype).to(DEVICE).requires_grad_()
        F.conv2d(even, randn(64, 64, 1, 1).to(dtype).to(DEVICE), stride=2).sum().backward()
    finally:
        triton_tiles.run = original
    assert calls == [1] * 3 or DEVICE == "cuda"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("x,w,options", [((2, 3, 13, 10), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
                                         ((2, 3, 7, 9), (24, 3, 3, 3), {"padding": 1}),
                                         ((1, 1, 9, 8), (8, 1, 5, 5), {}),
                                         ((3, 4, 8, 7), (8, 4, 4, 4), {"stride": 2, "padding": 1}),
                                         ((1, 8, 6, 5), (16, 8, 2, 3), {"padding": (2, 0)}),
                                         ((2, 2, 5, 5), (8, 2, 1, 4), {"stride": 2, "padding": (0, 2)}),
                                         ((1, 16, 6, 6), (8, 16, 3, 3), {"padding": 1})])
def test_few_channels_are_packed(x, w, options, layout):
    for dtype in (torch.float16, torch.bfloat16):
        check(lambda x, w, b: F.conv2d(x, w, b, **options, activation="relu"), lambda x, w, b: TF.relu(TF.conv2d(x, w, b, **options)),
              [randn(*x), randn(*w), randn(w[0])], {}, n=torch.Size(w[1:]).numel(), dtype=dtype, layout=layout)


def test_one_sided_padding_of_few_channels():
    x, w = randn(2, 3, 8, 9).half(), randn(8, 3, 3, 3).half()
    got = F.conv2d(x.to(DEVICE), w.to(DEVICE), padding=((0, 1), (2, 1)), stride=2)
    want = TF.conv2d(TF.pad(x.double(), (2, 1, 0, 1)), w.double(), stride=2)
    torch.testing.assert_close(got.cpu().double(), want, rtol=2e-2, atol=2e-2)


def test_the_fewest_boxes():
    from fastdl.ops.conv.triton_tiles import box

    assert box(32, 56, 56, 128) == (2, 8, 8) and box(32, 28, 28, 128) == (8, 4, 4) and box(32, 14, 14, 128) == (32, 2, 2)
    assert box(1, 1, 300, 64) == (1, 1, 64)


@pytest.mark.parametrize("splits", [1, 4])
def test_split_reductions_agree_and_repeat(splits):
    x, w, b = (t.float().to(DEVICE) for t in (randn(1, 40, 4, 4), randn(6, 40, 3, 3), randn(6)))
    with configs.use("correlate", GROUP=2, MAX_SPLITS=splits, **SMALL), configs.use("weight_gradient", MAX_SPLITS=splits, **SMALL):
        check(F.conv2d, TF.conv2d, [randn(1, 40, 4, 4), randn(6, 40, 3, 3), randn(6)], {"padding": 1}, n=360)
        first = F.conv2d(x, w, b, padding=1, activation="relu")
        assert torch.equal(first, F.conv2d(x, w, b, padding=1, activation="relu"))


def test_unbatched():
    check(F.conv2d, TF.conv2d, [randn(3, 5, 5), randn(4, 3, 2, 2), None], n=12)


def test_beyond_two_to_the_31_elements():
    """Images a hundred million elements apart."""
    x, w = randn(32, 16 * 4).half(), randn(5, 16, 1, 2).half().to(DEVICE)
    apart = far_apart(x, 100_000_000).view(32, 1, 4, 16).movedim(-1, 1) if DEVICE == "cuda" else far_apart(x, 100_000_000)
    apart = apart.as_strided((32, 16, 1, 4), (100_000_000, 1, 64, 16))
    near = x.view(32, 1, 4, 16).movedim(-1, 1).to(DEVICE)
    from fastdl.ops.conv import triton_correlate
    from fastdl.ops.conv.geometry import conv_params

    params = conv_params("conv2d", (1, 4), (1, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), 1, None, "auto")
    axes = triton_correlate.convolution_axes(params, (1, 1, 2))
    got = [triton_correlate.run(t[:, :, None], w[:, :, None], params.out, axes, 1, reduce_over=1)[0] for t in (apart, near)]
    assert torch.equal(*got) and fastdl.current_backend() == "triton"


@pytest.mark.parametrize("layout,dtype", [("contiguous", torch.float32), ("channels_last", torch.float32), ("channels_last", torch.float16),
                                          ("contiguous", torch.bfloat16)])
@pytest.mark.parametrize("x,w,options", [((2, 16, 5, 7), (8, 16, 3, 3), {"padding": 1}), ((2, 20, 4, 6), (5, 20, 1, 1), {}),
                                         ((1, 3, 11, 8), (6, 3, 5, 5), {"stride": 2, "padding": 2}),
                                         ((1, 12, 5, 5), (6, 6, 2, 3), {"groups": 2}), ((1, 6, 6, 6), (6, 1, 3, 3), {"groups": 6})])
def test_max_pool_in_the_last_step(x, w, options, dtype, layout):
    """By boxes and by pointers, with odd sizes, whose last row and column count for nothing; and by two kernels for a gradient."""
    arrays = [randn(*x), randn(*w), randn(w[0])]
    n = torch.Size(w[1:]).numel()

    def theirs(x, w, b):
        return TF.max_pool2d(TF.leaky_relu(TF.conv2d(x, w, b, **options), -0.5), 2)

    more = {**options, "activation": ("leaky_relu", -0.5)}
    y = check(F.conv2d_max_pool2d, theirs, arrays, more, torch_options={}, n=n, dtype=dtype, layout=layout, gradients=False)
    if layout == "channels_last":
        assert y.movedim(1, -1).is_contiguous()
    if dtype is torch.float32:
        check(F.conv2d_max_pool2d, theirs, arrays, more, torch_options={}, n=n, layout=layout)


def test_a_pooled_maximum_is_nan_where_one_is():
    x = randn(2, 16, 6, 8)
    x[0, 3, 2, 5] = float("nan")
    w = randn(8, 16, 1, 1)
    for dtype in (torch.float32, torch.float16):
        y = F.conv2d_max_pool2d(x.to(dtype).to(DEVICE), w.to(dtype).to(DEVICE)).cpu()
        assert torch.equal(y.isnan(), TF.max_pool2d(TF.conv2d(x, w), 2).isnan()) and y.isnan().sum() == 8


def test_a_sequential_pools_in_the_convolution():
    from fastdl import nn
    from fastdl.ops.conv import triton_correlate

    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 2), nn.MaxPool2d(2, 1)).to(DEVICE)
    x = randn(2, 3, 9, 8).float().to(DEVICE)
    calls, original = [], triton_correlate.run
    triton_correlate.run = lambda *a, **k: calls.append(bool(k.get("pool"))) or original(*a, **k)
    try:
        y = net(x)
    finally:
        triton_correlate.run = original
    assert calls == [True, False]
    with nn.fusion(False):
        torch.testing.assert_close(y, net(x))
    torch.testing.assert_close(net.vjp(x)[0], y)


@pytest.mark.parametrize("name", ["3x3", "1x1", "stride 2", "few channels", "groups", "depthwise", "3d", "transposed, stride 2",
                                  "transposed, depthwise"])
def test_nan_stays_where_its_taps_reach(name):
    ndim, transposed, x, w, options = CASES[name]
    ours, theirs = operators(ndim, transposed)
    x, w = randn(*x), randn(*w)
    x[(-1, 1) + (2,) * ndim] = float("nan")
    for dtype in (torch.float32, torch.float16):
        y = ours(x.to(dtype).to(DEVICE), w.to(dtype).to(DEVICE), **options)
        assert torch.equal(y.cpu().isnan(), theirs(x, w, **options).isnan())
