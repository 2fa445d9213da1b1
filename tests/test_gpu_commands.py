"""The commands for a GPU, where there is none: they say so in one line and fail."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from subprocesses import ROOT

triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_gpu
@pytest.mark.parametrize("command,said", [(["-m", "bench.gpu"], "no CUDA device"), (["-m", "fastdl", "tune"], "")])
def test_without_a_gpu(command, said):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode not in (0, -11), done
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not done.stdout


def test_the_benchmark_s_checks():
    """They catch a wrong answer."""
    from bench import gpu_cases
    from bench.gpu import relative_error

    assert len({case.name for case in gpu_cases.CASES}) == len(gpu_cases.CASES)
    right = torch.randn(100, dtype=torch.float64)
    assert relative_error(right.float(), right) < 1e-6
    assert relative_error((right + 0.01).float(), right) > 1e-3
    assert relative_error(torch.full((100,), float("nan")), right) == float("inf")


@triton
@pytest.mark.parametrize("words", [["matmul", "linear", "conv", "pool"], ["softmax", "norm", "cross", "recurrent"]])
def test_the_benchmark_runs_dry(words, tmp_path):
    """Every case, at a small size, in Triton's interpreter."""
    from bench import gpu_cases

    found = tmp_path / "found.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--json", found, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(found.read_text())
    names = [case.name for case in gpu_cases.cases(tiny=True) if any(w in case.group or w in case.name for w in words)]
    assert [row["name"] for row in report["rows"]] == names and not report["skipped"]
    assert all(row["error"] < 0.05 and "ratio" not in row for row in report["rows"])


def fake_case(name, ours, theirs=None):
    from bench.gpu_cases import Case

    return Case("group", name, lambda: (ours, theirs or ours, None, {"bytes": 1000}))


def test_a_case_that_fails_does_not_take_the_others_with_it(tmp_path, capsys):
    from bench import gpu

    def fails():
        raise RuntimeError("out of resources")

    ones = lambda: torch.ones(3)
    cases = [fake_case("good", ones), fake_case("fails", fails), fake_case("wrong", ones, lambda: torch.zeros(3)), fake_case("last", ones)]
    report = {"rows": [], "skipped": []}
    assert gpu.benchmark(cases, report, tmp_path / "r.json", 1e9, 0.0, lambda call: 2.0, lambda call: 4.0, 1e9, lambda: None)
    assert json.loads((tmp_path / "r.json").read_text()) == report
    good, failed, wrong, last = report["rows"]
    assert good["ratio"] == last["ratio"] == 1.0 and good["of_copy"] == pytest.approx(0.5)
    assert failed["failed"] == "RuntimeError: out of resources" and wrong["wrong"]
    said = capsys.readouterr().out + gpu.summary(report)
    assert "| fails | failed: RuntimeError: out of resources" in said and "| group | 1.00 | 1.00 | 0.50 | 2 |" in said
    assert "wrong: 1 cases" in said and "failed: 1 cases" in said


def test_a_lost_gpu_ends_the_process_and_what_was_measured_stays(tmp_path, capsys):
    from bench import gpu

    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def sync():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cases = [fake_case("fails", fails), fake_case("after", lambda: torch.ones(3))]
    report = {"rows": [], "skipped": []}
    assert not gpu.benchmark(cases, report, tmp_path / "r.json", 1e9, 0.0, lambda call: 2.0, lambda call: 4.0, 1e9, sync)
    assert [row["name"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]] == ["fails"]
    assert gpu.benchmark(cases, report, tmp_path / "r.json", 1e9, 0.0, lambda call: 2.0, lambda call: 4.0, 1e9, lambda: None)
    assert [row["name"] for row in report["rows"]] == ["fails", "after"]


CRASHES = """
import json, os, sys
sys.path.insert(0, sys.argv[2])
import torch
from bench import gpu
from bench.gpu_cases import Case
path = sys.argv[1]
report = json.load(open(path)) if os.path.exists(path) else {"rows": [], "skipped": []}
ones = lambda: torch.ones(3)
calls = {"first": ones, "crashes": lambda: os._exit(9), "hangs": lambda: os.kill(os.getpid(), 9), "last": ones}
cases = [Case("group", name, lambda call=call: (call, ones, None, {})) for name, call in calls.items()]
gpu.benchmark(cases, report, path, 1e9, 0.0, lambda call: 2.0, lambda call: 4.0, 1e9, lambda: None)
"""


def test_the_benchmark_goes_on_after_a_case_that_ends_its_process(tmp_path, capsys):
    import time

    from bench import gpu

    found = tmp_path / "r.json"
    assert gpu.supervise([sys.executable, "-c", CRASHES, str(found), str(ROOT)], found, time.monotonic(), 1e9) == 0
    report = json.loads(found.read_text())
    assert [row["name"] for row in report["rows"]] == ["first", "crashes", "hangs", "last"] and "running" not in report
    assert ["failed" in row for row in report["rows"]] == [False, True, True, False]
    assert "it hung or crashed: the process ended with code 9" in report["rows"][1]["failed"]
    assert "| crashes | failed: it hung or crashed" in capsys.readouterr().out


@triton
def test_the_benchmark_compiles_ahead():
    from bench import gpu
    from fastdl.gpu import ahead, device

    assert gpu.compile_case("max 2x2 planar forward", device.KNOWN["sm_90"])
    count, failures = ahead.in_parallel(gpu.compile_case, ["max 2x2 planar forward", "no such case"], device.KNOWN["sm_90"])
    assert count and [(name, why.split(":")[0]) for name, why in failures] == [("no such case", "StopIteration")]


@triton
def test_the_host_s_share_is_measured_without_a_gpu(monkeypatch, capsys):
    from bench import gpu_host
    from fastdl.gpu import configs

    calls = []
    monkeypatch.setattr(gpu_host, "microseconds", lambda call: [call() for _ in range(4)] and (calls.append(1) or 2.5))
    try:
        gpu_host.main()
    finally:
        configs.forget()  # what was recorded launches nothing
    rows = [line for line in capsys.readouterr().out.splitlines() if "| 2.5 | 2.5 |" in line]
    assert len(rows) == len(list(gpu_host.cases())) and len(calls) == 2 * len(rows)
