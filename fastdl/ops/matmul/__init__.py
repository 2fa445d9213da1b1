"""Matrix products: matmul, bmm, addmm, linear."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ... import check
from ...op import Call, operator
from ..activation import Activation, check_activation


class MatmulParams(NamedTuple):
    precision: str  # "fp8"


class LinearParams(NamedTuple):
    activation: Activation | None
    precision: str | None = None


class AddmmParams(NamedTuple):
    beta: float
    alpha: float


@operator("matmul", "matmul", "input other")
def matmul(input, other, *, precision=None):
    """The matrix product of two arrays, by :func:`torch.matmul`'s rules.

    input: (..., m, k) or (k,). other: (..., k, n) or (k,). The leading dimensions broadcast. A one-dimensional operand
    is taken as a row (first) or a column (second) and its dimension is dropped from the result.
    precision: None, or "fp8", for tensors on a GPU: each row of input and each column of other is scaled to the range of
    8-bit floats (e4m3) and rounded; sums are float32, gradients as without it. Two matrices.
    Returns (..., m, n).

    Raises TypeError (not float32 or float64, two dtypes) or ValueError (a rank of 0, sizes that do not fit, a precision that
    cannot be had).
    """
    a, b = check.floats("matmul", ("input", "other"), (input, other))
    if precision is not None:
        _check_precision("matmul", precision, a)
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            _refuse(a, b, "(m, k) and (k, n) with precision='fp8'")
        return Call((a, b), MatmulParams(precision))
    of_a, of_b = a.shape, b.shape
    if len(of_a) == 2 == len(of_b):
        if of_a[1] != of_b[0]:
            _refuse(a, b, "the last size of input equals the last but one of other")
        return (a, b), None, None
    if a.ndim == 0 or b.ndim == 0:
        _refuse(a, b, "at least one dimension each")
    rows, columns = a, b
    if a.ndim == 1:
        rows = a[None, :]
    if b.ndim == 1:
        columns = b[:, None]
    if rows.shape[-1] != columns.shape[-2]:
        _refuse(a, b, "the last size of input equals the last but one of other")
    lead = rows.shape[:-2]
    if lead != columns.shape[:-2]:
        try:
            lead = np.broadcast_shapes(lead, columns.shape[:-2])
        except ValueError:
            _refuse(a, b, "the leading dimensions broadcast")
    shape = lead + (a.shape[-2:-1] if a.ndim > 1 else ()) + (b.shape[-1:] if b.ndim > 1 else ())
    return Call((rows, columns), None, shape)


def _refuse(a, b, rule):
    raise ValueError(f"matmul: input has shape {a.shape}, other has {b.shape}; the rule is: {rule}")


def _check_precision(op, precision, x):
    check.choice(op, "precision", precision, ("fp8", None))
    if precision is not None and not check.on_device(x):
        raise ValueError(f"{op}: precision is {precision!r}, input is on the CPU; the rule is None there")


@operator("matmul", "matmul", "input mat2", by_form=True)
def bmm(input, mat2):
    """A batch of matrix products: (b, m, k) by (b, k, n) is (b, m, n). As :func:`torch.bmm`.

    Raises TypeError (not float32 or float64, two dtypes) or ValueError (a rank other than 3, sizes that do not fit).
    """
    a = check.array("bmm", "input", input, 3)
    b = check.array("bmm", "mat2", mat2, 3)
    check.same_dtype("bmm", "mat2", b, "input", a)
    if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise ValueError(f"bmm: input has shape {a.shape}, mat2 has {b.shape}; the rule is (b, m, k) and (b, k, n)")
    return Call((a, b), None)


@operator("matmul", "addmm", "input mat1 mat2", by_form=True)
def addmm(input, mat1, mat2, *, beta=1, alpha=1):
    """``beta * input + alpha * (mat1 @ mat2)``, added as the product is stored. As :func:`torch.addmm`.

    mat1: (m, k). mat2: (k, n). input: broadcasts to (m, n). Where beta is 0, input is not read: NaN in it does not spread.
    Returns (m, n).

    Raises TypeError (not float32 or float64, two dtypes, beta or alpha no number) or ValueError (a rank other than 2, sizes
    that do not fit).
    """
    x = check.array("addmm", "input", input, (0, 1, 2))
    a = check.array("addmm", "mat1", mat1, 2)
    b = check.array("addmm", "mat2", mat2, 2)
    check.same_dtype("addmm", "mat1", a, "input", x)
    check.same_dtype("addmm", "mat2", b, "input", x)
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"addmm: mat1 has shape {a.shape}, mat2 has {b.shape}; the rule is (m, k) and (k, n)")
    shape = (a.shape[0], b.shape[1])
    if any(size not in (1, whole) for size, whole in zip(x.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"addmm: input has shape {x.shape}; the rule is one that broadcasts to {shape}")
    return Call((x, a, b), AddmmParams(check.number("addmm", "beta", beta), check.number("addmm", "alpha", alpha)))


@operator("matmul", "linear", "input weight bias", by_form=True)
def linear(input, weight, bias=None, *, activation=None, precision=None):
    """``activation(input @ weight.T + bias)``. As :func:`torch.nn.functional.linear`, with a fused activation.

    input: (..., in). weight: (out, in) or (in,). bias: (out,) or None. activation: None, "relu", "leaky_relu", "elu",
    "gelu", "sigmoid", "tanh", "softplus", or ("leaky_relu", slope), ("elu", alpha). precision: as of :func:`matmul`.
    Returns (..., out).

    Raises TypeError (not float32 or float64, two dtypes) or ValueError (a wrong rank, sizes that do not fit, an unknown
    activation, a precision that cannot be had).
    """
    x = check.array("linear", "input", input)
    w = check.array("linear", "weight", weight, (1, 2))
    check.same_dtype("linear", "weight", w, "input", x)
    if x.ndim == 0 or x.shape[-1] != w.shape[-1]:
        raise ValueError(f"linear: input has shape {x.shape}, weight has {w.shape}; the rule is (..., in) and (out, in)")
    lead, out = x.shape[:-1], w.shape[:-1]
    if w.ndim == 1:
        w = w[None, :]
    if bias is not None:
        b = check.array("linear", "bias", bias, len(out))
        check.same_dtype("linear", "bias", b, "input", x)
        if b.shape != out:
            raise ValueError(f"linear: bias has shape {b.shape}, weight has {weight.shape}; the rule is {out}")
        bias = b.reshape(w.shape[0])
    act = None if activation is None else check_activation("linear", activation)
    if precision is not None:
        _check_precision("linear", precision, x)
    if x.ndim == 2 and len(out) == 1:
        return Call((x, w, bias), LinearParams(act, precision))
    return Call((x.reshape(int(np.prod(lead)), x.shape[-1]), w, bias), LinearParams(act, precision), lead + out)
