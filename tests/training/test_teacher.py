# SPDX-License-Identifier: Apache-2.0
"""What a teacher says, against its network asked directly, and how often that is asked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ghostnets.training.teacher import Teacher


class Counted(nn.Module):
    """Counts its calls, in a list that copies of it share."""

    calls: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls.append(len(x))
        return self.linear(self.norm(x))


@pytest.fixture
def network() -> Counted:
    Counted.calls = []
    return Counted()


def images(seed: int) -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("remembers", [False, True])
def test_it_says_what_its_network_says_in_inference(network: Counted, *, remembers: bool) -> None:
    before = copy.deepcopy(network.state_dict())
    teacher = Teacher(network.train(), remembers=remembers, features=True)
    for _ in range(2):
        for k in range(3):
            logits, read = teacher(images(k), k)
            wanted = copy.deepcopy(network).eval()
            assert torch.equal(read, wanted.norm(images(k)))
            assert torch.equal(logits, wanted(images(k)))
            assert not logits.requires_grad
            assert not read.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(("remembers", "asked"), [(False, 6), (True, 2)])
def test_it_is_asked_once_a_sight(network: Counted, asked: int, *, remembers: bool) -> None:
    teacher = Teacher(network, remembers=remembers, features=False)
    for _ in range(3):
        for sight in ((0, 1, 1.0, True), (0, 1, 0.5, True)):
            teacher(images(0), sight)
    assert len(Counted.calls) == asked


def test_features_that_nobody_compares_are_not_kept(network: Counted) -> None:
    teacher = Teacher(network, remembers=True, features=False)
    for _ in range(2):
        assert teacher(images(0), 0)[1].shape == (5, 0)
