"""``python -m bench.steps``: the profile of a step is of the step that training takes, and prints a row for each layer."""

import re

import numpy as np

import fastdl
import fastdl.functional as F
from bench import steps
from bench.step_profile import profile
from fastdl import nn


def small():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 10))


def test_a_profiled_step_is_the_step():
    x = steps.images((3, 1, 12, 12))
    one, other = small(), small()
    other.load_state_dict(one.state_dict())
    parts, whole = profile(one, x, rounds=1)
    scores, pullback = other.vjp(x)
    _, loss_pullback = fastdl.vjp(F.cross_entropy, scores, np.arange(3))
    assert pullback(loss_pullback(1.0)[0], needs=False) is None
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(mine.grad, theirs.grad)
    assert len(whole) == 1
    names = [part.name for part in parts]
    assert names == ["conv 3x3, 1 to 4, relu, max-pool", "conv 3x3, 4 to 5, max-pool", "linear, 20 to 7, relu", "linear, 7 to 10",
                     "cross_entropy", "SGD"]
    assert all(len(part.times["backward"]) == 1 for part in parts)


def test_the_work_of_a_layer():
    work = {part.name: part.work for part in profile(small(), steps.images((3, 1, 12, 12)), rounds=1)[0]}
    conv = work["conv 3x3, 1 to 4, relu, max-pool"]  # the input of the first layer gets no gradient
    assert conv["forward"] == (3 * 144 * 36, 4 * (3 * 144 + 3 * 144 + 40) + 3 * 144)
    assert conv["backward"] == (3 * 36 * 36, 4 * (3 * 144 * 2 + 3 * 144 + 40) + 3 * 144)
    second = work["conv 3x3, 4 to 5, max-pool"]  # the weight's gradient sums over a quarter of the products
    assert second["forward"][0] == 3 * 16 * 180 and second["backward"][0] == second["forward"][0] * 5 // 4
    linear = work["linear, 7 to 10"]
    assert linear["forward"] == (210, 4 * (21 + 30 + 80)) and linear["backward"] == (420, 4 * (30 + 21 + 80 + 21 + 80))
    assert work["SGD"]["backward"] == (0, 12 * sum(p.size for p in small().parameters()))


def test_the_command_prints_every_layer(capsys):
    threads = fastdl.get_num_threads()
    try:
        steps.main(["--profile", "mlp", "--seconds", "0.01", "--rounds", "1"])
    finally:
        fastdl.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "| mlp 784-512-512-10, batch 64, threads: 1 |" in said and "cnn" not in said
    for name in ("linear, 784 to 512, relu", "linear, 512 to 512, relu", "linear, 512 to 10", "cross_entropy"):
        assert re.search(rf"\| {name} \| [\d.]+ \| [^|]*\| [\d.]+ \| [^|]*\| [\d +]+ \| [\d. +]+ \|\n", said), (name, said)
    assert re.search(r"The whole step [\d.]+ ms, of which the parts are [\d.]+\. Measured: \d+ GFLOP/s, \d+ GB/s", said)
