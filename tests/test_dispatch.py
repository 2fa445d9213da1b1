"""Which backend serves a call: the order, falling through, a backend asked for by name, and what is said when none can."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from subprocesses import python

import fastdl
import fastdl.functional as F
from fastdl import backends, op

X, W = np.ones((2, 3), "f4"), np.ones((4, 3), "f4")


def kernels(mark, supports=None, gradient=True):
    """A room whose linear answers ``mark`` everywhere, and whose gradients are ``mark`` too."""

    def linear(arrays, params, train):
        x, w, _ = arrays
        return np.full((x.shape[0], w.shape[0]), mark, x.dtype), ("saved", mark) if train else None

    def linear_backward(grad, arrays, saved, params, needs):
        assert saved == ("saved", mark)
        return tuple(np.full_like(a, mark) if n else None for a, n in zip(arrays, needs, strict=True))

    room = SimpleNamespace(linear=linear)
    if gradient:
        room.linear_backward = linear_backward
    if supports is not None:
        room.linear_supports = supports
    return room


@pytest.fixture
def register():
    """register(name, room, requires=(), first=False): a backend that is gone after the test. The default order is emptied first."""
    order, backends = op._default_order[:], dict(op._backends)
    op._default_order.clear()

    def add(name, *rooms, requires=(), by_default=True):
        op.register_backend(op.Backend(name, requires=requires, rooms=dict(zip(("matmul",), rooms, strict=False))), by_default=by_default)

    with fastdl.use_backend(None):
        yield add
        op._default_order[:] = order
        op._backends.clear()
        op._backends.update(backends)
    assert F.linear(X, W)[0, 0] == 3


def served():
    return F.linear(X, W)[0, 0]


# ------------------------------------------------------------------------------------------------ the default order
def test_the_first_registered_serves(register):
    register("one", kernels(1))
    register("two", kernels(2))
    assert served() == 1
    op.unregister_backend("one")
    assert served() == 2


def test_a_backend_registered_again_takes_effect(register):
    register("one", kernels(1))
    assert served() == 1
    register("one", kernels(5))
    assert served() == 5
    assert op._default_order == ["one"]


def test_not_by_default(register):
    register("by name only", kernels(1), by_default=False)
    register("two", kernels(2))
    assert served() == 2
    with fastdl.use_backend("by name only"):
        assert served() == 1


def test_a_backend_without_the_room_or_the_kernel_is_passed_over(register):
    register("no room")
    register("no kernel", SimpleNamespace(matmul=lambda *a: None))
    register("three", kernels(3))
    assert served() == 3


def test_a_backend_that_does_not_support_the_call_is_passed_over(register):
    register("small", kernels(1, lambda arrays, params: None if arrays[0].shape[0] <= 2 else "more than two rows"))
    register("relu", kernels(2, lambda arrays, params: None if params.activation else "no activation"))
    register("any", kernels(3))
    assert served() == 1
    assert F.linear(np.ones((5, 3), "f4"), W)[0, 0] == 3
    assert F.linear(np.ones((5, 3), "f4"), W, activation="relu")[0, 0] == 2


def test_nobody_serves(register):
    register("no room")
    register("cannot run", kernels(1), requires=("no_such_module",))
    register("small", kernels(2, lambda arrays, params: "more than one row"))
    with pytest.raises(ValueError) as error:
        served()
    message = str(error.value)
    assert message.startswith("linear: no backend serves this call (")
    for reason in ("small: more than one row", "no room: it has no kernel for linear", "cannot run: importing no_such_module failed"):
        assert reason in message


def test_the_builtin_order():
    assert [name for name, _, _ in op.backend_report()] == ["numba", "cython", "reference"]


def test_a_rooms_backend_modules_are_found_by_name():
    assert op._backends["reference"].kernels("matmul").__name__ == "fastdl.ops.matmul.reference"
    assert op.Backend("x", "no_such_backend").kernels("matmul") is None


def test_a_backend_module_whose_import_fails_is_not_taken_for_an_absent_one(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError("No module named 'something_it_needs'", name="something_it_needs")

    monkeypatch.setattr(backends.importlib, "import_module", import_module)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        op.Backend("x", "reference").kernels("matmul")


# ------------------------------------------------------------------------------------------------ by name
def test_use_backend_as_a_function(register):
    register("one", kernels(1))
    register("two", kernels(2))
    fastdl.use_backend("two")
    assert (served(), fastdl.current_backend()) == (2, "two")
    fastdl.use_backend(None)
    assert (served(), fastdl.current_backend()) == (1, None)


def test_use_backend_nested(register):
    for mark, name in enumerate(("one", "two", "three"), 1):
        register(name, kernels(mark))
    with fastdl.use_backend("two"):
        assert served() == 2
        with fastdl.use_backend("three"):
            assert served() == 3
            with fastdl.use_backend(None):
                assert served() == 1
            assert served() == 3
        assert served() == 2
    assert served() == 1


def test_use_backend_is_undone_by_an_error(register):
    register("one", kernels(1))
    register("two", kernels(2))
    with pytest.raises(KeyError), fastdl.use_backend("two"):
        raise KeyError
    assert served() == 1


@pytest.mark.parametrize("room,reason", [
    (kernels(1, lambda arrays, params: "only on Tuesdays"), "one: only on Tuesdays"),
    (SimpleNamespace(), "one: it has no kernel for linear"),
])
def test_a_chosen_backend_does_not_fall_through(register, room, reason):
    register("one", room)
    register("two", kernels(2))
    assert served() == 2
    with fastdl.use_backend("one"), pytest.raises(ValueError, match=rf"linear: no backend serves this call \({reason}\)"):
        served()


def test_an_unknown_backend(register):
    register("one", kernels(1))
    with pytest.raises(ValueError, match=r"use_backend: name is 'two'; the backends are .*one"):
        fastdl.use_backend("two")
    assert fastdl.current_backend() is None


@pytest.mark.parametrize("code,said", [("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
                                       ("raise SystemError('built for another Python')", "SystemError: built for another Python")])
def test_a_backend_whose_import_fails(register, tmp_path, monkeypatch, code, said):
    (tmp_path / "needed_by_the_test.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    register("broken", kernels(1), requires=("needed_by_the_test",))
    register("two", kernels(2))
    assert served() == 2
    why = f"importing needed_by_the_test failed: {said}"
    assert op.backend_report()[0] == ("broken", False, why)
    with pytest.raises(ValueError, match=f"use_backend: name is 'broken', which cannot run here: {why}"):
        fastdl.use_backend("broken")


# ------------------------------------------------------------------------------------------------ gradients
def test_the_backward_pass_is_the_forward_passes_backend(register):
    register("one", kernels(1))
    register("two", kernels(2))
    with fastdl.use_backend("two"):
        y, pullback = fastdl.vjp(F.linear, X, W)
    dx, dw = pullback(np.ones_like(y))  # asked for where another backend would serve
    assert (y[0, 0], dx[0, 0], dw[0, 0]) == (2, 2, 2)


def test_a_backend_without_the_gradient(register):
    register("inference", kernels(1, gradient=False))
    assert served() == 1
    with pytest.raises(ValueError, match="linear: the inference backend has no gradient for it"):
        fastdl.vjp(F.linear, X, W)


# ------------------------------------------------------------------------------------------------ backends of other kinds, and tensors
def test_a_backend_elsewhere_serves_tensors_too(register):
    import torch

    register("triton", kernels(7, lambda arrays, params: None if all(a is None or a.dtype == "f4" for a in arrays) else "float32 only"))
    register("cython", kernels(8))
    x, w = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3)
    y = F.linear(x, w)
    y.sum().backward()
    assert (y == 7).all() and (x.grad == 7).all()
    assert (F.linear(x.double(), w.double()) == 8).all()


# ------------------------------------------------------------------------------------------------ the environment
def test_environment_variable():
    code = "import fastdl, sys; print(fastdl.current_backend(), 'numba' in sys.modules)"
    assert python(code, FASTDL_BACKEND="reference").stdout.split() == ["reference", "False"]
    assert python(code).stdout.split() == ["None", "False"]


def test_environment_variable_with_an_unknown_backend():
    done = python("import fastdl", check=False, FASTDL_BACKEND="fortran")
    assert done.returncode == 1 and "'fortran'; the backends are cython, numba, reference" in done.stderr


def in_a_record(a):
    """The same values as a field of a packed record: elements lie five (nine) bytes apart."""
    record = np.zeros(a.shape, [("value", a.dtype), ("mark", "u1")])
    record["value"] = a
    return record["value"]


@pytest.mark.parametrize("name,shapes,options", [
    ("matmul", [(3, 4), (4, 5)], {}),
    ("matmul", [(2, 3, 4), (2, 4, 5)], {}),
    ("linear", [(3, 4), (5, 4), (5,)], {}),
    ("conv2d", [(2, 3, 6, 6), (4, 3, 3, 3), (4,)], {}),
    ("conv_transpose1d", [(2, 3, 6), (3, 4, 3)], {"stride": 2}),
    ("max_pool2d", [(2, 3, 6, 6)], {"kernel_size": 2}),
    ("avg_pool1d", [(2, 3, 6)], {"kernel_size": 2}),
    ("relu", [(7, 5)], {}),
    ("layer_norm", [(7, 5)], {"normalized_shape": (5,)}),
    ("rnn_tanh_cell", [(2, 3), (2, 4), (4, 3), (4, 4)], {}),
])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_elements_that_are_not_whole_elements_apart(name, shapes, options, dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(dtype) for s in shapes]
    y, pullback = fastdl.vjp(getattr(F, name), *arrays, **options)
    odd, odd_pullback = fastdl.vjp(getattr(F, name), *map(in_a_record, arrays), **options)
    np.testing.assert_array_equal(odd, y)
    np.testing.assert_array_equal(getattr(F, name)(*map(in_a_record, arrays), **options), getattr(F, name)(*arrays, **options))
    g = rng.standard_normal(y.shape).astype(dtype)
    for got, want in zip(odd_pullback(in_a_record(g)), pullback(g), strict=True):
        np.testing.assert_array_equal(got, want)


# ------------------------------------------------------------------------------------------------ calls of a form seen before
def test_equal_options_that_are_not_the_same(register):
    """What is known of a call holds for the very options alone: of 1, 1.0 and True not all are allowed, and 0.0 is not -0.0."""
    with fastdl.use_backend("numba"):
        x, image = np.array([[-1.0, 2.0, -3.0]], "f4"), np.ones((1, 1, 4, 4), "f4")
        for _ in range(3):
            assert not np.signbit(F.leaky_relu(x, -0.0)[0, 0]) and np.signbit(F.leaky_relu(x, 0.0)[0, 0])
            assert F.avg_pool2d(image, 2, padding=1)[0, 0, 0, 0] == 0.25
            with pytest.raises(TypeError):
                F.max_pool2d(image, 2.0)
            with pytest.raises(TypeError):
                F.conv2d(image, np.ones((1, 1, 3, 3), "f4"), None, 1, (1.0, 1))
            assert F.conv2d(image, np.ones((1, 1, 3, 3), "f4"), None, 1, (1, 1)).shape == image.shape
    register("any", kernels(1))


@pytest.mark.parametrize("name,shapes,options", [
    ("softmax", [(4, 6)], {"dim": -1}), ("softmax", [(4, 6)], {"dim": 0}), ("log_softmax", [(2, 3, 5)], {"dim": 2}),
    ("layer_norm", [(4, 6)], {"normalized_shape": (6,)}), ("layer_norm", [(4, 2, 3), (2, 3), (2, 3)], {"normalized_shape": (2, 3)}),
    ("gelu", [(4, 6)], {"approximate": "tanh"}), ("elu", [(4, 6)], {"alpha": 0.7}), ("softplus", [(4, 6)], {"beta": 2.0}),
    ("linear", [(4, 6), (5, 6), (5,)], {}), ("linear", [(2, 4, 6), (5, 6)], {}), ("linear", [(6,), (6,)], {}),
    ("linear", [(4, 6), (5, 6), (5,)], {"activation": ("leaky_relu", 0.1)}), ("linear", [(4, 6), (5, 6)], {"activation": "gelu"}),
    ("max_pool2d", [(2, 6, 6)], {"kernel_size": 2}), ("avg_pool1d", [(2, 3, 7)], {"kernel_size": 3, "stride": 1}),
    ("group_norm", [(2, 4, 3)], {"num_groups": 2}), ("mse_loss", [(3, 4), (3, 4)], {}), ("mse_loss", [(), ()], {"reduction": "none"}),
    ("conv2d", [(2, 3, 6, 6), (4, 3, 3, 3), (4,)], {"padding": ((1, 0), (0, 1))}), ("addmm", [(5,), (3, 4), (4, 5)], {"beta": 0.5}),
    ("binary_cross_entropy_with_logits", [(3, 4), (3, 4), (4,)], {}),
])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_calls_again(name, shapes, options, dtype):
    """A call's form says how it is served from the third on: any arrays of that form get the answers of the first."""
    op_, rng = getattr(F, name), np.random.default_rng(0)
    for how in (lambda a: a, lambda a: a[::-1] if a.ndim else a, lambda a: a[:0] if name == "softmax" else a):
        for _ in range(2):
            arrays = [how(rng.random(s).astype(dtype)) for s in shapes]
            given, want_grads = ([arrays[0]], named(arrays, options)) if name == "layer_norm" else (arrays, options), None
            with fastdl.use_backend("reference"):
                want = op_(*given[0], **given[1])
            for got in [op_(*given[0], **given[1]) for _ in range(4)]:  # which go three different ways
                assert np.shape(got) == np.shape(want) and got.dtype == want.dtype
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
            if name == "layer_norm":
                continue
            for _ in range(3):
                y, pullback = fastdl.vjp(op_, *arrays, **options)
                grads = pullback(np.ones_like(y))
                assert all(g is None or g.shape == a.shape for g, a in zip(grads, arrays, strict=True)) and grads[0] is not None
                want_grads = want_grads or grads
                for g, w in zip(grads, want_grads, strict=True):
                    np.testing.assert_array_equal(g, w)
                with pytest.raises(ValueError, match="the gradient given to the pullback"):
                    pullback(np.ones((*np.shape(y), 2), dtype))


