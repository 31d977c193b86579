# SPDX-License-Identifier: Apache-2.0
"""The Ghost bottleneck (Han et al., CVPR 2020, arXiv:1911.11907, section 3.2 and figure 3)."""

from __future__ import annotations

from torch import Tensor, nn

from ghostnets.blocks.conv import zero_norms_
from ghostnets.blocks.dfc_attention import AttentiveGhostModule
from ghostnets.blocks.ghost import GhostModule
from ghostnets.blocks.squeeze_excite import SqueezeExcite

SE_RATIO = 0.25  # facts B: of the authors' code, the paper does not say


class GhostBottleneck(nn.Module):
    """Two Ghost modules, between them a depthwise convolution where the stride asks for one, and a shortcut.

    Neither the depthwise convolution nor the second module nor the sum has a ReLU. Shapes: (N, in, H, W) to
    (N, out, H/stride, W/stride). Parameter names are the authors'.
    """

    def __init__(
        self,
        *,
        ghost1: nn.Module,
        conv_dw: nn.Module,
        bn_dw: nn.Module,
        se: nn.Module,
        ghost2: nn.Module,
        shortcut: nn.Module,
    ) -> None:
        super().__init__()
        self.ghost1 = ghost1
        self.conv_dw, self.bn_dw = conv_dw, bn_dw
        self.se = se
        self.ghost2 = ghost2
        self.shortcut = shortcut

    def zero_init_last(self) -> None:
        """Set the weights of the branch's last norms to zero."""
        zero_norms_(self.ghost2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn_dw(self.conv_dw(self.ghost1(x)))
        out = self.se(out)  # one name: the wide maps are forgotten as soon as they are read
        out = self.ghost2(out)
        return out.add_(self.shortcut(x))  # in place: at the first blocks the sums are large


def ghost_bottleneck(
    in_channels: int,
    mid_channels: int,
    out_channels: int,
    *,
    kernel_size: int,
    stride: int,
    se: bool,
    attention: bool,
) -> GhostBottleneck:
    """GhostNet's, and with ``attention`` in its first Ghost module GhostNetV2's."""
    expand = AttentiveGhostModule if attention else GhostModule
    strided = stride > 1
    return GhostBottleneck(
        ghost1=expand(in_channels, mid_channels),
        conv_dw=depthwise(mid_channels, kernel_size, stride) if strided else nn.Identity(),
        bn_dw=nn.BatchNorm2d(mid_channels) if strided else nn.Identity(),
        se=squeeze_excite(mid_channels) if se else nn.Identity(),
        ghost2=GhostModule(mid_channels, out_channels, relu=False),
        shortcut=shortcut(in_channels, out_channels, kernel_size, stride),
    )


def depthwise(channels: int, kernel_size: int, stride: int) -> nn.Conv2d:
    """One filter a map, without bias."""
    return nn.Conv2d(channels, channels, kernel_size, stride, (kernel_size - 1) // 2, groups=channels, bias=False)


def squeeze_excite(channels: int) -> SqueezeExcite:
    """Reduced to a quarter, rounded as widths are."""
    return SqueezeExcite(channels, make_divisible(SE_RATIO * channels))


def shortcut(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Module:
    """The identity where the shape stays, else a depthwise and a 1×1 convolution, each with a norm and no ReLU."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        depthwise(in_channels, kernel_size, stride),
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def make_divisible(channels: float, divisor: int = 4) -> int:
    """The nearest multiple of ``divisor``, at least one of them, and never less than nine tenths (facts C.2)."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest
