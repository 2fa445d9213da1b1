"""One layer of a recurrent network on the CPU: all its steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...cpu.workspace import recycled, workspace
from .numba_plan import places_of
from .numba_sequence import forward
from .numba_steps import GRU, LSTM
from .numba_weights import are_packed, ready

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
    n, dtype, kept_packed = len(weights), x.dtype, are_packed(weights)
    char, peepholes, none = dtype.char, weights[0].peephole is not None, NO_STATES[dtype.char]
    places, size = places_of(plan, n, x.shape[1], rows.batch, train, peepholes, kept_packed)
    memory = workspace(size, dtype)
    made = [ready(w, plan) if kept_packed else ready(w, plan, memory, places, k) for k, w in enumerate(weights)]
    y = recycled((rows.total, n * plan.output), dtype)
    gates = rows.total * plan.gates * plan.padded if train else 0
    states = rows.total * plan.padded if train and plan.code in (GRU, LSTM) else 0
    kept = recycled((n, gates + states), dtype)
    kept_gates, kept = kept[:, :gates], kept[:, gates:]
    forward[char](plan.pool, plan.slots, plan.code, int(train), plan.split_units, plan.chunk, plan.together, plan.beside,
                  int(plan.streams and kept_packed), backwards, n, plan.gates, plan.hidden, plan.output, plan.projection, int(peepholes),
                  rows.counts, rows.offsets, rows.order, places, plan.words(n), x, memory, *made[0], *made[-1],
                  none if h0 is None else h0, none if c0 is None else c0, y, h_n, c_n, kept_gates, kept)
    return Trace(x, y, kept_gates, kept)
