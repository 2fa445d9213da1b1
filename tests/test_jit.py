"""The compiler's cache: shared by processes, safe against half files and places that cannot be written, keyed by the sources."""

import gc
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from subprocesses import ROOT

from fastdl.cpu.borrowed import absent, contents, create, nothing
from fastdl.cpu.fingerprint import fingerprint
from fastdl.cpu.jit import kernel
from fastdl.cpu.simd import address, write

# a small kernel: what is tested is the cache, not the compiler
USE = """
import numpy as np
from fastdl.cpu import jit
from fastdl.ops.pointwise.numba_pointwise import ACTIVATE
activate = ACTIVATE["relu"]
y = np.full(5, np.nan, "f4")
activate["f"](0, np.arange(-2, 3, dtype="f4"), y, 0.0, 0.0)
assert (y == [0, 0, 0, 1, 2]).all()
print(jit._cache_key(), sum(activate.dispatchers["f"].stats.cache_hits.values()))
"""


def start(code=USE, root=ROOT, **environment):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
                            env={**os.environ, "PYTHONPATH": str(root), "FASTDL_NUM_THREADS": "1", **environment})


def finish(process):
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out.split(), error


def test_processes_that_start_at_once(tmp_path):
    processes = [start(FASTDL_CACHE_DIR=str(tmp_path)) for _ in range(3)]
    answers = [finish(p)[0] for p in processes]
    keys, hits = {key for key, _ in answers}, sorted(int(hit) for _, hit in answers)
    assert len(keys) == 1
    files = [f for f in (tmp_path / keys.pop()).iterdir() if f.is_file()]
    assert [f.suffix for f in files] == [".bin"], files  # one entry, no temporary file left
    assert hits == [0, 1, 1]  # one compiled, the others waited
    assert finish(start(FASTDL_CACHE_DIR=str(tmp_path)))[0][1] == "1"


def test_half_a_file_is_compiled_anew(tmp_path):
    (key, *_), _ = finish(start(FASTDL_CACHE_DIR=str(tmp_path)))
    (file,) = (tmp_path / key).glob("*.bin")
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"x" * 100):
        file.write_bytes(broken)
        finish(start(FASTDL_CACHE_DIR=str(tmp_path)))
        assert len(file.read_bytes()) > 1000  # and kept again


