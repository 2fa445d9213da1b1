"""Compile kernels for a GPU that is not there, and read what they need of it.

``compile_for("sm_90", call)`` runs ``call`` on meta tensors as if on that device, and compiles what it would have launched, with the
same arguments and configuration. ``python -m fastdl.gpu.ahead`` prints a table of the main kernels, and with ``--markdown`` the
shorter one of docs/gpu.md.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from . import device
from .launch import Launch, record


class Resources(NamedTuple):
    """What a compiled kernel needs, and what it is made of."""

    kernel: str
    arch: str
    shared: int  # bytes a program
    registers: int  # a thread (vector registers on AMD)
    spilled: int  # instructions that access the stack on CUDA, vector registers spilled on AMD
    matrix: str  # the matrix instruction: wgmma, tcgen05, mma, mfma, or ""
    options: dict  # the launch's constants


_ARCHES = tuple(device.KNOWN)


class _Driver:
    """Stands for a GPU's driver while compiling: all that Triton asks of one before it loads a kernel."""

    def __init__(self):
        from triton.backends.compiler import GPUTarget

        self.arch = _ARCHES[0]
        self.targets = {arch: GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)
                        for arch in _ARCHES}

    def get_current_device(self):
        return f"ahead of time for {self.arch}"  # the key under which a kernel keeps what was compiled

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return self.targets[self.arch]

    def get_active_torch_device(self):
        return torch.device("meta")


def compile_for(arch: str, call) -> list[Resources]:
    """What ``call()``, on meta tensors, launches on a device of this architecture, compiled; each kernel and configuration once."""
    with record(device.KNOWN[arch]) as launches:
        call()
    seen, found = set(), []
    for launch in launches:
        key = (launch.kernel.fn.__name__, repr(sorted(launch.options.items())), repr(_types(launch.args)))
        if key not in seen:
            seen.add(key)
            found.append(compile_launch(arch, launch))
    return found


def _types(args):
    return [(a.dtype, a.ndim) if isinstance(a, torch.Tensor) else type(a).__name__ for a in args]


def compiled(arch: str, launch: Launch):
    """Triton's compiled kernel; ``.asm`` has the stages of its compilation."""
    from triton.runtime.driver import driver

    before = driver._active
    ours = _Driver()
    ours.arch = arch
    driver.set_active(ours)
    try:
        return launch.kernel.warmup(*launch.args, grid=launch.grid, enable_fp_fusion=True, **launch.options)
    finally:
        driver._active = before


def compile_launches(where: device.Device, call) -> int:
    """Compile what ``call()``, on meta tensors, launches on a device, into Triton's cache; answers how many launches."""
    import fastdl

    with fastdl.use_backend("triton"), record(where) as launches:
        call()
    for launch in launches:
        compiled(where.arch, launch)
    return len(launches)


def _one_job(job, item, where):
    os.environ.pop("TRITON_INTERPRET", None)
    try:
        return job(item, where), None
    except Exception as error:
        return 0, f"{type(error).__name__}: {error}"


def in_parallel(job, items, where: device.Device, seconds: float | None = None) -> tuple[int, list]:
    """``job(item, where)``, a function of a module that compiles launches and counts them, for all items, by a process a CPU.

    Answers the count and what failed, as (item, why). Items that are not begun after so many seconds are left out.
    """
    count, failures = 0, []
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with concurrent.futures.ProcessPoolExecutor(max(1, min(cpus, len(items), 32)), multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_one_job, job, item, where): item for item in items}
        try:
            for done in concurrent.futures.as_completed(waiting, seconds):
                try:
                    kernels, failure = done.result()
                except Exception as error:  # a worker died: the compiler may end a process
                    kernels, failure = 0, f"{type(error).__name__}: {error}"
                count += kernels
                if failure:
                    failures.append((waiting[done], failure))
        except TimeoutError:
            for future in waiting:
                future.cancel()
    return count, failures


