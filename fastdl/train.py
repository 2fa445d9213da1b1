"""A training loop: ``fit`` a model to batches, ``evaluate`` it, keep the ``History``.

    history = fit(model, Batches(x, y, batch_size=64), loss=F.cross_entropy, optimizer=optim.SGD(model.parameters(), lr=0.05),
                  epochs=12, validation=(x_test, y_test))

It is a plain loop over ``model.vjp`` and ``optimizer.step()``; where it does not fit, write your own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time

import numpy as np

from . import check
from .checkpoint import Checkpoint
from .data import Batches
from .nn.parameter import is_tensor
from .optim import clip_grad_norm_
from .progress import Progress
from .vjp import vjp


@dataclasses.dataclass
class History:
    """What each epoch gave: lists of one entry an epoch, None where there was nothing to measure.

    loss and accuracy are means over the rows of the epoch, taken while the model trained (with dropout, as it changed);
    val_loss and val_accuracy are the validation's after it. accuracy is whatever ``metric`` measures. lr is the rate of
    the first parameter group, seconds the epoch's, validation included. best_epoch counts from 0.
    """

    loss: list = dataclasses.field(default_factory=list)
    accuracy: list = dataclasses.field(default_factory=list)
    val_loss: list = dataclasses.field(default_factory=list)
    val_accuracy: list = dataclasses.field(default_factory=list)
    lr: list = dataclasses.field(default_factory=list)
    seconds: list = dataclasses.field(default_factory=list)
    best_epoch: int | None = None

    def __len__(self):
        return len(self.loss)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> History:
        """The history that ``to_json`` wrote. Raises ValueError where text is something else."""
        values = json.loads(text)
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"History.from_json: the text must be an object with entries {', '.join(sorted(names))}")
        return cls(**values)


def accuracy(y, target) -> float:
    """The share of rows whose largest entry is the target's: y (N, classes, ...), target integers (N, ...) or, as mix-up
    makes them, probabilities of y's shape, of which the largest counts."""
    hits = y.argmax(axis=1) == (target.argmax(axis=1) if _is_float(target) else target)
    return float(hits.float().mean() if is_tensor(hits) else np.mean(hits))


def _is_float(target) -> bool:
    return target.is_floating_point() if is_tensor(target) else target.dtype.kind == "f"


