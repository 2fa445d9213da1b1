"""``python -m bench.inference [words] [--threads N] [--peers-python PYTHON]``: pooling, a small linear layer and whole networks, forward.

Beside torch (the faster of its two layouts), onnxruntime and OpenVINO, as far as the interpreter has them. Microseconds; a figure is
the median over rounds of a round's fastest call, each library in a process of its own, in turns. Ratio: the best peer's time over
fastdl's; fastdl's answer is compared with torch's in float64 before it is timed. The last column is the rate at which a pool reads its
input and writes its answer, as a share of what a copy reaches between arrays beyond the caches (fastdl.cpu.peak); above 100% they were
in a cache.
"""

from __future__ import annotations

import statistics
import sys

import numpy as np

from .steps import cnn, images
from .workers import Library, command_line, installed, serve, take_turns, use_threads

PEERS = ("torch", "onnxruntime", "openvino")


def generator(nn):
    """That of bench.steps with its batch-norms folded into the weights."""
    up = {"stride": 2, "padding": 2, "output_padding": 1}
    return nn.Sequential(
        nn.Linear(100, 1024), nn.LeakyReLU(0.2), nn.Linear(1024, 12544), nn.LeakyReLU(0.2), nn.Unflatten(1, (256, 7, 7)),
        nn.ConvTranspose2d(256, 128, 5, **up), nn.ReLU(), nn.ConvTranspose2d(128, 64, 5, **up), nn.ReLU(),
        nn.ConvTranspose2d(64, 3, 5, **up), nn.Tanh())


def pool(kind, *window):
    return lambda nn: nn.Sequential(getattr(nn, kind)(*window))


# name: (a network of either library, the input's shape); channels-last where the name says so
CASES = {
    "max_pool 2x2, 32x64x56x56": (pool("MaxPool2d", 2), (32, 64, 56, 56)),
    "max_pool 2x2, 32x64x56x56, channels-last": (pool("MaxPool2d", 2), (32, 64, 56, 56)),
    "max_pool 3x3 stride 2, 1x64x112x112": (pool("MaxPool2d", 3, 2, 1), (1, 64, 112, 112)),
    "avg_pool 7x7, 8x512x7x7": (pool("AvgPool2d", 7, 1), (8, 512, 7, 7)),
    "max_pool 2x2, 64x64x112x112": (pool("MaxPool2d", 2), (64, 64, 112, 112)),
    "max_pool 2x2, 64x64x112x112, channels-last": (pool("MaxPool2d", 2), (64, 64, 112, 112)),
    "linear, 16x784 to 512, relu": (lambda nn: nn.Sequential(nn.Linear(784, 512), nn.ReLU()), (16, 784)),
    "linear, 8x1024 to 12544": (lambda nn: nn.Sequential(nn.Linear(1024, 12544)), (8, 1024)),
    "cnn, batch 1": (cnn, (1, 1, 28, 28)),
    "dcgan generator, batch 8": (generator, (8, 100)),
}


def given(name):
    x = images(CASES[name][1])
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if "channels-last" in name else x


# ------------------------------------------------------------------------------------------------ the libraries
def torch_model(name):
    import torch

    torch.manual_seed(0)
    return CASES[name][0](torch.nn)


def with_fastdl(name):
    from fastdl import nn

    model, x = CASES[name][0](nn), given(name)
    try:
        import torch
    except ImportError:
        print("no torch to compare with", file=sys.stderr)
        return [lambda: model(x)]
    theirs = torch_model(name)
    model.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        want = theirs.double()(torch.from_numpy(x).double()).numpy()
    error = np.linalg.norm(model(x) - want) / np.linalg.norm(want)
    if not error < 1e-4:
        raise SystemExit(f"{name}: relative error {error:.1e}")
    return [lambda: model(x)]


def with_torch(name):
    import torch

    calls = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model, x = torch_model(name), torch.from_numpy(given(name))
        if layout is torch.channels_last:
            if "pool" in name or "linear" in name:  # a pool answers in its input's layout
                continue
            model, x = model.to(memory_format=layout), x.to(memory_format=layout) if x.ndim == 4 else x

        def call(model=model, x=x):
            with torch.inference_mode():
                return model(x)

        calls.append(call)
    return calls


