# SPDX-License-Identifier: Apache-2.0
"""Photographs on their way to pixels: cut out, decoded in worker processes, and the damaged ones counted."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ghostnets.errors import UserError
from ghostnets.training import image_folder
from ghostnets.training.rand_augment import rand_augment
from ghostnets.training.recipe import Recipe

RATIO = (3 / 4, 4 / 3)
"""Of width to height, of what is cut out of a photograph (Szegedy et al., arXiv:1409.4842)."""

TRIES = 10
"""To find a rectangle that fits, before the middle is taken; as torchvision has it."""


class Cutter:
    """One image at a time to a fixed size: the middle of it, or with a recipe what the recipe cuts out and changes."""

    def __init__(
        self,
        size: tuple[int, int],
        recipe: Recipe | None,
        crop: float = image_folder.CROP_FRACTION,
        interpolation: str = "bilinear",
    ) -> None:
        self.size, self.crop, self.interpolation = size, crop, interpolation
        self.scale = recipe.scale if recipe is not None else None
        self.change = rand_augment(recipe.aa) if recipe is not None and recipe.aa is not None else None

    def __call__(self, opened: Callable[[], Image.Image], seed: int) -> np.ndarray:
        """uint8 (C, H, W). Raises nearly anything where the image is damaged."""
        height, width = self.size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow remarks on odd metadata, which do not touch the pixels
            image = opened()
            if self.scale is None:
                image = image_folder.centre_crop(image, self.size, self.crop, self.interpolation)
            else:
                box = random_box(image.size, self.scale, np.random.default_rng(seed))
                image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
            if self.change is not None:
                image = self.change(image, seed)
        return np.array(image).reshape(height, width, -1).transpose(2, 0, 1)


def random_box(
    size: tuple[int, int], scale: tuple[float, float], numbers: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is cut out of an image of that ``size`` (width, height), a random share of its
    area (Szegedy et al., arXiv:1409.4842; torchvision's RandomResizedCrop).
    """
    width, height = size
    for _ in range(TRIES):
        area = width * height * numbers.uniform(*scale)
        ratio = math.exp(numbers.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(numbers.integers(width - w + 1)), int(numbers.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class Damaged:
    """The images that could not be decoded: each is told of once, and one more than ``allowed`` ends the run."""

    def __init__(self, allowed: int, told: Callable[[str], None]) -> None:
        self.allowed, self.told = allowed, told
        self.reasons: dict[str, str] = {}

    def add_(self, broken: Mapping[str, str]) -> None:
        """Names with their reasons. Raises UserError where there are too many now."""
        for name, why in broken.items():
            if name not in self.reasons:
                self.reasons[name] = why
                self.told(f"{name} cannot be decoded ({why}) and is skipped")
        if len(self.reasons) > self.allowed:
            names = ", ".join(list(self.reasons)[: image_folder.NAMED])
            raise UserError(
                f"{len(self.reasons)} images cannot be decoded, and --max-bad allows {self.allowed}: {names}"
            )


def why(error: Exception) -> str:
    """In one line."""
    return " ".join(str(error).split()) or type(error).__name__


def loader(dataset: Dataset[Any], workers: int, keys: Iterable[Any] | None = None) -> DataLoader[Any]:
    """Ready batches from worker processes (0: from this one), each of one thread."""
    return DataLoader(
        dataset, sampler=keys, batch_size=None, num_workers=workers, worker_init_fn=_one_thread,
        multiprocessing_context="fork" if workers and hasattr(os, "fork") else None,
    )  # fmt: skip


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
