# SPDX-License-Identifier: Apache-2.0
"""Labelled images for training and testing: the embedded digits, CIFAR, and folders of images.

Pixels stay uint8 until :func:`normalise`, so that a whole set fits in memory and augmentation is cheap.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.training import cifar, image_folder
from ghostnets.training import pixels as store
from ghostnets.training.split import stratified

NAMES = ("digits", *cifar.SETS)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""The figures of torchvision's and most other published ImageNet weights; many CIFAR-10 networks were given them too."""

DIGITS_SIZE = (32, 32)
DIGITS_TEST = 360
"""A fifth of the 1,797, set aside with seed 0."""
DIGITS_MEAN = (0.3047,)
DIGITS_STD = (0.3231,)
"""Measured over the pixels of the other 1,437."""

FOLDER_SIZE = (224, 224)
"""What ImageNet networks are tested at."""

SAMPLED = 500
"""About so many images go into a digest: all of them would take seconds."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """uint8 images (N, C, H, W) with their labels (N,), or without labels."""

    pixels: Tensor
    labels: Tensor | None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.pixels):
            raise UserError(f"{len(self.pixels)} images cannot have {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.pixels)

    def feed_(self, digest: hashlib._Hash) -> None:
        """Into a digest go the shape, some of the images and all labels."""
        digest.update(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels[:: max(1, len(self) // SAMPLED)].numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())

    def subset(self, index: Tensor | Sequence[int] | slice) -> Images:
        """The images at ``index``, in its order; a slice shares memory, anything else is a copy."""
        if isinstance(index, slice):
            return Images(pixels=self.pixels[index], labels=None if self.labels is None else self.labels[index])
        where = torch.as_tensor(index, dtype=torch.long)
        return Images(pixels=store.take(self.pixels, where), labels=None if self.labels is None else self.labels[where])


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What may be done to a training image without changing its class."""

    padding: int
    """Pixels of black border from which a random crop of the old size is taken."""
    flip: bool
    """Whether the mirror image is the same thing (a digit's is not)."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named set, its split, and the mean and standard deviation (on a scale of 0 to 1) its network expects."""

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    notes: tuple[str, ...] = ()
    """Sentences the user should read: a split that was made, files that were skipped."""


