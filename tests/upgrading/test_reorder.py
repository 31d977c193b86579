# SPDX-License-Identifier: Apache-2.0
"""Channels that the labels allow to change places do so, in a gallery of networks, and no output changes.

This is the proof of the labels too: one wrong label and some weight would be permuted, or left, at odds with others.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostnets.errors import UnsupportedLayer
from ghostnets.measure.channels import Channels, follow_channels
from ghostnets.measure.trace import Trace, trace
from ghostnets.models.resnet import cifar_resnet
from ghostnets.upgrading.convert import reorder_channels


class Network(nn.Module):
    """Layers, and a forward that is handed in."""

    def __init__(self, call: Callable[[Network, Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __getattr__(self, name: str) -> nn.Module:
        return super().__getattr__(name)  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def cbr(cin: int, cout: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([nn.ReLU(inplace=True)] if relu else []))


def pooled(net: Network, x: Tensor) -> Tensor:
    return net.head(x.mean((2, 3)))


def bottleneck(net: Network, x: Tensor) -> Tensor:
    x = net.stem(x)
    x = net.relu(net.body(x) + net.down(x))
    return pooled(net, net.relu(net.body2(x) + x))


def build_bottleneck() -> nn.Module:
    return Network(
        bottleneck, stem=cbr(3, 6), relu=nn.ReLU(inplace=True), down=cbr(6, 12, 1, stride=2, relu=False),
        body=nn.Sequential(cbr(6, 5, 1), cbr(5, 5, stride=2), cbr(5, 12, 1, relu=False)),
        body2=nn.Sequential(cbr(12, 5, 1), cbr(5, 5), cbr(5, 12, 1, relu=False)), head=nn.Linear(12, 4),
    )  # fmt: skip


def inverted(net: Network, x: Tensor) -> Tensor:
    x = net.stem(x)
    return pooled(net, net.last(x + net.body(x)))


def build_inverted() -> nn.Module:
    body = nn.Sequential(cbr(6, 18, 1), cbr(18, 18, groups=18), cbr(18, 6, 1, relu=False))
    body[0][2] = body[1][2] = nn.ReLU6(inplace=True)  # pyright: ignore[reportIndexIssue]
    return Network(inverted, stem=cbr(3, 6), body=body, last=cbr(6, 9, 1), head=nn.Linear(9, 4))


def squeeze(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    gate = net.expand(net.relu(net.reduce(F.adaptive_avg_pool2d(x, 1))))
    x = net.b(x * torch.sigmoid(gate))
    gate = net.fc2(F.relu(net.fc1(x.mean((2, 3))))).sigmoid().view(x.size(0), x.size(1), 1, 1)
    return pooled(net, x * gate.expand_as(x) * (F.relu6(x + 3) / 6))


def build_squeeze() -> nn.Module:
    return Network(
        squeeze, a=cbr(3, 8), reduce=nn.Conv2d(8, 4, 1), relu=nn.ReLU(), expand=nn.Conv2d(4, 8, 1), b=cbr(8, 6),
        fc1=nn.Linear(6, 4), fc2=nn.Linear(4, 6), head=nn.Linear(6, 4),
    )  # fmt: skip


def dense(net: Network, x: Tensor) -> Tensor:
    x = net.stem(x)
    x = torch.cat([x, net.one(x)], 1)
    x = torch.cat([x, net.two(x)], 1)
    return pooled(net, F.avg_pool2d(net.norm(x).relu(), 3, 2, 1))


def build_dense() -> nn.Module:
    one = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    two = nn.Sequential(nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 3, padding=1))
    return Network(dense, stem=cbr(3, 6), one=one, two=two, norm=nn.BatchNorm2d(14), head=nn.Linear(14, 4))


def build_vgg() -> nn.Module:
    return nn.Sequential(
        cbr(3, 6), nn.MaxPool2d(2), cbr(6, 8), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(48, 7),
        nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 4),
    )  # fmt: skip


def build_prelu() -> nn.Module:
    return Network(
        lambda net, x: pooled(net, net.b(net.relu(net.a(x)))),  # named as PReLUs are: "relu" is a method's name too
        a=cbr(3, 6, relu=False), relu=nn.PReLU(6), b=cbr(6, 5), head=nn.Linear(5, 4),
    )  # fmt: skip


def build_group_norm() -> nn.Module:
    return nn.Sequential(
        cbr(3, 6), nn.GroupNorm(2, 6), cbr(6, 6), nn.InstanceNorm2d(6), nn.Flatten(), nn.Linear(252, 4)
    )


def shuffle(net: Network, x: Tensor) -> Tensor:
    x = net.stem(x)
    left, right = x.chunk(2, dim=1)
    x = torch.cat([left, net.body(right)], 1)
    n, c, h, w = x.size()
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
    return pooled(net, net.shuffled(net.b(x)))


def build_shuffle() -> nn.Module:
    body = nn.Sequential(cbr(4, 4, 1), cbr(4, 4, groups=4, relu=False), cbr(4, 4, 1))
    shuffled = nn.Sequential(nn.ChannelShuffle(2), cbr(8, 6, 1))
    return Network(shuffle, stem=cbr(3, 8), body=body, b=cbr(8, 8), shuffled=shuffled, head=nn.Linear(6, 4))


def build_grouped() -> nn.Module:
    return Network(
        lambda net, x: pooled(net, net.c(net.b(net.a(x)))),
        a=cbr(3, 8), b=cbr(8, 8, groups=2), c=nn.Sequential(cbr(8, 16, groups=8), cbr(16, 6)), head=nn.Linear(6, 4),
    )  # fmt: skip


def build_shared() -> nn.Module:
    a, b = cbr(6, 6), cbr(6, 6)
    b[0].weight = a[0].weight  # pyright: ignore[reportAttributeAccessIssue] two layers, one weight
    return Network(
        lambda net, x: pooled(net, net.d(net.b(net.c(net.a(net.a(net.stem(x))))))),
        stem=cbr(3, 6), a=a, b=b, c=cbr(6, 6), d=cbr(6, 5), head=nn.Linear(5, 4),
    )  # fmt: skip


def build_pixel_shuffle() -> nn.Module:
    return Network(
        lambda net, x: pooled(net, net.c(torch.cat([net.up(net.a(x)), net.b(x)], 1))),
        a=cbr(3, 8), up=nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)), b=cbr(3, 5), c=cbr(13, 6),
        head=nn.Linear(6, 4),
    )  # fmt: skip


def focus(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)[:, :, :6, :4]
    x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
    x = net.b(x)
    return pooled(net, net.c(F.pad(F.interpolate(x, scale_factor=3.0, mode="bilinear"), (0, 1, 0, 1))))


def build_focus() -> nn.Module:
    return Network(focus, a=cbr(3, 5), b=cbr(20, 6), c=cbr(6, 6), head=nn.Linear(6, 4))


def tricks(net: Network, x: Tensor) -> Tensor:
    """What came out as some channel's number by chance when channels were numbered 1, 2, 3."""
    a, b = net.a(x), net.b(x)
    a = a + torch.maximum(a, b)
    c = net.c(torch.clamp(a, 0, 6))
    d = net.d(net.e(c).mean(1, keepdim=True) * c.amax(1, keepdim=True))
    return pooled(net, torch.where(d > 0, d, net.f(d)))


