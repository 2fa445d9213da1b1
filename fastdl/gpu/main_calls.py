"""The calls whose kernels are compiled ahead of time: an operator at a size that matters, forward and backward, on meta tensors."""

from __future__ import annotations

import torch

import fastdl.functional as F

from . import device

HALF, BFLOAT, SINGLE = torch.float16, torch.bfloat16, torch.float32


def _t(*shape, dtype=BFLOAT, grad=True):
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad and dtype.is_floating_point)


def _last(n, *sizes, dtype=BFLOAT):
    """(N, C, ...) in channels-last memory."""
    channels, *spatial = sizes
    return torch.empty((n, *spatial, channels), dtype=dtype, device="meta").movedim(-1, 1).requires_grad_()


def _both(y):
    """The operator's forward and backward kernels; the latter for one architecture, which bounds the time that this takes."""
    if device.recording.arch != "sm_90":
        return
    outputs = [t for t in (y if isinstance(y, tuple) else (y,)) if t.requires_grad]
    torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])


CALLS = {
    "matmul bf16": lambda: _both(F.matmul(_t(8192, 8192), _t(8192, 8192))),
    "matmul f32": lambda: F.matmul(_t(4096, 4096, dtype=SINGLE), _t(4096, 4096, dtype=SINGLE)),
    "matmul f16, batched": lambda: F.matmul(_t(64, 1024, 128, dtype=HALF), _t(64, 128, 1024, dtype=HALF)),
    "linear bf16, bias, gelu": lambda: _both(F.linear(_t(4096, 4096), _t(4096, 4096), _t(4096), activation="gelu")),
    "softmax bf16": lambda: _both(F.softmax(_t(8192, 8192), 1)),
    "log_softmax bf16, 128k classes": lambda: _both(F.log_softmax(_t(1024, 131072), 1)),
    "softmax f16, channels": lambda: _both(F.softmax(_t(16, 21, 512, 512, dtype=HALF), 1)),
    "cross_entropy bf16": lambda: _both(F.cross_entropy(_t(8192, 32768), _t(8192, dtype=torch.int64))),
    "layer_norm bf16": lambda: _both(F.layer_norm(_t(8192, 4096), 4096, _t(4096), _t(4096))),
    "batch_norm bf16, channels-last": lambda: _both(F.batch_norm(_last(32, 256, 56, 56), None, None, _t(256), _t(256), True)),
    "batch_norm f32, contiguous": lambda: _both(F.batch_norm(_t(32, 256, 56, 56, dtype=SINGLE), None, None, training=True)),
    "group_norm f16, channels-last": lambda: _both(F.group_norm(_last(32, 256, 56, 56, dtype=HALF), 32, _t(256, dtype=HALF),
                                                                _t(256, dtype=HALF))),
    "gelu bf16": lambda: _both(F.gelu(_t(8192, 8192))),
    "dropout bf16": lambda: F.dropout(_t(8192, 8192), 0.1, seed=1),
    "linear bf16, one row": lambda: F.linear(_t(1, 4096), _t(4096, 4096)),
}

# those whose time is that of matrix products
MATRIX = {"matmul bf16", "matmul f16, batched", "linear bf16, bias, gelu"}
