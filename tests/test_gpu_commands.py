"""The commands for a GPU, where there is none: they say so in one line and fail."""

import subprocess
import sys

import pytest
import torch
from subprocesses import ROOT

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_gpu
@pytest.mark.parametrize("command,said", [(["-m", "bench.gpu"], "no CUDA device"), (["-m", "fastdl", "tune"], "")])
def test_without_a_gpu(command, said):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode not in (0, -11), done
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not done.stdout


def test_the_benchmark_runs_on_what_it_can_import():
    """Its cases can be made, at small sizes, and its checks catch a wrong answer."""
    from bench import gpu_cases
    from bench.gpu import relative_error

    assert len({case.name for case in gpu_cases.CASES}) == len(gpu_cases.CASES)
    right = torch.randn(100, dtype=torch.float64)
    assert relative_error(right.float(), right) < 1e-6
    assert relative_error((right + 0.01).float(), right) > 1e-3
    assert relative_error(torch.full((100,), float("nan")), right) == float("inf")
