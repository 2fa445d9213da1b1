"""Linear, Embedding, and the layers that only reshape."""

from __future__ import annotations

import math

import numpy as np

from .. import check
from .. import functional as F
from ..ops.activation import check_activation
from . import init
from .layer import OperatorLayer
from .module import Module
from .parameter import Parameter, is_tensor


class Linear(OperatorLayer):
    """y = x W^T + b: (..., in_features) -> (..., out_features).

    activation: fused into the product's last step ("relu", ("leaky_relu", 0.2), ...), beyond torch.
    weight (out_features, in_features) and bias (out_features,) start uniform within 1 / sqrt(in_features).
    """

    operator, binds = "linear", True

    def __init__(self, in_features, out_features, bias=True, *, activation=None, dtype=np.float32, rng=None):
        self.in_features = check.integer("Linear", "in_features", in_features, 0)
        self.out_features = check.integer("Linear", "out_features", out_features, 0)
        check_activation("Linear", activation)
        self.activation = activation
        shape = (self.out_features, self.in_features)
        self.weight, self.bias = init.fan_in_uniform(shape, out_features if bias else None,
                                                     init.check_dtype("Linear", dtype), init.generator(rng))

    def arguments(self, x):
        return (self.weight, self.bias), {"activation": self.activation} if self.activation else {}

    def extra_repr(self):
        activation = f", activation={self.activation!r}" if self.activation else ""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}{activation}"


class Identity(Module):
    """y = x. Takes and forgets any arguments, as torch's does."""

    def __init__(self, *args, **kwargs):
        pass

    def forward(self, x):
        return x

    def run_for(self, x, options):
        return None if options else lambda x: x

    def vjp(self, x):
        return x, lambda dy, needs=True: dy if needs else None


class Reshape(Module):
    """The base of layers that answer the same values in another shape."""

    def run_for(self, x, options):
        if options or type(x) is not np.ndarray or type(self) not in (Flatten, Unflatten):
            return None
        shape = self.forward(x).shape
        return lambda x: x.reshape(shape)

    def vjp(self, x):
        return self.forward(x), lambda dy, needs=True: (dy if is_tensor(dy) else np.asarray(dy)).reshape(x.shape) if needs else None


class Flatten(Reshape):
    """Dimensions start_dim to end_dim (both included) become one: (N, C, H, W) -> (N, C * H * W)."""

    def __init__(self, start_dim=1, end_dim=-1):
        self.start_dim = check.integer("Flatten", "start_dim", start_dim)
        self.end_dim = check.integer("Flatten", "end_dim", end_dim)

    def forward(self, x):
        shape = tuple(x.shape)
        first = dimension("Flatten", "start_dim", self.start_dim, len(shape))
        last = dimension("Flatten", "end_dim", self.end_dim, len(shape))
        if first > last:
            raise ValueError(f"Flatten: start_dim {self.start_dim} comes after end_dim {self.end_dim} in shape {x.shape}")
        return x.reshape(shape[:first] + (math.prod(shape[first : last + 1]),) + shape[last + 1 :])

    def extra_repr(self):
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Reshape):
    """Dimension dim becomes several: Unflatten(1, (64, 7, 7)) takes (N, 3136) to (N, 64, 7, 7). One size may be -1."""

    def __init__(self, dim, unflattened_size):
        self.dim = check.integer("Unflatten", "dim", dim)
        if not isinstance(unflattened_size, (tuple, list)) or not unflattened_size:
            raise TypeError(f"Unflatten: unflattened_size must be a tuple of integers, got {unflattened_size!r}")
        self.unflattened_size = tuple(check.integer("Unflatten", "unflattened_size", n, -1) for n in unflattened_size)
        if self.unflattened_size.count(-1) > 1:
            raise ValueError(f"Unflatten: unflattened_size {self.unflattened_size} has more than one -1")

    def forward(self, x):
        dim, sizes = dimension("Unflatten", "dim", self.dim, x.ndim), self.unflattened_size
        known = math.prod(n for n in sizes if n != -1)
        if -1 in sizes and known and x.shape[dim] % known == 0:
            sizes = tuple(x.shape[dim] // known if n == -1 else n for n in sizes)
        if math.prod(sizes) != x.shape[dim] or -1 in sizes:
            raise ValueError(f"Unflatten: unflattened_size {self.unflattened_size} does not make up dimension {self.dim} of {x.shape}")
        return x.reshape(tuple(x.shape[:dim]) + sizes + tuple(x.shape[dim + 1 :]))

    def extra_repr(self):
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


def dimension(layer, name, dim, ndim):
    if not -ndim <= dim < ndim:
        raise ValueError(f"{layer}: {name} is {dim}, x has {ndim} dimensions")
    return dim % ndim


class Embedding(OperatorLayer):
    """Rows of a table: integers (...) -> (..., embedding_dim). torch's, without max_norm, scale_grad_by_freq and sparse.

    padding_idx: a row that starts as zeros and gets no gradient. weight (num_embeddings, embedding_dim) starts standard
    normal. Integers have no gradient: the pullback answers None.
    """

    operator = "embedding"

    def __init__(self, num_embeddings, embedding_dim, padding_idx=None, *, dtype=np.float32, rng=None):
        self.num_embeddings = check.integer("Embedding", "num_embeddings", num_embeddings, 1)
        self.embedding_dim = check.integer("Embedding", "embedding_dim", embedding_dim, 1)
        if padding_idx is not None:
            padding_idx = check.integer("Embedding", "padding_idx", padding_idx)
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(f"Embedding: padding_idx is {padding_idx}; the rule is within num_embeddings ({num_embeddings})")
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        dtype = init.check_dtype("Embedding", dtype)
        self.weight = Parameter(init.generator(rng).standard_normal((num_embeddings, embedding_dim), dtype=dtype))
        if padding_idx is not None:
            with self.weight.edit() as array:
                array[padding_idx] = 0

    def arguments(self, x):
        return (self.weight,), {"padding_idx": self.padding_idx}

    def forward(self, x):
        return F.embedding(x, self.weight.packed)  # padding_idx speaks of gradients

    def extra_repr(self):
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
