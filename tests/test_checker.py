"""The checker itself: it passes what is right and catches a planted fault of every kind."""

import numpy as np
import pytest
import torch
from checker import assert_close, check
from tolerances import FACTORS, bounds

import fastdl
import fastdl.functional as F

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((6, 16)), RNG.standard_normal((16, 8))


class Faulty:
    """matmul with a fault: each argument is a function that changes an answer, in place or by returning another."""

    def __init__(self, forward=None, trained=None, gradient=None, on_input=None):
        keep = lambda a: a
        self.forward, self.trained, self.gradient, self.on_input = forward or keep, trained or keep, gradient or keep, on_input or keep

    def __call__(self, a, b):
        y = F.matmul(a, b)
        self.on_input(a)
        return self.forward(y)

    def vjp(self, a, b):
        y, pullback = fastdl.vjp(F.matmul, a, b)

        def faulty(grad, needs=None):
            da, db = pullback(grad, needs)
            return da, self.gradient(db)

        return self.trained(y), faulty


def run(fault, a=A, dtype="f4", layout="contiguous"):
    check(fault, torch.matmul, [a, B], n=16, dtype=dtype, layout=layout, backend="reference")


def scaled(where, factor=1.001):
    def change(y):
        y[where] *= factor
        return y

    return change


LARGEST = np.unravel_index(np.argmax(np.abs(A @ B)), (6, 8))


