"""One row times a large packed weight, past its zeros: what a ReLU left at 0 has no product, and its weights are not read.

Such a product takes the time of reading the weight, 4 bytes for a multiply-add. Here the weight lies as panels of a few vectors of
outputs, [panel][input][output], so that an input's weights are whole cache lines; the list of inputs other than 0 says which of them are
read. What is left out would have added 0, if all weights are finite: a weight that is not has no such panels.
"""

from __future__ import annotations

import numpy as np

from ...cpu import parallel
from ...cpu._pool import parallel_for
from ...cpu.blocking import LANES
from ...cpu.jit import inline, kernel
from ...cpu.microkernel import store_tile
from ...cpu.picked_rows import STREAM_AHEAD, STREAM_VECTORS, streamed_rows
from ...cpu.simd import lanes, offset, pointer, read, write
from ...cpu.thresholds import MULTIPLY_ADDS, NONZERO_SHARE, NONZERO_WEIGHTS
from ...cpu.workspace import aligned
from .numba_gemm import finish_block

_add, _store = streamed_rows(STREAM_VECTORS), store_tile(1, STREAM_VECTORS)
_SPARE = STREAM_AHEAD + 1  # entries behind the list


@kernel("R2 i L1 W1")
def nonzeros(x, width, places, values):
    """How many of x (1, k) are not 0 (a NaN is not); their values and, times width, their places. One 0 more where that is odd."""
    k, step = x.shape[1], x.strides[1] // x.itemsize
    p, q, v, count, last = pointer(x), pointer(places), pointer(values), 0, 0
    for i in range(k):
        value = read(p, i * step)
        write(q, count, i * width)
        write(v, count, value)
        count += 1 if value != 0 else 0
    if count > 0:
        last = read(q, count - 1)
    write(v, count, 0.0)
    for i in range(count, count + _SPARE):
        write(q, i, last)
    return count


@inline
def _panel_chunk(slot, chunk, panels, k, places, values, half, c, n, bias, what, slope):
    width = STREAM_VECTORS * lanes(c)
    j = chunk * width
    target = offset(c, j)
    _store(_add(half, values, places, offset(panels, j * k)), target, 0, 1, n - j, False)
    if what:
        finish_block(target, n, 1, min(width, n - j), 0, j, bias, what, slope)


@kernel("i R1 i L1 R1 i W2 R1 i T")
def row_of_nonzeros(pool, panels, k, places, values, count, c, bias, what, slope):
    """c (1, n) = activation(x b + bias), x by ``nonzeros``. what: as of numba_gemm.gemm."""
    n, width = c.shape[1], STREAM_VECTORS * lanes(pointer(c))
    parallel_for(pool, _panel_chunk, (n + width - 1) // width,
                 (pointer(panels), k, pointer(places), pointer(values), (count + 1) // 2, pointer(c), n, pointer(bias), what, slope))


def serves(w) -> bool:
    """Whether a row times w (n, k) is mostly the reading of w, and there are panels enough for all threads."""
    n, width = w.shape[0], STREAM_VECTORS * LANES[w.dtype.char]
    return w.nbytes >= NONZERO_WEIGHTS and -(-n // width) >= parallel.team()[1]


def panels_of(w) -> np.ndarray:
    """w's panels; none, an empty array, where it has weights that are not finite."""
    n, k = w.shape
    if not np.isfinite(w).all():
        return np.empty(0, w.dtype)
    width = STREAM_VECTORS * LANES[w.dtype.char]
    out = aligned(-(-n // width) * width * k, w.dtype)
    whole = n // width
    out[: whole * width * k].reshape(whole, k, width)[...] = w[: whole * width].reshape(whole, width, k).transpose(0, 2, 1)
    if n % width:
        last = out[whole * width * k :].reshape(k, width)
        last[:, n % width :] = 0
        last[:, : n % width] = w[whole * width :].T
    return out


def row(a, w, panels, c, bias, what, slope) -> bool:
    """c = activation(a w.T + bias), a and c a row each; False where that has too few zeros. panels(): panels_of(w), kept."""
    k, dtype, char = a.shape[1], a.dtype, a.dtype.char
    places, values = np.empty(k + _SPARE, np.int64), np.empty(k + 1, dtype)
    count = nonzeros[char](a, STREAM_VECTORS * LANES[char], places, values)
    if count > NONZERO_SHARE * k:
        return False
    b = panels()
    if not b.size:
        return False
    row_of_nonzeros[char](parallel.pool() if w.size > MULTIPLY_ADDS else 0, b, k, places, values, count, c, bias, what, slope)
    return True
