"""A training loop's memory: what one step left is used again by the next."""

import json

import pytest
from subprocesses import python

LOOP = """
import gc, json, resource, tracemalloc
import numpy as np
import fastdl, fastdl.functional as F
from fastdl import nn, optim

rng = np.random.default_rng(0)
if NAME == "cnn":
    model = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3),
                          nn.LeakyReLU(0.1), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Dropout(0.2),
                          nn.Linear(144, 32, activation="tanh"), nn.Linear(32, 10))
    x = rng.standard_normal((8, 1, 16, 16)).astype("f4")
else:
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 10))
    x = rng.standard_normal((8, 20)).astype("f4")
optimizer = optim.Adam(model.parameters(), lr=1e-3)
labels = np.arange(8) % 10


def step(images):
    optimizer.zero_grad()
    scores, pullback = model.vjp(x)
    loss, loss_pullback = fastdl.vjp(F.cross_entropy, scores, labels)
    pullback(loss_pullback(1.0)[0], needs=False)
    optimizer.step()
    model.eval()
    model(x[:images])
    model.train()


def held():
    gc.collect()
    return tracemalloc.get_traced_memory()[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


tracemalloc.start(1)
for i in range(100):
    step(i % 9)
before = held()
for i in range(1000):
    step(i % 9)
print(json.dumps([before, held()]))
"""


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_a_thousand_steps(name):
    """Evaluation at any batch size in between, so that forms of calls are remembered."""
    before, after = json.loads(python(LOOP.replace("NAME", repr(name))).stdout.splitlines()[-1])
    assert after[0] - before[0] < 200_000, "bytes of Python objects and arrays"
    assert after[1] - before[1] < 4_000 * (1 if before[1] < 1 << 24 else 1024), "the process's peak; kB, on macOS bytes"
