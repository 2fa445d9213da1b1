"""Libraries that take turns: each in a process of its own, which answers orders from standard input."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time

LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def command_line(module, description, words, seconds, rounds=5, peers="the peers"):
    """The parser of a command that has libraries take turns. words: (name, help) of its arguments; seconds, rounds: by default."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(words[0], nargs="*", help=words[1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=seconds, help="time for a library in a round")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--peers-python", default=sys.executable, help=f"an interpreter that has {peers}")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


class Library:
    """The process of one library: ``python -m <module> --worker <name> --threads <n>``."""

    def __init__(self, module, name, threads, *arguments, python=sys.executable):
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", module, "--worker", name, "--threads", str(threads), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **dict.fromkeys(LIMITS, str(threads))},
        )

    def ask(self, **order):
        """Seconds, the answer to an order: a case to prepare, or ``seconds`` to spend on it."""
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return float(line.split()[1])
        raise SystemExit(f"the worker of {self.name} ended with exit status {self.process.wait()}")


def use_threads(library, threads):
    """Have this process's torch or fastdl use so many."""
    importlib.import_module(library).set_num_threads(threads)


def serve(prepare):
    """A worker's life. prepare(order): the calls to time, made twice before; of a library with several forms of a case the best counts."""
    calls = []
    for line in sys.stdin:
        order = json.loads(line)
        answer = 0.0
        if "seconds" in order:
            answer = min(fastest(call, order["seconds"] / len(calls)) for call in calls)
        else:
            calls = prepare(order)
            for call in calls * 2:
                call()
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


def take_turns(libraries, rounds, seconds, before=None):
    """{name: its time in each round}; the other libraries' threads fall asleep before each turn."""
    times = {library.name: [] for library in libraries}
    for _ in range(rounds):
        if before:
            before()
        for library in libraries:
            time.sleep(0.03)
            times[library.name].append(library.ask(seconds=seconds))
    return times


def installed(python, *modules):
    """Whether an interpreter can import all of these."""
    return not subprocess.run([python, "-c", f"import {', '.join(modules)}"], capture_output=True).returncode
