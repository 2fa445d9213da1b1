"""Running numba_lines.py: what it serves, sizes, weights, scratch memory."""

from __future__ import annotations

import numpy as np

from ...cpu.blocking import LANES
from ...cpu.features import caches
from ...cpu.thresholds import MULTIPLY_ADDS
from ...cpu.workspace import workspace
from ...packing import prepared
from ..layout import is_channels_last
from ..numba_activation import kernel_arguments
from .numba_lines import FOUR, KERNELS, WIDE
from .numba_planes_plan import zeros
from .winograd import matrices

# What pays, measured on a Zen 5 (512 bits) and at 256 bits there: as many outputs share the transform of x at least, and so many channels
# at most, with more of which the values that meet a block of outputs leave L1. Lines that end amid a tile are copied once more.
OUTPUTS, CHANNELS = 24, {3: 8, 5: 4}


def serves(x, w, params) -> bool:
    """Whether numba_lines.py can: planar float32, one group, stride 1, a square kernel that it has."""
    plain = params.ndim < 3 and params.groups == 1 and params.stride == params.dilation == (1, 1, 1)
    return plain and x.dtype.char == "f" and x.size > 0 and w.shape[4] == w.shape[3] in KERNELS and not is_channels_last(x)


def pays(x, w, params) -> bool:
    """Whether it is faster than the direct sum."""
    lines, width = params.out[1:]
    few = w.shape[1] <= CHANNELS.get(w.shape[4], 0)
    return few and w.shape[0] >= OUTPUTS and width % FOUR == 0 and lines * width >= FOUR * WIDE * LANES["f"]


def planned(x, w, before, shape, act, team, pooled=False):
    """``run(x, w, bias)`` makes y of ``shape``; before: the padding above and to the left. pooled: y has the largest of each 2 x 2."""
    (K, C, _, _, r), (N, _, _, TH, TW) = w.shape, shape
    least = 2 if pooled else 1  # lines of a band
    TH, TW = least * TH, least * TW
    dtype, lanes, points, T = x.dtype, LANES["f"], FOUR + r - 1, -(-TW // FOUR)
    pool, slots = team if N * K * TH * TW * C * r * points // FOUR > MULTIPLY_ADDS else (0, 1)
    band = TH
    while band > least and (4 * (points * C * (band + r - 1) * T + (K * band * TW if pooled else 0)) > caches()[1] // 4
                            or (slots > 1 and N * -(-TH // band) < 4 * slots)):
        band = -(-band // (2 * least)) * least
    lines = band + r - 1
    phase, point = lines * (T + 1), C * lines * T + WIDE * lanes
    share = WIDE * lanes * (FOUR + C * r * points) + FOUR * phase + 2 * lanes + points * point + (K * band * TW if pooled else 0)
    share = -(-share // 16) * 16  # whole cache lines
    (code, slope), convolve = kernel_arguments(act), KERNELS[r]["f"]

    def run(x, w, bias):
        y = np.empty(shape, dtype)
        u = prepared(w, "lines", lambda: _transformed(w, r))
        bias = zeros(K, dtype.char) if bias is None else np.ascontiguousarray(bias)
        convolve(pool, band, x, *before, T, u, bias, code, slope, pooled, y, workspace(slots * share, dtype), share, phase, point)
        return y

    return run


def _transformed(w, r):
    """[output][channel, kernel row][point], flat."""
    g = matrices(FOUR, r)[1]
    return (w.reshape(-1, r).astype("f8") @ g.T).astype(w.dtype).reshape(-1)
