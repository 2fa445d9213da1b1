"""Optimisers, penalties, gradient clipping and learning-rate schedules, by torch.optim's names.

    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    optimizer.zero_grad(); dx = pullback(dy); optimizer.step()
"""

from .clip import clip_grad_norm_, clip_grad_value_
from .optimizer import SGD, Adam, AdamW, Optimizer
from .penalty import Penalty
from .schedule import CosineAnnealingLR, LambdaLR, Schedule, StepLR

__all__ = [
    "SGD", "Adam", "AdamW", "CosineAnnealingLR", "LambdaLR", "Optimizer", "Penalty", "Schedule", "StepLR", "clip_grad_norm_",
    "clip_grad_value_",
]
