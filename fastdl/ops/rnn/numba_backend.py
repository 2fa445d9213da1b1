"""Recurrent networks on the CPU: what is packed, what is kept for the gradient, and the products over all steps."""

from __future__ import annotations

from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ...cpu import parallel, thresholds
from ...cpu.blocking import LANES
from ...cpu.workspace import aligned, workspace
from ...packing import is_packed, prepared
from ..matmul.numba_backend import multiply
from ..matmul.numba_gemm import BY_COLUMN
from .layout import GATES, Weights, dropout_apply, dropout_kept, join, split
from .numba_cell import cell
from .numba_gradient import backward
from .numba_plan import places_of, plan_of, up_to_block
from .numba_product import PANEL, pack
from .numba_rows import gather, in_order, put_back, rows_of, scatter, states_before
from .numba_sequence import W_H, W_R, W_X, forward, start
from .numba_steps import CODES, GRU, LSTM, RESET_FIRST

_NOTHING = {(char, rank): np.empty((0,) * rank, char) for char in "fd" for rank in (1, 2)}
_NO_WORDS = np.empty((1, 0), np.int64)


class Trace(NamedTuple):
    """What a layer keeps for its gradient."""

    x: Any  # (rows, features)
    y: Any  # (rows, directions * output), before dropout
    kept_gates: Any  # as numba_sequence.py has them
    kept: Any


# ------------------------------------------------------------------------------------------------ sequences
def rnn(arrays, params, train):
    if not train and _is_one_plain_step(arrays[0], params):
        return _one_step(arrays, params), None
    given, h0, c0, weights = split(arrays, params)
    steps, batch = given.shape[:2] if params.batch_sizes is None else (len(params.batch_sizes), params.batch_sizes[0])
    rows, plan = rows_of(steps, batch, params.lengths, params.batch_sizes), plan_of(params, batch, steps, given.dtype.char)
    kept = _kept(params, rows, steps, batch)
    n, x = params.directions, gather(given, rows, params)
    if x.strides[1] != x.itemsize:
        x = np.ascontiguousarray(x)
    h_n = np.empty((params.layers * n, batch, params.output), x.dtype)
    c_n = np.empty((params.layers * n, batch, params.hidden), x.dtype) if params.mode == "lstm" else h_n
    traces = []
    for layer in range(params.layers):
        k = slice(layer * n, layer * n + n)
        traces.append(_layer(x, _some(h0, k), _some(c0, k), weights[k], plan, rows, train, h_n[k], c_n[k]))
        x = dropout_apply(traces[-1].y, kept[layer], params.dropout)
    y = scatter(x, rows, params, steps, batch)
    return (y, h_n, c_n) if params.mode == "lstm" else (y, h_n), (traces, kept, rows, plan, (steps, batch)) if train else None


def _some(states, k):
    return None if states is None else states[k]


def _kept(params, rows, steps, batch):
    """What dropout keeps of each layer's rows."""
    kept = dropout_kept(params, steps, batch)
    return [k if k is None else k.reshape(rows.total, k.shape[2]) if rows.where is None else k[rows.where] for k in kept]