def load_dataset(
    name_or_dir: str,
    *,
    data_dir: Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    flip: bool | None = None,
    download: bool = True,
) -> Dataset:
    """``digits``, ``cifar10``, ``cifar100``, or a folder with one folder of images a class (see ``image_folder.read``).

    ``digits`` are the 1,797 handwritten digits that come with scikit-learn (8×8, 0…16), drawn at 32×32 by bilinear
    interpolation. CIFAR is looked for in ``data_dir``, in the folder GHOSTNETS_DATA names, and in the cache, and is
    downloaded if it is nowhere. ``flip`` says whether the mirror image is the same thing; by default a digit's is not,
    and any other's is. ``mean`` and ``std`` default to the training images' own for the digits and to
    ImageNet's for everything else, CIFAR included, because the published weights that get upgraded were mostly
    trained with those. ``size`` (H, W) and ``channels`` default to the set's own, for a folder to 224×224 in colour.
    """
    if size is not None and min(size) < 1:
        raise UserError(f"image size {size[0]}×{size[1]} must be at least 1×1")
    if channels not in {None, 1, 3}:
        raise UserError(f"{channels} channels cannot be made from an image: ask for 1 (grey) or 3 (colour)")
    if data_dir is not None and name_or_dir not in cifar.SETS:
        raise UserError(f"data_dir {data_dir} is where CIFAR lies, and {name_or_dir} was asked: leave it out")
    if name_or_dir == "digits":
        dataset = _digits()
    elif name_or_dir in cifar.SETS:
        dataset = _cifar(cifar.SETS[name_or_dir], data_dir, download=download)
    elif Path(name_or_dir).is_dir():
        dataset = _folder(Path(name_or_dir), size=size or FOLDER_SIZE, channels=channels or 3)
    else:
        raise UserError(f"there is no data set or folder {name_or_dir!r}: choose {_choices(name_or_dir)}")
    if flip is not None:
        dataset = replace(dataset, augment=replace(dataset.augment, flip=flip))
    return _as_asked(dataset, mean=mean, std=std, size=size, channels=channels)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 pixels (N, C, H, W) as float32 in channels-last order: ``(pixels / 255 - mean) / std``."""
    centre = torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
    spread = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    out = pixels.to(torch.float32, memory_format=torch.channels_last)
    return out.mul_((1 / (255 * spread)).float()).sub_((centre / spread).float())


def normalisation(
    what: str, asked: Sequence[float] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    """One figure a channel: those asked for, else the defaults, repeated for colour or averaged for grey."""
    if asked is None:
        return default if len(default) == channels else (sum(default) / len(default),) * channels
    if len(asked) != channels:
        raise UserError(f"{what} {_listed(asked)} has {len(asked)} figures for {channels} channels: give {channels}")
    if not all(math.isfinite(figure) and (figure > 0 or what == "mean") for figure in asked):
        raise UserError(f"{what} {_listed(asked)} must be finite{' and above 0' if what == 'std' else ''}")
    return tuple(float(figure) for figure in asked)


def hold_out(images: Images, n: int, seed: int) -> tuple[Images, Images]:
    """The images without ``n`` of them, and those ``n``: a fair share of every class, chosen by ``seed`` alone, both
    parts in their old order.
    """
    labels = np.zeros(len(images), dtype=np.int64) if images.labels is None else images.labels.numpy()
    aside = torch.from_numpy(stratified(labels, n, seed))
    return images.subset((~aside).nonzero()[:, 0]), images.subset(aside.nonzero()[:, 0])


def _choices(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), NAMES, n=1)
    return f"{', '.join(NAMES)} or a folder of images{f' (did you mean {close[0]!r}?)' if close else ''}"


def _digits() -> Dataset:
    from sklearn.datasets import load_digits  # a second of imports that no other set needs

    raw: Any = load_digits()  # typed as a Bunch or a tuple, whichever was asked for
    small = torch.from_numpy(raw.images).float().unsqueeze(1)
    # The whole numbers 0…16 are interpolated first: so every step is exact in float32, and equal on any machine.
    large = F.interpolate(small, size=DIGITS_SIZE, mode="bilinear", align_corners=False).mul_(255 / 16).round_()
    train, test = hold_out(
        Images(pixels=large.to(torch.uint8), labels=torch.from_numpy(raw.target).long()), DIGITS_TEST, seed=0
    )
    return Dataset(
        name="digits",
        train=train,
        test=test,
        classes=tuple(str(digit) for digit in range(10)),
        mean=DIGITS_MEAN,
        std=DIGITS_STD,
        augment=Augment(padding=4, flip=False),
    )


def _cifar(rows: cifar.Set, data_dir: Path | None, *, download: bool) -> Dataset:
    folder = cifar.locate(rows, data_dir, download=download)
    (train, train_labels), (test, test_labels) = (cifar.read(rows, folder, part) for part in ("train", "test"))
    return Dataset(
        name=rows.name,
        train=Images(pixels=train, labels=train_labels),
        test=Images(pixels=test, labels=test_labels),
        classes=rows.classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augment=Augment(padding=4, flip=True),
    )


def _folder(root: Path, *, size: tuple[int, int], channels: int) -> Dataset:
    decoded = image_folder.read(root, size=size, channels=channels)
    return Dataset(
        name=str(root),
        train=Images(pixels=decoded.train[0], labels=decoded.train[1]),
        test=Images(pixels=decoded.test[0], labels=decoded.test[1]),
        classes=decoded.classes,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augment=Augment(padding=min(size) // 8, flip=True),  # 4 of 32, as for CIFAR-10
        notes=decoded.notes,
    )


def _as_asked(
    dataset: Dataset,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: tuple[int, int] | None,
    channels: int | None,
) -> Dataset:
    channels = channels or dataset.train.pixels.shape[1]
    height, width = size or dataset.train.pixels.shape[2:]
    train, test = (
        Images(pixels=store.fit(part.pixels, size=(height, width), channels=channels), labels=part.labels)
        for part in (dataset.train, dataset.test)
    )
    return replace(
        dataset,
        train=train,
        test=test,
        mean=normalisation("mean", mean, dataset.mean, channels),
        std=normalisation("std", std, dataset.std, channels),
    )


def _listed(figures: Sequence[float]) -> str:
    return ",".join(f"{figure:g}" for figure in figures)
