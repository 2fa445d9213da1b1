"""``python -m bench [words] [--threads N] [--train] [--json FILE]``: fastdl beside torch on this machine, as a table.

Each library runs in a process of its own, in turns; a figure is the median over rounds of the round's fastest call, and
``ratio`` is torch's time over fastdl's (above 1: fastdl is faster).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics

from .cases import CASES
from .workers import Library, serve, take_turns, use_threads


def worker(library, threads, train):
    from . import cases

    use_threads(library, threads)
    prepare = cases.with_torch if library == "torch" else cases.with_fastdl
    serve(lambda order: prepare(CASES[order["case"]], train))


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
    libraries = [Library("bench", name, options.threads, *["--train"] * options.train) for name in ("fastdl", "torch")]
    print(f"| {options.threads} threads, microseconds | fastdl | torch | ratio |\n|---|---|---|---|")
    rows = []
    for index, case in enumerate(CASES):
        if (options.words and not any(w in case[0] for w in options.words)) or (options.train and case[1] == "matmul"):
            continue
        for library in libraries:
            library.ask(case=index)
        times = take_turns(libraries, options.rounds, options.seconds)
        ours, theirs = (statistics.median(times[library.name]) * 1e6 for library in libraries)
        rows.append(dict(case=case[0], fastdl=ours, torch=theirs, ratio=theirs / ours))
        print(f"| {case[0]} | {ours:.0f} | {theirs:.0f} | {theirs / ours:.2f} |", flush=True)
    if rows:
        print(f"| geometric mean | | | {statistics.geometric_mean(r['ratio'] for r in rows):.2f} |")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
