"""Softmax, activations, losses, dropout and embedding at sizes that reach every loop of their kernels; threads; random bits."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from checker import assert_close, channels_last

import fastdl
import fastdl.functional as F
from fastdl.cpu.jit import assembly
from fastdl.ops import philox
from fastdl.ops.norm import numba_planes, numba_rows
from fastdl.ops.numba_maps import CHUNK
from fastdl.ops.pointwise import numba_pointwise, numba_softmax

LONG = 2 * CHUNK + 37


def data(shape, seed=0, dtype="f4", scale=2.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def compare(name, args, options=None, n=1, gradients=1):
    """The answer and the gradients of the first arguments against torch in float64."""
    options = options or {}
    peer = getattr(torch, name) if name in ("sigmoid", "tanh") else getattr(T, name)
    wide = [torch.tensor(a.astype("f8", order="C") if a.dtype.kind == "f" else a, requires_grad=a.dtype.kind == "f" and at < gradients)
            for at, a in enumerate(args)]
    theirs = {k: torch.tensor(v.astype("f8")) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    want = peer(*wide, **theirs)
    grad = np.asarray(data(tuple(want.shape), 77, args[0].dtype if args[0].dtype.kind == "f" else args[1].dtype))
    want.backward(torch.tensor(grad.astype("f8")))
    with fastdl.use_backend("numba"):
        y, pullback = fastdl.vjp(getattr(F, name), *args, **options)
        found = pullback(grad)
    assert_close(y, want.detach().numpy(), "transcendental", n, "y")
    for at in range(gradients):
        if wide[at].requires_grad:
            assert_close(found[at], wide[at].grad.numpy(), "transcendental", n, f"gradient {at}")
    return y, found


# ------------------------------------------------------------------------------------------------ softmax
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 34, 63, 65, 1000, 20011])
def test_rows(name, n, dtype):
    compare(name, [data((37 if n < 5000 else 2, n), dtype=dtype)], {"dim": -1}, n)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(3, 5, 2), (2, 7, 15), (2, 3, 17), (2, 21, 64), (1, 4, 65), (2, 5, 3001), (1, 900, 70), (2, 1, 40)])
def test_columns(name, shape, dtype):
    compare(name, [data(shape, dtype=dtype)], {"dim": 1}, shape[1])


@pytest.mark.parametrize("place", [0, 9, 18])
def test_a_nan_and_infinities_stay_in_their_row(place):
    for shape, dim in (((4, 19), 1), ((19, 4), 0), ((4, 100), 1)):
        for value in (np.nan, np.inf, -np.inf):
            x = data(shape)
            x[(1, place) if dim else (place, 1)] = value
            want = T.softmax(torch.tensor(x.astype("f8")), dim).numpy()
            with fastdl.use_backend("numba"):
                got = F.softmax(x, dim)
                np.testing.assert_array_equal(np.isnan(F.log_softmax(x, dim)), np.isnan(T.log_softmax(torch.tensor(x), dim).numpy()))
            np.testing.assert_allclose(got, want, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ activations, losses
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name,options", [("relu", {}), ("leaky_relu", {}), ("elu", {"alpha": 0.7}), ("gelu", {}),
                                          ("gelu", {"approximate": "tanh"}), ("sigmoid", {}), ("tanh", {}), ("softplus", {"beta": 1.5})])
def test_long_activations(name, options, dtype):
    compare(name, [data(LONG, dtype=dtype)], options)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div"])
def test_long_pairs(name, reduction, dtype):
    unit = np.random.default_rng(1).uniform(0.02, 0.98, LONG).astype(dtype)
    x = np.random.default_rng(2).uniform(0.02, 0.98, LONG).astype(dtype) if name == "binary_cross_entropy" else data(LONG, dtype=dtype)
    compare(name, [x, unit], {"reduction": reduction}, n=1 if reduction == "none" else LONG)


CLASSES = [(37, 10), (3, 1000), (2, 4099), (70, 3), (2, 5, 70), (3, 21, 17), (1, 4, 3001), (2, 300, 8, 9)]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, channels_last])
@pytest.mark.parametrize("shape", CLASSES)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"reduction": "none"}, {"reduction": "sum", "ignore_index": 1}])
def test_cross_entropy(shape, options, layout, dtype):
    target = np.random.default_rng(3).integers(0, shape[1], shape[:1] + shape[2:])
    target.reshape(-1)[::5] = options.get("ignore_index", -100)
    weight = np.random.default_rng(4).uniform(0.1, 2, shape[1]).astype(dtype)
    for more in ({}, {"weight": weight}):
        compare("cross_entropy", [layout(data(shape, dtype=dtype)), target], options | more, n=data(shape).size)


def test_a_pullback_of_cross_entropy_may_run_again():
    """The forward pass makes the gradient; whoever takes it may change it."""
    x, t = data((40, 30)), np.arange(40) % 30
    with fastdl.use_backend("numba"):
        _, pullback = fastdl.vjp(F.cross_entropy, x, t, label_smoothing=0.1)
        first = pullback(1.0)[0]
        kept = first.copy()
        first[...] = np.nan
        np.testing.assert_array_equal(pullback(1.0)[0], kept)
        np.testing.assert_allclose(pullback(-2.5)[0], -2.5 * kept, rtol=1e-6)
        _, pullback = fastdl.vjp(F.cross_entropy, x, t, label_smoothing=0.1)
        np.testing.assert_allclose(pullback(-2.5)[0], -2.5 * kept, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ random bits
def test_philox_known_answers():
    """Of the authors' test vectors (Random123, kat_vectors)."""
    for counter, key, want in [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]:
        assert tuple(int(w) for w in philox.philox([np.uint64(c) for c in counter], key)) == want


