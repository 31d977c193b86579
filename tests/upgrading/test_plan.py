# SPDX-License-Identifier: Apache-2.0
"""The knapsack against brute force over all plans, its prices against networks that were really built."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ghostnets.blocks.ghost import GhostModule
from ghostnets.errors import UserError
from ghostnets.measure.cost import total_macs, total_params
from ghostnets.models.resnet import cifar_resnet
from ghostnets.records import Budget, Order, Plan, Site, from_json, to_json
from ghostnets.upgrading.convert import convert
from ghostnets.upgrading.look import Candidate
from ghostnets.upgrading.plan import ghost_macs, ghost_params, plan, solve

Ordering = Literal["own", "agreed"]


def site(name: str, *, channels: int = 8, size: int = 4) -> Site:
    macs = channels * channels * 9 * size * size
    return Site(
        name=name, norm=None, act=None, relu=True, in_channels=channels, out_channels=channels, kernel_size=(3, 3),
        stride=(1, 1), out_size=(size, size), macs=macs, params=channels * channels * 9 + 2 * channels, stream=0,
        foldable=True,
    )  # fmt: skip


def candidates(
    sites: Sequence[Site], ratios: Sequence[int], draw: np.random.Generator, scale: float
) -> list[Candidate]:
    return [
        Candidate(s.name, ratio, 3, tuple(range(s.out_channels)), float(draw.exponential() * scale))
        for s in sites for ratio in ratios
    ]  # fmt: skip


def price(s: Site, chosen: Candidate | None, orders: Mapping[str, Order]) -> int:
    if chosen is None:
        return s.macs
    gathered = s.out_channels * s.out_size[0] * s.out_size[1] if orders[s.name] == "gather" else 0
    return ghost_macs(s, chosen.ratio, chosen.kernel) + gathered


def spent(found: Plan) -> int:
    return sum(d.macs_after + d.gathered for d in found.decisions)


def decided(found: Plan) -> list[int]:
    return [d.ratio for d in found.decisions]


@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 4), tightness=st.floats(0.0, 1.0),
    scale=st.sampled_from([1e-9, 1e-3, 1.0, 1e4]),
)  # fmt: skip
@settings(max_examples=60)
def test_the_plan_is_the_best_of_all_plans(seed: int, count: int, tightness: float, scale: float) -> None:
    draw = np.random.default_rng(seed)
    sites = [site(f"s{i}", channels=int(draw.integers(4, 20)), size=int(draw.integers(1, 9))) for i in range(count)]
    orders: dict[str, Order] = {s.name: "gather" if draw.random() < 0.5 else "folded" for s in sites}
    options = candidates(sites, (2, 3, 4), draw, scale)
    fixed = int(draw.integers(0, 5000))
    whole = fixed + sum(s.macs for s in sites)
    every = [[None, *(c for c in options if c.name == s.name)] for s in sites]
    plans = [
        (fixed + sum(price(s, c, orders) for s, c in zip(sites, chosen, strict=True)), sum(c.divergence for c in chosen if c))
        for chosen in itertools.product(*every)
    ]  # fmt: skip
    least = min(cost for cost, _ in plans)
    budget = Budget(macs=float(round(least + tightness * (whole - least))))
    assert budget.macs is not None
    found = solve(sites, options, budget, orders=orders, macs=whole, params=10**6, seed=0, images=1)
    best = min(value for cost, value in plans if cost <= budget.macs)
    assert fixed + spent(found) <= budget.macs
    assert sum(d.divergence or 0.0 for d in found.decisions) == pytest.approx(best, rel=1e-6, abs=scale * 1e-9)
    assert found.macs_after == fixed + sum(d.macs_after for d in found.decisions)
    assert found.macs_before == whole


def test_a_budget_out_of_reach_names_the_least_that_is_accepted() -> None:
    draw = np.random.default_rng(0)
    for trial in range(20):
        sites = [site(f"s{i}", channels=int(draw.integers(4, 40)), size=int(draw.integers(1, 9))) for i in range(3)]
        orders: dict[str, Order] = {s.name: "gather" for s in sites}
        options = candidates(sites, (2, 3), draw, 1.0)
        whole = sum(s.macs for s in sites) + 1009 * trial

        def solved(macs: float) -> Plan:
            return solve(sites, options, Budget(macs=macs), orders=orders, macs=whole, params=0, seed=0, images=1)  # noqa: B023

        for asked in (0.01, 2.0):  # a fraction, and a number of MACs
            with pytest.raises(
                UserError, match=r"is below what is reachable: the least is .*\(macs=0\.\d+\)"
            ) as caught:
                solved(asked)
            (named,) = re.findall(r"macs=(0\.\d+)", str(caught.value))
            found = solved(float(named))
            assert found.macs_after - whole + sum(s.macs for s in sites) + sum(
                d.gathered for d in found.decisions
            ) == sum(min(price(s, c, orders) for c in [None, *options] if c is None or c.name == s.name) for s in sites)
            with pytest.raises(UserError, match="below what is reachable"):
                solved(float(named) - 0.001)


def test_the_whole_budget_keeps_everything_and_a_ratio_takes_everything() -> None:
    sites = [site("a"), site("b", channels=5), site("c", channels=16)]
    orders: dict[str, Order] = {"a": "folded", "b": "gather", "c": "agreed"}
    options = [c for c in candidates(sites, (2, 4), np.random.default_rng(0), 1.0) if (c.name, c.ratio) != ("b", 4)]
    whole = sum(s.macs for s in sites)

    def solved(budget: Budget) -> Plan:
        return solve(sites, options, budget, orders=orders, macs=whole, params=10**5, seed=3, images=7)

    options.append(Candidate("a", 3, 3, tuple(range(8)), 0.0))  # no harm at all, but nothing has to be saved
    kept = solved(Budget(macs=1.0))
    assert [(d.decision, d.ratio, d.kernel, d.order, d.channels) for d in kept.decisions] == [
        ("keep", 1, 0, "none", ())
    ] * 3
    assert (kept.macs_after, kept.params_after, kept.seed, kept.calibration_images) == (whole, 10**5, 3, 7)
    taken = solved(Budget(ratio=4))
    assert [(d.decision, d.ratio, d.order) for d in taken.decisions] == [
        ("ghost", 4, "folded"), ("keep", 1, "none"), ("ghost", 4, "agreed"),
    ]  # fmt: skip
    assert [d.gathered for d in taken.decisions] == [0, 0, 0]
    assert all(d.reason for d in (*kept.decisions, *taken.decisions))
    assert from_json(Plan, to_json(taken)) == taken


def test_sixty_sites_of_six_candidates_are_solved_within_the_budget() -> None:
    draw = np.random.default_rng(1)
    sites = [site(f"s{i}", channels=int(draw.integers(8, 65)), size=int(draw.integers(4, 33))) for i in range(60)]
    orders: dict[str, Order] = {s.name: "folded" for s in sites}
    options = candidates(sites, (2, 3, 4, 6, 8, 12), draw, 0.1)
    whole = sum(s.macs for s in sites)
    for share in (0.3, 0.52, 0.9):
        found = solve(sites, options, Budget(macs=share), orders=orders, macs=whole, params=0, seed=0, images=1)
        assert spent(found) <= share * whole
        # Lagrange's bound: no plan within the budget is better than this for any price of a MAC.
        prices = np.geomspace(1e-12, 1e-3, 400)
        bound = max(
            sum(
                min(p * price(s, c, orders) + (c.divergence if c else 0.0) for c in [None, *options] if not c or c.name == s.name)
                for s in sites
            ) - p * share * whole
            for p in prices
        )  # fmt: skip
        reached = sum(d.divergence or 0.0 for d in found.decisions)
        assert bound * (1 - 1e-9) <= reached <= bound * 1.1


@given(
    channels=st.tuples(st.integers(1, 9), st.integers(4, 17)), ratio=st.integers(2, 6), kernel=st.sampled_from([1, 3, 5]),
    window=st.sampled_from([(1, 1), (3, 3), (1, 5)]), size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)  # fmt: skip
@settings(max_examples=30)
def test_a_ghost_modules_price_is_that_of_the_built_module(
    channels: tuple[int, int], ratio: int, kernel: int, window: tuple[int, int], size: tuple[int, int]
) -> None:
    module = GhostModule(*channels, kernel_size=window, ratio=ratio, cheap_size=kernel)
    planned = dataclasses.replace(
        site("x"), in_channels=channels[0], out_channels=channels[1], kernel_size=window, out_size=size
    )
    assert ghost_macs(planned, ratio, kernel) == total_macs(module, torch.randn(1, channels[0], *size))
    assert ghost_params(planned, ratio, kernel) == total_params(module)


class Odd(nn.Sequential):
    """Widths no ratio divides, a convolution with a bias, one without a norm, a stride."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 7, 3, padding=1), nn.ReLU(),
            nn.Conv2d(7, 11, 3, stride=2, padding=1), nn.BatchNorm2d(11), nn.ReLU(),
            nn.Conv2d(11, 13, 3, padding=1), nn.ReLU(),
            nn.Conv2d(13, 9, (1, 3), bias=False), nn.BatchNorm2d(9, affine=False),
            nn.Conv2d(9, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4),
        )  # fmt: skip