def evaluate(model, data, *, loss, loss_options=None, metric="auto") -> tuple[float, float | None]:
    """(loss, metric) of the model on data, each a mean over the rows, in evaluation mode.

    data, loss and metric are as in :func:`fit`; the modes of the model's modules are then as before.

    Raises FloatingPointError where the loss is not finite because the data are not, naming the batch.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        mean = _Mean()
        for batch, (*inputs, target) in enumerate(_batches("evaluate", data)):
            y = model(*inputs)
            value = float(loss(y, target, **(loss_options or {})))
            if not math.isfinite(value) and (fault := _fault(inputs, target)):
                raise FloatingPointError(f"evaluate: the loss is {value} in batch {batch} (from 0). {fault}")
            mean.add(len(target), value, _measure(metric, y, target))
    finally:
        for module, training in modes:
            module.training = training
    if not mean.rows:
        raise ValueError("evaluate: data gave no batch")
    return mean.loss, mean.metric


def fit(model, data, *, loss, optimizer, epochs, validation=None, schedule=None, patience=None, metric="auto", loss_options=None,
        clip_norm=None, penalty=None, progress=True, history=None, checkpoint=None) -> History:
    """Train ``model`` on ``data`` for ``epochs``; the history. The model is then in evaluation mode.

    data: batches ``(*inputs, target)``, iterable once an epoch: a :class:`fastdl.data.Batches`, a list, ... Where it has
        ``set_epoch`` it is told which epoch this is, so that resumed runs see the same order.
    loss: an operator ``loss(y, target, **loss_options)``, such as ``F.cross_entropy``.
    optimizer: a :class:`fastdl.optim.Optimizer` over the model's parameters. schedule: stepped after each epoch.
    validation: batches, or a tuple of arrays ``(*inputs, target)``, evaluated after each epoch.
    patience: stop after this many epochs in a row without a lower validation loss, and in any case end with the weights
        of the best epoch.
    metric: a function (y, target) -> number; "auto" is the accuracy where targets are integers; None is nothing.
    penalty: a :class:`fastdl.optim.Penalty`, whose gradient joins the loss's; losses are reported without it.
    clip_norm: the largest norm the gradients may have together (``clip_grad_norm_``).
    progress: show a bar an epoch, or for "run" one bar for all of them, with loss and accuracy (tqdm; where it is not
        installed, a line an epoch on stderr).
    history: an earlier run's, to be continued: ``epochs`` counts from its first, and so does ``set_epoch``.
    checkpoint: a :class:`fastdl.checkpoint.Checkpoint`, or a path for one. It is written after each epoch; one with
        ``resume`` first takes up what it finds: weights, optimizer, schedule, history, best weights and generator, so
        that the run ends with the bits of one that was never interrupted.

    Raises FloatingPointError where the loss is not finite, naming epoch and batch, before the weights change, or where the
    validation's is not because its data are not; TypeError or ValueError for arguments that do not fit.
    """
    epochs = check.integer("fit", "epochs", epochs, 0)
    if patience is not None:
        patience = check.integer("fit", "patience", patience, 1)
        if validation is None:
            raise ValueError(f"fit: patience is {patience}, validation is None; the rule is that early stopping has data to watch")
    if isinstance(data, tuple):
        raise TypeError("fit: data is a tuple of arrays; the rule is batches: Batches(x, y, batch_size=64)")
    if iter(data) is data:
        raise TypeError(f"fit: data is an iterator ({type(data).__name__}); the rule is what each epoch can iterate over, such as Batches")
    history = History() if history is None else history
    validation = validation if validation is None else _batches("fit", validation)
    best = _Best(model, patience)
    parts = {"model": model, "optimizer": optimizer, "best": best, **({} if schedule is None else {"schedule": schedule})}
    if checkpoint is not None:
        checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
        if found := checkpoint.restore(**parts):
            history = History(**found["history"])
    with Progress(progress, epochs, len(history), data) as bar:
        for epoch in range(len(history), epochs):
            if best.over:
                break
            start = time.perf_counter()
            if hasattr(data, "set_epoch"):
                data.set_epoch(epoch)
            model.train()
            bar.begin(epoch)
            mean = _Mean()
            for batch, (*inputs, target) in enumerate(data):
                value, y = _step(model, inputs, target, loss, loss_options or {}, optimizer, penalty, clip_norm, (epoch, batch))
                mean.add(len(target), value, _measure(metric, y, target))
                bar.batch(mean.loss, mean.metric)
            if not mean.rows:
                raise ValueError(f"fit: data gave no batch in epoch {epoch}")
            val_loss, val_metric = (None, None)
            if validation is not None:
                val_loss, val_metric = evaluate(model, validation, loss=loss, loss_options=loss_options, metric=metric)
            bar.end(mean.loss, mean.metric, val_loss, val_metric)
            for name, value in (("loss", mean.loss), ("accuracy", mean.metric), ("val_loss", val_loss), ("val_accuracy", val_metric),
                                ("lr", optimizer.param_groups[0]["lr"]), ("seconds", time.perf_counter() - start)):
                getattr(history, name).append(value)
            if schedule is not None:
                schedule.step()
            best.see(val_loss, epoch, history)
            if checkpoint is not None:
                checkpoint.save({"history": dataclasses.asdict(history)}, **parts)
    best.put_back()
    model.eval()
    return history


class _Best:
    """The weights of the epoch with the lowest validation loss, where ``patience`` asks for them."""

    def __init__(self, model, patience):
        self.model, self.patience = model, patience
        self.loss, self.weights, self.waited = math.inf, {}, 0

    @property
    def over(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def see(self, loss, epoch, history):
        if self.patience is None:
            return
        if loss < self.loss:
            self.loss, self.waited, history.best_epoch = loss, 0, epoch
            self.weights = {name: array.clone() if is_tensor(array) else array.copy() for name, array in self.model.state_dict().items()}
        else:
            self.waited += 1

    def put_back(self):
        if self.weights:
            self.model.load_state_dict(self.weights)

    def state_dict(self):
        return {"loss": self.loss, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state):
        self.loss, self.waited, self.weights = state["loss"], state["waited"], state["weights"]


def _step(model, inputs, target, loss, loss_options, optimizer, penalty, clip_norm, where):
    """One training step: the loss and the model's answer."""
    optimizer.zero_grad()
    try:
        y, pullback = model.vjp(*inputs)
    except ValueError as error:
        if len(target) != 1:
            raise
        raise ValueError(f"fit: batch {where[1]} of epoch {where[0]} has one row: {error}. Batches(..., drop_last=True) leaves a last, "
                         "smaller batch out") from error
    value, loss_pullback = vjp(loss, y, target, **loss_options)
    value = float(value)
    if not math.isfinite(value):
        epoch, batch = where
        fault = _fault(inputs, target) or "The data are finite: try a lower learning rate or clip_norm"
        raise FloatingPointError(f"fit: the loss is {value} in epoch {epoch}, batch {batch} (both from 0); the weights are those "
                                 f"before this batch. {fault}")
    pullback(loss_pullback(1.0)[0], needs=False)
    if penalty is not None:
        penalty.add_gradients()
    if clip_norm is not None:
        clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return value, y


def _fault(inputs, target) -> str | None:
    """What is wrong with the data of a batch whose loss is not finite; None where they are finite."""
    for name, array in [*((f"input {i}", a) for i, a in enumerate(inputs)), ("target", target)]:
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all():
            row = np.argwhere(~np.isfinite(array))[0][0] if array.ndim else 0
            return f"The data are at fault: {name} holds NaN or infinity, first in row {row} of the batch; remove or replace such rows"
    return None


def _measure(metric, y, target):
    if metric == "auto":
        of_classes = not _is_float(target) if is_tensor(target) else isinstance(target, np.ndarray) and target.dtype.kind in "iu"
        metric = accuracy if of_classes and y.ndim == target.ndim + 1 else None
    return None if metric is None else float(metric(y, target))


def _batches(op, data):
    if isinstance(data, tuple):
        return Batches(*data, batch_size=256, shuffle=False)
    if iter(data) is data and op == "fit":
        raise TypeError(f"fit: validation is an iterator ({type(data).__name__}); the rule is one that can be iterated once an epoch")
    return data


class _Mean:
    """Means over rows of a loss and a metric."""

    def __init__(self):
        self.rows, self._loss, self._metric = 0, 0.0, 0.0

    def add(self, rows, loss, metric):
        self.rows += rows
        self._loss += rows * loss
        self._metric = None if metric is None or self._metric is None else self._metric + rows * metric

    @property
    def loss(self):
        return self._loss / self.rows

    @property
    def metric(self):
        return None if self._metric is None else self._metric / self.rows
