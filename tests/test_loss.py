"""Losses against torch."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as T
from checker import check, strided
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdl
import fastdl.functional as F

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # torch's opinion of kl_div
BACKENDS = ["reference", "numba"]
LAYOUTS = ["contiguous", "strided", "channels_last"]
REDUCTIONS = ["none", "mean", "sum"]
CLASS_SHAPES = [(4,), (1,), (5, 3), (1, 1), (3, 7, 2), (2, 5, 3, 4), (2, 3, 1, 2, 2), (0, 3), (0, 3, 2), (2, 3, 0)]
PAIR_SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (2, 3, 4, 5), (0,), (0, 3), (3, 0, 2)]
LOGITS = F.binary_cross_entropy_with_logits


def rng(seed=0):
    return np.random.default_rng(1000 + seed)


def labels(shape, classes, seed=0, ignored=None):
    """Class indices for an input shape; every third position ignored where there is an index for that."""
    t = np.asarray(rng(seed).integers(0, classes, shape[:1] + shape[2:] if len(shape) > 1 else ()))
    if ignored is not None and t.ndim:
        t.reshape(-1)[1::3] = ignored
    return t


def both(arrays, dtype):
    """Keyword arrays, for us and for torch: they get no gradient, so the checker does not pass them by position."""
    ours = {k: v.astype(dtype) if isinstance(v, np.ndarray) else v for k, v in arrays.items()}
    return ours, {k: torch.tensor(v.astype("f8")) if isinstance(v, np.ndarray) else v for k, v in ours.items()}


def check_loss(name, arrays, options, *, dtype="f4", **how):
    ours, theirs = both(options, dtype)
    n = max(1, arrays[0].size)
    check(getattr(F, name), getattr(T, name), arrays, ours, torch_options=theirs, kind="transcendental", n=n, dtype=dtype, **how)


# ------------------------------------------------------------------------------------------------ classes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_class_indices(reduction, weighted, ignore_index, backend, dtype, layout):
    how = {"backend": backend, "dtype": dtype, "layout": layout}
    for shape in CLASS_SHAPES:
        classes = shape[0] if len(shape) == 1 else shape[1]
        x, t = 3 * rng().standard_normal(shape), labels(shape, classes, 1, ignore_index)
        options = {"reduction": reduction, "ignore_index": ignore_index}
        if weighted:
            options["weight"] = 0.1 + rng(2).random(classes)
        if classes == 1 or (t.ndim == 0 and t == ignore_index):
            continue  # test_one_class, test_all_ignored
        for smoothing in (0.0, 0.3):
            check_loss("cross_entropy", [x, t], options | {"label_smoothing": smoothing}, **how)
        check_loss("nll_loss", [x, t], options, **how)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_class_probabilities(reduction, weighted, backend, dtype, layout):
    """Input, target and weight all have a gradient here."""
    for shape in CLASS_SHAPES:
        classes = shape[0] if len(shape) == 1 else shape[1]
        if classes == 1:
            continue
        arrays = [2 * rng().standard_normal(shape), rng(1).random(shape)] + [0.1 + rng(2).random(classes)] * weighted
        for smoothing in (0.0, 0.3):
            check_loss("cross_entropy", arrays, {"reduction": reduction, "label_smoothing": smoothing}, backend=backend, dtype=dtype,
                       layout=layout)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_class(backend):
    """The softmax of one score is 1: no loss, no gradient."""
    with fastdl.use_backend(backend):
        for shape, t in (((1,), np.asarray(0)), ((2, 1, 3), np.zeros((2, 3), "i8")), ((2, 1), np.ones((2, 1), "f4"))):
            x = np.full(shape, 3, "f4")
            loss, pullback = fastdl.vjp(F.cross_entropy, x, t)
            assert loss == 0
            np.testing.assert_array_equal(pullback(1.0)[0], np.zeros(x.shape))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_all_ignored(backend, reduction, smoothing):
    """0 / 0 is NaN, its gradient 0; as torch."""
    for x, t in ((rng().standard_normal((3, 4)), np.full(3, -100)), (rng().standard_normal(4), np.asarray(-100))):
        check_loss("cross_entropy", [x, t], {"reduction": reduction, "label_smoothing": smoothing}, backend=backend)
        check_loss("nll_loss", [x, t], {"reduction": reduction}, backend=backend)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_label_dtypes(backend, dtype):
    x, t = rng().standard_normal((6, 5)), labels((6, 5), 5)
    with fastdl.use_backend(backend):
        for f in (F.cross_entropy, F.nll_loss):
            loss, pullback = fastdl.vjp(f, x, t)
            loss2, pullback2 = fastdl.vjp(f, x, strided_labels(t.astype(dtype)))
            assert loss == loss2
            np.testing.assert_array_equal(pullback(1.0)[0], pullback2(1.0)[0])


def strided_labels(t):
    wide = np.zeros(2 * t.size, t.dtype)
    view = wide[::-2]
    view[...] = t
    view.flags.writeable = False
    return view


@pytest.mark.parametrize("backend", BACKENDS)
def test_class_losses_of_special_values(backend):
    inf, nan = np.inf, np.nan
    x = np.array([[inf, 1, 2], [-inf, 1, 2], [-inf, 1, 2], [-inf, -inf, -inf], [-1e30, 0, 1], [nan, 1, 2], [nan, 1, 2], [500, -500, 1e4]])
    t = np.array([1, 1, 0, 0, 0, 0, -100, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(len(t)):  # row by row, as they differ in size
            for smoothing in (0.0, 0.2):
                check_loss("cross_entropy", [x[i:i + 1], t[i:i + 1]], {"label_smoothing": smoothing}, backend=backend)
            check_loss("cross_entropy", [x[i:i + 1], np.eye(3)[t[i:i + 1] % 3]], {}, backend=backend)
            check_loss("nll_loss", [x[i:i + 1], t[i:i + 1]], {"reduction": "sum"}, backend=backend)
        check_loss("cross_entropy", [x[4:], t[4:]], {"reduction": "none", "weight": np.array([0.0, 1, 2])}, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_positions_hide_nan(backend):
    x = np.array([[np.nan, 1, 2], [0, 1, 2]])
    with fastdl.use_backend(backend):
        assert F.cross_entropy(x, np.array([-100, 1])) == F.cross_entropy(x[1:], np.array([1]))
        assert F.nll_loss(x, np.array([-100, 1])) == -1


# ------------------------------------------------------------------------------------------------ elementwise
def pair(name, shape, seed=0):
    """An input and a target within the loss's domain."""
    a, b = np.asarray(rng(seed).standard_normal(shape)), np.asarray(rng(seed + 100).standard_normal(shape))
    unit = [0.02 + 0.96 / (1 + np.exp(-v)) for v in (a, b)]
    special = {"binary_cross_entropy": unit, "binary_cross_entropy_with_logits": [3 * a, unit[1]], "kl_div": [-np.abs(a), unit[1]]}
    return [np.asarray(v) for v in special.get(name, [a, b])]


