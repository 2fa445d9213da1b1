"""The weight's gradient by Winograd: the error of each tile, every size of image and channel count, both layouts, forced."""

import numpy as np
import pytest
import torch
from checker import channels_last, check, strided

import fastdl
import fastdl.functional as F
from fastdl.cpu import jit, workspace
from fastdl.ops.conv import choice, winograd
from fastdl.ops.conv import numba_winograd_gradient_plan as plan

FORMS = [(m, r, dims) for dims, tiles in winograd.GRADIENT_TILES.items() for r in tiles for m in tiles[r]]
# largest error over the standard deviation of the gradient, of unit-variance x and dy
ERROR = {(4, 3, 1): 2e-5, (4, 5, 1): 4e-5, (4, 3, 2): 2e-5, (5, 3, 2): 5e-5, (4, 5, 2): 5e-5}


def case(rng, form, images, channels, outputs, height, width, padding, last=False):
    """(x, dy, w, padding of rows and columns, the gradient of w by torch in float64), with the dimension that kernels add."""
    _, r, dims = form
    kernel = (r if dims == 2 else 1, r)
    paddings = (padding if dims == 2 else 0, padding)
    x = rng.standard_normal((images, channels, height, width)).astype("f4")
    size = [n + 2 * p - k + 1 for n, p, k in zip((height, width), paddings, kernel, strict=True)]
    dy = rng.standard_normal((images, outputs, *size)).astype("f4")
    w = torch.zeros((outputs, channels, *kernel), dtype=torch.float64, requires_grad=True)
    (torch.nn.functional.conv2d(torch.from_numpy(x).double(), w, padding=paddings) * torch.from_numpy(dy).double()).sum().backward()
    if last:
        x, dy = channels_last(x), channels_last(dy)
    return x[:, :, None], dy[:, :, None], np.zeros((outputs, channels, 1, *kernel), "f4"), paddings, w.grad.numpy()[:, :, None]


def error(got, want, size):
    """Over what a sum of ``size`` products of unit variance is, or over the largest of them."""
    return np.abs(got - want).max() / max(size**0.5, np.abs(want).max())


def test_every_tile_has_a_bound():
    assert set(ERROR) == set(FORMS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("last", [False, True], ids=["planar", "channels_last"])
def test_every_size(form, last):
    """Images of 1 to 20 rows, odd channel counts, with and without padding, several images, blocks of tiles and runs of them."""
    rng = np.random.default_rng(form[0])
    for height in range(1, 21):
        r, width = form[1], (height * 7) % 20 + 1
        padding = r // 2 + (height % 3 == 0) if min(height, width) < r else height % r
        channels, outputs = (height * 5) % 18 + 1, (height * 11) % 37 + 1
        x, dy, w, paddings, want = case(rng, form, 1 + height % 3, channels, outputs, height, width, padding, last)
        got = plan.weight_gradient(form, x, dy, w, paddings)
        assert got.shape == w.shape and got.dtype == w.dtype
        assert error(got, want, dy[:, 0].size) <= ERROR[form], (height, width, channels, outputs)


@pytest.mark.parametrize("form", FORMS)
def test_many_blocks(form, monkeypatch):
    """Less scratch memory than a row of tiles, rows cut into runs, channels and outputs beside whole vectors and panels."""
    rng = np.random.default_rng(0)
    x, dy, w, paddings, want = case(rng, form, 2, 35, 37, 19 if form[2] == 2 else 3, 101, 1)
    for bound, run in ((0, 16), (1 << 18, 5), (1 << 30, 1)):
        monkeypatch.setattr(plan, "BOUND", bound)
        monkeypatch.setattr(plan, "RUN", run)
        plan._sizes.cache_clear()
        assert error(plan.weight_gradient(form, x, dy, w, paddings), want, dy[:, 0].size) <= ERROR[form]
    plan._sizes.cache_clear()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("images,channels,outputs", [(2, 17, 33), (1, 64, 40), (2, 33, 33)])
def test_same_bits_for_any_number_of_threads(form, images, channels, outputs):
    rng = np.random.default_rng(0)
    x, dy, w, paddings, _ = case(rng, form, images, channels, outputs, 30, 31, 1)
    before, answers = fastdl.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            fastdl.set_num_threads(threads)
            answers.append(plan.weight_gradient(form, x, dy, w, paddings))
    finally:
        fastdl.set_num_threads(before)
    assert all(np.array_equal(a, answers[0]) for a in answers)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [64, 512])
