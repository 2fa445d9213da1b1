"""Recurrent networks on a GPU: one product for the input's share of all steps and directions, then the steps.

The steps are one launch, for both directions: of programs that know nothing of each other where the weights fit one
(triton_sequence.py), else of programs that wait for each other after every step (triton_advance.py). Where those could not all run
at once (hidden states of several thousand units, AMD), every step is a launch. Gradients of the weights are one product each over
all steps. Not served, and said so: peepholes, projections, and gru with linear_before_reset=False.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad

from ...gpu import configs, device
from ...gpu.launch import cdiv, launch, power_of_two
from ..matmul.triton_gemm import gemm
from ..triton_columns import gradient_of_last_step
from . import triton_advance, triton_sequence
from .layout import GATES, Weights, alive, join, split
from .triton_dropout import dropped


def rnn_supports(arrays, params):
    if params.projection:
        return "it has projections"
    if params.peepholes:
        return "it has peepholes"
    if params.mode == "gru" and not params.linear_before_reset:
        return "linear_before_reset is False"
    if params.checkpoint:
        return "checkpoint is given"
    return None


class Layer(NamedTuple):
    """What a layer's forward pass keeps for its backward pass."""

    x: torch.Tensor  # (T, B, features)
    gates: torch.Tensor  # (T, B, R * G * H) after their activations
    before: torch.Tensor  # (T, B, R * H): h before each step
    cells: torch.Tensor | None
    inner: torch.Tensor | None


class _Plan(NamedTuple):
    whole: bool  # a program's rows go through the whole sequence without meeting another's
    grid: tuple
    options: dict
    steps_a_launch: int | None = None  # None: all of them


def _padded(hidden) -> int:
    """The tile of units that a whole sequence's program has."""
    return max(16, power_of_two(hidden))


def _held(x, where) -> int:
    """The bytes that a weight takes of a program's registers: for three products of tf32, a float32's two halves."""
    return x.element_size() * (2 if device.precision(x, where, device.tf32_allowed("rnn")) == "tf32x3" else 1)


def _weights_fit(limits, x, where, mode, hidden) -> bool:
    return GATES[mode] * _padded(hidden) ** 2 * _held(x, where) <= limits["WEIGHTS"]


