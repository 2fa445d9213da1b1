"""One layer of a recurrent network on the CPU: all its steps, and its gradients."""

from __future__ import annotations

from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ...cpu.blocking import LANES
from ...cpu.workspace import recycled, workspace
from ..matmul.numba_backend import multiply
from .layout import Weights
from .numba_gradient import backward
from .numba_plan import places_of
from .numba_product import PANEL
from .numba_rows import states_before
from .numba_sequence import forward
from .numba_steps import GRU, LSTM, RESET_FIRST
from .numba_weights import are_packed, pack_panels, ready

NARROW = 24  # columns
NO_STATES = {char: np.empty((0, 0, 0), char) for char in "fd"}


class Trace(NamedTuple):
    """What a layer keeps for its gradient."""

    x: Any  # (rows, features)
    y: Any  # (rows, directions * output), before dropout
    kept_gates: Any  # as numba_sequence.py has them
    kept: Any


def run_layer(x, h0, c0, weights, plan, rows, train, h_n, c_n, backwards=0) -> Trace:
    """x (rows, features) through one or two directions, ``weights``; their last states to h_n and, for lstm, c_n.

    h0, c0: (directions, batch, size) or None. backwards: 1 where there is one direction, and it is the backward one.
    """
    n, char, kept_packed = len(weights), x.dtype.char, are_packed(weights)
    peepholes = weights[0].peephole is not None
    places, size = places_of(plan, n, x.shape[1], rows.batch, train, peepholes, kept_packed)
    memory, at = workspace(size, x.dtype), places.tolist()
    made = [ready(w, plan) if kept_packed else ready(w, plan, memory, at, k) for k, w in enumerate(weights)]
    y = _room(x.dtype, rows.total, n * plan.output)
    kept_gates = _room(x.dtype, n, rows.total * plan.gates * plan.padded if train else 0)
    kept = _room(x.dtype, n, rows.total * plan.padded if train and plan.code in (GRU, LSTM) else 0)
    none = NO_STATES[char]
    streams = int(plan.streams and kept_packed)
    forward[char](plan.pool, plan.slots, plan.code, int(train), plan.split_units, plan.chunk, plan.together, plan.beside, streams,
                  backwards, n, plan.gates, plan.hidden, plan.output, plan.projection, int(peepholes), rows.counts, rows.offsets,
                  rows.order, places, plan.words(n), x, memory, *made[0], *made[-1], none if h0 is None else h0,
                  none if c0 is None else c0, y, h_n, c_n, kept_gates, kept)
    return Trace(x, y, kept_gates, kept)


def _room(dtype, *shape):
    return recycled(prod(shape), dtype).reshape(shape)


# ------------------------------------------------------------------------------------------------ gradients
def through_steps(dy, dh_n, dc_n, weights, before, trace, plan, rows, to_first, backwards=0):
    """(gradients at the gates, at projected states, dh0, dc0), each for each direction; the states in order.

    to_first: whether dh0 is wanted; else what stands for it means nothing.
    """
    n, batch, hidden, char = len(weights), rows.batch, plan.hidden, dy.dtype.char
    peepholes, inner, reset_first = weights[0].peephole is not None, plan.inner_product, plan.code == RESET_FIRST
    w_h, w_r, peephole, first, scratch = _take(
        dy.dtype, (n, plan.state * plan.gates * hidden), (n, plan.padded * (plan.projection or hidden) * inner),
        (n, 3 * peepholes, plan.padded), (n, batch, plan.padded), (n, batch * inner, plan.padded))
    for k, w in enumerate(weights):
        if reset_first:
            pack_panels(plan, w.w_hh[:2 * hidden].T, 1, w_h[k])
            pack_panels(plan, w.w_hh[2 * hidden:].T, 1, w_r[k])
        else:
            pack_panels(plan, by_state(w.w_hh, plan.is_gru, hidden).T, 1, w_h[k])
        if plan.projection:
            pack_panels(plan, w.w_hr.T, 1, w_r[k])
        if peepholes:
            fill(peephole[k], w.peephole.reshape(3, hidden))
    fill(first, before)
    dh, carried = np.empty((n, batch, plan.state), dy.dtype), np.empty((n, batch, plan.padded), dy.dtype)
    fill(dh, dh_n)
    fill(carried, dc_n)
    d = _room(dy.dtype, n, rows.total, (plan.gates + plan.is_gru) * hidden)
    into = _room(dy.dtype, n, rows.total if plan.projection else 0, plan.output)
    flat = [a.reshape(n, -1) for a in (peephole, trace.kept_gates, trace.kept, first)]
    backward[char](plan.pool, plan.slots, plan.code, plan.split_units, plan.chunk, int(to_first), backwards, plan.gates, hidden,
                   plan.output, plan.projection, int(peepholes), rows.counts, rows.offsets, plan.words(n), w_h, w_r, *flat, trace.y, dy,
                   dh.reshape(n, -1), carried.reshape(n, -1), d.reshape(n, -1), into.reshape(n, -1), scratch.reshape(n, -1))
    dh, carried = dh[..., :plan.output], carried[..., :hidden]
    return d, into, dh + carried if plan.is_gru else dh, carried


