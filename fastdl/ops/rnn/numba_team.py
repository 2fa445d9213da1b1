"""Threads that go through steps together: a step's work lies in parts, and nobody begins a step before all of the last one is done.

A team is one job of the pool. Each part has a word that counts what happened to it: 2 n when the n-th step may be begun, 2 n + 1
when somebody is at it, 2 n + 2 when it is done. A thread does its own parts first (their weights are in its caches), then those
that nobody has begun. So a thread that comes late, or never, is not waited for: only one that has begun something is.
"""

from __future__ import annotations

from ...cpu.atomics import atomic_load, atomic_store, compare_exchange, pause
from ...cpu.jit import inline
from ...cpu.simd import address

WORD = 8  # each in a cache line of its own


@inline
def place(member, members, parts, i, n):
    """The i-th part that a thread turns to: its own first, at every other step the last of these first, then the others."""
    first, end = member * parts // members, (member + 1) * parts // members
    if n % 2 == 1 and i < end - first:
        return end - 1 - i
    return (first + i) % parts


@inline
def take(words, part, n):
    """Whether the caller may do this part of the n-th step, and is the one to do it."""
    word = address(words) + 8 * WORD * part
    return atomic_load(word) == 2 * n and compare_exchange(word, 2 * n, 2 * n + 1)


@inline
def finish(words, part, n):
    atomic_store(address(words) + 8 * WORD * part, 2 * n + 2)


@inline
def wait_for_all(words, parts, n):
    """Until the n-th step is done."""
    for part in range(parts):
        while atomic_load(address(words) + 8 * WORD * part) < 2 * n + 2:
            pause()
