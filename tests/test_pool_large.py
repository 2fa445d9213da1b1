"""Pooling answers that are larger than the caches: in memory that is used again, with channels side by side written past the caches."""

import numpy as np
import pytest
from checker import channels_last

import fastdl
import fastdl.functional as F
from fastdl import nn
from fastdl.cpu.features import caches
from fastdl.ops.pool import numba_backend


@pytest.fixture
def small_caches(monkeypatch):
    monkeypatch.setattr(numba_backend, "caches", lambda: caches()._replace(l3=64))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("channels", [2, 3, 4, 20, 64, 70, 130, 192])
@pytest.mark.parametrize("options", [(2, 2, 0), (3, 2, 1), (7, 1, 3)])
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
def test_past_the_caches(last, options, channels, dtype, small_caches):
    options = dict(zip(("kernel_size", "stride", "padding"), options, strict=True))
    x = np.random.default_rng(0).standard_normal((2, channels, 12, 9)).astype(dtype)
    x = channels_last(x) if last else x
    x[0, 0, 3, 4] = np.nan
    for f, layer in ((F.max_pool2d, nn.MaxPool2d(**options)), (F.avg_pool2d, nn.AvgPool2d(**options))):
        with fastdl.use_backend("reference"):
            want = f(x, **options)
        answers = []
        for threads in (1, 2):
            before = fastdl.get_num_threads()
            fastdl.set_num_threads(threads)
            answers += [f(x, **options), layer(x), layer(x)]
            fastdl.set_num_threads(before)
        for y in answers:
            np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(y, answers[0])
            assert y.strides == want.strides and y.flags.writeable
        assert not any(np.shares_memory(a, b) for i, a in enumerate(answers) for b in answers[:i])


def test_an_answer_keeps_its_memory():
    """One beyond the caches of this machine; a view of it outlives it, and what comes after is other memory."""
    side = int((caches().l3 / 4 / 64) ** 0.5) + 2
    x = np.broadcast_to(np.float32(1), (1, 2 * side, 2 * side, 64)).transpose(0, 3, 1, 2)
    view = F.max_pool2d(x, 2)[:, :3, -1]
    other = F.max_pool2d(x * np.float32(2), 2)
    assert (view == 1).all() and (other == 2).all()
