# SPDX-License-Identifier: Apache-2.0
"""Decoupled fully connected attention (Tang et al., NeurIPS 2022, arXiv:2211.12905): where to look, along each axis."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.blocks.ghost import GhostModule

REACH = 5  # pixels along each axis, at half the resolution (facts J.1)


class Attention(nn.Sequential):
    """Weighs ``made`` (N, out, H, W) at every place by what its convolutions see of ``x`` (N, in, H, W) at half its size.

    They go across channels, along rows and along columns; each has a norm, none a ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        across = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        row, column = (
            nn.Conv2d(
                out_channels, out_channels, size, padding=(size[0] // 2, size[1] // 2), groups=out_channels, bias=False
            )
            for size in ((1, REACH), (REACH, 1))
        )
        super().__init__(*(layer for conv in (across, row, column) for layer in (conv, nn.BatchNorm2d(out_channels))))

    def forward(self, x: Tensor, made: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        half = F.avg_pool2d(x, [min(2, side) for side in x.shape[-2:]])  # one pixel cannot be halved
        gate = super().forward(half).sigmoid()
        return made * F.interpolate(gate, size=made.shape[-2:], mode="nearest")


class AttentiveGhostModule(GhostModule):
    """GhostNetV2's first Ghost module of a bottleneck, of kernel 1: (N, in_channels, H, W) to (N, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.short_conv = Attention(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.short_conv(x, super().forward(x))
