"""Optimisers and schedules against torch.optim, over several steps."""

import copy
import math

import numpy as np
import pytest
import torch

import fastdl
from fastdl import nn, optim

SHAPES = [(3, 4), (7,), (1, 40000), ()]  # one longer than a block
CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05}),
    ("Adam", {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "amsgrad": True}),
    ("AdamW", {"lr": 0.05}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.3, "amsgrad": True}),
]


def parameters(dtype="f8"):
    rng = np.random.default_rng(0)
    ours = [nn.Parameter(np.asarray(rng.standard_normal(s)).astype(dtype)) for s in SHAPES]
    return ours, [torch.tensor(p.data.copy(), requires_grad=True) for p in ours]


def give_gradients(ours, theirs, step):
    rng = np.random.default_rng(step)
    for i, (p, t) in enumerate(zip(ours, theirs, strict=True)):
        p.grad = t.grad = None
        if i == 1 and step == 2:
            continue  # a parameter without a gradient is left alone
        g = np.asarray(rng.standard_normal(p.shape)).astype(p.dtype)
        t.grad = torch.tensor(g)
        p.grad = np.array(g, order="F") if step == 1 else g


def assert_same(ours, theirs, dtype="f8"):
    for p, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.data, t.detach().numpy(), rtol=1e-12 if dtype == "f8" else 1e-5, atol=1e-12 if dtype == "f8" else 1e-6)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name,options", CASES)
def test_steps(name, options, dtype):
    ours, theirs = parameters(dtype)
    a, b = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    arrays = [p.data for p in ours]
    for step in range(5):
        give_gradients(ours, theirs, step)
        grads = [None if p.grad is None else p.grad.copy() for p in ours]
        a.step()
        b.step()
        for p, g in zip(ours, grads, strict=True):
            if g is not None:
                np.testing.assert_array_equal(p.grad, g, err_msg="step wrote to a gradient")
    assert_same(ours, theirs, dtype)
    assert all(p.data is array for p, array in zip(ours, arrays, strict=True))  # in place


@pytest.mark.parametrize("name,options", CASES)
def test_state_goes_on_where_it_stopped(name, options):
    ours, theirs = parameters()
    a, b = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    for step in range(3):
        give_gradients(ours, theirs, step)
        a.step()
        b.step()
    for state in (a.state_dict(), b.state_dict()):  # torch's loads too
        copies = [nn.Parameter(p.data) for p in ours]
        again = getattr(optim, name)(copies, lr=99.0)
        again.load_state_dict(state)
        reference = [torch.tensor(t.detach().numpy().copy(), requires_grad=True) for t in theirs]
        c = getattr(torch.optim, name)(reference, **options)
        c.load_state_dict(b.state_dict())
        for step in range(3, 5):
            give_gradients(copies, reference, step)
            again.step()
            c.step()
        assert_same(copies, reference)


def test_groups():
    ours, theirs = parameters()
    a = optim.SGD([{"params": ours[:2], "lr": 0.5}, {"params": ours[2:], "momentum": 0.5}], lr=0.1)
    b = torch.optim.SGD([{"params": theirs[:2], "lr": 0.5}, {"params": theirs[2:], "momentum": 0.5}], lr=0.1)
    for step in range(3):
        give_gradients(ours, theirs, step)
        a.step()
        b.step()
    assert_same(ours, theirs)
    a.zero_grad()
    assert all(p.grad is None for p in ours)


def test_frozen_and_strided_weights():
    p, q = nn.Parameter(np.ones((3, 2))), nn.Parameter(np.ones(2))
    q.requires_grad = False
    p.data = np.asfortranarray(p.data)
    p.grad, q.grad = np.ones((3, 2)), np.ones(2)
    optim.SGD([p, q], lr=0.25).step()
    np.testing.assert_array_equal(p.data, 0.75)
    np.testing.assert_array_equal(q.data, 1)


