"""Where a training step goes: ``python -m bench.steps --profile``.

Every layer's ``vjp`` and pullback is timed one by one inside the step, in the order of the step, as the Sequential runs it: an activation
and a max-pool go with the layer before them, and the first layer's input gets no gradient. Milliseconds, medians over steps.

The limit is what no kernel of this kind can go below: the longer of its multiply-adds at the measured peak (``fastdl.cpu.peak``: what
register tiles do on data in L1, times the threads) and its bytes at the rate of a copy of arrays too large for any cache. Bytes count
every array that must be read or written once: inputs, outputs, weights and gradients. A part may be faster than that, where the array
is in a cache since the part before, or where an algorithm multiplies less (Winograd).
"""

from __future__ import annotations

import statistics
import time

import numpy as np

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.cpu.peak import copy_rate, fma_peak
from fastdl.nn.fusion import fused

FLOAT = 4  # bytes


class Part:
    """A row of the table: its times, and what it has to do."""

    def __init__(self, name):
        self.name = name
        self.times: dict[str, list[float]] = {"forward": [], "backward": []}
        self.work = {"forward": (0, 0), "backward": (0, 0)}  # (multiply-adds, bytes)

    def timed(self, direction, call, *given, **options):
        start = time.perf_counter()
        answer = call(*given, **options)
        self.times[direction].append(time.perf_counter() - start)
        return answer


def multiply_adds(layer, options, y) -> tuple[int, int]:
    """(of a forward pass and of the input's gradient, of the weight's gradient); the latter sums over maxima only where there is a pool."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.Linear):
        return (weight.size * (y.size // layer.out_features),) * 2
    if isinstance(layer, nn.Conv2d):
        cells = weight.size * (y.size // layer.out_channels)
        return cells * (4 if "pool" in options else 1), cells
    return 0, 0


def note_work(part, layer, options, x, y, wants_input):
    parameters = sum(p.size for p in layer.parameters())
    places = y.size if isinstance(layer, nn.MaxPool2d) or "pool" in options else 0  # a byte each
    again = x.size * bool(parameters) + y.size * ("activation" in options)  # what the backward pass reads besides
    products, of_weight = multiply_adds(layer, options, y)
    part.work["forward"] = products, FLOAT * (x.size + y.size + parameters) + places
    part.work["backward"] = (of_weight + products * wants_input,
                             FLOAT * (y.size + again + parameters + wants_input * (x.size + parameters)) + places)


def profile(model, x, seconds=2.0, rounds=None):
    """(the parts of a step, seconds of each whole step). rounds: how many steps, instead of ``seconds``."""
    labels, optimizer = np.arange(len(x)) % 10, optim.SGD(model.parameters(), lr=0.01)
    steps = [(layer, options) for layer, options in fused(model, pool=True) if not isinstance(layer, nn.Flatten)]
    parts = [Part(_name(layer, options)) for layer, options in steps]
    loss, update = Part("cross_entropy"), Part("SGD")
    first = next(i for i, (layer, _) in enumerate(steps) if any(True for _ in layer.parameters()))
    whole, end = [], time.perf_counter() + seconds
    while len(whole) < rounds if rounds else time.perf_counter() < end:
        start = time.perf_counter()
        optimizer.zero_grad()
        y, pullbacks = x, []
        for part, (layer, options) in zip(parts, steps, strict=True):
            if isinstance(layer, nn.Linear):
                y = y.reshape(len(y), -1)
            before = y
            y, pullback = part.timed("forward", layer.vjp, y, **options)
            pullbacks.append((pullback, y.shape))
            if not whole:
                note_work(part, layer, options, before, y, part is not parts[first])
        _, loss_pullback = loss.timed("forward", fastdl.vjp, F.cross_entropy, y, labels)
        dy = loss.timed("backward", loss_pullback, 1.0)[0]
        for i in range(len(parts) - 1, first - 1, -1):
            pullback, shape = pullbacks[i]
            dy = parts[i].timed("backward", pullback, dy.reshape(shape), needs=i > first)
        update.timed("backward", optimizer.step)
        whole.append(time.perf_counter() - start)
    loss.work = {"forward": (0, 2 * FLOAT * y.size), "backward": (0, 2 * FLOAT * y.size)}
    update.work["backward"] = 0, 3 * FLOAT * sum(p.size for p in model.parameters())
    return [*parts, loss, update], whole


def _name(layer, options):
    if isinstance(layer, nn.Conv2d):
        name = f"conv {layer.kernel_size[0]}x{layer.kernel_size[1]}, {layer.in_channels} to {layer.out_channels}"
    elif isinstance(layer, nn.Linear):
        name = f"linear, {layer.in_features} to {layer.out_features}"
    else:
        name = type(layer).__name__
    name = f"{name}, {options['activation']}" if "activation" in options else name
    return f"{name}, max-pool" if "pool" in options else name


def print_profile(name, model, x, threads, seconds=2.0, rounds=None):
    fastdl.set_num_threads(threads)
    warm = 3
    profile(model, x, rounds=warm)
    parts, whole = profile(model, x, seconds, rounds)
    peak, copied = threads * fma_peak(seconds=min(0.3, seconds)), copy_rate(seconds=min(0.3, seconds))
    titles = "forward, ms | limit | backward, ms | limit | multiply-adds, millions | MB"
    print(f"| {name}, threads: {threads} | {titles} |\n" + "|---" * 7 + "|")

    def limit(work):
        multiply, move = 2e3 * work[0] / peak, 1e3 * work[1] / copied
        longer = max(multiply, move)
        return "" if longer < 0.005 else f"{longer:.2f} {'multiply' if multiply > move else 'memory'}"

    total = 0.0
    for part in parts:
        times = {way: statistics.median(t) * 1e3 if t else None for way, t in part.times.items()}
        total += sum(t for t in times.values() if t is not None)
        cells = [cell for way in times for cell in ("" if times[way] is None else f"{times[way]:.2f}", limit(part.work[way]))]
        ways = [way for way in times if times[way] is not None]
        both = [" + ".join(f"{part.work[way][i] / 1e6:.{digits}f}" for way in ways) for i, digits in ((0, 0), (1, 1))]
        print(f"| {part.name} | {' | '.join(cells)} | {' | '.join(both)} |")
    print(f"\nThe whole step {statistics.median(whole) * 1e3:.2f} ms, of which the parts are {total:.2f}. "
          f"Measured: {peak / 1e9:.0f} GFLOP/s, {copied / 1e9:.0f} GB/s read and written.\n", flush=True)
