"""Sizes of a layer, how its work is split over threads, and where its parts lie in scratch memory."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ...cpu import parallel, thresholds
from ...cpu.blocking import LANES
from ...cpu.features import caches, vector_bits
from .layout import GATES
from .numba_beside import CAN_STAND_BESIDE
from .numba_product import PANEL, blocks_of
from .numba_sequence import BIAS, PEEPHOLE, SCRATCH, W_H, W_R, W_X, C, H
from .numba_steps import CODES, GRU, LSTM, RESET_FIRST
from .numba_team import WORD

# Input rows that go through the input's weights together: enough to pay for reading these, few enough for their gates to
# be in the cache when their steps come; where the cache cannot hold the weights either, as many as it holds gates of. With
# ROWS_ENOUGH rows to a step each step's input goes along with the state's product, block by block.
ROWS_AT_ONCE = 48
ROWS_ENOUGH = 12
MOST_ROWS = 64  # of a chunk: its gates stay in the cache
# With one row to a step and so many steps, the input of later ones is multiplied along with the state where the state's weights are so much
# of a second-level cache (see numba_beside.py). LSTM, 64 steps, 128 units: 138 us without and 122 with; RNN, 256 units: 135 and 121. Beside
# smaller weights and larger ones it was as fast as by itself.
FEWEST_BESIDE, LEAST_BESIDE, MOST_BESIDE = 24, 3 / 32, 1 / 2
STREAMED = 8  # second-level caches: 12 MB and more of weights were read as fast as panels, or faster


_NO_WORDS = np.zeros((2, 0), np.int64)


class Plan(NamedTuple):
    """Sizes as numba_sequence.py names them, and the split."""

    code: int  # of the mode
    gates: int
    hidden: int
    output: int
    projection: int
    padded: int
    state: int
    pool: int
    slots: int
    split_units: int  # whether a chunk is some units at one step; else it is some rows at all steps
    chunk: int
    together: int  # steps whose input goes through the weights together; 0: a step at a time, block by block
    beside: int  # whether one row's does so for fewer steps, along with the state's products of those before
    streams: int  # whether the state's weights, where they are kept, are to lie as streams (see numba_product.py)
    block: int  # units

    @property
    def is_gru(self) -> bool:
        return self.code in (GRU, RESET_FIRST)

    def words(self, directions) -> np.ndarray:
        """Those of a team for each direction; see numba_team.py."""
        if not self.split_units:
            return _NO_WORDS
        return np.zeros((directions, WORD * -(-self.padded // (self.block * self.chunk))), np.int64)

    @property
    def inner_product(self) -> bool:
        """Whether there is a product within a step: a projection, or n's where the reset gate comes first."""
        return self.projection > 0 or self.code == RESET_FIRST


def up_to_block(units, lanes) -> int:
    return blocks_of(units, lanes) * PANEL * lanes


def plan_of(params, batch, steps, char, team=None) -> Plan:
    """team: the threads that there are; None: the present ones."""
    step = batch * params.output * GATES[params.mode] * params.hidden
    pool, slots = (team or parallel.team()) if step * steps > thresholds.MULTIPLY_ADDS else (0, 1)
    reset_first = params.mode == "gru" and not params.linear_before_reset
    code = RESET_FIRST if reset_first else CODES[params.mode]
    return _plan(code, GATES[params.mode], params.hidden, params.projection, params.directions, batch, steps, LANES[char],
                 pool, slots, step > thresholds.STEP_MULTIPLY_ADDS, step >= thresholds.TEAM_MULTIPLY_ADDS)


def plan_of_cell(mode, batch, hidden, char) -> Plan:
    """Of a single step, by one thread."""
    return _plan(CODES[mode], GATES[mode], hidden, 0, 1, batch, 1, LANES[char], 0, 1, False, False)


