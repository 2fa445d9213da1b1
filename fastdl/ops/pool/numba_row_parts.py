"""What the kernels of numba_rows.py are made of: how two elements become one, what is done with a sum, where rows lie."""

from __future__ import annotations

from ...cpu.jit import always_inline, inline
from ...cpu.simd import lanes, larger, load, load_n, read, select, splat, store


@inline
def add(a, b):
    return a + b


@inline
def add_three(a, b, c):
    return a + b + c


@inline
def maximum_of_three(a, b, c):
    """maximum(maximum(a, b), c) in two thirds of the instructions: ``larger`` keeps its first operand where one is NaN."""
    return select((a != a) | (c != c), a + c, larger(larger(b, a), c))


@inline
def larger_number(a, b):
    """For numbers what ``maximum`` is for vectors."""
    return b if b > a or b != b else a


@inline
def keep(v, weight, counts, i):
    return v


@inline
def mean(v, weight, counts, i):
    return v / (splat(v, weight) * load(counts, i))


@inline
def keep_number(a, weight, counts, i):
    return a


@inline
def mean_number(a, weight, counts, i):
    return a / (weight * read(counts, i))


@inline
def rest_again(p, i, n):
    """The last vector of n elements; those before i are taken twice, which a maximum allows."""
    return load(p, n - lanes(p))


@inline
def rest_only(p, i, n):
    return load_n(p, i, n - i)


@always_inline
def fill(p, start, end, value):
    """p[start:end] = value, a whole vector at a time: up to lanes - 1 elements more."""
    for i in range(start, end, lanes(p)):
        store(p, i, splat(p, value))


@inline
def visible(begin, length, size):
    """Which of ``length`` elements from ``begin`` on lie in a row of ``size``: from low to high - 1."""
    low = min(length, max(0, -begin))
    return low, max(low, min(length, size - begin))


@inline
def position(r, H, D):
    """Row r of all as its number in the plane, slice and plane."""
    return r % H, r // H % D, r // (H * D)


@inline
def next_position(h, d, plane, rows, H, D):
    """The same, that many rows on, without a division; rows must not go beyond the plane."""
    if h + rows < H:
        return h + rows, d, plane
    return (0, d + 1, plane) if d + 1 < D else (0, 0, plane + 1)
