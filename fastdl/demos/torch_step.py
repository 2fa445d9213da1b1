"""torch on the demo's training step, in a process of its own: ``python -m fastdl.demos.torch_step BATCH THREADS``.

For each line on stdin, a number of steps, it answers one line of JSON: [[name, milliseconds], ...], a step an entry, in
torch's default memory layout and in channels-last.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 1024), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(1024, 10),
    )


def make_step(batch_size, memory_format):
    model = build().to(memory_format=memory_format)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    x = torch.rand(batch_size, 1, 28, 28).contiguous(memory_format=memory_format)
    y = torch.randint(10, (batch_size,))

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def main(batch_size, threads):
    torch.set_num_threads(threads)
    layouts = [("torch", make_step(batch_size, torch.contiguous_format)),
               ("torch channels-last", make_step(batch_size, torch.channels_last))]
    for line in sys.stdin:
        times = []
        for name, step in layouts:
            for _ in range(int(line)):
                start = time.perf_counter()
                step()
                times.append((name, (time.perf_counter() - start) * 1e3))
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
