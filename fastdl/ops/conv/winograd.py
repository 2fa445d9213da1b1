"""Winograd's minimal filtering: the transforms, as matrices and as straight-line code on SIMD vectors.

F(m, r) computes m outputs of an r-tap filter by n = m + r - 1 products instead of m r:
y = A^T [(G g) * (B^T d)], nested for two dimensions. The matrices follow from n - 1 interpolation points and infinity
(Toom and Cook; Lavin and Gray, arXiv:1509.09308). Small points keep errors small, since their powers enter the
matrices: {0, +-1, +-2} and the like are usual, mixed with their reciprocals (Barabasz et al., "Error analysis and improving
the accuracy of Winograd convolution", ACM TOMS 46 (2020)). With {0, +-sqrt(2), +-1/sqrt(2)} F(4, 3) is four times as
accurate as with {0, +-1, +-2}, and its matrices stay small: no set that tests/test_winograd.py compares is much better.
Measured there, for filters over 256 channels of unit variance in float32, the largest error over the largest output is at
most 1e-6 for F(2, 3), 5e-6 for F(5, 2), F(4, 3) and F(2, 5), and 3e-5 for F(6, 3) and F(4, 5): it is n that decides. So it does for
the gradient of a weight, a sum over tiles instead of channels.
"""

from __future__ import annotations

import functools

import numpy as np

POINTS = {  # by n
    3: (0.0, 1.0),
    4: (0.0, 1.0, -1.0),
    6: (0.0, 2**0.5, -(2**0.5), 0.5**0.5, -(0.5**0.5)),
    7: (0.0, 1.0, -1.0, 0.5, -0.5, -2.0),
    8: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5),
}
# the m that there are kernels for, by dimensions and r
TILES = {1: {2: (5,), 3: (4,), 5: (4,)}, 2: {2: (2, 3, 5), 3: (2, 4, 5, 6), 5: (2, 4)}}
# and of the gradient of a kernel of r cells: F(r, m), whose outputs are the cells
GRADIENT_TILES = {1: {3: (4,), 5: (4,)}, 2: {3: (4, 5), 5: (4,)}}


@functools.cache
def matrices(m: int, r: int, points: tuple[float, ...] | None = None):
    """(A^T (m, n), G (n, r), B^T (n, n)) of F(m, r) in float64."""
    n = m + r - 1
    points = points or POINTS[n]
    a_t, g, b_t = np.zeros((m, n)), np.zeros((n, r)), np.zeros((n, n))
    for j, p in enumerate(points):
        others = [q for i, q in enumerate(points) if i != j]
        scale = np.prod([p - q for q in others])
        a_t[:, j] = [p**i for i in range(m)]
        g[j] = [p**i / scale for i in range(r)]
        b_t[j, : n - 1] = np.poly(others)[::-1]
    a_t[m - 1, n - 1] = g[n - 1, r - 1] = 1
    b_t[n - 1] = np.poly(points)[::-1]
    return a_t, g, b_t


# ------------------------------------------------------------------------------------------------ code
def _combination(terms, names, constant):
    """Source of sum of coefficient * name as a chain of fused multiply-adds, units by plain additions."""
    units = [(c, v) for c, v in terms if abs(c) == 1]
    scaled = [(c, v) for c, v in terms if abs(c) != 1]
    text = ""
    for c, v in sorted(units, key=lambda t: -t[0]):
        text = (f"{names[v]}" if c > 0 else f"-{names[v]}") if not text else f"{text} {'+' if c > 0 else '-'} {names[v]}"
    for c, v in scaled:
        text = f"fma({names[v]}, {constant(c)}, {text})" if text else f"{names[v]} * {constant(c)}"
    return text


def lines_of(matrix, sources, targets, constant, temporary):
    """Source lines for targets = matrix @ sources (names). Rows that share their even and odd parts share the work."""
    lines, done = [], set()
    rows, columns = matrix.shape
    for i in range(rows):
        if i in done:
            continue
        terms = [(float(c), k) for k, c in enumerate(matrix[i]) if c != 0]
        partner = None
        for j in range(i + 1, rows):
            if j in done:
                continue
            same = [k for k in range(columns) if matrix[i, k] != 0 and matrix[i, k] == matrix[j, k]]
            opposite = [k for k in range(columns) if matrix[i, k] != 0 and matrix[i, k] == -matrix[j, k]]
            if len(same) + len(opposite) == len(terms) == np.count_nonzero(matrix[j]) and same and opposite and len(terms) > 2:
                partner = (j, same, opposite)
                break
        if partner is None:
            lines.append(f"{targets[i]} = {_combination(terms, sources, constant)}")
            continue
        j, same, opposite = partner
        e, o = temporary(), temporary()
        lines.append(f"{e} = {_combination([(float(matrix[i, k]), k) for k in same], sources, constant)}")
        lines.append(f"{o} = {_combination([(float(matrix[i, k]), k) for k in opposite], sources, constant)}")
        lines.append(f"{targets[i]} = {e} + {o}")
        lines.append(f"{targets[j]} = {e} - {o}")
        done.add(j)
    return lines


class _Writer:
    """Collects the source of one generated function."""

    def __init__(self):
        self.constants, self.temporaries, self.lines = {}, 0, []

    def constant(self, value):
        return self.constants.setdefault(value, f"k{len(self.constants)}")

    def temporary(self):
        self.temporaries += 1
        return f"t{self.temporaries}"

    def product(self, matrix, sources, targets):
        self.lines += lines_of(matrix, sources, targets, self.constant, self.temporary)


def transform_2d(left, right, name: str, load: str, store: str, arguments: str):
    """Source of ``name(arguments)``: left @ tile @ right^T, the tile read by ``load(i, j)``, the result written by ``store``.

    load: an expression with {i} and {j}; store: a statement with {i}, {j} and {v}. ``p`` must be an argument: the
    pointer whose element type the constants take.
    """
    (rows, height), (columns, width) = left.shape, right.shape
    writer = _Writer()
    for j in range(width):
        for i in range(height):
            writer.lines.append(f"x{i}_{j} = {load.format(i=i, j=j)}")
        writer.product(left, [f"x{i}_{j}" for i in range(height)], [f"y{i}_{j}" for i in range(rows)])
    for i in range(rows):
        writer.product(right, [f"y{i}_{j}" for j in range(width)], [f"z{i}_{j}" for j in range(columns)])
        for j in range(columns):
            writer.lines.append(store.format(i=i, j=j, v=f"z{i}_{j}"))
    head = [f"{k} = splat(p, {value!r})" for value, k in writer.constants.items()]
    return "\n".join([f"def {name}({arguments}):", *(f"    {line}" for line in head + writer.lines)])
