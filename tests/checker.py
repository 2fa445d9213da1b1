"""Comparing operators with float64 torch, elementwise and by norm, in every backend, layout and dtype."""

from __future__ import annotations

import numpy as np
from tolerances import bounds

import fastdl


def assert_close(got, want, kind: str, n: int = 1, what: str = "", dtype=None) -> None:
    """got (float32 or float64) against want (float64): shape, NaN and infinity in the same places, both error bounds.

    dtype: "float16" or "bfloat16" where got holds such values (numpy has no bfloat16)."""
    got, want = np.asarray(got), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    assert got.dtype.kind == "f", f"{what}: dtype {got.dtype}"
    if not want.size:
        return
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=f"{what}: NaN in other places")
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite].astype(got.dtype), err_msg=f"{what}: infinities")
    g, w = got[finite].astype(np.float64), want[finite]
    if not w.size:
        return
    norm_bound, element_bound = bounds(kind, dtype or got.dtype, n)
    error = np.abs(g - w)
    assert np.isfinite(g).all(), f"{what}: not finite where the reference is"
    size = np.linalg.norm(w)
    assert np.linalg.norm(error) <= norm_bound * size, (
        f"{what}: relative error by norm {np.linalg.norm(error) / (size or 1):.2e}, bound {norm_bound:.2e}")
    allowed = element_bound * np.maximum(np.sqrt(np.mean(w * w)), np.abs(w))
    worst = int(np.argmax(error - allowed))
    assert (error <= allowed).all(), (
        f"{what}: element {worst} is {g[worst]!r}, expected {w[worst]!r}; error {error[worst]:.2e}, bound {allowed[worst]:.2e}")


def channels_last(a):
    """The same values, the channel (second) axis fastest in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


def strided(a):
    """The same values in a view with gaps, a negative stride and no write permission."""
    a = np.asarray(a)
    if a.ndim == 0:
        return a
    wide = np.full([2 * n + 1 for n in a.shape], np.nan, a.dtype)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in a.shape)]
    view = view[(slice(None, None, -1),) + (slice(None),) * (a.ndim - 1)]
    view[...] = a
    view.flags.writeable = False
    return view


LAYOUTS = {"contiguous": lambda a: np.asarray(a, order="C"), "strided": strided,
           "channels_last": lambda a: channels_last(a) if a.ndim in (3, 4, 5) else a}


def check(op, torch_op, arrays, options=None, *, torch_options=None, kind="sum", n=1, backend=None, dtype="f4", layout="contiguous",
          gradients=True, seed=0):
    """One operator on one case, forward and every gradient, against torch in float64.

    arrays: the positional arguments as numpy float64 (None, integer arrays and flat tuples/lists of arrays allowed);
    torch_op takes the same as torch float64 tensors and torch_options (default: options) and returns a tensor or a tuple.
    """
    import torch

    options = options or {}
    lay = LAYOUTS[layout]

    def nest(f, v):
        if isinstance(v, (tuple, list)):
            return type(v)(nest(f, e) for e in v)
        return f(v) if isinstance(v, np.ndarray) else v

    # float32 operands, rounded once: both sides see the same numbers
    ours = nest(lambda a: lay(a.astype(dtype)) if a.dtype.kind == "f" else a, list(arrays))
    theirs = nest(lambda a: torch.tensor(a.astype("f8", order="C"), requires_grad=True) if a.dtype.kind == "f" else torch.tensor(a), ours)
    before = nest(np.copy, ours)
    with fastdl.use_backend(backend):
        y = op(*ours, **options)
        y2, pullback = fastdl.vjp(op, *ours, **options) if gradients else (y, None)
    want = torch_op(*theirs, **(options if torch_options is None else torch_options))
    outs, outs2, wants = (v if isinstance(v, (tuple, list)) else (v,) for v in (y, y2, want))
    assert len(outs) == len(wants)
    rng = np.random.default_rng(seed)
    seeds = []
    for i, (g, g2, w) in enumerate(zip(outs, outs2, wants, strict=True)):
        if w.dtype.is_floating_point:
            assert_close(g, w.detach().numpy(), kind, n, f"output {i}")
            assert_close(g2, w.detach().numpy(), kind, n, f"output {i} of vjp")
            assert g.dtype == np.dtype(dtype)
            seeds.append(np.asarray(rng.standard_normal(w.shape)).astype(dtype))
        else:
            np.testing.assert_array_equal(g, w.numpy())
            seeds.append(None)
    if gradients:
        total = sum((w * torch.tensor(s.astype("f8"))).sum() for w, s in zip(wants, seeds, strict=True) if s is not None)
        if total.requires_grad:
            total.backward()
        grads = pullback(tuple(seeds) if isinstance(y, tuple) else seeds[0])
        for i, (g, w) in enumerate(zip(_leaves(grads), _leaves(theirs, torch.Tensor), strict=True)):
            if isinstance(w, torch.Tensor) and w.requires_grad:
                assert g is not None, f"gradient {i} is missing"
                expected = np.zeros(w.shape) if w.grad is None else w.grad.numpy()
                assert_close(g, expected, kind, _gradient_length(n, w, wants), f"gradient {i}")
                assert g.dtype == np.dtype(dtype)
            else:
                assert g is None, f"gradient {i} is not None"
    for a, b in zip(_leaves(ours), _leaves(before), strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg="an input was written to")
    return y


def _gradient_length(n, w, outputs):
    """A gradient's reduction is at most as long as the outputs are many, per element of the operand."""
    return max(n, max(o.numel() for o in outputs) * max(1, n) // max(1, w.numel()), 1)


def _leaves(values, keep=object):
    flat = []
    for v in values:
        flat.extend(v) if isinstance(v, (tuple, list)) else flat.append(v)
    return [v for v in flat if v is None or isinstance(v, keep) or keep is object]
