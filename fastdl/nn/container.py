"""Layers made of layers."""

from __future__ import annotations

import functools

import numpy as np

from ..op import generation
from .fusion import fused, is_enabled, joined
from .module import Module, changes
from .parameter import is_tensor

_MOST_CHAINS = 64  # forms of x for which a Sequential remembers what its layers run


class Sequential(Module):
    """Layers one after another, by number or, given one dict, by name; its ``state_dict`` keys are torch's ("0.weight").

    An activation runs as the last step of a convolution or linear layer before it, and a 2 x 2 max-pool after that; in inference, a
    batch-norm may too (:class:`fastdl.nn.fusion`).
    ``pullback(dy, needs=False)`` stops at the first layer that has something to train.
    """

    def __init__(self, *layers):
        named = layers[0].items() if len(layers) == 1 and isinstance(layers[0], dict) else enumerate(layers)
        self._names = []
        for name, layer in named:
            self._add(str(name), layer)

    def _add(self, name, layer):
        if not isinstance(layer, Module):
            raise TypeError(f"Sequential: layer {name} must be a Module, got {layer!r}")
        if not name or "." in name or name in self._names or hasattr(self, name):
            raise ValueError(f"Sequential: {name!r} cannot be a layer's name: it is empty, has a dot or is taken")
        self._names.append(name)
        setattr(self, name, layer)

    def append(self, layer):
        self._add(str(len(self)), layer)
        return self

    def __len__(self):
        return len(self._names)

    def __iter__(self):
        return (getattr(self, name) for name in self._names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Sequential({name: getattr(self, name) for name in self._names[index]})
        return getattr(self, self._names[index])

    def __setitem__(self, index, layer):
        if not isinstance(layer, Module):
            raise TypeError(f"Sequential: layer {index} must be a Module, got {layer!r}")
        setattr(self, self._names[index], layer)

    def forward(self, x):
        if type(x) is not np.ndarray:
            for layer, options in fused(self, pool=True) if is_tensor(x) else self._worked_out("_steps", joined):
                x = layer(x, **options)
            return x
        steps, form = self._worked_out("_steps", joined), (x.shape, x.strides, x.dtype)
        known = self.__dict__.get("_chains")
        if known is None or known[0] is not steps or known[1] != generation():
            known = self.__dict__["_chains"] = steps, generation(), {}
        chain = known[2].get(form)
        if chain is None:
            return self._chained(known[2], form, steps, x)
        for i, (run, form) in enumerate(chain):
            x = run(x)
            if form is not None and (type(x) is not np.ndarray or (x.shape, x.strides, x.dtype) != form):
                for layer, options in steps[i + 1:]:
                    x = layer(x, **options)
                return x
        return x

    def _chained(self, chains, form, steps, x):
        """The answer for x; its form's chain, a function of each step and the form of an answer that must be looked at, is kept."""
        chain = []
        for layer, options in steps:
            run = layer.run_for(x, options) if type(x) is np.ndarray else None
            if run is not None:
                x = run(x)
                chain.append((run, None))
            else:
                x = layer(x, **options)
                chain.append((functools.partial(layer, **options), (x.shape, x.strides, x.dtype) if type(x) is np.ndarray else ()))
        if len(chains) >= _MOST_CHAINS:
            chains.clear()
        chains[form] = chain
        return x

    def _worked_out(self, name, how):
        """how(self), what runs as one, worked out once for all calls until an attribute of this module or of its layers is set."""
        now, known = (changes(), is_enabled()), self.__dict__.get(name)
        if known is None or known[0] != now:
            versions = is_enabled(), *[vars(module).get("_version") for module in (self, *self)]
            steps = known[2] if known is not None and known[1] == versions else how(self)
            known = self.__dict__[name] = now, versions, steps
        return known[2]

    def vjp(self, x):
        layers, pullbacks = [], []
        for layer, options in fused(self) if is_tensor(x) else self._worked_out("_training_steps", _trained):
            x, pullback = layer.vjp(x, **options)
            layers.append(layer)
            pullbacks.append(pullback)

        def pullback(dy, needs=True):
            first = 0
            if not needs:
                trainable = (i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
                first = next(trainable, len(layers))
            for i in range(len(layers) - 1, first - 1, -1):
                dy = pullbacks[i](dy, needs=needs or i > first)
                if dy is None:
                    break
            return dy if needs else None

        return x, pullback


def _trained(layers):
    return fused(layers, pool=True)
