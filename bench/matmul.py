"""``python -m bench.matmul [--threads N]``: matrix products, as shares of what the cores can do and beside numpy's BLAS.

Float32. A core's peak is measured first (the register tile on data in L1). A figure is the median over rounds of a
round's fastest call; each library runs in a process of its own, in turns, after fastdl's answer was compared with float64.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np

from .workers import Library, serve, take_turns

SQUARE = [(n, n, n) for n in (128, 256, 384, 512, 768, 1024, 2048)]
SMALL = [(n, n, n) for n in (16, 32, 48, 64, 96)]
SKINNY = [(m, n, n) for m in (1, 4, 16) for n in (256, 1024, 4096)] + [(n, n, m) for m in (1, 4, 16) for n in (256, 1024, 4096)]
SETS = {"square": SQUARE, "small and skinny": SMALL + SKINNY}


def worker(library, threads):
    rng = np.random.default_rng(0)
    if library == "fastdl":
        import fastdl
        import fastdl.functional as F

        fastdl.set_num_threads(threads)

    def ready(order):
        m, k, n = order["shape"]
        a, b = rng.standard_normal((m, k)).astype("f4"), rng.standard_normal((k, n)).astype("f4")
        call = (lambda: F.matmul(a, b)) if library == "fastdl" else (lambda: a @ b)
        np.testing.assert_allclose(call(), a.astype("f8") @ b.astype("f8"), rtol=1e-3, atol=1e-3)
        return [call]

    serve(ready)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.matmul", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.1, help="time for a library in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        return worker(options.worker, options.threads)
    from fastdl.cpu.peak import fma_peak

    libraries = [Library("bench.matmul", name, options.threads) for name in ("fastdl", "numpy")]
    ratios, peaks, every_peak = {name: [] for name in SETS}, [], []

    def measure_peak():  # in each round: the clock moves
        peaks.append(fma_peak(seconds=0.02) * 1e-9 * options.threads)
        every_peak.append(peaks[-1] / options.threads)

    print(f"| m x k x n, threads: {options.threads} | fastdl, GFLOP/s | share of peak | numpy, GFLOP/s | ratio |\n|---|---|---|---|---|")
    for name, shape in [(name, shape) for name, shapes in SETS.items() for shape in shapes]:
        work = 2e-9 * np.prod(shape, dtype=float)
        for library in libraries:
            library.ask(shape=shape)
        peaks.clear()
        times = take_turns(libraries, options.rounds, options.seconds, measure_peak)
        ours, theirs = (statistics.median(times[library.name]) for library in libraries)
        ratios[name].append(theirs / ours)
        print(f"| {' x '.join(map(str, shape))} | {work / ours:.1f} | {work / ours / statistics.median(peaks):.0%} | {work / theirs:.1f} "
              f"| {theirs / ours:.2f} |", flush=True)
    for name, found in ratios.items():
        print(f"| geometric mean, {name} | | | | {statistics.geometric_mean(found):.2f} |")
    print(f"\npeak of a core: {min(every_peak):.0f} to {max(every_peak):.0f} GFLOP/s, median {statistics.median(every_peak):.0f}")


if __name__ == "__main__":
    main()