def test_a_directory_that_cannot_be_written(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    _, error = finish(start(FASTDL_CACHE_DIR=str(blocker / "cache")))
    assert error.count("compiled code is not kept") == 1
    assert "FASTDL_CACHE_DIR" in error


def test_a_slow_compilation_is_announced_once(tmp_path):
    code = "import numpy as np, fastdl.functional as F; a = np.eye(3).T; F.matmul(a, a); F.matmul(a, a)"
    _, error = finish(start(code, FASTDL_CACHE_DIR=str(tmp_path)))
    assert error.count(str(tmp_path)) == 1
    assert error.count("compiling matmul.numba_gemm.gemm (float64) ... ") == 1
    _, error = finish(start(code, FASTDL_CACHE_DIR=str(tmp_path)))
    assert error == ""


def test_an_edited_source_has_another_key(tmp_path):
    shutil.copytree(ROOT / "fastdl", tmp_path / "fastdl", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from fastdl.cpu import jit; print(jit._cache_key())"
    (before,), _ = finish(start(code, root=tmp_path))
    with open(tmp_path / "fastdl" / "ops" / "matmul" / "triton_kernels.py", "a") as file:
        file.write("# edited: a kernel for a GPU, which makes no difference here\n")
    again, wider = finish(start(code, root=tmp_path))[0], finish(start(code, root=tmp_path, FASTDL_VECTOR_BITS="128"))[0]
    with open(tmp_path / "fastdl" / "cpu" / "microkernel.py", "a") as file:
        file.write("# edited\n")
    (after,), _ = finish(start(code, root=tmp_path))
    assert again == [before] != wider
    assert after != before


ONE = """
import numpy as np
from fastdl.ops.conv.numba_winograd_weights import Form, transformed
from fastdl.ops.conv.winograd import matrices
w = np.random.default_rng(0).standard_normal((16, 1, 3, 3)).astype("f4")
for m in {tiles}:
    u = transformed(w[:, :, None], Form(m, 3, 2, 3, 1, False))
    g = np.array(matrices(m, 3)[1], float)
    expected = (g @ w[:, 0].astype(float) @ g.T).reshape(16, -1).T
    assert np.abs(u.reshape(-1, 16) - expected).max() < 1e-4, m
"""


def test_closures_of_one_name_do_not_meet(tmp_path):
    """Kernels of one factory, each compiled by a process of its own, loaded together from the cache by a third."""
    for tiles in ("(2,)", "(4,)", "(6,)", "(2, 4, 6)", "(6, 4, 2)"):
        finish(start(ONE.format(tiles=tiles), FASTDL_CACHE_DIR=str(tmp_path), FASTDL_VECTOR_BITS="256"))


SCRIPT = """
import numpy as np
from fastdl.cpu.jit import inline, kernel
from helper import shifted

STEP = {step}

@inline
def twice(a):
    return {factor} * a

@kernel("R1 W1")
def run(x, y):
    for i in range(x.shape[0]):
        y[i] = shifted(twice(x[i])) + STEP

y = np.zeros(3, "f4")
run["f"](np.ones(3, "f4"), y)
print(y[0], sum(run.dispatchers["f"].stats.cache_hits.values()))
"""


def test_kernels_of_scripts_are_known_by_their_code(tmp_path):
    """Scripts' kernels are all called __main__.something: each must meet its own code, and an edit of what it uses new code."""

    def answer(step=0.0, factor=2.0, shift=0.0, script="one.py"):
        (tmp_path / "helper.py").write_text(f"from fastdl.cpu.jit import inline\n\n@inline\ndef shifted(a):\n    return a + {shift}\n")
        (tmp_path / script).write_text(SCRIPT.format(step=step, factor=factor))
        out = subprocess.run([sys.executable, "-B", str(tmp_path / script)], capture_output=True, text=True, check=True, cwd=tmp_path,
                             env={**os.environ, "PYTHONPATH": str(ROOT), "FASTDL_CACHE_DIR": str(tmp_path / "cache")}).stdout.split()
        return float(out[0]), out[1] == "1"

    assert answer() == (2.0, False)
    assert answer() == (2.0, True)
    assert answer(script="another.py", factor=3.0) == (3.0, False)
    assert answer(step=5.0) == (7.0, False)  # a constant
    assert answer(shift=10.0) == (12.0, False)  # a function of another module
    assert answer() == (2.0, True)


def test_what_has_no_fingerprint_is_not_kept():
    class Thing:
        pass

    thing, table = Thing(), np.arange(3.0)

    def known(x):
        return table[0] + x

    def unknown(x):
        return thing

    assert fingerprint(unknown) is None
    assert fingerprint(known) == fingerprint(known) is not None
    before = fingerprint(known)
    table[0] = 1  # an array is a constant to compiled code
    assert fingerprint(known) != before


@kernel("R2 W1 i")
def row_of(x, y, i):
    for j in range(y.shape[0]):
        y[j] = x[i, j]


def test_a_kernel_refuses_what_it_was_not_compiled_for():
    x, y = np.arange(6, dtype="f4").reshape(2, 3), np.empty(3, "f4")
    read_only = np.empty(3, "f4")
    read_only.flags.writeable = False
    x.flags.writeable = False  # which may be read
    row_of["f"](x, y, 1)
    assert y.tolist() == [3, 4, 5]
    packed = np.zeros((2, 3), [('x', 'f4'), ('y', 'u1')])['x']
    for bad in [(packed, y), (x.astype("f8"), y), (x, y.astype("f8")), (x[0], y), (x, y[None]), (x.tolist(), y), (None, y), (1.0, y),
                (x, read_only)]:
        with pytest.raises(TypeError, match="not the array that it takes"):
            row_of["f"](*bad, 1)
    for bad in [(x,), (x, y, 1, 2)]:
        with pytest.raises(TypeError):
            row_of["f"](*bad)


@kernel("O2 O1")
def added(x, y):
    if absent(x) or absent(y):
        return nothing(x)
    made = create(x, x.shape[0], x.shape[1])
    z = contents(made)
    if address(z) != 0:
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                write(z, i * x.shape[1] + j, x[i, j] + y[j])
    return made


def test_a_kernel_that_is_offered_arrays_answers_none_where_they_do_not_fit():
    x, y = np.arange(6, dtype="f4").reshape(2, 3), np.ones(3, "f4")
    added["f"]  # compiled before anything is counted: a compiler's leftovers hold None by thousands
    gc.collect()
    before = sys.getrefcount(x), sys.getrefcount(None)
    np.testing.assert_array_equal(added["f"](x, y), x + 1)
    np.testing.assert_array_equal(added["f"](x[:, ::-1], y), x[:, ::-1] + 1)
    packed = np.zeros((2, 3), [("x", "f4"), ("y", "u1")])["x"]
    for bad in [(packed, y), (x.astype("f8"), y), (x, y.astype("i4")), (x[0], y), (x, y[None]), (x.tolist(), y), (None, y), (1.0, y),
                (x, "y"), (np.ma.zeros((2, 3), "f4"), y)]:
        for _ in range(1000):
            assert added["f"](*bad) is None
    assert sys.getrefcount(x) == before[0] and abs(sys.getrefcount(None) - before[1]) < 5000  # others count None as well
    for bad in [(x,), (x, y, 1)]:
        with pytest.raises(TypeError):
            added["f"](*bad)
    huge = np.broadcast_to(np.float32(1), (1 << 40, 1 << 20))
    with pytest.raises((MemoryError, ValueError)):
        added["f"](huge, y)


def test_a_call_counts_no_references():
    x, y = np.arange(6, dtype="f4").reshape(2, 3), np.empty(3, "f4")
    before = sys.getrefcount(x), sys.getrefcount(y)
    for _ in range(100):
        row_of["f"](x, y, 1)
        with pytest.raises(TypeError):
            row_of["f"](x, y[None], 1)
    assert (sys.getrefcount(x), sys.getrefcount(y)) == before
