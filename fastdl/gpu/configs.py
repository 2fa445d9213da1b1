"""Which block sizes, warps and stages a kernel runs with: data, never a search at a first call.

A table is a file in configs/: one per device that was tuned (``nvidia_h200.json``, by ``fastdl tune``), one per architecture,
and ``default.json``. For each kernel it holds rules, and the first that fits a call is taken, from the device's table, else
its architecture's, else the default one:

    {"if": {"m": [1, 64], "bytes": [2, 2]}, "use": {"BM": 16, "BN": 64, "num_warps": 4}}

``if`` bounds sizes that the caller names, both ends included, null for none. ``tuned`` says on which Triton a table was
measured, or null where its entries are reasoned and not measured.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from pathlib import Path

from .device import Device

FOLDER = Path(__file__).parent / "configs"
_forced: dict[str, dict] = {}
also_forget: list = []  # functions that drop what was made with a configuration


def pick(kernel: str, device: Device, **sizes: int) -> dict:
    """The configuration of a kernel on a device for a call of these sizes. The answer must not be changed."""
    if kernel in _forced:
        return _forced[kernel]
    return _pick(kernel, device.name, device.arch, tuple(sizes.items()))


@functools.lru_cache(maxsize=4096)
def _pick(kernel, name, arch, sizes):
    for table in tables(name, arch):
        for rule in table.get("kernels", {}).get(kernel, ()):
            if _fits(rule["if"], dict(sizes)):
                return rule["use"]
    raise LookupError(f"no configuration for {kernel} on {name} ({arch}) with {dict(sizes)}")  # default.json lacks a last rule


def _fits(bounds, sizes):
    return all((low is None or sizes[name] >= low) and (high is None or sizes[name] <= high) for name, (low, high) in bounds.items())


def table_name(device_name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_")


def user_folder() -> Path:
    """Where ``fastdl tune`` writes, and what is read before the package's own tables: FASTDL_CONFIG_DIR, or the user's own."""
    if given := os.environ.get("FASTDL_CONFIG_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fastdl"


def tables(name: str, arch: str):
    for folder in (user_folder(), FOLDER):
        if (path := folder / f"{table_name(name)}.json").exists():
            yield read(path)
    for stem in (arch, "default"):
        if (path := FOLDER / f"{stem}.json").exists():
            yield read(path)


@functools.cache
def read(path: Path) -> dict:
    return json.loads(path.read_text())


def forget() -> None:
    """Read the tables again."""
    read.cache_clear()
    _pick.cache_clear()
    for forgotten in also_forget:
        forgotten()


def forced() -> bool:
    """Whether :func:`use` holds for some kernel."""
    return bool(_forced)


@contextlib.contextmanager
def use(kernel: str, **config):
    """Run a kernel with this configuration and no other: for tests of every path, and for the tuner."""
    before = _forced.get(kernel)
    _forced[kernel] = config
    try:
        yield
    finally:
        if before is None:
            del _forced[kernel]
        else:
            _forced[kernel] = before