def _layer(x, h0, c0, weights, plan, rows, train, h_n, c_n) -> Trace:
    n, char, hidden, peepholes = len(weights), x.dtype.char, plan.hidden, weights[0].peephole is not None
    ready = all(is_packed(w.w_ih) and is_packed(w.w_hh) and (w.w_hr is None or is_packed(w.w_hr)) for w in weights)
    places, size = places_of(plan, n, x.shape[1], rows.batch, train, peepholes, ready)
    memory, at = workspace(size, x.dtype), places.tolist()
    none, no_states = _NOTHING[char, 1], _NOTHING[char, 2]
    panels = []
    for k, w in enumerate(weights):
        panels += _panels_of(w, plan, None if ready else [memory[at[2 * part + k]:] for part in (W_X, W_H, W_R)])
        start[char](k, plan.code, plan.gates, hidden, plan.output, none if w.b_ih is None else w.b_ih, none if w.b_hh is None else w.b_hh,
                    w.peephole if peepholes else none, no_states if h0 is None else h0[k], no_states if c0 is None else c0[k],
                    rows.order, places, memory)
    y = np.empty((rows.total, n * plan.output), x.dtype)
    kept_gates = np.empty((n, rows.total * plan.gates * plan.padded if train else 0), x.dtype)
    kept = np.empty((n, rows.total * plan.padded if train and plan.code in (GRU, LSTM) else 0), x.dtype)
    forward[char](plan.pool, plan.slots, plan.code, int(train), plan.split_units, plan.chunk, plan.together, n, plan.gates, hidden,
                  plan.output, plan.projection, int(peepholes), rows.counts, rows.offsets, rows.order, places, plan.words(n), x, memory,
                  *panels[:3], *panels[-3:], y, h_n, c_n, kept_gates, kept)
    return Trace(x, y, kept_gates, kept)


