"""The input of later steps multiplied along with the state: the same bits as by itself, at every size."""

import numpy as np
import pytest
from assembly import spills_of_loops
from checker import assert_close

import fastdl
from fastdl import nn
from fastdl.cpu import parallel
from fastdl.cpu.blocking import LANES
from fastdl.cpu.jit import kernel
from fastdl.cpu.simd import pointer
from fastdl.ops.rnn import numba_beside, numba_plan
from fastdl.ops.rnn.numba_beside import CAN_STAND_BESIDE, Work, finish_work, product_beside
from fastdl.ops.rnn.numba_product import PANEL, pack

KINDS = {"RNN": nn.RNN, "LSTM": nn.LSTM}


def data(*shape, dtype="f4", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def answers(kind, steps, features, hidden, dtype, options):
    layer = KINDS[kind](features, hidden, dtype=np.dtype(dtype), **options)
    rng = np.random.default_rng(1)
    for p in layer.parameters():
        p.data = (rng.standard_normal(p.data.shape) / hidden**0.5).astype(dtype)
    x = data(steps, 1, features, dtype=dtype)
    (y, _), pullback = layer.vjp(x)
    return layer, x, [layer(x)[0], layer(x)[0], y, pullback((np.ones_like(y), None))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("steps,features,hidden,options", [
    (24, 96, 70, {}), (31, 130, 128, {"bidirectional": True}), (40, 300, 33, {"num_layers": 2}), (65, 128, 256, {}),
    (39, 97, 64, {"bias": False})])
def test_same_bits_as_without(kind, steps, features, hidden, options, dtype, monkeypatch):
    """Any number of steps, more features than a state has units, pieces and panels that are not full."""
    threads = parallel.get_num_threads()
    parallel.set_num_threads(1)
    try:
        monkeypatch.setattr(numba_plan, "MOST_BESIDE", 0)
        numba_plan._plan.cache_clear()
        _, _, want = answers(kind, steps, features, hidden, dtype, options)
        monkeypatch.setattr(numba_plan, "LEAST_BESIDE", 0)
        monkeypatch.setattr(numba_plan, "MOST_BESIDE", 1 << 10)
        numba_plan._plan.cache_clear()
        layer, x, got = answers(kind, steps, features, hidden, dtype, options)
    finally:
        numba_plan._plan.cache_clear()
        parallel.set_num_threads(threads)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    with fastdl.use_backend("reference"):
        assert_close(got[0], layer(x)[0].astype("f8"), "recurrent", hidden)


@kernel("R1 R1 R2 R1 R1 W1 W2 i i")
def beside(h, w, x, w_x, bias, out, gates, first, last):
    k = h.shape[0]
    work = Work(pointer(x), x.shape[1], x.shape[1], pointer(w_x), pointer(bias), pointer(gates), gates.shape[1], first, last)
    n = product_beside(work, first, pointer(bias), pointer(h), k, pointer(w), 0, pointer(out))
    finish_work(work, n)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("k,features,panels", [(1, 1, 1), (300, 128, 2), (129, 127, 3), (64, 257, 2)])
def test_products(k, features, panels, dtype):
    """Both products, whichever is the longer one; a product that has nothing beside it; tiles begun in one call and ended in the next."""
    char = np.dtype(dtype).char
    width = PANEL * LANES[char]
    weights, of_input = data(4 * width, k, dtype=dtype), data(panels * width, features, dtype=dtype, seed=1)
    w, w_x = np.full(4 * width * k, np.nan, dtype), np.full(panels * width * features, np.nan, dtype)
    pack[char](0, weights, 1, w)
    pack[char](0, of_input, 1, w_x)
    h, x, bias = data(k, dtype=dtype, seed=2), data(8, features, dtype=dtype, seed=3), data(4 * width, dtype=dtype, seed=4)
    out, gates = np.full(4 * width, np.nan, dtype), np.full((8, panels * width), np.nan, dtype)
    tiles = panels * -(-features // numba_beside.PIECE)
    for first, last in ((0, tiles // 2), (tiles // 2, tiles), (tiles, tiles)):
        beside[char](h, w, x, w_x, bias, out, gates, first, last)
        assert_close(out, bias + weights.astype("f8") @ h, "sum", k)
    assert_close(gates, bias[:panels * width] + x.astype("f8") @ of_input.astype("f8").T, "sum", features)


def test_loops_do_not_spill():
    loops = spills_of_loops(beside, "f", 8)
    assert loops is None or not CAN_STAND_BESIDE or (len(loops) >= 3 and not any(loops)), loops
