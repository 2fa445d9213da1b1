"""Where the windows of a pooling operator lie: checks, padding, output sizes, and what its kernels are told.

Kernels know three spatial dimensions only; a 1-D or 2-D pooling has leading ones.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from ... import check

Triple = tuple[int, int, int]


class PoolParams(NamedTuple):
    """What a ``max_pool``, ``avg_pool`` or ``lp_pool`` kernel is told, next to its array.

    In each dimension, output cell ``o`` looks at the input elements

        o * stride - padding[0] + k * dilation      for k = 0 ... window - 1

    that exist. ``padding[1]`` and ``ceil_mode`` are spent in ``out``, which says how many cells there are; only the
    average's divisor asks for ``padding[1]`` again.
    """

    window: Triple
    stride: Triple
    padding: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (before, after) of each dimension
    dilation: Triple  # ones but for max_pool
    out: Triple  # the output's spatial size
    return_indices: bool = False  # max_pool
    count_include_pad: bool = True  # avg_pool; the rule for ceil_mode's last windows of lp_pool too
    divisor_override: int | None = None  # avg_pool
    norm: float = 0.0  # lp_pool; may be inf


class AdaptiveParams(NamedTuple):
    """What an ``adaptive_*_pool`` kernel is told: cell ``o`` looks at floor(o * in / out) ... ceil((o + 1) * in / out) - 1."""

    out: Triple
    return_indices: bool = False


def read_input(op: str, ndim: int, input):
    """The input as (N, C, D, H, W), a view; its spatial size, ndim numbers; and the sizes that stand before it."""
    x = check.array(op, "input", input, (ndim + 1, ndim + 2))
    lead, size = x.shape[:-ndim], x.shape[-ndim:]
    if lead[-1] < 1 or min(size) < 1:
        raise ValueError(f"{op}: input has shape {x.shape}; the rule is at least 1 for every size but the batch's")
    if len(lead) == 1:
        x = x[None]
    if ndim < 3:
        x = x[(slice(None), slice(None)) + (None,) * (3 - ndim)]
    return x, size, lead


def output_shape(ndim: int, lead, out):
    """The shape to give the output, None where it is the kernel's own."""
    return None if ndim == 3 and len(lead) == 2 else lead + out[3 - ndim:]


@check.remembered
def pool_params(op: str, ndim: int, size, kernel_size, stride, padding=0, dilation=1, ceil_mode=False) -> PoolParams:
    """Check what all windowed pooling takes and lay out the windows over ``size`` input elements."""
    window = check.integers(op, "kernel_size", kernel_size, ndim, 1)
    stride = window if stride is None else check.integers(op, "stride", stride, ndim, 1)
    dilation = check.integers(op, "dilation", dilation, ndim, 1)
    return _lay_out(op, ndim, size, window, stride, _read_padding(op, padding, ndim), dilation, bool(ceil_mode))


@functools.lru_cache(maxsize=1024)  # a network asks for the same few layouts at every step
def _lay_out(op, ndim, size, window, stride, padding, dilation, ceil_mode):
    spans = tuple((k - 1) * d + 1 for k, d in zip(window, dilation, strict=True))
    if padding == "same":
        needed = (max((-(-n // s) - 1) * s + span - n, 0) for n, s, span in zip(size, stride, spans, strict=True))
        padding = tuple((total // 2, total - total // 2) for total in needed)
    # no window may lie in the padding alone
    if any(max(pair) > span // 2 for pair, span in zip(padding, spans, strict=True)):
        raise ValueError(f"{op}: padding is {padding}, the window spans {spans}; the rule is at most half of the window's span")
    out = tuple(map(_cells, size, spans, stride, padding, (ceil_mode,) * ndim))
    if min(out) < 1:
        dilated = "" if spans == window else f" (kernel_size {window}, dilation {dilation})"
        padded = tuple(n + before + after for n, (before, after) in zip(size, padding, strict=True))
        raise ValueError(f"{op}: the window spans {spans}{dilated}, the padded input is {padded}; the rule is a window that fits")
    ones = (1,) * (3 - ndim)
    return PoolParams(ones + window, ones + stride, ((0, 0),) * (3 - ndim) + padding, ones + dilation, ones + out)


def adaptive_params(op: str, ndim: int, size, output_size) -> AdaptiveParams:
    """Check ``output_size``; None within it stands for the input's size."""
    if isinstance(output_size, (tuple, list)):
        wanted = tuple(output_size)
    else:
        wanted = (check.integer(op, "output_size", output_size, 0),) * ndim
    if len(wanted) != ndim:
        raise ValueError(f"{op}: output_size has {len(wanted)} entries; the rule is an integer or {ndim} of them (None keeps a size)")
    out = tuple(n if w is None else check.integer(op, "output_size", w, 0) for w, n in zip(wanted, size, strict=True))
    return AdaptiveParams((1,) * (3 - ndim) + out)


def _read_padding(op, padding, ndim):
    """One pair (before, after) for each dimension, or "same".

    "same" is TensorFlow's rule: ceil(size / stride) cells, as little padding as that takes, the odd element after.
    """
    if isinstance(padding, str):
        check.choice(op, "padding", padding, ("valid", "same"))
        return padding if padding == "same" else ((0, 0),) * ndim
    if not isinstance(padding, (tuple, list)):
        p = check.integer(op, "padding", padding, 0)
        return ((p, p),) * ndim
    entries = tuple(padding) * ndim if len(padding) == 1 else tuple(padding)
    if len(entries) != ndim or any(isinstance(e, (tuple, list)) and len(e) != 2 for e in entries):
        raise ValueError(f"{op}: padding is {padding!r}; the rule is an integer, {ndim} integers, {ndim} pairs (before, after), "
                         f"'valid' or 'same'")
    return tuple(tuple(check.integer(op, "padding", p, 0) for p in (e if isinstance(e, (tuple, list)) else (e, e))) for e in entries)


def _cells(n, span, stride, pair, ceil_mode):
    """How many windows there are along one dimension; less than 1 where none fits."""
    before, after = pair
    cells = (n + before + after - span + (stride - 1 if ceil_mode else 0)) // stride + 1
    # rounding up may add a window that starts in the padding after the input: it would see nothing
    return cells - 1 if ceil_mode and (cells - 1) * stride >= n + before else cells
