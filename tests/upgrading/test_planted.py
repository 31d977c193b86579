# SPDX-License-Identifier: Apache-2.0
"""The central proof: a network whose layers really are Ghost modules, written as plain convolutions and shuffled,
is found out, and converts with nothing lost.

What can be planted exactly: behind a ReLU a ghost that is a positive multiple of its source; without one, a
multiple of any sign with a shift of its own; and a d×d filter of a map that a 1×1 kernel makes without a shift,
which is a d×d convolution of the input up to and including the borders.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ghostnets.blocks.ghost import GhostModule
from ghostnets.measure.cost import total_macs
from ghostnets.records import Budget, Pairing
from ghostnets.upgrading.convert import convert
from ghostnets.upgrading.plan import plan

WIDE, INNER = 12, 10  # 10 is divided neither by 3 nor by 4

Ordering = Literal["own", "agreed"]


class Block(nn.Module):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(WIDE, INNER, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(INNER)
        self.conv2 = nn.Conv2d(INNER, WIDE, kernel, padding=kernel // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDE)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


class Residual(nn.Module):
    def __init__(self, kernel: int, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDE, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(kernel) for _ in range(blocks)])
        self.linear = nn.Linear(WIDE, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


@torch.no_grad()
def plant_(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, ratio: int, cheap: int, x: Tensor, *, relu: bool
) -> tuple[dict[int, int], Tensor]:
    """Make ``conv`` and ``norm`` do what a random Ghost module does, its maps in its own order.

    Returns ghost → source, and what comes out of the input ``x``, on which the maps are balanced.
    """
    module = GhostModule(
        conv.in_channels, conv.out_channels, kernel_size=1 if cheap > 1 else conv.kernel_size[0], ratio=ratio,
        cheap_size=cheap, relu=relu,
    ).eval()  # fmt: skip
    made, bias = written_out(module, conv, x, relu=relu)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.5, 2)
    norm.weight.uniform_(0.5, 1.5)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    conv.weight.copy_(made / scale[:, None, None, None])
    norm.bias.copy_(bias + norm.running_mean * scale)
    plain = norm.eval()(conv(x))
    torch.testing.assert_close(plain.relu() if relu else plain, module(x), rtol=1e-4, atol=1e-5)  # planted, indeed
    m = module.intrinsic_channels
    return {ghost: (ghost - m) // (ratio - 1) for ghost in range(m, conv.out_channels)}, module(x)


def written_out(module: GhostModule, conv: nn.Conv2d, x: Tensor, *, relu: bool) -> tuple[Tensor, Tensor]:
    """The weights of the plain convolution, and its biases; draws what of the module must be special."""
    primary, first = module.primary_conv[0], module.primary_conv[1]
    assert module.cheap_operation is not None
    cheap, second = module.cheap_operation[0], module.cheap_operation[1]
    assert isinstance(primary, nn.Conv2d)
    assert isinstance(cheap, nn.Conv2d)
    assert isinstance(first, nn.BatchNorm2d)
    assert isinstance(second, nn.BatchNorm2d)
    m, n, d = module.intrinsic_channels, module.out_channels, cheap.kernel_size[0]
    primary.weight.normal_()
    spread, level = torch.std_mean(primary(x), (0, 2, 3))
    primary.weight.div_(spread[:, None, None, None])
    for norm in (first, second):
        norm.weight.fill_((1 + norm.eps) ** 0.5)  # statistics 0 and 1: the norm then does nothing but add its bias
    if d == 1:
        first.bias.uniform_(-0.4, 0.4).sub_(level / spread)  # no map that is nearly always cut off
    if not relu:
        second.bias.normal_(0, 0.3)
    cheap.weight.normal_()
    if d == 1:
        sign = 1 if relu else torch.randn_like(cheap.weight).sign()
        cheap.weight.uniform_(0.3, 2).mul_(sign)
    weight, bias = torch.zeros_like(conv.weight), torch.zeros(n)
    middle = slice(conv.kernel_size[0] // 2, conv.kernel_size[0] // 2 + 1) if d > 1 else slice(None)
    weight[:m, :, middle, middle] = primary.weight
    bias[:m] = first.bias
    for ghost in range(n - m):
        source = ghost // (module.ratio - 1)
        if d == 1:
            weight[m + ghost] = cheap.weight[ghost, 0, 0, 0] * weight[source]
        else:
            weight[m + ghost] = primary.weight[source] * cheap.weight[ghost, 0][None]
        bias[m + ghost] = cheap.weight[ghost, 0].sum() * first.bias[source] + second.bias[ghost]
    return weight, bias


@torch.no_grad()
def shuffle_(model: Residual) -> dict[str, list[int]]:
    """Every channel to another place, by hand; where each of them went, for every convolution."""
    stream = torch.randperm(WIDE)
    went = {}
    for tensor in (model.stem.weight, model.stem.bias):
        assert tensor is not None
        tensor.copy_(tensor[stream])
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        inner = torch.randperm(INNER)
        block.conv1.weight.copy_(block.conv1.weight[inner][:, stream])
        block.conv2.weight.copy_(block.conv2.weight[stream][:, inner])
        for norm, order in ((block.bn1, inner), (block.bn2, stream)):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert tensor is not None
                tensor.copy_(tensor[order])
        went[f"blocks.{number}.conv1"] = torch.argsort(inner).tolist()
        went[f"blocks.{number}.conv2"] = torch.argsort(stream).tolist()
    model.linear.weight.copy_(model.linear.weight[:, stream])
    return went


def planted(ratio: int, cheap: int) -> tuple[Residual, dict[str, dict[int, int]]]:
    """The network, and for each of its sites ghost → source."""
    model = Residual(max(3, cheap)).eval()
    example = torch.randn(40, 3, 9, 8)
    pairs = {}
    x = torch.relu(model.stem(example))
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        pairs[f"blocks.{number}.conv1"], inside = plant_(block.conv1, block.bn1, ratio, 1, x, relu=True)
        pairs[f"blocks.{number}.conv2"], out = plant_(block.conv2, block.bn2, ratio, cheap, inside, relu=False)
        x = torch.relu(x + out)
    with torch.no_grad():
        before = model(example)
        went = shuffle_(model)
        torch.testing.assert_close(model(example), before, rtol=1e-4, atol=1e-4)
    return model, {
        name: {went[name][g]: went[name][s] for g, s in found.items()} for name, found in pairs.items()
    }  # fmt: skip


def families(pairs: dict[int, int]) -> set[frozenset[int]]:
    """Each source with its ghosts: where a ghost is a multiple of its source, either may make the other."""
    return {frozenset({source} | {g for g, s in pairs.items() if s == source}) for source in pairs.values()}


def made_by(pairing: Pairing) -> dict[int, int]:
    return dict(zip(pairing.order[len(pairing.intrinsic) :], pairing.source, strict=True))


@pytest.mark.parametrize("order", ["own", "agreed"])
@pytest.mark.parametrize(
    ("ratio", "cheap", "kernel"), [(2, 1, 1), (2, 1, 3), (2, 3, 3), (3, 3, 3), (2, 3, 5), (2, 5, 5)]
)
def test_planted_ghosts_are_found_and_nothing_is_lost(order: Ordering, ratio: int, cheap: int, kernel: int) -> None:
    model, pairs = planted(ratio, cheap)
    images = torch.randn(160, 3, 9, 8)
    found = plan(model, images, Budget(ratio=ratio, kernel=kernel), order=order)
    converted = convert(model, found, images, rows=6000)
    fresh = torch.cat([images, torch.randn(300, 3, 9, 8)])
    with torch.no_grad():
        expected, logits = model(fresh), converted.model(fresh)
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-5
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    for pairing in converted.pairings:
        assert families(made_by(pairing)) == families(pairs[pairing.name]), pairing.name
        if cheap > 1 and pairing.name.endswith("conv2"):  # a d×d filter has no d×d inverse: the roles are certain
            assert made_by(pairing) == pairs[pairing.name]
        assert pairing.primary_error < 1e-8
        assert pairing.ghost_error < 1e-8
    for decision in found.decisions:
        assert decision.divergence is not None
        assert abs(decision.divergence) < 1e-5


def test_the_plan_spends_its_budget_on_the_sites_that_are_ghosts_already() -> None:
    model, _ = planted(2, 3)
    for block in list(model.blocks)[1:]:
        assert isinstance(block, Block)
        nn.init.normal_(block.conv1.weight, std=0.1)
    images = torch.randn(160, 3, 9, 8)
    whole = total_macs(model, images[:1])
    everything = plan(model, images, Budget(ratio=2))
    affordable = sum(
        d.macs_before - d.macs_after for d in everything.decisions if d.name[7:] not in ("1.conv1", "2.conv1")
    )
    gathered = sum(d.gathered for d in everything.decisions)
    ghost = plan(model, images, Budget(macs=float(whole - affordable + gathered)))
    assert {d.name for d in ghost.decisions if d.decision == "keep"} == {"blocks.1.conv1", "blocks.2.conv1"}
    with torch.no_grad():
        expected, logits = model(images), convert(model, ghost, images, rows=6000).model(images)
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_plan_that_swaps_two_roles_loses_something() -> None:
    """The proof can fail: with one ghost made from the wrong source the outputs differ."""
    model, _ = planted(2, 3)
    images = torch.randn(160, 3, 9, 8)
    found = plan(model, images, Budget(ratio=2))
    first, *others = found.decisions
    wrong = np.array(first.channels)
    wrong[[-1, -2]] = wrong[[-2, -1]]
    swapped = dataclasses.replace(
        found, decisions=(dataclasses.replace(first, channels=tuple(wrong.tolist())), *others)
    )
    with torch.no_grad():
        converted = convert(model, swapped, images, rows=6000)
        expected, logits = model(images), converted.model(images)
    assert converted.pairings[0].ghost_error > 1e-2
    assert float((logits - expected).abs().max() / expected.abs().max()) > 2e-5  # although the layers behind it mend
