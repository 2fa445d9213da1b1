"""Which way a matrix product takes on a GPU, and its launch."""

from __future__ import annotations

import math

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from ...gpu import configs, device
from ...gpu.device import precision
from ...gpu.launch import cdiv, launch
from ..activation import Activation
from .triton_kernels import add_splits, product, product_by_tiles


def gemm(a, b, *, bias=None, activation: Activation | None = None, residual=None, alpha=1.0, beta=1.0, keep=False, dtype=None,
         scales=None, tf32=None):
    """(y, z) with z = alpha * scale * (a @ b) + bias + beta * residual and y = activation(z); z is None unless ``keep``.

    a: (..., m, k). b: (..., k, n), of the same leading sizes (strides of 0 stand for broadcasting). Any strides.
    residual: broadcast to (m, n), for a product without leading sizes. scales: (m,) and (n,) float32 factors of a's rows and
    b's columns. dtype: the answer's, a's where not given. tf32: whether float32 may be rounded so; None asks torch.
    """
    where = device.of(a)
    lead, (m, k), n = a.shape[:-2], a.shape[-2:], b.shape[-1]
    y = torch.empty((*lead, m, n), dtype=dtype or a.dtype, device=a.device)
    z = torch.empty_like(y) if keep else None
    if y.numel() == 0:
        return y, z
    name, slope = ("none", 0.0) if activation is None else activation
    sizes = dict(m=m, n=n, k=k, bytes=a.element_size())
    options = dict(ACT=name, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, HAS_SCALES=scales is not None, KEEP=keep)
    rest = (bias if bias is None else bias.contiguous(), residual, *(scales or (None, None)))
    srm, srn = (0, 0) if residual is None else residual.stride()
    numbers = (srm, srn, float(alpha), float(beta), float(slope))
    accuracy = precision(a, where, tf32)

    if not lead and (layout := _tiles_layout(a, b, y, where)):
        config = configs.pick("product_by_tiles", where, **sizes, tiles=cdiv(m, 128) * cdiv(n, 128))
        if config.get("use", 1):
            _by_tiles(a, b, y, z, rest, (m, n, k, *numbers), layout, options | {"PRECISION": accuracy}, config, where)
            return y, z

    items = math.prod(lead)
    config = dict(configs.pick("product", where, **sizes, batch=items))
    splits = _splits(config.pop("MAX_SPLITS", 1), m, n, k, items, config, where)
    chunk = cdiv(cdiv(k, config["BK"]), splits) * config["BK"] if k else config["BK"]
    splits = max(1, cdiv(k, chunk))
    tiles = cdiv(m, config["BM"]) * cdiv(n, config["BN"]) * items
    (outer_a, inner_a), (outer_b, inner_b), inner = _batch_strides(a, b, lead)
    if inner is None:
        return gemm(a.contiguous(), b.contiguous(), bias=bias, activation=activation, alpha=alpha, keep=keep, dtype=dtype, tf32=tf32)
    target = y if splits == 1 else torch.empty((splits, items * m, n), dtype=torch.float32, device=a.device)
    launch(product, (tiles * splits,), a, a, b, target, z, *rest, m, n, k, inner, outer_a, inner_a, *a.stride()[-2:], outer_b, inner_b,
           *b.stride()[-2:], items * m * n, m * n, n, 1, *numbers, chunk, tiles, EVEN_K=k % config["BK"] == 0,
           PRECISION=accuracy, PARTIAL=splits > 1, **(options if splits == 1 else _BARE), **config)
    if splits > 1:
        block = configs.pick("add_splits", where)
        launch(add_splits, (cdiv(items * m, block["BM"]), cdiv(n, block["BN"])), a, target, y, z, *rest, items * m, m, n, items * m * n, n,
               *numbers, SPLITS=splits, **options, **block)
    return y, z


_BARE = dict(ACT="none", HAS_BIAS=False, HAS_RESIDUAL=False, HAS_SCALES=False, KEEP=False)


def _splits(most, m, n, k, items, config, where):
    """Into how many parts the reduction is cut: so many that every multiprocessor has two tiles, none shorter than four steps."""
    tiles = cdiv(m, config["BM"]) * cdiv(n, config["BN"]) * items
    return max(1, min(most, 2 * where.multiprocessors // tiles, k // (4 * config["BK"])))


def _batch_strides(a, b, lead):
    """Strides (outer, inner) over the leading sizes, merged into two, for a and for b, and the inner size; None where they do not merge."""
    if not lead:
        return (0, 0), (0, 0), 1
    strides = a.stride()[:-2], b.stride()[:-2]
    for cut in range(len(lead)):
        merged = [[_merge(lead[part], s[part]) for part in (slice(0, cut), slice(cut, None))] for s in strides]
        if all(step is not None for pair in merged for step in pair):
            return *merged, math.prod(lead[cut:])
    return (0, 0), (0, 0), None


def _merge(sizes, strides):
    """The one stride of several dimensions walked as one, None where there is none."""
    dimensions = [(n, s) for n, s in zip(sizes, strides, strict=True) if n != 1]
    if not dimensions:
        return 0
    for (_, outer), (n, inner) in zip(dimensions, dimensions[1:], strict=False):
        if outer != n * inner:
            return None
    return dimensions[-1][1]


# ------------------------------------------------------------------------------------------------ by the copy engine
def _tiles_layout(a, b, y, where):
    """(a's memory is its transpose's, b's is not) where the copy engine can read both and write y, else None."""
    if not where.tensor_memory_access or 0 in a.shape or 0 in b.shape or not _described(y, False):
        return None
    by_columns, by_rows = a.stride(1) != 1, b.stride(1) == 1 and b.stride(0) != 1
    if a.element_size() != 2 and (by_columns or by_rows):  # the matrix unit turns 16-bit operands only
        return None
    return (by_columns, by_rows) if _described(a, by_columns) and _described(b, not by_rows) else None


def _described(t, transposed):
    """Whether a descriptor can say where this matrix (or its transpose) lies: rows of 16-byte multiples, elements side by side."""
    outer, inner = t.stride()[::-1] if transposed else t.stride()
    size = t.element_size()
    aligned = t.data_ptr() % 16 == 0 if t.device.type != "meta" else t.storage_offset() * size % 16 == 0
    return inner == 1 and outer * size % 16 == 0 and outer >= (t.shape[0] if transposed else t.shape[1]) and aligned


def _by_tiles(a, b, y, z, rest, numbers, layout, options, config, where):
    by_columns, by_rows = layout
    config = {name: value for name, value in config.items() if name != "use"}
    bm, bn, bk = config["BM"], config["BN"], config["BK"]
    stored = [bm, bn // 2 if config["HALVES"] else bn]
    a = TensorDescriptor.from_tensor(a.mT if by_columns else a, [bk, bm] if by_columns else [bm, bk])
    b_at = TensorDescriptor.from_tensor(b if by_rows else b.mT, [bk, bn] if by_rows else [bn, bk])
    programs = min(where.multiprocessors * config.pop("PROGRAMS", 1), cdiv(numbers[0], bm) * cdiv(numbers[1], bn))
    c = TensorDescriptor.from_tensor(y, stored)
    launch(product_by_tiles, (programs,), y, a, b_at, c, c if z is None else TensorDescriptor.from_tensor(z, stored), *rest, *numbers,
           programs, A_BY_COLUMNS=by_columns, B_BY_ROWS=by_rows, **options, **config)