@pytest.mark.parametrize("order", ["own", "agreed"])
@pytest.mark.parametrize(
    ("build", "budget"),
    [
        (Odd, Budget(ratio=2)),
        (Odd, Budget(ratio=3, kernel=5)),
        (Odd, Budget(ratio=4, kernel=1)),
        (Odd, Budget(macs=0.6)),
        (lambda: cifar_resnet(8), Budget(ratio=3)),
    ],
)
def test_what_the_plan_says_it_costs_is_what_the_converted_network_costs(
    build: type[nn.Module], budget: Budget, order: Ordering
) -> None:
    model = build().eval()
    images = torch.randn(24, 3, 12, 12)
    found = plan(model, images, budget, order=order)
    converted = convert(model, found, images, rows=500).model
    assert (found.macs_before, found.params_before) == (total_macs(model, images[:1]), total_params(model))
    assert (found.macs_after, found.params_after) == (total_macs(converted, images[:1]), total_params(converted))
    assert sum(d.decision == "ghost" for d in found.decisions) > 0
    assert {d.order for d in found.decisions if d.decision == "ghost"} <= {
        "folded",
        order if order == "agreed" else "gather",
        "gather",
    }
    with torch.no_grad():
        assert torch.isfinite(converted(images)).all()


def test_a_plan_is_the_same_for_the_same_seed_and_leaves_everything_as_it_was(
    snapshot: Callable[[nn.Module], object],
) -> None:
    model = Odd().train()
    images = torch.randn(40, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    before, kept = snapshot(model), images.clone()
    first = plan(model, images, Budget(macs=0.6), seed=5)
    assert snapshot(model) == before
    assert torch.equal(images, kept)
    assert not images.requires_grad
    whole = [images]
    assert plan(model, lambda: whole, Budget(macs=0.6), seed=5) == first
    assert not images.requires_grad
    assert first.calibration_images == 40


def test_what_stays_says_why() -> None:
    sites = [site("a"), site("b", channels=2)]
    dear = [Candidate("a", 2, 3, tuple(range(8)), 0.5), Candidate("b", 2, 7, (0, 1), 0.0)]
    whole = sum(s.macs for s in sites)

    def reasons(macs: float, order: Order) -> list[str]:
        orders: dict[str, Order] = dict.fromkeys(("a", "b"), order)
        found = solve(sites, dear, Budget(macs=macs), orders=orders, macs=whole, params=1, seed=0, images=1)
        return [d.reason for d in found.decisions if d.decision == "keep"]

    assert reasons(1.0, "folded") == ["nothing has to be saved within this budget"] * 2
    assert reasons(0.99, "gather")[-1] == "no Ghost module saves anything here, its gather counted"
