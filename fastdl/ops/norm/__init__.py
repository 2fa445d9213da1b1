"""Normalisation: batch_norm, layer_norm, group_norm."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ... import check
from ...op import Call, operator


class BatchNormParams(NamedTuple):
    training: bool
    momentum: float
    eps: float


class LayerNormParams(NamedTuple):
    ndim: int  # how many trailing dimensions are normalised
    eps: float


class GroupNormParams(NamedTuple):
    num_groups: int
    eps: float


@operator("norm", "batch_norm", "input running_mean running_var weight bias", by_form=lambda params: not params.training)
def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """``(input - mean) / sqrt(var + eps) * weight + bias`` for each channel. As :func:`torch.nn.functional.batch_norm`.

    input: (N, C, ...). running_mean, running_var, weight, bias: (C,); weight or bias None stand for 1 and 0.
    Returns the shape of input, in its memory layout.

    training: False normalises by running_mean and running_var. True normalises by the mean and the biased variance of
    each channel of input, and **writes to running_mean and running_var**, unless both are None:
    ``running = (1 - momentum) * running + momentum * new``, where the new variance is the unbiased one. They are state,
    the one argument of an operator that is ever written to; an empty input leaves them. They have no gradient.

    Raises TypeError (not float32 or float64, two dtypes) or ValueError (input of fewer than two dimensions; a shape
    other than (C,); one of the running statistics without the other, none where not training, or not writeable; when
    training, a single value for each channel or an eps that is not positive).
    Source: Ioffe, Szegedy, "Batch normalization", ICML 2015.
    """
    x = _input("batch_norm", input)
    shape = (x.shape[1],)
    mean = _per_channel("batch_norm", "running_mean", running_mean, x, shape)
    var = _per_channel("batch_norm", "running_var", running_var, x, shape)
    if (mean is None) != (var is None):
        raise ValueError("batch_norm: one of running_mean and running_var is None; the rule is both or neither")
    training = bool(training)
    momentum = check.number("batch_norm", "momentum", momentum)
    eps = check.number("batch_norm", "eps", eps)
    if training:
        _refuse_single_value("batch_norm", x, prod(x.shape[2:]) * x.shape[0])
        if not eps > 0:
            raise ValueError(f"batch_norm: eps is {eps}; the rule is greater than 0 when training")
        for name, value in (("running_mean", mean), ("running_var", var)):
            if value is not None and not value.flags.writeable:
                raise ValueError(f"batch_norm: {name} is read-only; training updates it in place")
    elif mean is None:
        raise ValueError("batch_norm: running_mean and running_var are None; the rule is both where training is False")
    return Call((x, mean, var, _per_channel("batch_norm", "weight", weight, x, shape), _per_channel("batch_norm", "bias", bias, x, shape)),
                BatchNormParams(training, momentum, eps))


@operator("norm", "layer_norm", "input weight bias", by_form=True)
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """``(input - mean) / sqrt(var + eps) * weight + bias`` over the last dimensions, by their biased variance.

    As :func:`torch.nn.functional.layer_norm`.

    input: (..., *normalized_shape). normalized_shape: an integer, or a tuple or list of at least one.
    weight, bias: normalized_shape, or None for 1 and 0. Returns the shape of input.

    Raises TypeError (not float32 or float64, two dtypes, a size that is not an integer) or ValueError (a
    normalized_shape that input does not end in, a weight or bias of another shape).
    Source: Ba, Kiros, Hinton, "Layer normalization", arXiv:1607.06450.
    """
    x = check.array("layer_norm", "input", input)
    sizes = normalized_shape if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    shape = tuple(check.integer("layer_norm", "normalized_shape", n, 0) for n in sizes)
    if not shape or x.shape[-len(shape):] != shape:
        raise ValueError(f"layer_norm: input has shape {x.shape}, normalized_shape is {shape}; "
                         "the rule is at least one size, and input's last sizes are those")
    return Call((x, _per_channel("layer_norm", "weight", weight, x, shape), _per_channel("layer_norm", "bias", bias, x, shape)),
                LayerNormParams(len(shape), check.number("layer_norm", "eps", eps)))


@operator("norm", "group_norm", "input weight bias", by_form=True)
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    """``(input - mean) / sqrt(var + eps) * weight + bias`` with one mean and biased variance for each sample and group.

    As :func:`torch.nn.functional.group_norm`.

    input: (N, C, ...). num_groups: how many groups of neighbouring channels; it divides C.
    weight, bias: (C,), or None for 1 and 0. Returns the shape of input, in its memory layout.

    Raises TypeError (not float32 or float64, two dtypes, num_groups not an integer) or ValueError (input of fewer than
    two dimensions, a number of groups that does not divide C, a weight or bias of another shape, a single value in the
    whole of each group of the batch).
    Source: Wu, He, "Group normalization", ECCV 2018.
    """
    x = _input("group_norm", input)
    groups = check.integer("group_norm", "num_groups", num_groups, 1)
    channels = x.shape[1]
    if channels % groups:
        raise ValueError(f"group_norm: input has {channels} channels, num_groups is {groups}; the rule is that it divides them")
    _refuse_single_value("group_norm", x, x.shape[0] * (channels // groups) * prod(x.shape[2:]))
    return Call((x, _per_channel("group_norm", "weight", weight, x, (channels,)), _per_channel("group_norm", "bias", bias, x, (channels,))),
                GroupNormParams(groups, check.number("group_norm", "eps", eps)))


def _input(op, input):
    x = check.array(op, "input", input)
    if x.ndim < 2:
        raise ValueError(f"{op}: input has {x.ndim} dimensions {x.shape}; the rule is at least 2, (N, C, ...)")
    return x


def _per_channel(op, name, value, x, shape):
    if value is None:
        return None
    value = check.array(op, name, value)
    check.same_dtype(op, name, value, "input", x)
    if value.shape != shape:
        raise ValueError(f"{op}: {name} has shape {value.shape}, input has {x.shape}; the rule is {shape}")
    return value


def _refuse_single_value(op, x, count):
    if count == 1:
        raise ValueError(f"{op}: input has shape {x.shape}, one value to take the variance of; the rule is more than one")
