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
from ...cpu.vector_gates import gate_sigmoid, gate_tanh
from .numba_product import PANEL

TANH, RELU, GRU, LSTM, RESET_FIRST = range(5)  # the last: gru where the reset gate applies before the product
CODES = {"rnn_tanh": TANH, "rnn_relu": RELU, "gru": GRU, "lstm": LSTM}


class Units(NamedTuple):
    """What is the same for every row and step."""

    mode: int
    train: int  # keep what the gradient needs
    hidden: int
    padded: int  # hidden, up to the end of its last block
    peephole: Any  # (3, padded)
    peepholes: int  # whether there are any


@inline
def up_to_block(n, p):
    """n units, up to the end of their last block."""
    width = PANEL * lanes(p)
    return (n + width - 1) // width * width


@inline
def fill_biases(mode, gates, hidden, b_ih, b_hh, bias, padded):
    """What sums begin with: the input's share of the gates, (blocks, gates, block), and behind it, where the state's share of n
    stays apart, the state's: gru's (blocks, 3, block) with zeros for r and z, else (blocks, block). Empty arrays count as zeros."""
    W = PANEL * lanes(bias)
    apart = mode == GRU or mode == RESET_FIRST
    for i in range((2 * gates if apart else gates) * padded):
        write(bias, i, 0)
    of_state = offset(bias, gates * padded)
    for g in range(gates):
        for u in range(hidden):
            b_i = b_ih[g * hidden + u] if b_ih.shape[0] else b_ih.dtype.type(0)
            b_h = b_hh[g * hidden + u] if b_hh.shape[0] else b_hh.dtype.type(0)
            at = (u // W * gates + g) * W + u % W
            if apart and g == 2:
                write(bias, at, b_i)
                write(of_state, at if mode == GRU else u, b_h)
            else:
                write(bias, at, b_i + b_h)


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

    x: Any  # gru: the input's share of the gates
    x_row: int
    gates: Any  # the gates before their activations; gru: the state's share
    gates_row: int
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
    W, V, P = PANEL * lanes(at.gates), lanes(at.gates), units.padded
    for i in range(rows):
        gates, after, kept = offset(at.gates, i * at.gates_row), offset(at.after, i * at.after_row), i * P
        for b in range(first, last):
            for v in range(0, W, V):
                u, z = b * W + v, load(gates, b * at.block + v)
                h = larger(z, splat(z, 0.0)) if units.mode == RELU else gate_tanh(z)
                store(after, u, h)
                if units.train:
                    store(at.kept_gates, kept + u, h)


# What follows from one activation waits in memory until it has been taken of all rows: chains of one activation each fill the
# processor's queues with work that need not wait; with chains of two an LSTM's activations took half as long again.
@inline
def _gru_rows(units, rows, first, last, at):
    W, V, P = PANEL * lanes(at.gates), lanes(at.gates), units.padded
    for i in range(rows):
        x, gates, kept = offset(at.x, i * at.x_row), offset(at.gates, i * at.gates_row), i * P
        after = offset(at.after, i * at.after_row)
        for b in range(first, last):
            for v in range(0, W, V):
                u, g = b * W + v, b * at.block + v
                r, inner = gate_sigmoid(load(x, g) + load(gates, g)), load(gates, g + 2 * at.gate)
                store(after, u, fma(r, inner, load(x, g + 2 * at.gate)))
                if units.train:
                    store(at.kept_gates, 3 * (kept + b * W) + v, r)
                    store(at.kept, kept + u, inner)
    for i in range(rows):
        x, gates, kept = offset(at.x, i * at.x_row), offset(at.gates, i * at.gates_row), i * P
        before, after = offset(at.before, i * at.before_row), offset(at.after, i * at.after_row)
        for b in range(first, last):
            for v in range(0, W, V):
                u, g = b * W + v, b * at.block + v
                z = gate_sigmoid(load(x, g + at.gate) + load(gates, g + at.gate))
                n = gate_tanh(load(after, u))
                store(after, u, fma(z, load(before, u) - n, n))
                if units.train:
                    place = 3 * (kept + b * W) + v
                    store(at.kept_gates, place + W, z)
                    store(at.kept_gates, place + 2 * W, n)


@inline
def _lstm_rows(units, rows, first, last, at):
    W, V, P = PANEL * lanes(at.gates), lanes(at.gates), units.padded
    for i in range(rows):
        gates, kept, c = offset(at.gates, i * at.gates_row), i * P, offset(at.c, i * P)
        for b in range(first, last):
            for v in range(0, W, V):
                u, g = b * W + v, b * at.block + v
                old = load(c, u)
                i_gate, f_gate, cell = load(gates, g), load(gates, g + at.gate), gate_tanh(load(gates, g + 2 * at.gate))
                if units.peepholes:
                    i_gate = fma(load(units.peephole, u), old, i_gate)
                    f_gate = fma(load(units.peephole, P + u), old, f_gate)
                i_gate, f_gate = gate_sigmoid(i_gate), gate_sigmoid(f_gate)
                new = fma(f_gate, old, i_gate * cell)
                store(c, u, new)
                if units.train:
                    place = 4 * (kept + b * W) + v
                    store(at.kept_gates, place, i_gate)
                    store(at.kept_gates, place + W, f_gate)
                    store(at.kept_gates, place + 2 * W, cell)
                    store(at.kept, kept + u, new)
    for i in range(rows):
        gates, kept = offset(at.gates, i * at.gates_row), i * P
        c, after = offset(at.c, i * P), offset(at.after, i * at.after_row)
        for b in range(first, last):
            for v in range(0, W, V):
                u, o_gate, new = b * W + v, load(gates, b * at.block + 3 * at.gate + v), load(c, b * W + v)
                if units.peepholes:
                    o_gate = fma(load(units.peephole, 2 * P + u), new, o_gate)
                o_gate = gate_sigmoid(o_gate)
                store(after, u, o_gate * gate_tanh(new))
                if units.train:
                    store(at.kept_gates, 4 * (kept + b * W) + 3 * W + v, o_gate)


# ------------------------------------------------------------------------------------------------ gru, the reset gate first
@inline
def reset_row(units, x, h_gates, before, reset):
    """The reset gate, in place of the input's share of it, and what it leaves of the state: the operand of n's product."""
    V = lanes(x)
    for u in range(0, units.padded, V):
        b, v = u // (PANEL * V), u % (PANEL * V)
        at = b * 3 * PANEL * V + v
        r = gate_sigmoid(load(x, at) + load(h_gates, b * 2 * PANEL * V + v))
        store(x, at, r)
        store(reset, u, r * load(before, u))


@inline
def after_reset_row(units, x, h_gates, inner, before, after):
    """The rest of the step; inner: the product of what reset_row left."""
    V, P, W = lanes(x), units.padded, PANEL * lanes(x)
    for u in range(0, P, V):
        b, v = u // W, u % W
        at = b * 3 * W + v
        z = gate_sigmoid(load(x, at + W) + load(h_gates, b * 2 * W + W + v))
        n = gate_tanh(load(x, at + 2 * W) + load(inner, u))
        store(after, u, fma(z, load(before, u) - n, n))
        store(x, at + W, z)
        store(x, at + 2 * W, n)
