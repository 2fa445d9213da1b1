"""One operator on one case, forward and every gradient, on the GPU's kernels against torch in float64."""

from __future__ import annotations

import mmap

import torch
from checker import assert_close
from conftest import DEVICE

HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = [str(d).removeprefix("torch.") for d in DTYPES]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 7919 * len(shape) + sum(shape)), dtype=torch.float64)


def channels_last(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if t.ndim >= 3 else t


def strided(t):
    """The same values in a view with gaps."""
    wide = t.new_zeros([2 * n + 1 for n in t.shape])
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in t.shape)]
    view.copy_(t)
    return view


def far_apart(t, distance):
    """The rows of a matrix ``distance`` elements apart. On the CPU that memory is reserved, and only what is touched exists."""
    size = (t.shape[0] - 1) * distance + t.shape[1]
    if DEVICE == "cuda":
        wide = torch.empty(size, dtype=t.dtype, device=DEVICE)
    else:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        memory = mmap.mmap(-1, size * t.element_size(), flags=flags)
        wide = torch.frombuffer(memory, dtype=t.dtype)
    view = wide.as_strided(t.shape, (distance, 1))
    view.copy_(t)
    return view


LAYOUTS = {"contiguous": lambda t: t.contiguous(), "strided": strided, "channels_last": channels_last}


def check(op, torch_op, arrays, options=None, *, torch_options=None, kind="sum", n=1, dtype=torch.float32, layout="contiguous",
          gradients=True, grad_kind=None):
    """arrays: float64 tensors, integer tensors, None, or tuples of them, in the operator's order. Answers our output."""
    options = options or {}
    lay = LAYOUTS[layout]

    def nest(f, v):
        if isinstance(v, (tuple, list)):
            return type(v)(nest(f, e) for e in v)
        return f(v) if isinstance(v, torch.Tensor) else v

    def given(t):
        t = lay(t.to(dtype)) if t.is_floating_point() else t
        return t.to(DEVICE).detach().requires_grad_(t.is_floating_point() and gradients)

    ours = nest(given, list(arrays))
    theirs = nest(lambda t: t.detach().cpu().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t.cpu(), ours)
    before = nest(lambda t: t.detach().clone(), ours)
    y = op(*ours, **options)
    want = torch_op(*theirs, **(options if torch_options is None else torch_options))
    outs, wants = (v if isinstance(v, (tuple, list)) else (v,) for v in (y, want))
    assert len(outs) == len(wants)
    half = HALVES.get(dtype)

    def close(got, wanted, what, kind, n):
        assert got.dtype == dtype, f"{what}: {got.dtype}"
        assert_close(got.detach().cpu().float().numpy(), wanted.detach().numpy(), kind, n, what, half)

    seeds, pairs = [], []
    for i, (g, w) in enumerate(zip(outs, wants, strict=True)):
        if w.is_floating_point():
            close(g, w, f"output {i}", kind, n)
            if g.requires_grad:
                seed = randn(*w.shape, seed=i + 1).to(dtype)
                pairs.append(g)
                seeds.append((seed, w))
        else:
            assert torch.equal(g.cpu(), w), f"output {i}"
    if gradients and pairs:
        torch.autograd.backward(pairs, [lay(s).to(DEVICE) if s.ndim >= 3 else s.to(DEVICE) for s, _ in seeds])
        torch.autograd.backward([w for _, w in seeds], [s.double() for s, _ in seeds])
        for i, (g, w) in enumerate(zip(_leaves(ours), _leaves(theirs), strict=True)):
            if isinstance(w, torch.Tensor) and w.requires_grad:
                if w.grad is None:
                    assert g.grad is None or not g.grad.any(), f"gradient {i}"
                    continue
                assert g.grad is not None, f"gradient {i} is missing"
                longest = max(n, max(o.numel() for o in wants) * n // max(1, w.numel()), 1)
                close(g.grad, w.grad, f"gradient {i}", grad_kind or kind, longest)
    for a, b in zip(_leaves(ours), _leaves(before), strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a.detach().nan_to_num(), b.nan_to_num()), "an input was written to"
    return y


def _leaves(values):
    flat = []
    for v in values:
        flat.extend(v) if isinstance(v, (tuple, list)) else flat.append(v)
    return flat
