"""Tuning and the tables it writes, with a clock of the test's own."""

import json

import pytest
import torch
from cases import DEVICE, randn

import fastdl.functional as F
from fastdl.gpu import configs, device, tune


@pytest.fixture(autouse=True)
def _own_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDL_CONFIG_DIR", str(tmp_path))
    configs.forget()
    yield
    monkeypatch.undo()
    configs.forget()


def candidate(BM):
    return dict(BM=BM, BN=16, BK=16, GROUP=2, MAX_SPLITS=1, num_warps=4, num_stages=1)


def test_the_fastest_right_candidate_is_kept_and_used(tmp_path):
    a, b = randn(20, 24).float().to(DEVICE), randn(24, 8).float().to(DEVICE)
    problem = tune.Problem("product", {"m": [11, 30], "bytes": [4, 4]}, lambda where: lambda: F.matmul(a, b))
    times = {16: 3.0, 32: 1.0, 64: 2.0}
    seen = []

    def measure(call, budget):
        seen.append(configs.pick("product", device.of(a), m=0, n=0, k=0, bytes=4)["BM"])
        return times[seen[-1]]

    with configs.use("product_by_tiles", use=0):
        path = tune.tune([], tmp_path, lambda *_: None, measure, DEVICE, [problem], [candidate(16), candidate(32), candidate(64)])
    assert seen == [16, 32, 64, 32, 64, 16]  # and the fastest again
    table = json.loads(path.read_text())
    assert table["kernels"]["product"] == [{"if": problem.bounds, "use": candidate(32)}] and table["tuned"]["triton"]
    where = device.of(a)
    assert configs.pick("product", where, m=20, n=8, k=24, bytes=4, batch=1) == candidate(32)
    assert configs.pick("product", where, m=31, n=8, k=24, bytes=4, batch=1) != candidate(32)


def test_a_wrong_candidate_is_not_kept(tmp_path):
    state = {"calls": 0}

    def call():
        state["calls"] += 1
        return torch.ones(3) if state["calls"] == 1 else torch.zeros(3)

    problem = tune.Problem("product", {}, lambda where: call)
    assert tune.best(problem, DEVICE, lambda call, budget: 1.0, [candidate(16)]) is None


def test_every_problem_has_candidates_and_bounds_that_kernels_know():
    for problem in tune.problems():
        assert problem.kernel in tune.CANDIDATES
        assert all(low <= high for low, high in problem.bounds.values()), problem
