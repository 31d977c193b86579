# SPDX-License-Identifier: Apache-2.0
"""Mixup, CutMix and random erasing of normalised batches (N, C, H, W).

An image is mixed with its neighbour in the batch, whose order is random: so it makes no difference how many
processes share the batch, as long as every share holds whole pairs.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ghostnets.training.draw import Draw


def mixup(x: Tensor, wanted: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Images and what is wanted of them (N, K), each with ``1 - weight`` of its neighbour mixed in
    (Zhang et al., arXiv:1710.09412).
    """
    other = neighbours(len(x))
    return torch.lerp(x[other], x, weight), torch.lerp(wanted[other], wanted, weight)


def cutmix(x: Tensor, wanted: Tensor, weight: float, centre: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """A rectangle of about ``1 - weight`` of every image's area comes from its neighbour, and as much of what is wanted
    (Yun et al., arXiv:1905.04899). The rectangle's ``centre`` (y, x) is given in shares of the sides.
    """
    height, width = x.shape[2:]
    side = math.sqrt(1 - weight)
    rows, columns = (
        slice(*(int(np.clip(round(length * (place + half)), 0, length)) for half in (-side / 2, side / 2)))
        for length, place in zip((height, width), centre, strict=True)
    )
    other = neighbours(len(x))
    out = x.clone(memory_format=torch.preserve_format)
    out[:, :, rows, columns] = x[other, :, rows, columns]
    kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return out, torch.lerp(wanted[other], wanted, kept)


def neighbours(count: int) -> Tensor:
    """1, 0, 3, 2, …; a last one without a neighbour is its own."""
    index = torch.arange(count)
    return torch.where((index ^ 1) < count, index ^ 1, index)


def mixed(x: Tensor, wanted: Tensor, *, mixup_alpha: float, cutmix_alpha: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """One of the two, or neither, for the whole batch: with both alphas above 0 each half of the time, as timm has it."""
    chosen = [(alpha, cut) for alpha, cut in ((mixup_alpha, False), (cutmix_alpha, True)) if alpha > 0]
    if not chosen:
        return x, wanted
    numbers = draw.numbers()
    alpha, cut = chosen[numbers.integers(len(chosen))]
    weight = float(numbers.beta(alpha, alpha))
    y, across = numbers.random(2)
    return cutmix(x, wanted, weight, (y, across)) if cut else mixup(x, wanted, weight)


AREA, RATIO = (0.02, 1 / 3), 0.3
"""Of an erased rectangle: shares of the image's area, and the flattest form (arXiv:1708.04896; timm's figures)."""


def erased(x: Tensor, probability: float, draw: Draw) -> Tensor:
    """So many of the images have one rectangle of normal noise."""
    if not probability:
        return x
    height, width = x.shape[2:]
    happens, area, form, top, left = draw.uniform(5)
    area = AREA[0] + (AREA[1] - AREA[0]) * area
    form = torch.exp(math.log(RATIO) * (2 * form - 1))
    tall, wide = (area * form).sqrt().clamp_max(1) * height, (area / form).sqrt().clamp_max(1) * width
    rows, columns = torch.arange(height), torch.arange(width)
    first_row, first_column = (top * (height - tall)).round()[:, None], (left * (width - wide)).round()[:, None]
    inside_rows = (rows >= first_row) & (rows < first_row + tall.round()[:, None])
    inside_columns = (columns >= first_column) & (columns < first_column + wide.round()[:, None])
    inside = inside_rows[:, :, None] & inside_columns[:, None, :] & (happens < probability)[:, None, None]
    return torch.where(inside[:, None], draw.normal(*x.shape[1:]).to(x.dtype), x)
