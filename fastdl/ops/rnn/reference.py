"""Recurrent networks in plain numpy: the specification.

A direction of a layer is: one product for the input's share of every step's gates, then the steps one by one. Its
backward pass goes through the steps the other way, keeps the gradients at the gates, and ends in one product over all
steps for each weight. What a step computes, and its gradient, is the same for sequences and cells (``_STEPS``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..activation import sigmoid
from .layout import Weights, alive, as_given, dropout_apply, dropout_kept, join, split, time_major


class Step(NamedTuple):
    """What a step keeps for its gradient."""

    h: Any  # the state before the step
    c: Any = None  # lstm: the cell state before
    gates: tuple = ()  # after their activations
    inner: Any = None  # gru: what the reset gate multiplies; lstm: the cell state after


class Gradient(NamedTuple):
    """What a step's backward pass answers."""

    from_input: Any  # at the gates, as far as they are linear in x
    from_state: Any  # at the gates, as far as they are linear in h (gru's n: after the reset gate)
    h: Any  # at the state before
    c: Any = None


# ------------------------------------------------------------------------------------------------ one step
# forward(weights, x_gates, h, c, params) -> (h', c', Step); x_gates: the input's share of the gates, b_ih included
# backward(weights, dh', dc', step, params) -> Gradient
def _affine(h, w, b):
    z = h @ w.T
    return z if b is None else z + b


def _tanh_step(w, x_gates, h, c, params):
    new = np.tanh(x_gates + _affine(h, w.w_hh, w.b_hh))
    return new, None, Step(h, gates=(new,))


def _tanh_gradient(w, dh, dc, step, params):
    new, = step.gates
    d = dh * (1 - new * new)
    return Gradient(d, d, d @ w.w_hh)


def _relu_step(w, x_gates, h, c, params):
    z = x_gates + _affine(h, w.w_hh, w.b_hh)
    new = np.maximum(z, z.dtype.type(0))
    return new, None, Step(h, gates=(new,))


def _relu_gradient(w, dh, dc, step, params):
    new, = step.gates
    d = np.where(new <= 0, dh.dtype.type(0), dh)
    return Gradient(d, d, d @ w.w_hh)


def _gru_step(w, x_gates, h, c, params):
    n_rows = w.w_hh.shape[0] // 3 * 2
    if params.linear_before_reset:
        state_gates = _affine(h, w.w_hh, w.b_hh)
        r, z = np.split(sigmoid(x_gates[:, :n_rows] + state_gates[:, :n_rows]), 2, axis=1)
        inner = state_gates[:, n_rows:]
        n = np.tanh(x_gates[:, n_rows:] + r * inner)
    else:
        state_gates = _affine(h, w.w_hh[:n_rows], None if w.b_hh is None else w.b_hh[:n_rows])
        r, z = np.split(sigmoid(x_gates[:, :n_rows] + state_gates), 2, axis=1)
        inner = h
        n = np.tanh(x_gates[:, n_rows:] + _affine(r * h, w.w_hh[n_rows:], None if w.b_hh is None else w.b_hh[n_rows:]))
    return (1 - z) * n + z * h, None, Step(h, None, (r, z, n), inner)


def _gru_gradient(w, dh, dc, step, params):
    r, z, n = step.gates
    n_rows = w.w_hh.shape[0] // 3 * 2
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (step.h - n) * z * (1 - z)
    if params.linear_before_reset:
        dr = dn * step.inner * r * (1 - r)
        from_state = np.concatenate([dr, dz, dn * r], axis=1)
        dh_before = dh * z + from_state @ w.w_hh
    else:
        reset = dn @ w.w_hh[n_rows:]  # at r * h
        dr = reset * step.h * r * (1 - r)
        from_state = np.concatenate([dr, dz, dn], axis=1)
        dh_before = dh * z + reset * r + from_state[:, :n_rows] @ w.w_hh[:n_rows]
    return Gradient(np.concatenate([dr, dz, dn], axis=1), from_state, dh_before)


def _lstm_step(w, x_gates, h, c, params):
    i, f, g, o = np.split(x_gates + _affine(h, w.w_hh, w.b_hh), 4, axis=1)
    p_i, p_f, p_o = (None,) * 3 if w.peephole is None else np.split(w.peephole, 3)
    if p_i is not None:
        i, f = i + p_i * c, f + p_f * c
    i, f, g = sigmoid(i), sigmoid(f), np.tanh(g)
    new_c = f * c + i * g
    o = sigmoid(o if p_o is None else o + p_o * new_c)
    m = o * np.tanh(new_c)
    return m if w.w_hr is None else m @ w.w_hr.T, new_c, Step(h, c, (i, f, g, o), new_c)


