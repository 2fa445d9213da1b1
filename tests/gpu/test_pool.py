"""Pooling on a GPU against torch in float64."""

import pytest
import torch
from cases import DEVICE, DTYPES, NAMES, check, randn

import fastdl.functional as F

TF = torch.nn.functional
LAYOUTS = ["contiguous", "channels_last"]
WINDOWS = {
    "2x2": (2, (2, 3, 6, 8), dict(kernel_size=2)),
    "3x3, stride 2": (2, (2, 5, 7, 9), dict(kernel_size=3, stride=2, padding=1)),
    "overlapping, ceil": (2, (1, 3, 8, 7), dict(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=True)),
    "1d": (1, (2, 4, 11), dict(kernel_size=3, stride=2)),
    "3d": (3, (1, 3, 4, 5, 6), dict(kernel_size=2, stride=(1, 2, 2))),
    "no batch entries": (2, (0, 3, 6, 8), dict(kernel_size=2)),
    "unbatched": (2, (3, 6, 8), dict(kernel_size=2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name, kind, layout):
    ndim, shape, options = WINDOWS[name]
    op = f"{kind}_pool{ndim}d"
    y = check(getattr(F, op), getattr(TF, op), [randn(*shape)], options, kind="exact" if kind == "max" else "sum", n=16, layout=layout,
              grad_kind="sum")
    if layout == "channels_last" and y.ndim == 4 and y.shape[0]:
        assert y.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=NAMES[1:])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_halves(kind, dtype):
    for layout in LAYOUTS:
        op, options = f"{kind}_pool2d", dict(kernel_size=3, stride=2, padding=1)
        check(getattr(F, op), getattr(TF, op), [randn(2, 5, 7, 6)], options, n=9, dtype=dtype, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_indices_equals_and_nan(layout):
    x = randn(2, 3, 9, 8).round()
    x[0, 0, 2, 3] = x[0, 1, :3, :3] = float("nan")
    x[1, 2] = float("-inf")
    for options in (dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=2, dilation=2), dict(kernel_size=2)):
        check(F.max_pool2d, TF.max_pool2d, [x], {**options, "return_indices": True}, kind="exact", grad_kind="sum", n=9, layout=layout)
    check(F.max_pool2d, TF.max_pool2d, [randn(1, 2, 18, 18)], dict(kernel_size=17, return_indices=True), kind="exact", layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=2),
                                     dict(kernel_size=(2, 4), stride=2, padding=(0, 2)), dict(kernel_size=3, dilation=2),
                                     dict(kernel_size=5, stride=(3, 2), padding=2, ceil_mode=True)])
def test_without_a_gradient_to_come(options, layout):
    """No place is kept then: NaN and infinities all the same."""
    x = randn(2, 16, 8, 10).round()
    x[0, 0, 2, 3] = x[0, 1, :3, :3] = float("nan")
    x[1, 2] = float("-inf")
    x[1, 3, 4, 5] = float("inf")
    check(F.max_pool2d, TF.max_pool2d, [x], options, kind="exact", layout=layout, gradients=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("ndim,shape,window", [(2, (2, 3, 6, 8), 2), (2, (1, 8, 6, 9), (2, 3)), (3, (1, 2, 2, 6, 4), (1, 3, 2)),
                                               (1, (2, 3, 72), 2)])
def test_windows_that_cover_the_input(ndim, shape, window, kind, layout, dtype):
    """Side by side: the gradient goes from each cell to its window."""
    op = f"{kind}_pool{ndim}d"
    x = randn(*shape).round()
    check(getattr(F, op), getattr(TF, op), [x], dict(kernel_size=window), n=6, dtype=dtype, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [dict(count_include_pad=False), dict(divisor_override=3), dict(ceil_mode=True)])
def test_divisors(options, layout):
    check(F.avg_pool2d, TF.avg_pool2d, [randn(2, 3, 7, 8)], dict(kernel_size=3, stride=2, padding=1, **options), n=9, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("ndim,shape,size", [(2, (2, 3, 7, 9), (3, 4)), (2, (2, 3, 4, 6), (2, 3)), (2, (2, 5, 6, 7), 1),
                                             (2, (1, 2, 3, 2), (5, 4)), (1, (2, 3, 10), 4), (3, (1, 2, 4, 5, 3), (2, None, 2))])
def test_adaptive(ndim, shape, size, kind, layout):
    op = f"adaptive_{kind}_pool{ndim}d"
    check(getattr(F, op), getattr(TF, op), [randn(*shape)], {"output_size": size}, kind="exact" if kind == "max" else "sum", n=64,
          layout=layout, grad_kind="sum")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_the_index_where_nothing_is_larger_than_minus_infinity(dilation, layout):
    """It is of the window's first cell that is not padding."""
    x = torch.full((1, 3, 9, 8), float("-inf"))
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    options = dict(kernel_size=3, stride=1, padding=1, dilation=dilation, return_indices=True)
    y, places = F.max_pool2d(x.to(DEVICE), **options)
    want, where = TF.max_pool2d(x.double(), **options)
    assert torch.equal(y.cpu().double(), want) and torch.equal(places.cpu().long(), where)


def test_views_and_no_output():
    x = randn(2, 3, 9, 9).float().to(DEVICE)[:, :, ::2, 1:]
    torch.testing.assert_close(F.max_pool2d(x, 2), TF.max_pool2d(x, 2))
    last = x.contiguous(memory_format=torch.channels_last)[:, :, 1:, :-1]
    torch.testing.assert_close(F.avg_pool2d(last, 2), TF.avg_pool2d(last, 2))
    assert F.adaptive_avg_pool2d(x, 0).shape == (2, 3, 0, 0)
