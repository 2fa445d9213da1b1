"""A single step, from the products of its gates as matrix products leave them."""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import lanes, offset, pointer
from .numba_product import PANEL, ZERO
from .numba_sequence import copy
from .numba_steps import LSTM, Places, Units, advance_rows, fill_row, up_to_block


@inline
def _chunk(slot, chunk, rows, batch, units, gates, x_gates, h_gates, before, after, c, h_new, c_new, kept_gates, kept):
    V, H, P = lanes(x_gates), units.hidden, units.padded
    start, end = chunk * rows, min((chunk + 1) * rows, batch)
    k = start if units.train else 0
    advance_rows(units, end - start, ZERO, P // (PANEL * V), Places(
        offset(x_gates, start * gates * H), gates * H, offset(h_gates, start * gates * H), gates * H, PANEL * V, H,
        offset(before, start * P), P, offset(after, start * P), P, offset(c, start * P),
        offset(kept_gates, k * gates * P), offset(kept, k * P)))
    for i in range(start, end):
        copy(offset(after, i * P), offset(h_new, i * H), ZERO, H)
        if units.mode == LSTM:
            copy(offset(c, i * P), offset(c_new, i * H), ZERO, H)


@kernel("i i i i i R1 R1 R2 R2 W1 W2 W2 W1 W1")
def cell(pool, mode, train, gates, rows, x_gates, h_gates, h, c, memory, h_new, c_new, kept_gates, kept):
    """h_new and lstm's c_new (batch, hidden), ``rows`` rows to a chunk.

    h_gates: the gates before their activations; gru: the state's share, with x_gates the input's. Both (batch, gates *
    hidden), flat, with a block more than that, since vectors reach beyond the last gate's end. h and c that are empty count
    as zeros. memory: 3 * batch rows of all units' blocks. kept_gates: (batch, gates of all blocks) and kept: (batch, all
    blocks) where training.
    """
    batch, hidden = h_new.shape
    before = pointer(memory)
    padded = up_to_block(hidden, before)
    after, state = offset(before, batch * padded), offset(before, 2 * batch * padded)
    for i in range(batch):
        fill_row(offset(before, i * padded), h, i, padded)
        fill_row(offset(state, i * padded), c, i, padded)
    units = Units(mode, train, hidden, padded, before, ZERO)
    parallel_for(pool, _chunk, (batch + rows - 1) // rows,
                 (rows, batch, units, gates, pointer(x_gates), pointer(h_gates), before, after, state, pointer(h_new), pointer(c_new),
                  pointer(kept_gates), pointer(kept)))
