"""The main kernels compiled for GPUs that are not there: what they need of registers and shared memory, and what they are made of.

With a GPU or without one: the compiler and its assemblers are Triton's own.
"""

import json
import re

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed (Linux only: pip install 'fastdl[gpu]')")

import fastdl
import fastdl.functional as F
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
    for found in steps.values():
        (launch,) = found
        assert launch.options["ONE_LAUNCH"] and launch.options["launch_cooperative_grid"]
        assert launch.grid[0] * launch.grid[1] * launch.grid[2] <= device.KNOWN[arch].multiprocessors
        ptx = ahead.compiled(arch, launch).asm["ptx"]
        assert re.search(r"atom\.global\S*\.acq_rel\S*\.add", ptx), "nothing is released"
        assert re.search(r"(ld|atom)\.global\S*\.acquire", ptx), "nothing is acquired"
        assert re.search(r"ld\.global\S*\.cg|cp\.async\.cg", ptx)


def test_phases_without_taps():
    """A stride larger than the kernel: no kernel is compiled for no taps (it would divide by their number), and zeros are not computed."""
    with record(device.KNOWN["sm_90"]) as launches:
        x, w = torch.empty(2, 64, 8, 8, device="meta"), torch.empty(64, 64, 1, 1, device="meta")
        F.conv_transpose2d(x, w, stride=2)
        plain = len(launches)
        F.conv_transpose2d(x, w, torch.empty(64, device="meta"), stride=2)
    found = [launch.options for launch in launches if launch.kernel.fn.__name__ == "correlate"]
    assert all(options["TD"] * options["TH"] * options["TW"] for options in found)
    assert len(launches) - plain > plain


@pytest.mark.parametrize("name,kernels", [("lstm bf16, hidden 128", ("sequence", "sequence_backward")),
                                          ("lstm f16, hidden 512", ("retreat",)), ("lstm f16, hidden 700", ("retreat",)),
                                          ("gru bf16, hidden 1024", ("retreat",))])
def test_recurrent_weights_stay_in_registers(name, kernels):
    """No step reads the first operand of a product from shared memory into registers: that is done before the loop over the steps.

    Of two dimensions, later compilers let the matrix unit read it where it lies.
    """
    found = dict(_ptx(CALLS[name], stage="ttgir"))
    for kernel in kernels:
        before, loop = found[kernel].split("scf.while", 1)
        assert "warp_group_dot" in loop or (re.search(r"local_load .*opIdx = 0", before) and "tt.dot" in loop), kernel
        assert not re.search(r"local_load .*opIdx = 0", loop), kernel


def test_wide_loads_of_any_hidden_state():
    """Rows of 1400 bytes are padded: what a step reads of the state, most of what it reads, comes 16 bytes a thread."""
    for kernel, code in _ptx(CALLS["lstm f16, hidden 700"]):
        if kernel in ("advance", "retreat"):
            loads = re.findall(r"ld\.global\S*\.cg\S*", code)
            assert loads and all(".v4.b32" in load for load in loads), (kernel, set(loads))


def _ptx(call, arch="sm_90", stage="ptx"):
    """(kernel, its PTX) of what a call launches."""
    with fastdl.use_backend("triton"), record(device.KNOWN[arch]) as launches:
        call()
    return [(launch.kernel.fn.__name__, ahead.compiled(arch, launch).asm[stage]) for launch in launches]


@pytest.mark.parametrize("name", ["matmul bf16", "conv 3x3 bf16", "conv 3x3 f16, stride 2", "conv 1x1 bf16", "linear bf16, bias, gelu",
                                  "conv 3x3 bf16, 2x2 max-pool"])
def test_matrix_loops_of_hopper(name):
    """Both operands are multiplied where they lie in shared memory, and copied there, 16 bytes a thread or as tiles, steps ahead.

    But of two boxes of positions the compiler takes the first through registers.
    """
    found = 0
    for kernel, code in _ptx(CALLS[name], stage="ttgir"):
        products = re.findall(r"warp_group_dot .*? : (.*)", code)
        first = r"[^*]*" if kernel == "weight_gradient_by_tiles" else r"!ttg\.memdesc<[^*]*"
        assert all(re.match(first + r"\* !ttg\.memdesc<", types) for types in products), (kernel, products)
        if products:
            found += 1
            assert "async_tma_copy_global_to_local" in code or "async_copy_global_to_local" in code, kernel
    for kernel, code in _ptx(CALLS[name]):
        if "wgmma" in code:
            copies = re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*?, (0x\w+|\d+),", code)
            assert all(int(size, 0) == 16 for size in copies), (kernel, set(copies))
            assert copies or "cp.async.bulk.tensor" in code
    assert found


WIDE = ["gelu bf16", "dropout bf16", "softmax bf16", "softmax f16, channels", "layer_norm bf16", "batch_norm bf16, channels-last",
        "batch_norm f32, contiguous", "group_norm f16, channels-last", "max_pool 3x3 bf16, channels-last", "max_pool 2x2 f16, planar",
        "avg_pool 2x2 bf16, channels-last"]


