"""Operators called with torch tensors: values, autograd, memory, refusals."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checker import assert_close
from subprocesses import python

import fastdl
import fastdl.functional as F
from fastdl import op as dispatch

T = torch.nn.functional


@pytest.fixture(autouse=True)
def reference():
    """The face is the same for every backend; the plain one needs no compiling."""
    with fastdl.use_backend("reference"):
        yield


def randn(*shape, dtype=torch.float32, grad=True, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, dtype=dtype, generator=generator, requires_grad=grad)


@pytest.fixture
def recorder():
    """A backend "spy" that serves matmul by numpy and keeps what it was given; ``answer(f)`` changes what it answers."""
    seen = SimpleNamespace(arrays=None, grad=None, needs=None, compute=lambda arrays: np.matmul(*arrays))
    seen.answer = lambda f: setattr(seen, "compute", f)

    def matmul(arrays, params, train):
        seen.arrays = arrays
        return seen.compute(arrays), None

    def matmul_backward(grad, arrays, saved, params, needs):
        seen.grad, seen.needs = grad, needs
        a, b = arrays
        return grad @ b.T if needs[0] else None, a.T @ grad if needs[1] else None

    room = SimpleNamespace(matmul=matmul, matmul_backward=matmul_backward)
    dispatch.register_backend(dispatch.Backend("spy", rooms={"matmul": room}), by_default=False)
    with fastdl.use_backend("spy"):
        yield seen
    dispatch.unregister_backend("spy")


# ------------------------------------------------------------------------------------------------ values and gradients
def lstm_parameters(features, hidden, layers, dtype=torch.float32):
    params = []
    for layer in range(layers):
        for shape in ((4 * hidden, features if layer == 0 else hidden), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)):
            params.append(randn(*shape, dtype=dtype, seed=layer))
    return params


CASES = {
    "linear": (F.linear, T.linear, lambda d: [randn(3, 4, dtype=d), randn(5, 4, dtype=d), randn(5, dtype=d)], {}),
    "linear without bias": (F.linear, T.linear, lambda d: [randn(2, 3, 4, dtype=d), randn(5, 4, dtype=d), None], {}),
    "linear to a scalar": (F.linear, T.linear, lambda d: [randn(4, dtype=d), randn(4, dtype=d)], {}),
    "matmul": (F.matmul, torch.matmul, lambda d: [randn(2, 1, 3, 4, dtype=d), randn(5, 4, 2, dtype=d)], {}),
    "bmm": (F.bmm, torch.bmm, lambda d: [randn(2, 3, 4, dtype=d), randn(2, 4, 5, dtype=d)], {}),
    "addmm": (F.addmm, torch.addmm, lambda d: [randn(3, 1, dtype=d), randn(3, 4, dtype=d), randn(4, 5, dtype=d)],
              dict(beta=2.0, alpha=0.5)),
    "conv2d": (F.conv2d, T.conv2d, lambda d: [randn(2, 4, 7, 6, dtype=d), randn(6, 2, 3, 3, dtype=d), randn(6, dtype=d)],
               dict(stride=2, padding=(1, 2), groups=2)),
    "max_pool2d": (F.max_pool2d, T.max_pool2d, lambda d: [randn(2, 3, 7, 6, dtype=d)], dict(kernel_size=3, stride=2, return_indices=True)),
    "lstm": (F.lstm, lambda x, hx, params: torch.lstm(x, hx, params, True, 2, 0.0, False, False, False),
             lambda d: [randn(4, 2, 3, dtype=d), [randn(2, 2, 5, dtype=d), randn(2, 2, 5, dtype=d, seed=1)], lstm_parameters(3, 5, 2, d)],
             dict(num_layers=2)),
    "embedding": (F.embedding, T.embedding, lambda d: [torch.tensor([[1, 0, 3], [1, 1, 2]]), randn(4, 5, dtype=d)], {}),
    "cross_entropy": (F.cross_entropy, T.cross_entropy, lambda d: [randn(4, 3, dtype=d), torch.tensor([0, 2, 1, 1])],
                      dict(label_smoothing=0.1)),
    "batch_norm": (F.batch_norm, T.batch_norm,
                   lambda d: [randn(4, 3, 5, dtype=d), None, None, randn(3, dtype=d), randn(3, dtype=d, seed=1)], dict(training=True)),
}


def leaves(values):
    for v in values:
        if isinstance(v, (tuple, list)):
            yield from leaves(v)
        elif isinstance(v, torch.Tensor) and v.is_floating_point():
            yield v


def double(v):
    if isinstance(v, (tuple, list)):
        return type(v)(double(e) for e in v)
    return v.detach().double().requires_grad_() if isinstance(v, torch.Tensor) and v.is_floating_point() else v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, dtype):
    ours, theirs, make, options = CASES[case]
    args = make(dtype)
    wide = double(args)
    y = ours(*args, **options)
    want = theirs(*wide, **({} if case == "lstm" else options))
    many = isinstance(want, tuple)
    assert isinstance(y, tuple) == many
    total, total_want = 0, 0
    for got, expected in zip(y if many else (y,), want if many else (want,), strict=True):
        if expected.is_floating_point():
            assert got.dtype == dtype
            assert_close(got.detach().numpy(), expected.detach().numpy(), "recurrent" if case == "lstm" else "transcendental", 40)
            weights = randn(*expected.shape, dtype=dtype, grad=False, seed=7)
            total, total_want = total + (got * weights).sum(), total_want + (expected * weights.double()).sum()
        else:
            assert not got.requires_grad and torch.equal(got, expected)
    total.backward()
    total_want.backward()
    for a, b in zip(leaves(args), leaves(wide), strict=True):
        assert a.grad.dtype == dtype
        assert_close(a.grad.numpy(), b.grad.numpy(), "recurrent" if case == "lstm" else "transcendental", 100)


@pytest.mark.parametrize("case", [c for c in CASES if c != "max_pool2d"])
def test_gradcheck(case):
    ours, _, make, options = CASES[case]
    args = make(torch.float64)
    flat = list(leaves(args))

    def rebuilt(v, rest):
        if isinstance(v, (tuple, list)):
            return [rebuilt(e, rest) for e in v]
        return next(rest) if isinstance(v, torch.Tensor) and v.is_floating_point() else v

    def f(*tensors):
        rest = iter(tensors)
        return ours(*(rebuilt(v, rest) for v in args), **options)

    assert torch.autograd.gradcheck(f, flat, fast_mode=case == "lstm")


def test_by_keyword():
    x, w = randn(3, 4), randn(5, 4)
    y = F.linear(weight=w, input=x)
    torch.testing.assert_close(y, T.linear(x, w))
    y.sum().backward()
    torch.testing.assert_close(x.grad, w.detach().sum(0).expand(3, 4))


def test_the_default_backend():
    x, w = randn(3, 4), randn(5, 4)
    with fastdl.use_backend(None):
        y = F.linear(x, w)
        y.sum().backward()
    torch.testing.assert_close(y, T.linear(x, w))
    torch.testing.assert_close(w.grad, x.detach().sum(0).expand(5, 4))


def test_one_tensor_in_two_places():
    x = randn(4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: F.matmul(x, x), [x])


def test_parameters_and_a_training_step():
    layer = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, before = randn(2, 4, grad=False), layer.weight.detach().clone()
    F.linear(x, layer.weight, layer.bias).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, layer.weight)
    assert type(F.linear(x, layer.weight, layer.bias)) is torch.Tensor


# ------------------------------------------------------------------------------------------------ what needs a gradient
def test_no_grad_gives_plain_tensors():
    x, w = randn(3, 4), randn(5, 4)
    with torch.no_grad():
        assert F.linear(x, w).grad_fn is None
    with torch.inference_mode():
        assert not F.linear(x, w).requires_grad
    assert F.linear(x.detach(), w.detach()).grad_fn is None


def test_only_what_is_needed_is_computed(recorder):
    x, w = randn(3, 4, grad=False), randn(4, 5)
    F.matmul(x, w).sum().backward()
    assert recorder.needs == (False, True)
    assert x.grad is None and w.grad.shape == (4, 5)


def test_an_output_without_a_gradient():
    x, params = randn(4, 2, 3), lstm_parameters(3, 5, 1)
    hx = [randn(1, 2, 5), randn(1, 2, 5, seed=1)]
    _, h, _ = F.lstm(x, hx, params)
    h.sum().backward()
    got = [t.grad.clone() for t in leaves([x, hx, params])]
    for t in leaves([x, hx, params]):
        t.grad = None
    torch.lstm(x, hx, params, True, 1, 0.0, False, False, False)[1].sum().backward()
    for g, t in zip(got, leaves([x, hx, params]), strict=True):
        torch.testing.assert_close(g, t.grad)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return None


def test_no_gradient_arrives():
    x, other = randn(3, 4), randn(5)
    (NoGradient.apply(F.linear(x, randn(5, 4))).sum() + other.sum()).backward()
    assert x.grad is None


def test_gradients_do_not_share_memory():
    """torch clips gradients in place: two that are one array would be clipped twice."""
    x, params = randn(4, 2, 3), lstm_parameters(3, 5, 1)
    y, _, _ = F.lstm(x, [randn(1, 2, 5), randn(1, 2, 5)], params)
    y.retain_grad()
    y.sum().backward()
    grads = [t.grad.numpy() for t in (x, y, *params)]
    for i, a in enumerate(grads):
        assert not any(np.shares_memory(a, b) for b in grads[:i])


# ------------------------------------------------------------------------------------------------ memory
def test_nothing_is_copied_on_the_way_in(recorder):
    x, w = randn(3, 4), randn(5, 4)
    F.matmul(x, w.t())
    a, b = recorder.arrays
    assert a.ctypes.data == x.data_ptr()
    assert b.ctypes.data == w.data_ptr() and b.strides == (4, 16)
    F.matmul(x.detach()[::2, 1:], w.detach()[:, 1:].t())
    assert recorder.arrays[0].ctypes.data == x.data_ptr() + 4


def test_nothing_is_copied_on_the_way_out(recorder):
    answer = np.zeros((3, 5), "f4")
    recorder.answer(lambda arrays: answer)
    assert F.matmul(randn(3, 4, grad=False), randn(4, 5, grad=False)).data_ptr() == answer.ctypes.data
    assert F.matmul(randn(3, 4), randn(4, 5)).data_ptr() == answer.ctypes.data


@pytest.mark.parametrize("awkward", [lambda y: np.broadcast_to(y[:1], y.shape), lambda y: y[::-1]], ids=["read-only", "reversed"])
def test_answers_that_torch_cannot_hold(recorder, awkward):
    recorder.answer(lambda arrays: awkward(arrays[0] @ arrays[1]))
    x, w = randn(3, 4), randn(4, 5)
    want = awkward((x @ w).detach().numpy())
    np.testing.assert_allclose(F.matmul(x, w).detach().numpy(), want, rtol=1e-6)
    F.matmul(x, w).detach().add_(1)  # may be written to


def test_an_answer_that_is_an_input_is_copied(recorder):
    recorder.answer(lambda arrays: arrays[0][:])
    x = randn(4, 4, grad=False)
    before = x.clone()
    F.matmul(x, x).add_(1)
    assert torch.equal(x, before)


VIEWS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "expanded": lambda x: x[:, :1].expand(4, 4),
    "overlapping": lambda x: x.as_strided((4, 4), (1, 1)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views(view):
    x, view = randn(4, 4), VIEWS[view]
    y = F.matmul(view(x), randn(4, 3))
    want = torch.matmul(view(x), randn(4, 3))
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in (y, want)))


def test_gradients_of_any_layout(recorder):
    x, w = randn(3, 4), randn(4, 5)
    F.matmul(x, w).backward(torch.ones(5, 3).t())  # transposed
    torch.testing.assert_close(x.grad, w.detach().sum(1).expand(3, 4))
    F.matmul(x, w).sum().backward()  # expanded from one number
    assert recorder.grad.strides == (0, 0)
    assert F.matmul(x[0], w[:, 0]).shape == ()
    F.matmul(x[0], w[:, 0]).backward()  # without a dimension


def test_a_tensor_of_the_negative():
    x = torch.randn(3, 4, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(F.matmul(x, x.t()), torch.matmul(x, x.t()))


@pytest.mark.parametrize("grad", [False, True])
def test_running_statistics_are_updated_in_the_tensor(grad):
    norm, want = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    x = randn(4, 3, grad=grad)
    for _ in range(2):
        y = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)
        torch.testing.assert_close(y, want(x))
    torch.testing.assert_close(norm.running_mean, want.running_mean)
    torch.testing.assert_close(norm.running_var, want.running_var)
    y.sum().backward()  # the update between is none that backward minds


def test_an_empty_batch():
    x, w = randn(0, 4), randn(5, 4)
    y = F.linear(x, w)
    y.sum().backward()
    assert y.shape == (0, 5) and x.grad.shape == (0, 4) and torch.equal(w.grad, torch.zeros(5, 4))


# ------------------------------------------------------------------------------------------------ torch's rules of autograd
def test_an_input_changed_in_place_before_backward():
    x, w = randn(3, 4) * 1, randn(5, 4)
    y = F.linear(x, w)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_an_output_that_backward_reads_changed_in_place():
    y = F.linear(randn(3, 4), randn(5, 4), activation="sigmoid")
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_an_output_that_backward_does_not_read_may_change_in_place():
    x, w = randn(3, 4), randn(4, 5)
    F.matmul(x, w).relu_().sum().backward()
    got = x.grad
    torch.testing.assert_close(got, torch.autograd.grad(torch.matmul(x, w).relu_().sum(), x)[0])


def test_backward_twice():
    x, w = randn(3, 4), randn(5, 4)
    y = F.linear(x, w).sum()
    y.backward(retain_graph=True)
    once = x.grad.clone()
    y.backward()
    torch.testing.assert_close(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_backward_frees_what_the_kernel_saved():
    y = F.linear(randn(3, 4), randn(5, 4))
    node = y.grad_fn
    y.sum().backward(retain_graph=True)
    assert node.pullback is not None
    y.sum().backward()
    assert node.pullback is None


def test_the_gradient_of_a_gradient_is_refused():
    x, w = randn(3, 4), randn(5, 4)
    grad, = torch.autograd.grad(F.linear(x, w).pow(2).sum(), x, create_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(T.linear(x, w).pow(2).sum(), x)[0])
    for second in (lambda: grad.sum().backward(retain_graph=True), lambda: torch.autograd.grad(grad.sum(), x)):
        with pytest.raises(RuntimeError, match="linear: the gradient of its gradient is not supported"):
            second()


def test_checkpoint():
    from torch.utils.checkpoint import checkpoint

    x, w = randn(3, 4), randn(5, 4)
    checkpoint(lambda x: F.linear(x, w, activation="tanh").sum(), x, use_reentrant=False).backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(T.linear(x, w).tanh().sum(), x)[0])


def test_forward_mode_and_function_transforms_are_refused():
    x, w = randn(3, 4, grad=False), randn(5, 4, grad=False)
    f = lambda x: F.linear(x, w).sum()
    for transformed in (torch.func.grad(f), torch.func.vmap(f), lambda x: torch.func.jvp(f, (x,), (x,))):
        with pytest.raises(RuntimeError, match=r"linear: torch.func's transforms .* not supported"):
            transformed(x)


def test_compile():
    def f(x, w):
        return F.linear(x * 2, w, activation="relu").sin()

    x, w = randn(3, 4), randn(5, 4)
    want = f(x, w)
    want_grads = torch.autograd.grad(want.sum(), (x, w))
    compiled = torch.compile(f, backend="eager")
    for _ in range(2):
        y = compiled(x, w)
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), (x, w)), want_grads)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, w), want)


def test_nothing_imports_the_compiler():
    """torch._dynamo takes seconds to import; a plain call must not."""
    code = "import torch, sys, fastdl.functional as F; F.matmul(torch.ones(2, 2), torch.ones(2, 2)); print('torch._dynamo' in sys.modules)"
    assert python(code, FASTDL_BACKEND="reference").stdout.strip() == "False"


# ------------------------------------------------------------------------------------------------ refusals
def meta(*shape):
    return torch.empty(shape, device="meta")


def states(*dtypes):
    return [torch.zeros(1, 2, 5, dtype=d) for d in dtypes]


ELU = ("elu", torch.tensor(1.0, requires_grad=True))
BAD = {
    "numpy among tensors": (lambda: F.linear(randn(3, 4), np.zeros((5, 4), "f4")), TypeError,
                            r"linear: weight is a numpy array and input is a torch tensor; the rule is one kind for all"),
    "numpy in a list": (lambda: F.lstm(randn(4, 2, 3), [randn(1, 2, 5), np.zeros((1, 2, 5), "f4")], lstm_parameters(3, 5, 1)), TypeError,
                        r"lstm: hx\[1\] is a numpy array and input is a torch tensor"),
    "a tensor among numpy": (lambda: F.linear(np.zeros((3, 4), "f4"), randn(5, 4)), TypeError, r"linear: weight is a torch tensor"),
    "two devices": (lambda: F.linear(randn(3, 4), meta(5, 4)), ValueError,
                    r"linear: weight is on meta, input is on cpu; the rule is one device for all"),
    "another device": (lambda: F.linear(meta(3, 4), meta(5, 4)), ValueError,
                       r"linear: the tensors are on meta and the backend 'reference' was chosen"),
    "bfloat16": (lambda: F.linear(randn(3, 4), randn(5, 4).bfloat16()), TypeError,
                 r"linear: weight has dtype torch.bfloat16; the rule on the CPU is float32 or float64"),
    "float16": (lambda: F.matmul(randn(3, 4).half(), randn(4, 3).half()), TypeError, r"matmul: input has dtype torch.float16"),
    "complex": (lambda: F.matmul(randn(3, 4), randn(4, 3).to(torch.complex64)), TypeError, r"matmul: other has dtype torch.complex64"),
    "sparse": (lambda: F.linear(randn(3, 4).detach().to_sparse(), randn(5, 4)), TypeError, r"linear: input has layout torch.sparse_coo"),
    "bfloat16 in a list": (lambda: F.lstm(randn(4, 2, 3), states(torch.float32, torch.bfloat16), lstm_parameters(3, 5, 1)), TypeError,
                           r"lstm: hx\[1\] has dtype torch.bfloat16"),
    "integers": (lambda: F.matmul(torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2)), TypeError, r"matmul: input has dtype int64"),
    "two dtypes": (lambda: F.linear(randn(3, 4), randn(5, 4).double()), TypeError, r"linear: weight is float64, input is float32"),
    "shapes": (lambda: F.linear(randn(3, 4), randn(5, 3)), ValueError, r"linear: input has shape \(3, 4\)"),
    "an option with a gradient": (lambda: F.linear(randn(3, 4), randn(5, 4), activation=ELU), TypeError,
                                  r"linear: activation\[1\] requires a gradient and is an option"),
    "too many arguments": (lambda: F.matmul(randn(2, 2), randn(2, 2), randn(2, 2, grad=False)), TypeError, "takes 2 positional arguments"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    f, error, message = BAD[case]
    with pytest.raises(error, match=message):
        f()


def test_an_option_as_a_tensor():
    y = F.linear(randn(3, 4), randn(5, 4), activation=("leaky_relu", torch.tensor(0.5)))
    torch.testing.assert_close(y, T.leaky_relu(T.linear(randn(3, 4), randn(5, 4)), 0.5))
