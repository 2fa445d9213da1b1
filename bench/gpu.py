"""``python -m bench.gpu [words] [--json FILE] [--seconds N]``: the Triton kernels beside torch, in one process, on this GPU.

What the cases launch is compiled first, by all CPUs. Every answer is checked, against float64 where that is quick, else against
torch's; what is wrong is not timed. Then the two take turns: times are medians by the GPU's clock, with the L2 cache flushed and the
GPU kept busy before each call, on random data. ``ratio`` is torch's time over fastdl's (above 1: fastdl is faster); ``with host`` the
same of calls one after another, by the host's clock. The table ends with geometric means by group; everything goes to one JSON file
as well, after each case. The cases run in a process of their own: one that ends it (a hang, a crash, memory it must not touch) is a row
that says so, and another process goes on with those after it.

``--dry-run`` needs no GPU: all cases at small sizes, checked and not timed, in Triton's interpreter. ``--compile ARCH`` compiles what the
cases would launch there (sm_90), into Triton's cache, and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# Of the error's norm. float32 is rounded to tf32 by cuDNN's default.
BOUNDS = {"torch.float32": 2e-3, "torch.float16": 4e-3, "torch.bfloat16": 2e-2}
STUCK = 90  # seconds for one case, after which a kernel is taken to hang
LOST = 3  # the exit code of a process whose GPU answers no more


def relative_error(got, want) -> float:
    """The error's norm over the reference's; infinite where something is not finite, or shapes differ."""
    if got.shape != want.shape or not got.isfinite().all():
        return math.inf
    return ((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30)).item()


def copy_bandwidth(measure, torch) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / (measure(lambda: target.copy_(source)) * 1e-6)


def host_microseconds(call, torch, calls=20) -> float:
    """The time of a call among others, by the host's clock."""
    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / calls * 1e6


def run(case, measure, host, bandwidth=math.inf) -> dict:
    """The row of a case; checked only where ``measure`` is None."""
    ours, theirs, reference, work = case.make()
    got, other = ours(), theirs()
    want = other if reference is None else reference()
    error = relative_error(got, want)
    row = {"group": case.group, "name": case.name, "error": error, "dtype": str(got.dtype)}
    bound = BOUNDS[str(got.dtype)] * (4 if "training" in case.name or "backward" in case.name else 1)
    if reference is not None:
        row["torch_error"] = relative_error(other, want)
        if math.isfinite(row["torch_error"]):
            bound = max(bound, 2 * row["torch_error"])  # what many steps make of roundings, torch's show as well
    if not error <= bound:
        return row | {"wrong": True}
    if measure is None:
        return row
    del got, other, want
    times = {"fastdl": [], "torch": []}
    for _ in range(2):  # turns, so that a change of the clock meets both
        times["fastdl"].append(measure(ours))
        times["torch"].append(measure(theirs))
    row |= {f"{name}_us": statistics.median(t) for name, t in times.items()}
    row |= {"fastdl_host_us": host(ours), "torch_host_us": host(theirs)}
    row |= {"ratio": row["torch_us"] / row["fastdl_us"], "host_ratio": row["torch_host_us"] / row["fastdl_host_us"]}
    row |= {f"{what}_per_s": n / (row["fastdl_us"] * 1e-6) for what, n in work.items()}
    if "bytes_per_s" in row:
        row["of_copy"] = row["bytes_per_s"] / bandwidth
    return row


HEAD = "| case | fastdl, us | torch, us | ratio | with host | error |\n|---|---|---|---|---|---|"


def line(row) -> str:
    if "failed" in row:
        return f"| {row['name']} | failed: {row['failed'].splitlines()[0][:120]} | | | | |"
    if row.get("wrong") or "ratio" not in row:
        return f"| {row['name']} | {'wrong' if row.get('wrong') else 'right'} | | | | {row['error']:.1e} |"
    return (f"| {row['name']} | {row['fastdl_us']:.1f} | {row['torch_us']:.1f} | {row['ratio']:.2f} | {row['host_ratio']:.2f} "
            f"| {row['error']:.1e} |")


# ------------------------------------------------------------------------------------------------ compilation
def compile_case(name, where) -> int:
    """Compile what a case launches on a device, into Triton's cache: how many kernels."""
    from fastdl.gpu import ahead

    from . import gpu_cases

    case = next(c for c in gpu_cases.CASES if c.name == name)
    with gpu_cases.on("meta"):
        return ahead.compile_launches(where, lambda: case.make()[0]())