def _panels_of(w, plan, out):
    """Panels of w_ih, of w_hh (where the reset gate is first, of r and z) and of what is multiplied within a step.

    out: an array for each, or None: they are kept with the weights, which are packed arrays.
    """
    hidden, none = plan.hidden, _NOTHING[w.w_ih.dtype.char, 1]
    state, inner = w.w_hh, w.w_hr
    if plan.code == RESET_FIRST:
        state, inner = w.w_hh[:2 * hidden], w.w_hh[2 * hidden:]
    parts = ((w.w_ih, plan.gates), (state, len(state) // hidden), (inner, 1))
    if out is None:
        return [none if part is None else prepared(part, ("recurrent", gates), lambda p=part, g=gates: _new_panels(plan, p, g))
                for part, gates in parts]
    for (part, gates), place in zip(parts, out, strict=True):
        if part is not None:
            _pack(plan, part, gates, place)
    return out


def _new_panels(plan, w, gates):
    rows, k = w.shape
    lanes = LANES[w.dtype.char]
    out = aligned(gates * up_to_block(rows // gates, lanes) * k, w.dtype)
    _pack(plan, w, gates, out)
    return out


def _pack(plan, w, gates, out):
    pack[w.dtype.char](plan.pool if w.size > thresholds.RECURRENT_MOVED else 0, w, gates, out)


# ------------------------------------------------------------------------------------------------ gradients of sequences
def rnn_backward(grad, arrays, saved, params, needs):
    traces, kept, rows, plan, (steps, batch) = saved
    _, h0, c0, weights = split(arrays, params)
    need_x, need_h0, need_c0, need = split(needs, params)
    dy, dh_n, dc_n = (*grad, None)[:3]
    n, count, dtype = params.directions, len(weights), traces[0].y.dtype
    if dy is None:
        dy = np.zeros((rows.total, n * params.output), dtype)
    else:
        dy = gather(dy.swapaxes(0, 1) if params.batch_first else dy, rows, params)
    h0, c0, dh_n, dc_n = (in_order(states, rows) for states in (h0, c0, dh_n, dc_n))
    dh0 = np.empty((count, batch, params.output), dtype) if need_h0 else None
    dc0 = np.empty((count, batch, params.hidden), dtype) if need_c0 else None
    grads = [None] * count
    for layer in reversed(range(params.layers)):
        k = slice(layer * n, layer * n + n)
        dy = dropout_apply(dy, kept[layer], params.dropout)
        if dy.strides[1] != dy.itemsize:
            dy = np.ascontiguousarray(dy)
        before = c0 if plan.code == LSTM else h0 if plan.is_gru else None
        d, into, dh, dc = _through_steps(dy, _some(dh_n, k), _some(dc_n, k), weights[k], _some(before, k), traces[layer], plan, rows)
        if need_h0:
            put_back(dh, rows, dh0[k])
        if need_c0:
            put_back(dc, rows, dc0[k])
        grads[k] = [_weight_gradients(need[k][j], d[j], into[j], traces[layer], plan, rows, j, *(_some(s, k.start + j) for s in (h0, c0)))
                    for j in range(n)]
        if layer > 0 or need_x:
            dy = multiply(_by_input(d[0], plan.is_gru, plan.hidden), weights[k][0].w_ih)
            if n == 2:
                dy += multiply(_by_input(d[1], plan.is_gru, plan.hidden), weights[k][1].w_ih)
    return join(scatter(dy, rows, params, steps, batch) if need_x else None, dh0, dc0, grads, params)


def _through_steps(dy, dh_n, dc_n, weights, before, trace, plan, rows):
    """(gradients at the gates, at projected states, dh0, dc0), each for each direction; the states in order."""
    n, batch, hidden, char = len(weights), rows.batch, plan.hidden, dy.dtype.char
    peepholes, inner, reset_first = weights[0].peephole is not None, plan.inner_product, plan.code == RESET_FIRST
    w_h, w_r, peephole, first, scratch = _take(
        dy.dtype, (n, plan.state * plan.gates * hidden), (n, plan.padded * (plan.projection or hidden) * inner),
        (n, 3 * peepholes, plan.padded), (n, batch, plan.padded), (n, batch * inner, plan.padded))
    for k, w in enumerate(weights):
        if reset_first:
            _pack(plan, w.w_hh[:2 * hidden].T, 1, w_h[k])
            _pack(plan, w.w_hh[2 * hidden:].T, 1, w_r[k])
        else:
            _pack(plan, _by_state(w.w_hh, plan.is_gru, hidden).T, 1, w_h[k])
        if plan.projection:
            _pack(plan, w.w_hr.T, 1, w_r[k])
        if peepholes:
            _fill(peephole[k], w.peephole.reshape(3, hidden))
    _fill(first, before)
    dh, carried = np.empty((n, batch, plan.state), dy.dtype), np.empty((n, batch, plan.padded), dy.dtype)
    _fill(dh, dh_n)
    _fill(carried, dc_n)
    d = np.empty((n, rows.total, (plan.gates + plan.is_gru) * hidden), dy.dtype)
    into = np.empty((n, rows.total if plan.projection else 0, plan.output), dy.dtype)
    flat = [a.reshape(n, -1) for a in (peephole, trace.kept_gates, trace.kept, first)]
    backward[char](plan.pool, plan.slots, plan.code, plan.split_units, plan.chunk, 1, plan.gates, hidden, plan.output, plan.projection,
                   int(peepholes), rows.counts, rows.offsets, plan.words(n), w_h, w_r, *flat, trace.y, dy, dh.reshape(n, -1),
                   carried.reshape(n, -1), d.reshape(n, -1), into.reshape(n, -1), scratch.reshape(n, -1))
    dh, carried = dh[..., :plan.output], carried[..., :hidden]
    return d, into, dh + carried if plan.is_gru else dh, carried


def _take(dtype, *shapes):
    """Arrays of these shapes in one block of scratch memory, for one kernel call."""
    sizes = [prod(s) for s in shapes]
    memory = workspace(sum(sizes), dtype)
    return [memory[end - n:end].reshape(s) for end, n, s in zip(accumulate(sizes), sizes, shapes, strict=True)]


def _fill(states, values):
    """Rows of states as long as their blocks: values (None: zeros), then zeros."""
    size = 0 if values is None else values.shape[-1]
    states[..., size:] = 0
    if size:
        states[..., :size] = values


def _by_state(w, is_gru, hidden):
    """The rows of a weight of the state in the order of the gradients at its gates; see numba_gradient.py."""
    return np.concatenate([w[2 * hidden:], w[:2 * hidden]]) if is_gru else w


def _by_input(d, is_gru, hidden):
    """The gradients at the input's share of the gates."""
    return d[:, hidden:] if is_gru else d


def _weight_gradients(need, d, into, trace, plan, rows, k, h0, c0) -> Weights:
    hidden, output = plan.hidden, plan.output

    def states():
        h = states_before(trace.y[:, k * output:(k + 1) * output], h0, rows, k)
        return h, _gate(trace, k, 0, plan, rows) * h if plan.code == RESET_FIRST else h

    grads = _products(need, d, trace.x, states, plan.is_gru, hidden)
    dw_hr = dp = None
    if need.peephole or need.w_hr:
        c = trace.kept[k].reshape(rows.total, plan.padded)[:, :hidden]
    if need.peephole:
        before = states_before(c, c0, rows, k)
        di, df, _, do = np.split(d, 4, axis=1)
        dp = np.concatenate([(di * before).sum(axis=0), (df * before).sum(axis=0), (do * c).sum(axis=0)])
    if need.w_hr:
        dw_hr = multiply(into.T, _gate(trace, k, 3, plan, rows) * np.tanh(c))
    return Weights(*grads, dw_hr, dp)


def _gate(trace, k, gate, plan, rows):
    """(rows, hidden) of one gate that was kept."""
    width = PANEL * LANES[trace.y.dtype.char]
    blocks = trace.kept_gates[k].reshape(rows.total, plan.padded // width, plan.gates, width)
    return blocks[:, :, gate].reshape(rows.total, plan.padded)[:, :plan.hidden]


def _products(need, d, x, states, is_gru, hidden):
    """The gradients of w_ih, w_hh, b_ih, b_hh from those at the gates.

    states(): the hidden state before each row, and what of it n's weight sees.
    """
    dw_ih = dw_hh = db_ih = db_hh = None
    if need.w_ih:
        dw_ih = _over_rows(_by_input(d, is_gru, hidden), x)
    if need.w_hh:
        h, h_of_n = states()
        if is_gru:
            dw_hh = np.empty((3 * hidden, h.shape[1]), d.dtype)
            multiply(d[:, hidden:3 * hidden].T, h, dw_hh[:2 * hidden])
            multiply(d[:, :hidden].T, h_of_n, dw_hh[2 * hidden:])
        else:
            dw_hh = multiply(d.T, h)
    if need.b_ih or need.b_hh:
        db_ih = db_hh = d.sum(axis=0)
        if is_gru:
            db_ih, db_hh = db_ih[hidden:], np.concatenate([db_ih[hidden:3 * hidden], db_ih[:hidden]])
        elif need.b_ih and need.b_hh:
            db_hh = db_ih.copy()
    return dw_ih, dw_hh, db_ih if need.b_ih else None, db_hh if need.b_hh else None


def _over_rows(d, x):
    """d.T @ x. Where x has few columns these make better rows of tiles than they make columns."""
    return multiply(d.T, x) if x.shape[1] > 16 else np.ascontiguousarray(multiply(x.T, d).T)


# ------------------------------------------------------------------------------------------------ single steps
def _is_one_plain_step(x, params):
    unlike_cell = params.projection or params.peepholes or params.dropout or (params.mode == "gru" and not params.linear_before_reset)
    return params.batch_sizes is None and x.shape[0] == 1 and not unlike_cell


def _one_step(arrays, params):
    """Sequences of one step, which do not pay for packing weights."""
    x, h0, c0, weights = split(arrays, params)
    n, x = params.directions, x[0]
    h_n = np.empty((len(weights), len(x), params.hidden), x.dtype)
    c_n = np.empty(h_n.shape, x.dtype) if params.mode == "lstm" else h_n
    for layer in range(params.layers):
        for k in range(layer * n, layer * n + n):
            _step(x, _some(h0, k), _some(c0, k), weights[k], params.mode, False, h_n[k], c_n[k])
        x = np.concatenate(h_n[layer * n:layer * n + n], axis=1)
    y = x[:, None] if params.batch_first else x[None]
    return (y, h_n, c_n) if params.mode == "lstm" else (y, h_n)


def _affine(x, w, b, out):
    """out = x @ w.T + b"""
    if b is None:
        multiply(x, w.T, out)
    else:
        multiply(x, w.T, out, np.ascontiguousarray(b), BY_COLUMN)


def _step(x, h, c, w, mode, train, h_new, c_new):
    """Write h_new, and lstm's c_new; answer what to keep for the gradient. h, c None: zeros."""
    (batch, hidden), char, gates = h_new.shape, x.dtype.char, GATES[mode]
    size, padded = batch * gates * hidden, up_to_block(hidden, LANES[char])
    x_gates, h_gates = np.empty(size + padded, x.dtype), np.empty(size + padded, x.dtype)
    _affine(x, w.w_ih, w.b_ih, x_gates[:size].reshape(batch, gates * hidden))
    if h is None:
        h_gates[:size].reshape(batch, gates * hidden)[...] = 0 if w.b_hh is None else w.b_hh
    else:
        _affine(h, w.w_hh, w.b_hh, h_gates[:size].reshape(batch, gates * hidden))
    if mode != "gru":
        h_gates[:size] += x_gates[:size]
    kept_gates = np.empty(batch * gates * padded if train else 0, x.dtype)
    kept = np.empty(batch * padded if train and mode in ("gru", "lstm") else 0, x.dtype)
    no_states = _NOTHING[char, 2]
    pool, slots = parallel.team() if batch * gates * padded > thresholds.GATES else (0, 1)
    cell[char](pool, CODES[mode], int(train), gates, max(1, -(-batch // (4 * slots))), x_gates, h_gates, no_states if h is None else h,
               no_states if c is None else c, workspace(3 * batch * padded, x.dtype), h_new, c_new, kept_gates, kept)
    return kept_gates, kept


def rnn_cell(arrays, params, train):
    x, h, c, w = _split_cell(arrays, params)
    h_new = np.empty(h.shape, x.dtype)
    c_new = h_new if c is None else np.empty(c.shape, x.dtype)
    kept = _step(x, h, c, w, params.mode, train, h_new, c_new)
    return h_new if c is None else (h_new, c_new), kept if train else None


def rnn_cell_backward(grad, arrays, saved, params, needs):
    x, h, c, w = _split_cell(arrays, params)
    need_x, need_h, need_c, need = _split_cell(needs, params)
    kept_gates, kept = saved
    code, (batch, hidden), char, gates = CODES[params.mode], h.shape, x.dtype.char, GATES[params.mode]
    is_gru, padded = code == GRU, up_to_block(hidden, LANES[char])
    dh_new, dc_new = grad if code == LSTM else (grad, None)
    before, dh, carried = (np.empty((1, batch, padded), x.dtype) for _ in range(3))
    _fill(before, c if code == LSTM else h)
    _fill(dh, dh_new)
    _fill(carried, dc_new)
    d = np.empty((batch, (gates + is_gru) * hidden), x.dtype)
    rows, nothing, dy = rows_of(1, batch, None, None), np.empty((1, 0), x.dtype), np.zeros((batch, hidden), x.dtype)
    backward[char](0, 1, code, 0, max(1, batch), 0, gates, hidden, hidden, 0, 0, rows.counts, rows.offsets, _NO_WORDS, nothing,
                   nothing, nothing, kept_gates[None], kept[None], before.reshape(1, -1), nothing, dy, dh.reshape(1, -1),
                   carried.reshape(1, -1), d.reshape(1, -1), nothing, nothing)
    carried, dh = carried[0, :, :hidden], None
    if need_h:
        dh = multiply(d[:, :gates * hidden], _by_state(w.w_hh, is_gru, hidden))
        if is_gru:
            dh += carried
    dx = multiply(_by_input(d, is_gru, hidden), w.w_ih) if need_x else None
    grads = _products(need, d, x, lambda: (h, h), is_gru, hidden)
    return (dx, dh, carried if need_c else None, *grads) if code == LSTM else (dx, dh, *grads)


def _split_cell(values, params):
    x, h, *rest = values
    c = rest.pop(0) if params.mode == "lstm" else None
    return x, h, c, Weights(*rest)
