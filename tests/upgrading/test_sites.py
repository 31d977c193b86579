# SPDX-License-Identifier: Apache-2.0
"""Which convolutions are sites, why others are none, and what is known of each."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure.cost import layer_costs, total_macs
from ghostnets.models.resnet import cifar_resnet
from ghostnets.records import Site
from ghostnets.upgrading.sites import Anatomy, find_sites

EXAMPLE = torch.randn(1, 3, 16, 12)


def chain(*layers: nn.Module) -> nn.Sequential:
    """A stem of 8 channels, the layers in question, a head that reads 8."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, nn.Conv2d(8, 8, 1)).eval()


def only(anatomy: Anatomy, name: str) -> Site:
    (site,) = [site for site in anatomy.sites if site.name == name]
    return site


@pytest.mark.parametrize("stages", [1, 3])
def test_the_sites_of_resnet20(stages: int) -> None:
    model = cifar_resnet(8 if stages == 1 else 20).eval()
    blocks = 1 if stages == 1 else 3
    anatomy = find_sites(model, torch.randn(1, 3, 32, 32))
    names = [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(blocks) for c in (1, 2)]
    assert [site.name for site in anatomy.sites] == names
    assert dict(anatomy.refused) == {"conv1": "the first convolution (3 input channels) is left alone"}
    streams = {site.name: site.stream for site in anatomy.sites}
    inner = [streams[name] for name in names if name.endswith("conv1")]
    outer = {streams[name] for name in names if name.endswith("conv2")}
    assert len(set(inner)) == len(inner)
    assert outer.isdisjoint(inner)
    assert len(outer) == 1  # option A hands the narrower stream on to the wider
    assert all(site.foldable is site.name.endswith("conv1") for site in anatomy.sites)
    assert all(site.relu is site.name.endswith("conv1") for site in anatomy.sites)
    macs = {cost.name: cost.macs for cost in layer_costs(model, torch.randn(1, 3, 32, 32))}
    for site in anatomy.sites:
        stem = site.name.rpartition(".")[0]
        number = site.name[-1]
        assert site.norm == f"{stem}.bn{number}"
        assert site.act == (f"{stem}.act1" if number == "1" else None)
        assert site.macs == macs[site.name]
        assert site.params == site.in_channels * site.out_channels * 9 + 2 * site.out_channels
    first = only(anatomy, "layer2.0.conv1")
    assert (first.stride, first.kernel_size, first.out_size) == ((2, 2), (3, 3), (16, 16))
    assert (first.in_channels, first.out_channels) == (16, 32)


def shared_weight() -> nn.Sequential:
    model = chain(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    model[2].weight = model[1].weight  # pyright: ignore[reportArgumentType]
    return model


def called_twice() -> nn.Sequential:
    layer = nn.Conv2d(8, 8, 1)
    return chain(layer, nn.ReLU(), layer)


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a = nn.Conv2d(8, 8, 1)
        self.alias = self.a
        self.b = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.alias(self.stem(x)))


class OwnConv(nn.Conv2d):
    pass


OwnConv.__module__ = "torch.nn.own"  # so that it is called as one layer, as torch's own kinds are


REFUSED: list[tuple[Callable[[], nn.Module], str, str]] = [
    (lambda: chain(nn.Conv2d(8, 8, 3, groups=2)), "1", "groups=2: a grouped convolution is cheap already"),
    (lambda: chain(nn.Conv2d(8, 8, 3, groups=8)), "1", "groups=8: a grouped convolution is cheap already"),
    (
        lambda: chain(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), "1",
        "padding_mode='reflect' is not covered",
    ),
    (
        lambda: chain(nn.Conv2d(8, 8, (3, 4), padding="same", dilation=3)), "1",
        "padding='same' with kernel 3×4 pads unevenly",
    ),
    (shared_weight, "1", "its weights are shared by several calls"),
    (shared_weight, "2", "its weights are shared by several calls"),
    (called_twice, "1", "its weights are shared by several calls"),
    (lambda: chain(nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)), "1", "3 output channels are too few to share"),
    (lambda: chain(OwnConv(8, 8, 1)), "1", "a OwnConv is not a plain Conv2d"),
    (
        lambda: chain(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)), "1",
        "its norm 2 keeps no running statistics",
    ),
    (TwoNames, "a", "it stands in the network under several names"),
    (lambda: chain(nn.ReLU()), "0", "the first convolution (3 input channels) is left alone"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("build", "name", "reason"), REFUSED)
def test_a_convolution_that_cannot_be_replaced_is_named_with_the_reason(
    build: Callable[[], nn.Module], name: str, reason: str
) -> None:
    anatomy = find_sites(build().eval(), EXAMPLE)
    assert anatomy.refused[name] == reason
    assert name not in [site.name for site in anatomy.sites]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, (1, 3), padding=(0, 1), dilation=(1, 2)),
        nn.Conv2d(8, 8, 2, stride=2),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2),
        nn.Conv2d(8, 8, 5, padding="valid", bias=False),
    ],
)
def test_stride_dilation_and_padding_make_no_difference(conv: nn.Conv2d) -> None:
    model = chain(conv, nn.BatchNorm2d(8))
    site = only(find_sites(model, EXAMPLE), "1")
    assert site.stride == conv.stride
    assert site.kernel_size == conv.kernel_size
    assert site.out_size == tuple(conv(model[0](EXAMPLE)).shape[2:])
    assert site.params == sum(p.numel() for p in conv.parameters()) + 16
    assert site.macs + 16 * 12 * 8 * 27 + site.out_size[0] * site.out_size[1] * 64 == total_macs(model, EXAMPLE)


