# SPDX-License-Identifier: Apache-2.0
"""Batches of small images, cropped and mirrored: all of it repeatable from a seed and a place in the run."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.training.data import Images
from ghostnets.training.draw import Draw, generator


def batches(
    images: Images,
    *,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the images as pairs of pixels (N, C, H, W) and labels (N,), from batch number ``start`` on.

    The order depends on ``seed`` and ``epoch`` alone, so a run that stopped goes on exactly where it was.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be at least 1")
    labels = images.labels
    if labels is None:
        raise UserError("these images have no labels, so they cannot be drawn as labelled batches")
    count = len(images)
    if drop_last and count < batch_size:
        raise UserError(f"{count} images do not fill one batch of {batch_size}: ask for batches of {count} or fewer")
    order = torch.randperm(count, generator=generator(seed, epoch)) if shuffle else torch.arange(count)
    end = count - count % batch_size if drop_last else count
    return _draw(images.pixels, labels, order[start * batch_size : end].split(batch_size))


def _draw(pixels: Tensor, labels: Tensor, order: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    for index in order:
        if len(index):  # an empty order still splits into one empty part
            yield pixels[index], labels[index]


def random_crop_flip(pixels: Tensor, *, padding: int, flip: bool | Tensor, draw: Draw, reflect: bool = False) -> Tensor:
    """Every image (N, C, H, W) shifted by up to ``padding`` pixels over a border, and with ``flip`` half of them mirrored,
    or those that a mask (N,) names. The border is black, 0 before normalising, as He et al. (arXiv:1512.03385,
    section 4.2) train on CIFAR-10; with ``reflect`` it mirrors the image.
    """
    if padding < 0:
        raise UserError(f"crop padding {padding} must not be negative")
    count, channels, height, width = pixels.shape
    if reflect and padding >= min(height, width):
        raise UserError(f"a border of {padding} pixels cannot mirror images of {height}×{width}: ask for less padding")
    top, left = draw.integers(2 * padding + 1, 2)[:, :, None]
    drawn = draw.integers(2, 1)[0].bool()
    mirrored = (flip if isinstance(flip, Tensor) else drawn & flip)[:, None]
    rows = top + torch.arange(height)
    columns = left + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))
    if reflect:
        rows, columns = (_reflected(place - padding, length) for place, length in ((rows, height), (columns, width)))
        source, line = pixels, width
    else:
        source, line = F.pad(pixels, (padding,) * 4), width + 2 * padding
    index = (rows[:, :, None] * line + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    return source.flatten(2).gather(2, index).view_as(pixels)


def _reflected(place: Tensor, length: int) -> Tensor:
    """Where a place beyond the edge falls when the image is mirrored there, as ``F.pad(mode="reflect")`` has it."""
    place = place.abs()
    return torch.where(place < length, place, 2 * (length - 1) - place)


def blend(images: Tensor, share: float, *, generator: torch.Generator) -> Tensor:
    """The first ``share`` of the images (N, C, H, W) with up to half of another one mixed in, the rest as they are.

    What they show has no label any more: it is for a student that asks its teacher (mixup, Zhang et al.,
    arXiv:1710.09412; without labels, Beyer et al., arXiv:2106.05237).
    """
    count = round(share * len(images))
    partners = torch.randperm(len(images), generator=generator)[:count]
    weight = torch.rand(count, 1, 1, 1, generator=generator) / 2
    return torch.cat([images[:count].lerp(images[partners], weight), images[count:]])
