"""What ``python -m bench.gpu`` times: an operator beside torch's, on random data of the device.

``cases(tiny=True)`` are the same at sizes that Triton's interpreter can do; ``on`` says on which device their data are made ("meta":
to see what they launch).
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as TF

import fastdl.functional as F

HALF, BFLOAT, SINGLE = torch.float16, torch.bfloat16, torch.float32
LAST = torch.channels_last


class Case(NamedTuple):
    group: str  # of which a geometric mean is taken
    name: str
    make: Any  # () -> (ours, theirs, reference, work): calls, one in float64 or None, and {"flops": n} or {"bytes": n}


_device = "cuda"


@contextlib.contextmanager
def on(device: str):
    global _device
    before, _device = _device, device
    try:
        yield
    finally:
        _device = before


def randn(*shape, dtype=BFLOAT, scale=1.0, grad=False, last=False):
    t = torch.randn(shape, device=_device, dtype=SINGLE).mul_(scale).to(dtype)
    return (t.to(memory_format=LAST) if last else t).requires_grad_(grad)


def _matmul(m, n, k, dtype):
    def make():
        a, b = randn(m, k, dtype=dtype), randn(n, k, dtype=dtype).mT
        return lambda: F.matmul(a, b), lambda: a @ b, lambda: a.double() @ b.double(), {"flops": 2 * m * n * k}
    return make


def _linear(m, n, k, dtype, activation):
    def make():
        x, w, b = randn(m, k, dtype=dtype), randn(n, k, dtype=dtype, scale=k**-0.5), randn(n, dtype=dtype)
        act = getattr(TF, activation)
        return (lambda: F.linear(x, w, b, activation=activation), lambda: act(TF.linear(x, w, b)),
                lambda: act(TF.linear(x.double(), w.double(), b.double())), {"flops": 2 * m * n * k})
    return make


# ResNet-50's distinct convolutions: input channels, outputs, input size, kernel, stride
RESNET = [(3, 64, 224, 7, 2), (64, 64, 56, 1, 1), (64, 64, 56, 3, 1), (64, 256, 56, 1, 1), (256, 64, 56, 1, 1), (256, 128, 56, 1, 1),
          (128, 128, 56, 3, 2), (128, 512, 28, 1, 1), (256, 512, 56, 1, 2), (512, 128, 28, 1, 1), (128, 128, 28, 3, 1),
          (512, 256, 28, 1, 1), (256, 256, 28, 3, 2), (256, 1024, 14, 1, 1), (512, 1024, 28, 1, 2), (1024, 256, 14, 1, 1),
          (256, 256, 14, 3, 1), (1024, 512, 14, 1, 1), (512, 512, 14, 3, 2), (512, 2048, 7, 1, 1), (1024, 2048, 14, 1, 2),
          (2048, 512, 7, 1, 1), (512, 512, 7, 3, 1)]


def _conv(c, k, size, kernel, stride, how, batch):
    """how: "bare", "fused" (bias and relu), "pooled" (and a 2 x 2 max-pool), "planar" (fused, torch's in its layout), "backward"."""
    def make():
        options = dict(stride=stride, padding=kernel // 2)
        backward = how == "backward"
        x = randn(batch, c, size, size, last=True, grad=backward)
        w = randn(k, c, kernel, kernel, scale=(c * kernel**2) ** -0.5, last=True, grad=backward)
        b = randn(k)
        flops = 2 * batch * k * c * kernel**2 * (-(-size // stride)) ** 2
        if backward:
            y, z = F.conv2d(x, w, **options), TF.conv2d(x, w, **options)
            g = torch.randn_like(z)
            both = lambda y: lambda: torch.cat([t.flatten() for t in torch.autograd.grad(y, (x, w), g, retain_graph=True)])
            return both(y), both(z), None, {"flops": 2 * flops}
        if how == "bare":
            return lambda: F.conv2d(x, w, **options), lambda: TF.conv2d(x, w, **options), None, {"flops": flops}
        if how == "pooled":
            return (lambda: F.conv2d_max_pool2d(x, w, b, **options, activation="relu"),
                    lambda: TF.max_pool2d(TF.relu(TF.conv2d(x, w, b, **options), inplace=True), 2), None, {"flops": flops})
        xs, ws = (x.contiguous(), w.contiguous()) if how == "planar" else (x, w)
        return (lambda: F.conv2d(x, w, b, **options, activation="relu"), lambda: TF.relu(TF.conv2d(xs, ws, b, **options), inplace=True),
                None, {"flops": flops})
    return make


def _pool(shape, kind, kernel, stride, padding, last, backward):
    def make():
        x = randn(*shape, last=last, grad=backward)
        ours, theirs = (getattr(m, f"{kind}_pool2d") for m in (F, TF))
        y, z = (f(x, kernel, stride, padding) for f in (ours, theirs))
        moved = 2 * (x.numel() + y.numel())
        if backward:
            g = torch.randn_like(z)
            both = lambda y: lambda: torch.autograd.grad(y, x, g, retain_graph=True)[0]
            return both(y), both(z), None, {"bytes": moved + (y.numel() if kind == "max" else 0)}
        return lambda: ours(x, kernel, stride, padding), lambda: theirs(x, kernel, stride, padding), None, {"bytes": moved}
    return make


def _rnn(mode, hidden, dtype, directions=1, layers=1, batch=64, steps=128, train=False):
    def make():
        made = getattr(torch.nn, {"rnn_tanh": "RNN", "gru": "GRU", "lstm": "LSTM"}[mode])
        module = made(hidden, hidden, layers, bidirectional=directions == 2, device=_device, dtype=dtype)
        x = randn(steps, batch, hidden, dtype=dtype, grad=train)
        params = list(module.parameters())

        def ours():
            return getattr(F, mode)(x, None, params, True, layers, bidirectional=directions == 2)[0]

        def theirs():
            return module(x)[0]

        def exact():
            return copy.deepcopy(module).double()(x.detach().double())[0]

        if not train:
            def quiet(f):
                def call():
                    with torch.no_grad():
                        return f()
                return call
            return quiet(ours), quiet(theirs), quiet(exact), {}
        g = torch.randn(steps, batch, directions * hidden, device=_device, dtype=dtype)

        def both(f):
            return lambda: torch.cat([t.flatten() for t in torch.autograd.grad(f(), (x, *params), g)])
        return both(ours), both(theirs), None, {}
    return make


def _row(op, theirs, rows, n, backward, *rest, moved=2):
    def make():
        x = randn(rows, n, grad=backward)
        others = [f(n) for f in rest]
        run, other = (lambda: op(x, *others)), (lambda: theirs(x, *others))
        if backward:
            y, z = run(), other()
            g = torch.randn_like(z)
            both = lambda y: lambda: torch.autograd.grad(y, x, g, retain_graph=True)[0]
            return both(y), both(z), None, {"bytes": 2 * 3 * x.numel()}
        return run, other, None, {"bytes": moved * 2 * x.numel()}
    return make


def _cross_entropy(rows, classes, backward):
    def make():
        x, t = randn(rows, classes, grad=True), torch.randint(classes, (rows,), device=_device)
        if not backward:
            return lambda: F.cross_entropy(x.detach(), t), lambda: TF.cross_entropy(x.detach(), t), None, {"bytes": 2 * x.numel()}
        both = lambda f: lambda: torch.autograd.grad(f(x, t), x)[0]
        return both(F.cross_entropy), both(TF.cross_entropy), None, {"bytes": 2 * 3 * x.numel()}
    return make


def _name(dtype):
    return {HALF: "f16", BFLOAT: "bf16", SINGLE: "f32"}[dtype]


# (hidden, dtype, directions, layers) by the bar that is set for them
RECURRENT = {
    "hidden <= 128": [(128, HALF, 1, 1), (96, BFLOAT, 1, 1), (128, BFLOAT, 2, 2), (128, SINGLE, 1, 1)],
    "f16, hidden 512, 1024": [(512, HALF, 1, 1), (1024, HALF, 1, 1)],
    "what cuDNN does not favour": [(512, BFLOAT, 1, 1), (512, SINGLE, 1, 1), (512, HALF, 2, 1), (512, HALF, 1, 2), (700, HALF, 1, 1)],
}


def cases(tiny: bool = False):
    def cut(most, *sizes):
        return tuple(min(n, most) for n in sizes) if tiny else sizes

    for dtype in (BFLOAT, HALF):
        for n in cut(48, 1024, 2048, 4096, 8192)[: 1 if tiny else None]:
            yield Case("matmul", f"matmul {n} {_name(dtype)}", _matmul(n, n, n, dtype))
    for n in cut(48, 1024, 2048, 4096, 8192)[: 1 if tiny else None]:
        for activation in ("relu", "gelu"):
            yield Case("linear, bias, activation", f"linear {n} bf16 {activation}", _linear(n, n, n, BFLOAT, activation))
    for m in (1, 4, 16, 64):
        for n in cut(80, 4096, 8192)[: 1 if tiny else None]:
            yield Case("matmul, few rows", f"matmul {m} x {n} x {n} bf16", _matmul(m, n, n, BFLOAT))
    for how, group in (("bare", "conv2d"), ("fused", "conv2d, bias, relu"), ("planar", "conv2d, bias, relu, against planar"),
                       ("backward", "conv2d backward")):
        for c, k, size, kernel, stride in RESNET[:4] if tiny else RESNET:
            if how != "backward" or c > 3:
                (c, k), (size,) = cut(16, c, k), cut(6, size)
                yield Case(group, f"conv {c}x{size}x{size}, {k}, {kernel}x{kernel} s{stride} {how}",
                           _conv(c, k, size, kernel, stride, how, 2 if tiny else 32))
    for c, k, size in ((3, 64, 224), (64, 128, 112), (128, 256, 56)):
        (c, k), (size,) = cut(16, c, k), cut(6, size)
        yield Case("conv2d, bias, relu, max-pool", f"conv {c}x{size}x{size}, {k}, 3x3 pooled",
                   _conv(c, k, size, 3, 1, "pooled", 2 if tiny else 32))
    for backward in (False, True):
        way = "backward" if backward else "forward"
        for last in (False, True):
            for kind, kernel, stride, padding in (("max", 3, 2, 1), ("max", 2, 2, 0), ("avg", 2, 2, 0)):
                yield Case(f"pooling {way}", f"{kind} {kernel}x{kernel} {'channels-last' if last else 'planar'} {way}",
                           _pool(cut(8, 32, 64, 112, 112), kind, kernel, stride, padding, last, backward))
    for backward in (False, True):
        way = " backward" if backward else ""
        for rows, n in ((8, 100),) if tiny else ((8192, 1024), (8192, 8192), (1024, 65536)):
            yield Case("softmax", f"softmax {rows} x {n}{way}",
                       _row(lambda x: F.softmax(x, 1), lambda x: TF.softmax(x, 1), rows, n, backward))
        for rows, n in ((8, 100),) if tiny else ((8192, 1024), (8192, 8192)):
            yield Case("layer_norm", f"layer_norm {rows} x {n}{way}",
                       _row(lambda x, w, b: F.layer_norm(x, x.shape[1:], w, b), lambda x, w, b: TF.layer_norm(x, x.shape[1:], w, b),
                            rows, n, backward, randn, randn))
        for rows, n in ((8, 100),) if tiny else ((8192, 32768), (2048, 131072)):
            yield Case("cross_entropy", f"cross_entropy {rows} x {n}{' training' if backward else ''}", _cross_entropy(rows, n, backward))
    for bar, sizes in RECURRENT.items():
        for train in (False, True):
            for mode in ("lstm", "gru", "rnn_tanh"):
                for hidden, dtype, directions, layers in sizes:
                    way = "training" if train else "inference"
                    yield Case(f"recurrent, {bar}, {way}", f"{mode} {hidden} {_name(dtype)} directions {directions} layers {layers} {way}",
                               _rnn(mode, *cut(20, hidden), dtype, directions, layers, *cut(3, 64, 128), train))


CASES = list(cases())
