"""How a tensor lies in memory."""

from __future__ import annotations

import torch


def order_of(x: torch.Tensor) -> list[int] | None:
    """The dimensions from slowest to fastest where the tensor fills one block of memory without gaps, else None."""
    if x.is_contiguous():
        return list(range(x.ndim))
    order = sorted(range(x.ndim), key=lambda i: (x.stride(i), x.shape[i] == 1), reverse=True)
    step = 1
    for i in reversed(order):
        if x.shape[i] != 1:
            if x.stride(i) != step:
                return None
            step *= x.shape[i]
    return order


def dense(x: torch.Tensor) -> torch.Tensor:
    """x itself where it fills a block of memory, in whatever order, else a contiguous copy."""
    return x if order_of(x) is not None else x.contiguous()


def laid_out_as(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """t, or a copy of it, with the strides of x, which has t's shape and is dense."""
    if t.stride() == x.stride():
        return t
    return torch.empty_strided(x.shape, x.stride(), dtype=t.dtype, device=t.device).copy_(t)


def around(x: torch.Tensor, axis: int) -> tuple[int, int, int]:
    """(outer, n, inner): a dense x's memory as a contiguous three-dimensional array whose middle is the axis."""
    order = order_of(x)
    sizes = [x.shape[i] for i in order]
    at = order.index(axis)
    outer = inner = 1
    for n in sizes[:at]:
        outer *= n
    for n in sizes[at + 1:]:
        inner *= n
    return outer, sizes[at], inner


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether the memory of x (N, C, ...) holds its channels side by side (the rule of ops/layout.py)."""
    return x.stride(1) == 1 and x.shape[1] > 1 and x[0, 0].numel() > 1 if x.shape[0] else False


def empty_in_layout(shape, dtype, device, channels_last: bool) -> torch.Tensor:
    """An uninitialised (N, C, ...): channels-last memory, or contiguous."""
    if channels_last:
        n, channels, *spatial = shape
        return torch.empty((n, *spatial, channels), dtype=dtype, device=device).movedim(-1, 1)
    return torch.empty(shape, dtype=dtype, device=device)
