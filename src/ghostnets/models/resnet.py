# SPDX-License-Identifier: Apache-2.0
"""The ResNets (He et al., CVPR 2016, arXiv:1512.03385), for CIFAR (section 4.2) and for ImageNet (Table 1), plain and
Ghost: one code over a conv factory; and G-GhostNet on the latter (Han et al., IJCV 2022, arXiv:2201.03297).

Parameter names are the usual ones (``conv1, bn1, layerS.B.conv1 …``, then ``linear`` for CIFAR and ``fc`` for ImageNet),
so published weights load unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from ghostnets.blocks.conv import ConvFactory, plain_conv
from ghostnets.blocks.ghost import ghost_conv
from ghostnets.blocks.residual import BasicBlock, Bottleneck, ShortcutA, projection
from ghostnets.blocks.stage import BlockFactory, Ghosts, stage_of
from ghostnets.models.backbone import CIFAR_SIZE, Backbone, Feature, FeatureInfo, classifier, init_convolutions_

CIFAR_WIDTHS = (16, 32, 64)  # He et al., section 4.2: filters of the three stages
WIDTHS = (64, 128, 256, 512)  # He et al., Table 1


class CifarResNet(Backbone):
    """Depth 6n+2: a 3×3 stem, three stages of n basic blocks with option A shortcuts, a linear classifier.

    Shapes: (N, in_chans, H, W) to (N, num_classes) logits.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    input_size = CIFAR_SIZE
    classifier_name = "linear"

    def __init__(
        self,
        blocks: int,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        conv: ConvFactory = plain_conv,
        stem: ConvFactory = plain_conv,
    ) -> None:
        super().__init__(num_classes=num_classes, drop_rate=drop_rate, global_pool=global_pool)
        self.num_features = self.head_hidden_size = CIFAR_WIDTHS[-1]
        self.conv1, self.bn1, self.act1 = stem(in_chans, CIFAR_WIDTHS[0], kernel_size=3)
        width = CIFAR_WIDTHS[0]
        features: list[Feature] = []
        for stage, out in enumerate(CIFAR_WIDTHS, start=1):
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                same = stride == 1 and width == out
                shortcut = nn.Identity() if same else ShortcutA(width, out, stride)
                layer.append(BasicBlock(width, out, stride=stride, conv=conv, downsample=shortcut))
                width = out
            setattr(self, f"layer{stage}", layer)
            features.append(Feature(out, 2 ** (stage - 1), f"layer{stage}"))
        self.feature_info = FeatureInfo(features)
        self.linear = classifier(self.num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def steps(self) -> Iterator[tuple[str, nn.Module]]:
        for name in ("conv1", "bn1", "act1", "layer1", "layer2", "layer3"):
            yield name, self.get_submodule(name)


@dataclass(frozen=True)
class Row:
    """One network of He et al., Table 1."""

    depths: tuple[int, int, int, int]
    bottleneck: bool


ROWS: Mapping[int, Row] = {
    18: Row((2, 2, 2, 2), bottleneck=False),
    34: Row((3, 4, 6, 3), bottleneck=False),
    50: Row((3, 4, 6, 3), bottleneck=True),
    101: Row((3, 4, 23, 3), bottleneck=True),
}
EXPANSION = 4  # of a bottleneck's last convolution


class ResNet(Backbone):
    """7×7 stem and pooling, four stages, a linear classifier: (N, in_chans, H, W) to (N, num_classes) logits.

    A bottleneck's stride is in its 3×3 convolution, as in the implementations whose weights people have.
    """

    classifier_name = "fc"

    def __init__(
        self,
        row: Row,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        conv: ConvFactory = plain_conv,
        ghosts: Ghosts | None = None,
    ) -> None:
        super().__init__(num_classes=num_classes, drop_rate=drop_rate, global_pool=global_pool)
        self.conv1, self.bn1, self.act1 = plain_conv(in_chans, WIDTHS[0], kernel_size=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, features = WIDTHS[0], [Feature(WIDTHS[0], 2, "act1")]
        block = bottleneck_of(conv) if row.bottleneck else basic_of(conv)
        for index, (depth, width) in enumerate(zip(row.depths, WIDTHS, strict=True)):
            out = width * EXPANSION if row.bottleneck else width
            stride = 1 if index == 0 else 2
            multiple = EXPANSION if row.bottleneck else 1
            stage = stage_of(channels, out, depth, block=block, stride=stride, multiple=multiple, ghosts=ghosts)
            self.add_module(f"layer{index + 1}", stage)
            channels = out
            features.append(Feature(out, 2 ** (index + 2), f"layer{index + 1}"))
        self.feature_info = FeatureInfo(features)
        self.num_features = self.head_hidden_size = channels
        self.fc = classifier(channels, num_classes)
        init_convolutions_(self)

    def steps(self) -> Iterator[tuple[str, nn.Module]]:
        for name in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            yield name, self.get_submodule(name)


def basic_of(conv: ConvFactory) -> BlockFactory:
    """A factory of basic blocks."""

    def build(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Module:
        shortcut = projection(in_channels, out_channels, stride=stride, conv=conv)
        return BasicBlock(in_channels, out_channels, stride=stride, conv=conv, downsample=shortcut)

    return build


def bottleneck_of(conv: ConvFactory) -> BlockFactory:
    """A factory of bottlenecks, a quarter as wide inside."""

    def build(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Module:
        shortcut = projection(in_channels, out_channels, stride=stride, conv=conv)
        inside = out_channels // EXPANSION
        return Bottleneck(in_channels, inside, out_channels, stride=stride, conv=conv, downsample=shortcut)

    return build


def cifar_resnet(
    depth: int, *, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0, global_pool: str = "avg"
) -> CifarResNet:
    """The plain network of this depth (20, 32, 44, 56, 110)."""
    return CifarResNet(
        (depth - 2) // 6, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool
    )


def ghost_cifar_resnet(
    depth: int,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    global_pool: str = "avg",
    ratio: int = 2,
    cheap_size: int = 3,
) -> CifarResNet:
    """The same with every block convolution a Ghost module; the stem stays (papers' counts, facts D.4)."""
    return CifarResNet(
        (depth - 2) // 6, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool,
        conv=ghost_conv(ratio, cheap_size),
    )  # fmt: skip


def resnet(
    row: Row, *, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0, global_pool: str = "avg"
) -> ResNet:
    """The plain network of ImageNet."""
    return ResNet(row, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool)


def ghost_resnet(
    row: Row,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    global_pool: str = "avg",
    ratio: int = 2,
    cheap_size: int = 3,
) -> ResNet:
    """The same with every convolution but the stem a Ghost module, those of shortcuts included (facts E.2)."""
    return ResNet(
        row, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool,
        conv=ghost_conv(ratio, cheap_size),
    )  # fmt: skip


def g_ghost_resnet(
    row: Row,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    global_pool: str = "avg",
    split: float = Ghosts.split,
    cheap_size: int = Ghosts.cheap_size,
    mix: bool = Ghosts.mix,
    form: str = Ghosts.form,
) -> ResNet:
    """G-GhostNet on it: every stage of three blocks or more is a G-Ghost stage."""
    return ResNet(
        row, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool,
        ghosts=Ghosts(split=split, cheap_size=cheap_size, mix=mix, form=form),
    )  # fmt: skip


DEPTHS = (20, 32, 44, 56, 110)  # He et al., Table 6
BUILDERS = (
    {f"resnet{d}": partial(cifar_resnet, d) for d in DEPTHS}
    | {f"ghost_resnet{d}": partial(ghost_cifar_resnet, d) for d in DEPTHS}
    | {f"resnet{d}": partial(resnet, row) for d, row in ROWS.items()}
    | {f"ghost_resnet{d}": partial(ghost_resnet, row) for d, row in ROWS.items()}
    | {f"g_ghost_resnet{d}": partial(g_ghost_resnet, ROWS[d]) for d in (34, 50, 101)}
)
