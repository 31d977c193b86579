# SPDX-License-Identifier: Apache-2.0
"""Labelled images for training and testing: the embedded digits, CIFAR-10, and folders of images.

Pixels stay uint8 until :func:`normalise`, so that a whole set fits in memory and augmentation is cheap.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.training import pixels as store

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""The figures torchvision and most published ImageNet weights use; many CIFAR-10 ResNets kept them."""


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
    download: bool = True,
) -> Dataset:
    """The data set of that name."""
    loaders = {"digits": lambda: _digits(), "cifar10": lambda: _cifar10(data_dir, download)}
    if name_or_dir not in loaders:
        close = difflib.get_close_matches(name_or_dir, loaders, n=1)
        raise UserError(f"no data set or folder {name_or_dir!r}{close}")
    return loaders[name_or_dir]()


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 pixels (N, C, H, W) as float32 in channels-last order: ``(pixels / 255 - mean) / std``."""
    centre = torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
    spread = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    out = pixels.to(torch.float32, memory_format=torch.channels_last)
    return out.mul_((1 / (255 * spread)).float()).sub_((centre / spread).float())


def hold_out(images: Images, n: int, seed: int) -> tuple[Images, Images]:
    """The images without ``n`` of them, and those ``n``, both in their old order.

    Every class gives its share (largest remainder). Who is taken depends on the seed alone: within a class those
    with the smallest SHA-256 of ``"seed:index"``, so that no library's random numbers can change the split.
    """
    if not 0 < n < len(images):
        raise UserError(f"cannot hold out {n} of {len(images)} images: between 1 and {len(images) - 1} are possible")
    labels = np.zeros(len(images), dtype=np.int64) if images.labels is None else images.labels.numpy()
    held = np.zeros(len(images), dtype=bool)
    counts = np.bincount(labels)
    for label, share in enumerate(_shares(counts, n)):
        members = np.flatnonzero(labels == label).tolist()
        members.sort(key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
        held[members[:share]] = True
    return tuple(images.subset(torch.from_numpy(np.flatnonzero(which))) for which in (~held, held))  # pyright: ignore[reportReturnType]


def _shares(counts: np.ndarray, n: int) -> list[int]:
    """``n`` divided in proportion to ``counts``: whole parts first, the rest to the largest remainders."""
    total = int(counts.sum())
    shares = [int(count) * n // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda label: (-(int(counts[label]) * n % total), label))
    for label in by_remainder[: n - sum(shares)]:
        shares[label] += 1
    return shares


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images).float().unsqueeze(1)
    # Interpolate the whole numbers 0..16 first: every step is then exact in float32, on any machine.
    pixels = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False).mul_(255 / 16).round_()
    images = Images(pixels=pixels.to(torch.uint8), labels=torch.from_numpy(raw.target).long())
    train, test = hold_out(images, 360, seed=0)
    return Dataset(
        name="digits", train=train, test=test, classes=tuple(str(d) for d in range(10)),
        mean=(0.3053,), std=(0.3401,), augment=Augment(padding=4, flip=False),
    )


CIFAR10_SIZE = 30_730_000


def read_cifar(path: Path) -> Images:
    """The records of one CIFAR-10 binary file: a label byte, then 3,072 bytes, channel first."""
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, 3073)
    return Images(
        pixels=torch.from_numpy(np.ascontiguousarray(records[:, 1:])).view(-1, 3, 32, 32),
        labels=torch.from_numpy(records[:, 0].astype(np.int64)),
    )


def _cifar10(data_dir: Path | None, download: bool) -> Dataset:
    roots = [data_dir] if data_dir else [Path(os.environ.get("GHOSTNETS_DATA", "."))]
    folder = next(f for root in roots for f in (root, root / "cifar-10-batches-bin") if (f / "test_batch.bin").exists())
    parts = [read_cifar(folder / f"data_batch_{k}.bin") for k in range(1, 6)]
    train = Images(pixels=torch.cat([p.pixels for p in parts]), labels=torch.cat([p.labels for p in parts if p.labels is not None]))
    classes = tuple((folder / "batches.meta.txt").read_text().split())
    return Dataset(name="cifar10", train=train, test=read_cifar(folder / "test_batch.bin"), classes=classes,
                   mean=IMAGENET_MEAN, std=IMAGENET_STD, augment=Augment(padding=4, flip=True))
