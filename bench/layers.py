"""``python -m bench.layers [networks] [--threads N] [--peers-python PYTHON]``: every distinct convolution of four networks.

ResNet-50, VGG-16, MobileNet-V2 and DCGAN, with bias, beside torch (the faster of its two layouts), onnxruntime, OpenVINO and
ncnn, as far as the interpreter has them. Microseconds; a figure is the median over rounds of a round's fastest call, each library
in a process of its own, in turns. Weights are prepared beforehand where a library can: a layer of fastdl.nn, a call of torch, a session
of the others. Ratio: the best peer's time over fastdl's; fastdl's answer is compared with torch's in float64 before it is timed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from .networks import NETWORKS, Layer
from .workers import Library, command_line, installed, serve, take_turns

PEERS = ("torch", "onnxruntime", "openvino", "ncnn")


def arrays(layer: Layer):
    """(x, w, bias), of unit variance."""
    rng = np.random.default_rng(0)
    narrow = layer.outputs if layer.transposed else layer.channels
    rows = layer.channels if layer.transposed else layer.outputs
    shape = (rows, narrow // layer.groups, layer.kernel, layer.kernel)
    return (rng.standard_normal((layer.images, layer.channels, layer.size, layer.size)).astype("f4"),
            (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype("f4"), rng.standard_normal(layer.outputs).astype("f4"))


def options(layer: Layer):
    return dict(stride=layer.stride, padding=layer.padding, groups=layer.groups)


# ------------------------------------------------------------------------------------------------ the libraries
def with_fastdl(layer, threads):
    import fastdl
    from fastdl import nn

    fastdl.set_num_threads(threads)
    x, w, bias = arrays(layer)
    kind = nn.ConvTranspose2d if layer.transposed else nn.Conv2d
    conv = kind(layer.channels, layer.outputs, layer.kernel, **options(layer))
    conv.load_state_dict({"weight": w, "bias": bias})
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    calls = [lambda: conv(x), lambda: conv(last)]
    try:
        import torch
    except ImportError:
        print("no torch to compare with", file=sys.stderr)
        return calls
    theirs = torch.conv_transpose2d if layer.transposed else torch.conv2d
    want = theirs(*(torch.from_numpy(a).double() for a in (x, w, bias)), **options(layer)).numpy()
    for call in calls:
        error = np.linalg.norm(call() - want) / np.linalg.norm(want)
        if not error < 1e-4:
            raise SystemExit(f"{layer}: relative error {error:.1e}")
    return calls


def with_torch(layer, threads):
    import torch

    torch.set_num_threads(threads)
    conv = torch.conv_transpose2d if layer.transposed else torch.conv2d
    calls = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x, w, bias = map(torch.from_numpy, arrays(layer))
        x, w = x.to(memory_format=layout), w.to(memory_format=layout)

        def call(x=x, w=w, bias=bias):
            with torch.inference_mode():
                return conv(x, w, bias, **options(layer))

        calls.append(call)
    return calls


def _onnx_model(layer):
    from onnx import TensorProto, helper, numpy_helper

    x, w, bias = arrays(layer)
    kind = "ConvTranspose" if layer.transposed else "Conv"
    form = dict(kernel_shape=[layer.kernel] * 2, strides=[layer.stride] * 2, pads=[layer.padding] * 4, group=layer.groups)
    node = helper.make_node(kind, ["x", "w", "b"], ["y"], **form)
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph([node], "layer", [given], [answer], [numpy_helper.from_array(w, "w"), numpy_helper.from_array(bias, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return x, model.SerializeToString()


def with_onnxruntime(layer, threads):
    import onnxruntime

    x, model = _onnx_model(layer)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return [lambda: session.run(None, {"x": x})]


def with_openvino(layer, threads):
    import openvino

    x, model = _onnx_model(layer)
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    return [lambda held=(core, compiled, x): request.infer()]


def with_ncnn(layer, threads):
    import ncnn

    x, w, bias = arrays(layer)
    if layer.transposed:
        w = w.transpose(1, 0, 2, 3)  # outputs first, as for a convolution
    kind = ("Deconvolution" if layer.transposed else "Convolution") + "DepthWise" * (layer.groups > 1)
    fields = f"0={layer.outputs} 1={layer.kernel} 3={layer.stride} 4={layer.padding} 5=1 6={w.size}"
    fields += f" 7={layer.groups}" * (layer.groups > 1)
    net = ncnn.Net()
    net.opt.num_threads = threads
    for form in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{form}", False)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "layer.param").write_text(f"7767517\n2 2\nInput in 0 1 x\n{kind} layer 1 1 x y {fields}\n")
        (Path(folder) / "layer.bin").write_bytes(b"\0\0\0\0" + np.ascontiguousarray(w).tobytes() + bias.tobytes())
        net.load_param(str(Path(folder) / "layer.param"))
        net.load_model(str(Path(folder) / "layer.bin"))
    images = [ncnn.Mat(image).clone() for image in x]  # ncnn.Mat alone only refers to the memory

    def call():
        for image in images:
            extractor = net.create_extractor()
            extractor.input("x", image)
            extractor.extract("y")

    return [call]


def worker(name, threads):
    prepare = globals()[f"with_{name}"]

    serve(lambda order: prepare(Layer(*order["layer"]), threads))


def main(argv=None):
    parser = command_line("bench.layers", __doc__, ("networks", f"of {', '.join(NETWORKS)}; all by default"), 0.05)
    given = parser.parse_args(argv)
    if given.worker:
        return worker(given.worker, given.threads)
    ours = Library("bench.layers", "fastdl", given.threads)
    peers = [Library("bench.layers", name, given.threads, python=given.peers_python)
             for name in PEERS if installed(given.peers_python, name)]
    libraries = [ours, *peers]
    for network in given.networks or NETWORKS:
        print(f"\n| {network}, threads: {given.threads} | " + " | ".join(library.name for library in libraries) + " | ratio |")
        print("|---" * (len(libraries) + 2) + "|")
        ratios = {library.name: [] for library in peers}
        best = []
        for layer in NETWORKS[network]:
            for library in libraries:
                library.ask(layer=layer)
            times = {name: statistics.median(t) for name, t in take_turns(libraries, given.rounds, given.seconds).items()}
            for name, found in ratios.items():
                found.append(times[name] / times["fastdl"])
            best.append(min(times[name] for name in ratios) / times["fastdl"] if peers else 1.0)
            figures = " | ".join(f"{times[library.name] * 1e6:.0f}" for library in libraries)
            print(f"| {layer} | {figures} | {best[-1]:.2f} |", flush=True)
        means = " | ".join(f"{statistics.geometric_mean(found):.2f}" for found in ratios.values())
        print(f"| geometric mean of their time over fastdl's | | {means} | {statistics.geometric_mean(best):.2f} |", flush=True)


if __name__ == "__main__":
    main()
