# SPDX-License-Identifier: Apache-2.0
"""Branches that train side by side and fold into one convolution (GhostNetV3: Liu et al., arXiv:2404.11202)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.blocks.bottleneck import GhostBottleneck, shortcut, squeeze_excite
from ghostnets.blocks.conv import merged, zero_norms_
from ghostnets.blocks.dfc_attention import Attention
from ghostnets.blocks.replace import replace_

BRANCHES = 3  # facts J.2


class ConvNorm(nn.Module):
    """A convolution without bias and its norm."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv(x))


class BranchedGhostModule(nn.Module):
    """A Ghost module of ratio 2 and primary kernel 1, each of its convolutions a sum of branches while it trains.

    Shapes: (N, in_channels, H, W) to (N, out_channels, H, W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, relu: bool, attention: bool, cheap_size: int = 3
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        count = -(-out_channels // 2)
        self.primary_rpr_conv = nn.ModuleList([ConvNorm(in_channels, count, 1) for _ in range(BRANCHES)])
        self.primary_activation = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.cheap_rpr_skip = nn.BatchNorm2d(count)
        self.cheap_rpr_conv = nn.ModuleList([ConvNorm(count, count, cheap_size, groups=count) for _ in range(BRANCHES)])
        self.cheap_rpr_scale = ConvNorm(count, count, 1, groups=count)
        self.cheap_activation = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.short_conv = Attention(in_channels, out_channels) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        intrinsic = self.primary_activation(total(self.primary_rpr_conv, x))
        ghosts = self.cheap_activation(total(self._cheap(), intrinsic))
        made = torch.cat([intrinsic, ghosts], 1)[:, : self.out_channels]
        return made if self.short_conv is None else self.short_conv(x, made)

    def _cheap(self) -> tuple[nn.Module, ...]:
        return (self.cheap_rpr_scale, self.cheap_rpr_skip, *self.cheap_rpr_conv)

    def folded(self) -> FoldedGhostModule:
        """The same in evaluation, with one convolution instead of every sum."""
        return FoldedGhostModule(
            primary_conv=nn.Sequential(folded_sum(self.primary_rpr_conv), copy.deepcopy(self.primary_activation)),
            cheap_operation=nn.Sequential(folded_sum(self._cheap()), copy.deepcopy(self.cheap_activation)),
            short_conv=copy.deepcopy(self.short_conv),
            out_channels=self.out_channels,
        )


class FoldedGhostModule(nn.Module):
    """What a branched Ghost module becomes: two convolutions with biases."""

    def __init__(
        self,
        *,
        primary_conv: nn.Sequential,
        cheap_operation: nn.Sequential,
        short_conv: Attention | None,
        out_channels: int,
    ) -> None:
        super().__init__()
        self.primary_conv = primary_conv
        self.cheap_operation = cheap_operation
        self.short_conv = short_conv
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        intrinsic = self.primary_conv(x)
        made = torch.cat([intrinsic, self.cheap_operation(intrinsic)], 1)[:, : self.out_channels]
        return made if self.short_conv is None else self.short_conv(x, made)


class BranchedGhostBottleneck(nn.Module):
    """A Ghost bottleneck of branched parts: (N, in, H, W) to (N, out, H/stride, W/stride)."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int,
        se: bool,
        attention: bool,
    ) -> None:
        super().__init__()
        self.ghost1 = BranchedGhostModule(in_channels, mid_channels, relu=True, attention=attention)
        own = {"stride": stride, "groups": mid_channels}
        kernels = [kernel_size] * BRANCHES if stride > 1 else []
        self.dw_rpr_conv = nn.ModuleList([ConvNorm(mid_channels, mid_channels, k, **own) for k in kernels])
        self.dw_rpr_scale = ConvNorm(mid_channels, mid_channels, 1, **own) if stride > 1 else nn.Identity()
        self.se = squeeze_excite(mid_channels) if se else nn.Identity()
        self.ghost2 = BranchedGhostModule(mid_channels, out_channels, relu=False, attention=False)
        self.shortcut = shortcut(in_channels, out_channels, kernel_size, stride)

    def zero_init_last(self) -> None:
        """Set the weights of the branch's last norms to zero."""
        zero_norms_(self.ghost2)

    def forward(self, x: Tensor) -> Tensor:
        out = total((self.dw_rpr_scale, *self.dw_rpr_conv), self.ghost1(x))
        out = self.se(out)
        out = self.ghost2(out)
        return out.add_(self.shortcut(x))  # in place: at the first blocks the sums are large

    def folded(self) -> GhostBottleneck:
        """The same in evaluation, every sum one convolution."""
        strided = len(self.dw_rpr_conv) > 0
        return GhostBottleneck(
            ghost1=self.ghost1.folded(),
            conv_dw=folded_sum((self.dw_rpr_scale, *self.dw_rpr_conv)) if strided else nn.Identity(),
            bn_dw=nn.Identity(),
            se=copy.deepcopy(self.se),
            ghost2=self.ghost2.folded(),
            shortcut=copy.deepcopy(self.shortcut),
        )


def fold_branches(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which every branched part is folded: in evaluation it computes the same."""
    result = copy.deepcopy(model)
    for module in list(result.modules()):
        if isinstance(module, BranchedGhostBottleneck):
            replace_(result, module, module.folded().train(module.training))
    return result


def total(branches: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The sum of what all branches make of ``x``."""
    first, *others = (branch(x) for branch in branches)
    for other in others:
        first = first + other
    return first


@torch.no_grad()
def folded_sum(branches: Iterable[nn.Module]) -> nn.Conv2d:
    """One convolution with bias for parallel ones with norms, 1×1 kernels and bare norms (skips) among them.

    Each kernel is scaled by its norm and padded to the largest; a skip is the kernel that is 1 at its centre.
    """
    parts = tuple(branches)
    convs = [part for part in parts if isinstance(part, ConvNorm)]
    largest = max((part.conv for part in convs), key=lambda conv: conv.kernel_size)
    size, stride = largest.kernel_size[0], largest.stride[0]
    kernels, biases = zip(*(_merged(part, largest) for part in parts), strict=True)
    result = nn.Conv2d(largest.in_channels, largest.out_channels, size, stride, size // 2, groups=largest.groups).to(
        largest.weight.device, largest.weight.dtype
    )
    result.weight.copy_(torch.stack([_padded(kernel, size).double() for kernel in kernels]).sum(0))
    assert result.bias is not None
    result.bias.copy_(torch.stack([bias.double() for bias in biases]).sum(0))
    return result


def _merged(branch: nn.Module, like: nn.Conv2d) -> tuple[Tensor, Tensor]:
    if isinstance(branch, ConvNorm):
        return merged(branch.conv, branch.bn1)
    identity = nn.Conv2d(like.in_channels, like.out_channels, 1, groups=like.groups, bias=False)
    identity = identity.to(like.weight.device, like.weight.dtype)
    nn.init.ones_(identity.weight)  # one weight a map: a skip stands beside depthwise convolutions only
    return merged(identity, branch)


def _padded(kernel: Tensor, size: int) -> Tensor:
    border = (size - kernel.shape[-1]) // 2
    return F.pad(kernel, (border,) * 4)
