# SPDX-License-Identifier: Apache-2.0
"""Converted networks: equal where nothing is edited, loadable where the structure is known, sound on foreign ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.blocks.ghost import ChannelGather
from ghostnets.errors import UserError
from ghostnets.measure.cost import total_macs, total_params
from ghostnets.models.resnet import cifar_resnet, ghost_cifar_resnet
from ghostnets.records import Budget, Plan
from ghostnets.training.data import Augment, Dataset, Images
from ghostnets.upgrading.convert import convert, edits, reordered, restructure
from ghostnets.upgrading.plan import plan
from ghostnets.upgrading.recover import recover
from ghostnets.upgrading.sites import find_sites

Settle = Callable[[nn.Module], nn.Module]
Snapshot = Callable[[nn.Module], dict[str, Any]]

Ordering = Literal["own", "agreed"]


def _picking(places: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    return lambda _m, _i, out: out[:, places]


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("training", [False, True])
def test_a_plan_that_keeps_everything_gives_the_original_bit_for_bit(training: bool, settled: Settle) -> None:
    model = settled(vgg(norm=True)).train(training)
    images = torch.randn(20, 3, 16, 16)
    found = dataclasses.replace(plan(model, images, Budget(ratio=2)), decisions=())
    keep = plan(model, images[:4], Budget(macs=1.0))
    assert {d.decision for d in keep.decisions} == {"keep"}
    converted = convert(model, keep, images)
    assert converted.pairings == ()
    assert converted.model.training is training
    assert list(converted.model.state_dict()) == list(model.state_dict())
    for value, expected in zip(converted.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(value, expected)
    with torch.no_grad():
        assert torch.equal(converted.model.eval()(images), model.eval()(images))
    with pytest.raises(UserError, match="the plan is for another network"):
        convert(model, found, images)


def test_every_part_is_in_the_mode_it_had_in_the_original(settled: Settle) -> None:
    """A network in training with a stage frozen in evaluation, as one does in fine-tuning."""
    model = settled(cifar_resnet(8)).train()
    model.get_submodule("layer2").eval()
    images = torch.randn(20, 3, 12, 12)
    made = convert(model, plan(model, images, Budget(ratio=2)), images, rows=500).model
    for name, module in made.named_modules():
        assert module.training is not name.startswith("layer2"), name


@pytest.mark.parametrize("training", [False, True])
def test_the_original_and_the_random_state_are_untouched(training: bool, settled: Settle, snapshot: Snapshot) -> None:
    model = settled(cifar_resnet(8)).train(training)
    model.get_submodule("conv1").requires_grad_(False)
    images = torch.randn(20, 3, 12, 12)
    before, kept = snapshot(model), images.clone()
    converted = convert(model, plan(model, images, Budget(ratio=2)), images, rows=500)
    assert snapshot(model) == before
    assert torch.equal(images, kept)
    theirs = {t.data_ptr() for t in model.state_dict().values()}
    assert not theirs & {t.data_ptr() for t in converted.model.state_dict().values()}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in converted.model.modules())


@pytest.mark.parametrize("depth", [8, 20])
def test_with_one_agreed_order_it_is_the_papers_ghost_resnet(depth: int, settled: Settle) -> None:
    model = settled(cifar_resnet(depth))
    images = torch.randn(40, 3, 8, 8)
    found = plan(model, images, Budget(ratio=2), order="agreed")
    converted = convert(model, found, images, rows=1000).model
    same_as_published(converted, found, ghost_cifar_resnet(depth), images)


def same_as_published(converted: nn.Module, found: Plan, known: nn.Module, images: Tensor) -> None:
    mine, theirs = converted.state_dict(), known.state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    assert found.macs_after == total_macs(converted, images[:1]) == total_macs(known, images[:1])
    assert found.params_after == total_params(converted) == total_params(known)
    known.load_state_dict(mine, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(known.eval()(images), converted.eval()(images), rtol=1e-5, atol=1e-5)


def test_resnet56_has_the_structure_of_ghost_resnet56() -> None:
    model = cifar_resnet(56).eval()
    images = torch.randn(2, 3, 32, 32)
    anatomy = find_sites(model, images[:1])
    some = plan(cifar_resnet(8).eval(), images, Budget(ratio=2), order="agreed").decisions
    decision = next(d for d in some if d.order == "folded")
    converted = restructure(model, edits(anatomy, [dataclasses.replace(decision, name=s.name) for s in anatomy.sites]))
    known = ghost_cifar_resnet(56)
    assert {k: v.shape for k, v in converted.state_dict().items()} == {
        k: v.shape for k, v in known.state_dict().items()
    }
    assert total_macs(converted, images[:1]) == total_macs(known, images[:1])
    assert round(total_macs(known, images[:1]) / 1e6, 1) == 65.3


def test_with_its_own_orders_it_is_that_network_too_but_for_the_gathers(settled: Settle) -> None:
    model = settled(cifar_resnet(8))
    images = torch.randn(60, 3, 16, 16)
    found = plan(model, images, Budget(ratio=2))
    converted = convert(model, found, images, rows=1000).model.eval()
    gathers = {name: m for name, m in converted.named_modules() if isinstance(m, ChannelGather)}
    assert set(gathers) == {f"layer{s}.0.bn2" for s in (1, 2, 3)}
    channels = {d.name.replace("conv", "bn"): d.channels for d in found.decisions if d.order == "gather"}
    known = ghost_cifar_resnet(8)
    known.load_state_dict({k: v for k, v in converted.state_dict().items() if not k.endswith("index")}, strict=True)
    for name in gathers:  # by hand: original channel c stands where the plan's order says it does
        places = torch.tensor([channels[name].index(c) for c in range(len(channels[name]))])
        known.get_submodule(name).register_forward_hook(_picking(places))
    with torch.no_grad():
        torch.testing.assert_close(known.eval()(images), converted(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ["own", "agreed"])
def test_reordering_leaves_outputs_as_they_were(order: Ordering, settled: Settle) -> None:
    model = settled(cifar_resnet(8))
    images = torch.randn(16, 3, 16, 16)
    found = plan(model, images, Budget(ratio=2), order=order)
    moved = reordered(model, found, find_sites(model, images[:1]))
    assert not torch.equal(moved.state_dict()["layer1.0.conv1.weight"], model.state_dict()["layer1.0.conv1.weight"])
    with torch.no_grad():
        assert relative(moved(images), model(images)) < 1e-6


class Basic(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)  # one for both, as torchvision has it
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        same = stride == 1 and cin == cout
        self.downsample = None if same else nn.Sequential(
            nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        identity = x if self.downsample is None else self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = nn.Sequential(nn.Conv2d(cin, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + self.downsample(x))


def stemmed(*layers: nn.Module, channels: int) -> nn.Module:
    stem = [nn.Conv2d(3, 8, 5, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, 4))


def vgg(*, norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for cin, cout in ((3, 8), (8, 11), (11, 12), (12, 12)):
        layers += [nn.Conv2d(cin, cout, 3, padding=1), *([nn.BatchNorm2d(cout)] if norm else []), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if cout != 11 else []
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 4)
    )


class Dense(nn.Module):
    """Concatenations, norms before their convolutions, and a branch that only pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(14), nn.Conv2d(14, 6, 3, padding=1, bias=False)
        self.mix, self.head = nn.Conv2d(20, 12, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([F.avg_pool2d(x, 3, 1, 1), self.conv2(self.norm2(x).relu_())], 1)
        return self.head(F.adaptive_avg_pool2d(self.mix(x), 1).flatten(1))


FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: stemmed(Basic(8, 8, 1), Basic(8, 12, 2), channels=12),
    "resnet50": lambda: stemmed(Bottleneck(8, 6, 1), Bottleneck(24, 6, 2), channels=24),
    "vgg": lambda: vgg(norm=False),
    "vgg_bn": lambda: vgg(norm=True),
    "densenet": Dense,
    "ghost already": lambda: ghost_cifar_resnet(8, num_classes=4),
}


