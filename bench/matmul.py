"""``python -m bench.matmul [--threads N]``: matrix products, as shares of what the cores can do and beside numpy's BLAS.

Float32. A core's peak is measured first (the register tile on data in L1). A figure is the median over rounds of a
round's fastest call; each library runs in a process of its own, in turns, after fastdl's answer was compared with float64.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

SQUARE = [(n, n, n) for n in (16, 32, 64, 96, 128, 256, 384, 512, 768, 1024, 2048)]
SKINNY = [(1, 1024, 1024), (4, 1024, 1024), (16, 1024, 1024), (16, 784, 512), (16, 4096, 256),
          (1024, 1024, 1), (1024, 1024, 4), (1024, 1024, 16)]


def worker(library, threads):
    """Answer orders from standard input: a shape to prepare, or a time to spend on it."""
    rng = np.random.default_rng(0)
    if library == "fastdl":
        import fastdl
        import fastdl.functional as F

        fastdl.set_num_threads(threads)
    call = None
    for line in sys.stdin:
        order = json.loads(line)
        if "shape" in order:
            m, k, n = order["shape"]
            a, b = rng.standard_normal((m, k)).astype("f4"), rng.standard_normal((k, n)).astype("f4")
            call = (lambda a=a, b=b: F.matmul(a, b)) if library == "fastdl" else (lambda a=a, b=b: a @ b)
            np.testing.assert_allclose(call(), a.astype("f8") @ b.astype("f8"), rtol=1e-3, atol=1e-3)
            answer = 0.0
        else:
            answer, end = float("inf"), time.perf_counter() + order["seconds"]
            while True:
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                answer = min(answer, now - start)
                if now > end:
                    break
        print(answer, flush=True)


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

    limits = {name: str(options.threads) for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")}
    libraries = {
        name: subprocess.Popen([sys.executable, "-m", "bench.matmul", "--worker", name, "--threads", str(options.threads)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **limits})
        for name in ("fastdl", "numpy")
    }

    def ask(name, **order):
        process = libraries[name]
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker of {name} ended with exit status {process.wait()}")
        return float(line)

    ratios = []
    print(f"| m x k x n, threads: {options.threads} | fastdl, GFLOP/s | share of peak | numpy, GFLOP/s | ratio |\n|---|---|---|---|---|")
    for shape in SQUARE + SKINNY:
        work = 2e-9 * np.prod(shape, dtype=float)
        for name in libraries:
            ask(name, shape=shape)
        times, peaks = {name: [] for name in libraries}, []
        for _ in range(options.rounds):
            peaks.append(fma_peak(seconds=0.02) * 1e-9 * options.threads)  # of the same moment: the clock moves
            for name in libraries:
                time.sleep(0.03)  # the other's threads fall asleep
                times[name].append(ask(name, seconds=options.seconds))
        ours, theirs = (statistics.median(times[name]) for name in libraries)
        ratios.append(theirs / ours)
        print(f"| {' x '.join(map(str, shape))} | {work / ours:.1f} | {work / ours / statistics.median(peaks):.0%} | {work / theirs:.1f} "
              f"| {theirs / ours:.2f} |", flush=True)
    print(f"| geometric mean | | | | {statistics.geometric_mean(ratios):.2f} |")


if __name__ == "__main__":
    main()
