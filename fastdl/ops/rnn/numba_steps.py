"""One step of a recurrent network from the products of its gates, and its gradient, on SIMD vectors.

A function here goes through hidden units of some rows. Rows of states are as long as the units' blocks (see
numba_product.py), so there is no tail: behind the last unit zeros come in and nobody looks at what comes out. Gates lie
where products leave them: gate g of block b at ``b * block + g * gate``; what is kept for the gradient always lies in
blocks of all gates, ``[unit block][gate]``, in place of the input's share where that lies so too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...cpu.jit import inline
from ...cpu.simd import fma, lanes, larger, load, offset, splat, store, write
from ...cpu.vector_math import gate_sigmoid, gate_tanh
from .numba_product import PANEL

TANH, RELU, GRU, LSTM, RESET_FIRST = range(5)  # the last: gru where the reset gate applies before the product
CODES = {"rnn_tanh": TANH, "rnn_relu": RELU, "gru": GRU, "lstm": LSTM}


class Units(NamedTuple):
    """What is the same for every row and step. Pointers are to vectors of all units, one for each gate."""

    mode: int
    train: int  # keep what the gradient needs
    hidden: int
    padded: int  # hidden, up to the end of its last block
    bias: Any  # (gates, padded); gru: 4 rows, for b_hn stays apart
    peephole: Any  # (3, padded)
    peepholes: int  # whether there are any


@inline
def up_to_block(n, p):
    """n units, up to the end of their last block."""
    width = PANEL * lanes(p)
    return (n + width - 1) // width * width


@inline
def fill_biases(mode, gates, hidden, b_ih, b_hh, bias, padded):
    """Units.bias from arrays; an empty one counts as zeros."""
    for i in range((4 if mode == GRU or mode == RESET_FIRST else gates) * padded):
        write(bias, i, 0)
    for g in range(gates):
        for u in range(hidden):
            of_input = b_ih[g * hidden + u] if b_ih.shape[0] else b_ih.dtype.type(0)
            of_state = b_hh[g * hidden + u] if b_hh.shape[0] else b_hh.dtype.type(0)
            if g == 2 and (mode == GRU or mode == RESET_FIRST):
                write(bias, 2 * padded + u, of_input)
                write(bias, 3 * padded + u, of_state)
            else:
                write(bias, g * padded + u, of_input + of_state)


@inline
def fill_row(row, states, i, padded):
    """A row of states (an array; empty: zeros), as long as its blocks."""
    size = states.shape[1]
    for u in range(padded):
        if u < size:
            write(row, u, states[i, u])
        else:
            write(row, u, 0)


# ------------------------------------------------------------------------------------------------ forward
class Places(NamedTuple):
    """Where the first row of what a step reads and writes is, and how far apart rows are."""

    x: Any  # the input's share of the gates
    x_row: int
    h_gates: Any  # the state's share
    h_row: int
    block: int  # of the two: from block to block of units, and from gate to gate
    gate: int
    before: Any  # the hidden state before the step
    before_row: int
    after: Any  # and after it
    after_row: int
    c: Any  # (rows, padded): lstm's cell state, updated in place
    kept_gates: Any  # (rows, gates * padded): where the activated gates go
    kept: Any  # (rows, padded): where lstm's new cell state goes; gru: what the reset gate multiplies


@inline
def advance_rows(units, rows, first, last, at):
    """The step of some rows for the units of blocks first to last - 1; at: Places."""
    if units.mode == LSTM:
        _lstm_rows(units, rows, first, last, at)
    elif units.mode == GRU:
        _gru_rows(units, rows, first, last, at)
    else:
        _elman_rows(units, rows, first, last, at)


@inline
def _elman_rows(units, rows, first, last, at):
    W, V, P = PANEL * lanes(at.x), lanes(at.x), units.padded
    for i in range(rows):
        x, h_gates, after, kept = offset(at.x, i * at.x_row), offset(at.h_gates, i * at.h_row), offset(at.after, i * at.after_row), i * P
        for b in range(first, last):
            for v in range(0, W, V):
                u, g = b * W + v, b * at.block + v
                z = load(x, g) + load(h_gates, g) + load(units.bias, u)
                h = larger(z, splat(x, 0.0)) if units.mode == RELU else gate_tanh(z)
                store(after, u, h)
                if units.train:
                    store(at.kept_gates, kept + u, h)


@inline
def _gru_rows(units, rows, first, last, at):
    W, V, P = PANEL * lanes(at.x), lanes(at.x), units.padded
    for i in range(rows):
        x, h_gates, kept = offset(at.x, i * at.x_row), offset(at.h_gates, i * at.h_row), i * P
        before, after = offset(at.before, i * at.before_row), offset(at.after, i * at.after_row)
        for b in range(first, last):
            for v in range(0, W, V):
                u, g = b * W + v, b * at.block + v
                r = gate_sigmoid(load(x, g) + load(h_gates, g) + load(units.bias, u))
                z = gate_sigmoid(load(x, g + at.gate) + load(h_gates, g + at.gate) + load(units.bias, P + u))
                inner = load(h_gates, g + 2 * at.gate) + load(units.bias, 3 * P + u)
                n = gate_tanh(fma(r, inner, load(x, g + 2 * at.gate) + load(units.bias, 2 * P + u)))
                store(after, u, fma(z, load(before, u) - n, n))
                if units.train:
                    place = 3 * (kept + b * W) + v
                    store(at.kept_gates, place, r)
                    store(at.kept_gates, place + W, z)
                    store(at.kept_gates, place + 2 * W, n)
                    store(at.kept, kept + u, inner)


@inline
def _lstm_rows(units, rows, first, last, at):
    W, V, P = PANEL * lanes(at.x), lanes(at.x), units.padded
    for i in range(rows):
        x, h_gates, kept = offset(at.x, i * at.x_row), offset(at.h_gates, i * at.h_row), i * P
        c, after = offset(at.c, i * P), offset(at.after, i * at.after_row)
        for b in range(first, last):
            for v in range(0, W, V):
                u, g = b * W + v, b * at.block + v
                old = load(c, u)
                i_gate = load(x, g) + load(h_gates, g) + load(units.bias, u)
                f_gate = load(x, g + at.gate) + load(h_gates, g + at.gate) + load(units.bias, P + u)
                cell = gate_tanh(load(x, g + 2 * at.gate) + load(h_gates, g + 2 * at.gate) + load(units.bias, 2 * P + u))
                o_gate = load(x, g + 3 * at.gate) + load(h_gates, g + 3 * at.gate) + load(units.bias, 3 * P + u)
                if units.peepholes:
                    i_gate = fma(load(units.peephole, u), old, i_gate)
                    f_gate = fma(load(units.peephole, P + u), old, f_gate)
                i_gate, f_gate = gate_sigmoid(i_gate), gate_sigmoid(f_gate)
                new = fma(f_gate, old, i_gate * cell)
                if units.peepholes:
                    o_gate = fma(load(units.peephole, 2 * P + u), new, o_gate)
                o_gate = gate_sigmoid(o_gate)
                store(c, u, new)
                store(after, u, o_gate * gate_tanh(new))
                if units.train:
                    place = 4 * (kept + b * W) + v
                    store(at.kept_gates, place, i_gate)
                    store(at.kept_gates, place + W, f_gate)
                    store(at.kept_gates, place + 2 * W, cell)
                    store(at.kept_gates, place + 3 * W, o_gate)
                    store(at.kept, kept + u, new)


# ------------------------------------------------------------------------------------------------ gru, the reset gate first
@inline
def reset_row(units, x, h_gates, before, reset):
    """The reset gate, in place of the input's share of it, and what it leaves of the state: the operand of n's product."""
    V = lanes(x)
    for u in range(0, units.padded, V):
        b, v = u // (PANEL * V), u % (PANEL * V)
        at = b * 3 * PANEL * V + v
        r = gate_sigmoid(load(x, at) + load(h_gates, b * 2 * PANEL * V + v) + load(units.bias, u))
        store(x, at, r)
        store(reset, u, r * load(before, u))


@inline
def after_reset_row(units, x, h_gates, inner, before, after):
    """The rest of the step; inner: the product of what reset_row left."""
    V, P, W = lanes(x), units.padded, PANEL * lanes(x)
    for u in range(0, P, V):
        b, v = u // W, u % W
        at = b * 3 * W + v
        z = gate_sigmoid(load(x, at + W) + load(h_gates, b * 2 * W + W + v) + load(units.bias, P + u))
        n = gate_tanh(load(x, at + 2 * W) + load(inner, u) + load(units.bias, 2 * P + u) + load(units.bias, 3 * P + u))
        store(after, u, fma(z, load(before, u) - n, n))
        store(x, at + W, z)
        store(x, at + 2 * W, n)