def named(arrays, options):
    return {**options, **dict(zip(("weight", "bias"), arrays[1:], strict=False))}


def test_checks_that_look_at_values_are_made_again():
    w, x, labels = np.ones((3, 2), "f4"), np.ones((2, 3), "f4"), np.array([0, 1])
    for _ in range(4):
        F.embedding(labels, w)
        F.cross_entropy(x, labels)
        F.nll_loss(x, labels)
        F.binary_cross_entropy(x, x)
    for call in (lambda: F.embedding(labels - 1, w), lambda: F.embedding(labels + 2, w), lambda: F.cross_entropy(x, labels + 2),
                 lambda: F.nll_loss(x, labels - 1), lambda: F.binary_cross_entropy(2 * x, x), lambda: F.embedding(labels[:1] - 1, w)):
        with pytest.raises(ValueError, match="the rule is"):
            call()
    mean = np.zeros(3, "f4")
    for _ in range(4):
        F.batch_norm(x, mean, mean + 1)
        F.batch_norm(x, mean, mean + 1, training=True)
    mean.flags.writeable = False
    F.batch_norm(x, mean, mean)
    with pytest.raises(ValueError, match="read-only"):
        F.batch_norm(x, mean, mean, training=True)


def test_packed_weights_are_told_from_others_of_their_form():
    x, w = np.random.default_rng(0).standard_normal((8, 40)).astype("f4"), np.random.default_rng(1).standard_normal((30, 40)).astype("f4")
    packed = fastdl.pack(w)
    for weight in (w, packed, w, packed, packed[:], w[:]):
        for _ in range(3):
            np.testing.assert_allclose(F.linear(x, weight), x @ w.T, rtol=1e-4, atol=1e-4)
    assert packed.base.forms  # panels were made of it, though a plain weight of its form was there before


