# SPDX-License-Identifier: Apache-2.0
"""The two blocks of the residual networks (He et al., CVPR 2016, arXiv:1512.03385, figure 5), over a conv factory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.blocks.conv import ConvFactory, zero_norms_


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: (N, in, H, W) to (N, out, H/stride, W/stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, conv: ConvFactory, downsample: nn.Module
    ) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(in_channels, out_channels, kernel_size=3, stride=stride)
        self.conv2, self.bn2, _ = conv(out_channels, out_channels, kernel_size=3, relu=False)
        self.downsample = downsample
        self.act2 = nn.ReLU(inplace=True)

    def zero_init_last(self) -> None:
        """Set the weights of the branch's last norms to zero, but not where the shortcut pads channels: their zeros and
        the branch's would be all that the ReLU sees, and its gradient there is zero for good.
        """
        if not isinstance(self.downsample, ShortcutA):
            zero_norms_(self.conv2, self.bn2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.act2(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 with the stride, 1×1, and a shortcut: (N, in, H, W) to (N, out, H/stride, W/stride).

    ``middle`` builds the 3×3 convolution where it is another kind than the others, such as a grouped one.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        stride: int,
        conv: ConvFactory,
        downsample: nn.Module,
        middle: ConvFactory | None = None,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(in_channels, mid_channels, kernel_size=1)
        self.conv2, self.bn2, self.act2 = (middle or conv)(mid_channels, mid_channels, kernel_size=3, stride=stride)
        self.conv3, self.bn3, _ = conv(mid_channels, out_channels, kernel_size=1, relu=False)
        self.downsample = downsample
        self.act3 = nn.ReLU(inplace=True)

    def zero_init_last(self) -> None:
        """Set the weights of the branch's last norms to zero."""
        zero_norms_(self.conv3, self.bn3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.act3(out + self.downsample(x))


class ShortcutA(nn.Module):
    """Option A: every second pixel, and zeros for the channels that are new, half before and half after."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def projection(in_channels: int, out_channels: int, *, stride: int, conv: ConvFactory) -> nn.Module:
    """The shortcut: a 1×1 convolution where the shape changes (option B), else the identity."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    layer, norm, _ = conv(in_channels, out_channels, kernel_size=1, stride=stride, relu=False)
    return nn.Sequential(layer, norm)