def _lstm_gradient(w, dh, dc, step, params):
    i, f, g, o = step.gates
    p_i, p_f, p_o = (None,) * 3 if w.peephole is None else np.split(w.peephole, 3)
    squashed = np.tanh(step.inner)
    dm = dh if w.w_hr is None else dh @ w.w_hr
    do = dm * squashed * o * (1 - o)
    dc = dc + dm * o * (1 - squashed * squashed)
    if p_o is not None:
        dc = dc + do * p_o
    di = dc * g * i * (1 - i)
    df = dc * step.c * f * (1 - f)
    dg = dc * i * (1 - g * g)
    dc_before = dc * f
    if p_i is not None:
        dc_before = dc_before + di * p_i + df * p_f
    d = np.concatenate([di, df, dg, do], axis=1)
    return Gradient(d, d, d @ w.w_hh, dc_before)


_STEPS = {"rnn_tanh": (_tanh_step, _tanh_gradient), "rnn_relu": (_relu_step, _relu_gradient),
          "gru": (_gru_step, _gru_gradient), "lstm": (_lstm_step, _lstm_gradient)}


def _weight_gradients(w, need, x, steps, from_input, from_state, dh, params) -> Weights:
    """One product over all steps for each weight.

    x: (rows, features), its rows the steps' batches one after the other. steps: their Steps; from_input, from_state: lists of
    what their Gradients hold; dh: a list of the gradients at their new h.
    """
    dw_ih = dw_hh = db_ih = db_hh = dw_hr = dp = None
    if need.w_ih or need.b_ih:
        d = np.concatenate(from_input)
        dw_ih = d.T @ x if need.w_ih else None
        db_ih = d.sum(axis=0) if need.b_ih else None
    if need.w_hh or need.b_hh or need.peephole:
        d = np.concatenate(from_state)
        db_hh = d.sum(axis=0) if need.b_hh else None
        if need.w_hh and params.mode == "gru" and not params.linear_before_reset:
            n_rows = w.w_hh.shape[0] // 3 * 2
            reset = np.concatenate([s.gates[0] * s.h for s in steps])
            dw_hh = np.concatenate([d[:, :n_rows].T @ np.concatenate([s.h for s in steps]), d[:, n_rows:].T @ reset])
        elif need.w_hh:
            dw_hh = d.T @ np.concatenate([s.h for s in steps])
        if need.peephole:
            before, after = np.concatenate([s.c for s in steps]), np.concatenate([s.inner for s in steps])
            di, df, _, do = np.split(d, 4, axis=1)
            dp = np.concatenate([(di * before).sum(axis=0), (df * before).sum(axis=0), (do * after).sum(axis=0)])
    if need.w_hr:
        dw_hr = np.concatenate(dh).T @ np.concatenate([s.gates[3] * np.tanh(s.inner) for s in steps])
    return Weights(dw_ih, dw_hh, db_ih, db_hh, dw_hr, dp)


# ------------------------------------------------------------------------------------------------ one direction of one layer
def _rows(x):
    """(steps, batch, features) as (steps * batch, features); -1 would not do for features of 0."""
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2])


def _direction(x, h, c, w, backwards, live, params):
    """(y (steps, batch, output), h_n, c_n, the Steps)."""
    forward = _STEPS[params.mode][0]
    x_gates = _affine(_rows(x), w.w_ih, w.b_ih).reshape(*x.shape[:2], len(w.w_ih))
    y = np.empty((*x.shape[:2], h.shape[1]), x.dtype)
    steps = [None] * len(x)
    for t in reversed(range(len(x))) if backwards else range(len(x)):
        new_h, new_c, steps[t] = forward(w, x_gates[t], h, c, params)
        if live is None:
            h, c, y[t] = new_h, new_c, new_h
        else:  # a row waits, unchanged, before its first step (backwards) and after its last
            here = live[t, :, None]
            h, y[t] = np.where(here, new_h, h), np.where(here, new_h, 0)
            c = None if c is None else np.where(here, new_c, c)
    return y, h, c, steps


def _direction_gradient(dy, dh, dc, x, steps, w, need, need_x, backwards, live, params):
    """(dx or None, dh0, dc0, the gradients of the Weights) from the gradients of y, h_n and c_n."""
    backward = _STEPS[params.mode][1]
    from_input, from_state, into = ([None] * len(x) for _ in range(3))
    for t in range(len(x)) if backwards else reversed(range(len(x))):
        into[t], dc_new = dh + dy[t], dc
        if live is not None:
            here = live[t, :, None]
            into[t] = np.where(here, into[t], 0)
            dc_new = None if dc is None else np.where(here, dc, 0)
        d = backward(w, into[t], dc_new, steps[t], params)
        from_input[t], from_state[t] = d.from_input, d.from_state
        dh = d.h if live is None else np.where(here, d.h, dh)
        dc = d.c if live is None or dc is None else np.where(here, d.c, dc)
    grads = _weight_gradients(w, need, _rows(x), steps, from_input, from_state, into, params)
    dx = (np.concatenate(from_input) @ w.w_ih).reshape(x.shape) if need_x else None
    return dx, dh, dc, grads


