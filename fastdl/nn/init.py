"""Where layers' first weights come from: torch's rules, from a generator that can be seeded."""

from __future__ import annotations

import contextlib
import contextvars
import math

import numpy as np

from .. import check
from .parameter import Parameter

_generator = np.random.default_rng()
_scoped = contextvars.ContextVar("fastdl_generator", default=None)  # what seeded() has put in its place, in this thread alone


def manual_seed(seed: int) -> None:
    """Restart the generator from which layers draw their weights and Dropout its masks, for all threads.

    The numbers are numpy's (PCG64), so a seed gives the same model on every machine, but not torch's.
    """
    global _generator
    _generator = np.random.default_rng(check.integer("manual_seed", "seed", seed, 0))


@contextlib.contextmanager
def seeded(seed: int):
    """Within, layers draw from a generator of this seed, in this thread alone: ``with nn.seeded(0): model = build()``.

    So models may be built and trained in several threads at once, each as if it were alone.
    """
    token = _scoped.set(np.random.default_rng(check.integer("seeded", "seed", seed, 0)))
    try:
        yield
    finally:
        _scoped.reset(token)


def get_rng_state() -> dict:
    """The state of the generator that layers draw from here and now, as plain integers and strings."""
    return generator().bit_generator.state


def set_rng_state(state: dict) -> None:
    """Go on from what ``get_rng_state`` gave. Raises ValueError where it is something else."""
    try:
        generator().bit_generator.state = state
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"set_rng_state: state is not what get_rng_state gave: {error}") from error


def generator(rng=None) -> np.random.Generator:
    """``rng`` where it is a numpy Generator, a new one where it is a seed, the library's own where it is None."""
    if rng is None:
        return _scoped.get() or _generator
    if isinstance(rng, np.random.Generator):
        return rng
    return np.random.default_rng(check.integer("layer", "rng", rng, 0))


def check_dtype(layer: str, dtype) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"{layer}: dtype is {dtype}; the rule is float32 or float64")
    return dtype


def uniform(shape, bound: float, dtype, rng) -> Parameter:
    """Uniform in [-bound, bound)."""
    values = rng.random(shape, dtype=dtype)
    values *= 2 * bound
    values -= bound
    return Parameter(values)


def fan_in_uniform(weight_shape, bias_size: int | None, dtype, rng) -> tuple[Parameter, Parameter | None]:
    """Weight and bias of a linear or convolutional layer, uniform within 1 / sqrt(fan in).

    torch's ``kaiming_uniform_(weight, a=sqrt(5))`` (He et al., "Delving deep into rectifiers", 2015): the gain
    sqrt(2 / (1 + 5)) times sqrt(3 / fan_in) is 1 / sqrt(fan_in). fan in is the product of all dimensions but the first.
    """
    fan_in = math.prod(weight_shape[1:])
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    weight = uniform(weight_shape, bound, dtype, rng)
    return weight, None if bias_size is None else uniform(bias_size, bound, dtype, rng)


def draw_seed() -> int:
    """A seed for one call's random numbers, from the library's generator."""
    return int(generator().integers(2**63 - 1))
