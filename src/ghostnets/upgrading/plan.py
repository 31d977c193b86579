# SPDX-License-Identifier: Apache-2.0
"""Decide which sites become Ghost modules, with which ratio: a multiple-choice knapsack under the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from ghostnets.errors import UserError
from ghostnets.records import Budget, Decision, Order, Plan, Site
from ghostnets.upgrading.look import Candidate
from ghostnets.upgrading.order import intrinsic_count

RATIOS = (2, 3, 4, 6, 8)


def ghost_macs(site: Site, ratio: int, kernel: int) -> int:
    """Multiply-adds of the Ghost module in this place (facts A.4), ghosts that are cut off included."""
    pixels = site.out_size[0] * site.out_size[1]
    intrinsic = intrinsic_count(site.out_channels, ratio)
    area = site.kernel_size[0] * site.kernel_size[1]
    return pixels * intrinsic * (site.in_channels * area + (ratio - 1) * kernel * kernel)


def ghost_params(site: Site, ratio: int, kernel: int) -> int:
    """Parameters of the Ghost module in this place, its norms' included."""
    intrinsic = intrinsic_count(site.out_channels, ratio)
    area = site.kernel_size[0] * site.kernel_size[1]
    return intrinsic * (site.in_channels * area + 2 + (ratio - 1) * (kernel * kernel + 2))


def solve(
    sites: Sequence[Site],
    candidates: Sequence[Candidate],
    budget: Budget,
    *,
    orders: Mapping[str, Order],
    macs: int,
    params: int,
    seed: int,
    images: int,
) -> Plan:
    """The plan of least summed divergence that the budget allows.

    ``orders`` says how a Ghost module in each place would reconcile its channel order; ``macs`` and ``params``
    are the whole original's. Where a gather is needed each element it moves is charged like a multiply-add.

    Raises UserError where no plan fits the budget; the least reachable is named.
    """
    by_site = {site.name: [c for c in candidates if c.name == site.name] for site in sites}
    if budget.ratio is not None:
        chosen = {name: next((c for c in options if c.ratio == budget.ratio), None) for name, options in by_site.items()}
        reason = f"ratio {budget.ratio} was asked for every site"
    else:
        chosen = _knapsack(sites, by_site, _target(budget, macs), orders, macs)
        reason = ""
    decisions = tuple(_decision(site, chosen[site.name], orders[site.name], by_site[site.name], reason) for site in sites)
    return Plan(
        budget=budget,
        decisions=decisions,
        macs_before=macs,
        macs_after=macs + sum(d.macs_after - d.macs_before for d in decisions),
        params_before=params,
        params_after=params + sum(d.params_after - d.params_before for d in decisions),
        seed=seed,
        calibration_images=images,
    )


def _target(budget: Budget, macs: int) -> float:
    assert budget.macs is not None
    return budget.macs * macs if budget.macs <= 1 else budget.macs


def _gathered(site: Site, order: Order) -> int:
    return site.out_channels * site.out_size[0] * site.out_size[1] if order == "gather" else 0


def _knapsack(
    sites: Sequence[Site],
    by_site: Mapping[str, Sequence[Candidate]],
    target: float,
    orders: Mapping[str, Order],
    macs: int,
) -> dict[str, Candidate | None]:
    options: list[tuple[str, Candidate | None, float, float]] = []
    for site in sites:
        options.append((site.name, None, 0.0, float(site.macs)))
        options += [
            (site.name, c, c.divergence, float(ghost_macs(site, c.ratio, c.kernel) + _gathered(site, orders[site.name])))
            for c in by_site[site.name]
        ]
    fixed = macs - sum(site.macs for site in sites)
    least = fixed + sum(min(cost for name, _, _, cost in options if name == site.name) for site in sites)
    if least > target:
        raise UserError(
            f"budget of {target / 1e6:.2f} M MACs is below what is reachable: the least is {least / 1e6:.2f} M "
            f"(macs={least / macs:.4f})"
        )
    index = {site.name: i for i, site in enumerate(sites)}
    row = np.array([index[name] for name, _, _, _ in options])
    column = np.arange(len(options))
    one_each = coo_matrix((np.ones(len(options)), (row, column)), shape=(len(sites), len(options)))
    cost = np.array([cost for *_, cost in options])
    found = milp(
        np.array([value for _, _, value, _ in options]),
        constraints=[
            LinearConstraint(one_each.tocsr(), 1, 1),
            LinearConstraint(cost[None] / 1e6, -np.inf, (target - fixed) / 1e6),
        ],
        bounds=Bounds(0, 1),
        integrality=np.ones(len(options)),
        options={"time_limit": 4.0},
    )
    assert found.x is not None, found.message
    return {options[k][0]: options[k][1] for k in np.flatnonzero(found.x > 0.5)}


def _decision(
    site: Site, candidate: Candidate | None, order: Order, options: Sequence[Candidate], reason: str
) -> Decision:
    if candidate is None:
        return Decision(
            name=site.name, decision="keep", ratio=1, kernel=0, order="none", reason=_why_kept(site, options),
            macs_before=site.macs, macs_after=site.macs, params_before=site.params, params_after=site.params,
        )  # fmt: skip
    macs = ghost_macs(site, candidate.ratio, candidate.kernel)
    return Decision(
        name=site.name, decision="ghost", ratio=candidate.ratio, kernel=candidate.kernel, order=order,
        reason=reason or f"saves {(site.macs - macs) / 1e6:.2f} M MACs for a divergence of {candidate.divergence:.4f}",
        macs_before=site.macs, macs_after=macs,
        params_before=site.params, params_after=ghost_params(site, candidate.ratio, candidate.kernel),
        gathered=_gathered(site, order), divergence=candidate.divergence,
    )  # fmt: skip


def _why_kept(site: Site, options: Sequence[Candidate]) -> str:
    mildest = min(options, key=lambda c: c.divergence, default=None)
    if mildest is None:
        return f"{site.out_channels} maps are too few for any ratio"
    return f"the output feels it most here: divergence {mildest.divergence:.4f} at ratio {mildest.ratio}"
