# SPDX-License-Identifier: Apache-2.0
"""VGG-16 for CIFAR-10 (Simonyan & Zisserman, arXiv:1409.1556, column D, with norms and one hidden layer), plain and
Ghost: one code over a conv factory.

Table 3 of arXiv:1911.11907 is met by exactly this form: all 13 convolutions replaced, a hidden layer of 512 (facts D.4).
Parameter names of ``features`` are torchvision's and timm's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from ghostnets.blocks.conv import ConvFactory, biased_conv
from ghostnets.blocks.ghost import ghost_conv
from ghostnets.models.backbone import CIFAR_SIZE, Backbone, Feature, FeatureInfo, classifier, init_convolutions_

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # arXiv:1409.1556, Table 1, D
HIDDEN = 512


class VGG(Backbone):
    """The whole network: (N, in_chans, H, W) of at least 32×32 pixels to (N, num_classes) logits."""

    input_size = CIFAR_SIZE
    classifier_name = "classifier"
    checkpointed = ()  # it has no blocks

    def __init__(
        self,
        conv: ConvFactory,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(num_classes=num_classes, drop_rate=drop_rate, global_pool=global_pool)
        layers: list[nn.Module] = []
        features: list[Feature] = []
        channels = in_chans
        for stage, widths in enumerate(VGG16):
            for width in widths:
                layers += conv(channels, width, kernel_size=3)
                channels = width
            features.append(Feature(channels, 2**stage, f"features.{len(layers) - 1}"))
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.feature_info = FeatureInfo(features)
        self.num_features, self.head_hidden_size = channels, HIDDEN
        self.hidden = nn.Sequential(nn.Linear(channels, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(inplace=True))
        self.classifier = classifier(HIDDEN, num_classes)
        init_convolutions_(self)

    def steps(self) -> Iterator[tuple[str, nn.Module]]:
        for index, layer in enumerate(self.features):
            yield f"features.{index}", layer

    def pre_logits(self, x: Tensor) -> Tensor:
        """The hidden layer, of pooled maps; the maps themselves where nothing is pooled."""
        return self.hidden(self.pooled(x)) if self.global_pool else x


def vgg16(*, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0, global_pool: str = "avg") -> VGG:
    """The plain network."""
    return VGG(biased_conv, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool)


def ghost_vgg16(
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    global_pool: str = "avg",
    ratio: int = 2,
    cheap_size: int = 3,
) -> VGG:
    """The same with every convolution a Ghost module."""
    conv = ghost_conv(ratio, cheap_size)
    return VGG(conv, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, global_pool=global_pool)


BUILDERS = {"vgg16": partial(vgg16), "ghost_vgg16": partial(ghost_vgg16)}
