"""How far a result may be from its float64 reference: one table, with reasons.

The unit is the machine epsilon of the dtype under test times a growth factor. A sum of n products, in any order, has
an error of at most n eps times the sum of magnitudes, in practice about sqrt(n) eps (Higham, "Accuracy and Stability
of Numerical Algorithms", 2nd ed., section 4.2); blocked and vectorised sums do better. So a tolerance is

    norm:        ||got - want|| <= norm_factor * sqrt(n) * eps * ||want||
    elementwise: |got - want|  <= element_factor * sqrt(n) * eps * max(rms(want), |want|)

with n the length of the operator's longest reduction.

float16 and bfloat16 results come from float32 sums: what counts is how often a value is rounded on its way (operand, what the
forward pass keeps, result), not n. Their factors are of the half type's own epsilon.
"""

from __future__ import annotations

import numpy as np

EPS = {np.dtype("f4"): 2.0**-23, np.dtype("f8"): 2.0**-52}

# kind -> (norm_factor, element_factor)
FACTORS = {
    "exact": (0.0, 0.0),  # moves values without arithmetic: max pooling, embedding, relu
    "sum": (2.0, 16.0),  # one reduction: matrix products, direct convolutions, averages
    "transcendental": (8.0, 64.0),  # exp, tanh, erf within a few ulp, then a reduction
    "recurrent": (16.0, 256.0),  # a step's error feeds the next; n is hidden size times steps
    "winograd": (64.0, 1024.0),  # F(4x4, 3x3): the transforms cancel digits (Barabasz et al., TOMS 2020)
}


HALF_EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
HALF_FACTORS = {
    "exact": (0.0, 0.0),
    "sum": (2.0, 6.0),
    "transcendental": (3.0, 12.0),
    "recurrent": (8.0, 48.0),  # the state is rounded at every step
}


def bounds(kind: str, dtype, n: int) -> tuple[float, float]:
    if isinstance(dtype, str) and dtype in HALF_EPS:
        norm, element = HALF_FACTORS[kind]
        return norm * HALF_EPS[dtype], element * HALF_EPS[dtype]
    norm, element = FACTORS[kind]
    scale = EPS[np.dtype(dtype)] * max(1, n) ** 0.5
    return norm * scale, element * scale
