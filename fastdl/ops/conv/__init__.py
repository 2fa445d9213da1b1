"""Convolution and transposed convolution, in one, two and three dimensions."""

from __future__ import annotations

from ... import check
from ...op import Call, operator
from ..activation import check_activation
from ..pool.geometry import PoolParams
from .geometry import ALGORITHMS, conv_params, conv_transpose_params, read_padding
from .pooled import PooledParams


@operator("conv", "conv", "input weight bias", by_form=True)
def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, activation=None, algorithm="auto"):
    """``activation(input * weight + bias)``, a cross-correlation over sequences. As :func:`torch.nn.functional.conv1d`.

    input: (N, C, L) or (C, L). weight: (K, C / groups, k). bias: (K,) or None. Returns (N, K, L') or (K, L').

    The other arguments, what is raised, and the sources: see :func:`conv2d`. A per-side padding reads ``((left, right),)``.
    """
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups, activation, algorithm)


@operator("conv", "conv", "input weight bias", by_form=True)
def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, activation=None, algorithm="auto"):
    """``activation(input * weight + bias)``, a cross-correlation over images. As :func:`torch.nn.functional.conv2d`.

    input: (N, C, H, W) or (C, H, W), float32 or float64; where its memory is channels-last, so is the result's.
    weight: (K, C / groups, kh, kw). bias: (K,) or None.
    stride, dilation: an integer of at least 1, or one for each dimension; in cells.
    padding: zeros around the input, in cells: an integer, one for each dimension, a pair for each dimension
        ``((top, bottom), (left, right))``, ``"valid"`` (none) or ``"same"``, with any stride and dilation: H' is
        ceil(H / stride), and where the padding is odd the larger half goes after (TensorFlow's rule).
    groups: output channel k sees the input channels of its group only; it divides C and K. ``groups=C`` is depthwise.
    activation: None, "relu", "leaky_relu", "elu", "gelu", "sigmoid", "tanh", "softplus", or ("leaky_relu", slope),
        ("elu", alpha); applied in the kernel's last step.
    algorithm: "auto", "direct" (anything but Winograd's), or the one to use: "winograd", "gemm", "pixels", "columns", "lines",
        "groups", "depthwise", "planes". Winograd ("lines" is along one dimension) is faster and rounds more, and a NaN or an infinity
        of the input reaches a few outputs beside those that meet it. What the one asked for cannot serve, the own choice of
        "direct" does.
    Returns (N, K, H', W') or (K, H', W'), with H' = (H + top + bottom - dilation * (kh - 1) - 1) // stride + 1.

    Raises TypeError (not an array of float32 or float64, two dtypes, numpy and torch mixed, a size that is not an
    integer) or ValueError (a wrong rank, channels that do not fit weight and groups, a size of 0 other than N's, a kernel
    larger than the padded input, a padding of another form or below 0, an unknown activation or algorithm).

    Sources: V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285 (2016);
    for "same", the notes on padding in tf.nn's documentation.
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups, activation, algorithm)


@operator("conv", "conv", "input weight bias", by_form=True)
def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, activation=None, algorithm="auto"):
    """``activation(input * weight + bias)``, a cross-correlation over volumes. As :func:`torch.nn.functional.conv3d`.

    input: (N, C, D, H, W) or (C, D, H, W). weight: (K, C / groups, kd, kh, kw). bias: (K,) or None.
    Returns (N, K, D', H', W') or (K, D', H', W').

    The other arguments, what is raised, and the sources: see :func:`conv2d`. A per-side padding reads
    ``((front, back), (top, bottom), (left, right))``.
    """
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups, activation, algorithm)


@operator("conv", "conv_max_pool", "input weight bias", by_form=True)
def conv2d_max_pool2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, activation=None, algorithm="auto"):
    """``max_pool2d(conv2d(...), 2)``. On a GPU it is one pass, and the convolution's whole answer never reaches memory; on a CPU that
    answer is not kept for the gradient, whose weight's share is summed over the maxima alone.

    Arguments, layouts and what is raised: as :func:`conv2d`. Returns (N, K, H' // 2, W' // 2), an odd last row or column of the
    convolution's answer left out, as by :func:`max_pool2d`; ValueError where H' or W' is 1. Where a gradient is wanted on a GPU, it is
    one after the other.
    """
    call = _conv("conv2d_max_pool2d", 2, input, weight, bias, stride, padding, dilation, groups, activation, algorithm)
    return Call(call.arrays, *_pooled(call.params, call.shapes))


@check.remembered
def _pooled(params, shapes):
    (_, *size), ones = params.out, (1, 1, 1)
    if min(size) < 2:
        raise ValueError(f"conv2d_max_pool2d: the convolution's answer has {tuple(size)} cells; the rule is at least 2 in each dimension")
    out = tuple(n // 2 for n in size)
    pool = PoolParams((1, 2, 2), (1, 2, 2), ((0, 0),) * 3, ones, (1, *out))
    return PooledParams(params, pool), (*shapes[:-2], *out)


@operator("conv", "conv_transpose", "input weight bias", by_form=True)
def conv_transpose1d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, activation=None,
                     algorithm="auto"):
    """The transpose of :func:`conv1d` with bias and activation. As :func:`torch.nn.functional.conv_transpose1d`.

    input: (N, C, L) or (C, L). weight: (C, K / groups, k). bias: (K,) or None. Returns (N, K, L') or (K, L').

    The other arguments, what is raised, and the source: see :func:`conv_transpose2d`. A per-side padding reads
    ``((left, right),)``.
    """
    return _conv_transpose("conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation, activation,
                           algorithm)


@operator("conv", "conv_transpose", "input weight bias", by_form=True)
def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, activation=None,
                     algorithm="auto"):
    """The transpose of :func:`conv2d` (its data gradient) with bias and activation. As :func:`torch.nn.functional.conv_transpose2d`.

    input: (N, C, H, W) or (C, H, W), float32 or float64; where its memory is channels-last, so is the result's.
    weight: (C, K / groups, kh, kw). bias: (K,) or None.
    stride, dilation: an integer of at least 1, or one for each dimension; in cells of the output.
    padding: cells cut off the output's sides, in the forms that :func:`conv2d` takes: an integer, one for each
        dimension, a pair for each dimension ``((top, bottom), (left, right))``, ``"valid"`` (none) or ``"same"``: H' is
        H * stride, whatever the kernel (TensorFlow's rule; where the cut is odd the larger half goes after).
    output_padding: cells added at the bottom and right, an integer or one for each dimension; smaller than stride or
        dilation, and 0 with ``padding="same"``.
    groups: output channel k sees the input channels of its group only; it divides C.
    activation, algorithm: as in :func:`conv2d`.
    Returns (N, K, H', W') or (K, H', W'), with
    H' = (H - 1) * stride - top - bottom + dilation * (kh - 1) + output_padding + 1.

    Raises TypeError (not an array of float32 or float64, two dtypes, numpy and torch mixed, a size that is not an
    integer) or ValueError (a wrong rank, channels that do not fit weight and groups, a size of 0 other than N's, an output
    size below 1, an output_padding too large, a padding of another form or below 0, an unknown activation or algorithm).

    Source: V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285 (2016), section 4.
    """
    return _conv_transpose("conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation, activation,
                           algorithm)


@operator("conv", "conv_transpose", "input weight bias", by_form=True)
def conv_transpose3d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, activation=None,
                     algorithm="auto"):
    """The transpose of :func:`conv3d` with bias and activation. As :func:`torch.nn.functional.conv_transpose3d`.

    input: (N, C, D, H, W) or (C, D, H, W). weight: (C, K / groups, kd, kh, kw). bias: (K,) or None.
    Returns (N, K, D', H', W') or (K, D', H', W').

    The other arguments, what is raised, and the source: see :func:`conv_transpose2d`. A per-side padding reads
    ``((front, back), (top, bottom), (left, right))``.
    """
    return _conv_transpose("conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation, activation,
                           algorithm)


# ------------------------------------------------------------------------------------------------ the prepare steps
_NAMES = ("input", "weight", "bias")
# views that add the spatial dimensions that kernels expect and the public operator lacks
_TO_3D = {1: (slice(None), slice(None), None, None), 2: (slice(None), slice(None), None), 3: ()}


def _conv(op, ndim, input, weight, bias, *options):
    return _call(_read_conv, op, ndim, input, weight, bias, *options)


def _conv_transpose(op, ndim, input, weight, bias, *options):
    return _call(_read_conv_transpose, op, ndim, input, weight, bias, *options)


def _call(read, op, ndim, input, weight, bias, *options):
    """options: the activation and the algorithm come last."""
    *options, activation, algorithm = options
    if bias is None:
        x, w = check.floats(op, _NAMES[:2], (input, weight))
        shape = None
    else:
        x, w, bias = check.floats(op, _NAMES, (input, weight, bias))
        shape = bias.shape
    if activation is not None:
        activation = check_activation(op, activation)
    params, shapes, batched = read(op, ndim, x.shape, w.shape, shape, activation, algorithm, *options)
    view = _TO_3D[ndim]
    return Call(((x if batched else x[None])[view], w[view], bias), params, shapes)


@check.remembered
def _read_conv(op, ndim, x_shape, w_shape, bias_shape, activation, algorithm, stride, padding, dilation, groups):
    """(params, the result's shape where the kernel's is another, whether input has a batch axis)"""
    groups = _check_sizes(op, ndim, x_shape, w_shape, groups, algorithm)
    channels, outputs = x_shape[-ndim - 1], w_shape[0]
    if outputs % groups:
        raise ValueError(f"{op}: weight has {outputs} output channels, groups is {groups}; the rule is that groups divides them")
    if w_shape[1] * groups != channels:
        raise ValueError(f"{op}: weight has {w_shape[1]} input channels per group, input has {channels} (groups={groups})")
    _check_bias(op, bias_shape, outputs)
    stride, dilation = check.integers(op, "stride", stride, ndim, 1), check.integers(op, "dilation", dilation, ndim, 1)
    padding = read_padding(op, padding, ndim)
    params = conv_params(op, x_shape[-ndim:], w_shape[2:], stride, padding, dilation, groups, activation, algorithm)
    return params, *_batched(ndim, x_shape, outputs, params)


@check.remembered
def _read_conv_transpose(op, ndim, x_shape, w_shape, bias_shape, activation, algorithm, stride, padding, output_padding, groups, dilation):
    """As _read_conv."""
    groups = _check_sizes(op, ndim, x_shape, w_shape, groups, algorithm)
    channels, outputs = x_shape[-ndim - 1], w_shape[1] * groups
    if w_shape[0] != channels:
        raise ValueError(f"{op}: weight has {w_shape[0]} input channels, input has {channels}; "
                         f"the rule for weight is (in, out / groups, ...)")
    _check_bias(op, bias_shape, outputs)
    stride, dilation = check.integers(op, "stride", stride, ndim, 1), check.integers(op, "dilation", dilation, ndim, 1)
    padding, output_padding = read_padding(op, padding, ndim), check.integers(op, "output_padding", output_padding, ndim, 0)
    params = conv_transpose_params(op, x_shape[-ndim:], w_shape[2:], stride, padding, output_padding, dilation, groups, activation,
                                   algorithm)
    return params, *_batched(ndim, x_shape, outputs, params)


def _check_sizes(op, ndim, x_shape, w_shape, groups, algorithm):
    """What convolution and its transpose ask alike of input, weight, groups, which it answers, and algorithm."""
    check.rank(op, "input", x_shape, (ndim + 1, ndim + 2))
    check.rank(op, "weight", w_shape, ndim + 2)
    if 0 in w_shape:
        raise ValueError(f"{op}: weight has shape {w_shape}; the rule is that no size is 0")
    if 0 in x_shape[-ndim - 1:]:
        raise ValueError(f"{op}: input has shape {x_shape}; the rule is that no size but the batch's is 0")
    groups = check.integer(op, "groups", groups, 1)
    if x_shape[-ndim - 1] % groups:
        raise ValueError(f"{op}: input has {x_shape[-ndim - 1]} channels, groups is {groups}; the rule is that groups divides them")
    check.choice(op, "algorithm", algorithm, ALGORITHMS)
    return groups


def _check_bias(op, shape, outputs):
    if shape is not None:
        check.rank(op, "bias", shape, 1)
        if shape[0] != outputs:
            raise ValueError(f"{op}: bias has shape {shape}; the rule is one entry for each of the {outputs} output channels")


def _batched(ndim, x_shape, outputs, params):
    batch = x_shape[:-ndim - 1]
    return None if ndim == 3 and batch else (*batch, outputs, *params.out[3 - ndim:]), bool(batch)
