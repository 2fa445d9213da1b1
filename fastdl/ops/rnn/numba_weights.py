"""What the kernels want of a layer's weights: panels, and biases and peepholes in the order of the gates of unit blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...cpu import thresholds
from ...cpu.blocking import LANES
from ...cpu.jit import kernel
from ...cpu.simd import pointer
from ...cpu.workspace import NOTHING, aligned
from ...packing import is_packed, prepared
from .numba_plan import bias_size, up_to_block
from .numba_product import in_streams, pack
from .numba_sequence import BIAS, PEEPHOLE, W_H, W_R, W_X
from .numba_steps import RESET_FIRST, fill_biases
from .numba_steps import up_to_block as up_to_block_of_pointer


class Ready(NamedTuple):
    """Of one direction, in the order in which the kernel takes them; empty where there is none."""

    w_x: Any
    w_h: Any  # where the reset gate is first, of r and z
    w_r: Any  # the projection; where the reset gate is first, of n
    bias: Any
    peephole: Any


@kernel("i i i R1 R1 W1")
def biases(mode, gates, hidden, b_ih, b_hh, out):
    """See fill_biases."""
    fill_biases(mode, gates, hidden, b_ih, b_hh, pointer(out), up_to_block_of_pointer(hidden, pointer(out)))


def are_packed(weights) -> bool:
    return all(is_packed(w.w_ih) and is_packed(w.w_hh) and (w.w_hr is None or is_packed(w.w_hr)) for w in weights)


def ready(w, plan, memory=None, places=None, k=0) -> Ready:
    """Of one direction's Weights. memory, places: a layer's scratch, for what is made anew; None: packed weights, whose panels
    are kept with them, and new memory for the rest."""
    hidden, none = plan.hidden, NOTHING[w.w_ih.dtype.char]

    def place(part, size):
        return aligned(size, w.w_ih.dtype) if memory is None else memory[places[2 * part + k]:][:size]

    def panels(part, weight, gates):
        if weight is None:
            return none
        streams = part == W_H and plan.streams and memory is None

        def make():
            size = gates * up_to_block(len(weight) // gates, LANES[weight.dtype.char]) * weight.shape[1]
            out = np.empty(size, weight.dtype) if streams else place(part, size)
            pack_panels(plan, weight, gates, out)
            return in_streams(out, gates, weight.shape[1], place(part, size)) if streams else out

        return make() if memory is not None else prepared(weight, ("recurrent", gates, streams), make)

    state, inner = w.w_hh, w.w_hr
    if plan.code == RESET_FIRST:
        state, inner = w.w_hh[:2 * hidden], w.w_hh[2 * hidden:]
    bias = place(BIAS, bias_size(plan))
    biases[bias.dtype.char](plan.code, plan.gates, hidden, none if w.b_ih is None else w.b_ih, none if w.b_hh is None else w.b_hh, bias)
    peephole = none
    if w.peephole is not None:
        peephole = place(PEEPHOLE, 3 * plan.padded)
        rows = peephole.reshape(3, plan.padded)
        rows[:, :hidden], rows[:, hidden:] = w.peephole.reshape(3, hidden), 0
    return Ready(panels(W_X, w.w_ih, plan.gates), panels(W_H, state, len(state) // hidden), panels(W_R, inner, 1), bias, peephole)


def pack_panels(plan, w, gates, out):
    pack[w.dtype.char](plan.pool if w.size > thresholds.RECURRENT_MOVED else 0, w, gates, out)
