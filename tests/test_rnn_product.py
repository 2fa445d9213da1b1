"""The products of the recurrent kernels: right at every remainder, the same bits for every number of rows, nothing spilled."""

import numpy as np
import pytest
from assembly import spills_of_loops
from checker import assert_close

from fastdl.cpu.features import vector_bits
from fastdl.cpu.jit import kernel
from fastdl.cpu.simd import lanes, offset, pointer
from fastdl.ops.rnn.numba_product import PANEL, blocks_of, pack, product


@kernel("R2 i i R1 W2")
def multiply(a, first, last, packed, out):
    width = PANEL * lanes(pointer(a))
    target = offset(pointer(out), first * width)
    product(pointer(a), a.shape[1], a.shape[0], a.shape[1], pointer(packed), first, last, target, out.shape[1])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("gates,units,k", [(1, 1, 1), (3, 37, 5), (4, 20, 33), (2, 16, 0)])
def test_every_number_of_rows(gates, units, k, dtype):
    rng = np.random.default_rng(0)
    a, w = rng.standard_normal((30, k)).astype(dtype), rng.standard_normal((gates * units, k)).astype(dtype)
    lanes = vector_bits() // (8 * w.itemsize)
    blocks, width = blocks_of(units, lanes), PANEL * lanes
    char = a.dtype.char
    packed = np.full(blocks * gates * width * k + 1, np.nan, dtype)
    pack[char](0, w, gates, packed)
    want = np.zeros((30, gates, blocks * width))
    want[:, :, :units] = (a.astype("f8") @ w.T.astype("f8")).reshape(30, gates, units)
    want = want.reshape(30, gates, blocks, width).swapaxes(1, 2).reshape(30, -1)
    whole = np.full(want.shape, np.nan, dtype)
    multiply[char](a, 0, blocks * gates, packed, whole)
    assert_close(whole, want, "sum", max(k, 1))
    for m in range(30):
        out = np.full((m, want.shape[1]), np.nan, dtype)
        half = blocks * gates // 2
        multiply[char](a[:m], 0, half, packed, out)
        assert np.isnan(out[:, half * width:]).all()
        multiply[char](a[:m], half, blocks * gates, packed, out)
        np.testing.assert_array_equal(out, whole[:m])


def test_loops_do_not_spill():
    """In no loop of the machine code that multiplies does a vector register go to or come from the stack."""
    loops = spills_of_loops(multiply, "f", 8)
    assert loops is None or (len(loops) >= 4 and not any(loops)), loops
