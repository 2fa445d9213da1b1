"""How kernels that reduce along one axis walk a tensor: shared by softmax, cross-entropy and normalisation.

A dense tensor's memory is (outer, n, inner) around the axis. A *row* is one slice along it, numbered outer * inner_size + inner,
so that rows next to each other are next to each other in memory where inner is not 1. A program takes a tile of rows by elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..gpu import configs, device
from ..gpu.launch import cdiv, power_of_two


@triton.jit
def row_starts(BR: tl.constexpr, rows, n, inner):
    """(the program's rows, which of them exist, where each starts)."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    return r, r < rows, r // inner * (n * inner) + r % inner


def blocks(kernel: str, x, rows: int, n: int, inner: int) -> tuple[dict, int]:
    """(BR, BN, ONE: whether a row fits a tile, num_warps) and the number of programs."""
    limits = configs.pick(kernel, device.of(x), n=n, inner=inner)
    width = min(power_of_two(n), limits["BN"])
    height = max(1, min(limits["ELEMENTS"] // width, power_of_two(rows)))
    warps = max(1, min(limits["num_warps"], width * height // 256))
    return dict(BR=height, BN=width, ONE=width >= n, num_warps=warps), cdiv(rows, height)
