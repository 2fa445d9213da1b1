"""Whole sequences whose weights are packed arrays, as layers have them, without the checks that were made before.

The first call with such weights checks everything and leaves behind, with the first of them, all that the kernel wants to
know of them. A later call compares a handful of types and shapes and runs the kernel: 4 us instead of 18, which is what a
step of a stream, or a small network, would otherwise mostly consist of.
"""

from __future__ import annotations

import math
import weakref

import numpy as np

from ...cpu import parallel
from ...cpu.workspace import recycled, workspace
from ...packing import VERSION, Owner, version
from .arguments import prepare
from .layout import split
from .numba_layer import NO_STATES
from .numba_plan import places_of, plan_of
from .numba_rows import rows_of
from .numba_sequence import forward
from .numba_weights import ready

_MOST_FORMS = 32  # of the input for which what depends on them is kept
_SMALL = 1 << 13  # elements of an output: numpy's own memory is as good, and sooner had


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
        self.params, self.dtype, self.features, self.runs, self.layers = call.params, x.dtype, x.shape[2], {}, {}
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

    def _run_of(self, shape, batch_first):
        """What serves inputs of this shape on the present threads; None where it is not a plain one."""
        params, dtype, d = self.params, self.dtype, self.params.directions
        single = len(shape) == 2
        steps, batch = (shape[0], 1) if single else shape[1::-1] if batch_first else shape[:2]
        if shape[-1] != self.features or steps == 0 or batch == 0 or (batch_first and not single and batch != 1):
            return None
        plan, rows = plan_of(params, batch, steps, dtype.char), rows_of(steps, batch, None, None)
        head = (plan.pool, plan.slots, plan.code, 0, plan.split_units, plan.chunk, plan.together, plan.beside, plan.streams, 0, d,
                plan.gates, plan.hidden, plan.output, plan.projection, 0, rows.counts, rows.offsets, rows.order)
        layers = [(*places_of(plan, d, features, batch, False, False, True), made) for features, made in self._layers(plan)]
        size, layers = max(size for _, size, _ in layers), [(place, made) for place, _, made in layers]
        forward, nothing_kept, words, lstm = self.forward, self.nothing_kept, plan.words, params.mode == "lstm"
        n, flat, output, empty = params.layers * d, (steps * batch, shape[-1]), (steps * batch, d * params.output), np.empty
        h_form, c_form = (n, batch, params.output), (n, batch, params.hidden)
        h_given, c_given = [(n, form[2]) if single else form for form in (h_form, c_form)]
        y_form = output if single else (*shape[:2], d * params.output)
        elements, none, (places, made) = math.prod(output), NO_STATES[dtype.char], layers[0]
        small, teams, no_words = elements < _SMALL, plan.split_units, words(d)

        def run(x, hx):
            """The answer, or None where something is not plain, or wrong."""
            if x.dtype is not dtype or not x.flags.c_contiguous:
                return None
            h0 = c0 = none
            if hx is not None:
                h0 = hx
                if lstm:
                    if type(hx) is not tuple or len(hx) != 2:
                        return None
                    h0, c0 = hx
                    if type(c0) is not np.ndarray or c0.dtype is not dtype or c0.shape != c_given or not c0.flags.c_contiguous:
                        return None
                if type(h0) is not np.ndarray or h0.dtype is not dtype or h0.shape != h_given or not h0.flags.c_contiguous:
                    return None
                if single:
                    h0 = h0.reshape(h_form)
                    c0 = c0.reshape(c_form) if lstm else c0
            memory = workspace(size, dtype)
            h_n = empty(h_form, dtype)
            c_n = empty(c_form, dtype) if lstm else h_n
            values = x.reshape(flat)
            if n == d:
                y = empty(output, dtype) if small else recycled(output, dtype)
                forward(*head, places, words(d) if teams else no_words, values, memory, *made, h0, c0, y, h_n, c_n, *nothing_kept)
            else:
                for k, (places_k, made_k) in enumerate(layers):
                    states = [s[k * d:k * d + d] for s in (h0, c0, h_n, c_n)]
                    y = empty(output, dtype) if small else recycled(output, dtype)
                    forward(*head, places_k, words(d), values, memory, *made_k, *states[:2], y, *states[2:], *nothing_kept)
                    values = y
            if single:
                h_n, c_n = h_n[:, 0], c_n[:, 0]
            else:
                y = y.reshape(y_form)
            return (y, h_n, c_n) if lstm else (y, h_n)

        if len(self.runs) >= _MOST_FORMS:
            self.runs.clear()
        self.runs[shape, batch_first, parallel.team()] = run
        return run

    def __call__(self, x, hx, batch_first):
        """The answer, or None where something is not plain, or wrong."""
        run = self.runs.get((x.shape, batch_first, parallel.team())) or self._run_of(x.shape, batch_first)
        return None if run is None else run(x, hx)
