# SPDX-License-Identifier: Apache-2.0
"""What a classifier reads, against the network's own steps up to it, and that looking changes nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.models.backbone import Backbone
from ghostnets.models.catalog import create_model
from ghostnets.training.pupil import Pupil, Watched, head_of, widths

NETWORKS = {"ghostnet_050": (1280, 32), "resnet20": (64, 32)}
"""Channels that the classifier reads, and pixels along a side."""


def built(name: str) -> Backbone:
    network = create_model(name, num_classes=7)
    assert isinstance(network, Backbone)
    return network


def hooks(*networks: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for network in networks for module in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_watched_gives_what_the_classifier_reads(name: str) -> None:
    network = built(name).eval()
    x = torch.randn(2, 3, NETWORKS[name][1], NETWORKS[name][1])
    with torch.no_grad():
        expected = network(x)
        read_by_steps = network.forward_head(network.forward_features(x), pre_logits=True)
        logits, read = Watched(network)(x)
    assert torch.equal(logits, expected)
    assert torch.equal(read, read_by_steps)
    assert read.shape == (2, NETWORKS[name][0])
    torch.testing.assert_close(head_of(network)(read), logits)


def test_the_gradient_goes_through_what_is_read() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    _, read = Watched(network)(torch.ones(1, 3))
    read.sum().backward()
    assert network[0].weight.grad is not None
    assert network[2].weight.grad is None


def test_timms_classifier_is_read_too() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    network = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        _, read = Watched(network)(x)
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
    torch.testing.assert_close(read, expected.flatten(1))


# --- which layer is the classifier


class Named(nn.Module):
    """Its classifier is not its last layer."""

    def __init__(self, *, classifies: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2) if classifies else nn.Identity()
        self.stem = nn.Linear(3, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks_name_their_classifier(name: str) -> None:
    network = built(name)
    assert head_of(network) is network.get_classifier()


def test_the_classifier_is_what_is_named_else_the_last_linear_layer_or_convolution() -> None:
    named, unnamed = Named(), Named(classifies=False)
    assert head_of(named) is named.fc
    assert head_of(unnamed) is unnamed.stem
    linear = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3, 2), nn.Softmax(1))
    assert head_of(linear) is linear[2]
    convolution = nn.Sequential(nn.Linear(3, 3), nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert head_of(convolution) is convolution[1]


def test_a_network_without_a_classifier_is_refused() -> None:
    with pytest.raises(UserError, match="Sequential has no layer that could be its classifier"):
        head_of(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))


class Idle(nn.Module):
    """Its last layer is for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.side = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_a_classifier_that_nothing_goes_through_is_refused() -> None:
    with pytest.raises(UserError, match=r"Idle does not use what looks like its classifier, side: .* get_classifier"):
        Watched(Idle())(torch.ones(1, 3))


# --- the pupil


def small(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def test_without_a_comparison_the_pupil_is_the_network() -> None:
    network = small(5).eval()
    pupil = Pupil(network, None).eval()
    x = torch.randn(2, 3, 6, 6)
    logits, read = pupil(x)
    assert read is None
    assert torch.equal(logits, network(x))
    assert hooks(network) == 0
    assert list(pupil.state_dict()) == [f"network.{name}" for name in network.state_dict()]
    assert sum(1 for _ in pupil.parameters()) == sum(1 for _ in network.parameters())


def test_equal_widths_are_compared_as_they_are() -> None:
    network = small(5)
    pupil = Pupil(network, (5, 5))
    x = torch.randn(2, 3, 6, 6)
    _, read = pupil(x)
    assert torch.equal(read, network[:4](x))  # pyright: ignore[reportIndexIssue]
    assert list(pupil.state_dict()) == [f"network.{name}" for name in network.state_dict()]


def test_a_layer_that_learns_stands_between_different_widths() -> None:
    network = small(5)
    pupil = Pupil(network, (5, 9))
    x = torch.randn(2, 3, 6, 6)
    logits, read = pupil(x)
    adapter = pupil.adapter
    assert isinstance(adapter, nn.Linear)
    torch.testing.assert_close(logits, network(x))
    torch.testing.assert_close(read, network[:4](x) @ adapter.weight.T + adapter.bias)  # pyright: ignore[reportIndexIssue]
    assert read.shape == (2, 9)
    assert list(pupil.state_dict()) == [
        *(f"network.{name}" for name in network.state_dict()), "adapter.weight", "adapter.bias",
    ]  # fmt: skip
    names = [name for name, _ in pupil.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == 4 + 2
    read.sum().backward()
    assert adapter.weight.grad is not None


def test_a_pupils_state_comes_back_and_its_modes_reach_the_network() -> None:
    pupil, other = (Pupil(small(5), (5, 9)) for _ in range(2))
    other.load_state_dict(pupil.state_dict())
    x = torch.randn(2, 3, 6, 6)
    assert all(torch.equal(a, b) for a, b in zip(pupil(x), other(x), strict=True))
    pupil.eval()
    assert not any(module.training for module in pupil.network.modules())


# --- how wide both are


class Modes(OrderedDict[str, bool]):
    """Every module's mode by its name."""

    @classmethod
    def of(cls, network: nn.Module) -> Modes:
        return cls((name, module.training) for name, module in network.named_modules())


def test_widths_are_what_both_classifiers_read_and_looking_changes_nothing() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1)
    )
    network[1].eval()
    teacher = Watched(built("resnet20"))
    before = copy.deepcopy(network.state_dict()), copy.deepcopy(teacher.state_dict())
    modes = Modes.of(network), Modes.of(teacher)
    random = torch.get_rng_state()
    assert widths(network, teacher, (3, 32, 32)) == (6, 64)
    assert (hooks(network), hooks(teacher)) == (0, 1)
    assert (Modes.of(network), Modes.of(teacher)) == modes
    for state, module in zip(before, (network, teacher), strict=True):
        assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in state.items())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_hook_goes_also_where_the_network_does_not_take_the_images() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(RuntimeError):
        widths(network, Watched(small(5)), (3, 32, 32))
    assert hooks(network) == 0
    assert network.training
