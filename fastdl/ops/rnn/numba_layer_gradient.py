"""The gradients of one layer of a recurrent network on the CPU."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...cpu.blocking import LANES
from ...cpu.workspace import NOTHING, recycled, workspace
from ..matmul.numba_backend import multiply
from .layout import Weights
from .numba_gradient import (
    BEFORE,
    CARRIED,
    DH,
    END,
    GATES_NOW,
    INNER,
    PEEPHOLES,
    TO_INPUT,
    TO_STATE,
    WITHIN,
    backward,
)
from .numba_layer import NO_STATES
from .numba_over_rows import deep_of, over_rows, scratch_size
from .numba_product import PANEL
from .numba_rows import rows_of, states_before
from .numba_steps import LSTM, RESET_FIRST
from .numba_weights import NO_WEIGHT

NARROW = 24  # columns


@lru_cache(maxsize=256)
def places_of(plan, directions, features, batch, together, peepholes, char) -> tuple[np.ndarray, int]:
    """Where each part for each direction starts in a layer's scratch memory, [2 * part + direction], and how much that is."""
    rows, whole = plan.gates * plan.hidden, features - features % (PANEL * LANES[char])
    sizes = {
        TO_STATE: plan.state * rows,
        TO_INPUT: whole * rows,
        INNER: plan.padded * (plan.projection or plan.hidden) * plan.inner_product,
        PEEPHOLES: 3 * plan.padded * peepholes,
        BEFORE: batch * plan.padded,
        WITHIN: batch * plan.padded * plan.inner_product,
        GATES_NOW: 2 * together * batch * (plan.gates + plan.is_gru) * plan.hidden,
        DH: batch * plan.state,
        CARRIED: batch * plan.padded,
    }
    places, start = np.zeros(2 * END, np.int64), 0
    for part, size in sizes.items():
        size = -(-size // 16) * 16  # whole cache lines
        places[2 * part], places[2 * part + 1] = start, start + (directions - 1) * size
        start += directions * size
    return places, start


def layer_gradients(dy, dh_n, dc_n, weights, need, need_x, trace, plan, rows, h0, c0, dh0, dc0, backwards=0):
    """(dx or None, the Weights' gradients of each direction). To dh0 and dc0, unless None: the first states' gradients.

    dy: (rows, directions * output). The states and their gradients: (directions, batch, size) as they stand in the batch, or None.
    need: of each direction Weights of whether there is a gradient wanted. backwards: 1 where there is one direction, the backward one.
    """
    n, dtype, hidden, total, x = len(weights), dy.dtype, plan.hidden, rows.total, trace.x
    w, v, peepholes, char = weights[0], weights[-1], weights[0].peephole is not None, dtype.char
    features, together = x.shape[1] if need_x else 0, 1
    if rows.where is None and (plan.split_units or plan.chunk >= rows.batch):  # then the rows of steps follow one another
        together = max(1, plan.together)
    places, size = places_of(plan, n, features, rows.batch, together, peepholes, char)
    none, no_states, no_weight = NOTHING[char], NO_STATES[char], NO_WEIGHT[char]
    before = c0 if plan.code == LSTM else h0 if plan.is_gru else None
    d = recycled((n, total * (plan.gates + plan.is_gru) * plan.padded), dtype)
    into = recycled((n, total * plan.output if plan.projection else 0), dtype)
    dx = recycled((n, total * features), dtype)
    backward[char](plan.pool, plan.slots, plan.code, plan.split_units, plan.chunk, together, features, backwards, n, plan.gates, hidden,
                   plan.output, plan.projection, int(peepholes), rows.counts, rows.offsets, rows.order, places, plan.words(n),
                   workspace(size, dtype),
                   _in_rows(w.w_ih), w.w_hh, no_weight if w.w_hr is None else w.w_hr, none if w.peephole is None else w.peephole,
                   _in_rows(v.w_ih), v.w_hh, no_weight if v.w_hr is None else v.w_hr, none if v.peephole is None else v.peephole,
                   no_states if before is None else before, trace.kept_gates, trace.kept, trace.y, dy, no_states if dh_n is None else dh_n,
                   no_states if dc_n is None else dc_n, d, into, dx,
                   no_states if dh0 is None else dh0, no_states if dc0 is None else dc0)
    grads = [_weight_gradients(need[k], d[k], into[k], trace, plan, rows, k, h0, c0, k or backwards) for k in range(n)]
    if not need_x:
        return None, grads
    return (dx[0] if n == 1 else np.add(dx[0], dx[1], out=dx[0])).reshape(total, features), grads


def _in_rows(w):
    return w if w.strides[1] == w.itemsize else np.ascontiguousarray(w)


def _weight_gradients(need, d, into, trace, plan, rows, k, h0, c0, back) -> Weights:
    hidden, output, total, is_gru = plan.hidden, plan.output, rows.total, plan.is_gru
    y, gates = trace.y[:, k * output:(k + 1) * output], plan.gates
    no_weight = NO_WEIGHT[d.dtype.char]
    dw_ih = dw_hh = db_ih = db_hh = dw_hr = dp = None
    need_sums = need.b_ih or need.b_hh
    if need.w_ih or need_sums:
        dw_ih, db_ih = _sums(plan, d, total, is_gru, gates, 0, trace.x if need.w_ih else trace.x[:, :0], no_weight, 0, need_sums)
    if need.w_hh or (is_gru and need.b_hh):
        if rows.where is None and plan.code != RESET_FIRST:
            cut = rows.batch
            values, start = y[cut:] if back else y[:total - cut], no_weight if h0 is None else _in_rows(h0[k])
            if h0 is None and is_gru and need.b_hh:  # states of 0 add nothing to the weight's gradient, but their gates to the bias'
                start = np.zeros((cut, output), d.dtype)
        else:
            values, start = states_before(y, _in_order(h0, k, rows), rows, back), no_weight
        if plan.code == RESET_FIRST:
            dw_hh, db_hh = np.empty((3 * hidden, output), d.dtype), np.empty(3 * hidden, d.dtype)
            _sums(plan, d, total, 1, 2, 0, values, start, 0, True, dw_hh[:2 * hidden], db_hh[:2 * hidden])
            reset = _gate(trace, k, 0, plan, rows) * values
            _sums(plan, d, total, 0, 1, 0, reset, start, 0, True, dw_hh[2 * hidden:], db_hh[2 * hidden:])
        else:
            dw_hh, db_hh = _sums(plan, d, total, 0, gates, 2 if is_gru else 0, values, start, back, is_gru and need.b_hh)
    if need.b_hh and not is_gru:
        db_hh = db_ih.copy() if need.b_ih else db_ih
    if need.peephole or need.w_hr:
        c = trace.kept[k].reshape(total, plan.padded)[:, :hidden]
    if need.peephole:
        c_before, at = states_before(c, _in_order(c0, k, rows), rows, back), _at_gates(d, plan, total)
        dp = np.concatenate([(at[0] * c_before).sum(axis=0), (at[1] * c_before).sum(axis=0), (at[3] * c).sum(axis=0)])
    if need.w_hr:
        dw_hr = multiply(into.reshape(total, output).T, _gate(trace, k, 3, plan, rows) * np.tanh(c))
    return Weights(dw_ih if need.w_ih else None, dw_hh if need.w_hh else None, db_ih if need.b_ih else None, db_hh if need.b_hh else None,
                   dw_hr, dp)


def _sums(plan, d, total, first_gate, gates, shift, values, start, start_last, ones, out=None, sums=None):
    """See over_rows: (the weight's gradient, the bias')."""
    (rows, columns), char, size = values.shape, d.dtype.char, gates * plan.hidden
    rows += len(start)
    if out is None:
        out = recycled((size, columns), d.dtype)
        sums = np.empty(size, d.dtype) if ones else NOTHING[char]
    m = columns + (len(sums) > 0)
    scratch = workspace(scratch_size(rows, m, gates * plan.padded // (PANEL * LANES[char]), plan.slots, char), d.dtype)
    over_rows[char](plan.pool, plan.slots, plan.hidden, first_gate, gates, shift, values, start, int(start_last), d, total,
                    deep_of(rows, m, char), scratch, out, sums)
    return out, sums


def _in_order(states, k, rows):
    return None if states is None else states[k] if rows.where is None else states[k][rows.order]


def _at_gates(d, plan, total):
    """(gates, rows, hidden) of the gradients at the gates of a direction."""
    width = PANEL * LANES[d.dtype.char]
    by_row = d.reshape(plan.gates, plan.padded // width, total, width).swapaxes(1, 2)
    return by_row.reshape(plan.gates, total, plan.padded)[..., :plan.hidden]


def _gate(trace, k, gate, plan, rows):
    """(rows, hidden) of one gate that was kept."""
    width = PANEL * LANES[trace.y.dtype.char]
    blocks = trace.kept_gates[k].reshape(rows.total, plan.padded // width, plan.gates, width)
    return blocks[:, :, gate].reshape(rows.total, plan.padded)[:, :plan.hidden]


# ------------------------------------------------------------------------------------------------ single steps
def cell_gradients(dh_new, dc_new, before, kept_gates, kept, plan):
    """The gradients at the gates, (batch, gates * hidden), gru's in the order of numba_gradient.py, and those that go past the gates,
    (batch, hidden): lstm's at the cell state, gru's share of the state's."""
    batch, hidden, dtype, char = len(before), plan.hidden, before.dtype, before.dtype.char
    places, size = places_of(plan, 1, 0, batch, 1, False, char)
    no_states, no_weight, rows, width = NO_STATES[char], NO_WEIGHT[char], rows_of(1, batch, None, None), plan.gates + plan.is_gru
    memory, nothing, weights = np.empty(size, dtype), np.empty((1, 0), dtype), (no_weight, no_weight, no_weight, NOTHING[char])
    backward[char](0, 1, plan.code, 0, max(1, batch), 1, 0, 0, 1, plan.gates, hidden, hidden, 0, 0, rows.counts, rows.offsets, rows.order,
                   places, plan.words(1), memory, *weights, *weights, before[None], kept_gates[None], kept[None], nothing,
                   np.zeros((batch, hidden), dtype), no_states if dh_new is None else dh_new[None],
                   no_states if dc_new is None else dc_new[None], nothing, nothing, nothing, no_states, no_states)
    d, carried = memory[places[2 * GATES_NOW]:], memory[places[2 * CARRIED]:]
    return d[:batch * width * hidden].reshape(batch, width * hidden), carried[:batch * plan.padded].reshape(batch, plan.padded)[:, :hidden]


def cell_input_gradient(d, w, is_gru, hidden):
    """The gradient at a step's input from those at the gates and w_ih. A narrow w_ih is rows of a product of dot products: as columns it
    would leave most of a tile empty (928 x 512 by 12 columns: 238 us so, 67 the other way)."""
    d = _by_input(d, is_gru, hidden)
    if w.shape[1] <= NARROW and len(d) > 2 * NARROW:
        return np.ascontiguousarray(multiply(np.ascontiguousarray(w.T), d.T).T)
    return multiply(d, w)


def cell_state_gradient(d, w, is_gru, hidden):
    """The same at the state, from w_hh."""
    return multiply(d[:, :w.shape[0]], np.concatenate([w[2 * hidden:], w[:2 * hidden]]) if is_gru else w)


def _by_input(d, is_gru, hidden):
    """The gradients at the input's share of the gates."""
    return d[:, hidden:] if is_gru else d


def cell_weight_gradients(need, d, x, h, is_gru, hidden):
    """The gradients of w_ih, w_hh, b_ih, b_hh."""
    dw_ih = dw_hh = db_ih = db_hh = None
    if need.w_ih:
        dw_ih = _over_rows(_by_input(d, is_gru, hidden), x)
    if need.w_hh:
        if is_gru:
            dw_hh = np.empty((3 * hidden, h.shape[1]), d.dtype)
            multiply(d[:, hidden:3 * hidden].T, h, dw_hh[:2 * hidden])
            multiply(d[:, :hidden].T, h, dw_hh[2 * hidden:])
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
