"""Adam's step over all parameters in one launch.

Parameters are of any number and size: a program takes one block of one of them, which tables of addresses and offsets say.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..gpu import configs, device
from ..gpu.launch import cdiv, launch


@triton.jit(do_not_specialize=["step_size", "root", "beta1", "beta2", "eps", "decay", "lr"])
def adam(addresses, sizes, which, offsets, count, like, step_size, root, beta1, beta2, eps, decay, lr,
         DECOUPLED: tl.constexpr, AMSGRAD: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """addresses (4 or 5, count): of data, gradients, means, squares and, for AMSGRAD, the largest squares."""
    program = tl.program_id(0)
    tensor = tl.load(which + program)
    start = tl.load(offsets + program)
    size = tl.load(sizes + tensor)
    at = start + tl.arange(0, BLOCK)
    inside = at < size
    data = at_address(addresses + tensor, like, ALIGNED) + at
    mean_at = at_address(addresses + 2 * count + tensor, like, ALIGNED) + at
    square_at = at_address(addresses + 3 * count + tensor, like, ALIGNED) + at
    p = tl.load(data, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(at_address(addresses + count + tensor, like, ALIGNED) + at, mask=inside, other=0.0).to(tl.float32)
    if DECOUPLED:
        p = p * (1.0 - lr * decay)
    else:
        g = g + decay * p
    mean = tl.load(mean_at, mask=inside, other=0.0).to(tl.float32)
    square = tl.load(square_at, mask=inside, other=0.0).to(tl.float32)
    mean = mean + (g - mean) * (1.0 - beta1)
    square = square * beta2 + g * g * (1.0 - beta2)
    tl.store(mean_at, mean.to(like.dtype.element_ty), mask=inside)
    tl.store(square_at, square.to(like.dtype.element_ty), mask=inside)
    if AMSGRAD:
        largest_at = at_address(addresses + 4 * count + tensor, like, ALIGNED) + at
        square = tl.maximum(tl.load(largest_at, mask=inside, other=0.0).to(tl.float32), square)
        tl.store(largest_at, square.to(like.dtype.element_ty), mask=inside)
    p = p - step_size * mean / (tl.sqrt(square) / root + eps)
    tl.store(data, p.to(like.dtype.element_ty), mask=inside)


@triton.jit
def at_address(where, like, ALIGNED: tl.constexpr):
    """The pointer whose address is stored at ``where``, of the type of ``like``."""
    pointer = tl.load(where).to(like.dtype)
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


class Tables:
    """Where the blocks of a list of tensors are, kept while their sizes stay the same."""

    def __init__(self, tensors, block):
        where = tensors[0].device
        which, offsets = [], []
        for i, t in enumerate(tensors):
            blocks = cdiv(t.numel(), block)
            which += [i] * blocks
            offsets += [b * block for b in range(blocks)]
        self.programs = len(which)
        self.which = torch.tensor(which, dtype=torch.int32, device=where)
        self.offsets = torch.tensor(offsets, dtype=torch.int64, device=where)
        self.sizes = torch.tensor([t.numel() for t in tensors], dtype=torch.int64, device=where)


def adam_step(lists, tables: Tables | None, *, step, lr, betas, eps, weight_decay, decoupled) -> Tables:
    """One step for parameters of one dtype and device, in place.

    lists: data, gradients, exp_avg, exp_avg_sq and, for amsgrad, max_exp_avg_sq: lists of dense tensors with equal strides.
    Answers the tables, to be given again while the parameters' sizes stay.
    """
    data = lists[0]
    config = configs.pick("adam", device.of(data[0]))
    tables = tables or Tables(data, config["BLOCK"])
    pointers = [t.data_ptr() for tensors in lists for t in tensors]
    addresses = torch.tensor(pointers, dtype=torch.int64, device=data[0].device)
    beta1, beta2 = betas
    launch(adam, (tables.programs,), data[0], addresses, tables.sizes, tables.which, tables.offsets, len(data), data[0],
           lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, float(beta1), float(beta2), float(eps), float(weight_decay), float(lr),
           DECOUPLED=decoupled, AMSGRAD=len(lists) == 5, ALIGNED=all(p % 16 == 0 for p in pointers), **config)
    return tables
