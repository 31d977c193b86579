# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-adds against torch's own counter and by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ghostnets.measure.cost import layer_costs, total_macs, total_params


def counted(model: nn.Module, example: Tensor) -> int:
    """Half of torch's flops: it counts a multiply-add as two, and nothing but products of matrices."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval()(example)
    assert counter.get_total_flops() % (2 * len(example)) == 0
    return counter.get_total_flops() // (2 * len(example))


@settings(max_examples=30)
@given(
    groups=st.integers(1, 3), cin=st.integers(1, 5), cout=st.integers(1, 5), kernel=st.integers(1, 3),
    stride=st.integers(1, 2), dilation=st.integers(1, 2), bias=st.booleans(), batch=st.integers(1, 3),
)  # fmt: skip
def test_a_convolution_costs_what_torch_counts(
    groups: int, cin: int, cout: int, kernel: int, stride: int, dilation: int, bias: bool, batch: int
) -> None:
    conv = nn.Conv2d(cin * groups, cout * groups, kernel, stride, 1, dilation, groups, bias=bias)
    example = torch.randn(batch, cin * groups, 9, 7)
    (cost,) = layer_costs(conv, example)
    assert cost.macs == counted(conv, example)
    height, width = ((size + 2 - dilation * (kernel - 1) - 1) // stride + 1 for size in (9, 7))
    assert cost.macs == height * width * cout * groups * cin * kernel * kernel
    assert cost.params == groups * cout * (cin * kernel * kernel + bias)


class Tiles(nn.Module):
    """The same layer at every tile and twice over; the tiles stand in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 2, bias=False)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 1)
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        tiles = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4)
        maps = self.again(self.again(self.norm(self.conv(tiles))))
        return self.last(maps.mean((2, 3)).view(n, -1, 8)).flatten(1)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_layer_counts_every_call_for_one_image_however_the_batch_is_arranged(batch: int) -> None:
    example = torch.randn(batch, 3, 8, 8)
    costs = layer_costs(Tiles(), example)
    assert [(c.name, c.params, c.macs) for c in costs] == [
        ("conv", 112, 64 * 4 * 27),
        ("norm", 8, 0),
        ("again", 20, 2 * 64 * 4 * 4),
        ("last", 16, 2 * 16),
    ]
    assert [(c.kind, c.shape, c.activation_bytes) for c in costs] == [
        ("Conv2d", (4, 4, 4), 4 * 4 * 64),  # four tiles of 4×4, four maps, four bytes
        ("BatchNorm2d", (4, 4, 4), 4 * 4 * 64),
        ("Conv2d", (4, 4, 4), 2 * 4 * 4 * 64),
        ("Linear", (2, 2), 4 * 4),
    ]
    assert total_macs(Tiles(), example) == counted(Tiles(), example) == sum(c.macs for c in costs)
    assert total_params(Tiles()) == 112 + 20 + 20 + 16 + 8  # the norm's and the unused layer's too, buffers not


def test_shared_weights_are_counted_once_and_frozen_ones_too() -> None:
    shared = nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False)
    assert total_params(nn.Sequential(shared, shared)) == 9
    assert total_macs(nn.Sequential(shared, shared), torch.randn(1, 3, 2, 2)) == 2 * 4 * 9


def test_the_model_is_left_as_it_was_even_after_an_error() -> None:
    model = Tiles().train()
    model.norm.eval()
    state = copy.deepcopy(model.state_dict())
    layer_costs(model, torch.randn(2, 3, 8, 8))
    with pytest.raises(RuntimeError):
        layer_costs(model, torch.randn(2, 5, 8, 8))
    assert [m.training for m in model.modules()] == [m is not model.norm for m in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