def test_error_stays_under_5e_5(form, channels):
    """Of unit variance: sums over positions, divided by their square root."""
    rng = np.random.default_rng(0)
    x, dy, w, paddings, want = case(rng, form, 2, channels, 64, 28, 28, form[1] // 2)
    got, count = plan.weight_gradient(form, x, dy, w, paddings), dy[:, 0].size
    assert np.abs(got - want).max() / count**0.5 <= 5e-5


@pytest.mark.parametrize("layout", ["contiguous", "strided", "channels_last"])
@pytest.mark.parametrize("x,k,padding", [((2, 9, 11, 8), 10, 1), ((1, 17, 20, 20), 33, 0), ((0, 8, 6, 6), 8, 1), ((3, 8, 3, 3), 8, 2),
                                         ((1, 1, 5, 5), 1, 1)])
@pytest.mark.parametrize("r", [3, 5])
@pytest.mark.parametrize("kind", ["conv2d", "conv_transpose2d", "conv1d"])
def test_forced(kind, r, x, k, padding, layout):
    """Through the public function, all three gradients; a transposed convolution's too, where x and dy change places."""
    rng = np.random.default_rng(0)
    dims, padding = 1 if kind == "conv1d" else 2, padding + (r - 3) // 2
    x, w = x[: 2 + dims], (k, x[1]) if kind != "conv_transpose2d" else (x[1], k)
    theirs = getattr(torch.nn.functional, kind)
    arrays = [rng.standard_normal(x), rng.standard_normal((*w, *(r,) * dims)), rng.standard_normal(k)]
    check(getattr(F, kind), lambda x, w, b: theirs(x, w, b, padding=padding), arrays, {"padding": padding, "algorithm": "winograd"},
          torch_options={}, kind="winograd", n=r**dims * max(w), backend="numba", layout=layout)


def test_sides_with_other_padding():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 9, 12, 10)), rng.standard_normal((10, 9, 3, 3))]
    check(F.conv2d, lambda x, w: torch.nn.functional.conv2d(torch.nn.functional.pad(x, (0, 2, 2, 1)), w), arrays,
          {"padding": ((2, 1), (0, 2)), "algorithm": "winograd"}, torch_options={}, kind="winograd", n=81, backend="numba")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity(value):
    """They reach the gradients of their channel, or of their output, and no others."""
    rng = np.random.default_rng(0)
    form = (4, 3, 2)
    for place in (0, 1):
        x, dy, w, paddings, _ = case(rng, form, 2, 17, 20, 13, 9, 1)
        (x, dy)[place][1, 7, 0, 5, 4] = value
        got = plan.weight_gradient(form, x, dy, w, paddings)
        wrong = ~np.isfinite(got)
        assert wrong.any(), "a sum that meets it"
        assert not np.delete(wrong, 7, axis=1 - place).any()


def test_views_read_only_and_reversed():
    rng = np.random.default_rng(0)
    for form in FORMS:
        x, dy, w, paddings, want = case(rng, form, 2, 9, 10, 12, 13, 1)
        got = plan.weight_gradient(form, strided(x), strided(dy), w, paddings)
        assert error(got, want, dy[:, 0].size) <= ERROR[form]


def test_scratch_memory_is_bounded():
    """Not in proportion to the batch or the image: 2 MB, as much as the weight has, and 2 MB a thread."""
    for N, C, K, size in ((64, 64, 64, 224), (1, 8, 8, 2000), (1, 512, 512, 7), (256, 512, 512, 28), (1, 64, 64, 5)):
        for slots in (1, 2, 8):
            for m, r, dims in FORMS:
                *_, transformed, kept, scratch = plan._sizes(m, r, dims, N, C, K, size, size, slots)
                weight = 4 * C * K * r**dims
                assert 4 * scratch <= 2 << 20
                assert 4 * kept <= 2 * weight + (1 << 20)
                one_run = 4 * (m + r - 1) ** dims * plan.RUN * (C + K + 32)
                assert 4 * transformed <= (plan.BOUND + weight) * 1.3 + one_run + (1 << 18), (N, C, K, size, slots, m, r)


def asked(w, out=(28, 28), dtype="f4", **options):
    x = np.zeros((1, w[1] * options.get("groups", 1), *(out if len(w) == 4 else out[1:])), dtype)
    (_, w, _), params, _ = (F.conv2d if len(w) == 4 else F.conv1d).prepare(x, np.zeros(w, dtype), **options)
    return choice.winograd_gradient(w.shape, params, w.dtype, params.out[1:])


def test_choice():
    """The tile with the fewest products; not for few channels, other kernels, strides and dtypes, or where it is not wanted."""
    assert asked((64, 64, 3, 3), padding=1) == (4, 3, 2)
    assert asked((64, 64, 3, 3), out=(14, 14), padding=1) == (5, 3, 2)
    assert asked((64, 64, 3, 3), out=(7, 7), padding=1) == (4, 3, 2)
    assert asked((64, 64, 5, 5), padding=2) == (4, 5, 2)
    assert asked((64, 64, 3), padding=1) == (4, 3, 1)
    assert asked((64, 64, 3, 3), padding=1, algorithm="winograd") == (4, 3, 2)
    assert asked((4, 64, 3, 3), padding=1, algorithm="winograd") == (4, 3, 2)
    for w in ((4, 64, 3, 3), (64, 4, 3, 3), (64, 64, 2, 2), (64, 64, 3, 5)):
        assert asked(w) is None, w
    for name, value in (("stride", 2), ("dilation", 2), ("groups", 2), ("dtype", "f8"), ("algorithm", "direct"), ("algorithm", "pixels")):
        assert asked((64, 64, 3, 3), **{name: value}) is None, (name, value)


def test_warm_up_knows_every_tile():
    """Kernels that are made when they are first asked for are compiled by ``fastdl warmup`` all the same."""
    for make_all in jit.families:
        make_all()
    names = {kernel.name.rpartition(".")[2] for kernel in jit.kernels}
    assert {f"gradient_{m}_{r}_{dims}" for m, r, dims in FORMS} <= names
    assert {f"convolve_{m}_{r}_{dims}" for dims, tiles in winograd.TILES.items() for r in tiles for m in tiles[r]} <= names


def test_workspace_is_given_back():
    """A batch whose padded rows would be large leaves no large block behind."""
    rng = np.random.default_rng(0)
    x, dy, w, paddings, _ = case(rng, (4, 3, 2), 8, 16, 16, 60, 60, 1)
    workspace._local.__dict__.clear()
    plan.weight_gradient((4, 3, 2), x, dy, w, paddings)
    assert workspace._local.f.nbytes < 6 << 20


def test_blocks_do_not_depend_on_threads():
    """For sums are cut where a block ends."""
    for form in FORMS:
        for C in range(1, 200, 7):
            for N, size in ((2, 30), (1, 61)):
                cuts = {plan._sizes(*form, N, C, 33, size, size, slots)[:2] for slots in (1, 2, 3, 5, 8)}
                assert len(cuts) == 1, (form, C, N, size)
