# SPDX-License-Identifier: Apache-2.0
"""The conv–norm–activation triple every network here is built from, as a factory that can be swapped."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import nn


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
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return ConvTriple(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True) if relu else nn.Identity())
