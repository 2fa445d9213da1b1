"""The only place that compiles: two decorators and a cache on disk.

``@inline`` marks a function that other compiled code calls. ``@kernel("R2 R2 W2 i")`` makes an entry point: compiled once
per dtype for exactly the argument types its signature names, so any view of an array (strided, reversed, read-only) whose
elements are whole elements apart runs the same machine code, and what warm-up has to compile is known.

The cache is a directory per user, keyed by a hash of the sources that can be compiled, the versions of Numba, llvmlite
and Python, and the CPU with its features; in it, a file per entry point and signature (and code, where the entry point is not
this package's: fingerprint.py), written to a temporary name and moved into place. So an edited source never meets old code,
processes that start at once do no harm to one another, and a read-only install works (a directory that cannot be written means
compiling in memory, nothing worse).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import itertools
import operator
import os
import pickle
import platform
import secrets
import sys
import tempfile
import threading
import time
from pathlib import Path

import llvmlite
import numba
from numba import types
from numba.core import serialize
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import _Cache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.sigutils import normalize_signature

from . import features, fingerprint
from .borrowed import Borrowed, Offered

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Only what keeps results predictable: a product and a sum may become one fma. Nothing that assumes away NaN, and no
# reassociation: kernels say in which order they sum, so the answer has the same bits wherever it is computed.
_FLAGS = dict(nogil=True, fastmath={"contract"}, error_model="numpy", boundscheck=False)

DTYPES = {"f": types.float32, "d": types.float64}
code_of_result = operator.attrgetter("library")  # the machine code in one of Numba's compile results


def _renumber():
    """Count compiled functions from a number no other process starts at.

    Numba names machine code after a function's qualified name and this count. Two functions of one name (closures of one
    factory, lambdas) that two processes compiled would meet under one name in a third that loads both from the cache, and
    the linker takes the first for both.
    """
    FunctionIdentity._unique_ids = itertools.count(secrets.randbits(60))


_renumber()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renumber)


def inline(function):
    """A function for compiled code to call; LLVM inlines it where that pays."""
    return numba.njit(function, **_FLAGS)


def always_inline(function):
    """A function whose body becomes part of its caller: for code that must see its caller's constants."""
    return numba.njit(function, inline="always", **_FLAGS)


# ------------------------------------------------------------------------------------------------ entry points
kernels: list[Kernel] = []
families: list = []  # functions that make the kernels that are otherwise made when they are first asked for


class Kernel(dict):
    """An entry point: ``gemm["f"]`` is its compiled form for float32 (``array.dtype.char`` is the key).

    The signature is one token an argument: R2 an array of 2 dimensions that is only read, W2 one that is written, of the
    kernel's dtype and any strides; R* and W* one of any rank in C order, seen as one dimension; O2 and O* one that is offered
    (borrowed.py), OL* one of int64; B1 uint8, L1 int64, S1 int16 arrays (written); A a list of arrays (listed.py); i an integer;
    T a number of the kernel's dtype; b a boolean. A kernel that is offered arrays is over in microseconds and makes a new one: it
    keeps Python's lock.
    """

    def __init__(self, function, signature, dtypes):
        super().__init__()
        functools.update_wrapper(self, function)
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.function = function
        self.signature = signature.split()
        self.arity = len(self.signature)
        self.dtypes = dtypes
        self.dispatchers = {}
        kernels.append(self)

    __hash__ = object.__hash__

    def dispatcher(self):
        return numba.njit(self.function, **_FLAGS | dict(nogil=not any(token[0] == "O" for token in self.signature)))

    def kept_as(self) -> str | None:
        """Its name in the cache. The library's own kernels are known by theirs; another's name may be that of many."""
        if fingerprint.is_ours(self.name):
            return self.name
        code = fingerprint.fingerprint(self.function)
        return None if code is None else f"{self.name}-{code}"

    def __missing__(self, char):
        with _compiling:
            if char in self:
                return self[char]
            dispatcher = self.dispatcher()
            slow = _say_when_slow(f"{self.name.removeprefix('fastdl.ops.')} ({DTYPES[char]})")
            cache = contextlib.nullcontext()
            if (kept_as := self.kept_as()) is not None:
                dispatcher._cache = cache = _DiskCache(kept_as, slow.start)
            with slow, cache:
                dispatcher.compile(tuple(_argument(token, char) for token in self.signature))
            # the wrapper itself, past Numba's search for a form that fits the arguments: there is one, and it checks
            self.dispatchers[char] = dispatcher
            self[char] = next(iter(dispatcher.overloads.values())).entry_point
            return self[char]


def assembly(made: Kernel, char: str) -> str:
    """The machine code of an entry point as text, compiled anew (what comes from the cache has none to show)."""
    dispatcher = made.dispatcher()
    dispatcher.compile(tuple(_argument(token, char) for token in made.signature))
    return dispatcher.inspect_asm(dispatcher.signatures[0])


def kernel(signature: str, dtypes: str = "fd"):
    """Make a function an entry point; see :class:`Kernel`."""
    return lambda function: Kernel(function, signature, dtypes)


_ARRAYS = {"B": types.uint8, "L": types.int64, "S": types.int16}


def _argument(token, char):
    if token == "i":
        return types.intp
    if token == "T":
        return DTYPES[char]
    if token == "b":
        return types.boolean
    if token == "A":
        return importlib.import_module("fastdl.cpu.listed").listed
    offered = token[0] == "O"
    kind, rank = token[-2], token[-1]
    element, flat = _ARRAYS.get(kind, DTYPES[char]), rank == "*"
    ndim = 1 if flat else int(rank)
    return Offered(element, ndim, True, flat) if offered else Borrowed(element, ndim, kind == "R", flat)


