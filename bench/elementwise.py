"""``python -m bench.elementwise [words] [--threads N] [--peers-python PYTHON]``: what moves memory more than it computes, beside torch.

Activations, softmax, normalisation, losses, dropout, embedding and optimisers' steps, on arrays of 128 KB (they fit a core's L2), 4 MB
(L3) and 64 MB (neither). Microseconds; a figure is the median over rounds of a round's fastest call, each library in a process of
its own, in turns; torch is as fast as the fastest of its forms (layouts, fused or not). Ratio: torch's time over fastdl's. fastdl's
answer is compared with torch's in float64 before it is timed.
"""

from __future__ import annotations

import statistics
import sys

import numpy as np

from .workers import Library, command_line, serve, take_turns, use_threads

SIZES = {"L2": 1 << 15, "L3": 1 << 20, "memory": 1 << 24}  # elements of float32
ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "sigmoid", "tanh", "softplus")
OPTIMISERS = {"SGD": dict(lr=0.01), "SGD momentum": dict(lr=0.01, momentum=0.9), "Adam": dict(lr=1e-3), "AdamW": dict(lr=1e-3)}


def cases():
    """(name, size) of each case."""
    names = [*ACTIVATIONS, "relu gradient", "gelu gradient", "softmax", "softmax gradient", "log_softmax", "softmax channels",
             "layer_norm", "layer_norm gradient"]
    for layout in ("NCHW", "NHWC"):
        names += [f"{norm} {layout}" for norm in ("batch_norm inference", "batch_norm training", "batch_norm gradient", "group_norm",
                                                  "group_norm gradient")]
    names += [f"cross_entropy {classes} gradient" for classes in (10, 1000, 32000)]
    names += ["mse_loss gradient", "binary_cross_entropy_with_logits gradient", "dropout", "dropout gradient", "embedding",
              "embedding gradient", *OPTIMISERS]
    return [(name, size) for name in names for size in SIZES if not (name.startswith("cross_entropy 32000") and size == "L2")]


