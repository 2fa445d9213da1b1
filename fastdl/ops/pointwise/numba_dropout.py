"""Dropout: what stays is drawn again in the backward pass, so nothing is stored but the seed. The bits are ops/philox.py's."""

from __future__ import annotations

from ...cpu._pool import parallel_for
from ...cpu.jit import inline, kernel
from ...cpu.philox import COUNTERS, GROUP, random_words, words_from
from ...cpu.simd import lanes, load, load_n, offset, pointer, select, splat, store, store_n

CHUNK = 1 << 14  # elements; a multiple of GROUP


@inline
def _drop_chunk(slot, chunk, x, y, n, key_low, key_high, stream, least, scale):
    V = lanes(x)
    p, q, count, first_group = offset(x, chunk * CHUNK), offset(y, chunk * CHUNK), min(CHUNK, n - chunk * CHUNK), chunk * (CHUNK // GROUP)
    kept, zero = splat(x, scale), splat(x, 0.0)
    for g in range((count + GROUP - 1) // GROUP):
        for first in range(0, COUNTERS, V):
            w0, w1, w2, w3 = random_words(x, first_group + g, first, key_low, key_high, stream)
            # products, not choices: what is infinite or NaN and dropped becomes NaN
            f0, f1 = select(words_from(w0, least), kept, zero), select(words_from(w1, least), kept, zero)
            f2, f3 = select(words_from(w2, least), kept, zero), select(words_from(w3, least), kept, zero)
            i = g * GROUP + first
            if (g + 1) * GROUP <= count:
                store(q, i, load(p, i) * f0)
                store(q, i + 16, load(p, i + 16) * f1)
                store(q, i + 32, load(p, i + 32) * f2)
                store(q, i + 48, load(p, i + 48) * f3)
            else:
                _drop_some(p, q, i, min(V, count - i), f0)
                _drop_some(p, q, i + 16, min(V, count - i - 16), f1)
                _drop_some(p, q, i + 32, min(V, count - i - 32), f2)
                _drop_some(p, q, i + 48, min(V, count - i - 48), f3)


@inline
def _drop_some(p, q, i, n, factor):
    if n > 0:
        store_n(q, i, load_n(p, i, n) * factor, n)


@kernel("i R1 W1 i i i i T")
def drop(pool, x, y, key_low, key_high, stream, least, scale):
    """y = x * scale where the element's word is at least ``least``, x * 0 elsewhere."""
    n = x.shape[0]
    parallel_for(pool, _drop_chunk, (n + CHUNK - 1) // CHUNK, (pointer(x), pointer(y), n, key_low, key_high, stream, least, scale))
