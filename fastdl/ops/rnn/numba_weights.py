"""What the kernels want of a layer's weights: panels, and biases and peepholes in the order of the gates of unit blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...cpu import thresholds
from ...cpu._pool import parallel_for
from ...cpu.blocking import LANES
from ...cpu.jit import inline, kernel
from ...cpu.simd import lanes, offset, pointer, write
from ...cpu.workspace import NOTHING, aligned
from ...packing import is_packed, prepared
from .numba_plan import bias_size, up_to_block
from .numba_product import PANEL, ZERO, _pack_chunk, in_streams, pack
from .numba_sequence import BIAS, PEEPHOLE, W_H, W_R, W_X
from .numba_steps import RESET_FIRST, fill_biases
from .numba_steps import up_to_block as up_to_block_of_pointer

NO_WEIGHT = {char: np.empty((0, 0), char) for char in "fd"}


class Ready(NamedTuple):
    """Of one direction, in the order in which the kernel takes them; empty where there is none."""

    w_x: Any
    w_h: Any  # where the reset gate is first, of r and z
    w_r: Any  # the projection; where the reset gate is first, of n
    bias: Any
    peephole: Any


@inline
def _panels(pool, w, row, gates, units, out):
    """``gates`` times ``units`` rows of a weight, from ``row`` on, as panels."""
    step, k, width = w.strides[0] // w.itemsize, w.shape[1], PANEL * lanes(pointer(w))
    parallel_for(pool if gates * units * k > thresholds.RECURRENT_MOVED else 0, _pack_chunk, (units + width - 1) // width,
                 (offset(pointer(w), row * step), step, w.strides[1] // w.itemsize, units, k, gates, pointer(out)))


@kernel("i i i i R2 R2 R2 R1 R1 R1 W1 W1 W1 W1 W1")
def make_all(pool, mode, gates, hidden, w_ih, w_hh, w_hr, b_ih, b_hh, peephole, w_x, w_h, w_r, bias, peepholes):
    """Ready, of what is not empty."""
    if w_ih.shape[0]:
        _panels(pool, w_ih, ZERO, gates, hidden, w_x)
    if w_hh.shape[0] and mode == RESET_FIRST:
        _panels(pool, w_hh, ZERO, gates - 1, hidden, w_h)
        _panels(pool, w_hh, 2 * hidden, ZERO + 1, hidden, w_r)
    elif w_hh.shape[0]:
        _panels(pool, w_hh, ZERO, gates, hidden, w_h)
    if w_hr.shape[0]:
        _panels(pool, w_hr, ZERO, ZERO + 1, w_hr.shape[0], w_r)
    at_bias, at_peepholes = pointer(bias), pointer(peepholes)
    padded = up_to_block_of_pointer(hidden, at_bias)
    fill_biases(mode, gates, hidden, b_ih, b_hh, at_bias, padded)
    if peephole.shape[0]:
        for g in range(3):
            for u in range(padded):
                write(at_peepholes, g * padded + u, peephole[g * hidden + u] if u < hidden else peephole.dtype.type(0))


def ready(w, plan, memory=None, places=None, k=0) -> Ready:
    """Of one direction's Weights. memory, places: a layer's scratch, for what is made anew (see places_of in numba_plan.py); None: packed
    weights, whose panels are kept with them, and new memory for the rest."""
    char, gates, hidden = w.w_ih.dtype.char, plan.gates, plan.hidden
    none, no_weight = NOTHING[char], NO_WEIGHT[char]
    if memory is None:
        panels = _kept_panels(w, plan)
        bias = aligned(bias_size(plan), w.w_ih.dtype)
        w_ih = w_hh = w_hr = no_weight
        made = Ready(*panels, bias, none if w.peephole is None else aligned(3 * plan.padded, w.w_ih.dtype))
    else:
        w_ih, w_hh, w_hr = w.w_ih, w.w_hh, no_weight if w.w_hr is None else w.w_hr
        made = Ready(*[memory[places[2 * part + k]:] for part in (W_X, W_H, W_R, BIAS, PEEPHOLE)])
    make_all[char](plan.pool, plan.code, gates, hidden, w_ih, w_hh, w_hr, none if w.b_ih is None else w.b_ih,
                   none if w.b_hh is None else w.b_hh, none if w.peephole is None else w.peephole, *made)
    return made


def _kept_panels(w, plan):
    """Those of packed weights of the input and the state, and w_r."""

    def panels(weight, gates, streams=False):
        if weight is None:
            return NOTHING[w.w_ih.dtype.char]

        def make():
            size = gates * up_to_block(len(weight) // gates, LANES[weight.dtype.char]) * weight.shape[1]
            out = np.empty(size, weight.dtype) if streams else aligned(size, weight.dtype)
            pack[weight.dtype.char](plan.pool if weight.size > thresholds.RECURRENT_MOVED else 0, weight, gates, out)
            return in_streams(out, gates, weight.shape[1], aligned(size, weight.dtype)) if streams else out

        return prepared(weight, ("recurrent", gates, streams), make)

    state, inner = w.w_hh, w.w_hr
    if plan.code == RESET_FIRST:
        state, inner = w.w_hh[:2 * plan.hidden], w.w_hh[2 * plan.hidden:]
    return panels(w.w_ih, plan.gates), panels(state, len(state) // plan.hidden, bool(plan.streams)), panels(inner, 1)


def are_packed(weights) -> bool:
    return all([is_packed(w.w_ih) and is_packed(w.w_hh) and (w.w_hr is None or is_packed(w.w_hr)) for w in weights])
