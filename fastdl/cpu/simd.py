"""SIMD vectors as a type in Numba code.

A vector holds ``lanes(p)`` elements, as many of p's element type as the machine's registers take (8 float32 with AVX2, 16
with AVX-512, 4 with NEON); the same source compiles to any width. In a compiled function::

    p = pointer(x)                  # of an array; elements are counted, not bytes
    v = load(p, i)                  # lanes(p) elements from p[i] on; load_n(p, i, n) the first n of them, the rest 0
    w = splat(p, 2.0)               # a number in every lane, of p's element type; broadcast(p, i) repeats p[i]
    v = fma(v, w, v * w - v)        # + - * / and unary - work too
    v = select(v > w, v, w)         # comparisons give a mask
    store(p, i, v)                  # store_n(p, i, v, n) only the first n
    s = hsum(v)                     # a scalar

Vectors are values: they live in registers, never in arrays. Loads and stores need no alignment.
"""

from __future__ import annotations

from .simd_arithmetic import (
    absolute,
    copysign,
    fma,
    larger,
    maximum,
    minimum,
    rint,
    select,
    smaller,
    sqrt,
)
from .simd_core import (
    Vector,
    address,
    at_address,
    broadcast,
    gather,
    gather_n,
    lanes,
    load,
    load_even,
    load_n,
    load_two,
    number,
    offset,
    pointer,
    prefetch,
    read,
    splat,
    store,
    store_n,
    stream,
    vector_of,
    write,
)
from .simd_lanes import (
    any_lane,
    bits,
    first_lanes,
    from_bits,
    hmax,
    hsum,
    load_bf16,
    load_rows,
    load_rows_n,
    power_of_two,
    shift_left,
    shift_right,
    store_bf16,
    store_rows,
    store_rows_n,
    to_float,
    to_integer,
    transpose,
)

__all__ = [
    "Vector",
    "absolute",
    "address",
    "any_lane",
    "at_address",
    "bits",
    "broadcast",
    "copysign",
    "first_lanes",
    "fma",
    "from_bits",
    "gather",
    "gather_n",
    "hmax",
    "hsum",
    "lanes",
    "larger",
    "load",
    "load_bf16",
    "load_even",
    "load_n",
    "load_rows",
    "load_rows_n",
    "load_two",
    "maximum",
    "minimum",
    "number",
    "offset",
    "pointer",
    "power_of_two",
    "prefetch",
    "read",
    "rint",
    "select",
    "shift_left",
    "shift_right",
    "smaller",
    "splat",
    "sqrt",
    "store",
    "store_bf16",
    "store_n",
    "store_rows",
    "store_rows_n",
    "stream",
    "to_float",
    "to_integer",
    "transpose",
    "vector_of",
    "write",
]
