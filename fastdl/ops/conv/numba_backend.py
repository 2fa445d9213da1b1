"""Convolution on the CPU: which algorithm a call takes."""

from __future__ import annotations

import math

from ...cpu import parallel
from ...packing import is_packed
from ..activation import activate, needs_input
from ..layout import empty_like_layout, is_channels_last
from ..numba_activation import code_of
from ..numba_sums import channel_sums
from ..pointwise.numba_backend import activation_gradient
from ..pool import numba_backend as pool_backend
from . import choice, numba_pooled, pooled
from .numba_columns import planned as columns
from .numba_columns import serves as serves_columns
from .numba_depthwise_plan import image_kernel, serves_channels
from .numba_depthwise_plan import planned_channels as channels
from .numba_depthwise_plan import planned_image as image
from .numba_depthwise_plan import planned_image_spread as image_spread
from .numba_depthwise_plan import planned_spread as spread
from .numba_depthwise_plan import weight_gradient as depthwise_weight_gradient
from .numba_lines_plan import pays as lines_pay
from .numba_lines_plan import planned as lines
from .numba_lines_plan import serves as serves_lines
from .numba_pixels_plan import forward_plan, transposed_plan
from .numba_pixels_plan import planned as pixels
from .numba_pixels_plan import weight_gradient as pixels_weight_gradient
from .numba_planes_plan import Plan, serves_few, weights_from
from .numba_planes_plan import planned as planes
from .numba_planes_plan import planned_groups as small_groups
from .numba_planes_plan import small_groups as are_small_groups
from .numba_pointwise import planned as pointwise
from .numba_pointwise import planned_product as product
from .numba_pointwise import planned_transposed_product as transposed_product
from .numba_winograd_gradient_plan import weight_gradient as winograd_weight_gradient
from .numba_winograd_plan import can_pool
from .numba_winograd_plan import planned as winograd

POINTWISE_WORK = 1 << 17  # multiply-adds of an image, from which a product for each costs no more than one pass over all
FEW_PIXELS, LARGE_WEIGHT = 64, 1 << 18  # of an image, and elements: laying out such a weight at each call costs more than the pixels
FEW = 4  # outputs; with fewer, tiles of kernel cells beat tiles of outputs


# Which algorithm a call takes, and all that it needs but the values in its arrays, depends on these values' places only: it is worked out
# once for each form of a call, and a further call costs a look at this table.
_plans: dict = {}
MOST_PLANS = 4096


def _run(plan, x, w, bias, params, shape, last):
    """The answer of the algorithm that ``plan(x, w, params, shape, last, team)`` chooses: an array of ``shape``, channels-last if last."""
    team = parallel.team()
    key = (plan, x.shape, x.strides, x.dtype.char, w.shape, is_packed(w), params, shape, last, team)
    run = _plans.get(key)
    if run is None:
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        run = _plans[key] = plan(x, w, params, shape, last, team)
    return run(x, w, bias)


def conv(arrays, params, train):
    x, w, bias = arrays
    return _activated(_run(_convolution, x, w, bias, params, (x.shape[0], w.shape[0], *params.out), is_channels_last(x)), params, train)


def conv_bound(arrays, params):
    """See op.py."""
    x, w, bias = arrays
    return _bound(_convolution, x, w, bias, params, (x.shape[0], w.shape[0], *params.out), params.activation)


def conv_transpose_bound(arrays, params):
    """See op.py."""
    x, w, bias = arrays
    return _bound(_transposed, x, w, bias, params, (x.shape[0], w.shape[1] * params.groups, *params.out), params.activation)


def conv_max_pool_bound(arrays, params):
    """See op.py."""
    x, w, bias = arrays
    return _bound(_pooled_convolution, x, w, bias, params, (x.shape[0], w.shape[0], *params.pool.out), params.conv.activation)


def _bound(plan, x, w, bias, params, shape, activation):
    if activation is not None and code_of(activation) is None:
        return None
    last, runs = is_channels_last(x), {}

    def run(x, w, bias):
        team = parallel.team()
        way = runs.get(team)
        if way is None:
            way = runs[team] = plan(x, w, params, shape, last, team)
        return way(x, w, bias)

    return run


def _pick(algorithm, ways):
    """``run`` of the algorithm asked for by name, if it can serve; else of the first that is meant for such a call.

    ways: (name, whether it is meant for such a call, a function that answers its ``run``, or None where it cannot serve).
    """
    for name, _, plan in ways:
        if name == algorithm and (run := plan()) is not None:
            return run
    for _, meant, plan in ways:
        if meant and (run := plan()) is not None:
            return run