@lru_cache(maxsize=256)
def _plan(code, gates, hidden, projection, directions, batch, steps, lanes, pool, slots, big_step, bigger_step) -> Plan:
    output, blocks = projection or hidden, blocks_of(hidden, lanes)
    padded, state = up_to_block(hidden, lanes), up_to_block(output, lanes)
    L2, itemsize = caches().l2, vector_bits() // 8 // lanes
    weights = gates * hidden * output * itemsize
    split_units, chunk = 0, max(batch, 1)
    if slots > 1 and blocks > 1 and not projection and code != RESET_FIRST and slots > directions:
        split_units = int(big_step if batch < 4 * slots else bigger_step and _better_by_units(batch, slots, 2 * weights > L2))
    if split_units:
        chunk = -(-blocks // (2 * slots if blocks >= 8 * slots else slots))
    elif slots > 1 and batch >= 4 * slots:
        # two for each thread, where that leaves them eight rows: sequences differ in length, and threads in what else they do
        chunk = min(-(-batch // (2 * slots if batch >= 16 * slots else slots)), MOST_ROWS)
    rows = batch if split_units else chunk
    at_once = max(ROWS_AT_ONCE, L2 // (gates * padded * itemsize)) if weights > L2 else ROWS_AT_ONCE
    together = max(1, min(steps, at_once // max(1, rows)))
    if rows >= ROWS_ENOUGH and code != RESET_FIRST and not split_units:
        together = 0
    streams = int(batch == 1 and code in (GRU, LSTM) and L2 // 2 <= weights <= STREAMED * L2)
    held = LEAST_BESIDE * L2 <= weights <= MOST_BESIDE * L2
    beside = int(CAN_STAND_BESIDE and batch == 1 and steps >= FEWEST_BESIDE and gates != 3 and held and not (split_units or streams))
    return Plan(code, gates, hidden, output, projection, padded, state, pool, slots, split_units, chunk, together, beside, streams,
                PANEL * lanes)


def _better_by_units(batch, slots, large) -> bool:
    """Whether threads had better share the units of a step than the rows, of which each has four at least. large: where the
    weights of the input and the state do not fit a second-level cache."""
    each = -(-batch // slots)
    # Products go through four rows at a time. With four in all, reading weights from further away takes longer than multiplying
    # (LSTM, 8 rows, 256 units, two threads: 1296 us by rows, 1114 by units); threads that meet after each step wait for each other.
    by_rows = -(-each // 4) * (1.25 if large and each <= 4 else 1)
    by_units = -(-batch // 4) / slots * (1.05 if large else 1.2)
    return batch < 16 * slots and by_units < by_rows


def bias_size(plan) -> int:
    return plan.gates * (1 + plan.is_gru) * plan.padded


@lru_cache(maxsize=256)
def places_of(plan, directions, features, batch, train, peepholes, packed) -> tuple[np.ndarray, int]:
    """Where each part for each direction starts in a layer's scratch memory, [2 * part + direction], and how much that is.

    packed: whether what is made of the weights is elsewhere.
    """
    width = plan.gates * plan.padded
    sizes = {
        W_X: width * features * (not packed),
        W_H: width * plan.output * (not packed),
        W_R: plan.state * plan.hidden * plan.inner_product * (not packed),
        BIAS: bias_size(plan) * (not packed),
        PEEPHOLE: 3 * plan.padded * peepholes * (not packed),
        H: 2 * batch * plan.state,
        C: batch * plan.padded,
    }
    places, start = np.zeros(2 * SCRATCH + 2, np.int64), 0
    for part, size in sizes.items():
        places[2 * part], places[2 * part + 1] = start, start + (directions - 1) * size
        start += directions * size
    places[2 * SCRATCH:] = start
    gates = 2 if plan.together == 0 else 1 if train else 1 + plan.together
    row = width * gates + plan.padded * plan.inner_product
    return places, start + row * (batch if plan.split_units else plan.slots * plan.chunk)