# ------------------------------------------------------------------------------------------------ sequences
def rnn(arrays, params, train):
    given, h0, c0, weights = split(arrays, params)
    live = alive(params, len(given))
    x = time_major(given, params, live)
    count, batch = len(weights), x.shape[1]
    if h0 is None:
        h0 = np.zeros((count, batch, params.output), x.dtype)
    if c0 is None:
        c0 = np.zeros((count, batch, params.hidden), x.dtype) if params.mode == "lstm" else [None] * count
    kept = dropout_kept(params, *x.shape[:2])
    h_n, c_n, inputs, traces = [], [], [], []
    for layer in range(params.layers):
        if train:
            inputs.append(x)
        outputs = []
        for k in range(layer * params.directions, (layer + 1) * params.directions):
            y, h, c, steps = _direction(x, h0[k], c0[k], weights[k], k % params.directions == 1, live, params)
            outputs.append(y)
            h_n.append(h)
            c_n.append(c)
            if train:
                traces.append(steps)
        x = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=2)
        x = dropout_apply(x, kept[layer], params.dropout)
    results = (as_given(x, params, live), np.stack(h_n))
    if params.mode == "lstm":
        results += (np.stack(c_n),)
    return results, (inputs, traces, kept, live) if train else None


def rnn_backward(grad, arrays, saved, params, needs):
    inputs, traces, kept, live = saved
    _, _, _, weights = split(arrays, params)
    need_x, need_h0, need_c0, need = split(needs, params)
    dy, dh_n, dc_n = (*grad, None)[:3]
    shape, dtype = inputs[0].shape[:2], inputs[0].dtype
    count, lstm = len(weights), params.mode == "lstm"
    if dy is None:
        dy = np.zeros((*shape, params.directions * params.output), dtype)
    else:
        dy = time_major(dy.swapaxes(0, 1) if params.batch_first else dy, params, live)
    if dh_n is None:
        dh_n = np.zeros((count, shape[1], params.output), dtype)
    if dc_n is None:
        dc_n = np.zeros((count, shape[1], params.hidden), dtype) if lstm else [None] * count
    dh0, dc0, grads = [None] * count, [None] * count, [None] * count
    for layer in reversed(range(params.layers)):
        dy = dropout_apply(dy, kept[layer], params.dropout)
        dx = None
        for k in range(layer * params.directions, (layer + 1) * params.directions):
            direction = k % params.directions
            part = dy[:, :, direction * params.output:(direction + 1) * params.output]
            share, dh0[k], dc0[k], grads[k] = _direction_gradient(part, dh_n[k], dc_n[k], inputs[layer], traces[k], weights[k], need[k],
                                                                  layer > 0 or need_x, direction == 1, live, params)
            dx = share if dx is None else dx + share
        dy = dx
    if need_x:
        dy = as_given(dy if live is None else np.where(live[:, :, None], dy, 0), params, live)
    return join(dy, np.stack(dh0) if need_h0 else None, np.stack(dc0) if need_c0 else None, grads, params)


# ------------------------------------------------------------------------------------------------ cells
def rnn_cell(arrays, params, train):
    x, h, c, w = _split_cell(arrays, params)
    h, c, step = _STEPS[params.mode][0](w, _affine(x, w.w_ih, w.b_ih), h, c, params)
    return (h, c) if params.mode == "lstm" else h, step if train else None


def rnn_cell_backward(grad, arrays, saved, params, needs):
    x, h, c, w = _split_cell(arrays, params)
    dh, dc = grad if params.mode == "lstm" else (grad, None)
    dh = np.zeros_like(h) if dh is None else dh
    dc = np.zeros_like(c) if dc is None and c is not None else dc
    need_x, _, _, need = _split_cell(needs, params)
    d = _STEPS[params.mode][1](w, dh, dc, saved, params)
    grads = _weight_gradients(w, need, x, [saved], [d.from_input], [d.from_state], [dh], params)
    states = (d.h, d.c) if params.mode == "lstm" else (d.h,)
    return d.from_input @ w.w_ih if need_x else None, *states, *grads[:4]


def _split_cell(values, params):
    x, h, *rest = values
    c = rest.pop(0) if params.mode == "lstm" else None
    return x, h, c, Weights(*rest)