def _convolution(x, w, params, shape, last, team):
    act, before, some = params.activation, (params.padding[1][0], params.padding[2][0]), x.size > 0

    def gemm():
        if some and _is_product(x, w, params):
            return product(shape, act)
        return pointwise(x, w, params.stride, shape, act, team) if some and _is_one_by_one(w, params) else None

    def along_lines():
        return lines(x, w, before, shape, act, team) if serves_lines(x, w, params) else None

    def groups():
        return small_groups(x, w, params, shape, act, last, team) if some else None

    def depthwise():
        if serves_channels(x, w, params):
            return channels(x, w, before, params.stride[1:], params.dilation[1:], shape, act, team)
        kernel = image_kernel(x, w, params)
        return None if kernel is None else image(kernel, x, w, before, params.stride[2], shape, act, team)

    return _pick(params.algorithm, (
        ("lines", params.algorithm == "auto" and lines_pay(x, w, params), along_lines),
        ("winograd", params.algorithm == "auto", lambda: _planned_winograd(x, w, params, shape, False, act, last, team)),
        ("gemm", _is_product(x, w, params) or _is_pointwise(x, w, params), gemm),
        ("groups", serves_few(x, w, params), groups),
        ("depthwise", True, depthwise),
        ("groups", are_small_groups(x.shape[1], w.shape[0], params.groups), groups),
        ("pixels", True, lambda: pixels(forward_plan(x.shape[1], w.shape, params, params.out[1:]), x, w, False, shape, act, last, team)
         if _is_flat(x, w, params) else None),
        ("planes", True, lambda: planes(Plan.forward(x.shape, w.shape, params), x, w, shape, params.groups, act, last, team)),
    ))


def _pooled_convolution(x, w, params, shape, last, team):
    """The convolution and its 2 x 2 max-pool, of ``shape``: by one kernel, or one after the other."""
    conv, size = params.conv, shape[3:]
    act, before, whole = conv.activation, (conv.padding[1][0], conv.padding[2][0]), (*shape[:2], *conv.out)
    if code_of(act) is not None and x.size > 0:
        if (conv.algorithm == "lines" or (conv.algorithm == "auto" and lines_pay(x, w, conv))) and serves_lines(x, w, conv):
            return lines(x, w, before, shape, act, team, pooled=True)
        form = _winograd(x, w, conv, whole, False)
        if form is not None and can_pool(form) and min(size) > 0:
            return winograd(form, x, before, shape, act, last, team, pooled=True)
    convolve = _convolution(x, w, conv, whole, last, team)

    def run(x, w, bias):
        y = _activated(convolve(x, w, bias), conv, False)[0]
        return pool_backend.max_pool((y,), params.pool, False)[0]

    return run


def _planned_winograd(x, w, params, shape, transposed, act, last, team):
    form = _winograd(x, w, params, shape, transposed)
    return None if form is None else winograd(form, x, (params.padding[1][0], params.padding[2][0]), shape, act, last, team)


def _winograd(x, w, params, shape, transposed):
    """The form of Winograd's algorithm for a result of ``shape`` from x, or None."""
    if not x.size:
        return None
    positions = math.prod((x.shape if transposed else shape)[3:])
    return choice.winograd(w.shape, params, x.dtype, shape[0], shape[3:], positions, is_packed(w), transposed)


def _is_one_by_one(w, params):
    return params.groups == 1 and math.prod(w.shape[2:]) == 1 and not any(map(any, params.padding))


def _is_pointwise(x, w, params):
    """1 x 1 without padding, and images large enough to be a product each, or in one."""
    if not _is_one_by_one(w, params):
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
    return dx, dw, channel_sums(dz) if needs[2] else None


def _data_gradient(x, w, dz, params):
    return _run(_convolution_gradient, dz, w, None, params, x.shape, is_channels_last(x))


def _convolution_gradient(dz, w, params, shape, last, team):
    """dx of ``shape`` from dz."""
    after = tuple((w.shape[d + 2] - 1) * params.dilation[d] - params.padding[d][0] for d in (1, 2))

    def depthwise():
        if dz.size and serves_channels(dz, w, params) and last and params.stride == (1, 1, 1):
            return channels(dz, w, after, (1, 1), params.dilation[1:], shape, None, team, flipped=True)
        if w.shape[0] == shape[1] and params.stride == (1, 1, 1) and not last and (kernel := image_kernel(dz, w, params)) is not None:
            return image(kernel, dz, w, after, 1, shape, None, team, flipped=True)
        if last:
            return spread(dz, w, params, shape, team) if serves_channels(dz, w, params) else None
        return image_spread(dz, w, params, shape, team)

    *others, any_call = _transposed_ways(dz, w, params, shape, None, last, team)
    return _pick(params.algorithm, (*others, ("depthwise", True, depthwise), any_call))


