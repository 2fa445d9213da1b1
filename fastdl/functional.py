"""The catalogue: every public operator, by torch.nn.functional's names. ``import fastdl.functional as F``."""

from .ops.conv import conv1d, conv2d, conv2d_max_pool2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from .ops.embedding import embedding
from .ops.loss import binary_cross_entropy, binary_cross_entropy_with_logits, cross_entropy, kl_div, l1_loss, mse_loss, nll_loss
from .ops.matmul import addmm, bmm, linear, matmul
from .ops.norm import batch_norm, group_norm, layer_norm
from .ops.pointwise import dropout, elu, gelu, leaky_relu, log_softmax, relu, sigmoid, softmax, softplus, tanh
from .ops.pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from .ops.rnn import gru, gru_cell, lstm, lstm_cell, rnn_relu, rnn_relu_cell, rnn_tanh, rnn_tanh_cell

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "addmm", "avg_pool1d", "avg_pool2d", "avg_pool3d", "batch_norm", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "bmm", "conv1d", "conv2d", "conv2d_max_pool2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "cross_entropy", "dropout", "elu", "embedding", "gelu", "group_norm", "gru", "gru_cell", "kl_div",
    "l1_loss", "layer_norm", "leaky_relu", "linear", "log_softmax", "lp_pool1d", "lp_pool2d", "lp_pool3d", "lstm", "lstm_cell",
    "matmul", "max_pool1d", "max_pool2d", "max_pool3d", "mse_loss", "nll_loss", "relu", "rnn_relu", "rnn_relu_cell", "rnn_tanh",
    "rnn_tanh_cell", "sigmoid", "softmax", "softplus", "tanh",
]
