# SPDX-License-Identifier: Apache-2.0
"""Simplified graphs compute what PyTorch does, of whole networks too, and nothing is left that could be folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tiny
from ghostnets.blocks.branches import BranchedGhostBottleneck
from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.deploy import simplify
from ghostnets.deploy.capture import captured
from ghostnets.deploy.graph import Concat, Conv, Graph, Pool, Select
from ghostnets.deploy.reference import outputs
from ghostnets.deploy.simplify import simplified
from ghostnets.measure.cost import total_macs
from ghostnets.models.catalog import create_model, list_models
from graphs import Forward, distance, kinds, lively, then, truth

NEAR = 1e-5
"""Of the largest output: weights are rounded to float32 when they are folded."""

FAST = {"resnet20", "ghost_resnet20", "ghost_vgg16", "ghostnet_100", "ghostnetv2_100", "g_ghost_resnet34"}
"""One of each kind; the others are the same code with other numbers."""


def example(model: nn.Module) -> Tensor:
    side = 32 if getattr(model, "input_size", None) == (32, 32) else 64
    return torch.randn(1, 3, side, side)


def check(model: nn.Module, x: Tensor) -> Graph:
    """Captured, and after every pass, it is what PyTorch computes."""
    graph = captured(lively(model), x)
    expected = truth(model, x)
    assert distance(graph, x, expected) < NEAR
    after = simplified(graph)
    assert distance(after, x, expected) < NEAR
    assert len({step.name for step in after.operations}) == len(after.operations)
    return after


def loose(graph: Graph) -> Counter[str]:
    """Norms and activations that are steps of their own: depthwise 1x1 convolutions and Activates."""
    norms = [s for s in graph.operations if isinstance(s, Conv) and s.groups > 1 and s.weight.shape[1:] == (1, 1, 1)]
    return Counter(kind for kind in kinds(graph) if kind.startswith("Activate")) + Counter(norm=len(norms))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in list_models()]
)  # fmt: skip
def test_every_network_of_the_catalogue(name: str) -> None:
    model = create_model(name)
    x = example(model)
    graph = check(model, x)
    assert not loose(graph)
    if "ghostnetv3" in name:  # whose branches are merged
        assert graph.macs < 0.7 * total_macs(model, x)
    else:
        assert graph.macs == total_macs(model, x)


OTHERS = {
    "torchvision": ("mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x1_0", "vgg11"),
    "timm": ("mobilenetv3_large_100", "resnet18", "regnetx_002", "ghostnet_100"),
}


@pytest.mark.parametrize(
    ("library", "name"),
    [
        pytest.param(library, name, marks=[pytest.mark.slow] if name == "vgg11" else [])  # its linear layers are large
        for library, names in OTHERS.items()
        for name in names
    ],
)
def test_networks_of_others(library: str, name: str) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "timm":
        model = pytest.importorskip("timm").create_model(name)
    else:
        model = getattr(pytest.importorskip("torchvision").models, name)(weights=None)
    x = torch.randn(1, 3, 32, 32) if name == "vgg11" else torch.randn(1, 3, 64, 64)
    graph = check(model, x)
    assert not loose(graph)
    if name != "vgg11":  # one place, which its pool spreads over 7 x 7, goes into the linear layer as such
        assert graph.macs == total_macs(model, x)


def test_the_kinds_of_ghostnet_are_those_counted_by_hand() -> None:
    graph = simplified(captured(create_model("ghostnet_100"), torch.zeros(1, 3, 64, 64)))
    # arXiv:1911.11907, Table 1: 16 bottlenecks of two Ghost modules, 4 of stride 2 with a depthwise convolution; they and
    # the one from 80 to 112 channels have shortcuts of two convolutions; 7 have squeeze-and-excite.
    ghosts, strided, shortcuts, gates = 2 * 16, 4, 5, 7
    whole = 4  # stem, last convolution, head, classifier
    counted = Counter(type(step).__name__ for step in graph.operations)
    assert counted == Counter(
        Conv=whole + 2 * ghosts + strided + 2 * shortcuts + 2 * gates, Concat=ghosts, Combine=16 + gates, Pool=gates + 1
    )  # fmt: skip
    assert graph.macs == total_macs(create_model("ghostnet_100"), torch.zeros(1, 3, 64, 64))


def test_an_upgraded_network_with_gathers() -> None:
    class Upgraded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ghost = GhostModule(3, 11, kernel_size=3, ratio=3, relu=True)
            self.gather, self.other = ChannelGather(11), ChannelGather(11)
            self.conv, self.norm = nn.Conv2d(11, 11, 3, padding=1, bias=False), nn.BatchNorm2d(11)
            self.linear = nn.Linear(11, 5)
            for gather in (self.gather, self.other):
                gather.set_(torch.randperm(11))

        def forward(self, x: Tensor) -> Tensor:
            x = self.gather(self.ghost(x))
            return self.linear(torch.relu(x + self.other(self.norm(self.conv(x)))).mean((2, 3)))

    graph = check(Upgraded(), torch.randn(1, 3, 9, 8))
    # The second gather is another order of the convolution's filters; the first stays, because a Ghost module's maps are
    # read in their own order too, but its cut of seven ghosts to the room for them is one with it.
    assert kinds(graph) == [
        "Conv relu",
        "Conv relu",
        "Select",
        "Concat",
        "Select",
        "Conv",
        "Combine relu",
        "Pool",
        "Conv",
    ]


def test_the_tests_own_network() -> None:
    model = tiny.build()
    graph = check(model, torch.randn(1, 1, 16, 16))
    assert kinds(graph) == ["Conv relu", "Conv relu", "Conv", "Combine relu", "Conv relu", "Pool", "Conv"]
    assert [step.name for step in graph.operations][:3] == ["stem.0", "conv1", "conv2"]


@pytest.mark.parametrize("stride", [1, 2])
def test_branches_become_what_folding_makes_of_them(stride: int) -> None:
    block = BranchedGhostBottleneck(8, 16, 12, kernel_size=5, stride=stride, se=True, attention=True).eval()
    lively(block)
    x = torch.randn(1, 8, 9, 8)
    graph, folded = simplified(captured(block, x)), simplified(captured(block.folded().eval(), x))
    assert distance(graph, x, truth(block, x)) < NEAR
    assert kinds(graph) == kinds(folded)
    assert graph.macs == folded.macs
    for step, other in zip(graph.operations, folded.operations, strict=True):
        if isinstance(step, Conv) and isinstance(other, Conv):
            assert (step.stride, step.padding, step.groups) == (other.stride, other.padding, other.groups)
            np.testing.assert_allclose(step.weight, other.weight, rtol=1e-4, atol=1e-5)


kernels = st.tuples(st.integers(1, 4), st.integers(1, 4))
paddings = st.tuples(*[st.integers(0, 3)] * 4)


@given(kernels, kernels, st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(1, 2), st.sampled_from([(1, 1), (2, 1), (6, 6), (2, 6), (3, 2)]))  # fmt: skip
@settings(max_examples=40)
def test_sums_of_any_two_convolutions(
    one: tuple[int, int], two: tuple[int, int], dilation: tuple[int, int], stride: int, groups: tuple[int, int]
) -> None:
    """Padded so that both make maps of one size; merged or not, the sum is right and never dearer."""

    def padded(kernel: tuple[int, int], d: int) -> tuple[int, ...]:
        reach = [d * (size - 1) for size in kernel]
        return (reach[1] // 2, reach[1] - reach[1] // 2, reach[0] - reach[0] // 2, reach[0] // 2)

    a, b = (
        nn.Conv2d(6, 12, k, stride, 0, d, g) for k, d, g in zip((one, two), dilation, groups, strict=True)
    )  # fmt: skip
    pads = [padded(one, dilation[0]), padded(two, dilation[1])]
    model = Forward(lambda s, x: s.a(F.pad(x, pads[0])) + s.b(F.pad(x, pads[1])), a=a, b=b)
    x = torch.randn(1, 6, 8, 7)
    graph = check(model, x)
    assert graph.macs <= total_macs(model, x)
    if dilation == (1, 1) and groups == (1, 1) and all(i >= j for i, j in zip(one, two, strict=True)):
        assert kinds(graph) == ["Conv"] or (one[0] - two[0]) % 2 or (one[1] - two[1]) % 2


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data())
@settings(max_examples=30)
def test_selections_of_joined_maps(widths: list[int], data: st.DataObject) -> None:
    total = sum(widths)
    chosen = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=2 * total))
    start = data.draw(st.integers(0, total - 1))

    def call(s: Any, x: Tensor) -> Tensor:
        joined = torch.cat([getattr(s, f"c{i}")(x) for i in range(len(widths))], 1)
        return torch.cat([joined[:, chosen], joined[:, start:]], 1)[:, 1:]

    check(Forward(call, **{f"c{i}": nn.Conv2d(3, width, 1) for i, width in enumerate(widths)}), torch.randn(1, 3, 2, 3))


def conv(width: int = 4, out: int = 4, **rest: Any) -> nn.Module:
    return nn.Conv2d(width, out, 3, padding=1, **rest)


# Where a pass must not do its work: something else reads the value, or padding would not be what it was

KEPT: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "a norm of a map that others read": (lambda s, x: then(s.c(x), lambda y: s.n(y) * s.d(y)), ["Conv", "Conv", "Conv", "Combine"]),
    "a norm before padding": (lambda s, x: s.c(s.n(x)), ["Conv", "Conv"]),
    "a scale before padding": (lambda s, x: s.c(x * 3), ["Conv"]),
    "a norm that the network returns": (lambda s, x: torch.cat([s.n(x), x], 1), ["Conv", "Concat"]),
    "an activation of a map that others read": (lambda s, x: then(s.c(x), lambda y: y.relu() + y), ["Conv", "Activate relu", "Combine"]),
    "a norm behind an activation": (lambda s, x: s.n(s.c(x).relu()), ["Conv relu", "Conv"]),
    "an activation before a norm of joined maps": (
        lambda s, x: s.c(s.n8(torch.cat([s.c(x).relu(), x], 1))[:, 2:6].relu()),
        ["Conv relu", "Concat", "Conv relu", "Select", "Conv"],
    ),
    "a sigmoid of padding": (lambda s, x: F.pad(s.d(x), (1, 1, 1, 1)).sigmoid(), ["Conv", "Resample", "Activate sigmoid"]),
    "a relu of padding": (lambda s, x: F.pad(s.d(x), (1, 1, 1, 1)).relu(), ["Conv relu", "Resample"]),
    "padding of greatest values": (lambda s, x: F.max_pool2d(F.pad(s.d(x), (1, 1)), 3), ["Conv", "Resample", "Pool"]),
    "a stride of a wide kernel": (lambda s, x: s.c(x[:, :, ::2, ::2]), ["Resample", "Conv"]),
    "a stride of a map that others read": (lambda s, x: then(s.d(x), lambda y: s.c(y)[:, :, :3, :3] + y[:, :, ::2, ::2]), ["Conv", "Conv", "Resample", "Resample", "Combine"]),
    "a convolution that others read in a sum": (lambda s, x: then(s.c(x), lambda y: (s.d(x) + y) * y), ["Conv", "Conv", "Combine", "Combine"]),
    "a dearer sum": (lambda s, x: s.wide(x) + s.d(x), ["Conv", "Conv", "Combine"]),
    "a gate of another map": (lambda s, x: s.c(x) * s.d(x).sigmoid(), ["Conv", "Conv sigmoid", "Combine"]),
    "doubled channels": (lambda s, x: s.c(x)[:, [0, 1, 2, 3, 3]], ["Conv", "Select"]),
    "fewer channels of groups": (lambda s, x: s.wide(x)[:, [2, 0]], ["Conv", "Select"]),
    "a shift with zeros": (lambda s, x: s.n(F.pad(s.d(x), (0, 0, 1, 1))), ["Conv", "Conv"]),
}  # fmt: skip


@pytest.mark.parametrize("what", KEPT)
def test_what_must_stay(what: str) -> None:
    call, wanted = KEPT[what]
    parts = {
        "c": conv(), "d": nn.Conv2d(4, 4, 1), "n": nn.BatchNorm2d(4), "n8": nn.BatchNorm2d(8),
        "wide": nn.Conv2d(4, 4, 7, padding=3, groups=4),
    }  # fmt: skip
    graph = check(Forward(call, **parts), torch.randn(1, 4, 6, 6))
    assert sorted(kinds(graph)) == sorted(wanted) or (
        what.startswith("a stride of a map") and "Resample" in kinds(graph)
    )


def test_each_pass_alone_changes_nothing_but_rounding() -> None:
    def call(s: Any, x: Tensor) -> Tensor:
        y = s.n(s.c(F.pad(x, (1, 0, 0, 1))))
        y = y * F.relu6(y + 3) / 6
        z = torch.cat([s.d(y)[:, :, ::2, ::2], s.n2(s.c(y))[:, :, ::2, ::2]], 1)
        return s.n8(z)[:, [7, 0, 1, 2]].relu() + F.adaptive_avg_pool2d(y.mean((2, 3), keepdim=True), 1)

    parts = {
        "c": conv(),
        "d": nn.Conv2d(4, 4, 1),
        "n": nn.BatchNorm2d(4),
        "n2": nn.BatchNorm2d(4),
        "n8": nn.BatchNorm2d(8),
    }
    model, x = lively(Forward(call, **parts)), torch.randn(1, 4, 7, 7)
    graph, expected = captured(model, x), truth(model, x)
    names = {step.name for step in simplify.PASSES}
    before = [(step.name, step.output, step.inputs) for step in graph.operations]
    seen: list[str] = []
    for name, after in simplify.steps(graph):
        assert distance(after, x, expected) < 1e-6
        seen.append(name)
    assert [
        (step.name, step.output, step.inputs) for step in graph.operations
    ] == before  # the graph given is as it was
    assert set(seen) <= names
    assert {
        "relu6(x + 3) is a hard sigmoid",
        "zeros around a map become padding",
        "every k-th place becomes a stride",
    } <= set(seen)
    for step in simplify.PASSES:
        assert distance(step.run(graph), x, expected) < 1e-6


def test_a_simple_graph_is_returned_as_it_is() -> None:
    graph = simplified(captured(tiny.build(), torch.randn(1, 1, 8, 8)))
    assert simplified(graph) is graph
    assert list(simplify.steps(graph)) == []


def test_what_nothing_reads_goes() -> None:
    model = Forward(lambda s, x: (s.c(x), s.d(x))[1], c=conv(), d=nn.Conv2d(4, 4, 1))
    graph = captured(model, torch.randn(1, 4, 5, 5))
    assert [step.name for step in simplified(graph).operations] == ["d"]


def test_joined_maps_of_joined_maps_are_joined_once() -> None:
    model = Forward(lambda s, x: torch.cat([torch.cat([s.c(x), x], 1), s.d(x)], 1), c=conv(), d=nn.Conv2d(4, 4, 1))
    graph = check(model, torch.randn(1, 4, 5, 5))
    (concat,) = (step for step in graph.operations if isinstance(step, Concat))
    assert len(concat.inputs) == 3


def test_padding_that_counts_goes_into_a_mean() -> None:
    model = Forward(lambda _, x: F.avg_pool2d(F.pad(x, (1, 0, 2, 0)), 3, 2, 1, count_include_pad=False))
    (pool,) = check(model, torch.randn(1, 4, 7, 7)).operations
    assert isinstance(pool, Pool)
    assert (pool.padding, pool.counted) == ((3, 2, 1, 0), (2, 1, 0, 0))


def test_a_permutation_goes_into_the_weights_that_read_it() -> None:
    order = [2, 0, 3, 1]
    model = Forward(lambda s, x: s.c(x[:, order]), c=conv())
    (step,) = check(model, torch.randn(1, 4, 5, 5)).operations
    assert isinstance(step, Conv)
    inverse = np.argsort(order)
    own: Any = model.get_submodule("c")
    np.testing.assert_array_equal(step.weight, own.weight.detach().numpy()[:, inverse])


def test_a_shuffle_stays_one_select() -> None:
    model = Forward(lambda s, x: F.channel_shuffle(torch.cat([s.c(x), s.d(x)], 1), 2), c=conv(), d=nn.Conv2d(4, 4, 1))
    graph = check(model, torch.randn(1, 4, 5, 5))
    (select,) = (step for step in graph.operations if isinstance(step, Select))
    assert select.channels == (0, 4, 1, 5, 2, 6, 3, 7)
    image = np.random.default_rng(0).normal(size=(4, 5, 5))
    values = outputs(graph, image)
    np.testing.assert_array_equal(values[graph.output], values[select.inputs[0]][list(select.channels)])
