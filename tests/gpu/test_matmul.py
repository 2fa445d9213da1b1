"""Matrix products on a GPU against torch in float64."""

import pytest
import torch
from cases import DEVICE, DTYPES, NAMES, check, far_apart, randn

import fastdl.functional as F
from fastdl.gpu import configs, device
from fastdl.ops.matmul.triton_fp8 import _quantised

POINTERS = dict(BM=16, BN=32, BK=16, GROUP=2, num_warps=4, num_stages=1)


@pytest.mark.parametrize("a,b", [((3, 4), (4, 5)), ((1, 1), (1, 1)), ((17, 33), (33, 19)), ((4,), (4, 3)), ((3, 4), (4,)), ((5,), (5,)),
                                 ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 2)), ((0, 4), (4, 3)), ((3, 0), (0, 4)), ((3, 0, 4), (3, 4, 5)),
                                 ((2, 3, 20, 5), (1, 3, 5, 70)), ((2, 1, 2, 9, 5), (3, 1, 5, 7))])
def test_matmul(a, b):
    for layout in ("contiguous", "strided"):
        check(F.matmul, torch.matmul, [randn(*a), randn(*b, seed=1)], n=a[-1], layout=layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("splits", [1, 3])
def test_pointers(dtype, splits):
    """Tails in every direction, both memory orders of both operands, one pass and a split reduction."""
    with configs.use("product", **POINTERS, MAX_SPLITS=splits), configs.use("product_by_tiles", use=0):
        a, b = randn(20, 200), randn(200, 41)
        for x, y in ((a, b), (a.mT.contiguous().mT, b.mT.contiguous().mT)):
            check(F.matmul, torch.matmul, [x, y], n=200, dtype=dtype)


@pytest.mark.parametrize("halves", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_tiles(dtype, halves):
    """The copy engine's way, persistent: more tiles than programs, tails, transposed operands."""
    if not device.of(torch.empty(1, device=DEVICE)).tensor_memory_access:
        pytest.skip("this GPU has no tensor memory access")
    blocks = dict(BM=64, BN=64, BK=32) if DEVICE == "cuda" else dict(BM=16, BN=32, BK=16)
    with configs.use("product_by_tiles", GROUP=2, HALVES=halves, num_warps=4, num_stages=2, **blocks):
        a, b = randn(40, 40), randn(40, 72)
        check(F.matmul, torch.matmul, [a, b], n=40, dtype=dtype)
        check(lambda x, y: F.matmul(x, y.mT), lambda x, y: x @ y.mT, [a, b.mT.contiguous()], n=40, dtype=dtype)


def test_split_sums_have_one_order():
    a, b = randn(3, 2000).float().to(DEVICE), randn(2000, 5).float().to(DEVICE)
    with configs.use("product", **POINTERS, MAX_SPLITS=8):
        first = F.matmul(a, b)
        assert all(torch.equal(first, F.matmul(a, b)) for _ in range(3))


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "leaky_relu", "elu", "tanh", "sigmoid", "softplus", ("leaky_relu", -0.5)])
def test_linear_activation(activation):
    name, *slope = activation if isinstance(activation, tuple) else (activation,)
    act = (lambda z: getattr(torch.nn.functional, name)(z, *slope)) if name else lambda z: z
    check(F.linear, lambda x, w, b: act(torch.nn.functional.linear(x, w, b)), [randn(7, 13), randn(9, 13), randn(9)],
          {"activation": activation}, torch_options={}, kind="transcendental", n=13)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
@pytest.mark.parametrize("shape", [(7, 13), (2, 3, 13), (13,), (0, 13), (40, 70)])
def test_linear(shape, dtype):
    k = shape[-1]
    arrays = [randn(*shape), randn(9, k), randn(9)]
    check(F.linear, torch.nn.functional.linear, arrays, n=k, dtype=dtype)
    check(F.linear, lambda x, w, b: torch.relu(torch.nn.functional.linear(x, w, b)), arrays, {"activation": "relu"}, torch_options={},
          n=k, dtype=dtype)


