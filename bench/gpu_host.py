"""``python -m bench.gpu_host``: what the host spends on calls for a GPU, measured without one.

Tensors are on the CPU and taken for those of a Hopper GPU; kernels are compiled (once, into Triton's cache) and everything is done for
their launches but the driver's part. Each call is timed the usual way and played from its tape (fastdl/gpu/tape.py).
"""

from __future__ import annotations

import statistics
import time
from unittest import mock

import torch

import fastdl.functional as F
from fastdl.gpu import ahead, device, dispatch

BF16 = torch.bfloat16


def t(*shape, grad=False):
    return torch.randn(shape).to(BF16).requires_grad_(grad)


def last(*shape, grad=False):
    return t(*shape).to(memory_format=torch.channels_last).requires_grad_(grad)


def both(call, *given):
    def run():
        y = call()
        torch.autograd.grad(y, given, y)
    return run


def cases():
    a, b = t(512, 512), t(512, 512)
    yield "matmul", lambda: F.matmul(a, b)
    row = t(1, 512)
    yield "matmul, one row", lambda: F.matmul(row, b)
    x, w, bias = last(2, 64, 28, 28), last(64, 64, 3, 3), t(64)
    yield "conv2d 3x3, bias, relu", lambda: F.conv2d(x, w, bias, padding=1, activation="relu")
    yield "max_pool2d", lambda: F.max_pool2d(x, 2)
    yield "softmax", lambda: F.softmax(a, 1)
    xg, wg, bg = last(2, 64, 28, 28, grad=True), last(64, 64, 3, 3, grad=True), t(64, grad=True)
    yield "conv2d 3x3, bias, relu, and its gradients", both(lambda: F.conv2d(xg, wg, bg, padding=1, activation="relu"), xg, wg, bg)
    ag, bh = t(512, 512, grad=True), t(512, 512, grad=True)
    yield "linear, and its gradients", both(lambda: F.linear(ag, bh), ag, bh)
    p = [t(256, 64, grad=True), t(256, 64, grad=True), t(256, grad=True), t(256, grad=True)]
    steps = t(4, 8, 64, grad=True)
    yield "lstm, and its gradients", both(lambda: F.lstm(steps, None, p)[0], steps, *p)


def microseconds(call, calls=20, rounds=15) -> float:
    for _ in range(4):
        call()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - begin) / calls)
    return 1e6 * statistics.median(times)


def main() -> None:
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime.driver import driver

    import fastdl.torch

    where = device.KNOWN["sm_90"]
    stand_in = ahead._Driver()
    stand_in.arch = "sm_90"

    def not_loaded(kernel):
        kernel._run, kernel.function = (lambda *args: None), 0

    print("| call | the usual way, us | from its tape, us |\n|---|---|---|")
    with (mock.patch.object(driver, "_active", stand_in), mock.patch.object(device, "of", lambda tensor: where),
          mock.patch.object(device, "refusal", lambda tensor: None),
          mock.patch.object(fastdl.torch, "_for_gpu", lambda *call: True), mock.patch.object(CompiledKernel, "_init_handles", not_loaded),
          fastdl.use_backend("triton")):
        for name, call in cases():
            played = microseconds(call)
            with mock.patch.object(dispatch, "_look", lambda *call: None):
                usual = microseconds(call)
            print(f"| {name} | {usual:.1f} | {played:.1f} |", flush=True)


if __name__ == "__main__":
    main()
