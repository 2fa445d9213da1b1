"""What a convolution takes besides its output and the packed weights, over the layers of two networks."""

import tracemalloc

import numpy as np
import pytest

import fastdl
import fastdl.functional as F
from bench.networks import MOBILENET, RESNET
from fastdl.cpu import workspace

LAYERS = sorted(set(RESNET + MOBILENET))
LIMIT = 2 << 20  # bytes a thread


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("last", [False, True], ids=["planar", "channels_last"])
def test_extra_memory(threads, last, monkeypatch):
    rng = np.random.default_rng(0)
    before = fastdl.get_num_threads()
    fastdl.set_num_threads(threads)
    too_much = {}
    try:
        for layer in LAYERS:
            x = rng.standard_normal((1, layer.channels, layer.size, layer.size)).astype("f4")
            if last:
                x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            w = fastdl.pack(rng.standard_normal((layer.outputs, layer.channels // layer.groups, layer.kernel, layer.kernel)).astype("f4"))
            bias = np.zeros(layer.outputs, "f4")

            def call(x=x, w=w, bias=bias, layer=layer):
                return F.conv2d(x, w, bias, stride=layer.stride, padding=layer.padding, groups=layer.groups)

            y = call()  # the weights are packed
            monkeypatch.setattr(workspace, "_local", type(workspace._local)())  # and the memory of earlier calls is forgotten
            tracemalloc.start()
            call()
            taken = tracemalloc.get_traced_memory()[1] - y.nbytes
            tracemalloc.stop()
            if taken > threads * LIMIT:
                too_much[str(layer)] = taken / 2**20
    finally:
        tracemalloc.stop()
        fastdl.set_num_threads(before)
    assert not too_much, too_much