@pytest.mark.parametrize("make,error,message", [
    (lambda p: optim.SGD([]), ValueError, "SGD: params is empty"),
    (lambda p: optim.SGD([p.data]), TypeError, "SGD: params holds a ndarray; the rule is nn.Parameter"),
    (lambda p: optim.SGD([p, p]), ValueError, "appears twice"),
    (lambda p: optim.SGD([p], lr=-1), ValueError, "SGD: lr is -1.0"),
    (lambda p: optim.SGD([p], nesterov=True), ValueError, "SGD: nesterov is True; the rule is a momentum above 0"),
    (lambda p: optim.SGD([{"params": [p], "speed": 1}]), ValueError, "SGD: speed is no option; the options are lr, momentum"),
    (lambda p: optim.SGD([{"lr": 1}]), TypeError, "an entry 'params'"),
    (lambda p: optim.Adam([p], betas=(0.9, 1.0)), ValueError, r"Adam: betas is \(0.9, 1.0\)"),
    (lambda p: optim.AdamW([p], eps=-1), ValueError, "AdamW: eps is -1.0"),
    (lambda p: optim.StepLR(optim.SGD([p]), 0), ValueError, "StepLR: step_size is 0"),
    (lambda p: optim.StepLR(p, 1), TypeError, "StepLR: optimizer must be"),
    (lambda p: optim.LambdaLR(optim.SGD([p]), [1]), ValueError, "LambdaLR: lr_lambda must be a function"),
    (lambda p: optim.Adam([p]).load_state_dict({"state": {}, "param_groups": []}), ValueError, r"groups of \[\] parameters"),
    (lambda p: optim.Adam([p]).load_state_dict({"state": {0: {"step": 1}}, "param_groups": [{"params": [0]}]}), ValueError,
     "no exp_avg for parameter 0"),
    (lambda p: optim.Adam([p]).load_state_dict({"state": {0: {"exp_avg": np.zeros(3)}}, "param_groups": [{"params": [0]}]}), ValueError,
     r"exp_avg of shape \(3,\) for parameter 0"),
    (lambda p: optim.Adam([p]).load_state_dict({"state": {4: {}}, "param_groups": [{"params": [0]}]}), ValueError, "state for parameter 4"),
])
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make(nn.Parameter(np.zeros(2)))


def test_a_gradient_of_another_shape_is_refused():
    p = nn.Parameter(np.zeros(2))
    p.grad = np.zeros(3)
    with pytest.raises(ValueError, match=r"SGD: a gradient has shape \(3,\), its parameter \(2,\)"):
        optim.SGD([p]).step()


# ------------------------------------------------------------------------------------------------ clipping
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_grad_norm(norm_type, max_norm):
    ours, theirs = parameters()
    give_gradients(ours, theirs, 0)
    ours[0].grad = np.array(ours[0].grad, order="F")
    norm = optim.clip_grad_norm_(iter(ours), max_norm, norm_type)
    want = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    np.testing.assert_allclose(norm, want.item(), rtol=1e-12)
    for p, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad, t.grad.numpy(), rtol=1e-10)


def test_clip_edges():
    p = nn.Parameter(np.zeros(2))
    assert optim.clip_grad_norm_([p], 1.0) == 0
    p.grad = np.array([np.nan, 1])
    with pytest.raises(ValueError, match="norm is nan"):
        optim.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    p.grad = np.array([-3.0, 1])
    optim.clip_grad_value_(p, 2)
    np.testing.assert_array_equal(p.grad, [-2, 1])


# ------------------------------------------------------------------------------------------------ schedules
@pytest.mark.parametrize("name,args", [("StepLR", (3, 0.5)), ("CosineAnnealingLR", (7, 0.01)), ("LambdaLR", (lambda t: 0.9**t,))])
def test_schedules(name, args):
    ours, theirs = parameters()
    a, b = optim.SGD([{"params": ours[:1], "lr": 0.5}, {"params": ours[1:]}], lr=0.1), \
        torch.optim.SGD([{"params": theirs[:1], "lr": 0.5}, {"params": theirs[1:]}], lr=0.1)
    s, t = getattr(optim, name)(a, *args), getattr(torch.optim.lr_scheduler, name)(b, *args)
    for _ in range(12):
        np.testing.assert_allclose(s.get_last_lr(), t.get_last_lr(), rtol=1e-9)
        b.step()
        s.step()
        t.step()
    again = getattr(optim, name)(a, *args)
    again.load_state_dict(s.state_dict())
    np.testing.assert_allclose(again.get_last_lr(), t.get_last_lr(), rtol=1e-9)
    assert s.last_epoch == 12
    with pytest.raises(ValueError, match="got 1 groups, the optimiser has 2"):
        s.load_state_dict({"last_epoch": 1, "base_lrs": [1]})


