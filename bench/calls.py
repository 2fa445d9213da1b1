"""``python -m bench.calls [words] [--threads N] [--peers-python PYTHON]``: what a call costs, beside torch.

Every function of ``fastdl.functional`` on arrays so small that its work is next to nothing: what is left are checks, dispatch and the
answer's array. A figure is the median over rounds of a round's fastest of a thousand calls, each library in a process of its own, in
turns; torch is called in inference mode. Ratio: torch's time over fastdl's. fastdl's answer is compared with torch's before it is timed.
"""

from __future__ import annotations

import statistics

import numpy as np

from .workers import Library, command_line, serve, take_turns, use_threads

CALLS = 1000  # timed together
NOT_OF_TORCH = ("conv2d_max_pool2d", "lp_pool3d")


def cases():
    """{name: (arguments, options)} of every operator; a name may begin with an operator's and go on behind a space."""
    rng = np.random.default_rng(0)

    def n(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    x, image, volume, line = n(2, 8), n(1, 2, 6, 6), n(1, 2, 4, 4, 4), n(1, 2, 8)
    p = rng.random((2, 8), dtype=np.float32)
    found = {name: ((x,), {}) for name in ("relu", "leaky_relu", "elu", "gelu", "sigmoid", "tanh", "softplus")}
    found |= {name: ((x,), {"dim": -1}) for name in ("softmax", "log_softmax")}
    found |= {"dropout": ((x, 0.5, True), {}), "embedding": ((np.array([1, 2]), n(8, 3)), {}), "matmul": ((x, n(8, 3)), {}),
              "bmm": ((n(2, 3, 4), n(2, 4, 5)), {}), "linear": ((x, n(3, 8), n(3)), {}), "addmm": ((n(2, 3), x, n(8, 3)), {}),
              "batch_norm": ((image, n(2), np.abs(n(2)) + 1, n(2), n(2)), {}), "layer_norm": ((x, (8,), n(8), n(8)), {}),
              "group_norm": ((image, 2, n(2), n(2)), {}), "cross_entropy": ((x, np.array([1, 5])), {}),
              "nll_loss": ((x, np.array([1, 5])), {}), "mse_loss": ((x, p), {}), "l1_loss": ((x, p), {}),
              "binary_cross_entropy": ((p, p), {}), "binary_cross_entropy_with_logits": ((x, p), {}), "kl_div": ((x, p), {})}
    for d, (small, kernel) in enumerate(((line, (3,)), (image, (3, 3)), (volume, (3, 3, 3))), 1):
        found |= {f"conv{d}d": ((small, n(3, 2, *kernel), n(3)), {}), f"conv_transpose{d}d": ((small, n(2, 3, *kernel), n(3)), {}),
                  f"lp_pool{d}d": ((small, 2, 2), {})}
        found |= {f"{kind}_pool{d}d": ((small, 2), {}) for kind in ("max", "avg", "adaptive_avg", "adaptive_max")}
    found["conv2d_max_pool2d"] = found["conv2d"][0], {}
    steps, h = n(2, 1, 4), n(1, 4)
    for name, gates in (("rnn_tanh", 1), ("rnn_relu", 1), ("gru", 3), ("lstm", 4)):
        weights = n(4 * gates, 4), n(4 * gates, 4), n(4 * gates), n(4 * gates)
        states = (h[None], h[None]) if name == "lstm" else h[None]
        found[name] = (steps, states, list(weights), True, 1, 0.0, False, False, False), {}
        found[f"{name}_cell"] = (steps[0], (h, h) if name == "lstm" else h, *weights), {}
    return found


def with_fastdl(name):
    import fastdl.functional as F

    (args, options), op = cases()[name], getattr(F, name)
    return [_many(op, args, options)], op(*args, **options)


def with_torch(name):
    import torch

    def tensors(value):
        if isinstance(value, (tuple, list)) and value and isinstance(value[0], np.ndarray):
            return type(value)(map(tensors, value))
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    (args, options), functional = cases()[name], torch.nn.functional
    of_torch = name in ("sigmoid", "tanh") or not hasattr(functional, name)
    op = getattr(torch if of_torch else functional, name)
    args = [tensors(a) for a in args]
    many = _many(op, args, options)

    def call():
        with torch.inference_mode():
            many()

    return [call], op(*args, **options)


def _many(op, args, options):
    def call():
        for _ in range(CALLS):
            op(*args, **options)

    return call


def compare(name):
    """Leave where fastdl's answer is not torch's; where there is no torch here, nothing is compared."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return
    if name == "dropout":
        return  # another generator
    mine, want = with_fastdl(name)[1], with_torch(name)[1]
    for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (mine, want)), strict=True):
        if not np.allclose(a, b.numpy(), 1e-4, 1e-5):
            raise SystemExit(f"{name}: the answer is not torch's")


# ------------------------------------------------------------------------------------------------ the table
def worker(library, threads):
    use_threads(library, threads)
    prepare = with_torch if library == "torch" else with_fastdl
    serve(lambda order: prepare(order["name"])[0])


def main(argv=None):
    parser = command_line("bench.calls", __doc__, ("words", "only functions whose name contains one of them"), 0.02, peers="torch")
    given = parser.parse_args(argv)
    if given.worker:
        return worker(given.worker, given.threads)
    libraries = [Library("bench.calls", "fastdl", given.threads),
                 Library("bench.calls", "torch", given.threads, python=given.peers_python)]
    print(f"| threads: {given.threads}, microseconds | fastdl | torch | ratio |\n|---|---|---|---|")
    ratios = []
    for name in cases():
        if name in NOT_OF_TORCH or (given.words and not any(word in name for word in given.words)):
            continue
        compare(name)
        for library in libraries:
            library.ask(name=name)
        times = take_turns(libraries, given.rounds, given.seconds)
        ours, theirs = (statistics.median(times[library.name]) * 1e6 / CALLS for library in libraries)
        ratios.append(theirs / ours)
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} |", flush=True)
    if ratios:
        print(f"| geometric mean | | | {statistics.geometric_mean(ratios):.2f} |")


if __name__ == "__main__":
    main()