def build_tricks() -> nn.Module:
    return Network(
        tricks, a=cbr(3, 7), b=cbr(3, 7), c=cbr(7, 5), d=cbr(1, 6), e=cbr(5, 5), f=cbr(6, 6), head=nn.Linear(6, 4)
    )


def padded(net: Network, x: Tensor) -> Tensor:
    """Zero channels under a norm become constants of their own; those that are only added stay zeros."""
    x = net.a(x)
    y = net.norm(F.pad(x, (0, 0, 0, 0, 2, 2)))
    z = net.b(x)
    return pooled(net, net.c(F.relu(z + F.pad(x, (0, 0, 0, 0, 2, 2)))) + net.d(z + y))


def build_padded() -> nn.Module:
    return Network(
        padded, a=cbr(3, 6), b=cbr(6, 10), norm=nn.BatchNorm2d(10), c=cbr(10, 5), d=cbr(10, 5), head=nn.Linear(5, 4)
    )


def scaled(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    x = x + net.b(x) * net.gamma.view(1, -1, 1, 1)  # pyright: ignore[reportCallIssue]
    x = x + net.c(x) * net.alpha
    tokens = net.d(x).flatten(2)
    return net.head(net.mix(tokens.transpose(1, 2)).mean(1)) + net.along(tokens).mean(1)


def build_scaled() -> nn.Module:
    return Network(
        scaled, a=cbr(3, 6), b=cbr(6, 6), c=cbr(6, 6), d=cbr(6, 6), gamma=nn.Parameter(torch.rand(6)),
        alpha=nn.Parameter(torch.rand(())), mix=nn.Linear(6, 5), along=nn.Linear(42, 4), head=nn.Linear(5, 4),
    )  # fmt: skip


def cycles(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    return pooled(net, net.b(net.shuffle(x)) + net.c(x + net.shuffle(x)))


def build_cycles() -> nn.Module:
    return Network(cycles, a=cbr(3, 8), shuffle=nn.ChannelShuffle(2), b=cbr(8, 5), c=cbr(8, 5), head=nn.Linear(5, 4))


def build_weight_norm() -> nn.Module:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 3, padding=1))
    return nn.Sequential(cbr(3, 6), normed, cbr(6, 6), nn.Flatten(), nn.Linear(252, 4))


def build_transposed() -> nn.Module:
    return nn.Sequential(
        cbr(3, 6), nn.ConvTranspose2d(6, 6, 2, 2), cbr(6, 5), cbr(5, 5), nn.Flatten(), nn.Linear(840, 4)
    )


