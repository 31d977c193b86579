# SPDX-License-Identifier: Apache-2.0
"""Photographs decoded as they are needed, by worker processes: folders of files, and sets of the Hugging Face hub."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ghostnets.errors import MissingExtra, UserError
from ghostnets.training import image_folder
from ghostnets.training.data import Augment
from ghostnets.training.draw import seed_of
from ghostnets.training.feed import Drawn, Place, Share, digest, places
from ghostnets.training.rand_augment import rand_augment
from ghostnets.training.recipe import Recipe

RATIO = (3 / 4, 4 / 3)
"""Of width to height, of what is cut out of a photograph (Szegedy et al., arXiv:1409.4842)."""

TRIES = 10
"""To find a rectangle that fits, before the middle is taken; as torchvision has it."""


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
    label_column: str
    channels: int

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"image {index}"

    def label(self, index: int) -> int:
        return int(self.rows[index][self.label_column])

    def digest(self) -> str:
        return digest(list(self.rows[self.label_column]), self.channels)

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
        said = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UserError(f"hf:{name} cannot be had from the Hugging Face hub or its cache: {said}") from error
    features = next(iter(found.values())).features
    image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise UserError(f"hf:{name} has no column of images with one of class labels: it has {', '.join(features)}")
    return found.cast_column(image, datasets.Image(decode=False)), image, label


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
    bad: dict[int, str] = field(default_factory=dict[int, str])

    def __len__(self) -> int:
        return len(self.pictures)

    def digest(self, world: int) -> str:  # noqa: ARG002 - however many processes, the batches are the same
        """Of names and labels; a folder may have moved."""
        return digest(self.pictures.digest(), self.size, self.crop, self.interpolation)

    def training(self, recipe: Recipe, share: Share, *, seed: int, start: int) -> Iterator[Drawn]:
        decoder = _Decoder(self.pictures, self.size, self.crop, self.interpolation, recipe, seed, self.max_bad + 1)
        batches = places(len(self), recipe.batch_size, share, seed=seed, start=start)
        loader = self._loader(decoder, _Keys(batches))
        for epoch, step, index, pixels, labels, broken in loader:
            self._judge(broken)
            if len(labels) < len(index):
                raise UserError(f"not one of {len(self)} images can be decoded: {next(iter(broken.values()))}")
            yield Drawn(pixels, labels, epoch, step, index)

    def testing(self, batch_size: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        decoder = _Decoder(self.pictures, self.size, self.crop, self.interpolation, None, 0, 1)
        own = torch.arange(len(self))[share.of(len(self))]
        batches = (Place(0, step, index) for step, index in enumerate(own.split(batch_size)) if len(index))
        for _, _, _, pixels, labels, broken in self._loader(decoder, _Keys(batches)):
            self._judge(broken)
            if len(labels):
                yield pixels, labels

    def _loader(self, decoder: _Decoder, keys: _Keys) -> Any:
        context = "fork" if self.workers and hasattr(__import__("os"), "fork") else None
        return DataLoader(
            decoder, sampler=keys, batch_size=None, num_workers=self.workers, multiprocessing_context=context,
            worker_init_fn=_one_thread,
        )  # fmt: skip

    def _judge(self, broken: dict[int, str]) -> None:
        for index, why in broken.items():
            if index in self.bad:
                continue
            self.bad[index] = why
            self.told(f"{self.pictures.name(index)} cannot be decoded ({why}) and is skipped")
            if len(self.bad) > self.max_bad:
                names = ", ".join(self.pictures.name(k) for k in list(self.bad)[: image_folder.NAMED])
                raise UserError(
                    f"{len(self.bad)} images cannot be decoded, and --max-bad allows {self.max_bad}: {names}"
                )


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


class _Keys:
    """The places of the batches, as the sampler of a loader."""

    def __init__(self, batches: Iterator[Place]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Place]:
        return self.batches


Decoded = tuple[int, int, Tensor, Tensor, Tensor, dict[int, str]]
"""Epoch, step, index, pixels, labels, and why which pictures are broken."""


class _Decoder(Dataset[Decoded]):
    """One batch of pictures; where a recipe is given, cut out and changed at random."""

    def __init__(
        self,
        pictures: Pictures,
        size: tuple[int, int],
        crop: float,
        interpolation: str,
        recipe: Recipe | None,
        seed: int,
        tries: int,
    ) -> None:
        self.pictures, self.size, self.seed = pictures, size, seed
        self.crop, self.interpolation = crop, interpolation
        self.scale = recipe.scale if recipe is not None else None
        self.change = rand_augment(recipe.aa) if recipe is not None and recipe.aa is not None else None
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
                    image = self.one(chosen, place.epoch)
                    label = self.pictures.label(chosen)
                except Exception as error:  # noqa: BLE001 - decoders raise nearly anything on a damaged file
                    broken[chosen] = " ".join(str(error).split()) or type(error).__name__
                    continue
                images.append(image)
                labels.append(label)
                break
        channels = images[0].shape[0] if images else 1
        pixels = np.stack(images) if images else np.zeros((0, channels, *self.size), dtype=np.uint8)
        return place.epoch, place.step, place.index, torch.from_numpy(pixels), torch.tensor(labels), broken

    def one(self, index: int, epoch: int) -> np.ndarray:
        """uint8 (C, H, W)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow remarks on odd metadata, which do not touch the pixels
            image = self.pictures.open(index)
            seed = seed_of(self.seed, 4, epoch, index)
            if self.scale is None:
                image = image_folder.centre_crop(image, self.size, self.crop, self.interpolation)
            else:
                box = random_box(image.size, self.scale, np.random.default_rng(seed))
                image = image.resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC, box=box)
            if self.change is not None:
                image = self.change(image, seed)
        return np.array(image).reshape(*self.size, -1).transpose(2, 0, 1)


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