def _plan(kernel, x, batch, hidden, directions, mode):
    """Which kernel: weights that fit registers and shared memory of a program stay there for the whole sequence.

    kernel: "advance" or "retreat", for the configuration where they do not.
    """
    where = device.of(x)
    gates = GATES[mode]
    limits = configs.pick("sequence" if kernel == "advance" else "sequence_backward", where, batch=batch, hidden=hidden)
    options = dict(MODE=mode, GATES=gates, R=directions, PRECISION=device.precision(x, where, device.tf32_allowed("rnn")))
    if _weights_fit(limits, x, where, mode, hidden):
        width = _padded(hidden)
        warps = max(1, min(limits["num_warps"], width // 16))  # a tile of units each, so that a thread has the same units of all gates
        options |= dict(BB=limits["BB"], HB=width, num_warps=warps, num_stages=1)
        return _Plan(True, (cdiv(batch, options["BB"]), directions), options)
    tiles = cdiv(batch, 16) * cdiv(hidden, 16) * directions
    sizes = dict(batch=batch, hidden=hidden, gradients=gates * hidden, bytes=x.element_size(), tiles=tiles)
    config = dict(configs.pick(kernel, where, **sizes))
    together = _programs_at_once(where)
    # the narrower tiles of units, or else the wider, with which all of a row's programs run at the same time
    widths = [n for n in (config["BN"], 2 * config["BN"]) if cdiv(hidden, n) * directions <= together]
    width = widths[0] if widths else config["BN"]
    if width > config["BN"]:
        config |= dict(BN=width)
        if x.element_size() == 2 or kernel == "advance":  # the narrow tiles of a float32 retreat leave four warps enough registers
            config["num_warps"] = min(8, 2 * config["num_warps"])
        if x.element_size() == 4:  # three products of each wide tile of weights: less of it at once, or registers do not suffice
            config["BK"] = min(config["BK"], 64)
    config["BB"] = min(config["BB"], max(16, power_of_two(batch)))
    tiles, rows = cdiv(hidden, width), cdiv(batch, config["BB"])
    parts = min(rows, together // (tiles * directions)) if widths else rows
    if kernel == "advance":
        pack = 1 if gates == 1 else 4
        chunks = cdiv(hidden, config["BK"])
        resident = bool(widths) and pack * width * chunks * config["BK"] * x.element_size() <= config["RESIDENT"]
        config |= dict(PACK=pack, RESIDENT=resident, CHUNKS=chunks if resident else 1)
        if not resident:
            config["BK"] = min(config["BK"], 128)  # several of them, with the weights', are on their way at once
    else:
        chunks = cdiv(gates * hidden, config["SLICES"] * config["SLICE"])
        resident = bool(widths) and width * chunks * config["SLICES"] * config["SLICE"] * _held(x, where) <= config["RESIDENT"]
        if resident:
            config["BK"] = config["SLICE"]
        config |= dict(RESIDENT=resident, CHUNKS=chunks if resident else 1)
        del config["SLICE"]
    return _Plan(False, (parts, tiles, directions), options | config | dict(ONE_LAUNCH=bool(widths)), None if widths else 1)


def _programs_at_once(where) -> int:
    """How many programs surely run at the same time, so that they may wait for one another; 0 where they must not.

    The interpreter runs one after another. On AMD's chiplets nobody has tried.
    """
    return where.multiprocessors if where.cuda else 1 if where is device.INTERPRETER else 0


def _launch_steps(kernel, plan, x, args, steps, *sizes, **options):
    """All ``steps`` in one launch whose programs wait for one another, or a launch a step."""
    at_a_time = plan.steps_a_launch or max(steps, 1)
    counters = None
    if plan.options["ONE_LAUNCH"]:
        counters = torch.zeros(32 * plan.grid[0] * plan.grid[2], dtype=torch.int32, device=x.device)
        options["launch_cooperative_grid"] = device.of(x).cuda
    for first in range(0, steps, at_a_time):
        launch(kernel, plan.grid, x, *args, counters, first, first + at_a_time, *sizes, **plan.options, **options)


def _together(weights, name):
    """One array of every direction's, (R, ...)."""
    values = [getattr(w, name) for w in weights]
    return values[0].contiguous()[None] if len(values) == 1 else torch.stack(values)


def _input_bias(weights, mode, hidden):
    """b_ih + b_hh of every direction, flat, without gru's b_hn, which the reset gate multiplies; and that."""
    if weights[0].b_ih is None:
        return None, None
    b_hh = _together(weights, "b_hh")
    rest = None
    if mode == "gru":
        rest = b_hh[:, 2 * hidden:].contiguous()
        b_hh = b_hh.clone()
        b_hh[:, 2 * hidden:].zero_()
    return (_together(weights, "b_ih") + b_hh).view(-1), rest


def _wide(x, mode, hidden):
    """The number of units that kernels of large hidden states work on: rows of 16-byte multiples, which are loaded 16 bytes at a time.

    The added units' weights are zeros, and so are, at every step, they.
    """
    where = device.of(x)
    limits = configs.pick("sequence", where, batch=x.shape[1], hidden=hidden)
    whole = _weights_fit(limits, x, where, mode, hidden)
    return hidden if whole else cdiv(hidden, 16) * 16


def _widened(t, count, hidden, wide):
    """(..., count * hidden) as (..., count * wide)."""
    return None if t is None else pad(t.view(*t.shape[:-1], count, hidden), (0, wide - hidden)).view(*t.shape[:-1], count * wide)


def _narrowed(t, count, hidden):
    """The inverse of _widened."""
    return None if t is None else t.view(*t.shape[:-1], count, t.shape[-1] // count)[..., :hidden].reshape(*t.shape[:-1], count * hidden)


def _wide_weights(weights, mode, hidden, wide):
    gates = GATES[mode]
    return [Weights(pad(w.w_ih.reshape(gates, hidden, w.w_ih.shape[1]), (0, 0, 0, wide - hidden)).flatten(0, 1),
                    pad(w.w_hh.reshape(gates, hidden, hidden), (0, wide - hidden, 0, wide - hidden)).view(gates * wide, wide),
                    *(b if b is None else _widened(b.contiguous(), gates, hidden, wide) for b in (w.b_ih, w.b_hh))) for w in weights]


def _run_layer(x, h0, c0, weights, lengths, mode, hidden, train):
    """(y (T, B, R * H), h_n (R, B, H), c_n or None, Layer or None)."""
    wide = _wide(x, mode, hidden)
    if wide == hidden:
        return _run_wide_layer(x, h0, c0, weights, lengths, mode, hidden, train)
    y, h_n, c_n, kept = _run_wide_layer(x, _widened(h0, 1, hidden, wide), _widened(c0, 1, hidden, wide),
                                        _wide_weights(weights, mode, hidden, wide), lengths, mode, wide, train)
    return _narrowed(y, len(weights), hidden), _narrowed(h_n, 1, hidden), _narrowed(c_n, 1, hidden), kept


def _run_wide_layer(x, h0, c0, weights, lengths, mode, hidden, train):
    steps, batch, features = x.shape
    count = len(weights)
    tf32 = device.tf32_allowed("rnn")
    bias, bias_n = _input_bias(weights, mode, hidden)
    w_ih = _together(weights, "w_ih").flatten(0, 1)
    gates = gemm(x.reshape(steps * batch, features), w_ih.mT, bias=bias, tf32=tf32)[0].view(steps, batch, w_ih.shape[0])
    w_hh = _together(weights, "w_hh")
    lstm = mode == "lstm"

    def new(*shape, dtype=x.dtype):
        return torch.empty(shape, dtype=dtype, device=x.device)

    y = new(steps, batch, count * hidden)
    before = new(*y.shape) if train else None
    cells = new(*y.shape, dtype=torch.float32) if train and lstm else None
    inner = new(*y.shape) if train and mode == "gru" else None
    kept = Layer(x, gates, before, cells, inner) if train else None
    if batch == 0:
        return y, new(count, 0, hidden), new(count, 0, hidden) if lstm else None, kept
    plan = _plan("advance", x, batch, hidden, count, mode)
    common = dict(TRAIN=train, LENGTHS=lengths is not None, BIAS=bias_n is not None)
    if plan.whole:
        h_n = new(count, batch, hidden)
        c_n = new(count, batch, hidden) if lstm else None
        launch(triton_sequence.sequence, plan.grid, x, gates, w_hh, bias_n, h0, c0, lengths, y, h_n, c_n, before, cells, inner, steps,
               batch, hidden, H0=h0 is not None, C0=c0 is not None, **common, **plan.options)
        return y, h_n, c_n, kept
    states = new(2, count, batch, hidden)
    states[0].zero_() if h0 is None else states[0].copy_(h0)
    cell = (torch.zeros((count, batch, hidden), device=x.device) if c0 is None else c0.float().clone()) if lstm else None
    _launch_steps(triton_advance.advance, plan, x, (gates, w_hh, bias_n, lengths, states, cell, y, before, cells, inner), steps,
                  steps, batch, hidden, **common)
    return y, states[steps % 2], cell.to(x.dtype) if lstm else None, kept


def _run_layer_backward(dy, dh_n, dc_n, kept, c0, weights, lengths, mode, hidden, need, need_x):
    """(dx or None, dh0, dc0 (R, B, H), the gradients of the Weights)."""
    wide = kept.gates.shape[2] // (len(weights) * GATES[mode])
    if wide == hidden:
        return _run_wide_layer_backward(dy, dh_n, dc_n, kept, c0, weights, lengths, mode, hidden, need, need_x)
    dy = None if dy is None else _widened(dy.contiguous(), len(weights), hidden, wide)
    dh_n, dc_n, c0 = (_widened(t, 1, hidden, wide) for t in (dh_n, dc_n, c0))
    weights = _wide_weights(weights, mode, hidden, wide)
    dx, dh0, dc0, grads = _run_wide_layer_backward(dy, dh_n, dc_n, kept, c0, weights, lengths, mode, wide, need, need_x)
    gates = GATES[mode]

    def rows(t):
        return None if t is None else t.view(gates, wide, t.shape[1])[:, :hidden].reshape(gates * hidden, t.shape[1])

    return dx, _narrowed(dh0, 1, hidden), _narrowed(dc0, 1, hidden), [
        Weights(rows(g.w_ih), None if g.w_hh is None else rows(g.w_hh)[:, :hidden].contiguous(),
                *(None if b is None else _narrowed(b, gates, hidden) for b in (g.b_ih, g.b_hh))) for g in grads]


def _run_wide_layer_backward(dy, dh_n, dc_n, kept, c0, weights, lengths, mode, hidden, need, need_x):
    x, gates, before, cells, inner = kept
    steps, batch, features = x.shape
    count = len(weights)
    tf32, lstm = device.tf32_allowed("rnn"), mode == "lstm"
    w_hh = _together(weights, "w_hh")
    d_input = torch.empty_like(gates)
    d_state = torch.empty_like(gates) if mode == "gru" else d_input
    if batch == 0:
        dh0 = torch.zeros((count, 0, hidden), dtype=x.dtype, device=x.device)
        dc0 = dh0.clone() if lstm else None
    else:
        plan = _plan("retreat", x, batch, hidden, count, mode)
        common = dict(LENGTHS=lengths is not None, C0=c0 is not None, DY=dy is not None)
        if plan.whole:
            dh0 = torch.empty((count, batch, hidden), dtype=x.dtype, device=x.device)
            dc0 = torch.empty_like(dh0) if lstm else None
            launch(triton_sequence.sequence_backward, plan.grid, x, gates, w_hh, c0, lengths, dy, dh_n, dc_n, before, cells, inner, d_input,
                   d_state, dh0, dc0, steps, batch, hidden, DH=dh_n is not None, DC=dc_n is not None, **common, **plan.options)
        else:
            def start(given):
                return torch.zeros((count, batch, hidden), device=x.device) if given is None else given.float().clone()

            carry, dc = start(dh_n), start(dc_n) if lstm else None
            arguments = gates, w_hh, c0, lengths, dy, carry, dc, before, cells, inner, d_input, d_state
            _launch_steps(triton_advance.retreat, plan, x, arguments, steps + 1, steps, batch, hidden, **common)
            dh0, dc0 = carry.to(x.dtype), dc.to(x.dtype) if lstm else None
    rows, columns = steps * batch, GATES[mode] * hidden
    at_input, at_state = d_input.view(rows, count * columns), d_state.view(rows, count * columns)
    dx = gemm(at_input, _together(weights, "w_ih").flatten(0, 1), tf32=tf32)[0].view(x.shape) if need_x else None
    # both biases' gradients are one sum, but for gru's b_hn, which the reset gate multiplies
    db_ih = db_hh = [None] * count
    if any(w.b_ih or w.b_hh for w in need):
        db_ih = gradient_of_last_step(at_input, None, None, False, False, True)[1].view(count, columns)
        db_hh = gradient_of_last_step(at_state, None, None, False, False, True)[1].view(count, columns) if mode == "gru" else db_ih.clone()
    grads = []
    for r, wanted in enumerate(need):
        part = slice(r * columns, (r + 1) * columns)
        h = before.view(rows, -1)[:, r * hidden:(r + 1) * hidden]
        grads.append(Weights(gemm(at_input[:, part].mT, x.reshape(rows, features), tf32=tf32)[0] if wanted.w_ih else None,
                             gemm(at_state[:, part].mT, h, tf32=tf32)[0] if wanted.w_hh else None,
                             db_ih[r] if wanted.b_ih else None, db_hh[r] if wanted.b_hh else None))
    return dx, dh0, dc0, grads


# ------------------------------------------------------------------------------------------------ sequences
def _time_major(x, params):
    """A packed or padded x, or gradient of y, as contiguous (T, B, ...), and which rows of it a packed one's are."""
    if params.batch_sizes is None:
        return x.contiguous(), None
    live = alive(params, len(params.batch_sizes))
    rows = torch.from_numpy(np.flatnonzero(live.reshape(-1))).to(x.device)
    padded = torch.zeros((live.size, *x.shape[1:]), dtype=x.dtype, device=x.device)
    return padded.index_copy_(0, rows, x).view(*live.shape, *x.shape[1:]), rows


def _lengths(params, steps, where):
    """int32 (B,), or None where every row has all steps."""
    if params.batch_sizes is not None:
        lengths = alive(params, steps).sum(axis=0)
    elif params.lengths is not None:
        lengths = np.array(params.lengths)
    else:
        return None
    return torch.from_numpy(lengths.astype(np.int32)).to(where)


def _as_given(y, params, rows):
    if rows is not None:
        return y.reshape(-1, *y.shape[2:])[rows]
    return y.transpose(0, 1) if params.batch_first else y


def _without_padding(x, lengths):
    """x (T, B, ...) with zeros where no row is alive: what lies in the padding, be it NaN, must not reach a gradient."""
    if lengths is None:
        return x
    live = torch.arange(len(x), device=x.device)[:, None] < lengths
    return torch.where(live[:, :, None], x, torch.zeros((), dtype=x.dtype, device=x.device))


def rnn(arrays, params, train):
    given, h0, c0, weights = split(arrays, params)
    x, rows = _time_major(given, params)
    lengths = _lengths(params, len(x), x.device)
    x = _without_padding(x, lengths)
    h_n, c_n, layers = [], [], []
    for layer in range(params.layers):
        part = slice(layer * params.directions, (layer + 1) * params.directions)
        x, h, c, kept = _run_layer(x, None if h0 is None else h0[part].contiguous(), None if c0 is None else c0[part].contiguous(),
                                   weights[part], lengths, params.mode, params.hidden, train)
        h_n.append(h)
        c_n.append(c)
        layers.append(kept)
        if _drops_after(layer, params):
            x = dropped(x, layer, params)
    results = (_as_given(x, params, rows), torch.cat(h_n))
    if params.mode == "lstm":
        results += (torch.cat(c_n),)
    return results, (layers, lengths, rows) if train else None


def _drops_after(layer, params) -> bool:
    return params.dropout > 0 and layer < params.layers - 1


def rnn_backward(grad, arrays, saved, params, needs):
    layers, lengths, rows = saved
    _, h0, c0, weights = split(arrays, params)
    need_x, need_h0, need_c0, need = split(needs, params)
    dy, dh_n, dc_n = (*grad, None)[:3]
    if dy is not None:
        dy = _time_major(dy.transpose(0, 1) if params.batch_first else dy, params)[0]
    dh0, dc0, grads = [], [], [None] * len(weights)
    for layer in reversed(range(params.layers)):
        part = slice(layer * params.directions, (layer + 1) * params.directions)
        if dy is not None and _drops_after(layer, params):
            dy = dropped(dy, layer, params)
        dy, dh, dc, grads[part] = _run_layer_backward(
            dy, None if dh_n is None else dh_n[part].contiguous(), None if dc_n is None else dc_n[part].contiguous(), layers[layer],
            None if c0 is None else c0[part].contiguous(), weights[part], lengths, params.mode, params.hidden, need[part],
            layer > 0 or need_x)
        dh0.insert(0, dh)
        dc0.insert(0, dc)
    if need_x:
        dy = _as_given(_without_padding(dy, lengths), params, rows)
    return join(dy, torch.cat(dh0) if need_h0 else None, torch.cat(dc0) if need_c0 else None, grads, params)


# ------------------------------------------------------------------------------------------------ cells: sequences of one step
def rnn_cell(arrays, params, train):
    x, h, c, w = _split_cell(arrays, params)
    _, h_n, c_n, kept = _run_layer(x[None], h[None].contiguous(), None if c is None else c[None].contiguous(), [w], None, params.mode,
                                   h.shape[1], train)
    return (h_n[0], c_n[0]) if params.mode == "lstm" else h_n[0], kept


def rnn_cell_backward(grad, arrays, kept, params, needs):
    x, h, c, w = _split_cell(arrays, params)
    dh, dc = grad if params.mode == "lstm" else (grad, None)
    need_x, _, _, need = _split_cell(needs, params)
    dx, dh0, dc0, (grads,) = _run_layer_backward(
        None, None if dh is None else dh[None].contiguous(), None if dc is None else dc[None].contiguous(), kept,
        None if c is None else c[None].contiguous(), [w], None, params.mode, h.shape[1], [need], need_x)
    states = (dh0[0], dc0[0]) if params.mode == "lstm" else (dh0[0],)
    return None if dx is None else dx[0], *states, *grads[:4]


def _split_cell(values, params):
    x, h, *rest = values
    c = rest.pop(0) if params.mode == "lstm" else None
    return x, h, c, Weights(*rest)
