"""Pooling: max_pool*, avg_pool*, adaptive_avg_pool*, adaptive_max_pool*, lp_pool*, in one, two and three dimensions.

Each public function hands its arguments to one step for all dimensions. That step checks them and gives the kernel one
array (N, C, D, H, W), a view of the input, and a record of where the windows lie (``geometry.py``).
"""

from __future__ import annotations

from ... import check
from ...op import Call, operator
from .geometry import adaptive_params, output_shape, pool_params, read_input


# ------------------------------------------------------------------------------------------------ the largest
def _max_pool(ndim, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    op = f"max_pool{ndim}d"
    x, size, lead = read_input(op, ndim, input)
    params = pool_params(op, ndim, size, kernel_size, stride, padding, dilation, ceil_mode)
    return _largest(ndim, x, lead, params, return_indices)


def _largest(ndim, x, lead, params, return_indices):
    shape = output_shape(ndim, lead, params.out)
    if not return_indices:
        return Call((x,), params, shape)
    return Call((x,), params._replace(return_indices=True), shape and (shape, shape))


@operator("pool", "max_pool", "input", by_form=True)
def max_pool1d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """The largest element of each window. As :func:`torch.nn.functional.max_pool1d`; see :func:`max_pool2d`.

    input: (N, C, L) or (C, L). kernel_size, stride, padding, dilation: in elements; an integer, or a tuple of one (for
    padding also "same", "valid" or ((before, after),)). Returns (N, C, L_out) or (C, L_out); the indices count along L.

    Raises TypeError and ValueError as :func:`max_pool2d` does.
    """
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@operator("pool", "max_pool", "input", by_form=True)
def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """The largest element of each window. As :func:`torch.nn.functional.max_pool2d`, with "same" and one-sided padding.

    input: (N, C, H, W) or (C, H, W). kernel_size, stride (default: kernel_size), dilation: in elements; an integer, or
    one for each dimension. padding: how many elements of -inf stand around the input, at most half of the span of a
    window, (kernel_size - 1) * dilation + 1; an integer, one for each dimension, a pair for each dimension
    ((top, bottom), (left, right)), "valid" (none) or "same": TensorFlow's rule, H_out = ceil(H / stride), as little
    padding as that takes, the odd element after. ceil_mode: a last window may reach beyond the padding, if it starts in
    the input or the padding before it.

    Returns (N, C, H_out, W_out) or (C, H_out, W_out), H_out = (H + top + bottom - span) // stride + 1 (rounded up with
    ceil_mode). With return_indices, a pair: the same, and as int64 where each stood in the plane, as h * W + w.
    A NaN is larger than any number; of equals the first is taken, of several NaN the last. A window that meets no
    element (dilated over a small input) gives -inf and index -1. The gradient goes to the element taken.

    Raises TypeError (not float32 or float64, an argument that is not an integer) or ValueError (a wrong rank or number
    of entries, an empty dimension other than N, a kernel_size, stride or dilation below 1, a negative or too large
    padding, a window larger than the padded input).
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@operator("pool", "max_pool", "input", by_form=True)
def max_pool3d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """The largest element of each window. As :func:`torch.nn.functional.max_pool3d`; see :func:`max_pool2d`.

    input: (N, C, D, H, W) or (C, D, H, W). kernel_size, stride, padding, dilation: in elements; an integer, or one for
    each dimension (for padding also "same", "valid" or ((front, back), (top, bottom), (left, right))). Returns
    (N, C, D_out, H_out, W_out) or (C, D_out, H_out, W_out); the indices are (d * H + h) * W + w.

    Raises TypeError and ValueError as :func:`max_pool2d` does.
    """
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _adaptive_max_pool(ndim, input, output_size, return_indices):
    op = f"adaptive_max_pool{ndim}d"
    x, size, lead = read_input(op, ndim, input)
    return _largest(ndim, x, lead, adaptive_params(op, ndim, size, output_size), return_indices)


@operator("pool", "adaptive_max_pool", "input", by_form=True)
def adaptive_max_pool1d(input, output_size, return_indices=False):
    """The largest element of each of output_size windows. As :func:`torch.nn.functional.adaptive_max_pool1d`.

    input: (N, C, L) or (C, L). output_size: an integer, or a tuple of one; (None,) keeps L. See
    :func:`adaptive_max_pool2d`. Returns (N, C, output_size) or (C, output_size), with return_indices a pair.

    Raises TypeError and ValueError as :func:`adaptive_max_pool2d` does.
    """
    return _adaptive_max_pool(1, input, output_size, return_indices)


@operator("pool", "adaptive_max_pool", "input", by_form=True)
def adaptive_max_pool2d(input, output_size, return_indices=False):
    """The largest element of each of output_size windows. As :func:`torch.nn.functional.adaptive_max_pool2d`.

    input: (N, C, H, W) or (C, H, W). output_size: an integer, or one for each dimension, at least 0; None in place of
    one keeps the input's size. The windows are those of :func:`adaptive_avg_pool2d`.

    Returns (N, C, H_out, W_out) or (C, H_out, W_out); with return_indices, a pair: the same, and as int64 where each
    stood in the plane, as h * W + w. NaN, equals and the gradient are as in :func:`max_pool2d`.

    Raises TypeError (not float32 or float64, an output_size that is not an integer) or ValueError (a wrong rank or
    number of entries, an empty dimension other than N, a negative output_size).
    """
    return _adaptive_max_pool(2, input, output_size, return_indices)


@operator("pool", "adaptive_max_pool", "input", by_form=True)
def adaptive_max_pool3d(input, output_size, return_indices=False):
    """The largest element of each of output_size windows. As :func:`torch.nn.functional.adaptive_max_pool3d`.

    input: (N, C, D, H, W) or (C, D, H, W). output_size: an integer, or one for each dimension; None keeps a size. See
    :func:`adaptive_max_pool2d`. Returns (N, C, D_out, H_out, W_out) or (C, D_out, H_out, W_out), with return_indices a
    pair; the indices are (d * H + h) * W + w.

    Raises TypeError and ValueError as :func:`adaptive_max_pool2d` does.
    """
    return _adaptive_max_pool(3, input, output_size, return_indices)


# ------------------------------------------------------------------------------------------------ the mean
def _avg_pool(ndim, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override=None):
    op = f"avg_pool{ndim}d"
    x, size, lead = read_input(op, ndim, input)
    params = pool_params(op, ndim, size, kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override is not None:
        divisor_override = check.integer(op, "divisor_override", divisor_override)
        if divisor_override == 0:
            raise ValueError(f"{op}: divisor_override is 0; the rule is any other integer, or None")
    params = params._replace(count_include_pad=bool(count_include_pad), divisor_override=divisor_override)
    return Call((x,), params, output_shape(ndim, lead, params.out))


@operator("pool", "avg_pool", "input", by_form=True)
def avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    """The mean of each window. As :func:`torch.nn.functional.avg_pool1d`; see :func:`avg_pool2d`.

    input: (N, C, L) or (C, L). kernel_size, stride, padding: in elements; an integer, or a tuple of one (for padding
    also "same", "valid" or ((before, after),)). Returns (N, C, L_out) or (C, L_out).

    Raises TypeError and ValueError as :func:`avg_pool2d` does.
    """
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


@operator("pool", "avg_pool", "input", by_form=True)
def avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    """The mean of each window. As :func:`torch.nn.functional.avg_pool2d`, with "same" and one-sided padding.

    input: (N, C, H, W) or (C, H, W). kernel_size, stride (default: kernel_size): in elements; an integer, or one for
    each dimension. padding: how many zeros stand around the input, at most half of kernel_size; an integer, one for
    each dimension, a pair for each dimension ((top, bottom), (left, right)), "valid" (none) or "same": TensorFlow's
    rule, H_out = ceil(H / stride), as little padding as that takes, the odd element after. ceil_mode: a last window may
    reach beyond the padding, if it starts in the input or the padding before it.
    The sum of a window is divided by how many elements of the padded input it covers (count_include_pad), how many of
    the input (not count_include_pad), or by divisor_override. What lies beyond the padding never counts.
    (TensorFlow's own mean with "same" is count_include_pad=False.)

    Returns (N, C, H_out, W_out) or (C, H_out, W_out), H_out = (H + top + bottom - kernel_size) // stride + 1 (rounded
    up with ceil_mode).

    Raises TypeError (not float32 or float64, an argument that is not an integer) or ValueError (a wrong rank or number
    of entries, an empty dimension other than N, a kernel_size or stride below 1, a negative or too large padding, a
    window larger than the padded input, a divisor_override of 0).
    """
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@operator("pool", "avg_pool", "input", by_form=True)
def avg_pool3d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    """The mean of each window. As :func:`torch.nn.functional.avg_pool3d`; see :func:`avg_pool2d`.

    input: (N, C, D, H, W) or (C, D, H, W). kernel_size, stride, padding: in elements; an integer, or one for each
    dimension (for padding also "same", "valid" or ((front, back), (top, bottom), (left, right))). Returns
    (N, C, D_out, H_out, W_out) or (C, D_out, H_out, W_out).

    Raises TypeError and ValueError as :func:`avg_pool2d` does.
    """
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _adaptive_avg_pool(ndim, input, output_size):
    op = f"adaptive_avg_pool{ndim}d"
    x, size, lead = read_input(op, ndim, input)
    params = adaptive_params(op, ndim, size, output_size)
    return Call((x,), params, output_shape(ndim, lead, params.out))


@operator("pool", "adaptive_avg_pool", "input", by_form=True)
def adaptive_avg_pool1d(input, output_size):
    """The mean of each of output_size windows. As :func:`torch.nn.functional.adaptive_avg_pool1d`.

    input: (N, C, L) or (C, L). output_size: an integer, or a tuple of one; (None,) keeps L. See
    :func:`adaptive_avg_pool2d`. Returns (N, C, output_size) or (C, output_size).

    Raises TypeError and ValueError as :func:`adaptive_avg_pool2d` does.
    """
    return _adaptive_avg_pool(1, input, output_size)


@operator("pool", "adaptive_avg_pool", "input", by_form=True)
def adaptive_avg_pool2d(input, output_size):
    """The mean of each of output_size windows. As :func:`torch.nn.functional.adaptive_avg_pool2d`.

    input: (N, C, H, W) or (C, H, W). output_size: an integer, or one for each dimension, at least 0; None in place of
    one keeps the input's size. Cell o of H_out looks at the elements floor(o * H / H_out) to
    ceil((o + 1) * H / H_out) - 1, so windows may overlap and differ in size by one; H_out may exceed H.

    Returns (N, C, H_out, W_out) or (C, H_out, W_out).

    Raises TypeError (not float32 or float64, an output_size that is not an integer) or ValueError (a wrong rank or
    number of entries, an empty dimension other than N, a negative output_size).
    """
    return _adaptive_avg_pool(2, input, output_size)


@operator("pool", "adaptive_avg_pool", "input", by_form=True)
def adaptive_avg_pool3d(input, output_size):
    """The mean of each of output_size windows. As :func:`torch.nn.functional.adaptive_avg_pool3d`.

    input: (N, C, D, H, W) or (C, D, H, W). output_size: an integer, or one for each dimension; None keeps a size. See
    :func:`adaptive_avg_pool2d`. Returns (N, C, D_out, H_out, W_out) or (C, D_out, H_out, W_out).

    Raises TypeError and ValueError as :func:`adaptive_avg_pool2d` does.
    """
    return _adaptive_avg_pool(3, input, output_size)


# ------------------------------------------------------------------------------------------------ the norm
def _lp_pool(ndim, input, norm_type, kernel_size, stride, ceil_mode):
    op = f"lp_pool{ndim}d"
    x, size, lead = read_input(op, ndim, input)
    norm = check.number(op, "norm_type", norm_type)
    if not norm > 0:
        raise ValueError(f"{op}: norm_type is {norm}; the rule is larger than 0 (inf is allowed)")
    params = pool_params(op, ndim, size, kernel_size, stride, 0, 1, ceil_mode)._replace(norm=norm)
    return Call((x,), params, output_shape(ndim, lead, params.out))


@operator("pool", "lp_pool", "input", by_form=True)
def lp_pool1d(input, norm_type, kernel_size, stride=None, ceil_mode=False):
    """The norm of each window. As :func:`torch.nn.functional.lp_pool1d`; see :func:`lp_pool2d`.

    input: (N, C, L) or (C, L). norm_type: a number larger than 0, or inf. kernel_size, stride: in elements; an integer,
    or a tuple of one. Returns (N, C, L_out) or (C, L_out).

    Raises TypeError and ValueError as :func:`lp_pool2d` does.
    """
    return _lp_pool(1, input, norm_type, kernel_size, stride, ceil_mode)


@operator("pool", "lp_pool", "input", by_form=True)
def lp_pool2d(input, norm_type, kernel_size, stride=None, ceil_mode=False):
    """The norm of each window, (sum of x ** norm_type) ** (1 / norm_type). As :func:`torch.nn.functional.lp_pool2d`.

    input: (N, C, H, W) or (C, H, W). norm_type: a number p larger than 0, or inf for the largest absolute value.
    kernel_size, stride (default: kernel_size): in elements; an integer, or one for each dimension. ceil_mode: a last
    window may reach beyond the input, if it starts in it; its sum is scaled up to the size of a whole window.

    Returns (N, C, H_out, W_out) or (C, H_out, W_out), H_out = (H - kernel_size) // stride + 1 (rounded up with
    ceil_mode). As in torch no absolute value is taken but for inf: with an odd p, signs count, and a negative sum has
    no root but the first (NaN); with a fractional p, a negative element gives NaN. Where the sum is 0, the gradient that
    enters the window is 0 (for p below 1, an element of 0 still makes it NaN).

    Raises TypeError (not float32 or float64, an argument of a wrong type) or ValueError (a wrong rank or number of
    entries, an empty dimension other than N, a norm_type that is not above 0, a kernel_size or stride below 1, a window
    larger than the input).
    """
    return _lp_pool(2, input, norm_type, kernel_size, stride, ceil_mode)


@operator("pool", "lp_pool", "input", by_form=True)
def lp_pool3d(input, norm_type, kernel_size, stride=None, ceil_mode=False):
    """The norm of each window. As :func:`torch.nn.functional.lp_pool3d`; see :func:`lp_pool2d`.

    input: (N, C, D, H, W) or (C, D, H, W). norm_type: a number larger than 0, or inf. kernel_size, stride: in elements;
    an integer, or one for each dimension. Returns (N, C, D_out, H_out, W_out) or (C, D_out, H_out, W_out).

    Raises TypeError and ValueError as :func:`lp_pool2d` does.
    """
    return _lp_pool(3, input, norm_type, kernel_size, stride, ceil_mode)
