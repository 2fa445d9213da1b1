"""The Triton kernels under Triton's interpreter, on CPU tensors: tests/gpu in a process of its own, where TRITON_INTERPRET is set."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from subprocesses import ROOT

FILES = sorted(path.name for path in (Path(__file__).parent / "gpu").glob("test_*.py"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (Linux only: pip install 'fastdl[gpu]')")
@pytest.mark.parametrize("name", FILES)
def test_interpreted(name):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"tests/gpu/{name}"],
                          capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "no tests ran" not in done.stdout
