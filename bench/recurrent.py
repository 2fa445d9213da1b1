"""``python -m bench.recurrent [words] [--threads N] [--peers-python P]``: recurrent networks beside torch, onnxruntime and OpenVINO.

Each library runs in a process of its own, in turns; a figure is the median over rounds of the round's fastest call, and
``ratio`` is the best peer's time over fastdl's. Inference has the weights prepared beforehand, as all of these libraries do;
training is a forward and a backward pass, beside torch. A case's answer is compared with torch's in float64 before it is timed.

``GB/s`` is what of the state's weights a step reads, times steps, over the time of the whole call, which also multiplies the
input; ``read`` is the rate at which a loop that does nothing else reads as much memory on so many threads, always in one
direction: the kernels' weights change direction after each step, and part of them is in a cache still.

``limit``, for more rows and for training, is the ratio at which the products alone would go at the peak of so many cores, measured
after the case's rounds: no kernel that does all of a case's multiply-adds in float32 can have a higher ratio.

    python -m bench.recurrent --threads 2 "batch 1," "batch 8,"      the cases whose name contains one of these words
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .workers import Library, command_line, installed, serve, take_turns

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


class Case(NamedTuple):
    kind: str
    steps: int
    batch: int
    features: int
    hidden: int
    train: bool = False

    def __str__(self):
        return (f"{self.kind}, {self.steps} steps, batch {self.batch}, {self.features} to {self.hidden}"
                + ", forward and backward" * self.train)

    @property
    def operations(self):
        """Floating-point operations of the products. A training step's also has the gradients of the weights, of the input, and of all
        states but the last."""
        rows = 2 * self.batch * GATES[self.kind] * self.hidden
        of_input, of_state = rows * self.steps * self.features, rows * self.steps * self.hidden
        return 3 * of_input + 3 * of_state - 2 * rows * self.hidden if self.train else of_input + of_state

    @property
    def state_bytes(self):
        return 4 * GATES[self.kind] * self.hidden**2


CASES = [Case(kind, 64, 1, hidden, hidden) for hidden in (32, 64, 128, 256) for kind in GATES]
CASES += [Case(kind, 64, 1, hidden, hidden) for hidden in (512, 1024) for kind in GATES]
CASES += [Case(kind, 64, batch, hidden, hidden) for hidden in (128, 256) for batch in (8, 32, 64) for kind in GATES]
CASES += [Case(kind, *size, 128, True) for size in ((64, 1, 128), (29, 32, 12)) for kind in GATES]


def data(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _torch_layer(case):
    import torch

    torch.manual_seed(0)
    return getattr(torch.nn, case.kind)(case.features, case.hidden)


def with_torch(case, threads):
    import torch

    torch.set_num_threads(threads)
    layer, x = _torch_layer(case), torch.from_numpy(data((case.steps, case.batch, case.features)))

    def infer():
        with torch.inference_mode():
            layer(x)

    given = x.clone().requires_grad_(True)

    def step():
        y = layer(given)[0]
        y.backward(torch.ones_like(y))

    return [step if case.train else infer]


def with_fastdl(case, threads):
    import fastdl
    from fastdl import nn

    fastdl.set_num_threads(threads)
    layer, x = getattr(nn, case.kind)(case.features, case.hidden), data((case.steps, case.batch, case.features))
    if installed(sys.executable, "torch"):
        import torch

        theirs = _torch_layer(case)
        layer.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            want = theirs.double()(torch.from_numpy(x).double())[0].numpy()
        error = np.abs(layer(x)[0] - want).max() / np.abs(want).max()
        if not error < 1e-4:
            raise AssertionError(f"{case}: relative error {error:.1e}")

    def step():
        (y, _), pullback = layer.vjp(x)
        pullback((np.ones_like(y), None))

    return [step if case.train else lambda: layer(x)]


def _onnx(case, folder):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows = GATES[case.kind] * case.hidden
    arrays = {"W": data((1, rows, case.features), 1), "R": data((1, rows, case.hidden), 2), "B": data((1, 2 * rows), 3)}
    extra = {"linear_before_reset": 1} if case.kind == "GRU" else {}
    node = helper.make_node(case.kind, ["x", *arrays], ["y"], hidden_size=case.hidden, **extra)
    graph = helper.make_graph(
        [node], "case", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (case.steps, case.batch, case.features))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array((v / case.hidden**0.5).astype(np.float32), k) for k, v in arrays.items()])
    path = str(Path(folder) / "case.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def with_onnxruntime(case, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(_onnx(case, folder), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", data((case.steps, case.batch, case.features)))
    binding.bind_output("y")
    return [lambda: session.run_with_iobinding(binding)]


def with_openvino(case, threads):
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    with tempfile.TemporaryDirectory() as folder:
        model = core.compile_model(core.read_model(_onnx(case, folder)), "CPU", options)
    request = model.create_infer_request()
    request.set_input_tensor(openvino.Tensor(data((case.steps, case.batch, case.features))))
    return [request.infer]


PEERS = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "onnx")}


def on_all(threads, measure):
    """The sum of what ``measure()`` answers on so many threads at a time."""
    rates = [0.0] * threads

    def go(k):
        rates[k] = measure()

    team = [threading.Thread(target=go, args=(k,)) for k in range(threads)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    return sum(rates)


def read_rate(nbytes, threads, seconds=0.05):
    """Bytes a second that so many threads read at, each its share of so many bytes, again and again."""
    from fastdl.cpu.jit import kernel
    from fastdl.cpu.simd import lanes, load, pointer, splat, store
    from fastdl.cpu.workspace import aligned

    @kernel("R1 W1 i", "f")
    def read(a, out, times):
        p, n = pointer(a), a.shape[0]
        V = lanes(p)
        s = t = u = v = splat(p, 0.0)
        for _ in range(times):
            for i in range(0, n, 4 * V):
                s, t, u, v = s + load(p, i), t + load(p, i + V), u + load(p, i + 2 * V), v + load(p, i + 3 * V)
        store(pointer(out), 0, s + t + u + v)

    share = max(1 << 10, nbytes // 4 // threads // 64 * 64)
    times, run = max(1, int(seconds * 5e10 / (4 * share))), read["f"]

    def measure():
        a, out, best = aligned(share, np.dtype("f4")), np.zeros(64, "f4"), 0.0
        a[:] = 0
        for _ in range(5):
            start = time.perf_counter()
            run(a, out, times)
            best = max(best, 4 * share * times / (time.perf_counter() - start))
        return best

    return on_all(threads, measure)


def worker(name, threads):
    prepare = globals()[f"with_{name}"]

    serve(lambda order: prepare(Case(*order["case"]), threads))


def main(argv=None):
    parser = command_line("bench.recurrent", __doc__, ("words", "only cases whose name contains one of them"), 0.05)
    given = parser.parse_args(argv)
    if given.worker:
        return worker(given.worker, given.threads)
    from fastdl.cpu.peak import fma_peak

    libraries = [Library("bench.recurrent", "fastdl", given.threads)]
    libraries += [Library("bench.recurrent", name, given.threads, python=given.peers_python) for name, modules in PEERS.items()
                  if installed(given.peers_python, *modules)]
    names = [library.name for library in libraries]
    columns = [f"threads: {given.threads}", *names, "ratio", "limit", "to torch", "GB/s (read)"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for case in CASES:
        if given.words and not any(word in str(case) for word in given.words):
            continue
        turns = [library for library in libraries if not case.train or library.name in ("fastdl", "torch")]
        for library in turns:
            library.ask(case=case)
        times = {name: statistics.median(t) for name, t in take_turns(turns, given.rounds, given.seconds).items()}
        ours = times["fastdl"]
        best = min((t for name, t in times.items() if name != "fastdl"), default=float("nan")) / ours
        figures = " | ".join(f"{times[name] * 1e6:.0f}" if name in times else "" for name in names)
        rate = limit = ""
        if case.batch > 1 or case.train:
            limit = f"{best * ours * on_all(given.threads, lambda: fma_peak('f', 0.1)) / case.operations:.2f}"
        if case.batch == 1 and not case.train:
            rate = f"{case.state_bytes * case.steps / ours / 1e9:.0f} ({read_rate(case.state_bytes, given.threads) / 1e9:.0f})"
        print(f"| {case} | {figures} | {best:.2f} | {limit} | {times.get('torch', float('nan')) / ours:.2f} | {rate} |", flush=True)


if __name__ == "__main__":
    main()
