"""The main kernels compiled for GPUs that are not there: what they need of registers and shared memory, and what they are made of.

With a GPU or without one: the compiler and its assemblers are Triton's own.
"""

import json
import re

import pytest

pytest.importorskip("triton", reason="triton is not installed (Linux only: pip install 'fastdl[gpu]')")

from fastdl.gpu import ahead, configs, device
from fastdl.gpu.launch import record
from fastdl.gpu.main_calls import CALLS, MATRIX

MATRIX_INSTRUCTION = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}


@pytest.mark.parametrize("name", CALLS)
def test_compiles_everywhere(name):
    """No spills, no more shared memory than there is, and where it is a matter of matrix products, the right instruction."""
    for arch, where in device.KNOWN.items():
        rows = ahead.compile_for(arch, CALLS[name])
        assert rows, "nothing was launched"
        for row in rows:
            assert row.spilled == 0, row
            assert row.shared <= where.shared, row
            assert 0 < row.registers <= 512, row
        if name in MATRIX:
            assert any(row.matrix == MATRIX_INSTRUCTION[arch] for row in rows), rows


@pytest.mark.parametrize("arch", device.KNOWN)
def test_large_hidden_states_take_one_launch(arch):
    """Programs that wait for one another: by a release and an acquire of the whole GPU, and past the caches that others do not see."""
    with record(device.KNOWN[arch]) as launches:
        CALLS["gru bf16, hidden 1024"]()
    steps = {name: [launch for launch in launches if launch.kernel.fn.__name__ == name] for name in ("advance", "retreat")}
    if arch.startswith("gfx"):
        assert not any(launch.options["ONE_LAUNCH"] for found in steps.values() for launch in found)
        return
    for name, found in steps.items():
        if name == "retreat" and arch != "sm_90":  # main_calls.py
            continue
        (launch,) = found
        assert launch.options["ONE_LAUNCH"] and launch.options["launch_cooperative_grid"]
        assert launch.grid[0] * launch.grid[1] * launch.grid[2] <= device.KNOWN[arch].multiprocessors
        ptx = ahead.compiled(arch, launch).asm["ptx"]
        assert re.search(r"atom\.global\S*\.acq_rel\S*\.add", ptx), "nothing is released"
        assert re.search(r"(ld|atom)\.global\S*\.acquire", ptx), "nothing is acquired"
        assert re.search(r"ld\.global\S*\.cg|cp\.async\.cg", ptx)


def test_a_spill_would_be_seen():
    """The reading of machine code itself: a tile too large for its warps' registers."""
    with configs.use("product", BM=256, BN=256, BK=32, GROUP=8, MAX_SPLITS=1, num_warps=4, num_stages=2):
        rows = ahead.compile_for("sm_80", CALLS["matmul bf16"])
    assert any(row.spilled for row in rows), rows


def test_configuration_tables():
    """Every rule of every table names a kernel of the default table, and the default serves all sizes."""
    default = json.loads((configs.FOLDER / "default.json").read_text())["kernels"]
    for path in configs.FOLDER.glob("*.json"):
        table = json.loads(path.read_text())
        assert {"device", "tuned", "kernels"} <= set(table), path.name
        assert table["tuned"] is None or set(table["tuned"]) >= {"triton"}, path.name
        for kernel, rules in table["kernels"].items():
            assert kernel in default and all(set(rule) == {"if", "use"} for rule in rules), (path.name, kernel)
    for kernel, rules in default.items():
        assert rules[-1]["if"] == {}, f"{kernel}: the last rule of default.json fits every call"