def arrays(name, size):
    """The arrays of a case, by the arguments' names."""
    rng, n = np.random.default_rng(0), SIZES[size]

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    if "channels" in name:
        return dict(x=normal(*((n // (32 << 10), 32, 32, 32) if size == "L2" else (n // (32 << 12), 32, 64, 64))))
    if "softmax" in name:
        return dict(x=normal(n // 1024, 1024))
    if name.startswith("layer_norm"):
        return dict(x=normal(n // 768, 768), w=normal(768), b=normal(768))
    if "_norm" in name:
        x = normal(max(1, n >> 16), 64, *((32, 32) if size != "L2" else (22, 22)))
        if "NHWC" in name:
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        return dict(x=x, w=normal(64), b=normal(64), mean=normal(64), var=rng.random(64, dtype=np.float32) + 0.5)
    if name.startswith("cross_entropy"):
        classes = int(name.split()[1])
        return dict(x=normal(n // classes, classes), t=rng.integers(0, classes, n // classes))
    if "loss" in name or "entropy" in name:
        return dict(x=normal(n), t=rng.random(n, dtype=np.float32))
    if name.startswith("embedding"):
        return dict(i=rng.integers(0, 30000, n // 256), x=normal(30000, 256))
    return dict(x=normal(n))


def form(name, given):
    """(operator, its arguments in order, its options); the names are both libraries'."""
    operator, x = name.split()[0], given.get("x")
    if operator in ("softmax", "log_softmax"):
        return operator, [x], dict(dim=1 if "channels" in name else -1)
    if operator == "layer_norm":
        return operator, [x, (768,), given["w"], given["b"]], {}
    if operator == "group_norm":
        return operator, [x, 8, given["w"], given["b"]], {}
    if operator == "batch_norm":
        return operator, [x, given["mean"], given["var"], given["w"], given["b"]], dict(training="inference" not in name)
    if "t" in given:
        return operator, [x, given["t"]], {}
    if operator == "embedding":
        return operator, [given["i"], x], {}
    return operator, [x], {}


# ------------------------------------------------------------------------------------------------ the libraries
def with_fastdl(name, size):
    import fastdl
    import fastdl.functional as F

    given = arrays(name, size)
    if name in OPTIMISERS:
        return [_step_of_fastdl(name, size)]
    operator, args, options = form(name, given)
    op = getattr(F, operator)
    _compare(name, op, args, options)
    if "gradient" not in name:
        return [lambda: op(*args, **options)]
    grad = np.ones_like(op(*args, **options))
    needs = tuple(isinstance(a, np.ndarray) and a.dtype.kind == "f" and (operator != "batch_norm" or at not in (1, 2)) and not (
        at == 1 and "t" in given) for at, a in enumerate(args) if not isinstance(a, (int, tuple)))
    return [lambda: fastdl.vjp(op, *args, **options)[1](grad, needs)]


def with_torch(name, size):
    import torch

    given = arrays(name, size)
    if name in OPTIMISERS:
        return [_step_of_torch(name, size, form) for form in (dict(fused=True), dict(foreach=True), dict(foreach=False))]
    operator, args, options = form(name, given)
    op = getattr(torch, operator) if operator in ("sigmoid", "tanh") else getattr(torch.nn.functional, operator)
    tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in args]
    if "gradient" not in name:
        def call():
            with torch.inference_mode():
                return op(*tensors, **options)

        return [call]
    leaves = [t for at, t in enumerate(tensors) if isinstance(t, torch.Tensor) and t.is_floating_point() and (
        operator != "batch_norm" or at not in (1, 2)) and not (at == 1 and "t" in given)]
    for t in leaves:
        t.requires_grad_()
    grad = torch.ones_like(op(*tensors, **options))
    return [lambda: torch.autograd.grad(op(*tensors, **options), leaves, grad)]


def _compare(name, op, args, options):
    """Leave where the answer is not torch's in float64."""
    try:
        import torch
    except ImportError:
        print("no torch to compare with", file=sys.stderr)
        return
    if op.name == "dropout":
        return  # another generator
    peer = getattr(torch, op.name) if op.name in ("sigmoid", "tanh") else getattr(torch.nn.functional, op.name)
    wide = [torch.from_numpy(a.astype("f8") if a.dtype.kind == "f" else a) if isinstance(a, np.ndarray) else a for a in args]
    want = peer(*wide, **options).numpy()
    error = np.linalg.norm(op(*(a.copy("K") if isinstance(a, np.ndarray) else a for a in args), **options) - want) / np.linalg.norm(want)
    if not error < 1e-5:
        raise SystemExit(f"{name}: relative error {error:.1e}")


def _parts(size):
    """A model's parameters: most in one matrix, the rest in a few small arrays."""
    rng, n = np.random.default_rng(0), SIZES[size]
    return [rng.standard_normal(k, dtype=np.float32) for k in (n - n // 4, n // 8, n // 8 - 300, 200, 100)]


def _step_of_fastdl(name, size):
    from fastdl import nn, optim

    parameters = [nn.Parameter(a) for a in _parts(size)]
    for p in parameters:
        p.grad = np.full(p.shape, 0.01, np.float32)
    return getattr(optim, name.split()[0])(parameters, **OPTIMISERS[name]).step


def _step_of_torch(name, size, how):
    import torch

    parameters = [torch.from_numpy(a).requires_grad_() for a in _parts(size)]
    for p in parameters:
        p.grad = torch.full_like(p, 0.01)
    return getattr(torch.optim, name.split()[0])(parameters, **OPTIMISERS[name], **how).step


# ------------------------------------------------------------------------------------------------ the table
def worker(library, threads):
    use_threads(library, threads)
    prepare = with_torch if library == "torch" else with_fastdl
    serve(lambda order: prepare(order["name"], order["size"]))


def main(argv=None):
    parser = command_line("bench.elementwise", __doc__, ("words", "only cases whose name contains one of them"), 0.1, peers="torch")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    given = parser.parse_args(argv)
    if given.worker:
        return worker(given.worker, given.threads)
    libraries = [Library("bench.elementwise", "fastdl", given.threads),
                 Library("bench.elementwise", "torch", given.threads, python=given.peers_python)]
    print(f"| threads: {given.threads} | size | fastdl | torch | ratio |\n|---|---|---|---|---|")
    ratios = {size: [] for size in given.sizes}
    for name, size in cases():
        if size not in given.sizes or (given.words and not any(word in name for word in given.words)):
            continue
        for library in libraries:
            library.ask(name=name, size=size)
        times = take_turns(libraries, given.rounds, given.seconds)
        ours, theirs = (statistics.median(times[library.name]) * 1e6 for library in libraries)
        ratios[size].append(theirs / ours)
        print(f"| {name} | {size} | {ours:.0f} | {theirs:.0f} | {theirs / ours:.2f} |", flush=True)
    for size, found in ratios.items():
        if found:
            print(f"| geometric mean | {size} | | | {statistics.geometric_mean(found):.2f} |")


if __name__ == "__main__":
    main()
