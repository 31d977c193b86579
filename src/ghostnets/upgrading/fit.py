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

from ghostnets.errors import UserError

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
    """(images, rows) positions, each the number y * width + x of a pixel of a map of this size.

    Every pixel once, in a drawn order, where as many rows are asked for as the map has pixels or more.
    """
    pixels = size[0] * size[1]
    if rows >= pixels:
        return torch.rand(images, pixels, generator=generator).argsort(1)
    return torch.randint(pixels, (images, rows), generator=generator)


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
    rows: Tensor, wanted: Tensor, start: Tensor, *, relu: bool, ridge: float = RIDGE, rounds: int = RELU_ROUNDS
) -> tuple[Tensor, Tensor]:
    """The filters and biases whose output on ``rows`` comes closest to ``wanted``.

    ``rows`` (S, K), ``wanted`` (S, n) before activation, ``start`` (n, K) the filters the ridge pulls towards.
    With ``relu`` the squared error is that after the activation: by majorisation, ``rounds`` solves in which a
    value that should be negative, and is, counts as right. Returns (n, K) and (n,).
    """
    centred, centre = _centred(rows, 0)
    factored = factor(_gram(centred), ridge)
    pulled = centred @ start.T
    made, level, weight = pulled, wanted.mean(0), start
    for _ in range(rounds if relu else 1):
        target = _majorised(wanted, made + level) if relu else wanted
        right = (centred.T @ (target - pulled)).double()
        weight = start + torch.cholesky_solve(right, factored).T.to(start.dtype)
        made, level = centred @ weight.T, target.mean(0)
    return weight, level - weight @ centre


def fit_ghosts(
    rows: Tensor, wanted: Tensor, *, relu: bool, ridge: float = 1e-6, rounds: int = RELU_ROUNDS
) -> tuple[Tensor, Tensor]:
    """One depthwise filter and bias for every ghost.

    ``rows`` (S, g, d²): what each ghost's filter sees of its source; ``wanted`` (S, g) before activation.
    Returns (g, d²) and (g,). With ``relu`` as in ``fit_primary``.
    """
    seen = rows.permute(1, 2, 0).contiguous()  # (g, d², S)
    centred, centre = _centred(seen, 2)
    factored = factor((centred @ centred.transpose(1, 2)).double(), ridge)
    wanted = wanted.T.contiguous()  # (g, S)
    # The plain fit of a mostly negative value is worse than its mean, so the first target is what ReLU leaves.
    target = wanted.clamp_min(0) if relu else wanted
    weight, level = torch.zeros_like(centre), wanted.mean(1)
    for _ in range(rounds if relu else 1):
        right = (centred @ target[:, :, None]).double()
        weight = torch.cholesky_solve(right, factored)[:, :, 0].to(rows.dtype)
        level = target.mean(1)
        if relu:
            target = _majorised(wanted, (weight[:, None] @ centred)[:, 0] + level[:, None])
    return weight, level - (weight * centre).sum(1)


def spread(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(K, K) mean second moments of ``rows`` (S, K) around their mean (K,), and that mean."""
    centred, centre = _centred(rows, 0)
    return _gram(centred) / len(rows), centre


def _centred(rows: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Rows less their mean, and that mean.

    Twice, because the first leaves a rounding error that is no longer small beside rows which are nearly constant:
    a filter would be fitted to it.
    """
    first = rows.mean(dim, keepdim=True)
    centred = rows - first
    rest = centred.mean(dim, keepdim=True)
    return centred.sub_(rest), (first + rest).squeeze(dim)


def factor(system: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of (…, K, K) with this part of its mean diagonal added to the diagonal.

    More is added where rounding has made the system indefinite: float32 sums of many rows in few directions.
    """
    if not bool(torch.isfinite(system).all()):
        raise UserError("the activations to fit are not finite: NaN or Inf in the network's weights or its input?")
    diagonal = torch.diagonal(system, dim1=-2, dim2=-1)
    step = diagonal.mean(-1, keepdim=True).clamp_min(1e-12)
    added = torch.full_like(step, ridge)
    while True:
        found, failed = torch.linalg.cholesky_ex(system + torch.diag_embed((added * step).expand_as(diagonal)))
        if not bool(failed.any()):
            return found
        added = torch.where(failed[..., None] > 0, added.clamp_min(1e-8) * 10, added)


def _majorised(wanted: Tensor, now: Tensor) -> Tensor:
    """The target whose plain squared error bounds from above that of the one-sided error, and touches it at ``now``.

    One-sided: the plain error where the value should be positive, else only what ReLU lets through. It is convex
    and itself a bound of the error after ReLU, which would leave a filter dead once all its values are negative.
    """
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
        self.square += wanted.double().square().sum(0)
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