# ------------------------------------------------------------------------------------------------ compiled steps
def after_steps(name, options, backend, dtype="f4", max_norm=None, clip=None):
    rng = np.random.default_rng(5)
    parameters = [nn.Parameter(np.asarray(rng.standard_normal(s)).astype(dtype)) for s in ((70, 700), (16384,), (3,), (16385,), (0, 4), ())]
    optimizer = getattr(optim, name)(parameters, **options)
    with fastdl.use_backend(backend):
        for step in range(4):
            for i, p in enumerate(parameters):
                g = np.asarray(rng.standard_normal(p.shape)).astype(dtype)
                p.grad = None if i == 2 and step == 1 else np.array(g, order="F") if step == 2 else g
            if clip is not None:
                optim.clip_grad_norm_(parameters, clip)
            optimizer.step(**({} if max_norm is None else {"max_norm": max_norm}))
    return [p.data for p in parameters] + [v for s in optimizer.state.values() for v in s.values() if isinstance(v, np.ndarray)]


def assert_all_close(got, want, dtype="f4"):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5 if dtype == "f4" else 1e-12, atol=1e-6 if dtype == "f4" else 1e-13)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name,options", CASES)
def test_compiled_steps_are_the_reference(name, options, dtype):
    assert_all_close(after_steps(name, options, "numba", dtype), after_steps(name, options, "reference", dtype), dtype)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
@pytest.mark.parametrize("name,options", CASES[:2] + CASES[6:7])
def test_max_norm_is_clipping_before_the_step(name, options, max_norm, backend):
    folded, apart = (after_steps(name, options, backend, "f8", **how) for how in ({"max_norm": max_norm}, {"clip": max_norm}))
    assert_all_close(folded, apart, "f8")


def test_max_norm_leaves_gradients_alone():
    p = nn.Parameter(np.ones(4))
    p.grad = np.full(4, 3.0)
    for backend in ("numba", "reference"):
        with fastdl.use_backend(backend):
            optim.SGD([p], lr=1.0).step(max_norm=1.0)
        np.testing.assert_array_equal(p.grad, 3.0)
    np.testing.assert_allclose(p.data, 0, atol=1e-6)
    with pytest.raises(ValueError, match="step: max_norm is -1"):
        optim.SGD([p]).step(max_norm=-1)


def test_steps_have_the_same_bits_for_any_number_of_threads():
    threads, found = fastdl.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            fastdl.set_num_threads(n)
            found.append(after_steps("AdamW", {"lr": 0.05}, "numba", max_norm=0.7))
    finally:
        fastdl.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_prepared_weights_are_dropped_by_a_step():
    """A packed weight's panels must not outlive the values they were made from."""
    layer, x = nn.Linear(64, 64, rng=np.random.default_rng(0)), np.random.default_rng(1).standard_normal((64, 64)).astype("f4")
    layer(x)
    layer.weight.grad = np.ones(layer.weight.shape, "f4")
    optim.SGD(layer.parameters(), lr=0.5).step()
    np.testing.assert_allclose(layer(x), x @ layer.weight.data.T + layer.bias.data, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------ penalties
def test_penalties_against_torch():
    ours, theirs = parameters()
    for p, t in zip(ours, theirs, strict=True):
        p.grad = np.ones(p.shape)
        t.grad = torch.ones_like(t)
    ours[2].grad, theirs[2].grad = None, None  # a weight that the loss does not reach
    with ours[0].edit() as array:
        array[0, 0] = 0
    with torch.no_grad():
        theirs[0][0, 0] = 0
    penalty = optim.Penalty(ours, l1=0.3, l2=0.7)
    value = sum(0.3 * t.abs().sum() + 0.35 * (t * t).sum() for t in theirs if t.ndim > 1)
    assert penalty.value() == pytest.approx(value.item())
    reached = theirs[0]
    (0.3 * reached.abs().sum() + 0.35 * (reached * reached).sum()).backward()
    penalty.add_gradients()
    for p, t in zip(ours, theirs, strict=True):
        if t.grad is None:
            assert p.grad is None
        else:
            np.testing.assert_allclose(p.grad, t.grad.numpy(), rtol=1e-12)
    everything = optim.Penalty(ours, l1=1.0, biases=True)
    assert everything.value() == pytest.approx(float(sum(t.abs().sum() for t in theirs)))


def test_l2_is_sgds_weight_decay():
    """The same rule by two ways; AdamW's decay is another: it shrinks a weight whose gradient is 0 and leaves its moments alone."""
    (a, *_), (b, *_) = parameters("f8")[0], parameters("f8")[0]
    plain, decayed = optim.SGD([a], lr=0.1, momentum=0.9), optim.SGD([b], lr=0.1, momentum=0.9, weight_decay=0.2)
    penalty = optim.Penalty(a, l2=0.2)
    for _ in range(4):
        a.grad, b.grad = np.ones(a.shape), np.ones(b.shape)
        penalty.add_gradients()
        plain.step()
        decayed.step()
    np.testing.assert_allclose(a.data, b.data, rtol=1e-12)


def test_l1_drives_weights_to_zero():
    p = nn.Parameter(np.array([[0.05, -0.05, 3.0]]))
    optimizer, penalty = optim.SGD([p], lr=0.01), optim.Penalty(p, l1=1.0)
    for _ in range(20):
        p.grad = np.zeros(p.shape)
        penalty.add_gradients()
        optimizer.step()
    assert abs(p.data[0, 0]) <= 0.01 and abs(p.data[0, 1]) <= 0.01 and p.data[0, 2] == pytest.approx(2.8)


@pytest.mark.parametrize("make,error,message", [
    (lambda: optim.Penalty(parameters()[0], l1=-1), ValueError, "Penalty: l1 is -1.0"),
    (lambda: optim.Penalty(parameters()[0], l2="x"), TypeError, "Penalty: l2 must be a number"),
    (lambda: optim.Penalty([nn.Parameter(np.zeros(3))]), ValueError, "of 1 parameters none is a weight of two or more dimensions"),
])
def test_penalty_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_copy_steps_its_own_parameters():
    """The addresses that an optimiser keeps between steps are not its copy's."""
    p = nn.Parameter(np.ones(5))
    p.grad = np.ones(5)
    optimizer = optim.Adam([p], lr=0.1)
    optimizer.step()
    before = p.data.copy()
    other = copy.deepcopy(optimizer)
    other.param_groups[0]["params"][0].grad = np.ones(5)
    other.step()
    np.testing.assert_array_equal(p.data, before)
    assert (other.param_groups[0]["params"][0].data < before).all()


# ------------------------------------------------------------------------------------------------ lists of arrays
@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, lr=0.1), lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
                                  lambda p: optim.Adam(p, lr=0.1), lambda p: optim.AdamW(p, lr=0.1, amsgrad=True)])
