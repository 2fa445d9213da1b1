"""Activations and their gradients over an array as it lies in memory."""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.simd import lanes, load, load_n, offset, pointer, splat, store, store_n
from ..numba_activation import apply_activation, apply_gradient

CHUNK = 1 << 14  # elements: a share of L1 for each array


@inline
def _activate_chunk(slot, chunk, x, y, n, act, slope):
    V = lanes(x)
    source, target = offset(x, chunk * CHUNK), offset(y, chunk * CHUNK)
    count, leak, i = min(CHUNK, n - chunk * CHUNK), splat(x, slope), 0
    while i + V <= count:
        store(target, i, apply_activation(load(source, i), act, leak))
        i += V
    if i < count:
        store_n(target, i, apply_activation(load_n(source, i, count - i), act, leak), count - i)


@kernel("i R1 W1 i T")
def activate(pool, x, y, act, slope):
    """y = activation(x)."""
    n = x.shape[0]
    parallel_for(pool, _activate_chunk, (n + CHUNK - 1) // CHUNK, (pointer(x), pointer(y), n, act, slope))


@inline
def _gradient_chunk(slot, chunk, grad, source, dx, n, act, slope):
    V = lanes(grad)
    g, s, target = offset(grad, chunk * CHUNK), offset(source, chunk * CHUNK), offset(dx, chunk * CHUNK)
    count, leak, i = min(CHUNK, n - chunk * CHUNK), splat(grad, slope), 0
    while i + V <= count:
        store(target, i, apply_gradient(load(g, i), load(s, i), act, leak))
        i += V
    if i < count:
        m = count - i
        store_n(target, i, apply_gradient(load_n(g, i, m), load_n(s, i, m), act, leak), m)


@kernel("i R1 R1 W1 i T")
def pull_back(pool, grad, source, dx, act, slope):
    """dx = grad times the activation's derivative; source: its output."""
    n = grad.shape[0]
    parallel_for(pool, _gradient_chunk, (n + CHUNK - 1) // CHUNK, (pointer(grad), pointer(source), pointer(dx), n, act, slope))
