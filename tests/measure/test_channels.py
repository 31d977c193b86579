# SPDX-License-Identifier: Apache-2.0
"""The class of every channel, by hand; that nothing wrong can move is proved in upgrading/test_reorder.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghostnets.measure.channels import Channels, follow_channels
from ghostnets.measure.trace import Trace, trace
from ghostnets.models.resnet import cifar_resnet


class Around(nn.Module):
    """Two convolutions and what is done between them."""

    def __init__(
        self, between: Callable[[Tensor], Tensor], channels: int = 4, wide: int = 4, *layers: nn.Module
    ) -> None:
        super().__init__()
        self.between = between
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(wide, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.layers(self.first(x))))


def followed(model: nn.Module) -> tuple[Trace, Channels, dict[str, fx.Node]]:
    recorded = trace(model.eval(), torch.randn(1, 3, 8, 6))
    return recorded, follow_channels(recorded, model), {str(node.target): node for node in recorded.nodes}


def read_as(model: nn.Module) -> tuple[list[int | None], bool]:
    """What the last convolution reads, as places of the first one's channels (None is none of them); frozen or not."""
    _, channels, node = followed(model)
    born = list(channels.labels[node["first"]])
    read = channels.labels[node["last"].all_input_nodes[0]]
    return [born.index(label) if label in born else None for label in read], bool(channels.frozen & set(born))


CARRIED: list[tuple[Callable[[Tensor], Tensor], list[int | None]]] = [
    (lambda x: F.hardswish(F.max_pool2d(x, 3, 1, 1)), [0, 1, 2, 3]),
    (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=True), [0, 1, 2, 3]),
    (lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"), [0, 1, 2, 3]),
    (lambda x: F.adaptive_avg_pool2d(x, (3, 7)), [0, 1, 2, 3]),
    (lambda x: x.mean((2, 3), keepdim=True) * x, [0, 1, 2, 3]),
    (lambda x: x[:, [2, 0, 3, 1]], [2, 0, 3, 1]),
    (lambda x: x[:, torch.tensor([2, 0, 3, 1])] * torch.tensor(2.0), [2, 0, 3, 1]),
    (lambda x: x.index_select(1, torch.tensor([1, 1, 0, 3])), [1, 1, 0, 3]),
    (lambda x: x.flip(1), [3, 2, 1, 0]),
    (lambda x: x[:, 1:3].repeat(1, 2, 1, 1), [1, 2, 1, 2]),
    (lambda x: x[:, 1:3].repeat_interleave(2, 1), [1, 1, 2, 2]),
    (lambda x: torch.cat(x.split([1, 3], dim=1)[::-1], 1), [1, 2, 3, 0]),
    (lambda x: torch.stack(x.unbind(1), 1), [0, 1, 2, 3]),
    (lambda x: x.transpose(2, 3).flip(2), [0, 1, 2, 3]),
    (lambda x: F.pixel_unshuffle(x[:, 2:3], 2), [2, 2, 2, 2]),
    (lambda x: F.pad(x[:, 1:3], (1, 2, 0, 1, 1, 1)), [None, 1, 2, None]),
    (lambda x: (x + 3).clamp(0, 6) / 6 - 0.5, [0, 1, 2, 3]),
    (lambda x: x.view(x.size(0), -1, 2, 24).reshape(x.shape), [0, 1, 2, 3]),
]


@pytest.mark.parametrize(("between", "expected"), CARRIED)
def test_whole_channels_are_followed_wherever_they_go(
    between: Callable[[Tensor], Tensor], expected: list[int | None]
) -> None:
    assert read_as(Around(between)) == (expected, False)


FROZEN: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.softmax(1),
    lambda x: x - x.mean(1, keepdim=True),
    lambda x: x.amax(1, keepdim=True).expand(-1, 4, -1, -1),
    lambda x: x.median(1, keepdim=True)[0].expand(-1, 4, -1, -1),
    lambda x: x.cumsum(1),
    lambda x: x.sort(1)[0],
    lambda x: torch.maximum(x, x.flip(1)),
    lambda x: torch.where(x > 0, x, x.flip(1)),
    lambda x: F.normalize(x, dim=1),
    lambda x: F.layer_norm(x, x.shape[1:]),
    F.instance_norm,
    lambda x: F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1),
    lambda x: x.transpose(1, 2)[:, :4],
    lambda x: x.reshape(4, 1, 8, 6).repeat(1, 4, 1, 1),  # channels in the batch
    lambda x: x.view(1, 2, 96, -1).repeat(1, 2, 1, 1),
    lambda x: x * torch.arange(4.0).view(1, 4, 1, 1),
    lambda x: x * torch.rand(1, 1, 1, 6, generator=torch.Generator().manual_seed(0)),
    lambda x: torch.einsum("nchw,ndhw->ncd", x, x)[..., None],
    lambda x: F.conv2d(x, torch.ones(4, 1, 1, 1), groups=4),
    lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), value=1.0)[:, :4],
]


