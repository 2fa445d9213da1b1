"""Convolution on the CPU: which algorithm a call takes."""

from __future__ import annotations

import math

from ...packing import is_packed, prepared
from ..activation import activate, needs_input
from ..layout import empty_like_layout, is_channels_last
from ..numba_activation import code_of
from ..pointwise.numba_backend import activation_gradient
from . import choice
from .numba_columns import run as run_columns
from .numba_columns import serves as serves_columns
from .numba_pixels_plan import forward_plan, transposed_plan
from .numba_pixels_plan import run as run_pixels
from .numba_pixels_plan import weight_gradient as pixels_weight_gradient
from .numba_planes_plan import (
    Plan,
    image_kernel,
    run_channels,
    run_groups,
    run_image,
    serves_channels,
    serves_few,
    small_groups,
    weights_from,
)
from .numba_planes_plan import run as run_planes
from .numba_pointwise import run as run_pointwise
from .numba_pointwise import run_product, run_transposed_product
from .numba_winograd_plan import run as run_winograd
from .numba_winograd_weights import transformed

POINTWISE_WORK = 1 << 17  # multiply-adds of an image, from which a product for each costs no more than one pass over all
FEW_PIXELS, LARGE_WEIGHT = 64, 1 << 18  # of an image, and elements: laying out such a weight at each call costs more than the pixels
FEW = 4  # outputs; with fewer, tiles of kernel cells beat tiles of outputs


def conv(arrays, params, train):
    x, w, bias = arrays
    shape = (x.shape[0], w.shape[0], *params.out)
    if (form := _winograd(x, w, params, shape, False)) is not None:
        return _activated(lambda act: _run_winograd(form, x, w, params, shape, bias, act, x), params, train)
    if x.size and _is_product(x, w, params):
        return _activated(lambda act: run_product(x, w, bias, shape, act), params, train)
    if x.size and _is_pointwise(x, w, params):
        return _activated(lambda act: run_pointwise(x, w, bias, params.stride, shape, act), params, train)
    if serves_few(x, w, params):
        return _activated(lambda act: run_groups(x, w, bias, params, shape, act), params, train)
    if _is_flat(x, w, params):
        flat = forward_plan(x.shape[1], w.shape, params, params.out[1:])
        return _activated(lambda act: run_pixels(flat, x, w, False, bias, shape, act, x), params, train)
    if serves_channels(x, w, params):
        before = params.padding[1][0], params.padding[2][0]
        return _activated(lambda act: run_channels(x, w, bias, before, params.stride[1:], params.dilation[1:], shape, act), params, train)
    if (kernel := image_kernel(x, w, params)) is not None:
        before = params.padding[1][0], params.padding[2][0]
        return _activated(lambda act: run_image(kernel, x, w, bias, before, shape, act), params, train)
    if small_groups(x.shape[1], w.shape[0], params.groups):
        return _activated(lambda act: run_groups(x, w, bias, params, shape, act), params, train)
    plan = Plan.forward(x.shape, w.shape, params)
    return _activated(lambda act: run_planes(plan, x, w, bias, shape, x, params.groups, act), params, train)


def _winograd(x, w, params, shape, transposed):
    """The form of Winograd's algorithm for a result of ``shape`` from x, or None."""
    if not x.size:
        return None
    positions = math.prod((x.shape if transposed else shape)[3:])
    return choice.winograd(w.shape, params, x.dtype, shape[0], shape[3:], positions, is_packed(w), transposed)


def _run_winograd(form, x, w, params, shape, bias, act, like):
    weights = prepared(w, form, lambda: transformed(w, form))
    return run_winograd(form, x, weights, (params.padding[1][0], params.padding[2][0]), shape, bias, act, like)


def _is_pointwise(x, w, params):
    """1 x 1 without padding, and images large enough to be a product each, or in one."""
    if params.groups != 1 or math.prod(w.shape[2:]) != 1 or any(map(any, params.padding)):
        return False
    pixels = math.prod(params.out)
    if is_channels_last(x):
        return True
    if pixels < FEW_PIXELS and w.size >= LARGE_WEIGHT:
        return False
    return x.shape[0] == 1 or w.size * pixels > POINTWISE_WORK


def _is_product(x, w, params):
    """The kernel covers the whole image: one output, a dot product of all there is."""
    none_before = not any(before for before, _ in params.padding)
    return params.groups == 1 and w.shape[2:] == x.shape[2:] and math.prod(params.out) == 1 and none_before


def _is_transposed_product(x, w, params):
    """One pixel, all of whose products with the kernel are outputs."""
    return params.groups == 1 and math.prod(x.shape[2:]) == 1 and params.out == w.shape[2:] and not any(map(any, params.padding))


