"""The checks of the recurrent operators."""

from __future__ import annotations

import os

import numpy as np

from ... import check
from ...op import Call
from .layout import GATES, RNNParams


def prepare(op, input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, lengths, batch_sizes, seed,
            peepholes=None, linear_before_reset=True, checkpoint=None) -> Call:
    """Check the arguments of a sequence operator; ``op`` is its name and its mode."""
    layers = check.integer(op, "num_layers", num_layers, 1)
    rate = check.number(op, "dropout", dropout, 0, 1)
    directions = 2 if bidirectional else 1
    rate = rate if train and layers > 1 else 0.0
    checkpoint = 0 if checkpoint is None else check.integer(op, "checkpoint", checkpoint, 1)
    if seed is not None:
        seed = check.integer(op, "seed", seed, 0)
    seed = 0 if rate == 0 else fresh_seed() if seed is None else seed

    packed = batch_sizes is not None
    x = check.array(op, "input", input, 2 if packed else (2, 3))
    if packed:
        if lengths is not None:
            raise ValueError(f"{op}: lengths and batch_sizes are both given; the rule is one of them (padded or packed input)")
        batch_sizes = check_batch_sizes(op, batch_sizes, x)
        single, batch = False, batch_sizes[0]
    else:
        single = x.ndim == 2
        if single:
            x = x[:, None, :]
        elif batch_first:
            x = x.swapaxes(0, 1)
        steps, batch = x.shape[:2]
        if steps == 0:
            raise ValueError(f"{op}: input has shape {input.shape}, a sequence length of 0; the rule is at least 1")
        if lengths is not None:
            lengths = check_lengths(op, lengths, batch, steps)

    params, hidden, projection = check_params(op, params, x, has_biases, layers, directions)
    states, h0, c0 = check_hx(op, hx, x.dtype, layers * directions, None if single else batch, projection or hidden, hidden)
    peepholes = check_peepholes(op, peepholes, x.dtype, layers * directions, hidden) if op == "lstm" else ()

    record = RNNParams(
        mode=op, layers=layers, directions=directions, hidden=hidden, projection=projection, biases=bool(has_biases),
        states=states, peepholes=bool(peepholes) and peepholes[0] is not None, linear_before_reset=bool(linear_before_reset),
        batch_first=bool(batch_first) and not single and not packed, lengths=lengths, batch_sizes=batch_sizes, dropout=rate, seed=seed,
        checkpoint=checkpoint)
    arrays = (x, h0, *params, *peepholes) if states == 1 else (x, h0, c0, *params, *peepholes)
    if not single:
        return Call(arrays, record)
    output, n = projection or hidden, layers * directions
    shapes = ((x.shape[0], directions * output), (n, output), (n, hidden))
    return Call(arrays, record, shapes if op == "lstm" else shapes[:2])


def draws_nothing(params) -> bool:
    """Whether what a call was prepared for holds for all calls of its form."""
    return params.dropout == 0


def fresh_seed() -> int:
    return int.from_bytes(os.urandom(8), "little") >> 1


# ------------------------------------------------------------------------------------------------ which steps are there
def whole_numbers(op, name, value) -> np.ndarray:
    """A one-dimensional int64 array of a sequence or an array of integers."""
    if isinstance(value, np.ndarray):
        return check.array(op, name, value, 1, kinds="i").astype(np.int64)
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{op}: {name} must be a sequence or an array of integers, got {type(value).__name__}")
    return np.array([check.integer(op, f"{name}[{i}]", v) for i, v in enumerate(value)], dtype=np.int64)


def check_lengths(op, lengths, batch, steps) -> tuple[int, ...]:
    lengths = whole_numbers(op, "lengths", lengths)
    if len(lengths) != batch:
        raise ValueError(f"{op}: lengths has {len(lengths)} entries; the rule is one for each row of the batch, {batch}")
    wrong = np.flatnonzero((lengths < 1) | (lengths > steps))
    if wrong.size:
        raise ValueError(f"{op}: lengths[{wrong[0]}] is {lengths[wrong[0]]}; the rule is 1 to the sequence length, {steps}")
    return tuple(lengths.tolist())


def check_batch_sizes(op, batch_sizes, x) -> tuple[int, ...]:
    sizes = whole_numbers(op, "batch_sizes", batch_sizes)
    if not len(sizes):
        raise ValueError(f"{op}: batch_sizes is empty, a sequence length of 0; the rule is at least 1")
    if sizes.min() < 1 or (sizes[1:] > sizes[:-1]).any():
        raise ValueError(f"{op}: batch_sizes is {sizes.tolist()}; the rule is that none is below 1 and none above the one before")
    if sizes.sum() != x.shape[0]:
        raise ValueError(f"{op}: batch_sizes sums to {sizes.sum()}, input has {x.shape[0]} rows; the rule is that they are equal")
    return tuple(sizes.tolist())


# ------------------------------------------------------------------------------------------------ weights
def param_name(i, per, directions, has_biases) -> str:
    """torch's name of the i-th entry of params."""
    kinds = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * bool(has_biases) + ["weight_hr"]
    k, j = divmod(i, per)
    layer, direction = divmod(k, directions)
    return f"params[{i}] ({kinds[j]}_l{layer}{'_reverse' if direction else ''})"