def _transposed_ways(x, w, params, shape, act, last, team):
    """What makes a transposed convolution's answer, and a convolution's data gradient."""
    flat = _is_flat(x, w, params)
    return (
        ("winograd", params.algorithm == "auto", lambda: _planned_winograd(x, w, params, shape, True, act, last, team)),
        ("columns", w.shape[1] < FEW, lambda: columns(x, w, params, shape, act, last, team)
         if flat and serves_columns(w.shape, params, x.shape[4]) else None),
        ("pixels", w.shape[1] >= FEW, lambda: pixels(transposed_plan(x.shape[1], w.shape, params, shape[3:]), x, w, True, shape, act, last,
                                                     team) if flat else None),
        ("planes", True, lambda: planes(Plan.transposed(x.shape, w.shape, params, shape), x, w, shape, params.groups, act, last, team)),
    )


def conv_transpose(arrays, params, train):
    x, w, bias = arrays
    shape = (x.shape[0], w.shape[1] * params.groups, *params.out)
    return _activated(_run(_transposed, x, w, bias, params, shape, is_channels_last(x)), params, train)


def _transposed(x, w, params, shape, last, team):
    act = params.activation
    is_product = bool(x.size) and _is_transposed_product(x, w, params)
    ways = (("gemm", is_product, lambda: transposed_product(shape, act) if is_product else None),
            *_transposed_ways(x, w, params, shape, act, last, team))
    return _pick(params.algorithm, ways)


def conv_transpose_backward(grad, arrays, saved, params, needs):
    x, w, bias = arrays
    dz = activation_gradient(params.activation, grad, *saved)
    dx = dw = None
    if needs[0]:
        dx = _run(_transposed_gradient, dz, w, None, params, x.shape, is_channels_last(x))
    if needs[1]:
        dw = _weight_gradient(dz, x, w, params)
    return dx, dw, channel_sums(dz) if needs[2] else None


def _transposed_gradient(dz, w, params, shape, last, team):
    """dx of ``shape`` from dz."""
    return _pick(params.algorithm, (
        ("winograd", params.algorithm == "auto", lambda: _planned_winograd(dz, w, params, shape, False, None, last, team)),
        ("pixels", True, lambda: pixels(forward_plan(dz.shape[1], w.shape, params, shape[3:]), dz, w, False, shape, None, last, team)
         if _is_flat(dz, w, params) else None),
        ("planes", True, lambda: planes(Plan.forward(dz.shape, w.shape, params, shape[2:]), dz, w, shape, params.groups, None, last, team)),
    ))


def _weight_gradient(x, dz, w, params):
    if x.size and dz.size and (form := choice.winograd_gradient(w.shape, params, x.dtype, dz.shape[3:])) is not None:
        return winograd_weight_gradient(form, x, dz, w, (params.padding[1][0], params.padding[2][0]))
    if _is_flat(x, w, params) and dz.size and params.algorithm != "planes":
        return pixels_weight_gradient(forward_plan(x.shape[1], w.shape, params, dz.shape[3:]), x, dz, w)
    if params.algorithm not in ("groups", "planes") and (dw := depthwise_weight_gradient(x, dz, w, params)) is not None:
        return dw
    return weights_from(x, dz, w, params)


def _activated(z, params, train):
    """(y, saved) of an algorithm's answer z, which has the activation where the kernels have it."""
    act, y = params.activation, z
    if act is not None and code_of(act) is None:
        y = empty_like_layout(z.shape, z.dtype, z)
        y[...] = activate(act, z)
    return y, (y, z if needs_input(act) else None) if train else None


def conv_max_pool(arrays, params, train):
    if train and numba_pooled.keeps_maxima(params):
        return numba_pooled.forward(conv, arrays, params)
    if not train:
        x, w, bias = arrays
        return _run(_pooled_convolution, x, w, bias, params, (x.shape[0], w.shape[0], *params.pool.out), is_channels_last(x)), None
    return pooled.forward(conv, pool_backend.max_pool, arrays, params, train)


def conv_max_pool_backward(grad, arrays, saved, params, needs):
    if not numba_pooled.keeps_maxima(params):
        return pooled.backward(conv_backward, pool_backend.max_pool_backward, grad, arrays, saved, params, needs)
    x, w, bias = arrays
    dz, dw, db = numba_pooled.gradient(grad, x, w, saved, params, needs)
    dx = _data_gradient(x, w, dz, params.conv) if needs[0] else None
    if needs[1] and dw is None:
        dw = _weight_gradient(x, dz, w, params.conv)
    return dx, dw, db
