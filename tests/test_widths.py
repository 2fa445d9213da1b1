"""The other SIMD width: the kernels' tests again in a process that compiles for it.

A 256-bit machine runs 512-bit code split in two; a 512-bit machine runs what a 256-bit one (Haswell) would.
"""

import os
import subprocess
import sys

import pytest
from subprocesses import ROOT

from fastdl.cpu.features import vector_bits

HASWELL = {"FASTDL_VECTOR_BITS": "256", "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi,+bmi2,+lzcnt,+popcnt,+f16c"}
OTHER = {"FASTDL_VECTOR_BITS": "512"} if vector_bits() < 512 else HASWELL


@pytest.mark.parametrize("files,chosen", [
    (["test_simd.py", "test_microkernel.py", "test_vector_math.py"], ""),
    (["test_matmul.py", "test_conv.py", "test_conv_transpose.py", "test_pool.py", "test_rnn.py"], "numba and f4 and not strided"),
    (["test_conv_pooled.py"], "f4 and not strided or spill"),
    (["test_pool_large.py"], "f4"),
    (["test_elementwise_kernels.py", "test_norm_kernels.py"], "f4 and not strided"),
    (["test_conv_depthwise.py"], "f4 or window"),
    (["test_winograd.py"], "every_size or same_bits"),
    (["test_winograd_gradient.py"], "not forced"),
])
def test_the_other_width(files, chosen):
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{f}" for f in files)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env={**environment, **OTHER}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
