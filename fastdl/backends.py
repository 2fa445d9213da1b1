"""Which kernels there are: backends, the order in which a call tries them, and the one asked for by name."""

from __future__ import annotations

import functools
import importlib
import os


class Backend:
    """A set of kernels: a name, the module of each room that holds them, and whether it can run here."""

    def __init__(self, name, module="", requires=(), rooms=None, takes="numpy arrays"):
        self.name = name
        self.takes = takes
        self.module = module  # the module's name within each room
        self.requires = requires  # modules that must be importable
        self.rooms = rooms  # {room: module-like object}, for a backend that lives elsewhere

    @functools.cached_property
    def missing(self) -> str | None:
        """Why this backend cannot run here, or None."""
        for name in self.requires:
            try:
                importlib.import_module(name)
            except Exception as error:  # an import may fail in any way (a broken numba raises SystemError)
                return f"importing {name} failed: {type(error).__name__}: {error}"
        return None

    def kernels(self, room):
        """The module that holds a room's kernels, or None where this backend has none."""
        if self.rooms is not None:
            return self.rooms.get(room)
        name = f"fastdl.ops.{room}.{self.module}"
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            return None


_backends: dict[str, Backend] = {}
_default_order: list[str] = []
_chosen: str | None = None  # the backend asked for by name
_generation = 0  # grows whenever the answer to "which kernel?" may change


def register_backend(backend: Backend, *, by_default: bool = True) -> None:
    """Add a backend; ``by_default`` puts it last in the order that a call tries."""
    global _generation
    _backends[backend.name] = backend
    if by_default and backend.name not in _default_order:
        _default_order.append(backend.name)
    _generation += 1


def unregister_backend(name: str) -> None:
    global _generation
    del _backends[name]
    if name in _default_order:
        _default_order.remove(name)
    _generation += 1


def backend_report() -> list[tuple[str, bool, str]]:
    """(name, usable, why not) of every backend, in the order a call tries them."""
    return [(name, (why := _backends[name].missing) is None, why or "") for name in _default_order]


def check_backend(name: str, source: str = "use_backend: name") -> None:
    if name not in _backends:
        raise ValueError(f"{source} is {name!r}; the backends are {', '.join(sorted(_backends))}")
    if why := _backends[name].missing:
        raise ValueError(f"{source} is {name!r}, which cannot run here: {why}")


class use_backend:  # noqa: N801 - reads as a function, works as a context manager too
    """Serve every call by one backend: ``use_backend("reference")``, or ``with use_backend("reference"): ...``.

    ``None`` goes back to the default order. The choice holds for all threads of the process. An operator that the
    backend cannot serve raises a ValueError that says why, it does not fall through.

    Raises ValueError where the backend is unknown or cannot run here.
    """

    def __init__(self, name: str | None):
        if name is not None:
            check_backend(name)
        self.previous = _chosen
        _choose(name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        _choose(self.previous)


def _choose(name):
    global _chosen, _generation
    _chosen = name
    _generation += 1


def generation() -> int:
    """A number that is another one whenever the answer to "which kernel?" may be."""
    return _generation


def current_backend() -> str | None:
    """The backend asked for by name, or None where the default order decides."""
    return _chosen


register_backend(Backend("numba", "numba_backend", requires=("numba",)))
register_backend(Backend("cython", "cython", requires=("fastdl._cython",)))
register_backend(Backend("reference", "reference"))
# Not in the order that a call on arrays tries: tensors on a GPU go to it directly (gpu/dispatch.py).
register_backend(Backend("triton", "triton_backend", requires=("torch", "triton"), takes="CUDA tensors"), by_default=False)
if os.environ.get("FASTDL_BACKEND"):
    check_backend(os.environ["FASTDL_BACKEND"], "the environment variable FASTDL_BACKEND")
    _choose(os.environ["FASTDL_BACKEND"])