def test_gradients_that_kernels_cannot_read_as_they_are(make):
    """With gaps, of another dtype or byte order, of a subclass: steps are those of plain copies. Empty parameters among others too."""
    rng = np.random.default_rng(0)
    shapes = [(40, 50), (0, 3), (7,), (300, 70), (0,), (5, 5)]
    grads = [rng.standard_normal(s).astype("f4") for s in shapes]
    odd = [np.repeat(grads[0], 2, 1)[:, ::2], grads[1], grads[2].astype(">f4"), np.asfortranarray(grads[3]), grads[4],
           np.ma.masked_array(grads[5].astype("f8"))]
    ends = []
    for some in (grads, odd):
        parameters = [nn.Parameter(np.ones(s, "f4")) for s in shapes]
        optimizer = make(parameters)
        for _ in range(3):
            for p, g in zip(parameters, some, strict=True):
                p.grad = g
            optimizer.step()
        ends.append([np.array(p.data) for p in parameters])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_buffer_of_another_size_is_refused():
    p = nn.Parameter(np.ones(8, "f4"))
    optimizer = optim.Adam([p])
    p.grad = np.ones(8, "f4")
    optimizer.step()
    before = np.array(p.data)
    optimizer.state[0]["exp_avg"] = np.zeros(4, "f4")
    with pytest.raises(TypeError, match="a buffer of its state"):
        optimizer.step()
    np.testing.assert_array_equal(p.data, before)
    optimizer.state[0]["exp_avg"] = [0.0] * 8
    with pytest.raises(TypeError, match="a buffer of its state"):
        optimizer.step()


def test_parameters_of_two_ages_and_dtypes():
    parameters = [nn.Parameter(np.ones(5, d)) for d in ("f4", "f8", "f4")]
    theirs = [torch.ones(5, dtype=t, requires_grad=True) for t in (torch.float32, torch.float64, torch.float32)]
    ours, other = optim.Adam(parameters, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for step in range(4):
        for i, (p, t) in enumerate(zip(parameters, theirs, strict=True)):
            p.grad = None if step < i else np.full(5, 0.5 + step, p.dtype)
            t.grad = None if step < i else torch.full_like(t, 0.5 + step)
        ours.step()
        other.step()
    for p, t in zip(parameters, theirs, strict=True):
        np.testing.assert_allclose(p.data, t.detach().numpy(), rtol=1e-5)
