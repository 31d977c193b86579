# SPDX-License-Identifier: Apache-2.0
"""What a run is trained and tested on, by name: sets in memory, folders, the Hugging Face hub, WebDataset shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ghostnets.errors import UserError
from ghostnets.training import image_folder
from ghostnets.training.data import (
    FOLDER_SIZE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NAMES,
    Augment,
    Dataset,
    Images,
    load_dataset,
    normalisation,
)
from ghostnets.training.feed import Feed, MemoryFeed, digest
from ghostnets.training.pictures import FilePictures, HubPictures, PictureFeed, Pictures, labels_of, load_hub
from ghostnets.training.shards import ShardFeed, expand
from ghostnets.training.split import stratified

HUB = "hf:"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images to train and to test on, and what a network must know of them."""

    name: str
    train: Feed
    test: Feed
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    """(C, H, W)"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def described(self) -> Dataset:
        """The same without an image, for who must only know what they are."""
        nothing = Images(pixels=torch.empty((0, *self.input_size), dtype=torch.uint8), labels=None)
        return Dataset(
            name=self.name, train=nothing, test=nothing, classes=self.classes, mean=self.mean, std=self.std,
            augment=self.train.augment,
        )  # fmt: skip

    def fingerprint(self, world: int = 1) -> str:
        """A digest of what a run in so many processes depends on."""
        return digest(self.train.digest(world), self.classes, self.input_size, self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which images, and how they are read."""

    data: str
    data_dir: Path | None = None
    val_data: str | None = None
    """Shards to test on."""
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    flip: bool | None = None
    hold_out: int = 0
    """So many training images become the test images instead of the official ones: in memory the last ones, else some of
    every class.
    """
    workers: int = 0
    max_bad: int = 0
    train_samples: int | None = None
    """How many the shards hold; else they are counted."""
    num_classes: int | None = None
    """Of shards, which do not say."""


def open_source(asked: Asked, told: Callable[[str], None] = lambda _: None) -> Source:
    """The images asked for. ``told`` hears of every picture that is skipped.

    Raises UserError where they cannot be had.
    """
    if asked.size is not None and min(asked.size) < 1:
        raise UserError(f"image size {asked.size[0]}×{asked.size[1]} must be at least 1×1")
    if asked.channels not in {None, 1, 3}:
        raise UserError(f"{asked.channels} channels cannot be made from an image: ask for 1 (grey) or 3 (colour)")
    if asked.data in NAMES:
        source = _in_memory(asked)
    elif asked.data.startswith(HUB):
        source = _hub(asked, told)
    elif Path(asked.data).is_dir():
        source = _folder(asked, told)
    elif ".tar" in asked.data:
        source = _shards(asked, told)
    else:
        raise UserError(
            f"there is no data set or folder {asked.data!r}: choose {', '.join(NAMES)}, a folder of images, hf:NAME, or "
            "shards such as train-{000..146}.tar"
        )
    return replace(source, mean=normalisation("mean", asked.mean, source.mean, source.input_size[0]),
                   std=normalisation("std", asked.std, source.std, source.input_size[0]))  # fmt: skip


def _in_memory(asked: Asked) -> Source:
    dataset = load_dataset(
        asked.data, data_dir=asked.data_dir, mean=asked.mean, std=asked.std, size=asked.size, channels=asked.channels,
        flip=asked.flip,
    )  # fmt: skip
    train, test = dataset.train, dataset.test
    if asked.hold_out:
        kept = _kept(len(train), asked.hold_out)
        train, test = train.subset(slice(0, kept)), train.subset(slice(kept, len(train)))
    channels, height, width = train.pixels.shape[1:]
    return Source(
        name=dataset.name, train=MemoryFeed(train, dataset.augment), test=MemoryFeed(test, dataset.augment),
        classes=dataset.classes, input_size=(channels, height, width), mean=dataset.mean, std=dataset.std,
        notes=dataset.notes,
    )  # fmt: skip


def _kept(count: int, hold_out: int) -> int:
    if not 0 < hold_out < count:
        raise UserError(f"--hold-out {hold_out} must leave at least one of {count} training images, and take one")
    return count - hold_out