@pytest.mark.parametrize("name", WIDE)
def test_memory_is_moved_sixteen_bytes_at_a_time(name):
    """Of a kernel whose time is memory's, a thread loads and stores 16 bytes at once (8 of one-byte places); single values are float32."""
    for kernel, code in _ptx(CALLS[name]):
        if kernel not in ("merge_moments", "add_parts"):
            moved = re.findall(r"(?:ld|st)\.global(?:\.\w+)*?((?:\.v\d)?\.b\d+)", code)
            assert ".v4.b32" in moved and set(moved) <= {".v4.b32", ".v2.b32", ".b32"}, (kernel, set(moved))


def test_a_pool_s_divisions_are_of_32_bits():
    """Until there are more rows than that counts."""
    for kernel, code in _ptx(CALLS["max_pool 3x3 bf16, channels-last"]):
        assert re.search(r"div\.[su]32", code) and not re.search(r"(div|rem)\.[su]64", code), kernel
    many = _ptx(lambda: F.max_pool2d(_large(1 << 20, 2, 8192, 256), 2))
    assert any(re.search(r"div\.[su]64", code) for _, code in many)


LARGE = (1 << 31) + 7168  # elements


def _large(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def _last(n, *spatial_and_channels):
    return _large(n, *spatial_and_channels).movedim(-1, 1)


LARGE_CALLS = {
    "gelu": lambda: F.gelu(_large(LARGE)),
    "dropout": lambda: F.dropout(_large(LARGE), 0.5, seed=1),
    "softmax": lambda: F.softmax(_large(LARGE // 512, 512), 1),
    "softmax of channels": lambda: F.softmax(_large(LARGE // 8192, 8, 1024), 1),
    "layer_norm": lambda: F.layer_norm(_large(LARGE // 512, 512), 512),
    "cross_entropy": lambda: F.cross_entropy(_large(LARGE // 512, 512), _large(LARGE // 512, dtype=torch.int64)),
    "batch_norm": lambda: F.batch_norm(_last(LARGE // 4096, 8, 8, 64), None, None, training=True),
    "batch_norm of very many channels": lambda: F.batch_norm(_large(1, 300000, 112, 64), None, None, training=True),
    "group_norm": lambda: F.group_norm(_large(LARGE // 4096, 64, 64), 4),
    "max_pool": lambda: F.max_pool2d(_last(LARGE // 4096, 8, 8, 64), 2),
    "max_pool, planar": lambda: F.max_pool2d(_large(LARGE // 4096, 64, 8, 8), 2),
    "linear": lambda: F.linear(_large(LARGE // 512, 512), _large(512, 512)),
    "bmm": lambda: F.bmm(_large(LARGE // 8192, 128, 64), _large(LARGE // 8192, 64, 128)),
    "conv": lambda: F.conv2d(_last(LARGE // 4096, 8, 8, 64), _last(64, 3, 3, 64), padding=1),
    "conv, planar": lambda: F.conv2d(_large(LARGE // 4096, 64, 8, 8), _last(64, 3, 3, 64), padding=1, stride=2),
    "conv, depthwise": lambda: F.conv2d(_last(LARGE // 4096, 8, 8, 64), _large(64, 1, 3, 3), padding=1, groups=64),
    "lstm": lambda: F.lstm(_large(LARGE // (64 * 64), 64, 64), None, [_large(256, 64), _large(256, 64), _large(256), _large(256)]),
}


@pytest.mark.parametrize("name", LARGE_CALLS)
def test_more_than_two_to_the_31_elements(name):
    """Their kernels compile without spills, with arguments of 64 bits where a size needs them, and grids are such as CUDA takes."""
    where = device.KNOWN["sm_90"]
    with fastdl.use_backend("triton"), record(where) as launches:
        LARGE_CALLS[name]()
    assert launches
    for launch in launches:
        x, y, z = (*launch.grid, 1, 1)[:3]
        assert x < 1 << 31 and y < 1 << 16 and z < 1 << 16, (launch.kernel.fn.__name__, launch.grid)
        made = ahead.compiled("sm_90", launch)
        if any(isinstance(a, int) and a >= 1 << 31 for a in launch.args):
            signature = made.asm["ttir"].split("tt.func public", 1)[1].split("attributes", 1)[0]
            assert ": i64" in signature, launch.kernel.fn.__name__
    assert all(row.spilled == 0 for row in ahead.compile_for("sm_90", LARGE_CALLS[name]))


def test_a_spill_would_be_seen():
    """The reading of machine code itself: a tile too large for its warps' registers."""
    with configs.use("product", BM=256, BN=256, BK=32, GROUP=8, MAX_SPLITS=1, num_warps=4, num_stages=2):
        rows = ahead.compile_for("sm_80", CALLS["matmul bf16"])
    assert any(row.spilled for row in rows), rows


def test_the_short_table():
    lines = ahead.markdown({"gelu": CALLS["gelu bf16"], "linear": CALLS["linear bf16, one row"]}, ["sm_80", "sm_90"]).splitlines()
    assert lines[0] == "| call | kernel | sm_80 | sm_90 |"
    kernels = [line.split(" | ")[1] for line in lines[2:]]
    assert kernels == ["`forward`", "`backward`", "`product`"]
    assert re.fullmatch(r"\| linear \| `product` \| \d+, \d+ K, mma \| \d+, \d+ K, mma \|", lines[-1]) and "spilled" not in lines[-1]


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