class Callback:
    """A C function from a Python one, compiled when its address is first asked for. Cached as entry points are."""

    def __init__(self, function, signature, name):
        self.function, self.signature, self.name = function, signature, name

    @functools.cached_property
    def _compiled(self):
        with _compiling:
            made = CFunc(self.function, normalize_signature(self.signature), {}, dict(_FLAGS, nopython=True))
            made._cache = cache = _DiskCache(self.name)
            with cache:
                made.compile()
            return made

    @property
    def address(self) -> int:
        return self._compiled.address

    @functools.cached_property
    def ctypes(self):
        return self._compiled.ctypes


def callback(signature, name):
    """Make a function a C function; see :class:`Callback`."""
    return lambda function: Callback(function, signature, name)


# ------------------------------------------------------------------------------------------------ the cache
def cache_directory() -> Path:
    """Where compiled code is kept: FASTDL_CACHE_DIR, or fastdl's folder in the user's cache directory."""
    if chosen := os.environ.get("FASTDL_CACHE_DIR"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fastdl"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "fastdl" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdl"


@functools.cache
def _cache_key() -> str:
    """One hash for everything that decides what the machine code is."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for folder in ("cpu", "ops", "optim"):
        for path in sorted((package / folder).rglob("*.py")):
            if path.name.startswith("triton_"):
                continue  # kernels for a GPU: nothing in them is compiled here
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    facts = (numba.__version__, llvmlite.__version__, sys.version, platform.machine(), features.cpu_name(),
             ",".join(features.features()), str(features.vector_bits()))
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:24]


class _DiskCache(_Cache):
    """Numba's cache interface over a file per entry point and signature; a context in which it is asked.

    What one process compiles, others that want it wait for: a lock on the file's name is held from a miss to the end of
    the context.
    """

    def __init__(self, name, on_miss=lambda: None):
        self._name, self._on_miss, self._lock = name, on_miss, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._lock is not None:
            os.close(self._lock)  # and with it goes the lock

    @property
    def cache_path(self):
        return str(cache_directory() / _cache_key())

    def _path(self, signature):
        return Path(self.cache_path) / f"{self._name}-{hashlib.sha256(str(signature).encode()).hexdigest()[:16]}.bin"

    def load_overload(self, sig, target_context):
        target_context.refresh()
        path = self._path(sig)
        data = self._read(path)
        if data is None:
            self._on_miss()
            self._wait_for_others(path)
            data = self._read(path)
        return None if data is None else CompileResult._rebuild(target_context, *pickle.loads(data))

    def _read(self, path):
        try:
            payload = path.read_bytes()
        except OSError:
            return None
        digest, data = payload[:32], payload[32:]
        return data if hashlib.sha256(data).digest() == digest else None  # half a file after a crash of the machine

    def _wait_for_others(self, path):
        """Without a lock (no such call on this system, a directory that cannot be written) several may compile the same."""
        if fcntl is None:
            return
        try:
            locks = path.parent / "locks"
            locks.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(locks / path.stem, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError:
            pass

    def save_overload(self, sig, data):
        if code_of_result(data).has_dynamic_globals:
            raise RuntimeError(f"{self._name} holds an address of this process; pass it as an argument")
        payload = serialize.dumps(data._reduce())
        path = self._path(sig)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(payload).digest() + payload)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            _warn_once(f"fastdl: compiled code is not kept: {error} (set FASTDL_CACHE_DIR to a directory that can be written)")

    def enable(self):
        pass

    def disable(self):
        pass

    def flush(self):
        pass


# ------------------------------------------------------------------------------------------------ what the user sees
_compiling = threading.RLock()
_quiet = False  # a warm-up shows its own progress


@functools.cache
def _warn_once(text):
    print(text, file=sys.stderr, flush=True)


class _say_when_slow:  # noqa: N801 - a context manager read as a phrase
    """Tell the user, after a second, what is being compiled, and how long it took when it is done."""

    def __init__(self, what):
        self.what, self.said, self.timer = what, False, None

    def start(self):
        """Called when there is something to compile: loading from the cache is not announced, however slow the disk."""
        if not _quiet:
            self.begun = time.perf_counter()
            self.timer = threading.Timer(1.0, self.say)
            self.timer.daemon = True
            self.timer.start()

    def __enter__(self):
        return self

    def say(self):
        self.said = True
        _warn_once(f"fastdl: compiling kernels on first use; they are kept in {cache_directory()} ('fastdl warmup' compiles them all)")
        print(f"fastdl: compiling {self.what} ...", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_):
        if self.timer is not None:
            self.timer.cancel()
            self.timer.join()
            if self.said:
                print(f" {time.perf_counter() - self.begun:.1f} s", file=sys.stderr, flush=True)


def warmup(report=None) -> int:
    """Compile every kernel for every dtype (or load it from the cache) and return how many there are.

    report: called as ``report(done, total, name)`` before each and once at the end.
    """
    global _quiet
    import fastdl.functional
    from fastdl.op import _backends, operators

    for room in sorted({op.room for op in operators.values()}):
        _backends["numba"].kernels(room)
    import fastdl.optim.numba_backend  # noqa: F401 - the steps of optimisers, which are no operators

    for make_all in families:
        make_all()
    work = [(k, char) for k in kernels for char in k.dtypes]
    with _compiling:
        _quiet = True
        try:
            for done, (k, char) in enumerate(work):
                if report:
                    report(done, len(work), f"{k.name.removeprefix('fastdl.ops.')} {DTYPES[char]}")
                k[char]
        finally:
            _quiet = False
    if report:
        report(len(work), len(work), "done")
    return len(work)
