"""The catalogue: every public operator, by torch.nn.functional's names. ``import fastdl.functional as F``."""

from .ops.matmul import bmm, linear, matmul

__all__ = ["bmm", "linear", "matmul"]
