"""The vector type: every function of cpu/simd.py against numpy, at the machine's width (test_widths.py runs the others)."""

import numpy as np
import pytest

from fastdl.cpu.features import vector_bits
from fastdl.cpu.jit import inline, kernel
from fastdl.cpu.simd import (
    absolute,
    any_lane,
    broadcast,
    copysign,
    fma,
    gather,
    hmax,
    hsum,
    lanes,
    larger,
    load,
    load_bf16,
    load_n,
    load_rows,
    maximum,
    minimum,
    offset,
    pointer,
    prefetch,
    rint,
    select,
    smaller,
    splat,
    sqrt,
    store,
    store_bf16,
    store_n,
    store_rows,
    transpose,
)

DTYPES = ["f4", "f8"]


def width(dtype):
    return vector_bits() // (8 * np.dtype(dtype).itemsize)


@inline
def _mixed(a, b):
    return select(a > b, fma(a, b, -a), (a - b) / (absolute(b) + splat(b, 1.0)))


@kernel("R1 R1 W1 W1 W1 W1")
def elementwise(x, y, mixed, big, small, roots):
    p, q = pointer(x), pointer(y)
    V = lanes(p)
    for i in range(0, x.shape[0], V):
        n = min(V, x.shape[0] - i)
        a, b = load_n(p, i, n), load_n(q, i, n)
        store_n(pointer(mixed), i, _mixed(a, b), n)
        store_n(pointer(big), i, maximum(a, b), n)
        store_n(pointer(small), i, minimum(a, b), n)
        store_n(pointer(roots), i, copysign(sqrt(rint(absolute(a))), b), n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 3, 7, 8, 9, 16, 17, 33])
def test_elementwise(dtype, n):
    rng = np.random.default_rng(n)
    x, y = (np.round(4 * rng.standard_normal(n), 1).astype(dtype) for _ in range(2))
    if n > 7:
        x[0] = y[1] = x[2] = y[2] = np.nan
        x[3], y[4] = np.inf, -np.inf
    outs = [np.full(n + 3, 77, dtype) for _ in range(4)]
    elementwise[x.dtype.char](x, y, *(o[:n] for o in outs))
    with np.errstate(all="ignore"):
        wants = [np.where(x > y, (x.astype("f8") * y - x).astype(dtype), (x - y) / (abs(y) + 1)), np.maximum(x, y), np.minimum(x, y),
                 np.copysign(np.sqrt(np.rint(abs(x))), y)]
    for k, (out, want) in enumerate(zip(outs, wants, strict=True)):
        assert (out[n:] == 77).all(), "written past the end"
        if k == 0:
            np.testing.assert_allclose(out[:n], want, rtol=4 * np.finfo(dtype).eps)
        else:
            np.testing.assert_array_equal(out[:n], want)


@kernel("R1 W1")
def one_sided(x, out):
    p, q = pointer(x), pointer(out)
    V = lanes(p)
    a, b = load(p, 0), load(p, V)
    store(q, 0, larger(a, b))
    store(q, V, smaller(a, b))
    return hsum(a), hmax(a), hmax(b), any_lane(a > b), any_lane(a > splat(a, 1e9)), any_lane(a != a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_across_lanes(dtype):
    V = width(dtype)
    x = np.random.default_rng(0).standard_normal(2 * V).astype(dtype)
    out = np.empty_like(x)
    total, top, other, some, none, nan = one_sided[x.dtype.char](x, out)
    np.testing.assert_allclose(total, x[:V].sum(), rtol=1e-5)
    assert (top, other, some, none, nan) == (x[:V].max(), x[V:].max(), (x[:V] > x[V:]).any(), False, False)
    for at in (0, V - 1):
        y = x.copy()
        y[at] = np.nan
        _, top, _, _, _, nan = one_sided[x.dtype.char](y, out)
        assert np.isnan(top) and nan
        assert np.isnan(out[at])  # larger and smaller keep a NaN of the first operand


@kernel("R1 W1 W1 W1 i")
def moves(x, turned, gathered, repeated, step):
    p = pointer(x)
    V = lanes(p)
    prefetch(p, 0)
    store_rows(pointer(turned), 0, V, transpose(load_rows(p, 1, V)))
    store(pointer(gathered), 0, gather(offset(p, 2), 1, step))
    store(pointer(repeated), 0, broadcast(p, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_moves(dtype):
    V = width(dtype)
    x = np.arange(V * V + 5 * V + 9, dtype=dtype)
    turned, gathered, repeated = np.empty(V * V, dtype), np.empty(V, dtype), np.empty(V, dtype)
    moves[x.dtype.char](x, turned, gathered, repeated, 5)
    np.testing.assert_array_equal(turned.reshape(V, V), x[1 : 1 + V * V].reshape(V, V).T)
    np.testing.assert_array_equal(gathered, x[3 : 3 + 5 * V : 5])
    assert (repeated == 3).all()


@kernel("R1 S1 W1", dtypes="f")
def through_bf16(x, half, back):
    p, h = pointer(x), pointer(half)
    for i in range(0, x.shape[0], lanes(p)):
        store_bf16(h, i, load(p, i))
        store(pointer(back), i, load_bf16(h, i))


def test_bfloat16_rounds_to_nearest_even():
    import torch

    x = np.random.default_rng(0).standard_normal(64).astype("f4") * np.float32(1e3)
    x[:8] = [np.inf, -np.inf, np.nan, 0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, np.finfo("f4").max]
    half, back = np.empty(64, np.int16), np.empty(64, "f4")
    through_bf16["f"](x, half, back)
    np.testing.assert_array_equal(back, torch.from_numpy(x).bfloat16().float().numpy())


def test_unaligned_strided_and_read_only_arrays_run_the_same_code():
    raw = np.zeros(4 * 40 + 1, np.uint8)
    x = raw[1:].view("f4")
    x[:] = np.arange(40)
    x.flags.writeable = False
    out = [np.empty(40, "f4") for _ in range(4)]
    elementwise["f"](x, x, *out)
    np.testing.assert_array_equal(out[1], np.arange(40))
    assert len(elementwise.dispatchers["f"].signatures) == 1