def _is_flat(x, w, params):
    """Whether rows of pixels serve: one or two dimensions, no groups, and something to do."""
    return x.size and params.ndim < 3 and params.groups == 1


def conv_backward(grad, arrays, saved, params, needs):
    x, w, bias = arrays
    dz = activation_gradient(params.activation, grad, *saved)
    dx = dw = None
    if needs[0]:
        dx = _data_gradient(x, w, dz, params)
    if needs[1]:
        dw = _weight_gradient(x, dz, w, params)
    return dx, dw, _bias_gradient(dz) if needs[2] else None


def _data_gradient(x, w, dz, params):
    if (form := _winograd(dz, w, params, x.shape, True)) is not None:
        return _run_winograd(form, dz, w, params, x.shape, None, None, x)
    if _is_flat(dz, w, params) and w.shape[1] >= FEW:
        return run_pixels(transposed_plan(w.shape[0], w.shape, params, x.shape[3:]), dz, w, True, None, x.shape, None, x)
    if _is_flat(dz, w, params) and serves_columns(w.shape, params, dz.shape[4]):
        return run_columns(dz, w, None, params, x.shape, None, x)
    if dz.size and serves_channels(dz, w, params) and is_channels_last(x) and params.stride == (1, 1, 1):
        before = tuple((w.shape[d + 2] - 1) * params.dilation[d] - params.padding[d][0] for d in (1, 2))
        return run_channels(dz, w[..., ::-1, ::-1], None, before, (1, 1), params.dilation[1:], x.shape, None)
    if w.shape[0] == x.shape[1] and params.stride == (1, 1, 1) and not is_channels_last(x):
        if (kernel := image_kernel(dz, w, params)) is not None:
            before = tuple(w.shape[4] - 1 - params.padding[d][0] for d in (1, 2))
            return run_image(kernel, dz, w[..., ::-1, ::-1], None, before, x.shape, None)
    return run_planes(Plan.transposed(dz.shape, w.shape, params, x.shape), dz, w, None, x.shape, x, params.groups, None)


def conv_transpose(arrays, params, train):
    x, w, bias = arrays
    shape = (x.shape[0], w.shape[1] * params.groups, *params.out)
    if x.size and _is_transposed_product(x, w, params):
        return _activated(lambda act: run_transposed_product(x, w, bias, shape, act), params, train)
    if (form := _winograd(x, w, params, shape, True)) is not None:
        return _activated(lambda act: _run_winograd(form, x, w, params, shape, bias, act, x), params, train)
    if _is_flat(x, w, params) and w.shape[1] >= FEW:
        flat = transposed_plan(x.shape[1], w.shape, params, params.out[1:])
        return _activated(lambda act: run_pixels(flat, x, w, True, bias, shape, act, x), params, train)
    if _is_flat(x, w, params) and serves_columns(w.shape, params, x.shape[4]):
        return _activated(lambda act: run_columns(x, w, bias, params, shape, act, x), params, train)
    plan = Plan.transposed(x.shape, w.shape, params, shape)
    return _activated(lambda act: run_planes(plan, x, w, bias, shape, x, params.groups, act), params, train)


def conv_transpose_backward(grad, arrays, saved, params, needs):
    x, w, bias = arrays
    dz = activation_gradient(params.activation, grad, *saved)
    dx = dw = None
    if needs[0]:
        if (form := _winograd(dz, w, params, x.shape, False)) is not None:
            dx = _run_winograd(form, dz, w, params, x.shape, None, None, x)
        elif _is_flat(dz, w, params):
            dx = run_pixels(forward_plan(dz.shape[1], w.shape, params, x.shape[3:]), dz, w, False, None, x.shape, None, x)
        else:
            dx = run_planes(Plan.forward(dz.shape, w.shape, params, x.shape[2:]), dz, w, None, x.shape, x, params.groups, None)
    if needs[1]:
        dw = _weight_gradient(dz, x, w, params)
    return dx, dw, _bias_gradient(dz) if needs[2] else None


def _weight_gradient(x, dz, w, params):
    if _is_flat(x, w, params) and dz.size:
        return pixels_weight_gradient(forward_plan(x.shape[1], w.shape, params, dz.shape[3:]), x, dz, w)
    return weights_from(x, dz, w, params)


def _bias_gradient(dz):
    return dz.sum(axis=(0, 2, 3, 4))


def _activated(compute, params, train):
    """(y, saved) of ``compute(activation)``: fused where the kernels have the activation, after them where not."""
    act = params.activation
    fused = code_of(act) is not None
    z = compute(act if fused else None)
    y = z
    if not fused:
        y = empty_like_layout(z.shape, z.dtype, z)
        y[...] = activate(act, z)
    return y, (y, z if needs_input(act) else None) if train else None
