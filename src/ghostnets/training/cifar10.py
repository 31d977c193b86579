# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 in its official binary version (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).

Each record is a label byte and 3,072 bytes of pixels, channel first.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ghostnets.download import cache_dir, fetch, unpack
from ghostnets.errors import UserError
from ghostnets.training import pixels

# Address and checksum of the archive: https://www.cs.toronto.edu/~kriz/cifar.html
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"

TRAIN_FILES = {  # name → MD5, of the files in that archive
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
}
TEST_FILES = {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"}

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The names in the archive's ``batches.meta.txt``."""

SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
FILE_SIZE = 10_000 * RECORD


def locate(data_dir: Path | None, *, download: bool) -> Path:
    """The folder with the six files: under ``data_dir``, else under the folder that the environment variable
    GHOSTNETS_DATA names, else in the cache; where they are nowhere they are downloaded, into ``data_dir`` or the cache.
    """
    root = os.environ.get("GHOSTNETS_DATA")
    places = [data_dir, Path(root) if root else None, cache_dir()]
    found = next((folder for place in places if place is not None and (folder := _under(place)) is not None), None)
    if found is None and not download:
        raise UserError(f"there is no CIFAR-10 here: {_by_hand()}")
    return found or _download(data_dir or cache_dir())


def read(folder: Path, files: dict[str, str]) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, 32, 32) and labels (N,) of those files, one after the other. Raises UserError where one is missing
    or is not, byte for byte, the official file.
    """
    count = FILE_SIZE // RECORD
    images = pixels.empty((count * len(files), *SHAPE))
    labels = torch.empty(len(images), dtype=torch.long)
    for k, (name, md5) in enumerate(files.items()):
        records = read_file(folder / name, md5=md5)
        images[k * count : (k + 1) * count] = torch.from_numpy(records[:, 1:].reshape(-1, *SHAPE))
        labels[k * count : (k + 1) * count] = torch.from_numpy(records[:, 0].astype(np.int64))
    return images, labels


def read_file(path: Path, *, md5: str) -> np.ndarray:
    """The records (N, 3073) of one file."""
    again = f"download CIFAR-10's binary version again from {URL}"
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {again}") from None
    if len(data) != FILE_SIZE:
        raise UserError(f"{path} has {len(data):,} bytes instead of {FILE_SIZE:,}: {again}")
    found = hashlib.md5(data.data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(f"{path} has MD5 {found} instead of {md5}: {again}")
    return data.reshape(-1, RECORD)


def _under(root: Path) -> Path | None:
    candidates = (root, root / FOLDER)
    return next((f for f in candidates if any((f / name).is_file() for name in (*TRAIN_FILES, *TEST_FILES))), None)


def _download(root: Path) -> Path:
    folder = root / FOLDER
    archive = fetch(URL, root / URL.rpartition("/")[2], md5=MD5, otherwise=_by_hand())
    unpack(archive, folder, [f"{FOLDER}/{name}" for name in (*TRAIN_FILES, *TEST_FILES, "batches.meta.txt")])
    archive.unlink()
    return folder


def _by_hand() -> str:
    return f"unpack {URL} into any folder and name that folder with --data-dir or GHOSTNETS_DATA"
