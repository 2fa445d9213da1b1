"""Winograd: the matrices, the error of each tile size, every size of image and channel count, forced."""

import numpy as np
import pytest
import torch
from checker import check

import fastdl
import fastdl.functional as F
from fastdl.cpu import parallel
from fastdl.ops.conv import numba_backend, winograd
from fastdl.ops.conv.numba_winograd_plan import planned
from fastdl.ops.conv.numba_winograd_weights import Form

# largest error over the largest output, filters over unit-variance input: the bounds that winograd.py states
ERROR = {(2, 2): 2e-6, (3, 2): 2e-6, (5, 2): 5e-6, (2, 3): 1e-6, (4, 3): 5e-6, (5, 3): 2e-5, (6, 3): 3e-5, (2, 5): 5e-6, (4, 5): 3e-5}
CASES = [(m, r, stride, dims) for dims, tiles in winograd.TILES.items() for r in tiles for m in tiles[r] for stride in (1, 2)]


def test_every_tile_has_a_bound():
    assert set(ERROR) == {(m, r) for m, r, _, _ in CASES}


@pytest.mark.parametrize("m,r", ERROR)
def test_matrices_are_a_filter(m, r):
    a_t, g, b_t = winograd.matrices(m, r)
    rng = np.random.default_rng(0)
    d, w = rng.standard_normal(m + r - 1), rng.standard_normal(r)
    np.testing.assert_allclose(a_t @ ((g @ w) * (b_t @ d)), np.correlate(d, w, "valid"), atol=1e-12)


def one_tile_error(m, r, points):
    """The largest error over the largest output of tiles in float32, summed over 256 channels."""
    rng = np.random.default_rng(0)
    a_t, g, b_t = winograd.matrices(m, r, points)
    n = m + r - 1
    d = rng.standard_normal((256, 100, n, n)).astype("f4")
    w = (rng.standard_normal((256, r, r)) / (16 * r)).astype("f4")
    f = [a.astype("f4") for a in (a_t, b_t)]
    transformed_w = (g @ w.astype("f8") @ g.T).astype("f4")
    products = np.zeros((100, n, n), "f4")
    for c in range(256):
        products += (f[1] @ d[c] @ f[1].T) * transformed_w[c]
    y = f[0] @ products @ f[0].T
    want = sum(
        np.einsum("ctij,c->tij", d[:, :, i : i + m, j : j + m].astype("f8"), w[:, i, j].astype("f8")) for i in range(r) for j in range(r)
    )
    return np.abs(y - want).max() / np.abs(want).max()


def test_no_set_of_points_compared_is_much_better():
    others = {
        4: [(0, 1, -1, 2, -2), (0, 1, -1, 0.5, -0.5), (0, 1, -1, 2, -0.5), (0, 0.75, -0.75, 1.5, -1.5), (0, 0.6, -0.6, 1.25, -1.25)],
        6: [(0, 0.5, -0.5, 0.9, -0.9, 1.5, -1.5), (0, 0.5, -0.5, 1, -1, 1.5, -1.5), (0, 0.375, -0.375, 0.75, -0.75, 1.5, -1.5)],
    }
    for m, sets in others.items():
        chosen = one_tile_error(m, 3, winograd.POINTS[m + 2])
        assert all(chosen < 1.25 * one_tile_error(m, 3, points) for points in sets)
        assert 3 * chosen < one_tile_error(m, 3, sets[0]) or m == 6


@pytest.mark.parametrize("m,r", ERROR)
def test_error_of_a_tile(m, r):
    assert one_tile_error(m, r, None) < ERROR[m, r]


def direct64(x, w, b, padding):
    return torch.nn.functional.conv2d(*(torch.from_numpy(a).double() for a in (x, w, b)), padding=padding).numpy()


def run(form, x, w, padding, shape, bias=None, last=False):
    """The convolution of two-dimensional x, done by ``form``."""
    x, w, shape = x[:, :, None], w[:, :, None], (*shape[:2], 1, *shape[2:])
    return planned(form, x, padding, shape, None, last, parallel.team())(x, w, bias)[:, :, 0]


