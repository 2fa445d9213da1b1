"""fastdl needs neither torch to run nor torch or numba to be imported."""

from subprocesses import python

NO_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""

OPERATORS = NO_TORCH + """
import numpy as np
import fastdl, fastdl.functional as F

rng = np.random.default_rng(0)
def a(*shape): return rng.standard_normal(shape).astype("f4")

cases = {
    F.matmul: ([a(3, 4), a(4, 5)], {}),
    F.linear: ([a(3, 4), a(5, 4), a(5)], dict(activation="gelu")),
    F.conv2d: ([a(2, 3, 6, 6), a(4, 3, 3, 3), a(4)], dict(padding="same")),
    F.max_pool2d: ([a(2, 3, 6, 6)], dict(kernel_size=2)),
    F.gru: ([a(4, 2, 3), None, [a(15, 3), a(15, 5), a(15), a(15)]], {}),
}
for f, (arrays, options) in cases.items():
    want = f(*arrays, **options)
    y, pullback = fastdl.vjp(f, *arrays, **options)
    first = lambda v: v[0] if isinstance(v, tuple) else v
    np.testing.assert_array_equal(first(y), first(want))
    grads = pullback((np.ones_like(y[0]),) + (None,) * (len(y) - 1) if isinstance(y, tuple) else 1.0)
    assert grads[0].shape == arrays[0].shape and np.isfinite(grads[0]).all() and grads[0].any(), f
try:
    import torch
except ImportError:
    print("served", len(cases))
"""


def test_operators_without_torch():
    assert python(OPERATORS, FASTDL_BACKEND="reference").stdout == "served 5\n"


def test_refusals_without_torch():
    code = NO_TORCH + """
import fastdl.functional as F
try:
    F.matmul([[1.0]], [[1.0]])
except TypeError as error:
    print(error)
"""
    assert python(code).stdout == "matmul: input must be a numpy array or a torch tensor, got list\n"


def test_import_is_lean():
    for module in ("fastdl", "fastdl.functional"):
        done = python(f"import {module}", "-X", "importtime")
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "fastdl" in imported and "numpy" in imported
        assert not imported & {"numba", "llvmlite", "torch", "triton", "scipy", "matplotlib", "tqdm"}
