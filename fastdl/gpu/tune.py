"""``fastdl tune``: measure candidate configurations on this GPU and write the best of each problem into its table.

A problem is an operator at a size; each candidate's answer is compared with the first one's before it is timed. What is found goes
to a file that configs.py reads before the package's own tables.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fastdl.functional as F

from . import ahead, configs, device
from .launch import cdiv

HALF = torch.bfloat16


class Problem(NamedTuple):
    kernel: str
    bounds: dict  # for which sizes the answer counts
    make: Any  # device -> a call


def _around(n):
    """The sizes from half way below to half way above, by ratio."""
    return [n * 3 // 4 + 1, n * 3 // 2]


def _randn(*shape, where):
    return torch.randn(shape, device=where, dtype=HALF)


def _last(*shape, where):
    return _randn(*shape, where=where).to(memory_format=torch.channels_last)


def _matmul(m, n, k):
    def make(where):
        a, b = _randn(m, k, where=where), _randn(n, k, where=where).mT
        return lambda: F.matmul(a, b)
    return make


def _conv(c, k, size, kernel, stride, batch=32):
    def make(where):
        x, w = _last(batch, c, size, size, where=where), _last(k, c, kernel, kernel, where=where)
        return lambda: F.conv2d(x, w, stride=stride, padding=kernel // 2)
    return make


def _conv_weights(c, k, size, kernel, stride, batch=32):
    def make(where):
        x, w = _last(batch, c, size, size, where=where), _last(k, c, kernel, kernel, where=where).requires_grad_()
        y = F.conv2d(x, w, stride=stride, padding=kernel // 2)
        g = torch.randn_like(y)
        return lambda: torch.autograd.grad(y, w, g, retain_graph=True)[0]
    return make


def _recurrent(hidden, batch, backward, steps=32):
    def make(where):
        w = [_randn(4 * hidden, n, where=where) * hidden**-0.5 for n in (hidden, hidden)] + [_randn(4 * hidden, where=where)] * 2
        x = _randn(steps, batch, hidden, where=where).requires_grad_(backward)
        if not backward:
            return lambda: F.lstm(x, None, w)[0]
        y = F.lstm(x, None, w)[0]
        g = torch.randn_like(y)
        return lambda: torch.autograd.grad(y, x, g, retain_graph=True)[0]
    return make


# ResNet-50's: channels in and out, input size, kernel, stride
CONVOLUTIONS = ((64, 64, 56, 3, 1), (128, 128, 28, 3, 1), (256, 256, 14, 3, 1), (512, 512, 7, 3, 1), (128, 128, 56, 3, 2),
                (256, 256, 28, 3, 2), (512, 512, 14, 3, 2), (256, 512, 56, 1, 2), (512, 1024, 28, 1, 2), (1024, 2048, 14, 1, 2))
POINTWISE = ((64, 64, 56), (64, 256, 56), (256, 64, 56), (256, 128, 56), (128, 512, 28), (512, 128, 28), (512, 256, 28), (256, 1024, 14),
             (1024, 256, 14), (1024, 512, 14), (512, 2048, 7), (2048, 512, 7))


def problems() -> list[Problem]:
    found = []
    square = [(n, n, n) for n in (1024, 2048, 4096, 8192)]
    for m, n, k in square + [(32 * size**2, k, c) for c, k, size in POINTWISE]:
        bounds = {"m": _around(m), "n": _around(n), "k": _around(k), "bytes": [2, 2]}
        found.append(Problem("product_by_tiles", bounds, _matmul(m, n, k)))
    for m in (1, 16, 64):
        for n in (1024, 4096, 8192):
            bounds = {"m": [m // 4 + 1, m], "n": _around(n), "k": _around(n), "bytes": [2, 2]}
            found.append(Problem("product", bounds, _matmul(m, n, n)))
    for c, k, size, kernel, stride in CONVOLUTIONS:
        m = 32 * cdiv(size, stride) ** 2
        bounds = {"m": _around(m), "n": _around(k), "c": _around(c), "taps": [kernel**2] * 2}
        found.append(Problem("correlate_by_tiles", bounds | {"stride": [stride] * 2}, _conv(c, k, size, kernel, stride)))
        found.append(Problem("correlate", bounds | {"bytes": [2, 2]}, _conv(c, k, size, kernel, stride)))
        bounds = {"n": _around(k), "c": _around(c), "p": _around(m), "taps": [kernel**2] * 2}
        found.append(Problem("weight_gradient_by_tiles", bounds, _conv_weights(c, k, size, kernel, stride)))
        found.append(Problem("weight_gradient", bounds | {"bytes": [2, 2]}, _conv_weights(c, k, size, kernel, stride)))
    for size, kernel, stride in ((224, 7, 2), (224, 3, 1)):
        bounds = {"m": _around(32 * cdiv(size, stride) ** 2), "n": _around(64)}
        found.append(Problem("correlate_packed", bounds, _conv(3, 64, size, kernel, stride)))
    for hidden in (256, 512, 1024, 2048):
        for batch in (1, 16, 64, 256):
            bounds = {"batch": [batch // 2 + 1, max(2 * batch, 8)], "hidden": _around(hidden), "bytes": [2, 2]}
            found.append(Problem("advance", bounds, _recurrent(hidden, batch, False)))
            found.append(Problem("retreat", bounds, _recurrent(hidden, batch, True)))
    return found


# The kernel that would serve a call in place of the one to be measured.
ASIDE = {"correlate": "correlate_by_tiles", "weight_gradient": "weight_gradient_by_tiles", "product": "product_by_tiles"}


def _grid(**choices):
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def _tiles(**choices):
    """Of a grid, those whose sums fill registers by a reasonable share: 32 to 128 a thread."""
    return [c for c in _grid(**choices) if 32 <= c["BM"] * c["BN"] // (32 * c["num_warps"]) <= 128]


CANDIDATES = {
    "product_by_tiles": [{"use": 0}] + _tiles(BM=[64, 128, 256], BN=[64], BK=[64], GROUP=[8], HALVES=[0], PROGRAMS=[1, 2],
                                              num_warps=[4, 8], num_stages=[3, 4, 5])
    + _tiles(BM=[64, 128], BN=[128], BK=[64], GROUP=[8], HALVES=[0], PROGRAMS=[2], num_warps=[4], num_stages=[3, 4])
    + _tiles(BM=[64, 128, 256], BN=[128, 256], BK=[64], GROUP=[8], HALVES=[0, 1], num_warps=[4, 8], num_stages=[3, 4, 5]),
    "product": _grid(BM=[16, 64], BN=[16, 32, 64, 128], BK=[64, 128, 256], GROUP=[8], MAX_SPLITS=[1, 16], num_warps=[4], num_stages=[3, 5]),
    "correlate_by_tiles": [{"use": 0}] + _tiles(BM=[64, 128, 256], BN=[64, 128, 256], BK=[64], GROUP=[8], PROGRAMS=[1, 2, 3],
                                                OUTPUTS_FIRST=[1], num_warps=[4, 8], num_stages=[3, 4, 5]),
    "correlate_packed": [{"use": 0}] + _tiles(BM=[64, 128, 256], BN=[64], BK=[64], GROUP=[8], PROGRAMS=[1, 2, 3], OUTPUTS_FIRST=[0, 1],
                                              num_warps=[4, 8], num_stages=[3, 4, 5]),
    "correlate": _grid(BM=[64, 128], BN=[64, 128, 256], BK=[32, 64], GROUP=[8], MAX_SPLITS=[1, 8], num_warps=[4, 8], num_stages=[3, 4]),
    "weight_gradient_by_tiles": [{"use": 0}] + _tiles(BM=[64, 128], BN=[64, 128, 256], BK=[64, 128], MAX_SPLITS=[64], PROGRAMS=[1, 2, 4],
                                                      num_warps=[4, 8], num_stages=[3, 4]),
    "weight_gradient": _grid(BM=[64, 128], BN=[64, 128], BK=[32, 64], MAX_SPLITS=[16, 64], num_warps=[4, 8], num_stages=[2, 3]),
    "advance": (_grid(BB=[16, 32], BN=[16], BK=[256, 512], RESIDENT=[131072], num_warps=[4, 8], num_stages=[3])
                + _grid(BB=[16, 64], BN=[16, 32], BK=[64, 128], RESIDENT=[0], num_warps=[4, 8], num_stages=[3, 4])),
    "retreat": (_grid(BB=[16, 32], BN=[16], BK=[128], RESIDENT=[131072], SLICES=[8], SLICE=[32, 64, 128], num_warps=[8], num_stages=[3])
                + _grid(BB=[16, 32, 64], BN=[16, 32], BK=[64, 128], RESIDENT=[0], SLICES=[8], SLICE=[64], num_warps=[4, 8],
                        num_stages=[3, 4])),
}


def microseconds(call, flush: torch.Tensor, budget=0.05) -> float:
    """The median time of a call by the GPU's own clock, with nothing of its data in the L2 cache.

    The GPU is kept busy while the host gets the call's launches on their way, so that a short kernel's time is not the host's.
    """
    sleep = getattr(torch.cuda, "_sleep", lambda cycles: None)
    cycles = 500_000  # about 0.3 ms

    def once():
        flush.zero_()
        sleep(cycles)
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        return start, stop

    hosts = []
    for _ in range(4):
        begin = time.perf_counter()
        start, stop = once()
        hosts.append(time.perf_counter() - begin)
        torch.cuda.synchronize()
    cycles = int(min(max(cycles, 2 * min(hosts) * 2e9), 4e7))
    repeats = max(5, min(100, int(budget * 1e3 / max(start.elapsed_time(stop), 1e-3))))
    events = [once() for _ in range(repeats)]
    torch.cuda.synchronize()
    return 1e3 * statistics.median(a.elapsed_time(b) for a, b in events)


FINAL = 3  # so many candidates are measured again, longer


def best(problem: Problem, where, measure, candidates=None) -> dict | None:
    """The fastest candidate whose answer is that of the present configuration; None where no candidate runs."""
    call = problem.make(where)
    want = call().float()
    times: list[tuple[float, int]] = []
    candidates = CANDIDATES[problem.kernel] if candidates is None else candidates
    for i, candidate in enumerate(candidates):
        with _trying(problem.kernel, candidate):
            try:
                got = call().float()
            except Exception as error:  # too much shared memory, too many registers: Triton's own errors, of no common class
                if not type(error).__module__.startswith("triton") and "PassManager" not in str(error):
                    raise
                continue
            if (got - want).norm() <= 0.02 * want.norm():
                times.append((measure(call, 0.01), i))
    final = []
    for _, i in sorted(times)[:FINAL]:
        with _trying(problem.kernel, candidates[i]):
            final.append((measure(call, 0.05), i))
    return candidates[min(final)[1]] if final else None


@contextlib.contextmanager
def _trying(kernel, candidate):
    with contextlib.ExitStack() as held:
        held.enter_context(configs.use(kernel, **candidate))
        if kernel in ASIDE:
            held.enter_context(configs.use(ASIDE[kernel], use=0))
        yield


def compile_candidate(item, where) -> int:
    """Compile what a candidate launches in every problem of its kernel; answers how many launches."""
    kernel, candidate = item
    count = 0
    for problem in problems():
        if problem.kernel == kernel:
            with _trying(kernel, candidate):
                count += ahead.compile_launches(where, lambda problem=problem: problem.make("meta")())
    return count


def tune(kernels, folder: Path, report, measure=None, where="cuda", all_problems=None, candidates=None) -> Path:
    """Tune the named kernels (all where none is named) and write the device's table into ``folder``; answers the file."""
    card = device.of(torch.empty(0, device=where))
    if measure is None:
        flush = torch.empty(256 << 20, dtype=torch.uint8, device=where)
        measure = lambda call, budget: microseconds(call, flush, budget)
        report(0, 1, "compiling")
        names = [name for name in CANDIDATES if not kernels or name in kernels]
        # what does not compile is no candidate: ``best`` meets it again
        ahead.in_parallel(compile_candidate, [(name, candidate) for name in names for candidate in CANDIDATES[name]], card)
    path = folder / f"{configs.table_name(card.name)}.json"
    table = json.loads(path.read_text()) if path.exists() else {"kernels": {}}
    todo = [p for p in (problems() if all_problems is None else all_problems) if not kernels or p.kernel in kernels]
    table |= {"device": card.name, "tuned": {"triton": importlib.metadata.version("triton"), "torch": torch.__version__}}
    folder.mkdir(parents=True, exist_ok=True)
    tuned: dict[str, list] = {}
    for i, problem in enumerate(todo):
        report(i, len(todo), problem.kernel)
        winner = best(problem, where, measure, candidates)
        if winner is not None:
            tuned.setdefault(problem.kernel, []).append({"if": problem.bounds, "use": winner})
            table["kernels"].update(tuned)
            path.write_text(json.dumps(table, indent=2) + "\n")  # what was found is kept if the rest is not waited for
    report(len(todo), len(todo), "done")
    configs.forget()
    return path
