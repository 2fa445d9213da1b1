"""``python -m bench.steps [words] [--threads N] [--peers-python PYTHON]``: whole training steps beside torch, and their memory;
with ``--profile``, where fastdl's step goes, layer by layer (see step_profile.py).

A step is forward, loss, backward and optimiser. Milliseconds: the median over rounds of a round's fastest step, each library in a
process of its own, in turns; torch in the faster of its two memory layouts. Memory is the most that a process held during ten
steps above what it held before the networks were built (weights, gradients and optimiser's state included), of torch in the layout
that takes less; read from Linux's /proc. The ratio is torch's time over fastdl's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import statistics
import subprocess
import sys

import numpy as np

from .workers import LIMITS, Library, command_line, serve, take_turns

WARM, STEPS = 3, 10


# ------------------------------------------------------------------------------------------------ networks of either library
def cnn(nn):
    return nn.Sequential(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
                         nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 1024), nn.ReLU(), nn.Linear(1024, 10))


def mlp(nn):
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def generator(nn):
    """A. Radford et al., arXiv:1511.06434, for images of 56 x 56 x 3."""
    up = {"stride": 2, "padding": 2, "output_padding": 1}
    return nn.Sequential(
        nn.Linear(100, 1024, bias=False), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 12544, bias=False), nn.BatchNorm1d(12544),
        nn.ReLU(), nn.Unflatten(1, (256, 7, 7)), nn.ConvTranspose2d(256, 128, 5, **up, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 5, **up, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.ConvTranspose2d(64, 3, 5, **up), nn.Tanh())


def discriminator(nn):
    return nn.Sequential(
        nn.Conv2d(3, 64, 5, stride=2, padding=2), nn.LeakyReLU(0.2), nn.Conv2d(64, 128, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(128), nn.LeakyReLU(0.2), nn.Conv2d(128, 256, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(256),
        nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(12544, 1))


CASES = {"cnn, batch 64": (cnn, (64, 1, 28, 28)), "mlp 784-512-512-10, batch 64": (mlp, (64, 784)),
         "dcgan, batch 32": (None, (32, 3, 56, 56))}
LAYOUTS = ("contiguous_format", "channels_last")
ADAM = {"lr": 2e-4, "betas": (0.5, 0.999)}


def images(shape):
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


# ------------------------------------------------------------------------------------------------ the libraries
def with_fastdl(name):
    import fastdl
    import fastdl.functional as F
    from fastdl import nn, optim
    from fastdl.demos import gan

    make, shape = CASES[name]
    x = images(shape)
    if make is None:
        nets = generator(nn), discriminator(nn)
        optimizers = [optim.Adam(net.parameters(), **ADAM) for net in nets]
        noise = images((len(x), 100))
        return [lambda: gan.step(*nets, *optimizers, x, noise)]
    model, labels = make(nn), np.arange(len(x)) % 10
    optimizer = optim.SGD(model.parameters(), lr=0.01)

    def step():
        optimizer.zero_grad()
        scores, pullback = model.vjp(x)
        _, loss_pullback = fastdl.vjp(F.cross_entropy, scores, labels)
        pullback(loss_pullback(1.0)[0], needs=False)
        optimizer.step()

    return [step]


def with_torch(name, layouts=LAYOUTS):
    import torch
    import torch.nn.functional as F
    from torch import nn

    make, shape = CASES[name]
    bce = F.binary_cross_entropy_with_logits

    def ready(layout):
        layout = getattr(torch, layout)
        x = torch.from_numpy(images(shape))
        if x.ndim == 4:
            x = x.to(memory_format=layout)
        if make is None:
            makes, tells = (net(nn).to(memory_format=layout) for net in (generator, discriminator))
            of_g, of_d = (torch.optim.Adam(net.parameters(), **ADAM) for net in (makes, tells))
            noise, ones, zeros = torch.from_numpy(images((len(x), 100))), torch.ones(len(x), 1), torch.zeros(len(x), 1)

            def step():
                fake = makes(noise)
                of_d.zero_grad()
                (bce(tells(x), 0.9 * ones) + bce(tells(fake.detach()), zeros)).backward()
                of_d.step()
                of_g.zero_grad()
                tells.requires_grad_(False)
                bce(tells(fake), ones).backward()
                tells.requires_grad_(True)
                of_g.step()

            return step
        model, labels = make(nn), torch.arange(len(x)) % 10
        if x.ndim == 4:
            model = model.to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step():
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()

        return step

    return [ready(layout) for layout in layouts]


def worker(library, threads, peak):
    if library.startswith("torch"):
        import torch

        torch.set_num_threads(threads)
        prepare = with_torch
    else:
        import fastdl
        import fastdl.demos.gan
        import fastdl.optim

        fastdl.set_num_threads(threads)
        prepare = with_fastdl
    if peak:
        name, *layouts = peak
        print(peak_memory(lambda: prepare(name, *[layouts] * bool(layouts))[0]))
        return

    def ready(order):
        calls = prepare(order["name"])
        for call in calls:
            for _ in range(WARM):
                call()
        return calls

    serve(ready)


# ------------------------------------------------------------------------------------------------ memory
def peak_memory(prepare) -> float:
    """MB that this process held at most in some steps of ``prepare()``, above what it held before."""
    prepare()()  # code is compiled or loaded, and what goes with it is held
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back
    before = _status("VmRSS")
    step = prepare()
    for _ in range(WARM):
        step()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    for _ in range(STEPS):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(field):
    """kB."""
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(field)).split()[1])


def measured_peak(library, name, threads, python, *layouts):
    command = [python, "-m", "bench.steps", "--worker", library, "--threads", str(threads), "--peak", name, *layouts]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **dict.fromkeys(LIMITS, str(threads))}, check=True)
    return float(done.stdout.split()[-1])


# ------------------------------------------------------------------------------------------------ the tables
def profiles(names, threads, seconds):
    from fastdl import nn

    from .step_profile import print_profile

    for name in names:
        make, shape = CASES[name]
        if make is not None:
            print_profile(name, make(nn), images(shape), threads, seconds)


def main(argv=None):
    parser = command_line("bench.steps", __doc__, ("words", "only steps whose name contains one of them"), 0.5, peers="torch")
    parser.add_argument("--profile", action="store_true", help="each layer's time and limit, of networks that are one Sequential")
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.worker:
        return worker(given.worker, given.threads, given.peak)
    chosen = [name for name in CASES if not given.words or any(word in name for word in given.words)]
    if given.profile:
        return profiles(chosen, given.threads, given.seconds * given.rounds)
    print(f"| threads: {given.threads} | fastdl, ms | torch, ms | ratio | fastdl, MB | torch, MB |\n|---|---|---|---|---|---|")
    for name in chosen:
        libraries = [Library("bench.steps", "fastdl", given.threads),
                     Library("bench.steps", "torch", given.threads, python=given.peers_python)]
        for library in libraries:
            library.ask(name=name)
        times = take_turns(libraries, given.rounds, given.seconds)
        for library in libraries:
            library.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                library.process.wait(timeout=20)
        ours, theirs = (statistics.median(times[library.name]) * 1e3 for library in libraries)
        held = measured_peak("fastdl", name, given.threads, sys.executable)
        others = [measured_peak("torch", name, given.threads, given.peers_python, layout) for layout in LAYOUTS]
        print(f"| {name} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.2f} | {held:.0f} | {min(others):.0f} |", flush=True)


if __name__ == "__main__":
    main()
