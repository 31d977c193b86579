# SPDX-License-Identifier: Apache-2.0
"""From drawn images to what the network sees and what is wanted of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.training.augment import random_crop_flip
from ghostnets.training.data import Augment, normalise
from ghostnets.training.draw import Draw, generator, seed_of
from ghostnets.training.feed import Drawn, Share
from ghostnets.training.losses import targets
from ghostnets.training.mixing import erased, mixed
from ghostnets.training.rand_augment import rand_augment
from ghostnets.training.recipe import Recipe


def shrunk(images: Tensor, share: float) -> Tensor:
    """Images (N, C, H, W) with their sides scaled down to this share: training on small images first costs its square (fast.ai
    on DAWNBench, 2018).
    """
    if share == 1:
        return images
    size = [max(1, round(share * side)) for side in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def low_res(recipe: Recipe, epoch: int) -> float:
    """The share of their sides that images have in this epoch."""
    done = epoch / (recipe.low_res_until * recipe.epochs) if recipe.low_res_until else 1.0
    if done >= 1:
        return 1.0
    halfway = recipe.low_res_grows and done >= 0.5
    return (1 + recipe.low_res) / 2 if halfway else recipe.low_res


def mixes(recipe: Recipe, epoch: int) -> bool:
    """Whether images may be mixed in this epoch."""
    return recipe.mixup_off_epoch is None or epoch < recipe.mixup_off_epoch


@dataclass(frozen=True)
class Batcher:
    """Crops, mirrors, normalises, erases and mixes a process's share of a batch, as the recipe says."""

    recipe: Recipe
    augment: Augment
    mean: Sequence[float]
    std: Sequence[float]
    classes: int
    share: Share
    seed: int
    in_memory: bool
    """Whether RandAugment is still to be done; workers that decode do it."""

    def __call__(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Normalised images (N, C, H, W) and wanted distributions (N, K).

        Raises UserError where a label has no class.
        """
        recipe = self.recipe
        odd = drawn.labels[(drawn.labels < 0) | (drawn.labels >= self.classes)]
        if len(odd):
            raise UserError(
                f"label {int(odd[0])} does not fit {self.classes} classes: labels are 0 to {self.classes - 1}"
            )
        if recipe.kd_views and drawn.index is None:
            raise UserError("recipe: kd_views needs a set with an order, and shards have none: leave it out")
        part = self.share.of(recipe.batch_size)
        draw = Draw(
            generator(self.seed, 1, recipe.view(drawn.epoch), drawn.step), recipe.batch_size, part.start, part.stop
        )
        padding = self.augment.padding if recipe.padding is None else recipe.padding
        pixels = drawn.pixels
        if recipe.aa is not None and self.in_memory:
            pixels = self._changed(drawn)
        pixels = random_crop_flip(
            pixels, padding=padding, flip=self._flip(drawn), draw=draw, reflect=recipe.reflect and padding > 0
        )
        x = normalise(pixels, self.mean, self.std)
        x = erased(x, recipe.reprob, draw)
        x = shrunk(x, low_res(recipe, drawn.epoch))
        wanted = targets(drawn.labels, self.classes, recipe.smoothing)
        if not mixes(recipe, drawn.epoch):
            return x, wanted
        return mixed(x, wanted, mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, draw=draw)

    def sight(self, drawn: Drawn) -> tuple[int, int, float, bool]:
        """What the images of a batch depend on: a later batch of which it is the same has the same images."""
        epoch = drawn.epoch
        return self.recipe.view(epoch), drawn.step, low_res(self.recipe, epoch), mixes(self.recipe, epoch)

    def _flip(self, drawn: Drawn) -> bool | Tensor:
        """Whether images may be mirrored, or which of them are.

        Every other epoch the other half: so an image is never seen the same way twice in a row (Jordan,
        arXiv:2404.00498, section 3.6).
        """
        kind = self.recipe.hflip
        if kind != "alternate":
            return self.augment.flip if kind is None else kind == "random"
        if drawn.index is None:
            raise UserError(
                "recipe: hflip alternate needs a set with an order, and shards have none: write hflip random"
            )
        first = torch.from_numpy(
            np.random.default_rng(seed_of(self.seed, 3)).integers(2, size=int(drawn.index.max()) + 1)
        )
        return (first[drawn.index] + self.recipe.view(drawn.epoch)) % 2 == 1

    def _changed(self, drawn: Drawn) -> Tensor:
        assert self.recipe.aa is not None
        change = rand_augment(self.recipe.aa)
        index = range(len(drawn.pixels)) if drawn.index is None else drawn.index.tolist()
        seeds = [seed_of(self.seed, 4, self.recipe.view(drawn.epoch), k) for k in index]
        return torch.stack([change(image, seed) for image, seed in zip(drawn.pixels, seeds, strict=True)])
