"""The ``fastdl`` command: what this machine has, compiling kernels ahead of their first use, demos."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import pathlib
import platform
import sys
import textwrap
import time

import fastdl
from fastdl import op
from fastdl.demos import DEMOS


class Failure(Exception):
    """Something the user can mend: shown without a traceback."""


def main(argv=None) -> int:
    """Run the command and return its exit status: 0, 1 (it failed), 2 (bad usage) or 130 (interrupted)."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt as interrupt:
        print(f"\nfastdl: interrupted{interrupt}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `fastdl info | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Failure, OSError) as failure:  # OSError: a directory that cannot be written, a file that is not there
        print(f"fastdl: {failure}", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(prog="fastdl", description="Hand-written deep-learning kernels in Python.")
    parser.add_argument("--version", action="version", version=f"fastdl {fastdl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    info = commands.add_parser("info", help="versions, backends (and why one cannot be used), the CPU, threads, the cache")
    info.set_defaults(run=_info)

    warmup = commands.add_parser("warmup", help="compile every CPU kernel now, so that no first call has to wait")
    warmup.set_defaults(run=_warmup)

    tune = commands.add_parser("tune", help="measure block sizes of the Triton kernels on this GPU and keep the best")
    tune.add_argument("kernels", nargs="*", metavar="KERNEL", help="product, product_by_tiles, correlate, ... (default: all)")
    tune.add_argument("--out", metavar="DIR", help="where the table goes (default: FASTDL_CONFIG_DIR, else ~/.config/fastdl)")
    tune.set_defaults(run=_tune)

    demo = commands.add_parser("demo", help="train a small network and show what it learnt")
    demos = demo.add_subparsers(title="demos", metavar="DEMO", required=True)
    for name, (what, options) in DEMOS.items():
        one = demos.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        for option, default in options.items():
            kind, meaning = _DEMO_OPTIONS[option]
            one.add_argument(f"--{option.replace('_', '-')}", type=kind, metavar="N", help=f"{meaning} (default: {default})")
        one.add_argument("--out", metavar="DIR", help=f"where weights, history and pictures go (default: out/{name})")
        one.add_argument("--resume", action="store_true", default=None, help="go on where an interrupted run in DIR stopped")
        one.set_defaults(run=_demo, demo=name, options=(*options, "out", "resume"))
    return parser


def _whole(minimum):
    def read(text):
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {minimum} on")
        return number

    return read


_DEMO_OPTIONS = {  # how it is read, what it means
    "seeds": (_whole(1), "train N times, from N different starts"),
    "seed": (_whole(0), "what the run's random numbers start from"),
    "epochs": (_whole(1), "passes over the training data"),
    "batch_size": (_whole(1), "rows in a training step"),
    "folds": (_whole(2), "parts of the data, each of which is held out once"),
    "jobs": (_whole(1), "trainings at once; -1 stands for as many as there are cores"),
}


# ------------------------------------------------------------------------------------------------ info
def _info(arguments):
    print(f"fastdl {fastdl.__version__}")
    versions = ", ".join(f"{name} {_version(name)}" for name in ("numpy", "numba", "torch", "triton"))
    _line("versions", f"{versions}, Python {platform.python_version()}")
    try:
        _machine()
    except ValueError as error:  # an environment variable whose value is none
        raise Failure(error) from None
    if not _why_not("numba"):
        from fastdl.cpu import jit

        _line("cache", str(jit.cache_directory()))
    chosen = fastdl.current_backend()
    print(f"backends{f' ({chosen} was chosen)' if chosen else ', in the order in which a call tries them'}:")
    for name, usable, why in op.backend_report():
        _line(name, "usable" if usable else f"not usable: {why}")


def _machine():
    from fastdl.cpu import features as cpu

    _line("CPU", f"{cpu.model_name()} ({cpu.cpu_name()})")
    _line("vectors", f"{_plural(cpu.registers(), 'register')} of {cpu.vector_bits()} bits")
    _line("features", " ".join(cpu.features()) or "unknown")
    _line("caches", ", ".join(f"{level} {_size(n)}" for level, n in zip(("L1d", "L2", "L3"), cpu.caches(), strict=True)))
    _line("threads", f"{fastdl.get_num_threads()} of {_plural(cpu.available_cores(), 'core')} that this process may use")


def _why_not(backend):
    return next(why for name, _, why in op.backend_report() if name == backend)


def _line(name, text):
    print(textwrap.fill(text, width=120, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12,
                        break_long_words=False, break_on_hyphens=False))


def _plural(n, noun):
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _size(n):
    return f"{n >> 20} MiB" if n >= 1 << 20 and n % (1 << 20) == 0 else f"{n >> 10} KiB"


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


# ------------------------------------------------------------------------------------------------ warmup
def _warmup(arguments):
    if why := _why_not("numba"):
        raise Failure(f"there is nothing to compile: the numba backend cannot run here: {why}")
    from fastdl.cpu import jit

    start = time.perf_counter()
    report, close = _progress()
    try:
        count = jit.warmup(report)
    finally:
        close()
    print(f"{_plural(count, 'kernel')} ready after {time.perf_counter() - start:.1f} s, kept in {jit.cache_directory()}")


def _progress():
    """(report(done, total, name), close()): tqdm's bar where there is tqdm, else a counter, on stderr."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _counter, lambda: None
    bar = tqdm(unit=" kernels", file=sys.stderr)

    def report(done, total, name):
        bar.total = total
        bar.set_postfix_str(name, refresh=False)
        bar.update(done - bar.n)

    return report, bar.close


def _counter(done, total, name):
    line = f"[{done}/{total}] {name}"
    if sys.stderr.isatty():
        print(f"\r{line:<79.79}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ tune
def _tune(arguments):
    try:
        import torch
        import triton  # noqa: F401 - without it there is nothing to tune
    except ImportError as error:
        raise Failure(f"tune needs {error.name}, which is not installed: pip install 'fastdl[gpu]'") from None
    if not torch.cuda.is_available():
        raise Failure("there is nothing to tune: torch sees no CUDA device")
    from fastdl.gpu import configs, tune

    if unknown := [name for name in arguments.kernels if name not in tune.CANDIDATES]:
        raise Failure(f"{unknown[0]} is no kernel that can be tuned; they are {', '.join(tune.CANDIDATES)}")
    report, close = _progress()
    try:
        path = tune.tune(arguments.kernels, pathlib.Path(arguments.out) if arguments.out else configs.user_folder(), report)
    finally:
        close()
    print(f"kept in {path}")


# ------------------------------------------------------------------------------------------------ demos
def _demo(arguments):
    try:
        demo = importlib.import_module(f"fastdl.demos.{arguments.demo}")
        given = {name: value for name in arguments.options if (value := getattr(arguments, name)) is not None}
        demo.run(**given)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] == "fastdl":
            raise
        raise Failure(f"the demo needs {error.name}, which is not installed: pip install 'fastdl[demo]'") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt("; the same command with --resume goes on from the last whole epoch") from None
    except ValueError as error:
        from fastdl.checkpoint import CheckpointError

        if not isinstance(error, CheckpointError):
            raise
        raise Failure(error) from None
