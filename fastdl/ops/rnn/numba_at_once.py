"""Whole sequences whose weights are packed arrays, as layers have them, without the checks that were made before.

The first call with such weights checks everything and leaves behind, with the first of them, all that the kernel wants to
know of them. A later call compares a handful of types and shapes and runs the kernel: 5 us instead of 18, which is what a
step of a stream, or a small network, would otherwise mostly consist of.
"""

from __future__ import annotations

import weakref

import numpy as np

from ...cpu import parallel
from ...cpu.workspace import workspace
from ...packing import VERSION, Owner, version
from .arguments import prepare
from .layout import split
from .numba_layer import NO_STATES
from .numba_plan import places_of, plan_of
from .numba_rows import rows_of
from .numba_sequence import forward
from .numba_weights import ready

_MOST_SIZES = 32  # for which what depends on steps and batch is kept


class AtOnce(dict):
    """What is offered a call's arguments as they are; see op.Operator."""

    arity = 9  # input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first

    def __init__(self, mode):
        def serve(x, hx, params, has_biases, layers, dropout, train, bidirectional, batch_first):
            if type(dropout) is not float or not 0 <= dropout <= 1 or (train and dropout) or type(layers) is not int:
                return None
            if type(params) is not list or not params or type(owner := getattr(params[0], "base", None)) is not Owner:
                return None
            key = (mode, bool(has_biases), layers, bool(bidirectional))
            bound = owner.forms.get(key)
            if bound is None or not bound.is_of(params):
                call = prepare(mode, x, hx, params, has_biases, layers, dropout, False, bidirectional, batch_first, None, None, None)
                if not all(type(p.base) is Owner for p in params):
                    return None
                bound = owner.forms[key] = Bound(call, params)
            return bound(x, hx, batch_first)

        super().__init__(f=serve, d=serve)


class Bound:
    """Weights, and what kernels want of them. It holds no reference to the weights themselves, which hold it."""

    def __init__(self, call, params):
        self.seen = [(weakref.ref(p), version(p)) for p in params]
        x = call.arrays[0]
        self.params, self.dtype, self.features, self.sizes, self.layers = call.params, x.dtype, x.shape[2], {}, {}
        self.forward = forward[x.dtype.char]
        self.nothing_kept = (np.empty((call.params.directions, 0), x.dtype),) * 2

    def is_of(self, params) -> bool:
        if len(params) != len(self.seen):
            return False
        for p, (ref, seen) in zip(params, self.seen, strict=True):
            if ref() is not p or p.base.forms.get(VERSION) is not seen:
                return False
        return True

    def _layers(self, plan):
        """Of each layer its input's size and what the kernel is given of its weights."""
        if plan.streams not in self.layers:
            n, given = self.params.directions, [None] * (1 + self.params.states) + [ref() for ref, _ in self.seen]
            weights = split(given, self.params)[3]
            made = [ready(w, plan) for w in weights]
            self.layers[plan.streams] = [(w.w_ih.shape[1], (*made[k], *made[k + n - 1])) for k, w in enumerate(weights) if k % n == 0]
        return self.layers[plan.streams]

    def _sizes(self, steps, batch):
        """What depends on so many steps and rows: numbers and rows for the kernel, each layer's weights and places, their memory, the
        plan."""
        if len(self.sizes) >= _MOST_SIZES:
            self.sizes.clear()
        plan, rows, n = plan_of(self.params, batch, steps, self.dtype.char), rows_of(steps, batch, None, None), self.params.directions
        layers = self._layers(plan)
        places = [places_of(plan, n, features, batch, False, False, True) for features, _ in layers]
        head = (plan.pool, plan.slots, plan.code, 0, plan.split_units, plan.chunk, plan.together, plan.streams, 0, n, plan.gates,
                plan.hidden, plan.output, plan.projection, 0, rows.counts, rows.offsets, rows.order)
        found = self.sizes[steps, batch, parallel.team()] = (
            head, [(place, made) for (place, _), (_, made) in zip(places, layers, strict=True)], max(size for _, size in places), plan)
        return found

    def __call__(self, x, hx, batch_first):
        """The answer, or None where something is not plain, or wrong."""
        dtype, params, shape = self.dtype, self.params, x.shape
        if (x.dtype is not dtype and x.dtype != dtype) or not x.flags.c_contiguous:
            return None
        single = len(shape) == 2
        if single:
            steps, batch = shape[0], 1
        elif len(shape) != 3 or (batch_first and shape[0] != 1):
            return None
        else:
            steps, batch = shape[:2] if not batch_first else shape[1::-1]
        if shape[-1] != self.features or steps == 0 or batch == 0:
            return None
        d, output, lstm = params.directions, params.output, params.mode == "lstm"
        n = params.layers * d
        h0 = c0 = NO_STATES[dtype.char]
        if hx is not None:
            h = hx
            if lstm:
                if type(hx) is not tuple or len(hx) != 2:
                    return None
                h, c0 = hx[0], _plain(hx[1], dtype, n, batch, params.hidden, single)
            h0 = _plain(h, dtype, n, batch, output, single)
            if h0 is None or c0 is None:
                return None
        head, layers, size, plan = self.sizes.get((steps, batch, parallel.team())) or self._sizes(steps, batch)
        memory = workspace(size, dtype)
        h_n = np.empty((n, batch, output), dtype)
        c_n = np.empty((n, batch, params.hidden), dtype) if lstm else h_n
        rows, states = x.reshape(steps * batch, shape[-1]), (h0, c0, h_n, c_n)
        for k, (places, made) in enumerate(layers):
            if n > d:
                states = [s[k * d:k * d + d] for s in (h0, c0, h_n, c_n)]
            y = np.empty((steps * batch, d * output), dtype)
            self.forward(*head, places, plan.words(d), rows, memory, *made, states[0], states[1], y, states[2], states[3],
                         *self.nothing_kept)
            rows = y
        if single:
            h_n, c_n = h_n[:, 0], c_n[:, 0]
        else:
            y = y.reshape(*shape[:2], d * output)
        return (y, h_n, c_n) if lstm else (y, h_n)


def _plain(state, dtype, n, batch, size, single):
    """A state as (n, batch, size), or None where it is not what it should be."""
    if type(state) is not np.ndarray or (state.dtype is not dtype and state.dtype != dtype) or not state.flags.c_contiguous:
        return None
    if single:
        return state.reshape(n, 1, size) if state.shape == (n, size) else None
    return state if state.shape == (n, batch, size) else None