PAIR_CASES = [("mse_loss", {}), ("l1_loss", {}), ("binary_cross_entropy", {}), ("binary_cross_entropy", {"weight": 1}),
              ("binary_cross_entropy_with_logits", {}), ("binary_cross_entropy_with_logits", {"weight": 1}),
              ("binary_cross_entropy_with_logits", {"pos_weight": 1}), ("binary_cross_entropy_with_logits", {"weight": 1, "pos_weight": 2}),
              ("kl_div", {}), ("kl_div", {"log_target": True})]


def check_pair(name, options, shape, reduction, seed=0, **how):
    options = {k: np.asarray(0.5 + rng(v).random(shape[-v:] if shape else ())) if "weight" in k else v for k, v in options.items()}
    check_loss(name, pair(name, shape, seed), options | {"reduction": reduction}, **how)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name,options", PAIR_CASES)
def test_pair(name, options, backend, dtype, layout):
    for reduction in REDUCTIONS + ["batchmean"] * (name == "kl_div"):
        for shape in PAIR_SHAPES:
            check_pair(name, options, shape, reduction, backend=backend, dtype=dtype, layout=layout)


INFINITE_LOGITS = [np.inf, np.inf, -np.inf, -np.inf, np.nan, 0.5, 100, -100, 1]
THEIR_TARGETS = [0, 1, 0, 1, 0.5, 0.3, 0.3, 0.3, np.nan]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name,x,t,options", [
    ("mse_loss", [1, np.inf, np.nan, np.inf, 1e30], [2, np.inf, 1, 0, 0], {}),
    ("l1_loss", [1, np.inf, np.nan, 1, np.inf, 0], [2, np.inf, 1, 1, 0, np.nan], {}),
    ("binary_cross_entropy", [0, 1, 0, 1, 0.5, 0.3, 1e-20], [0, 1, 1, 0, 0.3, 1, 1], {}),
    ("binary_cross_entropy_with_logits", INFINITE_LOGITS, THEIR_TARGETS, {}),
    ("binary_cross_entropy_with_logits", INFINITE_LOGITS, THEIR_TARGETS, {"pos_weight": np.array(3.0)}),
    ("kl_div", [-1, -2, -np.inf, 0, np.nan, -np.inf, -1, 0], [0.5, 0, 0.3, np.inf, 0.2, 0, -1, -np.inf], {}),
    ("kl_div", [-1, -2, -np.inf, 0, np.nan, -np.inf, -1, 0], [0.5, 0, 0.3, np.inf, 0.2, 0, -1, -np.inf], {"log_target": True})])
