"""Libraries that take turns: each in a process of its own, which answers orders from standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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


def serve(prepare):
    """A worker's life. prepare(order): the calls to time; a library with more than one form of a case is as fast as its best."""
    calls = []
    for line in sys.stdin:
        order = json.loads(line)
        answer = 0.0
        if "seconds" in order:
            answer = min(fastest(call, order["seconds"] / len(calls)) for call in calls)
        else:
            calls = prepare(order)
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
