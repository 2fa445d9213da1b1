"""Where a convolution's cells are: padding and output sizes. What all its kernels share.

Kernels know three spatial dimensions only; a 1-D or 2-D convolution has leading ones. The arithmetic is that of
V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285 (2016).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from ... import check
from ..activation import Activation
from ..layout import is_channels_last as is_channels_last  # kernels read their geometry here; the rule is every room's

# those after "direct" name kernels of the CPU (docs/architecture.md): where one cannot serve, another one does
ALGORITHMS = ("auto", "direct", "winograd", "gemm", "pixels", "columns", "lines", "groups", "depthwise", "planes")


class ConvParams(NamedTuple):
    """What a ``conv`` or ``conv_transpose`` kernel is told, next to its arrays.

    For output cell ``o``, kernel cell ``k`` and input cell ``i`` of each dimension, the two kernels pair

        conv:            i = o * stride + k * dilation - padding[0]
        conv_transpose:  o = i * stride + k * dilation - padding[0]

    and cells outside the array count as zero. ``padding[1]`` is implied by ``out``, which says how many cells there are.
    """

    ndim: int  # of the public operator
    stride: tuple[int, int, int]
    padding: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (before, after) of each dimension
    dilation: tuple[int, int, int]
    groups: int
    out: tuple[int, int, int]  # the output's spatial size, output_padding included
    activation: Activation | None
    algorithm: str


def read_padding(op: str, padding, ndim: int):
    """``"same"``, or one pair (before, after) for each dimension."""
    if isinstance(padding, str):
        check.choice(op, "padding", padding, ("valid", "same"))
        return padding if padding == "same" else ((0, 0),) * ndim
    if not isinstance(padding, (tuple, list)):
        p = check.integer(op, "padding", padding, 0)
        return ((p, p),) * ndim
    entries = tuple(padding) * ndim if len(padding) == 1 else padding
    if len(entries) != ndim or any([isinstance(e, (tuple, list)) and len(e) != 2 for e in entries]):
        raise ValueError(f"{op}: padding is {padding!r}; the rule is an integer, {ndim} integers, {ndim} pairs (before, after), "
                         f"'valid' or 'same'")
    pairs = []
    for entry in entries:
        before, after = entry if isinstance(entry, (tuple, list)) else (entry, entry)
        pairs.append((check.integer(op, "padding", before, 0), check.integer(op, "padding", after, 0)))
    return tuple(pairs)


def conv_size(op: str, size, kernel, stride, padding, dilation):
    """The padding as pairs, and the output size, of a convolution over ``size`` input cells; padding from read_padding.

    "same" is TensorFlow's rule: ceil(size / stride) outputs, as little padding as that takes, the odd cell after.
    """
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    if padding == "same":
        padding = tuple(_halves((-(-n // s) - 1) * s + span - n) for n, s, span in zip(size, stride, spans, strict=True))
    padded = tuple(n + before + after for n, (before, after) in zip(size, padding, strict=True))
    if any(span > n for span, n in zip(spans, padded, strict=True)):
        dilated = "" if spans == kernel else f" with dilation {dilation}"
        raise ValueError(f"{op}: kernel size {spans}{dilated} is larger than the padded input {padded}")
    return padding, tuple((n - span) // s + 1 for n, span, s in zip(padded, spans, stride, strict=True))


def conv_transpose_size(op: str, size, kernel, stride, padding, output_padding, dilation):
    """The padding as pairs, and the output size, of a transposed convolution over ``size`` input cells.

    "same" gives size * stride outputs: those that a "same" convolution maps to ``size`` cells.
    """
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    if padding == "same":
        if any(output_padding):
            raise ValueError(f"{op}: output_padding is {output_padding}; the rule is 0 with padding='same'")
        pairs = tuple(_halves(span - s) for span, s in zip(spans, stride, strict=True))
        return pairs, tuple(n * s for n, s in zip(size, stride, strict=True))
    if any(extra >= s and extra >= d for extra, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise ValueError(f"{op}: output_padding is {output_padding}, stride is {stride}, dilation is {dilation}; "
                         f"the rule is an output_padding smaller than stride or dilation")
    out = tuple((n - 1) * s + span - before - after + extra
                for n, s, span, (before, after), extra in zip(size, stride, spans, padding, output_padding, strict=True))
    if any(n < 1 for n in out):
        raise ValueError(f"{op}: the output size is {out}; the rule is at least 1, "
                         f"(input - 1) * stride - padding + dilation * (kernel - 1) + output_padding + 1")
    return padding, out


# A program calls few shapes often, and working one out costs as much as all the other checks of a call.
@functools.lru_cache(maxsize=4096)
def conv_params(op: str, size, kernel, stride, padding, dilation, groups, activation, algorithm) -> ConvParams:
    """The params of a convolution over ``size`` input cells, from checked arguments."""
    padding, out = conv_size(op, size, kernel, stride, padding, dilation)
    return _params_3d(stride, padding, dilation, groups, out, activation, algorithm)


@functools.lru_cache(maxsize=4096)
def conv_transpose_params(op: str, size, kernel, stride, padding, output_padding, dilation, groups, activation, algorithm) -> ConvParams:
    """The params of a transposed convolution over ``size`` input cells, from checked arguments."""
    padding, out = conv_transpose_size(op, size, kernel, stride, padding, output_padding, dilation)
    return _params_3d(stride, padding, dilation, groups, out, activation, algorithm)


def _params_3d(stride, padding, dilation, groups, out, activation, algorithm):
    ones = (1,) * (3 - len(out))
    return ConvParams(len(out), ones + stride, ((0, 0),) * len(ones) + padding, ones + dilation, groups, ones + out, activation, algorithm)


def _halves(total):
    total = max(total, 0)
    return total // 2, total - total // 2
