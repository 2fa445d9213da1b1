"""The register tiles: right at every remainder, and nothing spilled (read off the assembly)."""

import numpy as np
import pytest
from assembly import spills_of_loops
from checker import assert_close

from fastdl.cpu.blocking import HEIGHTS
from fastdl.cpu.dot_tiles import dot_tile, store_scalars
from fastdl.cpu.features import vector_bits
from fastdl.cpu.jit import kernel
from fastdl.cpu.microkernel import TILE_ROWS, TILE_VECTORS, UNROLL, outer_tile, store_tile
from fastdl.cpu.simd import pointer
from fastdl.ops.conv.numba_direct import correlate
from fastdl.ops.conv.numba_groups import convolve_groups
from fastdl.ops.conv.numba_pixels import convolve_pixels, gradient_pixels
from fastdl.ops.conv.numba_winograd import make
from fastdl.ops.matmul.numba_gemm import gemm

TILES = [(TILE_ROWS, TILE_VECTORS), (2 * TILE_ROWS // 3, TILE_VECTORS), (4, 2), (2, 4), (1, 8)]


def tile_kernel(rows, vectors):
    tile, put = outer_tile(rows, vectors), store_tile(rows, vectors)
    edge = outer_tile(rows, vectors, masked=True)

    def run(k, a, a_row, a_step, b, b_step, c, c_row, m, n, add, masked):
        if masked:
            put(edge(k, pointer(a), a_row, a_step, pointer(b), b_step, n), pointer(c), c_row, m, n, add)
        else:
            put(tile(k, pointer(a), a_row, a_step, pointer(b), b_step, n), pointer(c), c_row, m, n, add)

    run.__qualname__ = f"tile_{rows}x{vectors}"
    return kernel("i R1 i i R1 i W1 i i i b b")(run)


KERNELS = {shape: tile_kernel(*shape) for shape in TILES}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", TILES)
def test_tile(shape, dtype):
    rows, vectors = shape
    width = vectors * vector_bits() // (8 * np.dtype(dtype).itemsize)
    rng = np.random.default_rng(0)
    run = KERNELS[shape][np.dtype(dtype).char]
    for k in (0, 1, 3, 4, 7, 33):
        a, b = rng.standard_normal((rows, k)).astype(dtype), rng.standard_normal((k, width)).astype(dtype)
        want = a.astype("f8") @ b.astype("f8")
        for m, n in [(rows, width), (rows - 1, width), (1, 1), (rows, width - 1), (rows, width // 2 + 1)]:
            for add in (False, True):
                for packed in (False, True):
                    left, row, step = (a.T, 1, rows) if packed else (a, k, 1)
                    c = np.full((rows, width), 3, dtype) if add else np.full((rows, width), np.nan, dtype)
                    before = c.copy()
                    short = np.ascontiguousarray(b[:, :n])  # a masked tile reads no further than n
                    run(k, np.ascontiguousarray(left).ravel(), row, step, (short if n < width else b).ravel(), n if n < width else width,
                        c.ravel(), width, m, n, add, n < width)
                    if m and n:
                        # the error is relative to what was added up, not to what is left of it
                        error = np.abs(c[:m, :n] - want[:m, :n] - (3 if add else 0))
                        assert (error <= 4 * np.finfo(dtype).eps * (3 + (abs(a).astype("f8") @ abs(b))[:m, :n])).all()
                    c[:m, :n] = before[:m, :n] = 0
                    np.testing.assert_array_equal(c, before, err_msg="written outside m x n")


def _dots(rows, columns):
    tile = dot_tile(rows, columns)

    def dots(k, a, a_row, b, b_row, c, c_row, add):
        store_scalars(tile(k, pointer(a), a_row, pointer(b), b_row), pointer(c), c_row, 1, columns, add)

    dots.__qualname__ = f"dots_{rows}_{columns}"
    return kernel("i R1 i R1 i W1 i b")(dots)


DOTS = [(_dots(*sizes), *sizes) for sizes in ((4, 3), (1, 4), (5, 1), (4, 4), (3, 6))]  # more sums than a vector has lanes, too


@pytest.mark.parametrize("dots,rows,columns", DOTS)
@pytest.mark.parametrize("k", [0, 1, 7, 8, 9, 100])
def test_dots(k, dots, rows, columns):
    rng = np.random.default_rng(k)
    a, b = rng.standard_normal((rows, k)).astype("f4"), rng.standard_normal((columns, k)).astype("f4")
    c = np.full((rows, columns), np.nan, "f4")
    dots["f"](k, a.ravel(), k, b.ravel(), k, c.ravel(), columns, False)
    assert_close(c, a.astype("f8") @ b.T.astype("f8"), "sum", max(k, 1))
    dots["f"](k, a.ravel(), k, b.ravel(), k, c.ravel(), columns, True)
    assert_close(c, 2 * (a.astype("f8") @ b.T.astype("f8")), "sum", max(k, 1))


def bare_tile(rows, vectors, indirect, ahead):
    tile, put = outer_tile(rows, vectors, indirect=indirect, ahead=ahead), store_tile(rows, vectors)

    def run(k, a, a_row, b, b_step, offsets, c, c_row, add):
        step, last = pointer(offsets) if indirect else b_step, pointer(b) if ahead else 0
        put(tile(k, pointer(a), a_row, 1, pointer(b), step, last), pointer(c), c_row, rows, 4096, add)

    run.__qualname__ = f"bare_{rows}x{vectors}{'_indirect' if indirect else ''}{'_ahead' if ahead else ''}"
    return kernel("i R1 i R1 i L1 W1 i b")(run)


@pytest.mark.parametrize("indirect,ahead", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("shape", TILES)
def test_loops_do_not_spill(shape, indirect, ahead):
    """In no loop of the machine code that multiplies does a vector register go to or come from the stack."""
    loops = spills_of_loops(bare_tile(*shape, indirect, ahead), "f", shape[0] * shape[1])
    assert loops is None or (len(loops) >= 2 and not any(loops)), loops


@pytest.mark.parametrize("made", [convolve_groups, convolve_pixels, correlate, gradient_pixels, make(6, 3, 2)[1], gemm],
                         ids=lambda made: made.function.__name__)
def test_kernels_do_not_spill(made):
    """The same of the tiles where they are used: in a large function LLVM schedules otherwise than in a small one."""
    steps = 2 if made is gradient_pixels else UNROLL
    loops = spills_of_loops(made, "f", HEIGHTS[-1] * TILE_VECTORS * steps)
    assert loops is None or (loops and not any(loops)), loops
