# SPDX-License-Identifier: Apache-2.0
"""Folded branches against the branches, and one sum by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ghostnets.blocks.branches import (
    BranchedGhostBottleneck,
    BranchedGhostModule,
    ConvNorm,
    fold_branches,
    folded_sum,
    total,
)


def settled(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.double().eval()


@settings(max_examples=20)
@given(
    st.integers(1, 6),
    st.integers(1, 9).map(lambda n: 2 * n),
    st.integers(1, 5).map(lambda n: 2 * n),
    st.sampled_from([3, 5]),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.booleans(),
)
def test_a_folded_bottleneck_does_the_same(
    cin: int, mid: int, out: int, kernel: int, stride: int, se: bool, attention: bool
) -> None:
    block = BranchedGhostBottleneck(cin, mid, out, kernel_size=kernel, stride=stride, se=se, attention=attention)
    settled(block)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    x = torch.randn(2, cin, 7, 6, dtype=torch.float64)
    folded = fold_branches(nn.Sequential(block))
    with torch.no_grad():
        torch.testing.assert_close(folded(x), block(x))
    assert not any(isinstance(m, BranchedGhostModule | ConvNorm) for m in folded.modules())
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())


def test_a_sum_of_kernels_and_a_skip_by_hand() -> None:
    branches = [ConvNorm(2, 2, 3, groups=2), ConvNorm(2, 2, 1, groups=2), nn.BatchNorm2d(2)]
    settled(nn.ModuleList(branches))
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    by_hand = torch.zeros_like(x)
    for channel in range(2):
        plane = F.pad(x[0, channel], (1, 1, 1, 1))
        for branch in branches:
            norm = branch.bn1 if isinstance(branch, ConvNorm) else branch
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            for row in range(4):
                for column in range(5):
                    window = plane[row : row + 3, column : column + 3]
                    if isinstance(branch, ConvNorm):
                        kernel = branch.conv.weight[channel, 0]
                        value = (window * kernel).sum() if len(kernel) == 3 else window[1, 1] * kernel[0, 0]
                    else:
                        value = window[1, 1]
                    spread = torch.sqrt(norm.running_var[channel] + norm.eps)
                    normed = (value - norm.running_mean[channel]) / spread * norm.weight[channel] + norm.bias[channel]
                    by_hand[0, channel, row, column] += normed
    with torch.no_grad():
        torch.testing.assert_close(total(branches, x), by_hand)
        torch.testing.assert_close(folded_sum(branches)(x), by_hand)


@pytest.mark.parametrize("training", [True, False])
def test_folding_leaves_the_mode(training: bool) -> None:
    block = BranchedGhostBottleneck(4, 8, 4, kernel_size=3, stride=2, se=True, attention=True).train(training)
    folded = fold_branches(nn.Sequential(block).train(training))
    assert all(module.training is training for module in folded.modules())
    assert block.training is training
