# SPDX-License-Identifier: Apache-2.0
"""The moving average against PyTorch's, with the warm-up of the decay written by hand."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ghostnets.training.average import Average


@pytest.fixture
def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))


def step_(network: nn.Module) -> None:
    """As training would: every weight, and the statistics of the norms."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    network(torch.randn(6, 3, 5, 5))


def floats(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_it_is_pytorchs_average_with_a_decay_that_grows(network: nn.Sequential, decay: float) -> None:
    average = Average(network, decay)
    expected = [tensor.clone() for tensor in floats(network)]
    for step in range(1, 31):
        step_(network)
        average.update_(step)
        now = min(decay, step / (step + 10))
        get_ema_multi_avg_fn(now)(expected, floats(network), step)
        for own, wanted in zip(floats(average.model), expected, strict=True):
            torch.testing.assert_close(own, wanted)


def test_its_warm_up_is_timms_with_power_1_and_gamma_10(network: nn.Sequential) -> None:
    timm = pytest.importorskip("timm.utils", reason="timm is not installed")
    reference = timm.ModelEmaV3(network, decay=0.9, use_warmup=True, warmup_gamma=10, warmup_power=1, foreach=False)
    average = Average(network, 0.9)
    for step in range(1, 120):
        step_(network)
        average.update_(step)
        reference.update(network, step=step + 1)  # timm's second update is its first with a decay
    for own, wanted in zip(floats(average.model), floats(reference.module), strict=True):
        torch.testing.assert_close(own, wanted)


def test_numbers_by_hand() -> None:
    weight = nn.Linear(1, 1, bias=False)
    weight.weight.data.fill_(11.0)
    average = Average(weight, 0.15)
    weight.weight.data.fill_(0.0)
    average.update_(1)
    assert float(average.model.get_parameter("weight")) == pytest.approx(1.0)  # 1/11 is left
    average.update_(2)
    assert float(average.model.get_parameter("weight")) == pytest.approx(0.15)  # of 1/6 and 0.15 the less


def test_counters_are_copied_not_averaged(network: nn.Sequential) -> None:
    average = Average(network, 0.99)
    for step in range(1, 6):
        step_(network)
        average.update_(step)
    counter = average.model.state_dict()["1.num_batches_tracked"]
    assert counter.dtype == torch.long
    assert int(counter) == 5


def test_the_network_is_untouched_and_the_average_does_not_learn(network: nn.Sequential) -> None:
    before = copy.deepcopy(network.state_dict())
    average = Average(network, 0.9)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.model.state_dict().items())
    step_(network)
    after = copy.deepcopy(network.state_dict())
    average.update_(3)
    assert all(torch.equal(tensor, after[name]) for name, tensor in network.state_dict().items())
    both = itertools.product(average.model.parameters(), network.parameters())
    assert not any(a.data_ptr() == b.data_ptr() for a, b in both)


def test_a_weight_with_two_names_moves_once() -> None:
    """A shared layer stands in the state under each of its names."""
    layer = nn.Linear(2, 2)
    network = nn.Sequential(layer, nn.ReLU(), layer)
    average = Average(network, 0.5)
    start = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    average.update_(100)
    torch.testing.assert_close(average.model.get_parameter("0.weight").detach(), start + 0.5)
    assert average.model.get_parameter("0.weight") is average.model.get_parameter("2.weight")


class Counting(nn.Module):
    """As users write it: every pass puts another tensor where the last one was."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.get_buffer("seen") + len(x)
        return x


def test_a_tensor_that_is_put_in_anothers_place_is_followed() -> None:
    network = Counting()
    average = Average(network, 0.5)
    network(torch.zeros(8))
    average.update_(100)
    assert float(average.model.get_buffer("seen")) == 4
    network(torch.zeros(8))
    average.update_(101)
    assert float(average.model.get_buffer("seen")) == 10
