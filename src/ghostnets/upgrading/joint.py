# SPDX-License-Identifier: Apache-2.0
"""Fit the primary filters for the ghosts' sake too: an intrinsic map may move a little if its ghosts gain more.

Where no ReLU stands between them, a ghost is a filter of its source, which is a filter of the input: linear in the
primary filters as long as the cheap ones are fixed, and the other way round. So both are solved for in turn, each
time in closed form. For the filters of intrinsic map i the normal equations are

    (G + Σ_j B_jᵀ A B_j) w_i = Xᵀ t_i + Σ_j B_jᵀ Yᵀ t_j        over its ghosts j,

with G = XᵀX over patches as wide as the primary kernel, A = YᵀY over patches as wide as both kernels, and B_j the
map from a primary filter to the wide filter that ghost j makes of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ghostnets.upgrading.fit import RIDGE, Window, factor, fit_ghosts

ROUNDS = 2
LARGEST = 2400  # numbers in a wide patch beyond which this would take too long


def wide_window(window: Window, cheap: int) -> Window | None:
    """What ``cheap``×``cheap`` neighbouring outputs see together, at the middle one's position; None with dilation."""
    if window.dilation != (1, 1):
        return None
    reach = cheap // 2
    kernel = (window.kernel[0] + 2 * reach * window.stride[0], window.kernel[1] + 2 * reach * window.stride[1])
    padding = (window.padding[0] + reach * window.stride[0], window.padding[1] + reach * window.stride[1])
    return Window(kernel, window.stride, padding, (1, 1))


def fit_jointly(
    start: Tensor, gram: Tensor, rows: Tensor, wanted: Tensor, source: Tensor, window: Window, cheap: int
) -> Tensor:
    """Primary filters (m, K) of least squared error of intrinsic maps and ghosts together.

    ``start`` (m, K): the filters that are best for the intrinsic maps alone, and ``gram`` (K, K) their patches' mean
    second moments, centred. ``rows`` (S, C, area of the wide window) and ``wanted`` (S, g) are what the ghosts' own
    patches see, and what they should give; ``source`` (g,) names each ghost's intrinsic map.
    """
    count, channels = len(rows), rows.shape[1]
    seen = rows.flatten(1)
    seen = seen - seen.mean(0)
    wanted = wanted - wanted.mean(0)
    taps = _taps(channels, window, cheap)
    wide_gram = (seen.T @ seen) / count
    weight = start
    for _ in range(ROUNDS):
        expanded = torch.zeros(seen.shape[1], len(taps), len(weight), dtype=weight.dtype)
        for tap, columns in enumerate(taps):
            expanded[columns, tap] = weight.T
        near = (seen @ expanded.flatten(1)).view(count, len(taps), -1)[:, :, source].transpose(1, 2)  # (S, g, taps)
        filters, _ = fit_ghosts(near, wanted, relu=False)
        missing = wanted - torch.einsum("sgt,gt->sg", near, filters)
        pull = (seen.T @ (missing - missing.mean(0))) / count  # (D, g)
        weight = torch.stack([
            weight[i] + _step(weight[i] - start[i], gram, wide_gram, pull, filters, torch.nonzero(source == i)[:, 0], taps)
            for i in range(len(weight))
        ])  # fmt: skip
    return weight


def _step(
    moved: Tensor, gram: Tensor, wide_gram: Tensor, pull: Tensor, filters: Tensor, ghosts: Tensor, taps: list[Tensor]
) -> Tensor:
    """The Newton step of one intrinsic map's filter: the squared error is a quadratic, so it ends in its minimum."""
    system, slope = gram.clone(), -(gram @ moved.double())
    for j in ghosts.tolist():
        by_tap = list(zip(filters[j].tolist(), taps, strict=True))
        half = sum((c * wide_gram[columns] for c, columns in by_tap), start=torch.zeros(()))
        system += sum((c * half[:, columns] for c, columns in by_tap), start=torch.zeros(())).double()
        slope += sum((c * pull[columns, j] for c, columns in by_tap), start=torch.zeros(())).double()
    return torch.cholesky_solve(slope[:, None], factor(system, RIDGE))[:, 0].to(moved.dtype)


def _taps(channels: int, window: Window, cheap: int) -> list[Tensor]:
    """For every tap of the cheap filter the places of the primary's patch in the wide one, in the filter's order."""
    wide = wide_window(window, cheap)
    assert wide is not None
    high, across = wide.kernel
    place = torch.arange(channels * high * across).view(channels, high, across)
    return [
        place[:, y : y + window.kernel[0], x : x + window.kernel[1]].flatten()
        for y in range(0, cheap * window.stride[0], window.stride[0])
        for x in range(0, cheap * window.stride[1], window.stride[1])
    ]
