"""The input's share of the gates: of many steps at once, a part at each of the steps before, or with each step's blocks.

``layer`` is numba_sequence.py's Layer. Steps whose input is multiplied together follow one another in memory, which for a layer that
goes backwards is from the last to the first.
"""

from __future__ import annotations

from ...cpu.jit import inline
from ...cpu.simd import lanes, offset, prefetch, read
from .numba_beside import ROWS, Work, tiles_of
from .numba_product import PANEL, ZERO, product_on


@inline
def time(layer, n):
    """The n-th step in the direction of the layer."""
    return layer.steps - 1 - n if layer.backwards else n


@inline
def first_steps(layer):
    """How many steps the first go together."""
    return min(layer.steps, ROWS + layer.steps % ROWS if layer.beside else layer.together)


@inline
def next_steps(layer, n, many):
    """How many go together after so many from the n-th on."""
    return min(layer.steps - n - many, ROWS if layer.beside else layer.together)


@inline
def lowest(layer, n, many):
    """The first in memory of so many steps from the n-th on."""
    return min(time(layer, n), time(layer, n + many - 1))


@inline
def gates_of(layer, scratch, low, first, rows, half):
    """Where the input's share of the gates is of steps that go together, in memory from step low on, for a range of rows. half: where
    the input stands beside the state's product, steps that go together take turns in two places; else 0."""
    width = layer.gates * layer.units.padded
    if layer.units.train:  # they will be kept, with those of all rows
        return offset(layer.kept_gates, (read(layer.offsets, low) + first) * width)
    return offset(scratch, half * 2 * ROWS * rows * width)


@inline
def behind_gates(layer, scratch, rows):
    return scratch if layer.units.train else offset(scratch, layer.together * rows * layer.gates * layer.units.padded)


@inline
def work_of_step(layer, scratch, i, n, many, half):
    """What the i-th of so many steps from the n-th on does for the next ones; see numba_beside.py."""
    tiles, low = ZERO, ZERO
    if layer.beside and n + many < layer.steps:
        tiles, low = tiles_of(layer.features, layer.gates * layer.units.padded // (PANEL * lanes(layer.x))), lowest(layer, n + many, ROWS)
    return Work(
        offset(layer.x, read(layer.offsets, low) * layer.x_row), layer.x_row, layer.features, layer.w_x, layer.bias,
        gates_of(layer, scratch, low, ZERO, ZERO + 1, layer.beside - half), layer.gates * layer.units.padded, tiles * i // many,
        tiles * (i + 1) // many)


@inline
def gates_at(layer, x_gates, low, t, rows):
    """Where in x_gates those of step t are, for a range of so many rows; low: the first step that is there."""
    if layer.units.train:
        row = read(layer.offsets, t) - read(layer.offsets, low)
    else:
        row = (t - low) * rows
    return offset(x_gates, row * layer.gates * layer.units.padded)


@inline
def project_input(layer, low, high, first, last, first_block, last_block, x_gates):
    """The input's share of the gates of steps low to high - 1, for a range of rows and unit blocks."""
    width = layer.gates * layer.units.padded
    first_panel, last_panel = first_block * layer.gates, last_block * layer.gates
    column = first_panel * PANEL * lanes(layer.x)
    x_gates, bias = offset(x_gates, column), offset(layer.bias, column)
    if last - first == layer.batch and read(layer.counts, layer.steps - 1) == layer.batch:  # then these rows follow one another
        x = offset(layer.x, read(layer.offsets, low) * layer.x_row)
        m = (high - low) * layer.batch
        product_on(bias, ZERO, x, layer.x_row, m, layer.features, layer.w_x, first_panel, last_panel, x_gates, width)
        return
    for t in range(low, high):
        m = min(last, read(layer.counts, t)) - first
        if m > 0:
            x = offset(layer.x, (read(layer.offsets, t) + first) * layer.x_row)
            out = gates_at(layer, x_gates, low, t, last - first)
            product_on(bias, ZERO, x, layer.x_row, m, layer.features, layer.w_x, first_panel, last_panel, out, width)


@inline
def ask_for_input(layer, n, first, rows, part, parts):
    """Ask for a part of the n-th step's input."""
    x = offset(layer.x, (read(layer.offsets, time(layer, n)) + first) * layer.x_row)
    for i in range(part * rows // parts, (part + 1) * rows // parts):
        for j in range(0, layer.features, lanes(x)):
            prefetch(x, i * layer.x_row + j)