def compile_launch(arch: str, launch: Launch) -> Resources:
    made = compiled(arch, launch)
    read = _read_cuda if "cubin" in made.asm else _read_amd
    registers, spilled, matrix = read(made)
    return Resources(launch.kernel.fn.__name__, arch, made.metadata.shared, registers, spilled, matrix, launch.options)


def _read_cuda(made):
    """From the machine code: registers, accesses to the stack (spills, arrays indexed at run time), the matrix instruction."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
        registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
        spilled = 0
        if int(stack):  # of which a few bytes may be reserved and never touched
            code = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
            spilled = len(re.findall(r"\b(?:STL|LDL)\b", code))
    ptx = made.asm["ptx"]
    matrix = next((name for name in ("wgmma", "tcgen05", "mma") if f"{name}.mma_async" in ptx or f"{name}.mma" in ptx or
                   (name == "mma" and "mma.sync" in ptx)), "")
    return int(registers), spilled, matrix


def _read_amd(made):
    text = made.asm["amdgcn"]
    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])
    spilled = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text)[1])
    return registers, spilled, "mfma" if "v_mfma" in text else ""


def table(rows: list[Resources]) -> str:
    lines = [f"{'kernel':<24} {'arch':<8} {'shared':>8} {'registers':>9} {'spilled':>7}  {'matrix':<8} blocks"]
    for r in rows:
        blocks = " ".join(f"{k}={v}" for k, v in r.options.items() if k.isupper() and isinstance(v, int) and not isinstance(v, bool)
                          and k.startswith("B"))
        lines.append(f"{r.kernel:<24} {r.arch:<8} {r.shared:>8} {r.registers:>9} {r.spilled:>7}  {r.matrix or '-':<8} {blocks}"
                     f" warps={r.options.get('num_warps', 4)} stages={r.options.get('num_stages', '-')}")
    return "\n".join(lines)


# what comes beside a call's own kernels: sums of parts, changes of layout
_HELPERS = ("add_parts", "add_splits", "columns", "turn", "merge_moments")


def markdown(calls: dict, arches=_ARCHES) -> str:
    """A row for each kernel of a call, a column for each architecture: registers a thread, KiB of shared memory a program, the matrix
    instruction, and what is spilled. Of a kernel in several configurations, the one with most registers."""
    lines = [f"| call | kernel | {' | '.join(arches)} |", "|---|---" + "|---" * len(arches) + "|"]
    for name, call in calls.items():
        cells: dict[str, dict] = {}
        for arch in arches:
            for row in sorted(compile_for(arch, call), key=lambda row: row.registers):
                if row.kernel not in _HELPERS:
                    shown = [str(row.registers), f"{-(-row.shared // 1024)} K"] + [row.matrix] * bool(row.matrix)
                    cells.setdefault(row.kernel, {})[arch] = ", ".join(shown + [f"{row.spilled} spilled"] * bool(row.spilled))
        for kernel, by_arch in cells.items():
            lines.append(f"| {name} | `{kernel}` | {' | '.join(by_arch.get(arch, '') for arch in arches)} |")
    return "\n".join(lines)


def main() -> int:
    import argparse

    from .main_calls import CALLS

    parser = argparse.ArgumentParser(prog="python -m fastdl.gpu.ahead", description="What the main kernels need of a GPU, without one.")
    parser.add_argument("--arch", choices=_ARCHES, nargs="+", default=list(_ARCHES))
    parser.add_argument("names", nargs="*", help=f"which calls (default: all): {', '.join(CALLS)}")
    parser.add_argument("--markdown", action="store_true", help="a short table: a row for each kernel of a call, a column an architecture")
    options = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    if options.markdown:
        print(markdown({name: CALLS[name] for name in options.names or CALLS}, options.arch))
        return 0
    rows = []
    for name in options.names or CALLS:
        for arch in options.arch:
            rows += compile_for(arch, CALLS[name])
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
