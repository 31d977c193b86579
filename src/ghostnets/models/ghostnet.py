# SPDX-License-Identifier: Apache-2.0
"""GhostNet (Han et al., CVPR 2020, arXiv:1911.11907), GhostNetV2 (Tang et al., NeurIPS 2022, arXiv:2211.12905) and
GhostNetV3 (Liu et al., arXiv:2404.11202): one skeleton, at any width.

Parameter names are those of the authors' PyTorch code and of timm, so published weights load unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from ghostnets.blocks.bottleneck import ghost_bottleneck, make_divisible
from ghostnets.blocks.branches import BranchedGhostBottleneck
from ghostnets.errors import UserError
from ghostnets.models.backbone import Backbone, Feature, FeatureInfo, classifier


@dataclass(frozen=True)
class Row:
    """One bottleneck at width 1."""

    kernel_size: int
    expansion: int
    out: int
    se: bool
    stride: int


# Table 1 of arXiv:1911.11907; the kernels, which it does not give, and the grouping from the authors' code (facts C.1).
STAGES = (
    (Row(3, 16, 16, se=False, stride=1),),
    (Row(3, 48, 24, se=False, stride=2),),
    (Row(3, 72, 24, se=False, stride=1),),
    (Row(5, 72, 40, se=True, stride=2),),
    (Row(5, 120, 40, se=True, stride=1),),
    (Row(3, 240, 80, se=False, stride=2),),
    (
        Row(3, 200, 80, se=False, stride=1),
        Row(3, 184, 80, se=False, stride=1),
        Row(3, 184, 80, se=False, stride=1),
        Row(3, 480, 112, se=True, stride=1),
        Row(3, 672, 112, se=True, stride=1),
    ),
    (Row(5, 672, 160, se=True, stride=2),),
    (
        Row(5, 960, 160, se=False, stride=1),
        Row(5, 960, 160, se=True, stride=1),
        Row(5, 960, 160, se=False, stride=1),
        Row(5, 960, 160, se=True, stride=1),
    ),
)
STEM, LAST, HEAD = 16, 960, 1280  # the first two grow with the width, the head does not (facts C.2)


class Bottleneck(Protocol):
    """Builds one bottleneck."""

    def __call__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int,
        se: bool,
        attention: bool,
    ) -> nn.Module: ...


@dataclass(frozen=True)
class Version:
    """What one paper changed."""

    bottleneck: Bottleneck
    attended_from: int
    """The first bottleneck whose first Ghost module has attention."""


NEVER = 10**9
V1 = Version(ghost_bottleneck, NEVER)
V2 = Version(ghost_bottleneck, 2)  # facts J.1
V3 = Version(BranchedGhostBottleneck, 2)  # facts J.2


class GhostNet(Backbone):
    """The whole network: (N, in_chans, H, W) to (N, num_classes) logits."""

    classifier_name = "classifier"

    def __init__(
        self,
        version: Version = V1,
        *,
        width: float = 1.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.2,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(num_classes=num_classes, drop_rate=drop_rate, global_pool=global_pool)
        if not width > 0:
            raise UserError(f"width {width} of a GhostNet must be above 0")
        channels = make_divisible(STEM * width)
        self.conv_stem = nn.Conv2d(in_chans, channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential()
        ends: dict[int, Feature] = {}
        reduction, number = 2, 0
        for index, rows in enumerate(STAGES):
            stage = nn.Sequential()
            for row in rows:
                out = make_divisible(row.out * width)
                stage.append(
                    version.bottleneck(
                        channels, make_divisible(row.expansion * width), out, kernel_size=row.kernel_size,
                        stride=row.stride, se=row.se, attention=number >= version.attended_from,
                    )
                )  # fmt: skip
                reduction, channels, number = reduction * row.stride, out, number + 1
            self.blocks.append(stage)
            ends[reduction] = Feature(channels, reduction, f"blocks.{index}")  # the last of each size stays
        self.feature_info = FeatureInfo(ends.values())
        self.num_features = make_divisible(LAST * width)
        self.blocks.append(nn.Sequential(LastConv(channels, self.num_features)))
        self.head_hidden_size = HEAD
        self.conv_head = nn.Conv2d(self.num_features, HEAD, 1)
        self.act2 = nn.ReLU(inplace=True)
        self.classifier = classifier(HEAD, num_classes)

    def steps(self) -> Iterator[tuple[str, nn.Module]]:
        yield from (("conv_stem", self.conv_stem), ("bn1", self.bn1), ("act1", self.act1))
        for index, stage in enumerate(self.blocks):
            yield f"blocks.{index}", stage

    def pre_logits(self, x: Tensor) -> Tensor:
        """Pooled first: the last convolution runs on one pixel (facts C.6)."""
        if self.global_pool:
            x = x.mean((2, 3), keepdim=True)
        x = self.act2(self.conv_head(x))
        return x.flatten(1) if self.global_pool else x


class LastConv(nn.Module):
    """1×1 convolution, norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv(x)))


def ghostnet(
    *,
    width: float = 1.0,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.2,
    global_pool: str = "avg",
    version: Version = V1,
) -> GhostNet:
    """A GhostNet of any width."""
    return GhostNet(
        version, width=width, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool
    )


# The widths of the papers' tables, and 1.1, the backbone of Table 8 of arXiv:1911.11907.
WIDTHS: Mapping[str, tuple[Version, tuple[float, ...]]] = {
    "ghostnet": (V1, (0.5, 1.0, 1.1, 1.3)),
    "ghostnetv2": (V2, (1.0, 1.3, 1.6)),
    "ghostnetv3": (V3, (0.5, 1.0, 1.3, 1.6)),
}
BUILDERS = {
    f"{name}_{round(width * 100):03d}": partial(ghostnet, version=version, width=width)
    for name, (version, widths) in WIDTHS.items()
    for width in widths
}
