# SPDX-License-Identifier: Apache-2.0
"""Weights that others have published: where they lie, what they expect, and how good they are said to be.

They are fetched from the Hugging Face hub into its usual cache, or from the authors into ours; only tensors are read from
them, and they are used only where they fit the network name by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ghostnets.download import cache_dir, fetch
from ghostnets.errors import UserError, first_line
from ghostnets.models.weights import IMAGENET_MEAN, IMAGENET_STD, read_weights


@dataclass(frozen=True, kw_only=True)
class Published:
    """One checkpoint; the figures are those of its publisher, on ImageNet's 50,000 validation images."""

    architecture: str
    origin: str
    """Address of the authors' own file."""
    repository: str | None = None
    """On the Hugging Face hub, where the same weights lie as ``file``; None: only at ``origin``."""
    file: str = "model.safetensors"
    license: str = "Apache-2.0"
    in_chans: int = 3
    input_size: tuple[int, int] = (224, 224)
    """(H, W)"""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float = 0.875
    """Share of the resized image's short side."""
    interpolation: str = "bicubic"
    rescale: bool = True
    """An image of the input's size is resized and cropped like any other."""
    classifier: str = "classifier"
    top1: float
    measured: str
    """By whom."""

    @property
    def address(self) -> str:
        """Of the file that is fetched."""
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.file}" if self.repository else self.origin

    @property
    def place(self) -> Path:
        """Where a file from ``address`` that was fetched by hand is looked for first, and one from elsewhere is kept."""
        name = (
            f"{self.repository.replace('/', '--')}--{self.file}" if self.repository else self.origin.rpartition("/")[2]
        )
        return cache_dir() / "weights" / name

    @property
    def classes(self) -> tuple[str, ...]:
        """ImageNet's thousand."""
        return imagenet_classes()

    @property
    def path(self) -> Path:
        """Where the file lies; it is fetched first where it is not there yet.

        Raises UserError where that cannot be done.
        """
        return fetched(self)


AUTHORS = "https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download"
TIMM = "timm's results-imagenet.csv"
README = "the authors' README; their evaluation is PyTorch's ImageNet example"

# papers.md C.3, C.5, I.5 and J; nobody has published a checksum of the authors' files
PUBLISHED: Mapping[str, Published] = {
    "ghostnet_100.in1k": Published(
        architecture="ghostnet_100", repository="timm/ghostnet_100.in1k", top1=73.958, measured=TIMM,
        origin=f"{AUTHORS}/ghostnet_pth/ghostnet_1x.pth",
    ),
    "ghostnetv2_100.in1k": Published(
        architecture="ghostnetv2_100", repository="timm/ghostnetv2_100.in1k", top1=75.186, measured=TIMM,
        origin=f"{AUTHORS}/GhostNetV2/ck_ghostnetv2_10.pth.tar",
    ),
    "ghostnetv2_130.in1k": Published(
        architecture="ghostnetv2_130", repository="timm/ghostnetv2_130.in1k", top1=76.746, measured=TIMM,
        origin=f"{AUTHORS}/GhostNetV2/ck_ghostnetv2_13.pth.tar",
    ),
    "ghostnetv2_160.in1k": Published(
        architecture="ghostnetv2_160", repository="timm/ghostnetv2_160.in1k", top1=77.836, measured=TIMM,
        origin=f"{AUTHORS}/GhostNetV2/ck_ghostnetv2_16.pth.tar",
    ),
    "ghostnetv3_100.in1k": Published(
        architecture="ghostnetv3_100", repository="timm/ghostnetv3_100.in1k", top1=76.936, measured=TIMM,
        origin=f"{AUTHORS}/GhostNetV3/ghostnetv3-1.0.pth.tar",
    ),
    "g_ghost_regnetx_032.in1k": Published(
        architecture="g_ghost_regnetx_032", top1=77.8, measured=README, interpolation="bilinear", classifier="fc",
        origin=f"{AUTHORS}/g_ghost_regnet/g_ghost_regnet_3.2g_77.8.pth",
    ),
    "g_ghost_regnetx_040.in1k": Published(
        architecture="g_ghost_regnetx_040", top1=78.6, measured=README, interpolation="bilinear", classifier="fc",
        origin=f"{AUTHORS}/g_ghost_regnet/g_ghost_regnet_4.0g_78.6.pth",
    ),
    "g_ghost_regnetx_080.in1k": Published(
        architecture="g_ghost_regnetx_080", top1=79.0, measured=README, interpolation="bilinear", classifier="fc",
        origin=f"{AUTHORS}/g_ghost_regnet/g_ghost_regnet_8.0g_79.0.pth",
    ),
    "g_ghost_regnetx_160.in1k": Published(
        architecture="g_ghost_regnetx_160", top1=79.9, measured=README, interpolation="bilinear", classifier="fc",
        origin=f"{AUTHORS}/g_ghost_regnet/g_ghost_regnet_16.0g_79.9.pth",
    ),
}  # fmt: skip


def fetched(row: Published) -> Path:
    """The file of these weights: put into its place by hand, or from the hub's cache, or fetched now."""
    by_hand = f"get {row.address} on another machine and put it here as {row.place}"
    if row.place.is_file():
        return row.place
    try:
        if row.repository is None:
            raise ImportError
        from huggingface_hub import hf_hub_download
    except ImportError:  # plain HTTPS will do, and our own cache
        return _checked(fetch(row.address, row.place, otherwise=by_hand), by_hand)
    try:
        return Path(hf_hub_download(row.repository, row.file))  # which checks what arrives
    except Exception as error:  # the library has dozens of kinds, all of them "could not be had"
        reason = first_line(error)
        raise UserError(
            f"{row.repository} is not in the hub's cache and cannot be fetched ({reason}): {by_hand}"
        ) from error


def _checked(path: Path, by_hand: str) -> Path:
    """The file, if weights can be read from it: a page that says "log in first" also arrives as a file."""
    try:
        read_weights(path)
    except UserError as error:
        path.unlink()
        raise UserError(f"what arrived is no file of weights and was deleted ({error}): {by_hand}") from None
    return path


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the usual order (WordNet's lemmas)."""
    return tuple((Path(__file__).parent / "data" / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines())
