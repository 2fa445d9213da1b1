"""Activations, softmax and dropout on a GPU: each reads and writes its tensors once."""

from __future__ import annotations

import torch

from ...gpu import configs, device, tape
from ...gpu.launch import cdiv, launch
from ...gpu.memory import around, dense, laid_out_as
from ..triton_rows import blocks
from . import triton_pointwise, triton_softmax

_FROM_OUTPUT = ("sigmoid", "tanh")


def _forward(x, name, a=0.0, b=0.0):
    x = dense(x)
    y = torch.empty_like(x)
    config = configs.pick("pointwise", device.of(x), bytes=x.element_size())
    launch(triton_pointwise.forward, (cdiv(x.numel(), config["BLOCK"]),), x, x, y, x.numel(), float(a), float(b), ACT=name, **config)
    return y


def _backward(grad, source, name, a=0.0, b=0.0, from_input=True):
    source = dense(source)
    grad = laid_out_as(grad, source)
    dx = torch.empty_like(source)
    config = configs.pick("pointwise", device.of(source), bytes=source.element_size())
    launch(triton_pointwise.backward, (cdiv(source.numel(), config["BLOCK"]),), source, grad, source, dx, source.numel(), float(a),
           float(b), ACT=name, INPUT=from_input, **config)
    return dx


def activation(arrays, act, train):
    y = _forward(arrays[0], act.name, act.slope)
    return y, y if act.name in _FROM_OUTPUT else None


def activation_backward(grad, arrays, y, act, needs):
    from_output = act.name in _FROM_OUTPUT
    return (_backward(grad, y if from_output else arrays[0], act.name, act.slope, from_input=not from_output),)


def gelu(arrays, params, train):
    return _forward(arrays[0], "gelu" if params.approximate == "none" else "gelu_tanh"), None


def gelu_backward(grad, arrays, saved, params, needs):
    return (_backward(grad, arrays[0], "gelu" if params.approximate == "none" else "gelu_tanh"),)


def softplus(arrays, params, train):
    return _forward(arrays[0], "softplus_beta", params.beta, params.threshold), None


def softplus_backward(grad, arrays, saved, params, needs):
    return (_backward(grad, arrays[0], "softplus_beta", params.beta, params.threshold),)


# ------------------------------------------------------------------------------------------------ along one axis
def _softmax(x, params, log):
    x = dense(x)
    y = torch.empty_like(x)
    if x.numel():
        outer, n, inner = around(x, params.axis)
        config, programs = blocks("softmax", x, outer * inner, n, inner)
        launch(triton_softmax.softmax, (programs,), x, x, y, outer * inner, n, inner, LOG=log, **config)
    return y, y


def _softmax_backward(grad, y, params, log):
    grad = laid_out_as(grad, y)
    dx = torch.empty_like(y)
    if y.numel():
        outer, n, inner = around(y, params.axis)
        config, programs = blocks("softmax", y, outer * inner, n, inner)
        launch(triton_softmax.softmax_backward, (programs,), y, grad, y, dx, outer * inner, n, inner, LOG=log, **config)
    return (dx,)


def softmax(arrays, params, train):
    return _softmax(arrays[0], params, False)


def softmax_backward(grad, arrays, y, params, needs):
    return _softmax_backward(grad, y, params, False)


def log_softmax(arrays, params, train):
    return _softmax(arrays[0], params, True)


def log_softmax_backward(grad, arrays, y, params, needs):
    return _softmax_backward(grad, y, params, True)


# ------------------------------------------------------------------------------------------------ dropout
def _signed(word):
    """32 bits as a signed integer, so that every value has one type in a kernel's signature."""
    return word - (1 << 32) if word >= 1 << 31 else word


def _drop(x, params):
    if not params.training or params.p == 0:
        return x.clone()
    tape.refuse("it draws random bits")
    flat = x.contiguous()  # the mask counts elements in C order, whatever the layout
    y = torch.empty_like(flat)
    config = configs.pick("dropout", device.of(x))
    least = min(int(params.p * 2**32), 2**32 - 1)
    launch(triton_pointwise.dropout, (cdiv(flat.numel(), 4 * config["COUNTERS"]),), flat, flat, y, flat.numel(),
           _signed(params.seed & 0xFFFFFFFF), _signed(params.seed >> 32), _signed(least), 0.0 if params.p == 1 else 1 / (1 - params.p),
           **config)
    return laid_out_as(y, x) if dense(x) is x else y


def dropout(arrays, params, train):
    return _drop(arrays[0], params), None


def dropout_backward(grad, arrays, saved, params, needs):
    return (_drop(grad, params),)