def _pictures(
    asked: Asked, told: Callable[[str], None], sides: Sequence[Pictures], classes: tuple[str, ...],
    notes: tuple[str, ...],
) -> Source:  # fmt: skip
    height, width = asked.size or FOLDER_SIZE
    augment = Augment(padding=0, flip=asked.flip is not False)
    feeds: list[PictureFeed] = []
    for what, part in zip(("training", "test"), sides, strict=True):
        if not len(part):
            raise UserError(f"{asked.data} has no {what} images")
        feeds.append(
            PictureFeed(part, (height, width), augment, workers=asked.workers, max_bad=asked.max_bad, told=told)
        )
    return Source(
        name=asked.data, train=feeds[0], test=feeds[1], classes=classes, input_size=(asked.channels or 3, height, width),
        mean=IMAGENET_MEAN, std=IMAGENET_STD, notes=notes,
    )  # fmt: skip


def _folder(asked: Asked, told: Callable[[str], None]) -> Source:
    listing = image_folder.listed(Path(asked.data))
    train, test = list(listing.train), list(listing.test)
    if asked.hold_out:
        _kept(len(train), asked.hold_out)
        aside = stratified(np.array([label for _, label in train]), asked.hold_out, seed=0)
        pairs = list(zip(train, aside.tolist(), strict=True))
        train, test = [file for file, out in pairs if not out], [file for file, out in pairs if out]
    sides = tuple(FilePictures(files, asked.channels or 3) for files in (train, test))
    return _pictures(asked, told, sides, listing.classes, listing.notes)


def _hub(asked: Asked, told: Callable[[str], None]) -> Source:
    found, image, label = load_hub(asked.data.removeprefix(HUB))
    if "train" not in found:
        raise UserError(f"{asked.data} has no training images: it has {', '.join(found)}")
    rows, notes = found["train"], ()
    labels = labels_of(rows, label)
    if labels.min(initial=0) < 0:
        raise UserError(f"{asked.data} has training images without a label, so nothing can be learned from them")
    names = [name for name in ("test", "validation", "val", "valid") if name in found]
    tested = next((name for name in names if labels_of(found[name], label).min(initial=0) >= 0), None)
    if asked.hold_out or tested is None:
        n = asked.hold_out or max(1, len(rows) // 5)
        _kept(len(rows), n)
        aside = stratified(labels, n, seed=0)  # these sets are often sorted by class: the last ones may be of one only
        train, test = rows.select(np.flatnonzero(~aside)), rows.select(np.flatnonzero(aside))
        if not asked.hold_out:
            note = f"{asked.data} has no test split with labels: {n} of its {len(rows)} training images, spread over the classes, became it"
            notes = (note,)
    else:
        train, test = rows, found[tested]
    sides = tuple(HubPictures(part, image, labels_of(part, label), asked.channels or 3) for part in (train, test))
    return _pictures(asked, told, sides, tuple(rows.features[label].names), notes)


def _shards(asked: Asked, told: Callable[[str], None]) -> Source:
    if asked.val_data is None:
        raise UserError(f"{asked.data} are shards to train on: name those to test on with --val-data")
    if asked.num_classes is None:
        raise UserError(f"{asked.data} does not say how many classes there are: give --num-classes")
    if asked.hold_out:
        raise UserError("--hold-out takes training images aside, and shards have no order: name others with --val-data")
    height, width = asked.size or FOLDER_SIZE
    channels = asked.channels or 3
    train, test = expand(asked.data), expand(asked.val_data)
    augment = Augment(padding=0, flip=asked.flip is not False)
    feeds = [
        ShardFeed(
            shards, count, (height, width), channels, augment, workers=asked.workers, max_bad=asked.max_bad, told=told
        )
        for shards, count in ((train, asked.train_samples), (test, None))
    ]
    return Source(
        name=asked.data, train=feeds[0], test=feeds[1], classes=tuple(str(k) for k in range(asked.num_classes)),
        input_size=(channels, height, width), mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip
