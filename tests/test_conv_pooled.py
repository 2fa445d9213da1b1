"""A convolution with a 2 x 2 max-pool behind it, and what training keeps of it; sums over positions."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch
from assembly import spills_of_loops
from checker import LAYOUTS, assert_close, channels_last, check
from test_conv import operands, torch_conv

import fastdl
import fastdl.functional as F
from fastdl import nn
from fastdl.cpu.features import vector_bits
from fastdl.cpu.jit import kernel
from fastdl.cpu.picked_rows import MOST_VECTORS, add_rows, picked_rows
from fastdl.cpu.simd import pointer
from fastdl.ops.numba_sums import channel_sums

BACKENDS = ["reference", "numba"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"padding": 1, "activation": "relu"}, {"stride": 2, "activation": "tanh"}, {"groups": 2}])
def test_max_pool_in_the_last_step(options, layout, backend):
    theirs = torch_conv(**options)
    with fastdl.use_backend(backend):
        for x, w in (((2, 4, 7, 8), (6, 4 // options.get("groups", 1), 3, 3)), ((4, 9, 6), (2, 4 // options.get("groups", 1), 2, 3))):
            check(F.conv2d_max_pool2d, lambda x, w, b: torch.nn.functional.max_pool2d(theirs(x, w, b), 2), operands(x, w), options,
                  torch_options={}, kind="transcendental" if options.get("activation") == "tanh" else "sum", n=36, layout=layout)


# by one kernel where there is one for both, "lines" or "winograd"; else by two
POOLED = [
    ((1, 1, 28, 28), (32, 1, 5, 5), {"padding": 2, "activation": "relu"}),  # lines: a band for each thread
    ((3, 3, 30, 21), (26, 3, 3, 3), {"padding": 1, "activation": "leaky_relu"}),  # a line amid a tile, an odd last column
    ((2, 2, 11, 97), (24, 2, 5, 5), {"padding": (2, 0), "activation": "sigmoid"}),
    ((1, 8, 130, 64), (40, 8, 3, 3), {"padding": 1}),  # bands
    ((1, 32, 14, 14), (64, 32, 5, 5), {"padding": 2, "activation": "relu"}),  # Winograd: threads share the outputs
    ((5, 17, 13, 15), (37, 17, 3, 3), {"padding": 1, "activation": "tanh"}),
    ((2, 16, 31, 26), (70, 16, 5, 5), {"stride": 2, "padding": 2, "activation": "elu"}),
    ((1, 64, 90, 88), (64, 64, 3, 3), {"activation": "relu"}),  # bands of tiles
    ((3, 20, 7, 9), (12, 20, 2, 2), {"activation": ("leaky_relu", -0.5)}),
    ((2, 12, 9, 10), (24, 12, 1, 1), {"activation": "relu"}),
    ((2, 12, 9, 10), (24, 6, 3, 3), {"groups": 2, "activation": "relu"}),
]


@pytest.mark.parametrize("algorithm", ["auto", "lines", "winograd", "direct"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", POOLED, ids=lambda case: f"{case[0]}-{case[1]}")
def test_inference_has_the_bits_of_one_after_the_other(case, layout, algorithm):
    rng = np.random.default_rng(5)
    x, w, options = rng.standard_normal(case[0]).astype("f4"), rng.standard_normal(case[1]).astype("f4"), case[2]
    x[0, 0, 3:5, 4], x[-1, -1, 2, 2] = np.nan, -np.inf
    if layout == "channels_last":
        x = channels_last(x)
    b = rng.standard_normal(len(w)).astype("f4")
    for weight, bias in ((w, b), (fastdl.pack(w), None)):
        want = F.max_pool2d(F.conv2d(x, weight, bias, algorithm=algorithm, **options), 2)
        for threads in (1, 3):
            before = fastdl.get_num_threads()
            fastdl.set_num_threads(threads)
            try:
                got = F.conv2d_max_pool2d(x, weight, bias, algorithm=algorithm, **options)
            finally:
                fastdl.set_num_threads(before)
            np.testing.assert_array_equal(got, want)
            assert got.strides == want.strides and got.dtype == np.float32


CASES = [
    ((3, 1, 28, 28), (32, 1, 5, 5), {"padding": 2, "activation": "relu"}),  # patches, several chunks
    ((2, 1, 5, 90), (3, 1, 2, 3), {"activation": "leaky_relu"}),  # one vector
    ((70, 2, 6, 4), (2, 2, 3, 3), {}),  # more bands than chunks of patches
    ((2, 3, 13, 12), (9, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((2, 32, 14, 14), (10, 32, 5, 5), {"padding": 2, "activation": "elu"}),  # runs read in place, two passes over each
    ((2, 66, 7, 9), (17, 66, 3, 3), {"padding": 1}),  # runs that are no whole vectors, an output more than two chunks'
    ((1, 17, 9, 21), (3, 17, 3, 2), {"dilation": (1, 2), "activation": "sigmoid"}),  # a run for each kernel cell
    ((2, 130, 4, 6), (8, 130, 1, 1), {}),
    ((1, 4, 300, 8), (2, 4, 3, 3), {}),  # bands
    ((2, 1, 4, 2600), (2, 1, 2, 9), {}),  # patches would be large
    ((2, 6, 9, 7), (4, 3, 3, 3), {"groups": 2, "padding": 1}),
    ((2, 3, 6, 5), (4, 3, 2, 2), {"activation": ("leaky_relu", -0.5)}),  # its gradient needs the convolution's answer
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_gradient_of_maxima(case, dtype, layout):
    x, w, options = case
    slope = None
    if isinstance(options.get("activation"), tuple):
        slope = options["activation"][1]
    theirs = torch_conv(**{k: v for k, v in options.items() if slope is None or k != "activation"})

    def both(x, w, b):
        y = theirs(x, w, b)
        return torch.nn.functional.max_pool2d(y if slope is None else torch.nn.functional.leaky_relu(y, slope), 2)

    kind = "transcendental" if options.get("activation") in ("elu", "sigmoid") else "sum"
    check(F.conv2d_max_pool2d, both, operands(x, w), options, torch_options={}, kind=kind, n=int(np.prod(w[1:])), layout=layout,
          dtype=dtype, backend="numba")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs", [(True, False, True), (False, True, False), (False, False, True), (False, False, False)])
def test_what_is_needed(needs, backend):
    x, w, b = (a.astype("f4") for a in operands((2, 3, 8, 8), (5, 3, 3, 3)))
    with fastdl.use_backend(backend):
        y, pullback = fastdl.vjp(F.conv2d_max_pool2d, x, w, b, activation="relu")
        want, got = pullback(np.cos(y)), pullback(np.cos(y), needs)
        for a, b_, wanted in zip(got, want, needs, strict=True):
            assert (a is not None) == wanted
            if wanted:
                np.testing.assert_array_equal(a, b_)


@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
def test_nan_and_empty(activation):
    """NaN is a maximum, and the gradients are those of one after the other but for this: what is under no maximum adds nothing, even
    where it is NaN. An empty batch has gradients of zeros."""
    x, w, b = (a.astype("f4") for a in operands((2, 2, 7, 6), (3, 2, 3, 3)))
    x[0, 0, 2, 3], x[1, 1, 4, 4] = np.nan, np.inf
    with np.errstate(all="ignore"):
        y, pullback = fastdl.vjp(F.conv2d_max_pool2d, x, w, b, activation=activation, padding=1)
        z, of_conv = fastdl.vjp(F.conv2d, x, w, b, activation=activation, padding=1)
        want, of_pool = fastdl.vjp(F.max_pool2d, z, 2)
        np.testing.assert_array_equal(y, want)
        assert np.isnan(y).any()
        g = np.ones_like(y)
        (dx, dw, db), (dx2, dw2, db2) = pullback(g), of_conv(of_pool(g)[0])
    for a, other in ((dx, dx2), (dw, dw2), (db, db2)):
        assert not (np.isnan(a) & ~np.isnan(other)).any()
        finite = np.isfinite(other)
        np.testing.assert_allclose(a[finite], other[finite], rtol=1e-4, atol=1e-5)
    assert np.isnan(dw).any() and (activation == "tanh" or np.array_equal(np.isnan(dx), np.isnan(dx2)))
    y, pullback = fastdl.vjp(F.conv2d_max_pool2d, x[:0], w, b, activation=activation)
    for a, like in zip(pullback(y), (x[:0], w, b), strict=True):
        np.testing.assert_array_equal(a, np.zeros_like(like))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("x,w,padding", [((5, 1, 28, 28), (32, 1, 5, 5), 2), ((3, 32, 14, 14), (40, 32, 5, 5), 2)])
def test_any_number_of_threads(x, w, padding, layout):
    x, w, b = (a.astype("f4") for a in operands(x, w))
    x = channels_last(x) if layout == "channels_last" else x
    threads, answers = fastdl.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            fastdl.set_num_threads(count)
            y, pullback = fastdl.vjp(F.conv2d_max_pool2d, x, w, b, padding=padding, activation="relu")
            answers.append((y, *pullback(np.cos(y))))
    finally:
        fastdl.set_num_threads(threads)
    for answer in answers[1:]:
        for a, b_ in zip(answer, answers[0], strict=True):
            np.testing.assert_array_equal(a, b_)


def test_a_layer_trains_as_its_parts_do():
    """A Sequential keeps the pooled answer, and no other of the convolution's size, from one pass to the other."""
    model = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 8, 3, padding=1), nn.MaxPool2d(2),
                          nn.Tanh(), nn.MaxPool2d(2, 1))
    x = np.random.default_rng(0).standard_normal((4, 2, 64, 64)).astype("f4")
    answers = []
    for enabled in (True, False):
        with nn.fusion(enabled):
            model.zero_grad()
            for _ in range(3):  # what a second call with a form works out and keeps is none of a pass's memory
                model.vjp(x)
            gc.collect()
            tracemalloc.start()
            y, pullback = model.vjp(x)
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            answers.append((held, y, pullback(np.cos(y)), *(p.grad for p in model.parameters())))
    (held, *fused), (_, *apart) = answers
    for a, b in zip(fused, apart, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
    assert held < 4 * 16 * 64 * 64 * 4 / 2, "less than half of the first convolution's answer"


def test_max_pool_wants_two_cells():
    x, w, b = (a.astype("f4") for a in operands((2, 3, 4, 3), (5, 3, 2, 3)))
    with pytest.raises(ValueError, match=r"conv2d_max_pool2d: the convolution's answer has \(3, 1\) cells; the rule is at least 2"):
        F.conv2d_max_pool2d(x, w, b)


# ------------------------------------------------------------------------------------------------ sums
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(3, 5, 1, 7, 9), (2, 33, 2, 1, 5), (1, 3, 1, 1, 5000), (2, 20000, 1, 1, 3), (300, 7, 1, 3, 3),
                                   (0, 4, 1, 2, 2), (3, 4, 1, 0, 2), (40, 1, 1, 1, 1)])
