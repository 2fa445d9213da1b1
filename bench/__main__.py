"""``python -m bench [words] [--threads N] [--train] [--json FILE]``: fastdl beside torch on this machine, as a table.

Each library runs in a process of its own, in turns; a figure is the median over rounds of the round's fastest call, and
``ratio`` is torch's time over fastdl's (above 1: fastdl is faster).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from .cases import CASES


def worker(library, threads, train):
    """Answer orders from standard input: a case to prepare, or a time to spend on it."""
    from . import cases

    if library == "torch":
        import torch

        torch.set_num_threads(threads)
        prepare = cases.with_torch
    else:
        import fastdl

        fastdl.set_num_threads(threads)
        prepare = cases.with_fastdl
    calls = []
    for line in sys.stdin:
        order = json.loads(line)
        if "case" in order:
            calls = prepare(CASES[order["case"]], train)
            for call in calls:
                call()
                call()
            answer = 0.0
        else:
            answer = min(fastest(call, order["seconds"] / len(calls)) for call in calls)
        print("answer", answer, flush=True)


def fastest(call, seconds):
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


class Library:
    def __init__(self, name, threads, train):
        arguments = [sys.executable, "-m", "bench", "--worker", name, "--threads", str(threads)] + ["--train"] * train
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=dict(os.environ, OMP_NUM_THREADS=str(threads)))

    def ask(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return float(line.split()[1])
        raise SystemExit(f"a worker ended with exit status {self.process.wait()}")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only cases whose name contains one of them")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    parser.add_argument("--train", action="store_true", help="forward and backward instead of inference (layers only)")
    parser.add_argument("--seconds", type=float, default=0.2, help="time for a library in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the figures there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        return worker(options.worker, options.threads, options.train)
    libraries = {name: Library(name, options.threads, options.train) for name in ("fastdl", "torch")}
    print(f"| {options.threads} threads, microseconds | fastdl | torch | ratio |\n|---|---|---|---|")
    rows = []
    for index, case in enumerate(CASES):
        if (options.words and not any(w in case[0] for w in options.words)) or (options.train and case[1] == "matmul"):
            continue
        times = {name: [] for name in libraries}
        for library in libraries.values():
            library.ask(case=index)
        for _ in range(options.rounds):
            for name, library in libraries.items():
                time.sleep(0.02)  # the other library's threads fall asleep
                times[name].append(library.ask(seconds=options.seconds))
        ours, theirs = (statistics.median(times[name]) * 1e6 for name in libraries)
        rows.append(dict(case=case[0], fastdl=ours, torch=theirs, ratio=theirs / ours))
        print(f"| {case[0]} | {ours:.0f} | {theirs:.0f} | {theirs / ours:.2f} |", flush=True)
    if rows:
        print(f"| geometric mean | | | {statistics.geometric_mean(r['ratio'] for r in rows):.2f} |")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