@pytest.mark.parametrize("budget", [Budget(ratio=2), Budget(macs=0.9)])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_networks_are_planned_converted_and_recovered(name: str, budget: Budget, settled: Settle) -> None:
    model = settled(FOREIGN[name]())
    pixels = torch.randint(256, (48, 3, 32, 32), dtype=torch.uint8)
    images = Images(pixels=pixels, labels=torch.arange(48) % 4)
    data = Dataset(
        name="noise", train=images, test=images, classes=tuple("abcd"), mean=(0.5,) * 3, std=(0.25,) * 3,
        augment=Augment(padding=2, flip=True),
    )  # fmt: skip
    x = (pixels / 255 - 0.5) / 0.25
    found = plan(model, x, budget)
    assert any(d.decision == "ghost" for d in found.decisions)
    converted = convert(model, found, x, rows=2000).model
    assert total_macs(converted, x[:1]) == found.macs_after
    with torch.no_grad():
        expected, logits = model(x), converted(x)
    assert logits.shape == expected.shape
    error = float((logits - expected).square().mean() / expected.var(0).mean())
    assert error < 1  # better than the mean logits would be
    recovered = recover(
        converted, model, found, data, images=images, held_out=images, mode="blocks", epochs=1, batch_size=16
    )
    with torch.no_grad():
        assert torch.isfinite(recovered.model(x)).all()
    assert recovered.epochs == 1


def test_nan_weights_are_named() -> None:
    model = cifar_resnet(8).eval()
    with torch.no_grad():
        model.get_parameter("layer2.0.conv1.weight")[3, 2] = torch.nan
    with pytest.raises(UserError, match=r"not finite .*: NaN or Inf in its weights\?"):
        plan(model, torch.randn(4, 3, 12, 12), Budget(ratio=2))