@pytest.mark.parametrize("options", [{}, {"beta": 0.5, "alpha": -2}, {"beta": 0}])
@pytest.mark.parametrize("splits", [1, 3])
def test_addmm(options, splits):
    with configs.use("product", **POINTERS, MAX_SPLITS=splits):
        for shape in [(), (9,), (5, 1), (5, 9)]:
            check(F.addmm, torch.addmm, [randn(*shape), randn(5, 130), randn(130, 9)], options, n=131)


def test_bmm():
    check(F.bmm, torch.bmm, [randn(3, 17, 20), randn(3, 20, 9)], n=20)


def test_beyond_two_to_the_31_elements():
    """Rows a hundred million elements apart: the offset of the last does not fit 32 bits."""
    a, b = randn(32, 20).half(), randn(20, 9).half().to(DEVICE)
    assert torch.equal(F.matmul(far_apart(a, 100_000_000), b), F.matmul(a.to(DEVICE), b))
    with configs.use("product_by_tiles", use=0):
        assert torch.equal(F.matmul(far_apart(a, 100_000_000), b), F.matmul(a.to(DEVICE), b))


def test_nan_and_infinity_stay():
    a, b = randn(5, 6).float(), randn(6, 7).float()
    a[1, 2], a[2, 0], b[5, 6] = float("nan"), float("inf"), float("-inf")
    y = F.matmul(a.to(DEVICE), b.to(DEVICE)).cpu()
    want = a @ b
    assert torch.equal(y.isnan(), want.isnan()) and torch.equal(y.isinf(), want.isinf())


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_fp8(dtype):
    """Against the product of the rounded operands; the gradients are those of the product without rounding.

    Triton's interpreter loses a carry when it rounds up to a power of two, so there the rounding itself is only nearly torch's.
    """
    if DEVICE == "cuda" and device.of(torch.empty(1, device=DEVICE)).capability < 89:
        pytest.skip("this GPU has no 8-bit floats")
    x, w, b = randn(17, 48).to(dtype), randn(20, 48).to(dtype), randn(20).to(dtype)
    x[3] = 0.0
    x[5] *= 1000.0

    def rounded(t):
        scale = t.abs().amax(1, keepdim=True).float() / 448.0
        scale[scale == 0] = 1.0
        want = (t.float() / scale).to(torch.float8_e4m3fn).float()
        q, of_rows = _quantised(t.to(DEVICE))
        q = q.float().cpu()
        torch.testing.assert_close(of_rows.cpu(), scale[:, 0])
        assert (q != want).float().mean() < (0.01 if DEVICE == "cuda" else 0.1)
        return q.double() * scale.double()

    want = torch.relu(rounded(x) @ rounded(w).mT + b.double())
    ours = [t.to(DEVICE).requires_grad_() for t in (x, w, b)]
    y = F.linear(*ours, activation="relu", precision="fp8")
    assert y.dtype == dtype
    error = (y.detach().cpu().double() - want).norm() / want.norm()
    # Hopper's matrix unit adds products of 8-bit floats with 14 bits
    assert error < {torch.float32: 2e-4 if DEVICE == "cuda" else 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}[dtype]
    exact = torch.relu(x.double() @ w.double().mT + b.double())
    assert (want - exact).norm() > 1e-3 * exact.norm()
    g = randn(17, 20).to(dtype)
    y.backward(g.to(DEVICE))
    dz = g.double() * (want > 0)
    error = (ours[1].grad.cpu().double() - dz.mT @ x.double()).norm() / (dz.mT @ x.double()).norm()
    assert error < 0.02
    torch.testing.assert_close(F.matmul(ours[0], ours[1].mT, precision="fp8").detach().cpu().double(), rounded(x) @ rounded(w).mT,
                               rtol=0.02, atol=0.5 if dtype is torch.bfloat16 else 0.05)


def test_fp8_is_for_two_matrices():
    a = randn(2, 3, 4).float().to(DEVICE)
    with pytest.raises(ValueError, match="with precision='fp8'"):
        F.matmul(a, a.mT, precision="fp8")
    with pytest.raises(ValueError, match="precision is 'fp4'"):
        F.linear(a, a[0], precision="fp4")
