# SPDX-License-Identifier: Apache-2.0
"""Where a training run gets its images from, batch by batch: every process its share, from any step on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.training.data import Augment, Images
from ghostnets.training.draw import generator
from ghostnets.training.recipe import Recipe


@dataclass(frozen=True)
class Share:
    """Which of how many processes this is; it takes the ``rank``-th part of every batch."""

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> slice:
        """This process's part of ``count`` things; all parts together are all of them."""
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)


@dataclass(frozen=True)
class Drawn:
    """A process's share of one batch of training images, before it is flipped, mixed and normalised."""

    pixels: Tensor
    """uint8 (N, C, H, W)"""
    labels: Tensor
    """(N,)"""
    epoch: int
    step: int
    """In the epoch."""
    index: Tensor | None
    """(N,) places of the images in the set, where it has an order."""


class Feed(Protocol):
    """Images to train on, or to test on."""

    @property
    def augment(self) -> Augment:
        """What may be done to the images."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def digest(self, world: int) -> str:
        """What the batches depend on beside recipe and seed, in so many processes."""
        ...

    def training(self, recipe: Recipe, share: Share, *, seed: int, start: int) -> Iterator[Drawn]:
        """Batches without end, from the ``start``-th step of the run on, every epoch in another order. The last images of an
        epoch that do not fill a batch are left for another one.
        """
        ...

    def testing(self, batch_size: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once over all processes: uint8 pixels and labels."""
        ...


def digest(*parts: object) -> str:
    """A short digest of anything that has a form in words."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches. Raises UserError where the images do not fill one."""
    if count < batch_size:
        raise UserError(f"{count} training images do not fill one batch of {batch_size}: ask for a smaller batch_size")
    return count // batch_size


@dataclass(frozen=True)
class Place:
    """Which images make up one batch, and where in the run it is."""

    epoch: int
    step: int
    index: Tensor
    view: int
    """The epoch whose draws it has."""


def places(count: int, recipe: Recipe, share: Share, *, seed: int, start: int) -> Iterator[Place]:
    """Without end, this process's share of every batch of a set with an order."""
    batch_size = recipe.batch_size
    steps = steps_per_epoch(count, batch_size)
    epoch, step = divmod(start, steps)
    while True:
        view = recipe.view(epoch)
        order = torch.randperm(count, generator=generator(seed, view))
        while step < steps:
            yield Place(epoch, step, order[step * batch_size : (step + 1) * batch_size][share.of(batch_size)], view)
            step += 1
        epoch, step = epoch + 1, 0


@dataclass(frozen=True)
class MemoryFeed:
    """Images that lie in memory."""

    images: Images
    augment: Augment

    def __post_init__(self) -> None:
        if self.images.labels is None:
            raise UserError("these images have no labels, so nothing can be learned from them")

    def __len__(self) -> int:
        return len(self.images)

    def digest(self, world: int) -> str:  # noqa: ARG002 - however many processes, the batches are the same
        """Of the labels, and of some of the images."""
        found = hashlib.sha256()
        self.images.feed_(found)
        return found.hexdigest()[:16]

    def training(self, recipe: Recipe, share: Share, *, seed: int, start: int) -> Iterator[Drawn]:
        labels = self.images.labels
        assert labels is not None
        for place in places(len(self), recipe, share, seed=seed, start=start):
            yield Drawn(self.images.pixels[place.index], labels[place.index], place.epoch, place.step, place.index)

    def testing(self, batch_size: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        own = self.images.subset(share.of(len(self)))
        assert own.labels is not None
        for start in range(0, len(own), batch_size):
            yield own.pixels[start : start + batch_size], own.labels[start : start + batch_size]
