"""Matrix products on a GPU: what the products of an operator and of its gradient are."""

from __future__ import annotations

import torch

from ...gpu import device
from ..activation import needs_input
from ..triton_columns import gradient_of_last_step
from .triton_fp8 import product_fp8
from .triton_gemm import gemm


def matmul_supports(arrays, params):
    if params is None or params.precision is None:
        return None
    where = device.of(arrays[0])
    if where.capability < 89 and where is not device.INTERPRETER:
        return f"precision is 'fp8' and {where.name} has none; the rule is compute capability 8.9 or newer"
    return None


linear_supports = matmul_supports


def matmul(arrays, params, train):
    a, b = arrays
    if params is not None:
        return product_fp8(a, b)[0], None
    return _product(a, b), None


def _product(a, b):
    if a.ndim > 2 and b.ndim == 2 and _flat(a):  # one weight for the whole batch: one tall product
        y, _ = gemm(a.reshape(-1, a.shape[-1]) if a.shape[-1] else a.new_empty((a.shape[:-1].numel(), 0)), b)
        return y.view(*a.shape[:-1], b.shape[-1])
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return gemm(a.expand(*lead, *a.shape[-2:]), b.expand(*lead, *b.shape[-2:]))[0]


def _flat(a):
    """Whether all rows of a batch of matrices lie at one distance, so that they are one matrix."""
    strides = [s for n, s in zip(a.shape[:-1], a.stride()[:-1], strict=True) if n != 1]
    sizes = [n for n in a.shape[:-1] if n != 1]
    return all(outer == n * inner for outer, inner, n in zip(strides, strides[1:], sizes[1:], strict=False))


def matmul_backward(grad, arrays, saved, params, needs):
    a, b = arrays
    da = _sum_to(_product(grad, b.mT), a.shape) if needs[0] else None
    db = None
    if needs[1]:
        if b.ndim == 2 and a.ndim > 2 and a.numel() and grad.numel():  # summed over the batch within one product
            db = gemm(a.reshape(-1, a.shape[-1]).mT, grad.reshape(-1, grad.shape[-1]))[0]
        else:
            db = _sum_to(_product(a.mT, grad), b.shape)
    return da, db


def _sum_to(grad, shape):
    """Sum over the dimensions that broadcasting added or stretched."""
    return grad if grad.shape == shape else grad.sum_to_size(shape)


def addmm(arrays, params, train):
    x, a, b = arrays
    residual = x.expand(a.shape[0], b.shape[1]) if params.beta else None
    return gemm(a, b, residual=residual, alpha=params.alpha, beta=params.beta)[0], None


def addmm_backward(grad, arrays, saved, params, needs):
    x, a, b = arrays
    return (_sum_to(grad, x.shape) * params.beta if needs[0] else None,
            gemm(grad, b.mT, alpha=params.alpha)[0] if needs[1] else None,
            gemm(a.mT, grad, alpha=params.alpha)[0] if needs[2] else None)


def linear(arrays, params, train):
    x, w, bias = arrays
    multiply = gemm if params.precision is None else product_fp8
    y, z = multiply(x, w.mT, bias=bias, activation=params.activation, keep=train and needs_input(params.activation))
    return y, (z if z is not None else y if params.activation is not None else None) if train else None


def linear_backward(grad, arrays, saved, params, needs):
    x, w, bias = arrays
    dz, db = gradient_of_last_step(grad, saved, params.activation, needs_input(params.activation), needs[0] or needs[1], needs[2])
    return gemm(dz, w)[0] if needs[0] else None, gemm(dz.mT, x)[0] if needs[1] else None, db
