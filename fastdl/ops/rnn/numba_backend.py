"""Recurrent networks on the CPU: sequences through all layers, and single steps."""

from __future__ import annotations

import functools

import numpy as np

from ...cpu import parallel, thresholds
from ...cpu.blocking import LANES
from ...cpu.workspace import workspace
from ..matmul.numba_backend import multiply
from ..matmul.numba_gemm import BY_COLUMN
from .layout import GATES, Weights, dropout_apply, dropout_kept, join, split
from .numba_at_once import AtOnce
from .numba_cell import cell
from .numba_checkpoint import run_segments, segments_backward
from .numba_layer import run_layer
from .numba_layer_gradient import cell_gradients, cell_input_gradient, cell_state_gradient, cell_weight_gradients, layer_gradients
from .numba_plan import plan_of, plan_of_cell, up_to_block
from .numba_rows import gather, in_order, put_back, rows_of, scatter
from .numba_steps import CODES

_NO_STATES = {char: np.empty((0, 0), char) for char in "fd"}

rnn_tanh_at_once, rnn_relu_at_once, gru_at_once, lstm_at_once = (AtOnce(mode) for mode in GATES)


# ------------------------------------------------------------------------------------------------ sequences
def rnn(arrays, params, train):
    if not train and _is_one_plain_step(arrays[0], params):
        return _one_step(arrays, params), None
    given, h0, c0, weights = split(arrays, params)
    steps, batch = given.shape[:2] if params.batch_sizes is None else (len(params.batch_sizes), params.batch_sizes[0])
    dtype, n, layers = given.dtype, params.directions, params.layers
    rows, plan = _setting(params, steps, batch, dtype.char, parallel.team())
    kept = _kept(params, rows, steps, batch) if params.dropout else [None] * layers
    x = gather(given, rows, params)
    if x.strides[1] != x.itemsize:
        x = np.ascontiguousarray(x)
    h_n = np.empty((layers * n, batch, params.output), dtype)
    c_n = np.empty((layers * n, batch, params.hidden), dtype) if params.mode == "lstm" else h_n
    traces = []
    for layer in range(layers):
        k = slice(layer * n, layer * n + n)
        if train and params.checkpoint:
            traces.append(run_segments(x, _some(h0, k), _some(c0, k), weights[k], params, rows, h_n[k], c_n[k]))
        else:
            traces.append(run_layer(x, _some(h0, k), _some(c0, k), weights[k], plan, rows, train, h_n[k], c_n[k]))
        x = dropout_apply(traces[-1].y, kept[layer], params.dropout)
    y = scatter(x, rows, params, steps, batch)
    return (y, h_n, c_n) if params.mode == "lstm" else (y, h_n), (traces, kept, rows, plan, (steps, batch)) if train else None


@functools.lru_cache(maxsize=256)
def _setting(params, steps, batch, char, team):
    return rows_of(steps, batch, params.lengths, params.batch_sizes), plan_of(params, batch, steps, char, team)


def _some(states, k):
    return None if states is None else states[k]


def _kept(params, rows, steps, batch):
    """What dropout keeps of each layer's rows."""
    kept = dropout_kept(params, steps, batch)
    return [k if k is None else k.reshape(rows.total, k.shape[2]) if rows.where is None else k[rows.where] for k in kept]


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
    dh0 = np.empty((count, batch, params.output), dtype) if need_h0 else None
    dc0 = np.empty((count, batch, params.hidden), dtype) if need_c0 else None
    grads = [None] * count
    for layer in reversed(range(params.layers)):
        k, wanted = slice(layer * n, layer * n + n), layer > 0 or need_x
        dy = dropout_apply(dy, kept[layer], params.dropout)
        if dy.strides[1] != dy.itemsize:
            dy = np.ascontiguousarray(dy)
        states = [_some(s, k) for s in (h0, c0, dh_n, dc_n)]
        if params.checkpoint:
            states = [in_order(s, rows) for s in states[2:]]
            dy, dh, dc, grads[k] = segments_backward(dy, *states, weights[k], need[k], wanted, traces[layer], params, rows)
            if need_h0:
                put_back(np.stack(dh), rows, dh0[k])
            if need_c0:
                put_back(np.stack(dc), rows, dc0[k])
        else:
            dy, grads[k] = layer_gradients(dy, *states[2:], weights[k], need[k], wanted, traces[layer], plan, rows, *states[:2],
                                           _some(dh0, k), _some(dc0, k))
    return join(scatter(dy, rows, params, steps, batch) if need_x else None, dh0, dc0, grads, params)


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
    no_states = _NO_STATES[char]
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
    plan, (dh_new, dc_new) = plan_of_cell(params.mode, *h.shape, x.dtype.char), grad if c is not None else (grad, None)
    is_gru, hidden = plan.is_gru, plan.hidden
    d, carried = cell_gradients(dh_new, dc_new, h if c is None else c, kept_gates, kept, plan)
    dh = None
    if need_h:
        dh = cell_state_gradient(d, w.w_hh, is_gru, hidden)
        if is_gru:
            dh += carried
    dx = cell_input_gradient(d, w.w_ih, is_gru, hidden) if need_x else None
    grads = cell_weight_gradients(need, d, x, h, is_gru, hidden)
    return (dx, dh, *grads) if c is None else (dx, dh, carried if need_c else None, *grads)


def _split_cell(values, params):
    x, h, *rest = values
    c = rest.pop(0) if params.mode == "lstm" else None
    return x, h, c, Weights(*rest)
