"""matmul, bmm and linear against torch."""

import contextlib
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from assembly import spills_of_loops
from checker import assert_close, check

import fastdl
import fastdl.functional as F
from fastdl import nn
from fastdl.cpu import narrow
from fastdl.cpu.blocking import KC, NC
from fastdl.cpu.dot_tiles import dot_tile, store_scalars
from fastdl.cpu.jit import kernel
from fastdl.cpu.microkernel import store_tile
from fastdl.cpu.picked_rows import STREAM_VECTORS, streamed_rows
from fastdl.cpu.simd import pointer
from fastdl.cpu.workspace import workspace
from fastdl.ops.matmul import numba_backend, numba_nonzeros

BACKENDS = ["reference", "numba"]
SIZES = [
    ((3, 4), (4, 5)),
    ((1, 1), (1, 1)),
    ((17, 33), (33, 19)),
    ((4,), (4, 3)),
    ((3, 4), (4,)),
    ((5,), (5,)),
    ((2, 3, 4), (4, 5)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((0, 4), (4, 3)),
    ((3, 0), (0, 4)),
    ((2, 3, 4), (2, 4, 5)),
    ((6, 20, 33), (6, 33, 40)),
    ((2, 3, 20, 5), (1, 3, 5, 70)),
    ((3, 0, 4), (3, 4, 5)),
    ((3, 2, 0), (3, 0, 5)),
    ((0, 2, 3), (0, 3, 5)),
    ((3, 70, 40), (3, 40, 70)),
    ((2, 1, 200, 20), (3, 20, 8)),
    ((5, 1, 90), (5, 90, 30)),
    ((3, 150, 130), (3, 130, 140)),
]


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("a,b", SIZES)
def test_matmul(a, b, backend, dtype, layout):
    rng = np.random.default_rng(0)
    check(F.matmul, torch.matmul, [rng.standard_normal(a), rng.standard_normal(b)], n=a[-1], backend=backend, dtype=dtype, layout=layout)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "leaky_relu", "elu", "tanh", "sigmoid", "softplus"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_activation(backend, activation):
    rng = np.random.default_rng(0)
    act = getattr(torch.nn.functional, activation) if activation else lambda z: z
    check(
        F.linear,
        lambda x, w, b: act(torch.nn.functional.linear(x, w, b)),
        [rng.standard_normal((7, 13)), rng.standard_normal((9, 13)), rng.standard_normal(9)],
        {"activation": activation},
        torch_options={},
        kind="transcendental",
        n=13,
        backend=backend,
    )


@pytest.mark.parametrize("options", [{}, {"beta": 0.5, "alpha": -2}, {"beta": 0}])
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m,k,n", [(5, 7, 9), (1, 40, 30), (70, 33, 50), (20, 3, 1), (0, 3, 4), (3, 0, 4)])
def test_addmm(m, k, n, backend, layout, options):
    rng = np.random.default_rng(0)
    for shape in [(), (n,), (1, n), (m, 1), (m, n)]:
        arrays = [rng.standard_normal(s) for s in (shape, (m, k), (k, n))]
        check(F.addmm, torch.addmm, arrays, options, n=k + 1, backend=backend, layout=layout)


def test_addmm_does_not_read_what_counts_nothing():
    a = np.ones((3, 4), "f4")
    for backend in BACKENDS:
        with fastdl.use_backend(backend):
            np.testing.assert_array_equal(F.addmm(np.full((3, 4), np.nan, "f4"), a, np.ones((4, 4), "f4"), beta=0), 4 * a)


@pytest.mark.parametrize("shapes,rule", [
    (((3,), (2, 3), (4, 3)), r"mat1 has shape \(2, 3\), mat2 has \(4, 3\)"),
    (((4,), (2, 3), (3, 5)), r"input has shape \(4,\); the rule is one that broadcasts to \(2, 5\)"),
    (((3, 5), (2, 3), (3, 5)), r"input has shape \(3, 5\)"),
    (((5,), (3,), (3, 5)), "mat1 has 1 dimensions"),
])
def test_addmm_refuses(shapes, rule):
    with pytest.raises(ValueError, match=rule):
        F.addmm(*(np.ones(s, "f4") for s in shapes))


def views(shape, rng, dtype):
    """A matrix in each memory layout a caller may have."""
    a = rng.standard_normal(shape).astype(dtype)
    wide = np.full((2 * shape[0] + 1, 2 * shape[1] + 1), np.nan, dtype)
    for view in (wide[1::2, 1::2][: shape[0]], wide[1 : 1 + shape[0], 1 : 1 + shape[1]], wide[shape[0] : 0 : -1, : shape[1]]):
        view[...] = a
        yield view.copy()
        yield view
    read_only = a.copy()
    read_only.flags.writeable = False
    yield read_only
    yield a.T.copy().T
    yield np.broadcast_to(a[:1], shape)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("m,k,n", [(1, 1, 1), (1, 1, 2), (2, 3, 1), (1, 40, 17), (1, 512, 512), (512, 512, 1), (9, 1, 7), (17, 20, 33),
                                   (64, 64, 64), (3, 0, 4), (0, 3, 4), (4, 3, 0)])
def test_small_products_are_served_at_once(m, k, n, dtype):
    """The plain case goes past dispatch: with any views, on memory that holds NaN; the same answer as the usual way."""
    rng = np.random.default_rng(0)
    serve = numba_backend.product_at_once[np.dtype(dtype).char]
    served = 0
    for a in views((m, k), rng, dtype):
        for b in views((k, n), rng, dtype):
            for _ in range(3):
                np.full((m, n), np.nan, dtype)  # numpy hands this memory out again
            y = serve(a, b)
            want = a.astype("f8") @ b.astype("f8")
            served += y is not None
            for answer in (F.matmul(a, b), F.matmul(a, b)) if y is None else (y, F.matmul(a, b)):
                assert answer.dtype == dtype and answer.flags.c_contiguous and answer.flags.owndata and answer.flags.writeable
                assert_close(answer, want, "sum", max(k, 1))
    assert served or n == 0 or m == 0 or k == 0


def test_what_is_not_plain_is_refused_as_ever():
    """With the kernel for small products ready, wrong input still raises what the checks say."""
    a, b = np.ones((3, 4), "f4"), np.ones((4, 5), "f4")
    F.matmul(a, b)
    assert F.matmul(a, b)[0, 0] == 4
    for bad, error, match in [((a, a), ValueError, "has shape"), ((a, b.astype("f8")), TypeError, "dtype"),
                              ((a, b.tolist()), TypeError, "list"), ((a, None), TypeError, "NoneType"),
                              ((a, torch.ones(4, 5)), TypeError, "torch tensor"), ((a,), TypeError, "other"),
                              ((a, b, b), TypeError, "arguments"), ((a.astype("i4"), b), TypeError, "int32")]:
        with pytest.raises(error, match=match):
            F.matmul(*bad)
    assert F.matmul(a, np.ones(4, "f4")).shape == (3,)
    with fastdl.use_backend("reference"):
        assert F.matmul(a, b)[0, 0] == 4
    with pytest.raises(ValueError, match="dimensions"):
        F.bmm(a, b)


def test_new_arrays_are_given_back():
    """An answer made in compiled code has one owner."""
    a = np.ones((64, 64), "f4")
    serve = numba_backend.product_at_once["f"]
    assert sys.getrefcount(serve(a, a)) == 1 + (sys.version_info < (3, 14))
    tracemalloc.start()
    try:
        serve(a, a)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            serve(a, a)
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_packed_weights_and_few_rows(dtype):
    """Every height of tile that passes a panel once, as it comes from memory, and those with whole tiles before it."""
    rng = np.random.default_rng(0)
    w, bias = rng.standard_normal((70, 1100)).astype(dtype), rng.standard_normal(70).astype(dtype)
    packed = fastdl.pack(w)
    for m in range(1, 27):
        a = rng.standard_normal((m, 1100)).astype(dtype)
        for rows in (a, np.asfortranarray(a)):
            want = np.maximum(rows.astype("f8") @ w.T.astype("f8") + bias, 0)
            assert_close(F.linear(rows, packed, bias, activation="relu"), want, "sum", 1100)


# each way through cpu/gemm.py, above the size from which threads share the work; k long enough for several passes
SHAPES = [(1, 1500, 300), (4, 600, 512), (7, 700, 333), (20, 300, 150), (33, 300, 400), (60, 1100, 70), (200, 900, 50), (130, 70, 3300),
          (700, 300, 1), (700, 300, 5), (3, 900, 40), (130, 2100, 16), (501, 130, 8), (94, 1030, 3)]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("m,k,n", SHAPES)
def test_any_number_of_threads(m, k, n, dtype):
    """The same bits, however rows and columns are shared out; weights packed before or not."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    bias, w = rng.standard_normal(n).astype(dtype), np.ascontiguousarray(b.T)
    packed = fastdl.pack(w)

    def run():
        return [F.matmul(a, b), F.matmul(a, w.T), F.matmul(np.asfortranarray(a), b), F.linear(a, packed, bias, activation="relu"),
                F.linear(a, w, bias, activation="tanh")]

    threads = fastdl.get_num_threads()
    try:
        fastdl.set_num_threads(1)
        want = run()
        for y in want[:3]:
            np.testing.assert_allclose(y, a.astype("f8") @ b.astype("f8"), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(want[3], np.maximum(want[0] + bias, 0), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(want[4], np.tanh(want[0] + bias), rtol=1e-4, atol=1e-3)
        for count in (2, 3, 5):
            fastdl.set_num_threads(count)
            for got, expected in zip(run(), want, strict=True):
                np.testing.assert_array_equal(got, expected)
    finally:
        fastdl.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("k", [0, 1, 15, 70, 1025, 9000])
@pytest.mark.parametrize("n", [2, 4, 7, 8, 13, 16])
def test_few_columns(n, k, dtype):
    """b turned, or as it lies; a's rows far apart; every last step; more of k than b's columns may have."""
    rng = np.random.default_rng(0)
    m, n = 70 if k < 5000 else 40, n // 2 if dtype == "f8" else n
    wide = rng.standard_normal((m, k + 5)).astype(dtype)
    for a in (wide[:, :k], wide[::-1, 3 : k + 3], np.ascontiguousarray(wide[:, :k])):
        b, bias = rng.standard_normal((k, n)).astype(dtype), rng.standard_normal(n).astype(dtype)
        w, x = np.ascontiguousarray(b.T), rng.standard_normal((m, n)).astype(dtype)
        want = a.astype("f8") @ b.astype("f8")
        for y in (F.matmul(a, b), F.matmul(a, w.T), F.matmul(a, np.repeat(b, 2, 1)[:, ::2])):
            assert_close(y, want, "sum", max(k, 1))
        assert_close(F.addmm(x, a, b), want + x, "sum", k + 1)
        for weight in (w, fastdl.pack(w)):
            assert_close(F.linear(a, weight, bias, activation="relu"), np.maximum(want + bias, 0), "sum", k + 1)
            linear = nn.Linear(k, n) if k and dtype == "f4" else None
            if linear:
                linear.weight.data, linear.bias.data = w, bias
                assert_close(linear(a), want + bias, "sum", k + 1)
        if k > 3:
            broken = a.copy()
            broken[5, 2], broken[33, k - 1] = np.nan, np.inf
            y = F.matmul(broken, b)
            assert np.isnan(y[5]).all() and not np.isfinite(y[33]).any() and np.isfinite(np.delete(y, [5, 33], 0)).all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("m,k,n", [(1, 70, 30), (8, 30, 20), (40, 90, 8), (33, 90, 65), (70, 100, 100)])
def test_batches_on_any_number_of_threads(m, k, n, dtype):
    """The same bits as one product after the other; a matrix of a batch may be turned, or stand for all."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 5, m, k)).astype(dtype), rng.standard_normal((5, n, k)).astype(dtype).swapaxes(1, 2)
    threads = fastdl.get_num_threads()
    try:
        fastdl.set_num_threads(1)
        want = F.matmul(a, b)
        np.testing.assert_allclose(want, a.astype("f8") @ b.astype("f8"), rtol=1e-4, atol=1e-4)
        for count in (2, 3):
            fastdl.set_num_threads(count)
            np.testing.assert_array_equal(F.matmul(a, b), want)
            np.testing.assert_allclose(F.matmul(a[:, ::2], b[:1]), a[:, ::2] @ b[:1], rtol=1e-3, atol=1e-4)
    finally:
        fastdl.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_scratch_memory_is_bounded(threads, dtype, monkeypatch):
    """At most 2 MB a thread and one packed panel of b, however large the product."""
    asked = []

    def recording(elements, kind):
        asked.append(elements * kind.itemsize)
        return workspace(elements, kind)

    monkeypatch.setattr(numba_backend, "workspace", recording)
    before = fastdl.get_num_threads()
    fastdl.set_num_threads(threads)
    try:
        for m, k, n in [(1, 600, 100_000), (1, 20_000, 300), (12, 3000, 700), (64, 3000, 500), (65, 3000, 500), (300, 1100, 4000),
                        (3000, 1100, 40)]:
            a, b = np.ones((m, k), dtype), np.ones((k, n), dtype)
            for right in (b, np.ascontiguousarray(b.T).T):
                asked.clear()
                assert (F.matmul(a, right) == k).all()
                panel = min(k, KC) * (min(n, NC) + 64) * a.itemsize if m > numba_backend.FEW_ROWS else 0
                assert sum(asked) <= threads * (2 << 20) + panel, (m, k, n, asked)
        asked.clear()
        F.matmul(np.ones((40, 100, 1300), dtype), np.ones((40, 16, 1300), dtype).swapaxes(1, 2))
        assert asked and max(asked) <= threads * (2 << 20)
    finally:
        fastdl.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ past zeros
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("n,k,zeros", [(1024, 1100, 0.5), (1000, 701, 0.3), (1025, 640, 1.0), (640, 1537, 0.999), (1100, 500, 0.1),
                                       (257, 2100, 0.9)])
def test_a_row_with_zeros_times_a_kept_weight(n, k, zeros, dtype, monkeypatch):
    monkeypatch.setattr(numba_nonzeros, "NONZERO_WEIGHTS", 0)
    rng = np.random.default_rng(0)
    x, w, bias = (rng.standard_normal(s).astype(dtype) for s in ((1, k), (n, k), (n,)))
    x[0, rng.random(k) < zeros] = 0
    packed = fastdl.pack(w)
    for row in (x, x[:, ::-1], -x):
        want = np.maximum(row.astype("f8") @ w.T.astype("f8") + bias, 0)
        for threads in (1, 2):
            with threads_set(threads):
                assert_close(F.linear(row, packed, bias, activation="relu"), want, "sum", k)
                assert_close(F.linear(row, packed), row.astype("f8") @ w.T.astype("f8"), "sum", k)
    assert ("nonzeros" in {key[0] for key in packed.base.forms if isinstance(key, tuple)}) == (zeros > 0.12)


def threads_set(n):
    @contextlib.contextmanager
    def during():
        before = fastdl.get_num_threads()
        fastdl.set_num_threads(n)
        try:
            yield
        finally:
            fastdl.set_num_threads(before)

    return during()


def test_what_is_not_finite_meets_its_zeros(monkeypatch):
    monkeypatch.setattr(numba_nonzeros, "NONZERO_WEIGHTS", 0)
    x, w = np.zeros((1, 400), "f4"), np.ones((300, 400), "f4")
    x[0, 7] = 1
    w[5, 9], w[6, 9] = np.inf, np.nan
    y = F.linear(x, fastdl.pack(w))
    assert np.isnan(y[0, [5, 6]]).all() and np.count_nonzero(np.isnan(y)) == 2
    w[:] = 1
    x[0, 8] = np.nan
    assert np.isnan(F.linear(x, fastdl.pack(w))).all()


def test_tiles_of_few_columns_do_not_spill():
    tile, rows = dot_tile(narrow.COLUMNS, narrow.ROWS), narrow.ROWS

    def run(k, a, a_row, b, b_row, c, add):
        store_scalars(tile(k, pointer(b), b_row, pointer(a), a_row), pointer(c), 1, 4, rows, add)

    loops = spills_of_loops(kernel("i R1 i R1 i W1 b")(run), "f", narrow.COLUMNS * narrow.ROWS)
    assert loops is None or (loops and not any(loops)), loops


def test_streamed_rows_do_not_spill():
    add, store = streamed_rows(STREAM_VECTORS), store_tile(1, STREAM_VECTORS)

    def run(half, scales, places, source, sums):
        store(add(half, pointer(scales), pointer(places), pointer(source)), pointer(sums), 0, 1, sums.shape[0], False)

    loops = spills_of_loops(kernel("i R1 L1 R1 W1")(run), "f", STREAM_VECTORS)
    assert loops is None or (loops and not any(loops)), loops
