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
    """The operator's forward and backward kernels."""
    outputs = [t for t in (y if isinstance(y, tuple) else (y,)) if t.requires_grad]
    torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])


def _rnn(op, hidden, dtype, batch=64, states=1, gates=1, directions=1, train=True):
    """A sequence of few steps: their number is no constant of a kernel."""
    hx = tuple(_t(directions, batch, hidden, dtype=dtype) for _ in range(states))
    params = [_t(*s, dtype=dtype, grad=train) for s in ((gates * hidden, 64), (gates * hidden, hidden), (gates * hidden,),
                                                        (gates * hidden,)) * directions]
    return lambda: _both(op(_t(2, batch, 64, dtype=dtype), hx if states > 1 else hx[0], params, bidirectional=directions == 2)[:1])


CALLS = {
    "matmul bf16": lambda: _both(F.matmul(_t(8192, 8192), _t(8192, 8192))),
    "matmul f32": lambda: F.matmul(_t(4096, 4096, dtype=SINGLE), _t(4096, 4096, dtype=SINGLE)),
    "linear f32": lambda: F.linear(_t(4096, 4096, dtype=SINGLE), _t(4096, 4096, dtype=SINGLE)),
    "matmul fp8": lambda: F.matmul(_t(4096, 4096), _t(4096, 4096).mT, precision="fp8") if device.recording.capability >= 89 else
    F.matmul(_t(4096, 4096), _t(4096, 4096).mT),
    "matmul f16, batched": lambda: F.matmul(_t(64, 1024, 128, dtype=HALF), _t(64, 128, 1024, dtype=HALF)),
    "linear bf16, bias, gelu": lambda: _both(F.linear(_t(4096, 4096), _t(4096, 4096), _t(4096), activation="gelu")),
    "conv 3x3 bf16": lambda: _both(F.conv2d(_last(32, 256, 28, 28), _last(256, 256, 3, 3), _t(256), padding=1, activation="relu")),
    "conv 3x3 bf16, 2x2 max-pool": lambda: F.conv2d_max_pool2d(_last(32, 64, 56, 56).detach(), _last(128, 64, 3, 3).detach(),
                                                               _t(128, grad=False), padding=1, activation="relu"),
    "conv 5x5 f32, 2x2 max-pool": lambda: F.conv2d_max_pool2d(_t(64, 1, 28, 28, dtype=SINGLE, grad=False),
                                                              _t(32, 1, 5, 5, dtype=SINGLE, grad=False)),
    "conv 3x3 f16, stride 2": lambda: _both(F.conv2d(_last(32, 256, 56, 56, dtype=HALF), _last(512, 256, 3, 3, dtype=HALF), stride=2,
                                                     padding=1)),
    "conv 1x1 bf16": lambda: _both(F.conv2d(_last(32, 256, 56, 56), _last(64, 256, 1, 1))),
    "conv 7x7 bf16, 3 channels": lambda: F.conv2d(_last(32, 3, 224, 224), _last(64, 3, 7, 7), stride=2, padding=3),
    "conv 3x3 f32, planar": lambda: F.conv2d(_t(32, 128, 28, 28, dtype=SINGLE), _t(128, 128, 3, 3, dtype=SINGLE), padding=1),
    "conv 3x3 bf16, depthwise": lambda: _both(F.conv2d(_last(32, 256, 56, 56), _t(256, 1, 3, 3), padding=1, groups=256)),
    "conv_transpose 5x5 bf16, stride 2": lambda: F.conv_transpose2d(_last(32, 256, 14, 14), _last(256, 128, 5, 5), stride=2, padding=2,
                                                                    output_padding=1),
    "max_pool 3x3 bf16, channels-last": lambda: _both(F.max_pool2d(_last(32, 64, 112, 112), 3, 2, 1)),
    "max_pool 2x2 f16, planar": lambda: _both(F.max_pool2d(_t(32, 64, 112, 112, dtype=HALF), 2)),
    "avg_pool 2x2 bf16, channels-last": lambda: _both(F.avg_pool2d(_last(32, 64, 112, 112), 2)),
    "global average bf16, planar": lambda: _both(F.adaptive_avg_pool2d(_t(32, 2048, 7, 7), 1)),
    "lstm bf16, hidden 128": lambda: _rnn(F.lstm, 128, BFLOAT, states=2, gates=4, directions=2)(),
    "gru f16, hidden 128": lambda: _rnn(F.gru, 128, HALF, gates=3)(),
    "rnn_tanh f32, hidden 128": lambda: _rnn(F.rnn_tanh, 128, SINGLE)(),
    "lstm f16, hidden 512": lambda: _rnn(F.lstm, 512, HALF, states=2, gates=4)(),
    "lstm f16, hidden 700": lambda: _rnn(F.lstm, 700, HALF, states=2, gates=4)(),
    "lstm f32, hidden 64": lambda: _rnn(F.lstm, 64, SINGLE, states=2, gates=4)(),
    "lstm bf16, hidden 2048, both directions": lambda: _rnn(F.lstm, 2048, BFLOAT, states=2, gates=4, directions=2)(),
    "gru bf16, two layers with dropout": lambda: _both(F.gru(_t(2, 16, 64), None, [
        _t(*s) for s in ((192, 64), (192, 64), (192,), (192,)) * 2], True, 2, 0.5, True, seed=1)[:1]),
    "rnn_tanh f32, hidden 512": lambda: _rnn(F.rnn_tanh, 512, SINGLE)(),
    "gru bf16, hidden 1024": lambda: _rnn(F.gru, 1024, BFLOAT, gates=3)(),
    "gru f32, hidden 1024, both directions": lambda: _rnn(F.gru, 1024, SINGLE, gates=3, directions=2)(),
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
MATRIX = {"conv 3x3 bf16", "conv 3x3 f16, stride 2", "conv 1x1 bf16", "conv_transpose 5x5 bf16, stride 2", "conv 3x3 bf16, 2x2 max-pool",
          "matmul bf16", "matmul f16, batched", "linear bf16, bias, gelu"}