@pytest.mark.parametrize("between", FROZEN)
def test_what_mixes_or_tells_channels_apart_freezes_them(between: Callable[[Tensor], Tensor]) -> None:
    _, channels, node = followed(Around(between))
    assert set(channels.labels[node["first"]]) <= channels.frozen
    assert set(channels.labels[node["last"].all_input_nodes[0]]) <= channels.frozen


@pytest.mark.parametrize(
    ("layer", "frozen"),
    [
        (nn.BatchNorm2d(4), False),
        (nn.Conv2d(4, 4, 3, groups=4), False),  # depthwise: it carries
        (nn.Conv2d(4, 4, 3, groups=2), True),
        (nn.PReLU(4), True),
        (nn.PReLU(1), True),
        (nn.GroupNorm(2, 4), True),
        (nn.InstanceNorm2d(4, track_running_stats=True), True),
        (nn.ChannelShuffle(2), False),
        (nn.ConvTranspose2d(4, 4, 2), True),
        (nn.Softmax2d(), True),
    ],
)
def test_what_a_layer_does_to_the_channels_it_reads(layer: nn.Module, frozen: bool) -> None:
    assert read_as(Around(lambda x: x, 4, 4, layer))[1] is frozen


def test_a_module_s_name_is_not_taken_for_a_method_s() -> None:
    class Named(Around):
        def __init__(self) -> None:
            super().__init__(lambda x: x)
            self.relu, self.add = nn.PReLU(4), nn.GroupNorm(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.add(self.relu(self.first(x))))

    assert read_as(Named())[1]


def test_an_addition_makes_two_channels_one_and_a_zero_takes_the_other_s_place() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.pad(self.a(x), (0, 0, 0, 0, 1, 1)) + self.b(x))

    _, channels, node = followed(Sum())
    a, b = channels.labels[node["a"]], channels.labels[node["b"]]
    assert channels.labels[node["c"].all_input_nodes[0]] == b
    assert b[1:3] == a
    assert not channels.frozen & set(b)
    assert channels.signature[b[0]] == channels.signature[b[3]]  # may change places
    assert channels.signature[b[1]] == channels.signature[b[2]] != channels.signature[b[0]]
    assert channels.positions(node["b"]) == {label: [place] for place, label in enumerate(b)}


def test_input_and_output_stay_as_callers_know_them() -> None:
    recorded, channels, node = followed(Around(F.relu))
    assert set(channels.labels[recorded.input]) | set(channels.labels[node["last"]]) <= channels.frozen


def test_the_streams_of_a_residual_network() -> None:
    _, channels, node = followed(cifar_resnet(20))
    streams = {stage: set(channels.labels[node[f"layer{stage}.2.conv2"]]) for stage in (1, 2, 3)}
    assert [len(stream) for stream in streams.values()] == [16, 32, 64]
    assert streams[1] < streams[2] < streams[3]  # option A takes the narrower stream along, between zeros
    assert set(channels.labels[node["conv1"]]) == streams[1]
    assert all(
        set(channels.labels[node[f"layer{stage}.{b}.conv2"]]) == streams[stage] for stage in (1, 2, 3) for b in (0, 1)
    )
    inner = [set(channels.labels[node[f"layer{stage}.{b}.conv1"]]) for stage in (1, 2, 3) for b in (0, 1, 2)]
    assert not set.union(*inner) & streams[3]
    assert sum(map(len, inner)) == len(set.union(*inner)) == 3 * 112
    movable = {label for label in channels.signature if label not in channels.frozen}
    assert movable == streams[3] | set.union(*inner)


def test_flattened_channels_stand_at_every_pixel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveMaxPool2d((2, 3)), nn.Flatten(), nn.Linear(24, 2))
    _, channels, node = followed(model)
    born = channels.labels[node["0"]]
    assert channels.labels[node["2"]] == tuple(label for label in born for _ in range(6))
    assert channels.positions(node["2"])[born[1]] == [6, 7, 8, 9, 10, 11]


def test_weights_used_twice_freeze_what_they_touch() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    _, channels, node = followed(Around(lambda x: x, 4, 4, shared, nn.ReLU(), shared))
    assert set(channels.labels[node["first"]]) <= channels.frozen
    twice: nn.ReLU = nn.ReLU()  # nothing to permute in it
    assert not read_as(Around(lambda x: x, 4, 4, twice, nn.BatchNorm2d(4), twice))[1]