def test_channel_sums(shape, dtype, layout):
    x = LAYOUTS[layout](np.random.default_rng(0).standard_normal(shape).astype(dtype))
    got = channel_sums(x)
    assert got.dtype == x.dtype
    assert_close(got, x.astype("f8").sum(axis=(0, 2, 3, 4)), "sum", max(1, x.size // shape[1]))


@kernel("i i R1 i L1 R1 W1")
def picked(n, count, scales, step, places, source, sums):
    add_rows(n, count, pointer(scales), step, pointer(places), pointer(source), pointer(sums))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_picked_rows(dtype):
    rng, lanes = np.random.default_rng(0), vector_bits() // (8 * np.dtype(dtype).itemsize)
    source = rng.standard_normal(4000).astype(dtype)
    for n in range(1, MOST_VECTORS + 1):
        for count in (0, 1, 2, 3, 4, 5, 11):
            scales, places = rng.standard_normal(3 * count + 1).astype(dtype), rng.integers(0, 4000 - n * lanes, count)
            sums = rng.standard_normal(n * lanes).astype(dtype)
            rows = source.astype("f8")[places[:, None] + np.arange(n * lanes)]
            want = sums + (scales[: 3 * count : 3, None].astype("f8") * rows).sum(axis=0)
            picked[sums.dtype.char](n, count, scales, 3, places, source, sums)
            assert_close(sums, want, "sum", count + 1)


@pytest.mark.parametrize("n", range(1, MOST_VECTORS + 1))
def test_picked_rows_do_not_spill(n):
    add = picked_rows(n)

    def run(count, scales, step, places, source, sums):
        add(count, pointer(scales), step, pointer(places), pointer(source), pointer(sums))

    run.__qualname__ = f"picked_{n}"
    loops = spills_of_loops(kernel("i R1 i L1 R1 W1")(run), "f", n)
    assert loops is None or (loops and not any(loops)), loops
