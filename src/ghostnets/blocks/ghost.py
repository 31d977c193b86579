# SPDX-License-Identifier: Apache-2.0
"""The Ghost module (Han et al., CVPR 2020, arXiv:1911.11907, section 3.1, equations 2 and 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghostnets.blocks.conv import ConvFactory, ConvTriple
from ghostnets.errors import UserError


class GhostModule(nn.Module):
    """A convolution whose first ceil(out/ratio) maps are computed, and the rest made from them.

    ``primary_conv`` computes the intrinsic maps with an ordinary convolution; ``cheap_operation`` makes
    ``ratio - 1`` ghosts of each by depthwise filters of ``cheap_size``. Intrinsic maps come first, then all
    ghosts: intrinsic i owns the ghosts ``i*(ratio-1) … i*(ratio-1)+ratio-2``. Where ``ratio`` does not divide
    ``out_channels`` the last ghosts are cut off, as in the authors' code, whose parameter names these are.

    Shapes: (N, in_channels, H, W) to (N, out_channels, H', W'), H' and W' as the convolution it stands for.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int | tuple[int, int] = 1,
        ratio: int = 2,
        cheap_size: int = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        dilation: int | tuple[int, int] = 1,
        relu: bool = True,
    ) -> None:
        """``padding`` None keeps the size at stride 1; dilation and stride act in the primary convolution only."""
        super().__init__()
        if ratio < 1:
            raise UserError(f"ratio {ratio} of a Ghost module must be at least 1")
        if cheap_size < 1 or cheap_size % 2 == 0:
            raise UserError(f"cheap kernel {cheap_size} of a Ghost module must be odd and positive")
        intrinsic = -(-out_channels // ratio)
        ghosts = intrinsic * (ratio - 1)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.ratio = ratio
        self.cheap_size = cheap_size
        self.relu = relu
        if padding is None:
            padding = _same_padding(kernel_size, dilation)
        self.primary_conv = nn.Sequential(
            nn.Conv2d(in_channels, intrinsic, kernel_size, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(intrinsic),
            *([nn.ReLU(inplace=True)] if relu else []),
        )
        self.cheap_operation = nn.Sequential(
            nn.Conv2d(intrinsic, ghosts, cheap_size, 1, cheap_size // 2, groups=intrinsic, bias=False),
            nn.BatchNorm2d(ghosts),
            *([nn.ReLU(inplace=True)] if relu else []),
        ) if ghosts else None  # fmt: skip

    @property
    def intrinsic_channels(self) -> int:
        """How many maps the primary convolution computes."""
        return -(-self.out_channels // self.ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_ghosts(self.primary_conv(x))

    def with_ghosts(self, intrinsic: Tensor) -> Tensor:
        """The maps and what is made from them, (N, out_channels, H', W')."""
        if self.cheap_operation is None:
            return intrinsic
        ghosts = self.cheap_operation(intrinsic)
        if self.intrinsic_channels * self.ratio > self.out_channels:
            ghosts = ghosts[:, : self.out_channels - self.intrinsic_channels]
        return torch.cat([intrinsic, ghosts], 1)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, ratio={self.ratio}, cheap_size={self.cheap_size}"


class ChannelGather(nn.Module):
    """Puts channels back into the order their readers expect: output channel c is input channel ``index[c]``."""

    index: Tensor
    inverse: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(channels))
        self.register_buffer("inverse", torch.arange(channels), persistent=False)
        self.register_load_state_dict_post_hook(_refresh_inverse)

    def set_(self, index: Tensor) -> None:
        """Take ``index``, a permutation of the channels."""
        self.index.copy_(index)
        self.inverse.copy_(torch.argsort(index))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _Permute.apply(x, self.index, self.inverse)  # pyright: ignore[reportReturnType]
        return x.index_select(1, self.index)


def _refresh_inverse(module: nn.Module, _keys: object) -> None:
    assert isinstance(module, ChannelGather)
    module.inverse.copy_(torch.argsort(module.index))


class _Permute(torch.autograd.Function):
    """index_select by a permutation, whose backward is again an index_select: the built-in one adds up atomically."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(inverse)
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inverse,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        return grad.index_select(1, inverse), None, None


def ghost_conv(ratio: int = 2, cheap_size: int = 3) -> ConvFactory:
    """A factory of Ghost modules with this ratio and cheap kernel, in place of ``plain_conv``."""

    def build(
        in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, relu: bool = True
    ) -> ConvTriple:
        module = GhostModule(
            in_channels, out_channels, kernel_size=kernel_size, ratio=ratio, cheap_size=cheap_size, stride=stride, relu=relu
        )  # fmt: skip
        return ConvTriple(module, nn.Identity(), nn.Identity())

    return build


def _same_padding(kernel: int | tuple[int, int], dilation: int | tuple[int, int]) -> tuple[int, int]:
    kernels = (kernel, kernel) if isinstance(kernel, int) else kernel
    dilations = (dilation, dilation) if isinstance(dilation, int) else dilation
    return (dilations[0] * (kernels[0] // 2), dilations[1] * (kernels[1] // 2))
