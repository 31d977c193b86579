# SPDX-License-Identifier: Apache-2.0
"""Against the singular value decomposition for matrices, Adam's own formula for the rest."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from ghostnets.models.resnet import ghost_cifar_resnet
from ghostnets.upgrading.descent import Descent
from ghostnets.upgrading.flat import FlatWeights


def flat_weights() -> FlatWeights:
    return FlatWeights(ghost_cifar_resnet(8).eval(), {"conv1": "bn1"}, torch.float32)


def slope_of(weights: FlatWeights, seed: int = 0) -> Tensor:
    drawn = torch.randn(weights.value.shape, generator=torch.Generator().manual_seed(seed))
    return drawn * weights.learns


def test_a_matrix_steps_equally_far_in_all_its_directions() -> None:
    """Newton–Schulz brings every singular value of the slope near 1 and leaves its directions (K. Jordan, 2024)."""
    weights = flat_weights()
    before, slope = weights.value.clone(), slope_of(weights)
    Descent(weights).step_(slope, 0.01)
    moved = weights.matrices(before - weights.value)
    assert sorted({tuple(m.shape) for m in moved}) == [(8, 144), (16, 27), (16, 144), (16, 288), (32, 288), (32, 576)]
    for step, own in zip(moved, weights.matrices(slope), strict=True):
        left, values, right = torch.linalg.svd(own, full_matrices=False)
        along = left.T @ (step / (0.01 * 0.2 * math.sqrt(max(own.shape)))) @ right.T
        stretch = along.diagonal()
        assert 0.6 < float(stretch.min()) <= float(stretch.max()) < 1.3, values
        assert float((along - torch.diag(stretch)).abs().max()) < 0.05


def test_everything_else_is_adams() -> None:
    weights = flat_weights()
    alone = torch.nn.Parameter(weights.value.clone())
    adam = torch.optim.Adam([alone], lr=0.01, betas=(0.9, 0.99))
    descent = Descent(weights)
    for seed in range(3):
        alone.grad = slope_of(weights, seed)
        adam.step()
        descent.step_(slope_of(weights, seed), 0.01)
    rest = torch.ones_like(weights.value)
    for part in weights.matrices(rest):
        part.zero_()
    assert float((rest * weights.learns).sum()) < float(weights.learns.sum()) / 4
    torch.testing.assert_close(weights.value * rest, alone.detach() * rest)


def test_only_the_views_own_numbers_stay() -> None:
    weights = flat_weights()
    before = weights.value.clone()
    Descent(weights).step_(slope_of(weights), 0.01)
    assert torch.equal(weights.value != before, weights.learns == 1)


def test_it_goes_on_from_its_state_to_the_bit() -> None:
    weights, again = flat_weights(), flat_weights()
    again.value.copy_(weights.value)
    first, second = Descent(weights), Descent(again)
    first.step_(slope_of(weights, 0), 0.01)
    again.value.copy_(weights.value)
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # as through a file: a state is not copied
    first.step_(slope_of(weights, 1), 0.01)
    second.step_(slope_of(weights, 1), 0.01)
    assert torch.equal(again.value, weights.value)
