"""What recurrent operators say of arguments that they cannot take."""

import numpy as np
import pytest

import fastdl
import fastdl.functional as F


def z(*shape, dtype="f8"):
    return np.zeros(shape, dtype)


GRU = [z(12, 3), z(12, 4), z(12), z(12)]
LSTM = [z(16, 3), z(16, 4), z(16), z(16)]
PROJ = [z(16, 3), z(16, 2), z(16), z(16), z(2, 4)]
X = z(5, 2, 3)
BAD = [
    ("gru", ([1.0], None, GRU), {}, TypeError, r"gru: input must be a numpy array or a torch tensor, got list"),
    ("gru", (z(5, 2, 3, dtype="i8"), None, GRU), {}, TypeError, r"gru: input has dtype int64; the rule is float32 or float64"),
    ("gru", (z(3), None, GRU), {}, ValueError, r"gru: input has 1 dimensions \(3,\); the rule is 2 or 3"),
    ("gru", (z(0, 2, 3), None, GRU), {}, ValueError, r"gru: input has shape \(0, 2, 3\), a sequence length of 0; the rule is at least 1"),
    ("gru", (z(2, 0, 3), None, GRU), {"batch_first": True}, ValueError, r"sequence length of 0; the rule is at least 1"),
    ("gru", (X, None, z(12, 3)), {}, TypeError, r"gru: params must be a tuple or list of arrays, got ndarray"),
    ("gru", (X, None, GRU[:3]), {}, ValueError,
     r"params has 3 arrays \(has_biases=True\); the rule is 4 \(w_ih, w_hh, b_ih, b_hh for each"),
    ("gru", (X, None, [*GRU, z(2, 4)]), {}, ValueError, r"gru: params has 5 arrays"),
    ("gru", (X, None, GRU), {"has_biases": False}, ValueError,
     r"params has 4 arrays \(has_biases=False\); the rule is 2 \(w_ih, w_hh for each"),
    ("gru", (X, None, GRU), {"bidirectional": True}, ValueError, r"the rule is 8 \(.*: 2 times 4\)"),
    ("lstm", (X, None, LSTM), {"num_layers": 2}, ValueError,
     r"the rule is 8 .* or 10 with w_hr last in each \(2 times 5\) for projections"),
    ("gru", (X, None, [*GRU[:3], 1.0]), {}, TypeError, r"gru: params\[3\] \(bias_hh_l0\) must be a numpy array"),
    ("gru", (X, None, [*GRU[:3], z(12, dtype="f4")]), {}, TypeError,
     r"params\[3\] \(bias_hh_l0\) is float32, input is float64; the rule is one"),
    ("gru", (X, None, [GRU[0], z(4), *GRU[2:]]), {}, ValueError,
     r"gru: params\[1\] \(weight_hh_l0\) has 1 dimensions \(4,\); the rule is 2"),
    ("gru", (z(5, 2, 7), None, GRU), {}, ValueError,
     r"\(weight_ih_l0\) has shape \(12, 3\); the rule is \(3\*hidden, input features\) = \(12, 7\)"),
    ("lstm", (X, None, [LSTM[0], z(12, 4), *LSTM[2:]]), {}, ValueError,
     r"lstm: params\[1\] \(weight_hh_l0\) has shape \(12, 4\); the rule is \(4\*hidden, hidden\) = \(16, 4\)"),
    ("gru", (X, None, [*GRU[:2], z(4), z(12)]), {}, ValueError,
     r"params\[2\] \(bias_ih_l0\) has shape \(4,\); the rule is \(3\*hidden,\) = \(12,\)"),
    ("rnn_tanh", (X, None, [z(4, 3), z(5, 4)]), {"has_biases": False}, ValueError,
     r"rnn_tanh: params\[1\] .* the rule is \(hidden, hidden\) = \(4, 4\)"),
    ("gru", (X, None, GRU * 4), {"num_layers": 2, "bidirectional": True}, ValueError,
     r"params\[8\] \(weight_ih_l1\) has shape \(12, 3\); the rule is \(3\*hidden, directions\*hidden\) = \(12, 8\)"),
    ("gru", (X, None, [*GRU, z(12, 3), z(12, 5), z(12), z(12)]), {"bidirectional": True}, ValueError,
     r"params\[5\] \(weight_hh_l0_reverse\)"),
    ("gru", (X, None, [z(0, 3), z(0, 0), z(0), z(0)]), {}, ValueError, r"\(weight_hh_l0\) has shape \(0, 0\); the rule is at least 1 each"),
    ("lstm", (X, None, [*PROJ[:4], z(0, 4)]), {}, ValueError,
     r"params\[4\] \(weight_hr_l0\) has shape \(0, 4\); the rule is at least 1 each"),
    ("lstm", (X, None, [PROJ[0], z(16, 4), *PROJ[2:]]), {}, ValueError, r"the rule is \(4\*hidden, projection\) = \(16, 2\)"),
    ("gru", (X, (z(1, 2, 4),), GRU), {}, TypeError, r"gru: hx must be a numpy array or a torch tensor, got tuple"),
    ("gru", (X, z(2, 4), GRU), {}, ValueError,
     r"gru: hx has shape \(2, 4\); the rule is \(layers\*directions, batch, hidden\) = \(1, 2, 4\)"),
    ("gru", (X[:, 0], z(1, 1, 4), GRU), {}, ValueError,
     r"gru: hx has shape \(1, 1, 4\); the rule is \(layers\*directions, hidden\) = \(1, 4\)"),
    ("gru", (X, z(1, 2, 4, dtype="f4"), GRU), {}, TypeError, r"gru: hx is float32, input is float64; the rule is one dtype for all"),
    ("lstm", (X, z(1, 2, 4), LSTM), {}, TypeError, r"lstm: hx must be a tuple \(h0, c0\), got ndarray"),
    ("lstm", (X, (z(1, 2, 4),), LSTM), {}, ValueError, r"lstm: hx has 1 entries; the rule is two, \(h0, c0\)"),
    ("lstm", (X, (z(1, 2, 4), None), LSTM), {}, TypeError, r"lstm: hx\[1\] \(c0\) must be a numpy array"),
    ("lstm", (X, (z(1, 2, 4), z(1, 3, 4)), LSTM), {}, ValueError,
     r"lstm: hx\[1\] \(c0\) has shape \(1, 3, 4\); the rule is .* = \(1, 2, 4\)"),
    ("lstm", (X, (z(1, 2, 4), z(1, 2, 4)), PROJ), {}, ValueError,
     r"hx\[0\] \(h0\) .* \(layers\*directions, batch, projection\) = \(1, 2, 2\)"),
    ("gru", (X, None, GRU), {"num_layers": 0}, ValueError, r"gru: num_layers is 0; the rule is at least 1"),
    ("gru", (X, None, GRU), {"num_layers": 1.0}, TypeError, r"gru: num_layers must be an integer, got 1.0"),
    ("gru", (X, None, GRU), {"dropout": 1.5}, ValueError, r"gru: dropout is 1.5; the rule is 0 to 1"),
    ("gru", (X, None, GRU), {"seed": -1}, ValueError, r"gru: seed is -1; the rule is at least 0"),
    ("gru", (X, None, GRU), {"seed": "a"}, TypeError, r"gru: seed must be an integer, got 'a'"),
    ("gru", (X, None, GRU), {"checkpoint": 0}, ValueError, r"gru: checkpoint is 0; the rule is at least 1"),
    ("lstm", (X, None, LSTM), {"checkpoint": 2.0}, TypeError, r"lstm: checkpoint must be an integer, got 2.0"),
    ("gru", (X, None, GRU), {"lengths": 3}, TypeError, r"gru: lengths must be a sequence or an array of integers, got int"),
    ("gru", (X, None, GRU), {"lengths": [5]}, ValueError, r"gru: lengths has 1 entries; the rule is one for each row of the batch, 2"),
    ("gru", (X, None, GRU), {"lengths": [5, 0]}, ValueError, r"gru: lengths\[1\] is 0; the rule is 1 to the sequence length, 5"),
    ("gru", (X, None, GRU), {"lengths": np.array([6, 2])}, ValueError, r"gru: lengths\[0\] is 6; the rule is 1 to the sequence length, 5"),
    ("gru", (X, None, GRU), {"lengths": [5.0, 1]}, TypeError, r"gru: lengths\[0\] must be an integer, got 5.0"),
    ("gru", (X, None, GRU), {"lengths": np.array([5.0, 1])}, TypeError, r"gru: lengths has dtype float64; the rule is an integer type"),
    ("gru", (X, None, GRU), {"lengths": np.array([[5, 1]])}, ValueError, r"gru: lengths has 2 dimensions \(1, 2\); the rule is 1"),
    ("gru", (X, None, GRU), {"batch_sizes": [2]}, ValueError, r"gru: input has 3 dimensions \(5, 2, 3\); the rule is 2"),
    ("gru", (X[0], None, GRU), {"batch_sizes": []}, ValueError,
     r"gru: batch_sizes is empty, a sequence length of 0; the rule is at least 1"),
    ("gru", (X[0], None, GRU), {"batch_sizes": [2, 0]}, ValueError,
     r"batch_sizes is \[2, 0\]; the rule is that none is below 1 and none above the"),
    ("gru", (X[:, 0], None, GRU), {"batch_sizes": [2, 3]}, ValueError, r"batch_sizes is \[2, 3\]; the rule is"),
    ("gru", (X[:, 0], None, GRU), {"batch_sizes": [3, 1]}, ValueError,
     r"batch_sizes sums to 4, input has 5 rows; the rule is that they are equal"),
    ("gru", (X[:, 0], None, GRU), {"batch_sizes": [3, 2], "lengths": [2, 2, 1]}, ValueError, r"lengths and batch_sizes are both given"),
    ("lstm", (X, None, LSTM), {"peepholes": z(1, 12)}, TypeError, r"lstm: peepholes must be a tuple or list of arrays, got ndarray"),
    ("lstm", (X, None, LSTM), {"peepholes": [z(12), z(12)]}, ValueError,
     r"lstm: peepholes has 2 arrays; the rule is one for each layer.*: 1"),
    ("lstm", (X, None, LSTM), {"peepholes": [z(16)]}, ValueError,
     r"lstm: peepholes\[0\] has shape \(16,\); the rule is \(3\*hidden,\) = \(12,\)"),
]


