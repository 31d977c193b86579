# SPDX-License-Identifier: Apache-2.0
"""The look-alikes among a layer's maps, and how well filters of several sizes make one from the other (the paper's
Figure 1 and Table 2: arXiv:1911.11907, sections 1 and 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.inspecting.layers import Place, hooked, run
from ghostnets.records import Matches, PairError
from ghostnets.training.draw import generator
from ghostnets.upgrading.calibration import Chunks
from ghostnets.upgrading.fit import cheap_window, draw_positions, patches, values_at

PAIRS = 3
"""As many as the paper boxes."""

KERNELS = (1, 3, 5, 7)
"""As in the paper's Table 2."""

ROWS = 64
"""Positions drawn of a map, an image: a filter of 7×7 has 50 weights."""

ENOUGH = 20_000
"""Positions of all images together, where the maps have so many."""

RIDGE = 1e-9
"""Of the mean diagonal, against rounding."""


def look_alikes(matches: Matches, count: int = PAIRS) -> tuple[tuple[int, int], ...]:
    """The best pairs (source, target) that share no map, among maps of at least the median variance: of two dark maps
    there is nothing to see.
    """
    nmse, mse = np.array(matches.nmse), np.array(matches.mse)
    variance = np.where(nmse > 0, mse / np.where(nmse > 0, nmse, 1), np.inf)
    live = np.array(matches.source) >= 0
    bright = live & (variance >= np.median(variance[live])) if live.any() else live
    found: list[tuple[int, int]] = []
    taken: set[int] = set()
    for target in np.argsort(nmse, kind="stable").tolist():
        source = matches.source[target]
        if bright[target] and not {source, target} & taken:
            found.append((source, target))
            taken |= {source, target}
        if len(found) == count:
            break
    return tuple(found)


def pair_errors(
    model: nn.Module,
    chunks: Chunks,
    module: str,
    pairs: Sequence[tuple[int, int]],
    *,
    images: int,
    kernels: Sequence[int] = KERNELS,
    seed: int = 0,
) -> tuple[PairError, ...]:
    """For each pair the least squared error of one filter and a bias, for filters of each size, in closed form.

    The widest window is summed up once; a smaller filter's system is a part of it. Raises UserError where the maps are not
    finite.
    """
    if not pairs:
        return ()
    widest = max(kernels)
    sums = _Sums(len(pairs), widest)
    rows = max(ROWS, -(-ENOUGH // images))
    sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
    called = 0

    def see(place: Place, _inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal called
        if place.call:
            return
        maps = output.detach().float()
        positions = draw_positions(len(maps), (maps.shape[2], maps.shape[3]), rows, generator(seed, 1, called))
        called += 1
        seen = patches(maps[:, sources], positions, maps.shape[3], cheap_window(widest))
        sums.add_(seen.double(), values_at(maps[:, targets], positions).double())

    for chunk in chunks():
        with hooked(model, [module], see):
            run(model, chunk)
    if not bool(torch.isfinite(sums.cross).all()):
        raise UserError(f"the maps of {module} are NaN or infinite, so no filter can be fitted")
    errors = {kernel: sums.errors(kernel).tolist() for kernel in kernels}
    variances = sums.variances().tolist()
    return tuple(
        PairError(
            source=source, target=target, kernels=tuple(kernels), mse=tuple(errors[kernel][k] for kernel in kernels),
            nmse=tuple(errors[kernel][k] / max(variances[k], 1e-300) for kernel in kernels),
        )
        for k, (source, target) in enumerate(pairs)
    )  # fmt: skip


class _Sums:
    """Second moments of each pair's window with its target, a bias as the last weight."""

    def __init__(self, pairs: int, side: int) -> None:
        q = side * side + 1
        self.side, self.count = side, 0
        self.gram = torch.zeros(pairs, q, q, dtype=torch.float64)
        self.cross = torch.zeros(pairs, q, dtype=torch.float64)
        self.square = torch.zeros(pairs, dtype=torch.float64)
        self.total = torch.zeros(pairs, dtype=torch.float64)

    def add_(self, seen: Tensor, wanted: Tensor) -> None:
        """``seen`` (S, pairs, side²), ``wanted`` (S, pairs)."""
        rows = torch.cat([seen, torch.ones_like(seen[..., :1])], 2)
        self.gram += torch.einsum("spa,spb->pab", rows, rows)
        self.cross += torch.einsum("spa,sp->pa", rows, wanted)
        self.square += wanted.square().sum(0)
        self.total += wanted.sum(0)
        self.count += len(wanted)

    def errors(self, kernel: int) -> Tensor:
        """(pairs,): mean squared, with the best filter of this size."""
        edge, side = (self.side - kernel) // 2, self.side
        inner = [y * side + x for y in range(edge, side - edge) for x in range(edge, side - edge)]
        part = torch.tensor([*inner, side * side])
        system = self.gram[:, part][:, :, part].clone()
        diagonal = torch.diagonal(system, dim1=1, dim2=2)
        diagonal += RIDGE * diagonal.mean(1, keepdim=True) + 1e-30
        right = self.cross[:, part]
        weight = torch.linalg.solve(system, right)
        return ((self.square - (weight * right).sum(1)) / self.count).clamp_min(0)

    def variances(self) -> Tensor:
        """(pairs,): of the targets."""
        return (self.square / self.count - (self.total / self.count) ** 2).clamp_min(0)
