"""What the machine has: vector width, registers, caches, cores.

Each fact is found once and kept; the environment variables that change an answer are read then.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_SYS = Path("/sys")
_PROC = Path("/proc")
_AVX512 = {"avx512f", "avx512vl", "avx512dq", "avx512bw"}  # what every AVX-512 server core since Skylake has


# ------------------------------------------------------------------------------------------------ the instruction set
def _llvm():
    """llvmlite's view of the host, or None where there is no llvmlite (then nothing is compiled either)."""
    try:
        import llvmlite.binding
    except (ImportError, OSError):
        return None
    return llvmlite.binding


@functools.cache
def cpu_name() -> str:
    """The CPU that code is compiled for, by LLVM's name ("znver4"): NUMBA_CPU_NAME, or the host's."""
    if chosen := os.environ.get("NUMBA_CPU_NAME"):
        return chosen
    llvm = _llvm()
    return llvm.get_host_cpu_name() if llvm else "unknown"


@functools.cache
def features() -> tuple[str, ...]:
    """The features that code is compiled for, by LLVM's names, sorted.

    The host's, changed as NUMBA_CPU_FEATURES says ("+avx2,+fma,-avx512f"). Where NUMBA_CPU_NAME names another CPU, those
    that NUMBA_CPU_FEATURES adds and no others: what else that CPU has cannot be asked.
    """
    llvm = _llvm()
    host = {name for name, has in llvm.get_host_cpu_features().items() if has} if llvm else set()
    # Numba's rule: without NUMBA_CPU_FEATURES a named CPU is compiled for with the host's features, "generic" with none
    changes = os.environ.get("NUMBA_CPU_FEATURES", "" if cpu_name() == "generic" else None)
    if changes is None:
        return tuple(sorted(host))
    found = host if llvm and cpu_name() == llvm.get_host_cpu_name() else set()
    for change in filter(None, (c.strip() for c in changes.split(","))):
        (found.add if change[0] == "+" else found.discard)(change.lstrip("+-"))
    return tuple(sorted(found))


@functools.cache
def vector_bits() -> int:
    """The width of a vector register: 512 (AVX-512), 256 (AVX2 with FMA) or 128; FASTDL_VECTOR_BITS overrides it.

    Raises ValueError where FASTDL_VECTOR_BITS is something else.
    """
    if chosen := os.environ.get("FASTDL_VECTOR_BITS"):
        if chosen not in ("128", "256", "512"):
            raise ValueError(f"FASTDL_VECTOR_BITS is {chosen!r}; the rule is 128, 256 or 512")
        return int(chosen)
    return register_bits()


@functools.cache
def register_bits() -> int:
    """The width of the machine's vector registers, whatever FASTDL_VECTOR_BITS says."""
    has = set(features())
    return 512 if has >= _AVX512 else 256 if has >= {"avx2", "fma"} else 128


@functools.cache
def registers() -> int:
    """How many vector registers there are. AVX-512 has 32, for narrower vectors too."""
    return 32 if set(features()) >= _AVX512 or platform.machine().lower() in ("aarch64", "arm64") else 16


def has_masks() -> bool:
    """Whether loads and stores of some lanes only are instructions as fast as any: AVX-512's mask registers."""
    return set(features()) >= _AVX512


@functools.cache
def model_name() -> str:
    """The CPU by its maker's name, as people know it."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    for line in (_read(_PROC / "cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


# ------------------------------------------------------------------------------------------------ caches
class Caches(NamedTuple):
    """Sizes in bytes. The third level's is the whole of it, however many cores share it."""

    l1d: int
    l2: int
    l3: int


_USUAL = Caches(32 << 10, 512 << 10, 8 << 20)


@functools.cache
def caches() -> Caches:
    """The data caches that the first core sees; a usual size where the machine (often a virtual one) does not tell."""
    found = _macos_caches() if sys.platform == "darwin" else _linux_caches()
    return Caches(*(found.get(level) or usual for level, usual in zip((1, 2, 3), _USUAL, strict=True)))


def _linux_caches() -> dict[int, int]:
    found = {}
    for index in sorted((_SYS / "devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if kind in ("Data", "Unified") and level and level.isdigit():
            found[int(level)] = _bytes(size)
    return found


def _macos_caches() -> dict[int, int]:
    # Apple's cores come in two kinds; perflevel0 is the fast one
    return {1: _bytes(_sysctl("hw.perflevel0.l1dcachesize") or _sysctl("hw.l1dcachesize")),
            2: _bytes(_sysctl("hw.perflevel0.l2cachesize") or _sysctl("hw.l2cachesize")),
            3: _bytes(_sysctl("hw.l3cachesize"))}


def _bytes(text: str | None) -> int:
    """"32K" as a number of bytes; 0 for what is not a size."""
    text = (text or "").strip().upper()
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    digits = text if scale == 1 else text[:-1]
    return int(digits) * scale if digits.isdigit() else 0


def _sysctl(name: str) -> str | None:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# ------------------------------------------------------------------------------------------------ cores
@functools.cache
def available_cores() -> int:
    """How many cores this process may use: its affinity, and a container's share of CPU time, rounded up."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13; honours PYTHON_CPU_COUNT
        cores = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    share = _cgroup_share()
    return max(1, min(cores or 1, math.ceil(share) if share else sys.maxsize))


def _cgroup_share() -> float | None:
    """The smallest CPU quota, in cores, of the control groups that this process is in; None where there is none.

    In a container the group's path may be seen from outside (version 1), so its ancestors, the root among them, are asked too.
    """
    shares = []
    for line in (_read(_PROC / "self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            folders, quota = [_SYS / "fs/cgroup"], _quota_v2
        elif "cpu" in controllers.split(","):
            folders, quota = [_SYS / "fs/cgroup" / name for name in dict.fromkeys((controllers, "cpu"))], _quota_v1
        else:
            continue
        parts = [p for p in path.split("/") if p and p != ".."]
        for folder in folders:
            shares += [quota(folder.joinpath(*parts[:n])) for n in range(len(parts) + 1)]
    return min((s for s in shares if s), default=None)


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None  # a quota of -1: none


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
