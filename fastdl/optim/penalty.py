"""L1 and L2 penalties on weights."""

from __future__ import annotations

import numpy as np

from .. import check
from ..nn import Parameter
from ..nn.parameter import is_tensor


class Penalty:
    """``l1 * sum(abs(w)) + l2 / 2 * sum(w**2)`` over the weights, added to the loss.

    penalty = optim.Penalty(model.parameters(), l1=1e-5)
    pullback(dy); penalty.add_gradients(); optimizer.step()

    parameters: those of a model; of them, weights are penalised, and vectors (biases, the scales of a normalisation) only
    with ``biases=True``. l1 drives weights to 0, l2 keeps them small; both together are the elastic net. Unlike AdamW's
    ``weight_decay``, which is decoupled from the gradient, a penalty goes through the optimiser's moments; with SGD, l2 is
    the same as ``weight_decay``. fit takes it as ``penalty``.

    Raises ValueError for a negative strength, and where no parameter is left to penalise.
    Source: H. Zou, T. Hastie, "Regularization and variable selection via the elastic net" (2005).
    """

    def __init__(self, parameters, l1=0.0, l2=0.0, biases=False):
        self.l1 = check.number("Penalty", "l1", l1, 0)
        self.l2 = check.number("Penalty", "l2", l2, 0)
        parameters = [parameters] if isinstance(parameters, Parameter) else list(parameters)
        self.parameters = [p for p in parameters if biases or len(p.shape) > 1]
        if not self.parameters:
            raise ValueError(f"Penalty: of {len(parameters)} parameters none is a weight of two or more dimensions; biases=True takes all")

    def value(self) -> float:
        """The penalty now."""
        if any(is_tensor(p.data) for p in self.parameters):
            tensors = [p.data.double() for p in self.parameters]
            return float(sum(self.l1 * t.abs().sum() + self.l2 / 2 * t.square().sum() for t in tensors))
        arrays = [p.data for p in self.parameters]
        absolute = self.l1 and sum(float(np.abs(a).sum(dtype=np.float64)) for a in arrays)
        squared = self.l2 and sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays)
        return self.l1 * absolute + self.l2 / 2 * squared

    def add_gradients(self) -> None:
        """Add the penalty's gradient to the gradient of each weight that has one; that of abs at 0 is 0."""
        for p in self.parameters:
            if p.grad is None:
                continue
            if self.l1:
                p.grad += self.l1 * (p.data.sign() if is_tensor(p.data) else np.sign(p.data))
            if self.l2:
                p.grad += self.l2 * p.data
