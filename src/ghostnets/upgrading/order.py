# SPDX-License-Identifier: Apache-2.0
"""Who makes whom, and at which place each channel then stands.

A Ghost module with n outputs and ratio s fixes the roles of its places: the first m = ceil(n/s) are intrinsic,
and place m + r is made from place r // (s - 1). Choosing the order of the channels is choosing the roles.
One module alone is an assignment problem, solved exactly; modules that must agree on one order (they write one
residual stream) are a quadratic one, solved by descent over exchanges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp
from scipy.sparse import coo_matrix

Costs = NDArray[np.float64]
"""``costs[i, j]``: the error of making map j from map i."""

SOLVER_SECONDS = 2.0  # per module; at 64 maps HiGHS needs well under one


def intrinsic_count(channels: int, ratio: int) -> int:
    """How many maps the primary convolution computes."""
    return -(-channels // ratio)


def source_places(channels: int, ratio: int) -> NDArray[np.int64]:
    """For every ghost place m, m + 1, … the place it is made from."""
    ghosts = channels - intrinsic_count(channels, ratio)
    return np.arange(ghosts) // max(ratio - 1, 1)


def order_cost(costs: Costs, order: Sequence[int] | NDArray[np.int64], ratio: int) -> float:
    """The summed error of all ghosts when place p carries channel ``order[p]``."""
    order = np.asarray(order)
    intrinsic = intrinsic_count(len(order), ratio)
    return float(costs[order[source_places(len(order), ratio)], order[intrinsic:]].sum())


def best_order(costs: Costs, ratio: int) -> NDArray[np.int64]:
    """The order of least summed error for one module alone: a capacitated assignment, solved by HiGHS.

    Costs are not negative. The solver's tolerances are absolute, so costs are scaled by the best order known so
    far, from a descent at first, and the problem is solved again where that was far too dear.
    """
    n = len(costs)
    order = descend(np.arange(n), [Writer(costs, ratio, np.arange(n))], np.zeros(n, dtype=np.int64))
    while (known := order_cost(costs, order, ratio)) > 0:
        found = _assignment(costs, ratio, known)
        reached = order_cost(costs, found, ratio) if found is not None else np.inf
        if found is not None and reached < known:
            order = found
        if reached > 1e-2 * known:
            break
    return order


def _assignment(costs: Costs, ratio: int, known: float) -> NDArray[np.int64] | None:
    """An order at most as dear as ``known``, as good as the solver's tolerances (in parts of ``known``) allow.

    x[i, j] = 1 where j is made from i, y[i] = 1 where i is intrinsic; with y whole, x is a transport problem and
    comes out whole by itself. Where the ratio does not divide n, one intrinsic map has fewer ghosts than the
    others and later ones have none; r[i] and f[i] mark the short one and the full ones. A pair dearer than
    ``known`` can be in no better order.
    """
    n = len(costs)
    intrinsic = intrinsic_count(n, ratio)
    full, short = divmod(n - intrinsic, max(ratio - 1, 1))
    x, y, f, r = n * n, n, n, n
    off = {"x": 0, "y": x, "f": x + y, "r": x + y + f}
    size = x + y + f + r
    i, j = np.divmod(np.arange(n * n), n)
    ones = np.ones(n * n)
    k = np.arange(n)
    rows: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]] = [
        (ones, j, i * n + j), (np.ones(n), k, off["y"] + k),  # every map is intrinsic or made from one
        (ones, n + i, i * n + j), (np.full(n, 1.0 - ratio), n + k, off["f"] + k), (np.full(n, -short), n + k, off["r"] + k),
        (np.ones(n), 2 * n + k, off["f"] + k), (np.ones(n), 2 * n + k, off["r"] + k), (-np.ones(n), 2 * n + k, off["y"] + k),
        (np.ones(n), np.full(n, 3 * n), off["y"] + k),
        (np.ones(n), np.full(n, 3 * n + 1), off["f"] + k),
        (np.ones(n), np.full(n, 3 * n + 2), off["r"] + k),
    ]  # fmt: skip
    data, row, column = (np.concatenate(part) for part in zip(*rows, strict=True))
    matrix = coo_matrix((data, (row, column)), shape=(3 * n + 3, size)).tocsr()
    low = np.concatenate([np.ones(n), np.zeros(n), np.full(n, -1.0), [intrinsic, full, 1 if short else 0]])
    high = np.concatenate([np.ones(n), np.zeros(n), np.zeros(n), [intrinsic, full, 1 if short else 0]])
    upper = np.ones(size)
    upper[:x] = (costs <= known).ravel()
    upper[np.arange(n) * n + np.arange(n)] = 0  # nobody is made from itself
    weights = np.concatenate([costs.ravel() / known * upper[:x], np.zeros(y + f + r)])
    integral = np.concatenate([np.zeros(x), np.ones(y + f + r)])
    # scipy's stubs know bounds as numbers only
    bounds = Bounds(0, upper)  # pyright: ignore[reportArgumentType]
    found = milp(
        weights, constraints=LinearConstraint(matrix, low, high), bounds=bounds, integrality=integral,  # pyright: ignore[reportArgumentType]
        options={"time_limit": SOLVER_SECONDS, "mip_rel_gap": 0.0},
    )  # fmt: skip
    if found.x is None:
        return None
    fullness = np.round(found.x[off["y"] : off["f"]] + 2 * found.x[off["f"] : off["r"]] + found.x[off["r"] :])
    chosen = np.argsort(-fullness, kind="stable")[:intrinsic]  # full ones, the short one, those without a ghost
    ghosts = np.setdiff1d(np.arange(n), chosen)
    # Between equal costs x may come out in fractions; an assignment of the ghosts to the free places does not.
    sources = chosen[source_places(n, ratio)]
    _, made = linear_sum_assignment(costs[np.ix_(sources, ghosts)])
    return np.concatenate([chosen, ghosts[made]])


STARTS = 24  # the last ten of them have never won on ResNet-56


@dataclass(frozen=True)
class Writer:
    """One Ghost module among several that must agree: its costs, its ratio, and which slot each place is."""

    costs: Costs
    ratio: int
    slots: NDArray[np.int64]
    """For every place of the module the slot of the shared order it stands in; ``costs`` is in the same places'
    original channels."""


def descend(start: NDArray[np.int64], writers: Sequence[Writer], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """A shared order from which no exchange of two slots lowers the summed error of all writers.

    ``start[u]`` is the channel class in slot u; only slots of equal ``groups`` may exchange their classes.
    """
    content = start.copy()
    slot_cost = [_slot_matrix(writer, len(start)) for writer in writers]
    roles = [_slot_roles(writer) for writer in writers]
    rounding = 1e-12 * max((float(np.abs(cost).max()) for cost in slot_cost if cost.size), default=0.0)
    while True:
        gains = _exchange_gains(content, slot_cost, roles)
        gains[groups[:, None] != groups[None, :]] = 0.0
        u, v = np.unravel_index(int(np.argmin(gains)), gains.shape)
        if gains[u, v] >= -rounding:
            return content
        content[[u, v]] = content[[v, u]]


def agreed_order(slots: int, writers: Sequence[Writer], groups: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """The best shared order that descents from ``STARTS`` drawn orders (the present one among them) find."""
    chance = np.random.default_rng(seed)
    best, least = np.arange(slots), np.inf
    for number in range(STARTS):
        start = np.arange(slots)
        for group in np.unique(groups) if number else ():
            members = np.flatnonzero(groups == group)
            start[members] = chance.permutation(members)
        found = descend(start, writers, groups)
        cost = sum(
            float(_slot_matrix(w, slots)[found[source], found[ghost]].sum())
            for w in writers for source, ghost in [_slot_roles(w)]
        )  # fmt: skip
        if cost < least:
            best, least = found, cost
    return best


def _slot_matrix(writer: Writer, slots: int) -> Costs:
    """Costs between channel classes, where class u is the channel that stood in slot u at the start."""
    matrix = np.zeros((slots, slots))
    matrix[np.ix_(writer.slots, writer.slots)] = writer.costs
    return matrix


def _slot_roles(writer: Writer) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Slot of the source and slot of the ghost, for every ghost place."""
    intrinsic = intrinsic_count(len(writer.slots), writer.ratio)
    return writer.slots[source_places(len(writer.slots), writer.ratio)], writer.slots[intrinsic:]


def _exchange_gains(
    content: NDArray[np.int64], costs: Sequence[Costs], roles: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> Costs:
    """gains[u, v]: the change of the summed error when slots u and v exchange what they hold.

    For a term (source a → ghost b) the change splits by whether a, b or both are exchanged.
    """
    n = len(content)
    gains = np.zeros((n, n))
    for cost, (sources, ghosts) in zip(costs, roles, strict=True):
        for a, b in zip(sources.tolist(), ghosts.tolist(), strict=True):
            now = cost[content[a], content[b]]
            as_source = cost[content, content[b]] - now  # slot a takes what slot v holds
            as_ghost = cost[content[a], content] - now
            as_source[b] = as_ghost[a] = cost[content[b], content[a]] - now
            as_source[a] = as_ghost[b] = 0.0
            gains[a, :] += as_source
            gains[b, :] += as_ghost
            gains[a, b] -= as_ghost[a]
    return gains + gains.T
