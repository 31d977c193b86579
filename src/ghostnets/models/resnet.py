# SPDX-License-Identifier: Apache-2.0
"""The CIFAR ResNets (He et al., CVPR 2016, section 4.2), plain and Ghost: one code over a conv factory.

Depth 6n+2: a 3×3 stem, three stages of n two-convolution blocks with 16, 32 and 64 channels, global average
pooling, a linear classifier. Shortcuts are the parameter-free option A. Parameter names are those of the usual
CIFAR implementations (``conv1, bn1, layerS.B.conv1 …, linear``), so published weights load unchanged.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.blocks.conv import ConvFactory, plain_conv
from ghostnets.blocks.ghost import ghost_conv

WIDTHS = (16, 32, 64)  # He et al., section 4.2: filters of the three stages


class ShortcutA(nn.Module):
    """Option A: every second pixel, and zeros for the channels that are new, half before and half after."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: (N, in, H, W) to (N, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, conv: ConvFactory) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(in_channels, out_channels, kernel_size=3, stride=stride)
        self.conv2, self.bn2, _ = conv(out_channels, out_channels, kernel_size=3, relu=False)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else ShortcutA(in_channels, out_channels, stride)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.act2(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """The whole network: (N, in_chans, H, W) to (N, num_classes) logits."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        blocks: int,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        conv: ConvFactory = plain_conv,
        stem: ConvFactory = plain_conv,
    ) -> None:
        super().__init__()
        self.num_features = WIDTHS[-1]
        self.conv1, self.bn1, self.act1 = stem(in_chans, WIDTHS[0], kernel_size=3)
        width = WIDTHS[0]
        for stage, out in enumerate(WIDTHS, start=1):
            layer = nn.Sequential()
            for block in range(blocks):
                layer.append(BasicBlock(width, out, stride=2 if stage > 1 and block == 0 else 1, conv=conv))
                width = out
            setattr(self, f"layer{stage}", layer)
        self.linear = nn.Linear(self.num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """The maps of the last stage, (N, 64, H/4, W/4)."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Pooled features, classified unless ``pre_logits``."""
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.linear(pooled)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def cifar_resnet(depth: int, *, num_classes: int = 10, in_chans: int = 3) -> CifarResNet:
    """The plain network of this depth (20, 32, 44, 56, 110)."""
    return CifarResNet((depth - 2) // 6, num_classes=num_classes, in_chans=in_chans)


def ghost_cifar_resnet(
    depth: int, *, num_classes: int = 10, in_chans: int = 3, ratio: int = 2, cheap_size: int = 3
) -> CifarResNet:
    """The same with every block convolution a Ghost module; the stem stays (papers' counts, facts D.4)."""
    blocks = (depth - 2) // 6
    return CifarResNet(blocks, num_classes=num_classes, in_chans=in_chans, conv=ghost_conv(ratio, cheap_size))


DEPTHS = (20, 32, 44, 56, 110)  # He et al., Table 6
BUILDERS = {f"resnet{d}": partial(cifar_resnet, d) for d in DEPTHS} | {
    f"ghost_resnet{d}": partial(ghost_cifar_resnet, d) for d in DEPTHS
}
