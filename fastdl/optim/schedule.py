"""Learning-rate schedules, by torch.optim.lr_scheduler's names: call ``step()`` after each epoch.

A rate is a function of the number of steps taken and of the rate the group started from, so a schedule that is loaded
or set to a step gives what a run from the start would have.
"""

from __future__ import annotations

import math

from .. import check
from .optimizer import Optimizer


class Schedule:
    """The base of schedules: sets each group's "lr" from its "initial_lr". ``last_epoch`` counts the steps taken."""

    def __init__(self, optimizer):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: optimizer must be a fastdl.optim.Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.base_lrs = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self.last_epoch = 0
        self._set()

    def lr(self, base: float, group: int) -> float:
        """The rate after ``last_epoch`` steps of the group of that number, whose first rate was base."""
        return base

    def _set(self):
        for i, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs, strict=True)):
            group["lr"] = self.lr(base, i)

    def step(self) -> None:
        self.last_epoch += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict:
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict) -> None:
        got, own = len(state["base_lrs"]), len(self.base_lrs)
        if got != own:
            raise ValueError(f"{type(self).__name__}: load_state_dict got {got} groups, the optimiser has {own}")
        self.last_epoch, self.base_lrs = int(state["last_epoch"]), list(state["base_lrs"])
        self._set()


class StepLR(Schedule):
    """Times gamma every step_size steps."""

    def __init__(self, optimizer, step_size, gamma=0.1):
        self.step_size = check.integer("StepLR", "step_size", step_size, 1)
        self.gamma = check.number("StepLR", "gamma", gamma)
        super().__init__(optimizer)

    def lr(self, base, group):
        return base * self.gamma ** (self.last_epoch // self.step_size)


class CosineAnnealingLR(Schedule):
    """Half a cosine from the first rate to eta_min in T_max steps (and back up, as torch's, if it goes on).

    Source: I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017), without restarts.
    """

    def __init__(self, optimizer, T_max, eta_min=0.0):
        self.T_max = check.integer("CosineAnnealingLR", "T_max", T_max, 1)
        self.eta_min = check.number("CosineAnnealingLR", "eta_min", eta_min)
        super().__init__(optimizer)

    def lr(self, base, group):
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2


class LambdaLR(Schedule):
    """The first rate times lr_lambda(steps taken); one function, or one for each group."""

    def __init__(self, optimizer, lr_lambda):
        functions = list(lr_lambda) if isinstance(lr_lambda, (list, tuple)) else [lr_lambda] * len(optimizer.param_groups)
        if len(functions) != len(optimizer.param_groups) or not all(map(callable, functions)):
            raise ValueError(f"LambdaLR: lr_lambda must be a function, or one for each of the {len(optimizer.param_groups)} groups")
        self.lr_lambdas = functions
        super().__init__(optimizer)

    def lr(self, base, group):
        return base * self.lr_lambdas[group](self.last_epoch)