def onnx_bytes(name):
    """The network of torch_model in ONNX, node by node."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, at = [], [], "x"
    for i, layer in enumerate(torch_model(name)):
        kind, inputs, options = type(layer).__name__, [at], {}
        for part in ("weight", "bias"):
            if hasattr(layer, part):
                weights.append(numpy_helper.from_array(getattr(layer, part).detach().numpy(), f"{part}{i}"))
                inputs.append(f"{part}{i}")
        if kind == "Linear":
            kind, options = "Gemm", dict(transB=1)
        elif kind == "LeakyReLU":
            kind, options = "LeakyRelu", dict(alpha=layer.negative_slope)
        elif kind == "ReLU":
            kind = "Relu"
        elif kind == "Unflatten":
            kind = "Reshape"
            weights.append(numpy_helper.from_array(np.array([-1, *layer.unflattened_size]), f"shape{i}"))
            inputs.append(f"shape{i}")
        elif kind in ("Conv2d", "ConvTranspose2d"):
            kind, options = kind.removesuffix("2d"), dict(strides=layer.stride, pads=[*layer.padding] * 2)
            if kind == "ConvTranspose":
                options["output_padding"] = layer.output_padding
        elif kind in ("MaxPool2d", "AvgPool2d"):
            window, stride, before = ([n] * 2 for n in (layer.kernel_size, layer.stride, layer.padding))
            kind = {"MaxPool2d": "MaxPool", "AvgPool2d": "AveragePool"}[kind]
            options = dict(kernel_shape=window, strides=stride, pads=before * 2)
        nodes.append(helper.make_node(kind, inputs, [f"y{i}"], **options))
        at = f"y{i}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, CASES[name][1])
    graph = helper.make_graph(nodes, "case", [x], [helper.make_tensor_value_info(at, TensorProto.FLOAT, None)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def with_onnxruntime(name, threads):
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(onnx_bytes(name), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", given(name))
    binding.bind_output(session.get_outputs()[0].name)
    return [lambda: session.run_with_iobinding(binding)]


def with_openvino(name, threads):
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(onnx_bytes(name)), "CPU", settings)
    request, x = compiled.create_infer_request(), given(name)
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    return [lambda held=(core, compiled, x): request.infer()]


def worker(library, threads):
    if library in ("fastdl", "torch"):
        use_threads(library, threads)
        prepare = with_torch if library == "torch" else with_fastdl
        return serve(lambda order: prepare(order["name"]))
    prepare = {"onnxruntime": with_onnxruntime, "openvino": with_openvino}[library]
    return serve(lambda order: prepare(order["name"], threads))


# ------------------------------------------------------------------------------------------------ the table
def main(argv=None):
    parser = command_line("bench.inference", __doc__, ("words", "only cases whose name contains one of them"), 0.1)
    chosen = parser.parse_args(argv)
    if chosen.worker:
        return worker(chosen.worker, chosen.threads)
    import fastdl
    from fastdl.cpu.peak import copy_rate

    fastdl.set_num_threads(chosen.threads)
    copied = copy_rate()
    ours = Library("bench.inference", "fastdl", chosen.threads)
    peers = [Library("bench.inference", name, chosen.threads, python=chosen.peers_python) for name in PEERS
             if installed(chosen.peers_python, name, *["onnx"] * (name != "torch"))]
    print(f"| threads: {chosen.threads} | fastdl | " + " | ".join(library.name for library in peers) + " | ratio | of a copy |")
    print("|---" * (len(peers) + 4) + "|")
    for name in CASES:
        if chosen.words and not any(word in name for word in chosen.words):
            continue
        here = [ours, *(library for library in peers if library.name == "torch" or "channels-last" not in name)]
        for library in here:
            library.ask(name=name)
        times = {key: statistics.median(t) for key, t in take_turns(here, chosen.rounds, chosen.seconds).items()}
        best = min((times[library.name] for library in here[1:]), default=None)
        cells = [f"{times[library.name] * 1e6:.0f}" if library.name in times else "" for library in peers]
        ratio = "" if best is None else f"{best / times['fastdl']:.2f}"
        share = ""
        if "pool" in name:
            cut = 49 if "7x7" in name else 4  # elements of the input for each of the answer
            share = f"{100 * 4 * np.prod(CASES[name][1]) * (1 + 1 / cut) / times['fastdl'] / copied:.0f}%"
        print(f"| {name} | {times['fastdl'] * 1e6:.0f} | {' | '.join(cells)} | {ratio} | {share} |", flush=True)
    print(f"\nA copy: {copied / 1e9:.0f} GB/s read and written.")


if __name__ == "__main__":
    main()
