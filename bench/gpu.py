"""``python -m bench.gpu [words] [--json FILE] [--seconds N]``: the Triton kernels beside torch, in one process, on this GPU.

Every answer is checked first, against float64 where that is quick, else against torch's; what is wrong is not timed. Then the two
take turns: times are medians by the GPU's clock, with the L2 cache flushed before each call, on random data. ``ratio`` is torch's time
over fastdl's (above 1: fastdl is faster). The table ends with geometric means by group; everything goes to one JSON file as well.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time

BOUNDS = {"torch.float32": 2e-4, "torch.float16": 4e-3, "torch.bfloat16": 2e-2}  # of the error's norm; tf32 is torch's default in cuDNN


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


def run(case, measure, torch) -> dict:
    ours, theirs, reference, work = case.make()
    got = ours()
    want = theirs() if reference is None else reference()
    error = relative_error(got, want)
    row = {"group": case.group, "name": case.name, "error": error, "dtype": str(got.dtype)}
    if not error <= BOUNDS[str(got.dtype)] * (4 if "training" in case.name or "backward" in case.name else 1):
        return row | {"wrong": True}
    del got, want
    times = {"fastdl": [], "torch": []}
    for _ in range(2):  # turns, so that a change of the clock meets both
        times["fastdl"].append(measure(ours))
        times["torch"].append(measure(theirs))
    row |= {f"{name}_us": statistics.median(t) for name, t in times.items()}
    row["ratio"] = row["torch_us"] / row["fastdl_us"]
    return row | {f"{what}_per_s": n / (row["fastdl_us"] * 1e-6) for what, n in work.items()}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only cases whose group or name contains one of them")
    parser.add_argument("--json", default="bench_gpu.json", help="where everything goes (default: bench_gpu.json)")
    parser.add_argument("--seconds", type=float, default=450, help="start no case after so many (default: 450)")
    options = parser.parse_args(argv)
    try:
        import torch
        import triton
    except ImportError as error:
        print(f"bench.gpu: {error.name} is not installed; nothing was measured", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("bench.gpu: torch sees no CUDA device; nothing was measured", file=sys.stderr)
        return 2
    import fastdl
    from fastdl.gpu import configs, device, tune

    from .gpu_cases import CASES

    begin = time.monotonic()
    fastdl.use_backend("triton")  # nothing falls through to torch
    card = device.of(torch.empty(0, device="cuda"))
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    measure = lambda call: tune.microseconds(call, flush, 0.03)
    bandwidth = copy_bandwidth(measure, torch)
    tuned = next(configs.tables(card.name, card.arch)).get("tuned")
    print(f"{card.name}, torch {torch.__version__}, triton {triton.__version__}, a copy moves {bandwidth / 1e12:.2f} TB/s, "
          f"configurations: {'tuned' if tuned else 'untuned'}\n")
    print("| case | fastdl, us | torch, us | ratio | error |\n|---|---|---|---|---|")
    rows, skipped = [], []
    for case in CASES:
        if options.words and not any(w in case.group or w in case.name for w in options.words):
            continue
        if time.monotonic() - begin > options.seconds:
            skipped.append(case.name)
            continue
        torch.manual_seed(0)
        row = run(case, measure, torch)
        rows.append(row)
        shown = "wrong | | " if row.get("wrong") else f"{row['fastdl_us']:.1f} | {row['torch_us']:.1f} | {row['ratio']:.2f}"
        print(f"| {case.name} | {shown} | {row['error']:.1e} |", flush=True)
        torch.cuda.empty_cache()
    print("\n| group | geometric mean of ratios | cases |\n|---|---|---|")
    groups = {}
    for row in rows:
        if "ratio" in row:
            groups.setdefault(row["group"], []).append(row["ratio"])
    for group, ratios in groups.items():
        print(f"| {group} | {statistics.geometric_mean(ratios):.2f} | {len(ratios)} |")
    if skipped:
        print(f"\nnot run, for lack of time: {len(skipped)} cases; give words or --seconds")
    report = {"device": card._asdict(), "torch": torch.__version__, "triton": triton.__version__, "copy_bytes_per_s": bandwidth,
              "tuned": tuned, "rows": rows, "skipped": skipped}
    with open(options.json, "w") as file:
        json.dump(report, file, indent=1)
    return 1 if any(row.get("wrong") for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
