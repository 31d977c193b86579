# SPDX-License-Identifier: Apache-2.0
"""The learning rate at every moment of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ghostnets.training.recipe import Recipe


def rate(recipe: Recipe, epoch: float) -> float:
    """The learning rate when ``epoch`` epochs, with their fraction, are done: a linear warm-up, then the schedule."""
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * epoch / recipe.warmup_epochs
    span = max(recipe.epochs - recipe.warmup_epochs, 1e-12)
    share = SCHEDULES[recipe.sched](recipe, min((epoch - recipe.warmup_epochs) / span, 1.0), epoch)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * share


def _step(recipe: Recipe, _done: float, epoch: float) -> float:
    return recipe.decay_rate ** sum(epoch >= milestone for milestone in recipe.decay_milestones)


SCHEDULES: Mapping[str, Callable[[Recipe, float, float], float]] = {
    "cosine": lambda _recipe, done, _epoch: 0.5 + 0.5 * math.cos(math.pi * done),  # arXiv:1608.03983, without restarts
    "step": _step,
    "onecycle": lambda _recipe, done, _epoch: 1 - done,  # up in the warm-up, down in a straight line (airbench)
    "constant": lambda _recipe, _done, _epoch: 1.0,
}
"""Share of the peak by (recipe, share of the time behind the warm-up, epoch)."""
