"""matmul, bmm and linear against torch."""

import numpy as np
import pytest
import torch
from checker import check

import fastdl
import fastdl.functional as F
from fastdl.cpu.blocking import KC, NC
from fastdl.cpu.workspace import workspace
from fastdl.ops.matmul import numba_backend

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


# each way through cpu/gemm.py, above the size from which threads share the work; k long enough for several passes
SHAPES = [(1, 1500, 300), (4, 600, 512), (7, 700, 333), (20, 300, 150), (33, 300, 400), (60, 1100, 70), (200, 900, 50), (130, 70, 3300),
          (700, 300, 1), (700, 300, 5), (3, 900, 40)]


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
@pytest.mark.parametrize("m,k,n", [(1, 70, 30), (8, 30, 20), (33, 90, 65), (70, 100, 100)])
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
