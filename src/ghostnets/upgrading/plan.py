# SPDX-License-Identifier: Apache-2.0
"""Decide which sites become Ghost modules, with which ratio: a multiple-choice knapsack under the budget."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure.cost import total_macs, total_params
from ghostnets.records import Budget, Decision, Order, Plan, Site
from ghostnets.upgrading.calibration import Chunks, Progress, as_chunks, first_image, quiet
from ghostnets.upgrading.look import Candidate, look
from ghostnets.upgrading.order import Costs, Writer, agreed_order, intrinsic_count
from ghostnets.upgrading.sites import Anatomy, find_sites

RATIOS = (2, 3, 4, 6, 8)
SOLVER_SECONDS = 4.0  # 60 sites with 6 candidates each need a fraction of it


def plan(
    model: nn.Module,
    images: Chunks | Tensor,
    budget: Budget,
    *,
    ignored_layers: Collection[str] = (),
    order: Literal["own", "agreed"] = "own",
    seed: int = 0,
    progress: Progress = quiet,
) -> Plan:
    """Look at ``model`` on calibration ``images`` and decide what becomes of each of its convolutions.

    ``order``: modules that write one residual stream keep each its own channel order and pay a gather, or agree
    on one. The model is untouched. Raises UserError where nothing can be upgraded or the budget is out of reach.
    """
    if order not in ("own", "agreed"):
        raise UserError(f"order {order!r} is not known: choose own or agreed")
    chunks = as_chunks(images)
    example = first_image(chunks)
    subject = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    anatomy = find_sites(subject, example, ignored_layers=ignored_layers)
    ratios = RATIOS if budget.ratio is None else (budget.ratio,)
    seen = look(subject, anatomy, chunks, ratios=ratios, kernel=budget.kernel, seed=seed, progress=progress)
    drafted = solve(
        anatomy.sites,
        seen.candidates,
        budget,
        orders=_orders(anatomy, order),
        macs=total_macs(subject, example),
        params=total_params(subject),
        seed=seed,
        images=seen.images,
    )
    return agree(drafted, anatomy, seen.costs, seed=seed) if order == "agreed" else drafted


def _orders(anatomy: Anatomy, order: Literal["own", "agreed"]) -> dict[str, Order]:
    """How each site would reconcile its order: agreeing needs channels that may be moved at all."""

    def one(site: Site) -> Order:
        labels = anatomy.channels.labels[anatomy.places[site.name].linear]
        movable = len(set(labels)) == len(labels) and not set(labels) & anatomy.channels.frozen
        return "folded" if site.foldable else "agreed" if order == "agreed" and movable else "gather"

    return {site.name: one(site) for site in anatomy.sites}


def agree(drafted: Plan, anatomy: Anatomy, costs: Mapping[tuple[str, int], Costs], *, seed: int) -> Plan:
    """The same plan with one channel order for all modules that write one stream, of least summed error."""
    channels: dict[str, tuple[int, ...]] = {}
    agreeing = [d for d in drafted.decisions if d.order == "agreed"]
    streams = {site.name: site.stream for site in anatomy.sites}
    for stream in sorted({streams[d.name] for d in agreeing}):
        channels |= _agreed_orders([d for d in agreeing if streams[d.name] == stream], anatomy, costs, seed=seed)
    decisions = tuple(dataclasses.replace(d, channels=channels.get(d.name, d.channels)) for d in drafted.decisions)
    return dataclasses.replace(drafted, decisions=decisions)


def _agreed_orders(
    decisions: Sequence[Decision], anatomy: Anatomy, costs: Mapping[tuple[str, int], Costs], *, seed: int
) -> dict[str, tuple[int, ...]]:
    labels = {d.name: anatomy.channels.labels[anatomy.places[d.name].linear] for d in decisions}
    classes = sorted({label for own in labels.values() for label in own})
    slot = {label: i for i, label in enumerate(classes)}
    kinds = sorted({anatomy.channels.signature[label] for label in classes}, key=lambda kind: sorted(map(str, kind)))
    groups = np.array([kinds.index(anatomy.channels.signature[label]) for label in classes])
    writers = [
        Writer(costs[d.name, d.kernel], d.ratio, np.array([slot[label] for label in labels[d.name]])) for d in decisions
    ]
    content = agreed_order(len(classes), writers, groups, seed=seed)
    places = {name: {label: p for p, label in enumerate(own)} for name, own in labels.items()}
    return {name: tuple(places[name][classes[content[slot[label]]]] for label in own) for name, own in labels.items()}


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
        chosen = {
            name: next((c for c in options if c.ratio == budget.ratio), None) for name, options in by_site.items()
        }
        reason = f"ratio {budget.ratio} was asked for every site"
        kept = None
    else:
        chosen = _knapsack(sites, by_site, _target(budget, macs), orders, macs)
        reason = ""
        kept = "nothing has to be saved within this budget" if _target(budget, macs) >= macs else None
    decisions = tuple(
        _decision(site, chosen[site.name], orders[site.name], by_site[site.name], reason=reason, kept=kept)
        for site in sites
    )
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


@dataclass(frozen=True)
class _Option:
    """What may become of one site: None keeps it. ``cost`` is in MACs, the gather's elements included."""

    site: int
    candidate: Candidate | None
    divergence: float
    cost: int


