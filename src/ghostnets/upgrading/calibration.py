# SPDX-License-Identifier: Apache-2.0
"""Images to measure on: an endless-capable stream of chunks, the same in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.training.augment import random_crop_flip
from ghostnets.training.data import Dataset, Images, normalise
from ghostnets.training.draw import generator, whole

Chunks = Callable[[], Iterable[Tensor]]
"""Normalised images, (N, C, H, W) a chunk; called once for every pass, the same images every time."""

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much is done, and of how much (0 where that is not known)."""

CHUNK_PIXELS = 50 * 32 * 32  # a chunk's maps, all layers of a small network, stay near a quarter of a gigabyte


def quiet(_what: str, _done: int, _total: int) -> None:
    """A Progress that says nothing."""


def calibration(dataset: Dataset, images: Images, count: int, *, seed: int) -> Chunks:
    """``count`` images drawn from ``images`` (all of them, if they are fewer), augmented as in training."""
    order = torch.randperm(len(images), generator=generator(seed, 0))[:count]
    pixels_each = images.pixels.shape[2] * images.pixels.shape[3]
    size = max(1, min(CHUNK_PIXELS // pixels_each, len(order)))
    augment = dataset.augment

    def chunks() -> Iterator[Tensor]:
        for number, index in enumerate(order.split(size) if len(order) else ()):
            drawn = images.subset(index).pixels
            place = generator(seed, 1, number)
            drawn = random_crop_flip(drawn, padding=augment.padding, flip=augment.flip, draw=whole(place, len(drawn)))
            yield normalise(drawn, dataset.mean, dataset.std).contiguous(memory_format=torch.channels_last)

    return chunks


def as_chunks(images: Chunks | Tensor) -> Chunks:
    """Calibration images given as one tensor, cut into chunks; chunks as they are.

    Raises UserError where the tensor is no batch of images.
    """
    if not isinstance(images, Tensor):
        return images
    if images.dim() != 4 or not len(images) or not images.is_floating_point():
        raise UserError(f"calibration images must be floats (N, C, H, W) with N > 0, not {tuple(images.shape)}")
    parts = images.split(max(1, CHUNK_PIXELS // (images.shape[2] * images.shape[3])))
    return lambda: (part.contiguous(memory_format=torch.channels_last) for part in parts)


def first_image(chunks: Chunks) -> Tensor:
    """One image, (1, C, H, W). Raises UserError where there is none."""
    for chunk in chunks():
        if len(chunk):
            return chunk[:1]
    raise UserError("there is no calibration image")