def test_pair_of_special_values(name, x, t, options, backend):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a, b in zip(x, t, strict=True):
            dtype = "f8" if abs(a) == 1e30 else "f4"
            check_loss(name, [np.array([a], "f8"), np.array([b], "f8")], options | {"reduction": "none"}, backend=backend, dtype=dtype)


@pytest.mark.parametrize("dtype,bound", [("f4", 1e-6), ("f8", 1e-14)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_keep_their_digits(backend, dtype, bound):
    """A confident right answer costs exp(-|x|), not 0."""
    x = np.array([-5, -20, -40, 40, 20], dtype)
    t = (x > 0).astype(dtype)
    with fastdl.use_backend(backend):
        loss, pullback = fastdl.vjp(LOGITS, x, t, reduction="sum")
        np.testing.assert_allclose(LOGITS(x, t, reduction="none"), np.log1p(np.exp(-np.abs(x.astype("f8")))), rtol=bound)
        np.testing.assert_allclose(pullback(1.0)[0][:3], 1 / (1 + np.exp(-x[:3].astype("f8"))), rtol=bound)
    assert loss.dtype == dtype


# ------------------------------------------------------------------------------------------------ any shape
@given(shape=st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple), classes=st.integers(2, 6), seed=st.integers(0, 99),
       draw=st.data(), reduction=st.sampled_from(REDUCTIONS), layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from(["f4", "f8"]),
       backend=st.sampled_from(BACKENDS))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_shape(shape, classes, seed, draw, reduction, layout, dtype, backend):
    how = {"layout": layout, "dtype": dtype, "backend": backend}
    name, options = draw.draw(st.sampled_from(PAIR_CASES))
    check_pair(name, options, shape, reduction, seed, **how)
    shape = (*shape[:1], classes, *shape[1:])
    options = {"reduction": reduction, "label_smoothing": draw.draw(st.sampled_from([0.0, 0.1]))}
    x = rng(seed).standard_normal(shape)
    check_loss("cross_entropy", [x, labels(shape, classes, seed, draw.draw(st.sampled_from([None, -100])))], options, **how)
    check_loss("cross_entropy", [x, rng(seed + 200).random(shape)], options, **how)


# ------------------------------------------------------------------------------------------------ results, needs
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scalars_are_numpy_floats(backend, dtype):
    x, t, u = rng().random((3, 4)).astype(dtype), np.array([0, 3, 1]), rng(1).random((3, 4)).astype(dtype)
    w = np.ones(4, dtype)
    with fastdl.use_backend(backend):
        for reduction in ("mean", "sum"):
            for y in (F.cross_entropy(x, t, reduction=reduction), F.cross_entropy(x, t, w, label_smoothing=0.1, reduction=reduction),
                      F.cross_entropy(x, u, w, reduction=reduction), F.nll_loss(x, t, w, reduction=reduction), F.mse_loss(x, u, reduction),
                      F.l1_loss(x, u, reduction), F.binary_cross_entropy(x, u, reduction=reduction), LOGITS(x, u, reduction=reduction),
                      F.kl_div(x, u, reduction)):
                assert type(y) is np.dtype(dtype).type
        assert type(F.kl_div(x, u, "batchmean")) is np.dtype(dtype).type


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
@pytest.mark.parametrize("rows,classes", [(1, 1), (1, 10), (3, 17), (32, 10), (5, 40)])
def test_few_rows_at_once(loss, rows, classes, dtype):
    """Called with two arguments alone, few rows are one compiled call's; with an option they go the usual way."""
    rng = np.random.default_rng(rows)
    x, t = rng.standard_normal((rows, classes)).astype(dtype) * 3, rng.integers(0, classes, rows)
    got, want = loss(x, t), loss(x, t, reduction="mean")
    assert type(got) is type(want) is np.dtype(dtype).type
    np.testing.assert_allclose(got, want, rtol=1e-5 if dtype == "f4" else 1e-12)  # the order of a sum
    ignored = t.copy()
    ignored[0] = -100
    for scores, labels in ((x, t.astype("i4")), (x[::-1], t), (np.asfortranarray(x), t), (x, np.repeat(t, 2)[::2]), (x, ignored)):
        np.testing.assert_array_equal(loss(scores, labels), loss(scores, labels, reduction="mean"))
    x[0, t[0]] = np.nan
    assert np.isnan(loss(x, t))
    for wrong in (t + classes, t - classes - 100):
        with pytest.raises(ValueError, match="the rule is 0 to"):
            loss(x, wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_nobody_needs(backend):
    x, u, w, t = rng().random((3, 4)), rng(1).random((3, 4)), rng(2).random(4), np.array([0, 3, 1])
    with fastdl.use_backend(backend):
        for f, args in ((F.cross_entropy, (x, t, w)), (F.cross_entropy, (x, u, w)), (F.nll_loss, (x, t, w)), (F.mse_loss, (x, u)),
                        (F.l1_loss, (x, u)), (F.binary_cross_entropy, (x, u, w)), (LOGITS, (x, u, w)), (F.kl_div, (x, u))):
            _, pullback = fastdl.vjp(f, *args)
            full = pullback(1.0)
            for i in range(len(args)):
                some = pullback(1.0, needs=[k == i for k in range(len(args))])
                for k, g in enumerate(some):
                    if k != i or full[k] is None:
                        assert g is None
                    else:
                        np.testing.assert_array_equal(g, full[k])


# ------------------------------------------------------------------------------------------------ bad input
X, L, W = np.full((3, 4), 0.5, "f4"), np.array([0, 1, 3]), np.ones(4, "f4")
BAD = [
    (lambda: F.cross_entropy(X, np.array([0, 7, -1])), ValueError,
     r"cross_entropy: target contains 7, input has 4 classes; the rule is 0 to 3, or ignore_index \(-100\)"),
    (lambda: F.cross_entropy(X, np.array([-100, -1, 7])), ValueError, "cross_entropy: target contains -1"),
    (lambda: F.nll_loss(X, np.array([0, 2**63, 4], "u8")), ValueError, "nll_loss: target contains 9223372036854775808"),
    (lambda: F.nll_loss(X, np.array([0, 156, 1], "u1")), ValueError, "nll_loss: target contains 156"),
    (lambda: F.cross_entropy(X, L[:2]), ValueError,
     r"cross_entropy: target has shape \(2,\), input has \(3, 4\); the rule for class indices is \(3,\)"),
    (lambda: F.cross_entropy(X, X[:2]), ValueError, r"cross_entropy: target has shape \(2, 4\), .* for probabilities is the same shape"),
    (lambda: F.cross_entropy(X, X, ignore_index=1), ValueError, "cross_entropy: ignore_index is 1 and target holds probabilities"),
    (lambda: F.cross_entropy(X, X.astype("f8")), TypeError, "cross_entropy: target is float64, input is float32"),
    (lambda: F.cross_entropy(X, L > 0), TypeError, "cross_entropy: target has dtype bool; the rule is an integer type"),
    (lambda: F.cross_entropy(X, [0, 1, 2]), TypeError, "cross_entropy: target must be a numpy array .* got list"),
    (lambda: F.cross_entropy(X, torch.tensor(L)), TypeError, "cross_entropy: target is a torch tensor and another"),
    (lambda: F.cross_entropy(X[0, 0, ...].reshape(()), np.asarray(0)), ValueError, "cross_entropy: input has 0 dimensions"),
    (lambda: F.cross_entropy(X[:, :0], L), ValueError, r"cross_entropy: input has 0 classes, shape \(3, 0\)"),
    (lambda: F.cross_entropy(X, L, W[:3]), ValueError, r"cross_entropy: weight has shape \(3,\), input has 4 classes; the rule is \(4,\)"),
    (lambda: F.cross_entropy(X, L, W.astype("f8")), TypeError, "cross_entropy: weight is float64, input is float32"),
    (lambda: F.cross_entropy(X, L, reduction="avg"), ValueError, "cross_entropy: reduction is 'avg'; .* 'none', 'mean', 'sum'"),
    (lambda: F.cross_entropy(X, L, label_smoothing=1.5), ValueError, "cross_entropy: label_smoothing is 1.5; the rule is 0 to 1"),
    (lambda: F.cross_entropy(X, L, ignore_index=0.5), TypeError, "cross_entropy: ignore_index must be an integer, got 0.5"),
    (lambda: F.nll_loss(X, X), TypeError, "nll_loss: target has dtype float32; the rule is an integer type"),
    (lambda: F.mse_loss(X, W), ValueError, r"mse_loss: target has shape \(4,\), input has \(3, 4\); the rule is the same shape"),
    (lambda: F.mse_loss(X, X.astype("f8")), TypeError, "mse_loss: target is float64, input is float32"),
    (lambda: F.mse_loss(X, X, "batchmean"), ValueError, "mse_loss: reduction is 'batchmean'"),
    (lambda: F.l1_loss(X, L), TypeError, "l1_loss: target has dtype int64; the rule is float32 or float64"),
    (lambda: F.binary_cross_entropy(X + 1, X), ValueError, "binary_cross_entropy: input contains 1.5; the rule is 0 to 1"),
    (lambda: F.binary_cross_entropy(X, X * np.nan), ValueError, "binary_cross_entropy: target contains nan; the rule is 0 to 1"),
    (lambda: F.binary_cross_entropy(X, X, W[:3]), ValueError, r"binary_cross_entropy: weight has shape \(3,\), .* it broadcasts"),
    (lambda: F.binary_cross_entropy(X[0], X[0], X), ValueError, r"binary_cross_entropy: weight has shape \(3, 4\), input has \(4,\)"),
    (lambda: LOGITS(X, X, None, "mean", W[:2]), ValueError, r"binary_cross_entropy_with_logits: pos_weight has shape \(2,\)"),
    (lambda: LOGITS(X, X, W.astype("f8")), TypeError, "binary_cross_entropy_with_logits: weight is float64"),
    (lambda: F.kl_div(X, X, "median"), ValueError, "kl_div: reduction is 'median'; the rule is one of 'none', 'mean', 'sum', 'batchmean'"),
    (lambda: F.kl_div(X, strided(X)[:2]), ValueError, r"kl_div: target has shape \(2, 4\)"),
]


@pytest.mark.parametrize("call,error,message", BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