def _knapsack(
    sites: Sequence[Site],
    by_site: Mapping[str, Sequence[Candidate]],
    target: float,
    orders: Mapping[str, Order],
    macs: int,
) -> dict[str, Candidate | None]:
    options: list[_Option] = []
    for number, site in enumerate(sites):
        options.append(_Option(number, None, 0.0, site.macs))
        options += [
            _Option(number, c, c.divergence, ghost_macs(site, c.ratio, c.kernel) + _gathered(site, orders[site.name]))
            for c in by_site[site.name]
        ]
    if target >= macs:
        return dict.fromkeys(by_site)  # also where some edit would do no harm: nothing has to be saved
    fixed = macs - sum(site.macs for site in sites)
    cheapest = [
        min((o for o in options if o.site == number), key=lambda o: (o.cost, o.divergence))
        for number in range(len(sites))
    ]
    least = fixed + sum(o.cost for o in cheapest)
    if least > target:
        # Rounded up, and a little more than rounding can take: what is named here must be accepted.
        fraction = math.ceil(least / macs * 10_000 + 1e-6) / 10_000
        raise UserError(
            f"budget of {target / 1e6:.2f} M MACs is below what is reachable: the least is {math.ceil(least / 1e4) / 100:.2f} M "
            f"(macs={fraction:.4f})"
        )
    return {sites[o.site].name: o.candidate for o in _best_choice(options, cheapest, math.floor(target) - fixed)}


def _best_choice(options: Sequence[_Option], affordable: Sequence[_Option], room: int) -> Sequence[_Option]:
    """One option a site, of least summed divergence at a cost of at most ``room``.

    The solver's tolerances are absolute, so divergences are counted in those of the best choice known so far,
    ``affordable`` at first, and the problem is solved again where that was far too dear.
    """
    best, tightened = list(affordable), room
    while (known := sum(o.divergence for o in best)) > 0:
        found = _solved(options, known, tightened, len(affordable))
        excess = sum(o.cost for o in found) - room
        if found and excess > 0:
            tightened -= excess  # within the solver's tolerance, but not within the budget
            continue
        reached = sum(o.divergence for o in found) if found else math.inf
        best = found if reached < known else best
        if reached > 1e-2 * known:
            break
    return best


def _solved(options: Sequence[_Option], known: float, room: int, sites: int) -> list[_Option]:
    """HiGHS's choice; none where it finds none."""
    column = np.arange(len(options))
    one_each = coo_matrix((np.ones(len(options)), ([o.site for o in options], column)), shape=(sites, len(options)))
    value = np.array([o.divergence / known for o in options])
    cost = np.array([o.cost / max(room, 1) for o in options])
    found = milp(
        value.clip(max=2),
        constraints=[
            LinearConstraint(one_each.tocsr(), 1, 1),
            LinearConstraint(cost[None], -np.inf, room / max(room, 1)),
        ],
        # scipy's stubs know bounds as numbers only
        bounds=Bounds(0, (value <= 1).astype(float)),  # pyright: ignore[reportArgumentType]
        integrality=np.ones(len(options)),
        options={"time_limit": SOLVER_SECONDS, "mip_rel_gap": 0.0},
    )
    return [] if found.x is None else [options[k] for k in np.flatnonzero(found.x > 0.5).tolist()]


def _decision(
    site: Site,
    candidate: Candidate | None,
    order: Order,
    options: Sequence[Candidate],
    *,
    reason: str,
    kept: str | None,
) -> Decision:
    """``reason`` for a Ghost module and ``kept`` for a site that stays, where the budget alone decides."""
    if candidate is None:
        return Decision(
            name=site.name, decision="keep", ratio=1, kernel=0, order="none", reason=kept or _why_kept(site, order, options),
            macs_before=site.macs, macs_after=site.macs, params_before=site.params, params_after=site.params,
        )  # fmt: skip
    macs = ghost_macs(site, candidate.ratio, candidate.kernel)
    return Decision(
        name=site.name, decision="ghost", ratio=candidate.ratio, kernel=candidate.kernel, order=order,
        reason=reason or f"saves {(site.macs - macs) / 1e6:.2f} M MACs for a divergence of {candidate.divergence:.4f}",
        macs_before=site.macs, macs_after=macs,
        params_before=site.params, params_after=ghost_params(site, candidate.ratio, candidate.kernel),
        channels=candidate.order, gathered=_gathered(site, order), divergence=candidate.divergence,
    )  # fmt: skip


def _why_kept(site: Site, order: Order, options: Sequence[Candidate]) -> str:
    if not options:
        return f"{site.out_channels} maps are too few for any ratio"
    saving = [c for c in options if ghost_macs(site, c.ratio, c.kernel) + _gathered(site, order) < site.macs]
    mildest = min(saving, key=lambda c: c.divergence, default=None)
    if mildest is None:
        return f"no Ghost module saves anything here{', its gather counted' if order == 'gather' else ''}"
    return f"the output feels it most here: divergence {mildest.divergence:.4f} at ratio {mildest.ratio}"