@pytest.mark.parametrize("layout", ["contiguous", "strided", "channels_last"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_is_right_passes(dtype, layout):
    run(Faulty(), dtype=dtype, layout=layout)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("where", [LARGEST, (0, 0), (5, 7), slice(None)], ids=["largest", "first", "last", "all"])
@pytest.mark.parametrize("part,named", [("forward", "output 0:"), ("trained", "output 0 of vjp:")])
def test_a_fault_of_a_thousandth(part, named, where, dtype):
    with pytest.raises(AssertionError, match=named):
        run(Faulty(**{part: scaled(where)}), dtype=dtype)


@pytest.mark.parametrize("where", [(3, 3), slice(None)], ids=["one", "all"])
def test_a_gradient_that_is_wrong(where):
    with pytest.raises(AssertionError, match="gradient 1: "):
        run(Faulty(gradient=scaled(where)))


def test_a_gradient_that_is_missing():
    with pytest.raises(AssertionError, match="gradient 1 is missing"):
        run(Faulty(gradient=lambda g: None))


def test_a_gradient_that_should_not_be():
    class Embedding:
        def __call__(self, index, weight):
            return weight[index]

        def vjp(self, index, weight):
            return weight[index], lambda grad, needs=None: (np.zeros(2, "f4"), np.ones_like(weight))

    with pytest.raises(AssertionError, match="gradient 0 is not None"):
        check(Embedding(), torch.nn.functional.embedding, [np.array([0, 1]), RNG.standard_normal((2, 3))], kind="exact")


@pytest.mark.parametrize("part", ["forward", "trained", "gradient"])
def test_another_dtype(part):
    with pytest.raises(AssertionError):
        run(Faulty(**{part: lambda y: y.astype("f8")}))


@pytest.mark.parametrize("change", [lambda y: y.T, lambda y: y[None], lambda y: y[:-1], lambda y: y.ravel()])
def test_another_shape(change):
    with pytest.raises(AssertionError, match="shape"):
        run(Faulty(forward=change))
    with pytest.raises(AssertionError, match="gradient 1: shape"):
        run(Faulty(gradient=change))


def with_nan(value=np.nan):
    a = A.copy()
    a[2, 3] = value
    return a


def test_a_nan_in_its_place_passes():
    check(Faulty(), torch.matmul, [with_nan(), B], n=16, backend="reference", gradients=False)


@pytest.mark.parametrize("change", [lambda y: np.roll(y, 1, axis=0), np.nan_to_num, lambda y: y * np.nan], ids=["moved", "lost", "more"])
def test_a_nan_elsewhere(change):
    with pytest.raises(AssertionError, match="NaN in other places"):
        run(Faulty(forward=change), a=with_nan())


@pytest.mark.parametrize("change", [lambda y: -y, lambda y: np.nan_to_num(y, posinf=3e38, neginf=-3e38)], ids=["sign", "lost"])
def test_an_infinity_elsewhere(change):
    with pytest.raises(AssertionError, match="infinities"):
        run(Faulty(forward=change), a=with_nan(np.inf))


def test_an_infinity_where_there_is_none():
    with pytest.raises(AssertionError, match="not finite where the reference is"):
        run(Faulty(forward=scaled((0, 0), np.inf)))


def test_an_input_that_is_written_to():
    def write(a):
        a[5, 0] += 1

    with pytest.raises(AssertionError):
        run(Faulty(on_input=write))
    with pytest.raises(ValueError, match="read-only"):  # this layout's views cannot be written to
        run(Faulty(on_input=write), layout="strided")


def test_an_integer_output_that_is_wrong():
    indices = lambda x: torch.nn.functional.max_pool1d(x, 2, return_indices=True)

    class Pool:
        def __call__(self, x):
            y, i = F.max_pool1d(x, 2, return_indices=True)
            return y, i + (np.arange(i.size).reshape(i.shape) == 1)

    x = RNG.standard_normal((1, 2, 6))
    check(lambda x: F.max_pool1d(x, 2, return_indices=True), indices, [x], kind="exact", gradients=False)
    with pytest.raises(AssertionError):
        check(Pool(), indices, [x], kind="exact", gradients=False)


# ------------------------------------------------------------------------------------------------ the bounds
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("kind", sorted(FACTORS))
def test_the_bounds_are_where_they_say(kind, dtype):
    """Half the bound passes and twice the bound does not: by element, and by norm with errors too small to be seen in an element."""
    want = RNG.choice([-1.0, 1.0], 10_000)
    by_norm, by_element = bounds(kind, dtype, 64)
    close = lambda error: assert_close((want * (1 + error)).astype(dtype), want, kind, 64)
    if kind != "exact":
        assert 0 < by_norm < by_element
        one = np.zeros(want.size)
        one[77] = 1
        close(0.5 * by_element * one)
        close(0.5 * by_norm)
        with pytest.raises(AssertionError, match="element 77"):
            close(2 * by_element * one)
        with pytest.raises(AssertionError, match="by norm"):
            close(2 * by_norm)
    close(0.0)
    with pytest.raises(AssertionError):
        close(1e-3)


@pytest.mark.parametrize("kind,n", [("exact", 1), ("sum", 1 << 15), ("transcendental", 1 << 13), ("recurrent", 1 << 8), ("winograd", 16)])
def test_how_long_a_reduction_may_be_for_a_thousandth_in_one_element_to_be_seen(kind, n):
    """In float32. Beyond these lengths rounding itself may come near a thousandth, by the table; by norm it is seen up to 2**13."""
    want = RNG.standard_normal(1000)
    got = want.astype("f4")
    worst = np.argmax(np.abs(want))
    got[worst] *= np.float32(1.001)
    with pytest.raises(AssertionError, match=f"element {worst}|by norm"):
        assert_close(got, want.astype("f4"), kind, n)
    with pytest.raises(AssertionError, match="by norm"):
        assert_close(want.astype("f4") * np.float32(1.001), want.astype("f4"), kind, 1 << 13)


def test_an_answer_of_zeros():
    zeros = np.zeros(5)
    assert_close(zeros.astype("f4"), zeros, "sum", 100)
    with pytest.raises(AssertionError):
        assert_close(np.array([0, 0, 1e-30, 0, 0], "f4"), zeros, "sum", 100)


def test_an_empty_answer():
    assert_close(np.zeros((0, 3), "f4"), np.zeros((0, 3)), "sum")
    with pytest.raises(AssertionError, match="shape"):
        assert_close(np.zeros((0, 4), "f4"), np.zeros((0, 3)), "sum")
