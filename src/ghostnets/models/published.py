# SPDX-License-Identifier: Apache-2.0
"""Weights that others have published: where they lie, what they expect, and how good they are said to be.

They are fetched from the Hugging Face hub into its usual cache, and only tensors are read from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ghostnets.errors import MissingExtra, UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Published:
    """One checkpoint; the figures are those of its publisher, on ImageNet's 50,000 validation images."""

    architecture: str
    repository: str
    """On the hub."""
    file: str = "model.safetensors"
    origin: str
    """The authors' own file, which holds the same weights."""
    license: str = "Apache-2.0"
    in_chans: int = 3
    input_size: tuple[int, int] = (224, 224)
    """(H, W)"""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float = 0.875
    """Share of the resized image's short side."""
    interpolation: str = "bicubic"
    classifier: str = "classifier"
    top1: float
    measured: str
    """By whom."""

    @property
    def address(self) -> str:
        """Of the file."""
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.file}"

    @property
    def classes(self) -> tuple[str, ...]:
        """ImageNet's thousand."""
        return imagenet_classes()

    @property
    def path(self) -> Path:
        """Where the file lies, in the hub's cache; it is fetched first where it is not there yet.

        Raises UserError where that cannot be done, MissingExtra without huggingface_hub.
        """
        return fetched(self)


AUTHORS = "https://github.com/huawei-noah/Efficient-AI-Backbones/releases/download"
TIMM = "timm's results-imagenet.csv"

# papers.md C.3, C.5 and J
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
}  # fmt: skip


def fetched(row: Published) -> Path:
    """The file of these weights in the hub's cache, whole: the hub's own library checks it as it arrives."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingExtra("published weights", "hub") from None
    try:
        return Path(hf_hub_download(row.repository, row.file))
    except Exception as error:  # the library has dozens of kinds, all of them "could not be had"
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{row.repository} is not in the cache and cannot be fetched ({reason}): get {row.address} on another machine "
            f"and give the file as checkpoint_path"
        ) from error


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the usual order (WordNet's lemmas)."""
    return tuple((Path(__file__).parent / "data" / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines())
