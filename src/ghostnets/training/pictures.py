# SPDX-License-Identifier: Apache-2.0
"""Photographs decoded as they are needed, by worker processes: folders of files, and sets of the Hugging Face hub."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ghostnets.errors import MissingExtra, UserError, first_line
from ghostnets.training import image_folder
from ghostnets.training.data import Augment
from ghostnets.training.decoding import Cutter, Damaged, loader, why
from ghostnets.training.draw import seed_of
from ghostnets.training.feed import Drawn, Place, Share, digest, places
from ghostnets.training.recipe import Recipe


class Pictures(Protocol):
    """Encoded images with their labels, in an order."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """For people."""
        ...

    def label(self, index: int) -> int: ...

    def digest(self) -> str:
        """Of which images there are, in their order."""
        ...

    def open(self, index: int) -> Image.Image:
        """The image, upright; raises nearly anything where it is damaged."""
        ...


@dataclass(frozen=True)
class FilePictures:
    """Files and their labels."""

    files: Sequence[tuple[Path, int]]
    channels: int

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.files[index][0])

    def label(self, index: int) -> int:
        return self.files[index][1]

    def digest(self) -> str:
        return digest([(path.parent.name, path.name, label) for path, label in self.files], self.channels)

    def open(self, index: int) -> Image.Image:
        return image_folder.open_image(self.files[index][0], self.channels)


@dataclass(frozen=True)
class HubPictures:
    """A split of a set in the form of the library datasets, images not decoded yet."""

    rows: Any
    image: str
    """Name of the column."""
    labels: np.ndarray
    channels: int

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"image {index}"

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def digest(self) -> str:
        return digest(self.labels.tolist(), self.channels)

    def open(self, index: int) -> Image.Image:
        stored = self.rows[index][self.image]
        return image_folder.open_image(
            io.BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"], self.channels
        )


def load_hub(name: str) -> tuple[Any, str, str]:
    """A set of the hub (or a folder in its form), and the names of its image and label columns.

    Raises UserError where it cannot be had or holds no labelled images, MissingExtra without the library.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"the data set hf:{name}", "datasets") from None
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the library has dozens of kinds, all of them "could not be had"
        said = first_line(error)
        raise UserError(f"hf:{name} cannot be had from the Hugging Face hub or its cache: {said}") from error
    features = next(iter(found.values())).features
    image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise UserError(f"hf:{name} has no column of images with one of class labels: it has {', '.join(features)}")
    return found.cast_column(image, datasets.Image(decode=False)), image, label


def labels_of(rows: Any, column: str) -> np.ndarray:
    """Of a split of the hub; -1 or nothing stands for no label."""
    return np.array([-1 if label is None else label for label in rows[column][:]], dtype=np.int64)


@dataclass
class PictureFeed:
    """Pictures decoded by ``workers`` processes (0: by this one)."""

    pictures: Pictures
    size: tuple[int, int]
    """(H, W)"""
    augment: Augment
    workers: int = 0
    max_bad: int = 0
    """So many damaged pictures are replaced by the one after them; one more ends the run."""
    told: Callable[[str], None] = lambda _: None
    """Hears of every damaged picture once."""
    crop: float = image_folder.CROP_FRACTION
    interpolation: str = "bilinear"
    damaged: Damaged = field(init=False)

    def __post_init__(self) -> None:
        self.damaged = Damaged(self.max_bad, self.told)

    def __len__(self) -> int:
        return len(self.pictures)

    def digest(self, world: int) -> str:  # noqa: ARG002 - however many processes, the batches are the same
        """Of names and labels; a folder may have moved."""
        return digest(self.pictures.digest(), self.size, self.crop, self.interpolation)

    def training(self, recipe: Recipe, share: Share, *, seed: int, start: int) -> Iterator[Drawn]:
        decoder = _Decoder(self.pictures, self._cutter(recipe), seed, self.max_bad + 1)
        batches = places(len(self), recipe, share, seed=seed, start=start)
        for epoch, step, index, pixels, labels, broken in loader(decoder, self.workers, batches):
            self._count(broken)
            if len(labels) < len(index):
                raise UserError(f"not one of {len(self)} images can be decoded: {next(iter(broken.values()))}")
            yield Drawn(pixels, labels, epoch, step, index)

    def testing(self, batch_size: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        decoder = _Decoder(self.pictures, self._cutter(None), 0, 1)
        own = torch.arange(len(self))[share.of(len(self))]
        batches = (Place(0, step, index, 0) for step, index in enumerate(own.split(batch_size)) if len(index))
        for _, _, _, pixels, labels, broken in loader(decoder, self.workers, batches):
            self._count(broken)
            if len(labels):
                yield pixels, labels

    def _cutter(self, recipe: Recipe | None) -> Cutter:
        return Cutter(self.size, recipe, self.crop, self.interpolation)

    def _count(self, broken: dict[int, str]) -> None:
        self.damaged.add_({self.pictures.name(index): reason for index, reason in broken.items()})


Decoded = tuple[int, int, Tensor, Tensor, Tensor, dict[int, str]]
"""Epoch, step, index, pixels, labels, and why which pictures are broken."""


class _Decoder(Dataset[Decoded]):
    """One batch of pictures; where a recipe is given, cut out and changed at random."""

    def __init__(self, pictures: Pictures, cutter: Cutter, seed: int, tries: int) -> None:
        self.pictures, self.cutter, self.seed = pictures, cutter, seed
        self.tries = min(tries, len(pictures))
        """A picture and those after it, until one is sound; with one try a broken picture has no replacement."""

    def __getitem__(self, place: Place) -> Decoded:
        broken: dict[int, str] = {}
        images: list[np.ndarray] = []
        labels: list[int] = []
        for index in place.index.tolist():
            for k in range(self.tries):
                chosen = (index + k) % len(self.pictures)
                if chosen in broken:
                    continue
                try:
                    seed = seed_of(self.seed, 4, place.view, chosen)
                    image = self.cutter(partial(self.pictures.open, chosen), seed)
                    label = self.pictures.label(chosen)
                except Exception as error:  # noqa: BLE001 - decoders raise nearly anything on a damaged file
                    broken[chosen] = why(error)
                    continue
                images.append(image)
                labels.append(label)
                break
        channels = images[0].shape[0] if images else 1
        pixels = np.stack(images) if images else np.zeros((0, channels, *self.cutter.size), dtype=np.uint8)
        return place.epoch, place.step, place.index, torch.from_numpy(pixels), torch.tensor(labels), broken
