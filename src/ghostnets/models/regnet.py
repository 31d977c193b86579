# SPDX-License-Identifier: Apache-2.0
"""RegNetX (Radosavovic et al., CVPR 2020, arXiv:2003.13678) and G-GhostNet on it (Han et al., IJCV 2022,
arXiv:2201.03297): one code, whose stages are whole or G-Ghost stages.

Parameter names are those of the published G-Ghost code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from ghostnets.blocks.conv import grouped_conv, plain_conv
from ghostnets.blocks.residual import Bottleneck, projection
from ghostnets.blocks.stage import BlockFactory, Ghosts, stage_of
from ghostnets.models.backbone import Backbone, Feature, FeatureInfo, classifier, init_convolutions_


@dataclass(frozen=True)
class Row:
    """One network of the family."""

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    group_width: int


# arXiv:2003.13678, figure 15, by their multiply-adds in units of 10 M; the same in the published G-Ghost code (facts I.4).
ROWS: Mapping[str, Row] = {
    "002": Row((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "004": Row((1, 2, 7, 12), (32, 64, 160, 384), 16),
    "006": Row((1, 3, 5, 7), (48, 96, 240, 528), 24),
    "008": Row((1, 3, 7, 5), (64, 128, 288, 672), 16),
    "016": Row((2, 4, 10, 2), (72, 168, 408, 912), 24),
    "032": Row((2, 6, 15, 2), (96, 192, 432, 1008), 48),
    "040": Row((2, 5, 14, 2), (80, 240, 560, 1360), 40),
    "064": Row((2, 4, 10, 1), (168, 392, 784, 1624), 56),
    "080": Row((2, 5, 15, 1), (80, 240, 720, 1920), 120),
    "120": Row((2, 5, 11, 1), (224, 448, 896, 2240), 112),
    "160": Row((2, 6, 13, 1), (256, 512, 896, 2048), 128),
    "320": Row((2, 7, 13, 1), (336, 672, 1344, 2520), 168),
}
STEM = 32
FIRST_GHOST_STAGE = 1  # the one before it, from 0, stays whole (facts I.4)
THIN_GROUPS = 0.75  # group width of thin blocks over that of whole ones


class RegNet(Backbone):
    """The whole network: (N, in_chans, H, W) to (N, num_classes) logits."""

    classifier_name = "fc"

    def __init__(
        self,
        row: Row,
        *,
        ghosts: Ghosts | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.2,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(num_classes=num_classes, drop_rate=drop_rate, global_pool=global_pool)
        self.conv1, self.bn1, self.act1 = plain_conv(in_chans, STEM, kernel_size=3, stride=2)
        channels, features = STEM, [Feature(STEM, 2, "act1")]
        for index, (depth, width) in enumerate(zip(row.depths, row.widths, strict=True)):
            thin = int(row.group_width * THIN_GROUPS)
            stage = stage_of(
                channels, width, depth, block=block_of(row.group_width), thin_block=block_of(thin), stride=2, multiple=thin,
                ghosts=ghosts if index >= FIRST_GHOST_STAGE else None,
            )  # fmt: skip
            self.add_module(f"layer{index + 1}", stage)
            channels = width
            features.append(Feature(width, 2 ** (index + 2), f"layer{index + 1}"))
        self.feature_info = FeatureInfo(features)
        self.num_features = self.head_hidden_size = channels
        self.fc = classifier(channels, num_classes)
        init_convolutions_(self)

    def steps(self) -> Iterator[tuple[str, nn.Module]]:
        yield from (("conv1", self.conv1), ("bn1", self.bn1), ("act1", self.act1))
        for index in range(1, 5):
            yield f"layer{index}", self.get_submodule(f"layer{index}")


def block_of(group_width: int) -> BlockFactory:
    """A factory of RegNet's X blocks: bottlenecks as wide inside as outside, of grouped 3×3 convolutions."""

    def build(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Module:
        return Bottleneck(
            in_channels, out_channels, out_channels, stride=stride, conv=plain_conv,
            middle=grouped_conv(out_channels // min(out_channels, group_width)),
            downsample=projection(in_channels, out_channels, stride=stride, conv=plain_conv),
        )  # fmt: skip

    return build


def regnetx(
    row: Row, *, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0, global_pool: str = "avg"
) -> RegNet:
    """RegNetX."""
    return RegNet(row, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool)


def g_ghost_regnetx(
    row: Row,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.2,
    global_pool: str = "avg",
    split: float = Ghosts.split,
    cheap_size: int = Ghosts.cheap_size,
    mix: bool = Ghosts.mix,
    form: str = Ghosts.form,
) -> RegNet:
    """G-GhostNet on RegNetX."""
    ghosts = Ghosts(split=split, cheap_size=cheap_size, mix=mix, form=form)
    return RegNet(
        row, ghosts=ghosts, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool
    )


BUILDERS = {f"regnetx_{name}": partial(regnetx, row) for name, row in ROWS.items()} | {
    f"g_ghost_regnetx_{name}": partial(g_ghost_regnetx, row) for name, row in ROWS.items()
}