def test_no_array_is_kept():
    arrays = [np.ones(s, "f4") for s in ((64, 48), (32, 48), (32,))]
    kept = [weakref.ref(a) for a in arrays]
    for _ in range(5):
        F.linear(*arrays, activation="relu")
        F.softmax(arrays[0], 1)
        F.layer_norm(arrays[1], (48,))
        fastdl.vjp(F.linear, *arrays)
    del arrays
    gc.collect()
    assert not any(r() is not None for r in kept)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "gelu", "sigmoid", "tanh", "softplus"])
def test_small_arrays_are_served_at_once(name):
    from fastdl.ops.pointwise import numba_backend

    serve = getattr(numba_backend, f"{name}_at_once").get("f")
    rng = np.random.default_rng(0)
    for shape in ((), (1,), (7, 5), (2, 3, 4, 5), (33, 129), (0, 3)):
        x = np.asarray(3 * rng.standard_normal(shape), "f4")
        with fastdl.use_backend("reference"):
            want = getattr(F, name)(x)
        got = serve(x)
        assert type(got) is np.ndarray and got.shape == want.shape and got.flags.owndata
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(serve(np.full(shape, np.nan, "f4")), np.full(shape, np.nan, "f4"))
    refused = (np.ones(4), np.ones((4, 4), "f4").T[1:], np.ones(8, "f4")[::2], np.ones(4, ">f4"), np.ones(1 << 20, "f4"), [1.0], None, 1.0,
               np.float32(1), np.ma.ones(4, "f4"))
    assert all(serve(x) is None for x in refused)


def test_small_look_ups_are_served_at_once():
    from fastdl.ops.embedding import numba_backend

    serve = numba_backend.embedding_at_once["l"]
    w = np.arange(12, dtype="f4").reshape(4, 3)
    for index in (np.array([3, 0, 0]), np.array([[1], [2]]), np.array(2)):
        for weight in (w, w[::-1], w.astype("f8"), w[:, :1]):
            got = serve(index, weight)
            assert got.shape == (*index.shape, weight.shape[1]) and got.dtype == weight.dtype
            np.testing.assert_array_equal(got, weight[index])
    for index, weight in ((np.array([4]), w), (np.array([-1]), w), (np.array([], "i8"), w), (np.array([1, 2, 3])[::2], w),
                          (np.array([1]), w[:, ::2]), (np.array([1]), w[0]), (np.array([1]), [w]), (np.array([1], ">i8"), w)):
        assert serve(index, weight) is None