def test_ignored_layers_are_left_alone_singly_or_with_all_they_hold() -> None:
    model = cifar_resnet(20).eval()
    anatomy = find_sites(model, EXAMPLE, ignored_layers=["layer1", "layer2.0.conv1", "layer3.2"])
    ignored = [name for name, reason in anatomy.refused.items() if reason == "ignored by request"]
    assert ignored == [
        *(f"layer1.{b}.conv{c}" for b in range(3) for c in (1, 2)), "layer2.0.conv1", "layer3.2.conv1", "layer3.2.conv2"
    ]  # fmt: skip
    assert len(anatomy.sites) == 18 - len(ignored)


def test_an_ignored_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"ignored layer 'layer4' does not exist in CifarResNet"):
        find_sites(cifar_resnet(20).eval(), EXAMPLE, ignored_layers=["layer1", "layer4"])


def test_a_network_with_nothing_to_upgrade_is_refused_with_every_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4)).eval()
    with pytest.raises(UserError) as caught:
        find_sites(model, EXAMPLE)
    assert str(caught.value) == (
        "Sequential has nothing to upgrade (0: the first convolution (3 input channels) is left alone; "
        "1: groups=4: a grouped convolution is cheap already)"
    )
    with pytest.raises(UserError, match=r"Sequential has nothing to upgrade \(it has no convolution\)"):
        find_sites(nn.Sequential(nn.Flatten(), nn.Linear(576, 2)).eval(), EXAMPLE)


class Around(nn.Module):
    def __init__(self, forward: Callable[[Around, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.call = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, self.stem(x))


SURROUNDINGS: list[tuple[Callable[[Around, Tensor], Tensor], tuple[str | None, str | None, bool]]] = [
    (lambda m, x: m.last(m.relu(m.norm(m.conv(x)))), ("norm", "relu", True)),
    (lambda m, x: m.last(m.relu(m.conv(x))), (None, "relu", True)),
    (lambda m, x: m.last(F.relu(m.norm(m.conv(x)))), ("norm", None, True)),
    (lambda m, x: m.last(m.norm(m.conv(x)).relu_()), ("norm", None, True)),
    (lambda m, x: m.last(m.relu(m.norm(m.conv(m.relu(x))))), ("norm", None, True)),  # a ReLU that others use too
    (lambda m, x: m.last(m.norm(m.conv(m.norm(x)))), (None, None, False)),  # a norm that others use too
    (lambda m, x: m.last(F.relu6(m.norm(m.conv(x)))), ("norm", None, False)),
    (lambda m, x: m.last(torch.cat([F.relu(y := m.norm(m.conv(x))), y], 1)[:, ::2]), ("norm", None, False)),
    (lambda m, x: m.last(m.norm(y := m.conv(x)) + y), (None, None, False)),  # the value before the norm is read too
]


@pytest.mark.parametrize(("forward", "expected"), SURROUNDINGS)
def test_a_site_takes_along_the_norm_and_relu_that_are_its_own(
    forward: Callable[[Around, Tensor], Tensor], expected: tuple[str | None, str | None, bool]
) -> None:
    site = only(find_sites(Around(forward).eval(), EXAMPLE), "conv")
    assert (site.norm, site.act, site.relu) == expected


FOLDING: list[tuple[Callable[[Around, Tensor], Tensor], bool]] = [
    (lambda m, x: m.last(F.max_pool2d(m.norm(m.conv(x)), 2)), True),
    (lambda m, x: m.last(m.conv(x)[:, torch.arange(7, -1, -1)]), True),
    (lambda m, x: m.last(m.conv(x).softmax(1)), False),  # mixes channels
    (lambda m, x: m.last(m.conv(x) + x), False),  # the stem writes there too
    (lambda m, x: m.last(torch.cat([m.conv(x)[:, :4], x[:, :4]], 1)), False),  # some are read, some are not
    (lambda m, x: m.conv(m.last(x)), False),  # the caller reads them
    (lambda m, x: m.last(torch.cat([m.conv(x).amax((2, 3)), x.amax((2, 3))], 1)[:, :8, None, None]), True),
]


@pytest.mark.parametrize(("forward", "foldable"), FOLDING)
def test_an_order_folds_where_all_channels_go_the_same_way_to_readers_with_weights(
    forward: Callable[[Around, Tensor], Tensor], foldable: bool
) -> None:
    assert only(find_sites(Around(forward).eval(), EXAMPLE), "conv").foldable is foldable


def test_looking_changes_nothing() -> None:
    model = cifar_resnet(20).eval()
    model.conv1.requires_grad_(False)
    state, attributes = copy.deepcopy(model.state_dict()), {name: set(vars(m)) for name, m in model.named_modules()}
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    find_sites(model, EXAMPLE)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == grads
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