@pytest.mark.parametrize("mode,arguments,options,error,message", BAD)
def test_bad_arguments(mode, arguments, options, error, message):
    with pytest.raises(error, match=message):
        getattr(F, mode)(*arguments, **options)


def test_calls_of_one_form():
    """What was found for one call serves the next ones of its form, lists of arrays included, and nothing else."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype("f4")

    def arguments(features=3):
        return draw(5, 2, features), (draw(1, 2, 4), draw(1, 2, 4)), [draw(16, features), draw(16, 4), draw(16), draw(16)]

    def step(x, hx, params):
        y, pullback = fastdl.vjp(F.lstm, x, hx, params)
        grads = pullback((np.ones_like(y[0]), None, None))
        return [*y, F.lstm(x, hx, params)[0]], grads

    given = [arguments() for _ in range(4)]
    found = [step(*one) for one in given]
    with fastdl.use_backend("reference"):
        expected = [step(*one) for one in given]
    for (y, grads), (want_y, want) in zip(found, expected, strict=True):
        for mine, theirs in zip([*y, grads[0], *grads[1], *grads[2]], [*want_y, want[0], *want[1], *want[2]], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    x, hx, params = given[-1]
    assert type(grads[1]) is tuple and type(grads[2]) is list
    for wrong in (params[:3], [*params[:3], draw(15)], [*params[:3], params[3].astype("f8")]):
        with pytest.raises((TypeError, ValueError), match="lstm: params"):
            F.lstm(x, hx, wrong)
    lengths = [F.lstm(x, hx, params, lengths=n)[0] for n in ([5, 1], [5, 2], np.array([5, 1]), np.array([5, 2])) for _ in range(3)]
    assert not lengths[0][1:, 1].any() and lengths[3][1, 1].any() and not lengths[6][1:, 1].any() and lengths[9][1, 1].any()
    many = [draw(16, 3), draw(16, 4), draw(16, 4), draw(16, 4)]
    drawn = [F.lstm(x, None, many, False, 2, 0.5, True)[0] for _ in range(4)]
    assert not (drawn[2] == drawn[3]).all()