@pytest.mark.parametrize("m,r,stride,dims", CASES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_size(m, r, layout, stride, dims):
    """Images of 1 to 20 rows, odd channel counts, with and without padding, each tile size, both layouts; and of one dimension."""
    rng = np.random.default_rng(m)
    for height in range(1, 21):
        kernel = r * stride - height % stride
        width, channels, outputs = (height * 7) % 20 + 1, (height * 5) % 18 + 1, (height * 11) % 37 + 1
        padding = kernel // 2 if min(height, width) < kernel else height % kernel
        x = rng.standard_normal((1 + height % 3, channels, height if dims == 2 else 1, width)).astype("f4")
        w = rng.standard_normal((outputs, channels, kernel if dims == 2 else 1, kernel)).astype("f4")
        b = rng.standard_normal(outputs).astype("f4")
        given = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if layout == "channels_last" else x
        paddings, strides = (padding if dims == 2 else 0, padding), (stride if dims == 2 else 1, stride)
        want = torch.nn.functional.conv2d(*(torch.from_numpy(a).double() for a in (x, w, b)), strides, paddings).numpy()
        form = Form(m, r, dims, kernel, stride, False)
        y = run(form, given, w, paddings, want.shape, b, layout == "channels_last")
        assert np.abs(y - want).max() <= ERROR[m, r] * np.abs(want).max(), (height, width, channels, outputs)


@pytest.mark.parametrize("m,r,stride,dims", CASES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_size_transposed(m, r, layout, stride, dims):
    rng = np.random.default_rng(m)
    for height in range(1, 15):
        kernel = r * stride - height % stride
        width, channels, outputs = (height * 7) % 20 + 1, (height * 5) % 18 + 1, (height * 11) % 70 + 1
        padding = min(height % kernel, (kernel - 1) // 2)
        extra = height // 2 % 2 * (stride - 1)
        x = rng.standard_normal((1 + height % 3, channels, height if dims == 2 else 1, width)).astype("f4")
        w = rng.standard_normal((channels, outputs, kernel if dims == 2 else 1, kernel)).astype("f4")
        b = rng.standard_normal(outputs).astype("f4")
        given = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if layout == "channels_last" else x
        paddings, strides, extras = ((a if dims == 2 else i, a) for a, i in ((padding, 0), (stride, 1), (extra, 0)))
        want = torch.nn.functional.conv_transpose2d(
            *(torch.from_numpy(a).double() for a in (x, w, b)), strides, paddings, extras
        ).numpy()
        form = Form(m, r, dims, kernel, stride, True)
        y = run(form, given, w, paddings, want.shape, b, layout == "channels_last")
        assert np.abs(y - want).max() <= ERROR[m, r] * np.abs(want).max(), (height, width, channels, outputs)


@pytest.mark.parametrize("r", [3, 5])
@pytest.mark.parametrize("channels", [64, 512])
def test_auto_stays_under_5e_5(channels, r):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, channels, 24, 24)).astype("f4")
    w = (rng.standard_normal((64, channels, r, r)) / np.sqrt(r * r * channels)).astype("f4")
    y = F.conv2d(x, w, None, padding=r // 2)
    want = direct64(x, w, np.zeros(64, "f4"), r // 2)
    assert np.abs(y - want).max() <= 5e-5


@pytest.mark.parametrize("channels", [64, 512])
@pytest.mark.parametrize("m,r", ERROR)
def test_no_tile_exceeds_5e_5(m, r, channels):
    """Large tiles magnify the errors of long sums, which are therefore cut."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, channels, 24, 24)).astype("f4")
    w = (rng.standard_normal((64, channels, r, r)) / np.sqrt(r * r * channels)).astype("f4")
    want = direct64(x, w, np.zeros(64, "f4"), r // 2)
    y = run(Form(m, r, 2, r, 1, False), x, w, (r // 2, r // 2), want.shape)
    assert np.abs(y - want).max() <= 5e-5


@pytest.mark.parametrize("layout", ["contiguous", "strided", "channels_last"])
@pytest.mark.parametrize(
    "x,k,padding", [((2, 9, 11, 8), 10, 1), ((1, 17, 20, 20), 33, 0), ((0, 8, 6, 6), 8, 1), ((3, 8, 3, 3), 8, 2), ((1, 1, 5, 5), 1, 1)]
)
@pytest.mark.parametrize("r", [3, 5])
def test_forced_with_gradients(x, k, padding, layout, r):
    rng = np.random.default_rng(0)
    padding += (r - 3) // 2  # outputs as with 3 x 3
    arrays = [rng.standard_normal(x), rng.standard_normal((k, x[1], r, r)), rng.standard_normal(k)]
    check(
        F.conv2d,
        lambda x, w, b: torch.relu(torch.nn.functional.conv2d(x, w, b, padding=padding)),
        arrays,
        {"padding": padding, "algorithm": "winograd", "activation": "relu"},
        torch_options={},
        kind="winograd",
        n=r * r * x[1],
        backend="numba",
        layout=layout,
    )


@pytest.mark.parametrize("r", [3, 5])
def test_same_bits_for_any_number_of_threads(r):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 40, 30, 30)).astype("f4"), rng.standard_normal((70, 40, r, r)).astype("f4")
    before, answers = fastdl.get_num_threads(), []
    for threads in (1, 2, 5):
        fastdl.set_num_threads(threads)
        answers.append(F.conv2d(x, w, padding=1, algorithm="winograd"))
    fastdl.set_num_threads(before)
    assert all(np.array_equal(a, answers[0]) for a in answers)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("stride,r", [(2, 3), (2, 4), (2, 5), (2, 9), (1, 2), (1, 3)])
@pytest.mark.parametrize("kind", ["conv2d", "conv_transpose2d", "conv1d", "conv_transpose1d"])
def test_strides_with_gradients(kind, stride, r, layout):
    """Forward by phases of the input, data gradients by phases of the output, and the other way round."""
    rng = np.random.default_rng(0)
    dims, transposed = (1 if "1d" in kind else 2), "transpose" in kind
    x, w = (2, 9, *(14, 17)[-dims:]), (33, 9) if not transposed else (9, 33)
    arrays = [rng.standard_normal(x), rng.standard_normal((*w, *(r,) * dims)), rng.standard_normal(33)]
    theirs, options = getattr(torch.nn.functional, kind), {"stride": stride, "padding": r // 2}
    check(
        getattr(F, kind),
        lambda x, w, b: torch.relu(theirs(x, w, b, **options)),
        arrays,
        {**options, "algorithm": "winograd", "activation": "relu"},
        torch_options={},
        kind="winograd",
        n=r**dims * 33,
        backend="numba",
        layout=layout,
    )


def asked(x, w, packed=False, transposed=False, dtype="f4", **options):
    """The tile of the form that is chosen, or None."""
    f = F.conv_transpose2d if transposed else F.conv2d
    (x, w, _), params, _ = f.prepare(np.zeros(x, dtype), np.zeros(w, dtype), **options)
    shape = (x.shape[0], w.shape[0] if not transposed else w.shape[1], *params.out)
    form = numba_backend._winograd(x, fastdl.pack(w) if packed else w, params, shape, transposed)
    return form and form.m


def test_choice():
    """Large images and packed weights take Winograd; tiny ones, few channels, float64 and other kernels do not."""
    large = (1, 64, 56, 56), (64, 64, 3, 3)
    assert asked(*large, packed=True, padding=1) in (4, 5, 6)
    assert asked(*large, packed=True, padding=1, algorithm="direct") is None
    assert asked(*large, packed=True, padding=1, dtype="f8") is None
    assert asked(*large, packed=True, padding=2, dilation=2) is None
    assert asked(*large, packed=True, padding=1, stride=3) is None
    assert asked((1, 64, 56, 56), (64, 64, 3, 5), packed=True) is None
    assert asked((1, 64, 56, 56), (64, 32, 3, 3), groups=2) is None
    assert asked((1, 3, 56, 56), (64, 3, 3, 3), packed=True) is None
    assert asked((1, 16, 2, 2), (16, 16, 3, 3), padding=1) is None
    assert asked((1, 16, 2, 2), (16, 16, 3, 3), padding=1, algorithm="winograd") is not None
    assert asked((32, 32, 14, 14), (64, 32, 5, 5), padding=2) == 4
    assert asked((32, 64, 28, 28), (128, 64, 5, 5), padding=2, stride=2) in (4, 5)
    assert asked((16, 128, 14, 14), (128, 64, 5, 5), padding=2, stride=2, transposed=True) in (4, 5)
    assert asked((8, 128, 16, 16), (128, 64, 4, 4), padding=1, stride=2, transposed=True) in (2, 3, 5)
    assert asked((8, 8, 9, 9), (8, 8, 7, 7), algorithm="winograd") is None