# network -> how many channels may move at least, counted by hand: those of convolutions that a plain one reads
GALLERY: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "CIFAR ResNet": (lambda: cifar_resnet(8, num_classes=4), 64 + 112),  # streams' 64, and the three inner layers
    "bottlenecks": (build_bottleneck, 6 + 12 + 4 * 5),
    "inverted residual": (build_inverted, 6 + 18 + 9),
    "squeeze and excite": (build_squeeze, 8 + 4 + 6 + 4),
    "dense": (build_dense, 6 + 4 + 4),
    "VGG": (build_vgg, 6 + 8 + 7),
    "PReLU": (build_prelu, 5),
    "group and instance norm": (build_group_norm, 0),
    "channel shuffle": (build_shuffle, 4 + 4 + 8 + 6),
    "grouped": (build_grouped, 6),
    "shared": (build_shared, 5),
    "pixel shuffle": (build_pixel_shuffle, 5 + 6),
    "focus": (build_focus, 5 + 6 + 6),
    "tricks": (build_tricks, 0),
    "padded": (build_padded, 5),
    "scaled": (build_scaled, 0),
    "cycles": (build_cycles, 5),
    "weight norm": (build_weight_norm, 6),
    "transposed": (build_transposed, 5 + 5),
}


def randomise_(model: nn.Module) -> None:
    """Weights and statistics in which no two channels are alike."""
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_floating_point():
                fan = max(tensor[0].numel(), 1) if tensor.dim() > 1 else 1
                positive = name == "running_var" or (tensor.dim() < 2 and name == "weight")
                with torch.no_grad():
                    tensor.copy_(torch.rand_like(tensor) + 0.5 if positive else torch.randn_like(tensor) / fan**0.5)


@cache
def prepared(name: str) -> tuple[nn.Module, Trace, Channels]:
    torch.manual_seed(1)
    model = GALLERY[name][0]()
    randomise_(model)
    model = model.double().eval()
    recorded = trace(model, torch.randn(1, 3, 7, 6, dtype=torch.float64))
    return model, recorded, follow_channels(recorded, model)


def movable(channels: Channels) -> list[list[int]]:
    """The classes that may change places with each other, group by group."""
    groups: dict[object, list[int]] = defaultdict(list)
    for label, signature in channels.signature.items():
        if label not in channels.frozen:
            groups[signature].append(label)
    return list(groups.values())


@pytest.mark.parametrize("name", GALLERY)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_order_of_the_movable_channels_changes_the_output(name: str, seed: int) -> None:
    model, recorded, channels = prepared(name)
    before = copy.deepcopy(model.state_dict())
    rng = np.random.default_rng(seed)
    content: dict[int, int] = {}
    for group in movable(channels):
        content |= dict(zip(group, rng.permutation(group).tolist(), strict=True))
    changed = reorder_channels(model, recorded, channels, content)
    x = torch.from_numpy(rng.normal(size=(2, 3, 7, 6))) if name != "transposed" else recorded.example
    with torch.no_grad():
        expected, got = model(x), changed(x)
    assert float((got - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", GALLERY)
def test_as_many_channels_may_move_as_should(name: str) -> None:
    _, _, channels = prepared(name)
    assert sum(len(group) for group in movable(channels) if len(group) > 1) >= GALLERY[name][1]


@pytest.mark.parametrize("name", ["CIFAR ResNet", "VGG", "focus", "inverted residual"])
def test_a_new_order_really_moves_the_weights(name: str) -> None:
    model, recorded, channels = prepared(name)
    group = max(movable(channels), key=len)
    changed = reorder_channels(model, recorded, channels, dict(zip(group, group[1:] + group[:1], strict=True)))
    names = [key for key, value in changed.state_dict().items() if not torch.equal(value, model.state_dict()[key])]
    assert len(names) >= 3
    moved = [(changed.state_dict()[key], model.state_dict()[key]) for key in names]
    assert all(torch.equal(a.flatten().sort().values, b.flatten().sort().values) for a, b in moved)


def test_the_identity_is_a_copy() -> None:
    model, recorded, channels = prepared("VGG")
    changed = reorder_channels(model, recorded, channels, {label: label for label in channels.signature})
    assert changed is not model
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in changed.state_dict().items())
    assert not {id(p) for p in changed.parameters()} & {id(p) for p in model.parameters()}


def test_a_layer_called_twice_that_would_need_two_orders_is_refused() -> None:
    model, recorded, channels = prepared("shared")
    stem = next(n for n in recorded.nodes if str(n.target) == "stem.0")
    first, second = channels.labels[stem][:2]
    with pytest.raises(UnsupportedLayer, match=r"a.0 is called more than once and would need two channel orders"):
        reorder_channels(model, recorded, channels, {first: second, second: first})


def test_moving_what_is_frozen_would_show() -> None:
    """The proof can fail: exchanging two channels before a grouped convolution changes the output."""
    model, recorded, channels = prepared("grouped")
    stem = next(n for n in recorded.nodes if str(n.target) == "a.0")
    first, last = channels.labels[stem][0], channels.labels[stem][-1]
    assert {first, last} <= channels.frozen
    changed = reorder_channels(model, recorded, channels, {first: last, last: first})
    with torch.no_grad():
        assert float((changed(recorded.example) - model(recorded.example)).abs().max()) > 1e-3
