# SPDX-License-Identifier: Apache-2.0
"""The conv–norm–activation triple every network here is built from, as a factory that can be swapped."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ghostnets.errors import UnsupportedLayer


class ConvTriple(NamedTuple):
    """Three modules applied one after the other; a unit that does all the work alone fills the rest with Identity."""

    conv: nn.Module
    norm: nn.Module
    act: nn.Module


class ConvFactory(Protocol):
    """Builds the triple for one convolution; swapping the factory turns a plain network into a Ghost network."""

    def __call__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, relu: bool = True
    ) -> ConvTriple: ...


def plain_conv(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, relu: bool = True
) -> ConvTriple:
    """Convolution without bias and "same" padding at stride 1, batch norm, ReLU where asked."""
    return _with_norm(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False), relu=relu
    )


def biased_conv(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, relu: bool = True
) -> ConvTriple:
    """The same with a bias, which the norm behind it makes idle: some published networks have it."""
    return _with_norm(nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2), relu=relu)


def grouped_conv(groups: int) -> ConvFactory:
    """A factory of convolutions in so many groups."""

    def build(
        in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, relu: bool = True
    ) -> ConvTriple:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        return _with_norm(conv, relu=relu)

    return build


def _with_norm(conv: nn.Conv2d, *, relu: bool) -> ConvTriple:
    return ConvTriple(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True) if relu else nn.Identity())


def merged(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that does what ``conv`` and then ``norm`` (in eval mode) do.

    Raises UnsupportedLayer where the norm keeps no running statistics.
    """
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().double()
    if isinstance(norm, nn.BatchNorm2d):
        if norm.running_mean is None or norm.running_var is None:
            raise UnsupportedLayer("a BatchNorm2d without running statistics cannot be merged; track them first")
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        bias = (bias - norm.running_mean.double()) * scale
        if norm.affine:
            scale = scale * norm.weight.detach().double()
            bias = bias * norm.weight.detach().double() + norm.bias.detach().double()
        weight = weight * scale[:, None, None, None]
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


@torch.no_grad()
def set_merged_(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, weight: Tensor, bias: Tensor | None) -> None:
    """Let ``conv`` and then ``norm`` (in eval mode) do what one convolution of this weight and bias does.

    The other way round of ``merged``. An affine norm keeps its statistics, which its scale then undoes; without
    scale and shift only the statistics' mean can hold the bias.
    """
    if norm is None:
        conv.weight.copy_(weight.view_as(conv.weight))
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias)
        return
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert bias is not None
    spread = torch.sqrt(norm.running_var + norm.eps)
    own = 0 if conv.bias is None else conv.bias
    if norm.affine:
        conv.weight.copy_(weight.view_as(conv.weight))
        norm.weight.copy_(spread)
        norm.bias.copy_(bias + norm.running_mean - own)
    else:
        conv.weight.copy_(weight.view_as(conv.weight) * spread[:, None, None, None])
        norm.running_mean.copy_(own - bias * spread)


def zero_norms_(*modules: nn.Module) -> None:
    """Set the weights of all norms in ``modules`` to zero; of a Ghost module these are two."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.zeros_(part.weight)