def check_params(op, params, x, has_biases, layers, directions) -> tuple[list[np.ndarray], int, int]:
    """params as plain arrays, the hidden size and the projection's (0: none)."""
    if not isinstance(params, (tuple, list)):
        raise TypeError(f"{op}: params must be a tuple or list of arrays, got {type(params).__name__}")
    n, plain = layers * directions, 4 if has_biases else 2
    per = plain
    if len(params) != n * plain:
        per = plain + 1
        if op != "lstm" or len(params) != n * per:
            _refuse_count(op, len(params), n, plain, has_biases)
    params, dtype = list(params), x.dtype
    for i, w in enumerate(params):
        if type(w) is not np.ndarray or w.dtype != dtype:
            what = param_name(i, per, directions, has_biases)
            params[i] = w = check.array(op, what, w)
            check.same_dtype(op, what, w, "input", x)
        rank = 1 if has_biases and i % per in (2, 3) else 2
        if w.ndim != rank:
            check.array(op, param_name(i, per, directions, has_biases), w, rank)

    projected = per > plain
    sizes = params[plain if projected else 1]
    if 0 in sizes.shape:
        name = param_name(plain if projected else 1, per, directions, has_biases)
        raise ValueError(f"{op}: {name} has shape {sizes.shape}; the rule is at least 1 each")
    projection, hidden = sizes.shape if projected else (0, sizes.shape[1])
    output, rows = projection or hidden, GATES[op] * hidden
    rest = [(rows, output), *[(rows,)] * (plain - 2), (projection, hidden)]
    first, later = [(rows, x.shape[-1]), *rest], [(rows, directions * output), *rest]
    for i, w in enumerate(params):
        shape = (first if i < per * directions else later)[i % per]
        if w.shape != shape:
            _refuse_shape(op, w, i, per, shape, has_biases, directions, i < per * directions, projected)
    return params, hidden, projection


def _refuse_shape(op, w, i, per, shape, has_biases, directions, first, projected):
    rows, output = "hidden" if GATES[op] == 1 else f"{GATES[op]}*hidden", "projection" if projected else "hidden"
    rules = [f"({rows}, {'input features' if first else f'directions*{output}'})", f"({rows}, {output})"]
    rules += [f"({rows},)"] * 2 * bool(has_biases) + ["(projection, hidden)"]
    name = param_name(i, per, directions, has_biases)
    raise ValueError(f"{op}: {name} has shape {w.shape}; the rule is {rules[i % per]} = {shape}")


def _refuse_count(op, got, n, plain, has_biases):
    order = "w_ih, w_hh, b_ih, b_hh" if has_biases else "w_ih, w_hh"
    rule = f"{n * plain} ({order} for each layer, and in it each direction: {n} times {plain})"
    if op == "lstm":
        rule += f", or {n * (plain + 1)} with w_hr last in each ({n} times {plain + 1}) for projections"
    raise ValueError(f"{op}: params has {got} arrays (has_biases={bool(has_biases)}); the rule is {rule}")


def check_peepholes(op, peepholes, dtype, n, hidden) -> tuple:
    if peepholes is None:
        return (None,)
    if not isinstance(peepholes, (tuple, list)):
        raise TypeError(f"{op}: peepholes must be a tuple or list of arrays, got {type(peepholes).__name__}")
    if len(peepholes) != n:
        raise ValueError(f"{op}: peepholes has {len(peepholes)} arrays; the rule is one for each layer, and in it each direction: {n}")
    return tuple(check_exact(op, f"peepholes[{i}]", p, dtype, (3 * hidden,), "(3*hidden,)") for i, p in enumerate(peepholes))


def check_exact(op, name, value, dtype, shape, rule):
    """An array of exactly this dtype (the input's) and shape."""
    value = check.array(op, name, value)
    if value.dtype != dtype:
        raise TypeError(f"{op}: {name} is {value.dtype}, input is {dtype}; the rule is one dtype for all")
    if value.shape != shape:
        raise ValueError(f"{op}: {name} has shape {value.shape}; the rule is {rule} = {shape}")
    return value


# ------------------------------------------------------------------------------------------------ states
def check_hx(op, hx, dtype, n, batch, output, hidden):
    """(number of leaves, h0, c0), each state (n, batch, size) or None. batch None: unbatched, hx has no batch axis."""
    if hx is None:
        return 1, None, None
    lead = (n,) if batch is None else (n, batch)
    words = "layers*directions" if batch is None else "layers*directions, batch"
    if op != "lstm":
        return 1, _state(op, "hx", hx, dtype, (*lead, hidden), f"({words}, hidden)"), None
    check_pair(op, hx)
    h0 = _state(op, "hx[0] (h0)", hx[0], dtype, (*lead, output), f"({words}, {'hidden' if output == hidden else 'projection'})")
    return 2, h0, _state(op, "hx[1] (c0)", hx[1], dtype, (*lead, hidden), f"({words}, hidden)")


def check_pair(op, hx):
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"{op}: hx must be a tuple (h0, c0), got {type(hx).__name__}")
    if len(hx) != 2:
        raise ValueError(f"{op}: hx has {len(hx)} entries; the rule is two, (h0, c0)")


def _state(op, name, value, dtype, shape, rule):
    value = check_exact(op, name, value, dtype, shape, rule)
    return value[:, None, :] if value.ndim == 2 else value
