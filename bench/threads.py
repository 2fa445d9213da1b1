"""``python -m bench.threads [--threads N]``: what it costs to share work, and from where on sharing pays.

Microseconds, medians. A region is one ``parallel_for`` over as many chunks as threads, which do nothing. A pause lies
between two calls of a product that takes about 100 us on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import fastdl
import fastdl.functional as F
from fastdl.cpu import parallel
from fastdl.cpu._pool import parallel_for
from fastdl.cpu.jit import inline, kernel


@inline
def _nothing(slot, chunk, first):
    pass


@kernel("i i i", "f")
def _regions(pool, chunks, count):
    for _ in range(count):
        parallel_for(pool, _nothing, chunks, (count,))


def region(threads):
    """Of a region when the workers are awake, and of one chunk on the caller alone."""
    fastdl.set_num_threads(threads)
    run, n, times = _regions["f"], 2000, {True: [], False: []}
    pool = parallel.pool()
    for _ in range(50):
        for shared in (True, False):
            start = time.perf_counter()
            run(pool if shared else 0, threads, n)
            times[shared].append((time.perf_counter() - start) / n * 1e6)
    return statistics.median(times[True]), statistics.median(times[False])


def after_pause(pause, threads, rounds=200):
    """(on one thread, on all): the first call after a pause."""
    a = np.random.default_rng(0).standard_normal((160, 160)).astype("f4")
    times = {1: [], threads: []}
    for count in times:
        fastdl.set_num_threads(count)
        for _ in range(20):
            F.matmul(a, a)
        for _ in range(rounds):
            time.sleep(pause) if pause >= 1e-3 else _spin(pause)
            start = time.perf_counter()
            F.matmul(a, a)
            times[count].append((time.perf_counter() - start) * 1e6)
    return statistics.median(times[1]), statistics.median(times[threads])


def _spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def crossover(make, sizes, threads, rounds=9, seconds=0.005):
    """[(work, time on one thread, time on all)] of calls around the size from which threads share."""
    rows = []
    for size in sizes:
        call, work = make(size)
        times = {1: [], threads: []}
        for _ in range(rounds):
            for count in times:
                fastdl.set_num_threads(count)
                best, end = float("inf"), time.perf_counter() + seconds
                call()
                while time.perf_counter() < end:
                    start = time.perf_counter()
                    call()
                    best = min(best, time.perf_counter() - start)
                times[count].append(best * 1e6)
        rows.append((work, *(statistics.median(times[count]) for count in times)))
    return rows


def product(n):
    a = np.random.default_rng(0).standard_normal((n, n)).astype("f4")
    return lambda: F.matmul(a, a), n**3


def activation(n):
    x = np.random.default_rng(0).standard_normal(n).astype("f4")
    return lambda: F.relu(x), n


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench.threads", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=fastdl.get_num_threads())
    threads = parser.parse_args(argv).threads
    shared, alone = region(threads)
    print(f"a region on {threads} threads: {shared:.2f} us; the same chunks on one: {alone:.2f} us\n")
    print(f"| pause before the call, ms | 1 thread, us | {threads} threads, us |\n|---|---|---|")
    for pause in (0, 0.0001, 0.0002, 0.001, 0.01):
        one, many = after_pause(pause, threads)
        print(f"| {pause * 1e3:g} | {one:.0f} | {many:.0f} |", flush=True)
    for name, make, sizes in [("multiply-adds of a product", product, (32, 48, 56, 64, 66, 72, 80, 96)),
                              ("elements of relu", activation, [1 << n for n in range(12, 19)])]:
        print(f"\n| {name} | 1 thread, us | {threads} threads, us |\n|---|---|---|")
        for work, one, many in crossover(make, sizes, threads):
            print(f"| {work} | {one:.1f} | {many:.1f} |", flush=True)


if __name__ == "__main__":
    main()
