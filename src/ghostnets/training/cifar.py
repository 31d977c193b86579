# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 in their official binary versions (Krizhevsky, "Learning Multiple Layers of Features from Tiny
Images", 2009).

Each record is a label byte, in CIFAR-100 one of the superclass and one of the class, and 3,072 bytes of pixels, channel
first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ghostnets.download import cache_dir, fetch, unpack
from ghostnets.errors import UserError
from ghostnets.training import pixels

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class Set:
    """One of the two: its archive, and the files in it."""

    name: str
    title: str
    url: str
    md5: str
    """Of the archive."""
    folder: str
    train: Mapping[str, str | None]
    """File -> MD5; None where nobody has published it."""
    test: Mapping[str, str | None]
    names: str
    """The file with the names of the classes."""
    train_records: int
    """In each training file."""
    test_records: int
    label_bytes: int
    """Of which the last is the class."""
    classes: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Those with images."""
        return (*self.train, *self.test)


# Addresses and checksums of the archives: https://www.cs.toronto.edu/~kriz/cifar.html
CIFAR10 = Set(
    name="cifar10",
    title="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train={
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    },
    test={"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
    names="batches.meta.txt",
    train_records=10_000,
    test_records=10_000,
    label_bytes=1,
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

CIFAR100 = Set(
    name="cifar100",
    title="CIFAR-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train={"train.bin": None},
    test={"test.bin": None},
    names="fine_label_names.txt",
    train_records=50_000,
    test_records=10_000,
    label_bytes=2,
    classes=tuple(
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
        "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
        "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree "
        "motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate "
        "poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider "
        "squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle "
        "wardrobe whale willow_tree wolf woman worm".split()
    ),
)

SETS: dict[str, Set] = {row.name: row for row in (CIFAR10, CIFAR100)}


def locate(rows: Set, data_dir: Path | None, *, download: bool) -> Path:
    """The folder with the set's files: under ``data_dir``, else under the folder that the environment variable
    GHOSTNETS_DATA names, else in the cache; where they are nowhere they are downloaded, into ``data_dir`` or the cache.
    """
    root = os.environ.get("GHOSTNETS_DATA")
    places = [data_dir, Path(root) if root else None, cache_dir()]
    found = next((f for place in places if place is not None and (f := _under(rows, place)) is not None), None)
    if found is None and not download:
        raise UserError(f"there is no {rows.title} here: {_by_hand(rows)}")
    return found or _download(rows, data_dir or cache_dir())


def read(rows: Set, folder: Path, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, 32, 32) and labels (N,) of the part's files, one after the other. Raises UserError where one is
    missing or is not, byte for byte, the official file.
    """
    files, count = (rows.train, rows.train_records) if part == "train" else (rows.test, rows.test_records)
    images = pixels.empty((count * len(files), *SHAPE))
    labels = torch.empty(len(images), dtype=torch.long)
    for k, name in enumerate(files):
        records = read_file(rows, folder / name, count=count, md5=files[name])
        images[k * count : (k + 1) * count] = torch.from_numpy(records[:, rows.label_bytes :].reshape(-1, *SHAPE))
        labels[k * count : (k + 1) * count] = torch.from_numpy(records[:, rows.label_bytes - 1].astype(np.int64))
    return images, labels


def read_file(rows: Set, path: Path, *, count: int, md5: str | None) -> np.ndarray:
    """The records of one file, (count, label bytes + 3,072)."""
    again = f"download {rows.title}'s binary version again from {rows.url}"
    size = count * (rows.label_bytes + PIXELS)
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {again}") from None
    if len(data) != size:
        raise UserError(f"{path} has {len(data):,} bytes instead of {size:,}: {again}")
    if md5 is not None and (found := hashlib.md5(data.data, usedforsecurity=False).hexdigest()) != md5:
        raise UserError(f"{path} has MD5 {found} instead of {md5}: {again}")
    records = data.reshape(count, -1)
    largest = int(records[:, rows.label_bytes - 1].max())
    if largest >= len(rows.classes):
        raise UserError(f"{path} has the label {largest}, and {rows.title} has {len(rows.classes)} classes: {again}")
    return records


def _under(rows: Set, root: Path) -> Path | None:
    return next((f for f in (root, root / rows.folder) if any((f / name).is_file() for name in rows.files)), None)


def _download(rows: Set, root: Path) -> Path:
    folder = root / rows.folder
    archive = fetch(rows.url, root / rows.url.rpartition("/")[2], md5=rows.md5, otherwise=_by_hand(rows))
    unpack(archive, folder, [f"{rows.folder}/{name}" for name in (*rows.files, rows.names)])
    archive.unlink()
    return folder


def _by_hand(rows: Set) -> str:
    return f"unpack {rows.url} into any folder and name that folder with --data-dir or GHOSTNETS_DATA"