def test_words_are_those_of_their_counters():
    words = philox.words(200, (5 << 32) + 7, stream=3)
    for i in (0, 1, 15, 16, 63, 64, 130, 199):
        counter = [np.uint64(c) for c in (i // 64 * 16 + i % 16, 0, 3, 0)]
        assert words[i] == philox.philox(counter, (7, 5))[i // 16 % 4]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 127, 200, CHUNK - 1, CHUNK, CHUNK + 1, LONG])
def test_compiled_dropout_is_the_reference(n, dtype):
    x = data(n, dtype=dtype)
    for p, seed in ((0.5, 1), (0.1, 2**64 - 3), (0.9, 1 << 40), (1.0, 5)):
        answers = []
        for backend in ("reference", "numba"):
            with fastdl.use_backend(backend):
                y, pullback = fastdl.vjp(F.dropout, x, p, seed=seed)
                answers.append((y, pullback(x)[0]))
        for a, b in zip(*answers, strict=True):
            np.testing.assert_array_equal(a, b)


def test_dropped_shares_are_independent_of_place():
    """Each of the 64 places of a group is dropped as often as the others, neighbours independently of one another."""
    kept = (philox.words(64 * 4096, 9) >= philox.threshold(0.25)).reshape(-1, 64)
    deviation = np.sqrt(0.25 * 0.75 / len(kept))
    assert abs(kept.mean(axis=0) - 0.75).max() < 4.5 * deviation
    both = (kept[:, 1:] & kept[:, :-1]).mean(axis=0)
    assert abs(both - 0.75**2).max() < 4.5 * np.sqrt(0.75**2 * (1 - 0.75**2) / len(kept))


# ------------------------------------------------------------------------------------------------ embedding
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("rows,width", [(300, 33), (7, 129), (1000, 8), (50, 1)])
def test_embedding(rows, width, dtype):
    index = np.random.default_rng(0).integers(0, rows, 3000)
    compare("embedding", [index, data((rows, width), dtype=dtype)], {"padding_idx": 3}, n=3000, gradients=2)


# ------------------------------------------------------------------------------------------------ threads
def test_threads_give_the_same_bits():
    x, index = data((50, 1700)), np.random.default_rng(1).integers(0, 40, 9000)
    image, unit = data((3, 30, 41, 37)), np.random.default_rng(2).uniform(0.1, 0.9, LONG).astype("f4")
    calls = [(F.softmax, (x, 1)), (F.log_softmax, (image, 1)), (F.softmax, (channels_last(image), 1)), (F.gelu, (image,)),
             (F.dropout, (x, 0.3, True)), (F.cross_entropy, (x, np.arange(50))), (F.cross_entropy, (image, np.zeros((3, 41, 37), int))),
             (F.mse_loss, (unit, unit[::-1].copy())), (F.binary_cross_entropy_with_logits, (unit, unit)),
             (F.embedding, (index, data((40, 19))))]

    def answers():
        found = []
        for f, arguments in calls:
            y, pullback = fastdl.vjp(f, *arguments, **({"seed": 3} if f is F.dropout else {}))
            found += [y, *(g for g in pullback(np.cos(y)) if g is not None)]
        return found

    threads = fastdl.get_num_threads()
    with fastdl.use_backend("numba"):
        try:
            fastdl.set_num_threads(1)
            one = answers()
            for n in (2, 3, 5):
                fastdl.set_num_threads(n)
                for a, b in zip(one, answers(), strict=True):
                    np.testing.assert_array_equal(a, b)
        finally:
            fastdl.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------ machine code
@pytest.mark.parametrize("made", [numba_pointwise.gelu_gradient, numba_pointwise.softplus, numba_softmax.softmax_rows,
                                  numba_softmax.log_softmax_columns, numba_rows.normalise_rows, numba_planes.combine_planes],
                         ids=lambda made: made.name.rpartition(".")[2])
def test_inner_loops_are_vectors_without_calls(made):
    lines = assembly(made, "f").splitlines()
    labels = {m.group(1): i for i, line in enumerate(lines) if (m := re.match(r"(\.?L\w+):", line))}
    loops = []
    for i, line in enumerate(lines):
        m = re.match(r"\s+(?:j\w+|b[.\w]*|cbn?z\s+\w+,)\s+(\.?L\w+)$", line)
        if m and labels.get(m.group(1), i) < i:
            body = lines[labels[m.group(1)] : i]
            inner = not any(re.match(r"\.?L\w+:", x) for x in body[1:])
            if inner and sum(bool(re.search(r"v?(f?mul|fn?m\w+|add|sub)ps|fmla|fmul|pmuludq|umull", x)) for x in body) >= 2:
                loops.append(body)
    assert loops
    for body in loops:
        assert not any(re.search(r"\b(call\w*|blr?)\b", x) for x in body), body
        assert any(re.search(r"[xyz]mm|\bv\d+", x) for x in body)