def compile_all(names, where, seconds=None) -> None:
    """``compile_case`` for all, by a process a CPU; what fails is said, and fails again when the case runs."""
    from fastdl.gpu import ahead

    begin = time.monotonic()
    kernels, failures = ahead.in_parallel(compile_case, names, where, seconds)
    print(f"compiled {kernels} launches of {len(names)} cases in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    for name, failure in failures[:10]:
        print(f"{name}: {failure.splitlines()[0][:200]}", file=sys.stderr)
    if failures[10:]:
        print(f"and {len(failures) - 10} more", file=sys.stderr)


# ------------------------------------------------------------------------------------------------ the run
def keep(report, path) -> None:
    Path(path).write_text(json.dumps(report, indent=1))


def benchmark(cases, report, path, seconds, begin, measure, host, bandwidth, sync) -> bool:
    """Run the cases that the report has not, print their rows, keep the report in its file after each. False where the GPU was lost."""
    import torch

    done = {row["name"] for row in report["rows"]}
    for case in cases:
        if case.name in done:
            continue
        if time.monotonic() - begin > seconds:
            report["skipped"].append(case.name)
            continue
        keep(report | {"running": [case.group, case.name]}, path)
        torch.manual_seed(0)
        with contextlib.suppress(AttributeError, OSError, ValueError):  # where stderr is no file
            faulthandler.dump_traceback_later(STUCK, exit=True)
        try:
            row = run(case, measure, host, bandwidth)
            sync()
        except Exception as error:  # one case must not take the others with it
            row = {"group": case.group, "name": case.name, "failed": f"{type(error).__name__}: {error}"}
        faulthandler.cancel_dump_traceback_later()
        report["rows"].append(row)
        print(line(row), flush=True)
        keep(report, path)
        if "failed" in row:
            try:
                sync()
            except Exception:  # an error of CUDA's that stays: nothing works in this process any more
                return False
    keep(report, path)
    return True


def supervise(command, path, begin, seconds) -> int:
    """Run the command, which keeps its report in a file, until it comes to its end; what it was at when it did not is a failed row."""
    path = Path(path)
    path.unlink(missing_ok=True)
    while True:
        code = subprocess.run(command).returncode
        report = json.loads(path.read_text()) if path.exists() else {}
        stopped = report.pop("running", None)
        if stopped is None and code != LOST:
            return code
        if stopped is not None:
            group, name = stopped
            report["rows"].append({"group": group, "name": name, "failed": f"it hung or crashed: the process ended with code {code}"})
            print(line(report["rows"][-1]), flush=True)
            keep(report, path)
        if time.monotonic() - begin > seconds:
            print(summary(report))
            return 1


def summary(report) -> str:
    groups = {}
    for row in report["rows"]:
        if "ratio" in row:
            groups.setdefault(row["group"], []).append(row)
    lines = [""]
    if groups:
        lines += ["| group | geometric mean of ratios | least | of a copy's bandwidth | cases |", "|---|---|---|---|---|"]
    for group, rows in groups.items():
        ratios, shares = [row["ratio"] for row in rows], [row["of_copy"] for row in rows if "of_copy" in row]
        share = f"{statistics.geometric_mean(shares):.2f}" if shares else ""
        lines.append(f"| {group} | {statistics.geometric_mean(ratios):.2f} | {min(ratios):.2f} | {share} | {len(rows)} |")
    for what in ("wrong", "failed"):
        if count := sum(what in row for row in report["rows"]):
            lines.append(f"\n{what}: {count} cases")
    if report["skipped"]:
        lines.append(f"\nnot run: {len(report['skipped'])} cases; give words or --seconds")
    return "\n".join(lines)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only cases whose group or name contains one of them")
    parser.add_argument("--json", default="bench_gpu.json", help="where everything goes (default: bench_gpu.json)")
    parser.add_argument("--seconds", type=float, default=420, help="start no case after so many (default: 420)")
    parser.add_argument("--dry-run", action="store_true", help="small sizes in Triton's interpreter: checked, not timed")
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)  # the process that runs the cases: when the first one began
    parser.add_argument("--compile", metavar="ARCH", help="compile for this architecture and end: sm_80, sm_90, sm_100, gfx942")
    options = parser.parse_args(argv)
    begin = time.monotonic() if options.began is None else options.began
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import torch
        import triton
    except ImportError as error:
        print(f"bench.gpu: {error.name} is not installed; nothing was measured", file=sys.stderr)
        return 2
    if not (options.dry_run or options.compile or torch.cuda.is_available()):
        print("bench.gpu: torch sees no CUDA device; nothing was measured (--dry-run and --compile need none)", file=sys.stderr)
        return 2
    import fastdl
    from fastdl.gpu import configs, device, tune

    from . import gpu_cases

    cases = [case for case in gpu_cases.cases(options.dry_run)
             if not options.words or any(w in case.group or w in case.name for w in options.words)]
    if options.compile:
        if options.compile not in device.KNOWN:
            parser.error(f"--compile is {options.compile}; the rule is one of {', '.join(device.KNOWN)}")
        compile_all([case.name for case in cases], device.KNOWN[options.compile])
        return 0
    if options.began is None and not options.dry_run:
        given = sys.argv[1:] if argv is None else argv
        return supervise([sys.executable, "-m", "bench.gpu", *given, "--began", str(begin)], options.json, begin, options.seconds)
    report = {"torch": torch.__version__, "triton": triton.__version__, "rows": [], "skipped": []}
    if options.began is not None and Path(options.json).exists():
        report = json.loads(Path(options.json).read_text())
    going_on, alive = bool(report["rows"]), True
    with fastdl.use_backend("triton"):  # nothing falls through to torch
        if options.dry_run:
            with gpu_cases.on("cpu"):
                print(HEAD)
                benchmark(cases, report, options.json, math.inf, begin, None, None, math.inf, lambda: None)
        else:
            card = device.of(torch.empty(0, device="cuda"))
            if not going_on:
                compile_all([case.name for case in cases], card, options.seconds / 3)
            flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
            measure = lambda call: tune.microseconds(call, flush, 0.03)
            bandwidth = copy_bandwidth(measure, torch)
            tuned = next(configs.tables(card.name, card.arch)).get("tuned")
            if not going_on:
                print(f"{card.name}, torch {torch.__version__}, triton {triton.__version__}, a copy moves {bandwidth / 1e12:.2f} TB/s, "
                      f"configurations: {'tuned' if tuned else 'untuned'}\n\n{HEAD}", flush=True)
            report |= {"device": card._asdict(), "copy_bytes_per_s": bandwidth, "tuned": tuned}
            alive = benchmark(cases, report, options.json, options.seconds, begin, measure, lambda call: host_microseconds(call, torch),
                              bandwidth, torch.cuda.synchronize)
    if not alive:
        sys.stdout.flush()
        os._exit(LOST)  # tidying up would ask the GPU
    print(summary(report))
    return 1 if any(row.get("wrong") or "failed" in row for row in report["rows"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
