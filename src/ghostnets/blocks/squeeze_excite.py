# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-excitation (Hu et al., CVPR 2018, arXiv:1709.01507) as the GhostNets use it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Every map weighed by a gate that all pooled maps decide: (N, C, H, W) to the same.

    The gate is ReLU6(x + 3) / 6, that of the authors' PyTorch code (their TensorFlow code clips x to 0…1; facts K.3).
    """

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.act1 = nn.ReLU(inplace=True)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * F.hardsigmoid(gate)
