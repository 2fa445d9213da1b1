"""``python -m bench.inference``: fastdl's answers are torch's, and there is a row for each case."""

import re

import numpy as np
import torch

import fastdl
from bench import inference


def test_the_networks_are_torchs():
    for name in ("cnn, batch 1", "dcgan generator, batch 8", "avg_pool 7x7, 8x512x7x7"):
        (call,) = inference.with_fastdl(name)  # leaves where the answer is wrong
        with torch.no_grad():
            want = inference.torch_model(name)(torch.from_numpy(inference.given(name))).numpy()
        np.testing.assert_allclose(call(), want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_channels_last_is_the_memorys():
    x = inference.given("max_pool 2x2, 32x64x56x56, channels-last")
    assert x.strides[1] == 4 and x.shape == (32, 64, 56, 56)


def test_the_command_prints_a_row(capsys):
    threads = fastdl.get_num_threads()
    try:
        inference.main(["avg_pool", "--seconds", "0.01", "--rounds", "1"])
    finally:
        fastdl.set_num_threads(threads)
    said = capsys.readouterr().out
    assert re.search(r"\| avg_pool 7x7, 8x512x7x7 \| \d+ \|( [\d ]*\|)* [\d.]+ \| \d+% \|\n", said), said
    assert "max_pool" not in said and re.search(r"A copy: \d+ GB/s", said)
