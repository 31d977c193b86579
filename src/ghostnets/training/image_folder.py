# SPDX-License-Identifier: Apache-2.0
"""A folder of images with one folder a class, decoded to one size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.progress import progress
from ghostnets.training import pixels
from ghostnets.training.split import stratified

UNREAD = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
"""Formats that Pillow knows by name and reads only with another program's help."""

SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in UNREAD
)
"""Of every format that this Pillow reads."""

CROP_FRACTION = 0.875
"""The share of a resized image's short side that the centre crop keeps: 224 of 256, as ImageNet networks are tested."""

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

TEST_SHARE = 0.2
"""Of a folder without a split of its own."""

NAMED = 10
"""Left-out files that a note names; more are counted."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Both parts of a folder as pixels (N, C, H, W) and labels (N,), and what the user should know about it."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


Listing = list[tuple[Path, int]]
"""Files and their labels."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Files of both parts with their labels, and what the user should know about them."""

    train: Listing
    test: Listing
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def listed(root: Path) -> Listed:
    """The files of ``root/train/CLASS`` and ``root/test/CLASS`` (or ``val``), or of ``root/CLASS``, which is then split.

    Raises UserError where there are fewer than two classes, or one without a training image.
    """
    classes, train, test, notes = _list(root)
    empty = [name for k, name in enumerate(classes) if all(label != k for _, label in train)]
    if empty:
        raise UserError(f"{root} has the class {empty[0]!r} without a training image: add some, or remove its folder")
    return Listed(train=train, test=test, classes=classes, notes=tuple(notes))


def read(root: Path, *, size: tuple[int, int], channels: int) -> Decoded:
    """The images of ``root/train/CLASS`` and ``root/test/CLASS`` (or ``val``), or of ``root/CLASS``, which is then split.

    Images that already have ``size`` (H, W) stay as they are; all others are scaled until the size fills
    ``CROP_FRACTION`` of their tighter side, and cropped in the centre. ``channels`` 1 is grey, 3 is RGB.
    """
    classes, train, test, notes = _list(root)
    decoded = [
        _decode_all(part, size=size, channels=channels, what=f"{root}: {name}")
        for name, part in (("training images", train), ("test images", test))
    ]
    broken = [path for _, _, paths in decoded for path in paths]
    if broken:
        notes.append(_left_out(broken, len(train) + len(test)))
    for (images, _, _), name in zip(decoded, ("training", "test"), strict=True):
        if not len(images):
            raise UserError(
                f"{root} has no {name} image that can be decoded: {notes[-1] if broken else 'check its files'}"
            )
    parts = [(images, labels) for images, labels, _ in decoded]
    return Decoded(train=parts[0], test=parts[1], classes=classes, notes=tuple(notes))


def _list(root: Path) -> tuple[tuple[str, ...], Listing, Listing, list[str]]:
    trained = root / "train" if (root / "train").is_dir() else root
    tested = next((root / name for name in ("test", "val") if trained != root and _folders(root / name)), None)
    classes = tuple(folder.name for folder in _folders(trained))
    if len(classes) < 2:
        raise UserError(
            f"{trained} holds {len(classes) or 'no'} class folder{'s' * (not classes)}: "
            "put the images of every class, two at least, into a folder of its own"
        )
    train = _files(trained, classes)
    if tested is not None:
        return classes, train, _files(tested, classes), []
    n = max(1, round(TEST_SHARE * len(train)))
    aside = stratified(np.array([label for _, label in train]), n, seed=0)
    note = f"{trained} has no test or val folder: {n} of its {len(train)} images, spread over the classes, became the test set"
    pairs = list(zip(train, aside.tolist(), strict=True))
    return classes, [file for file, out in pairs if not out], [file for file, out in pairs if out], [note]


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path, classes: Sequence[str]) -> Listing:
    label = {name: k for k, name in enumerate(classes)}
    foreign = [folder.name for folder in _folders(root) if folder.name not in label]
    if foreign:
        raise UserError(
            f"{root} holds the class {foreign[0]!r}, which no training folder has: add it there or remove it"
        )
    files = [
        (path, label[folder.name])
        for folder in _folders(root)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        raise UserError(f"{root} holds no images: its class folders need files such as .jpg or .png")
    return files


def _decode_all(
    files: Listing, *, size: tuple[int, int], channels: int, what: str
) -> tuple[Tensor, Tensor, list[Path]]:
    images = pixels.empty((len(files), channels, *size))
    store = images.numpy()

    def decode(k: int) -> bool:
        try:
            store[k] = decode_image(files[k][0], size=size, channels=channels)
        except Exception:  # noqa: BLE001 - decoders raise nearly anything on a damaged file, and none may end the run
            return False
        return True

    good = np.zeros(len(files), dtype=bool)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
        progress(f"decoding {what}", len(files)) as report,
    ):
        warnings.simplefilter("ignore")  # Pillow remarks on odd metadata, which do not touch the pixels
        for k, good[k] in enumerate(pool.map(decode, range(len(files)))):
            report(k + 1)
    labels = torch.tensor([label for _, label in files])
    if not good.all():
        kept = torch.from_numpy(np.flatnonzero(good))
        images, labels = pixels.take(images, kept), labels[kept]
    return images, labels, [files[k][0] for k in np.flatnonzero(~good)]


def decode_image(
    path: Path,
    *,
    size: tuple[int, int],
    channels: int,
    crop: float = CROP_FRACTION,
    interpolation: str = "bilinear",
    rescale: bool = False,
) -> np.ndarray:
    """One image as uint8 (C, H, W), upright (EXIF), scaled until the size fills ``crop`` of its tighter side, and cropped.

    An image that has the size already stays as it is, unless ``rescale`` treats it like any other.
    """
    upright = open_image(path, channels)
    image = upright if not rescale and upright.size == size[::-1] else centre_crop(upright, size, crop, interpolation)
    return np.asarray(image).reshape(*size, channels).transpose(2, 0, 1)


def open_image(source: Path | io.BytesIO, channels: int) -> Image.Image:
    """An image upright (EXIF), grey or in colour. Raises nearly anything where it is damaged."""
    with Image.open(source) as file:
        return _convert(ImageOps.exif_transpose(file), channels)


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F":  # measured intensities, on any scale
        values = np.nan_to_num(np.asarray(image))
        low, high = float(values.min()), float(values.max())
        image = Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8))
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB" if channels == 3 else "L")


def centre_crop(image: Image.Image, size: tuple[int, int], crop: float, interpolation: str) -> Image.Image:
    """Scaled until ``size`` (H, W) fills ``crop`` of its tighter side, and cut out of the middle."""
    height, width = size
    scale = max(int(height / crop) / image.height, int(width / crop) / image.width)
    new = (max(width, int(image.width * scale + 1e-6)), max(height, int(image.height * scale + 1e-6)))
    image = image.resize(new, INTERPOLATIONS[interpolation])
    left, top = round((new[0] - width) / 2), round((new[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _left_out(broken: Sequence[Path], total: int) -> str:
    names = ", ".join(str(path) for path in broken[:NAMED])
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    return f"{len(broken)} of {total} images cannot be decoded and are left out: {names}{more}"
