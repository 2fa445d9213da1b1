"""Convolution on a GPU: which kernel, and the memory layouts around it.

Kernels work on channels-last memory; a planar input is turned first and its answer turned back. The backward pass keeps the turned
input. float32 is rounded to tf32 where torch's flag for convolutions (``torch.backends.cudnn``) says so.
"""

from __future__ import annotations

from ...gpu import device
from ..activation import needs_input
from ..matmul.triton_gemm import gemm
from ..pool import triton_backend as pool_backend
from ..triton_columns import gradient_of_last_step
from ..triton_layout import channels_last, in_kind
from . import pooled, triton_correlate, triton_depthwise, triton_packed, triton_tiles, triton_weights
from .triton_correlate import convolution_axes, transposed_axes


def _tf32():
    return device.tf32_allowed("conv")


def _last(w):
    """A weight whose input channels lie side by side."""
    return w if w.stride(1) == 1 or w.shape[1] == 1 else w.movedim(1, -1).contiguous().movedim(-1, 1)


def _rows(x):
    """Channels-last (N, C, D, H, W) as a matrix (positions, C), a view."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _is_product(w, params):
    """Whether a convolution is one matrix product over the image as it lies."""
    return params.groups == 1 and w.shape[2:].numel() == 1 and params.stride == (1, 1, 1) and params.padding == ((0, 0),) * 3


def _is_depthwise(x, w, params):
    return params.groups > 1 and w.shape[1] == 1 and x.shape[1] == params.groups


# Names are a convolution's: x is the side with the padding, y the side that the kernel steps over, one cell a stride.
def _correlate(x, w, params, out, **last_step):
    """y from x, with bias and activation: (y, z)."""
    if _is_product(w, params) and x.numel() and not last_step.get("pool"):
        keep = last_step.pop("keep", False)
        y, z = gemm(_rows(x), w.reshape(w.shape[:2]).mT, keep=keep, tf32=_tf32(), **last_step)
        shape = (x.shape[0], *out, w.shape[0])
        return y.view(shape).movedim(-1, 1), None if z is None else z.view(shape).movedim(-1, 1)
    axes = convolution_axes(params._replace(out=tuple(out)), w.shape[2:])
    if _is_depthwise(x, w, params):
        return triton_depthwise.run(x, w, out, axes, w.shape[0] // x.shape[1], transposed=False, **last_step)
    if x.numel() and (config := triton_packed.config_of(x, w, axes, params.groups, w.shape[0])) is not None:
        return triton_packed.run(x, w, out, axes, w.shape[0], config, **last_step)
    return _by_tiles_or_pointers(x, _last(w), out, axes, params.groups, w.shape[0], 1, last_step)


def _scatter(y, w, params, size, **last_step):
    """x of spatial size ``size`` from y, with bias and activation: (x, z)."""
    if _is_product(w, params) and y.numel():
        keep = last_step.pop("keep", False)
        x, z = gemm(_rows(y), w.reshape(w.shape[:2]), keep=keep, tf32=_tf32(), **last_step)
        shape = (y.shape[0], *size, w.shape[1])
        return x.view(shape).movedim(-1, 1), None if z is None else z.view(shape).movedim(-1, 1)
    axes = transposed_axes(params, w.shape[2:], size)
    if params.groups > 1 and w.shape[1] == 1:
        return triton_depthwise.run(y, w, size, axes, w.shape[0] // params.groups, transposed=True, **last_step)
    return _by_tiles_or_pointers(y, _last(w), size, axes, params.groups, w.shape[1] * params.groups, 0, last_step)


def _by_tiles_or_pointers(x, w, size, axes, groups, outputs, reduce_over, last_step):
    bare = last_step.get("bias") is None and last_step.get("activation") is None
    found = triton_tiles.configs_of(x, w, size, axes, groups, outputs, bare) if x.numel() else None
    if found is not None:
        return triton_tiles.run(x, w, size, axes, outputs, found, reduce_over=reduce_over, **last_step)
    return triton_correlate.run(x, w, size, axes, groups, reduce_over=reduce_over, tf32=_tf32(), **last_step)


def _weight_gradient(x, y, w, params):
    """The gradient of w from x and the gradient of y (or, transposed, from y and the gradient of x)."""
    if _is_product(w, params) and x.numel():
        return gemm(_rows(y).mT, _rows(x), tf32=_tf32())[0].view(w.shape)
    if params.groups > 1 and w.shape[1] == 1:
        return triton_depthwise.weights(y, x, params, tuple(w.shape[2:]), w.shape[0] // params.groups)
    return triton_weights.run(y, x, params, tuple(w.shape[2:]), tf32=_tf32())


def _forward(kernel, arrays, params, out, train):
    x, w, bias = arrays
    given = x
    x = channels_last(x)
    y, z = kernel(x, w, params, out, bias=None if bias is None else bias.contiguous(), activation=params.activation,
                  keep=train and needs_input(params.activation))
    source = z if z is not None else y if params.activation is not None else None
    return in_kind(y, given), (x, source) if train else None


def conv_max_pool(arrays, params, train):
    x, w, bias = arrays
    if train or _is_depthwise(x, w, params.conv):
        return pooled.forward(conv, pool_backend.max_pool, arrays, params, train)
    given = x
    y, _ = _correlate(channels_last(x), w, params.conv, params.conv.out, bias=None if bias is None else bias.contiguous(),
                      activation=params.conv.activation, pool=True)
    return in_kind(y, given), None


def conv_max_pool_backward(grad, arrays, saved, params, needs):
    return pooled.backward(conv_backward, pool_backend.max_pool_backward, grad, arrays, saved, params, needs)


def _last_step_gradient(grad, source, params, needs):
    """(dz, db) in channels-last memory."""
    grad = channels_last(grad)
    source = None if source is None else channels_last(source)
    dz, db = gradient_of_last_step(_rows(grad), None if source is None else _rows(source), params.activation,
                                   needs_input(params.activation), needs[0] or needs[1], needs[2])
    return dz.view(grad.movedim(1, -1).shape).movedim(-1, 1), db


def conv(arrays, params, train):
    return _forward(_correlate, arrays, params, params.out, train)


def conv_backward(grad, arrays, saved, params, needs):
    given, w, _ = arrays
    x, source = saved
    dz, db = _last_step_gradient(grad, source, params, needs)
    return (in_kind(_scatter(dz, w, params, tuple(x.shape[2:]))[0], given) if needs[0] else None,
            _weight_gradient(x, dz, w, params) if needs[1] else None, db)


def conv_transpose(arrays, params, train):
    return _forward(_scatter, arrays, params, params.out, train)


def conv_transpose_backward(grad, arrays, saved, params, needs):
    given, w, _ = arrays
    x, source = saved
    dz, db = _last_step_gradient(grad, source, params, needs)
    return (in_kind(_correlate(dz, w, params, tuple(x.shape[2:]))[0], given) if needs[0] else None,
            _weight_gradient(dz, x, w, params) if needs[1] else None, db)
