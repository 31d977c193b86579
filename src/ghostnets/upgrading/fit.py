# SPDX-License-Identifier: Apache-2.0
"""Least squares in closed form: filters from sampled rows of patches and the values they should give.

Rows are drawn at random positions of every calibration image, so memory is bounded by the number of rows,
whatever the number of images. Systems are summed up in float32 and solved in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RELU_ROUNDS = 8  # facts/upgrade-study: the majorised fit has settled by then
RIDGE = 1e-3  # of the mean diagonal; the study found 1e-2 half a point worse


class Window(NamedTuple):
    """How a convolution reads its input: (height, width) each; padding is zeros."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def cheap_window(size: int) -> Window:
    """The window of a depthwise ``size``×``size`` filter that keeps the map's size."""
    return Window((size, size), (1, 1), (size // 2, size // 2), (1, 1))


def draw_positions(images: int, size: tuple[int, int], rows: int, generator: torch.Generator) -> Tensor:
    """(images, rows) positions, each the number y * width + x of a pixel of a map of this size."""
    return torch.randint(size[0] * size[1], (images, rows), generator=generator)


def patches(x: Tensor, positions: Tensor, width: int, window: Window) -> Tensor:
    """What the window sees at these output positions: (N, C, H, W), (N, P) → (N * P, C, kernel area).

    ``width`` is that of the output map.
    """
    top, left = window.padding
    padded = F.pad(x, (left, left, top, top))
    wide = padded.shape[3]
    flat = padded.contiguous().flatten(2)
    row = torch.div(positions, width, rounding_mode="floor") * window.stride[0]
    column = positions % width * window.stride[1]
    corner = row * wide + column
    steps = [
        y * window.dilation[0] * wide + x_ * window.dilation[1]
        for y in range(window.kernel[0]) for x_ in range(window.kernel[1])
    ]  # fmt: skip
    n, c = x.shape[:2]
    index = torch.stack([corner + step for step in steps], -1).view(n, 1, -1).expand(n, c, -1)
    seen = flat.gather(2, index).view(n, c, positions.shape[1], len(steps))
    return seen.permute(0, 2, 1, 3).reshape(-1, c, len(steps))


def values_at(x: Tensor, positions: Tensor) -> Tensor:
    """(N, C, H, W), (N, P) → (N * P, C)."""
    n, c = x.shape[:2]
    flat = x.contiguous().flatten(2)
    seen = flat.gather(2, positions[:, None, :].expand(n, c, positions.shape[1]))
    return seen.permute(0, 2, 1).reshape(-1, c)


def fit_primary(
    rows: Tensor, wanted: Tensor, start: Tensor, *, relu: bool, ridge: float = RIDGE, rounds: int = 3
) -> tuple[Tensor, Tensor]:
    """The filters and biases whose output on ``rows`` comes closest to ``wanted``.

    ``rows`` (S, K), ``wanted`` (S, n) before activation, ``start`` (n, K) the filters the ridge pulls towards.
    With ``relu`` the squared error is that after the activation: by majorisation, ``rounds`` solves in which a
    value that should be negative, and is, counts as right. Returns (n, K) and (n,).
    """
    centre = rows.mean(0)
    system = _gram(rows - centre)
    diagonal = torch.diagonal(system)
    diagonal += ridge * diagonal.mean().clamp_min(1e-12)
    factor = torch.linalg.cholesky(system)
    weight, target = start, wanted
    bias = (wanted - rows @ start.T).mean(0)
    for _ in range(rounds if relu else 1):
        if relu:
            target = _majorised(wanted, rows @ weight.T + bias)
        residual = target - rows @ start.T
        right = ((rows - centre).T @ (residual - residual.mean(0))).double()
        weight = start + torch.cholesky_solve(right, factor).T.float()
        bias = (target - rows @ weight.T).mean(0)
    return weight, bias


def fit_ghosts(
    rows: Tensor, wanted: Tensor, *, relu: bool, ridge: float = 1e-6, rounds: int = RELU_ROUNDS
) -> tuple[Tensor, Tensor]:
    """One depthwise filter and bias for every ghost.

    ``rows`` (S, g, d²): what each ghost's filter sees of its source; ``wanted`` (S, g) before activation.
    Returns (g, d²) and (g,). With ``relu`` as in ``fit_primary``.
    """
    count = len(rows)
    seen = rows.permute(1, 0, 2)  # (g, S, d²)
    centre = seen.mean(1, keepdim=True)
    centred = seen - centre
    system = (centred.transpose(1, 2) @ centred).double() / count
    diagonal = torch.diagonal(system, dim1=1, dim2=2)
    diagonal += ridge * diagonal.mean(1, keepdim=True).clamp_min(1e-12)
    factor = torch.linalg.cholesky(system)
    wanted = wanted.T  # (g, S)
    target = wanted
    weight = torch.zeros(len(seen), seen.shape[2])
    bias = wanted.mean(1)
    for round_ in range(rounds if relu else 1):
        if relu and round_:
            target = _majorised(wanted, (seen @ weight[:, :, None])[:, :, 0] + bias[:, None])
        elif relu:
            target = wanted.clamp_min(0)  # the plain fit of a mostly negative value is worse than its mean
        right = (centred.transpose(1, 2) @ (target - target.mean(1, keepdim=True))[:, :, None]).double() / count
        weight = torch.cholesky_solve(right, factor)[:, :, 0].float()
        bias = (target - (seen @ weight[:, :, None])[:, :, 0]).mean(1)
    return weight, bias


def _majorised(wanted: Tensor, now: Tensor) -> Tensor:
    """The target whose plain squared error bounds that after ReLU from above and touches it at ``now``."""
    return torch.where(wanted > 0, wanted, now.clamp_max(0))


def _gram(rows: Tensor) -> Tensor:
    return (rows.T @ rows).double()


class PairMoments:
    """Second moments of every map's neighbourhood with every map, summed over rows: the costs of all pairs.

    Holds n·q² + n·q·n numbers with q = d² + 1, whatever the number of rows.
    """

    def __init__(self, channels: int, size: int) -> None:
        q = size * size + 1
        self.count = 0
        self.gram = torch.zeros(channels, q, q, dtype=torch.float64)
        self.cross = torch.zeros(channels, q, channels, dtype=torch.float64)
        self.square = torch.zeros(channels, dtype=torch.float64)
        self.total = torch.zeros(channels, dtype=torch.float64)

    def add_(self, seen: Tensor, wanted: Tensor) -> None:
        """``seen`` (S, n, d²), ``wanted`` (S, n)."""
        rows = torch.cat([seen, torch.ones(*seen.shape[:2], 1)], 2).permute(1, 2, 0)  # (n, q, S)
        self.gram += rows @ rows.transpose(1, 2)
        self.cross += (rows.reshape(-1, rows.shape[2]) @ wanted).view(*rows.shape[:2], -1)
        self.square += wanted.square().sum(0, dtype=torch.float64)
        self.total += wanted.sum(0, dtype=torch.float64)
        self.count += len(wanted)

    def residuals(self) -> Tensor:
        """(n, n): mean squared error of map j predicted from the d×d neighbourhood of map i, and a bias."""
        system = self.gram.clone()
        diagonal = torch.diagonal(system, dim1=1, dim2=2)
        diagonal += 1e-8 * diagonal.mean(1, keepdim=True) + 1e-12
        weight = torch.linalg.solve(system, self.cross)
        explained = (weight * self.cross).sum(1)
        return ((self.square[None] - explained) / self.count).clamp_min(0)

    def variances(self) -> Tensor:
        """(n,): the variance of each map."""
        return self.square / self.count - (self.total / self.count) ** 2