def _take(dtype, *shapes):
    """Arrays of these shapes in one block of scratch memory, for one kernel call."""
    sizes = [prod(s) for s in shapes]
    memory = workspace(sum(sizes), dtype)
    return [memory[end - n:end].reshape(s) for end, n, s in zip(accumulate(sizes), sizes, shapes, strict=True)]


def fill(states, values):
    """Rows of states as long as their blocks: values (None: zeros), then zeros."""
    size = 0 if values is None else values.shape[-1]
    states[..., size:] = 0
    if size:
        states[..., :size] = values


def by_state(w, is_gru, hidden):
    """The rows of a weight of the state in the order of the gradients at its gates; see numba_gradient.py."""
    return np.concatenate([w[2 * hidden:], w[:2 * hidden]]) if is_gru else w


def by_input(d, is_gru, hidden):
    """The gradients at the input's share of the gates."""
    return d[:, hidden:] if is_gru else d


def weight_gradients(need, d, into, trace, plan, rows, k, h0, c0, backwards=0) -> Weights:
    hidden, output = plan.hidden, plan.output

    y = trace.y[:, k * output:(k + 1) * output]

    def states():
        if h0 is None and rows.where is None and plan.code != RESET_FIRST and len(rows.counts) > 1:  # a first state of zeros adds nothing
            first, rest = slice(0, -rows.batch), slice(rows.batch, None)
            return (y[rest], y[rest], first) if k or backwards else (y[first], y[first], rest)
        h = states_before(y, h0, rows, k or backwards)
        return h, _gate(trace, k, 0, plan, rows) * h if plan.code == RESET_FIRST else h, slice(None)

    grads = products(need, d, trace.x, states, plan.is_gru, hidden)
    dw_hr = dp = None
    if need.peephole or need.w_hr:
        c = trace.kept[k].reshape(rows.total, plan.padded)[:, :hidden]
    if need.peephole:
        before = states_before(c, c0, rows, k or backwards)
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


def input_gradient(d, w, is_gru, hidden):
    """The gradient at a layer's input from those at the gates and w_ih. A narrow w_ih is rows of a product of dot products: as columns
    it would leave most of a tile empty (928 x 512 by 12 columns: 238 us so, 67 the other way)."""
    d = by_input(d, is_gru, hidden)
    if w.shape[1] <= NARROW and len(d) > 2 * NARROW:
        return np.ascontiguousarray(multiply(np.ascontiguousarray(w.T), d.T).T)
    return multiply(d, w)


def products(need, d, x, states, is_gru, hidden):
    """The gradients of w_ih, w_hh, b_ih, b_hh from those at the gates.

    states(): the hidden state before each row, what of it n's weight sees, and which rows these are.
    """
    dw_ih = dw_hh = db_ih = db_hh = None
    if need.w_ih:
        dw_ih = _over_rows(by_input(d, is_gru, hidden), x)
    if need.w_hh:
        h, h_of_n, there = states()
        if is_gru:
            dw_hh = np.empty((3 * hidden, h.shape[1]), d.dtype)
            multiply(d[there, hidden:3 * hidden].T, h, dw_hh[:2 * hidden])
            multiply(d[there, :hidden].T, h_of_n, dw_hh[2 * hidden:])
        else:
            dw_hh = multiply(d[there].T, h)
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
