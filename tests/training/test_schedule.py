# SPDX-License-Identifier: Apache-2.0
"""The learning rate at every step against PyTorch's schedulers, and at its corners by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from ghostnets.training.recipe import Recipe, load_recipe
from ghostnets.training.schedule import SCHEDULES, rate

STEPS = 7
"""An epoch."""


def by_torch(lr: float, count: int, make: Callable[[torch.optim.Optimizer], LRScheduler]) -> list[float]:
    """The rates of ``count`` steps that a scheduler gives."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    rates: list[float] = []
    for _ in range(count):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def ours(recipe: Recipe, first: int, count: int) -> list[float]:
    return [rate(recipe, step / STEPS) for step in range(first, first + count)]


@pytest.mark.parametrize("min_lr", [0.0, 0.02])
def test_cosine_is_pytorchs(min_lr: float) -> None:
    recipe = Recipe(epochs=9, lr=0.3, min_lr=min_lr, sched="cosine")
    wanted = by_torch(0.3, 9 * STEPS + 1, lambda o: CosineAnnealingLR(o, T_max=9 * STEPS, eta_min=min_lr))
    assert ours(recipe, 0, 9 * STEPS + 1) == pytest.approx(wanted, abs=1e-9)


def test_steps_are_pytorchs() -> None:
    recipe = Recipe(epochs=9, lr=0.3, sched="step", decay_milestones=(2, 5, 6), decay_rate=0.2)
    milestones = [2 * STEPS, 5 * STEPS, 6 * STEPS]
    wanted = by_torch(0.3, 9 * STEPS, lambda o: MultiStepLR(o, milestones, gamma=0.2))
    assert ours(recipe, 0, 9 * STEPS) == pytest.approx(wanted)


@pytest.mark.parametrize("min_lr", [0.0, 0.03])
def test_one_cycle_goes_up_and_down_in_pytorchs_straight_lines(min_lr: float) -> None:
    recipe = Recipe(epochs=9, lr=0.3, warmup_epochs=3, warmup_lr=0.06, min_lr=min_lr, sched="onecycle")
    up = by_torch(0.3, 3 * STEPS, lambda o: LinearLR(o, start_factor=0.2, end_factor=1.0, total_iters=3 * STEPS))
    down = by_torch(
        0.3, 6 * STEPS + 1, lambda o: LinearLR(o, start_factor=1.0, end_factor=min_lr / 0.3, total_iters=6 * STEPS)
    )
    assert ours(recipe, 0, 9 * STEPS + 1) == pytest.approx(up + down, abs=1e-9)


def test_a_constant_rate_is_constant_behind_the_warm_up() -> None:
    recipe = Recipe(epochs=9, lr=0.3, min_lr=0.1, warmup_epochs=2, sched="constant")
    assert ours(recipe, 2 * STEPS, 7 * STEPS) == pytest.approx([0.3] * (7 * STEPS))


@pytest.mark.parametrize("sched", SCHEDULES)
def test_the_warm_up_is_a_straight_line_and_what_follows_is_only_later(sched: str) -> None:
    knobs: dict[str, Any] = {"lr": 0.4, "min_lr": 0.05, "sched": sched}
    warm = Recipe(epochs=9, warmup_epochs=4, warmup_lr=0.1, decay_milestones=(6.0, 8.0), **knobs)
    assert ours(warm, 0, 4 * STEPS) == pytest.approx([0.1 + 0.3 * k / (4 * STEPS) for k in range(4 * STEPS)])
    cold = Recipe(epochs=5, decay_milestones=(2.0, 4.0), **knobs)
    assert ours(warm, 4 * STEPS, 5 * STEPS) == pytest.approx(ours(cold, 0, 5 * STEPS))


def test_without_a_start_the_warm_up_rises_from_nothing() -> None:
    recipe = Recipe(epochs=10, lr=0.2, warmup_epochs=2)
    assert [rate(recipe, epoch) for epoch in (0, 0.5, 1, 1.5, 2)] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_a_run_may_be_all_warm_up() -> None:
    recipe = Recipe(epochs=2, lr=0.2, warmup_epochs=2)
    assert [rate(recipe, epoch) for epoch in (0, 1, 1.9)] == pytest.approx([0, 0.1, 0.19])
    assert rate(recipe, 2) == pytest.approx(0.2)


def test_the_papers_rates_fall_after_32k_and_48k_steps() -> None:
    recipe = load_recipe("cifar10-paper")
    per_epoch = 50_000 // recipe.batch_size
    wanted = {0: 0.1, 31_900: 0.1, 32_000: 0.01, 47_900: 0.01, 48_000: 0.001, 63_900: 0.001}
    for step, lr in wanted.items():
        assert rate(recipe, step / per_epoch) == pytest.approx(lr)
    assert recipe.epochs * per_epoch == pytest.approx(64_000, rel=1e-3)


@given(
    st.sampled_from(["cosine", "step", "onecycle", "constant"]),
    st.floats(0.5, 300),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.lists(st.floats(0, 300), min_size=1, max_size=4),
)
def test_the_rate_never_leaves_its_bounds_and_only_falls_behind_the_warm_up(
    sched: Any, epochs: float, warm: float, start: float, peak: float, low: float, milestones: list[float]
) -> None:
    start, low = min(start, peak), min(low, peak)
    recipe = Recipe(
        epochs=epochs, warmup_epochs=epochs * warm, warmup_lr=start, lr=peak, min_lr=low, sched=sched,
        decay_milestones=tuple(milestones),
    )  # fmt: skip
    places = [epochs * k / 40 for k in range(45)]  # some behind the end, where a rounded run may be
    rates = [rate(recipe, place) for place in places]
    assert all(min(start, low) - 1e-9 <= lr <= peak + 1e-9 for lr in rates)
    behind = [lr for place, lr in zip(places, rates, strict=True) if place >= recipe.warmup_epochs]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(behind))
    if sched in {"cosine", "onecycle"} and warm < 0.99:
        assert rates[-1] == pytest.approx(low)
    if sched != "step":
        assert rate(recipe, recipe.warmup_epochs) == pytest.approx(peak)
