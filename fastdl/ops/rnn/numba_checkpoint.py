"""Layers of long sequences that keep states instead of gates: ``checkpoint=k``.

The forward pass goes through k steps at a time and keeps the states between; the backward pass goes through the same
segments the other way, makes each one's gates again, and adds up the weights' gradients. So what is kept of a layer is
its input, its output and a state for every k steps, and gates are there of k steps only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .layout import Weights
from .numba_layer import run_layer
from .numba_layer_gradient import layer_gradients
from .numba_plan import plan_of
from .numba_rows import rows_of
from .numba_steps import LSTM


class Segments(NamedTuple):
    """What a layer keeps for its gradient."""

    x: Any  # (rows, features)
    y: Any  # (rows, directions * output), before dropout
    states: list  # for each direction, for each segment in time: (h, c) with which the direction enters it; c None but for lstm


def _segments(rows, k):
    """(first row, last row, Rows) of k steps at a time."""
    for t in range(0, len(rows.counts), k):
        counts = rows.counts[t:t + k]
        first, batch = int(rows.offsets[t]), int(counts[0])
        same = int(counts[-1]) == batch
        part = rows_of(len(counts), batch, None, None) if same else rows_of(len(counts), batch, None, tuple(counts.tolist()))
        yield first, first + part.total, part


def run_segments(x, h0, c0, weights, params, rows, h_n, c_n) -> Segments:
    """As run_layer; h0, c0 (directions, batch, size) or None, as they stand in the batch."""
    output, lstm = params.output, params.mode == "lstm"
    parts = list(_segments(rows, params.checkpoint))
    y, kept = np.empty((rows.total, len(weights) * output), x.dtype), []
    for d, w in enumerate(weights):
        h = np.zeros((rows.batch, output), x.dtype) if h0 is None else h0[d][rows.order]
        c = (np.zeros((rows.batch, params.hidden), x.dtype) if c0 is None else c0[d][rows.order]) if lstm else None
        states = [None] * len(parts)
        for i in range(len(parts))[::-1 if d else 1]:
            first, last, part = parts[i]
            m = part.batch
            states[i] = h[:m].copy(), c[:m].copy() if lstm else None
            plan = _plan(params, part, x)
            after = np.empty((1, m, output), x.dtype)
            c_after = np.empty((1, m, params.hidden), x.dtype) if lstm else after
            trace = run_layer(x[first:last], states[i][0][None], states[i][1][None] if lstm else None, [w], plan, part, False,
                              after, c_after, d)
            y[first:last, d * output:(d + 1) * output] = trace.y
            h[:m] = after[0]
            if lstm:
                c[:m] = c_after[0]
        h_n[d][rows.order] = h
        if lstm:
            c_n[d][rows.order] = c
        kept.append(states)
    return Segments(x, y, kept)


def _plan(params, part, x):
    return plan_of(params._replace(directions=1), part.batch, len(part.counts), x.dtype.char)


def segments_backward(dy, dh_n, dc_n, weights, need, need_x, trace, params, rows):
    """(dx or None, dh0, dc0, the Weights' gradients), the states' for each direction and in order, as dh_n and dc_n are."""
    output, dx, dh0, dc0, grads = params.output, None, [], [], []
    parts = list(_segments(rows, params.checkpoint))
    if need_x:
        dx = np.zeros(trace.x.shape, trace.x.dtype)
    for d, w in enumerate(weights):
        dh = np.zeros((rows.batch, output), dy.dtype) if dh_n is None else dh_n[d].copy()
        dc = np.zeros((rows.batch, params.hidden), dy.dtype) if dc_n is None else dc_n[d].copy()
        total = Weights(None, None)
        for i in range(len(parts))[::1 if d else -1]:
            first, last, part = parts[i]
            m, plan = part.batch, _plan(params, part, trace.x)
            h_0, c_0 = (None if s is None else s[None] for s in trace.states[d][i])
            after = np.empty((1, m, output), dy.dtype)
            c_after = np.empty((1, m, params.hidden), dy.dtype)
            again = run_layer(trace.x[first:last], h_0, c_0, [w], plan, part, True, after, c_after, d)
            part_dy = np.ascontiguousarray(dy[first:last, d * output:(d + 1) * output])
            dh_new, dc_new = np.empty((1, m, output), dy.dtype), np.empty((1, m, params.hidden), dy.dtype) if plan.code == LSTM else None
            part_dx, (share,) = layer_gradients(part_dy, dh[None, :m], dc[None, :m] if plan.code == LSTM else None, [w], [need[d]], need_x,
                                                again, plan, part, h_0, c_0, dh_new, dc_new, d)
            dh[:m] = dh_new[0]
            if plan.code == LSTM:
                dc[:m] = dc_new[0]
            total = Weights(*(g if t is None else t if g is None else np.add(t, g, out=t) for t, g in zip(total, share, strict=True)))
            if need_x:
                dx[first:last] += part_dx
        dh0.append(dh)
        dc0.append(dc)
        grads.append(total)
    return dx, dh0, dc0, grads
