# SPDX-License-Identifier: Apache-2.0
"""Which convolutions of a network could become Ghost modules, and what stands around each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ghostnets.errors import UserError
from ghostnets.measure.channels import Channels, follow_channels
from ghostnets.measure.trace import Trace, trace
from ghostnets.records import Site

MIN_IN_CHANNELS = 5  # a first convolution reads 1 to 4 image channels; the authors leave it alone (facts D.1, E.2)


@dataclass(frozen=True)
class Place:
    """Where a site stands in the graph: its convolution's node, and the last node that still belongs to it."""

    conv: fx.Node
    norm: fx.Node | None
    act: fx.Node | None
    """Any ReLU that reads this site alone, module or function."""

    @property
    def linear(self) -> fx.Node:
        """The site's value before its activation."""
        return self.norm or self.conv

    @property
    def end(self) -> fx.Node:
        """The site's value after its activation, if it has one."""
        return self.act or self.linear


@dataclass(frozen=True)
class Anatomy:
    """A network, taken apart and untouched: its graph, its channels, its sites, and why others are none."""

    trace: Trace
    channels: Channels
    sites: tuple[Site, ...]
    places: Mapping[str, Place]
    refused: Mapping[str, str]
    """Convolution → why it cannot become a Ghost module."""


def find_sites(model: nn.Module, example: Tensor, *, ignored_layers: Collection[str] = ()) -> Anatomy:
    """Take ``model`` (in eval mode) apart as it treats ``example`` (N, C, H, W).

    An ignored layer that holds others stands for all of them.

    Raises UserError where an ignored layer does not exist or nothing could be upgraded.
    """
    recorded = trace(model, example)
    channels = follow_channels(recorded, model)
    unknown = sorted(set(ignored_layers) - set(recorded.modules))
    if unknown:
        raise UserError(f"ignored layer {unknown[0]!r} does not exist in {type(model).__name__}")
    calls = [node for node in recorded.nodes if isinstance(recorded.module_of(node), nn.Conv2d)]
    names = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    refused: dict[str, str] = {}
    places: dict[str, Place] = {}
    for node in calls:
        name = str(node.target)
        reason = _refusal(recorded, node, calls)
        if any(name == layer or name.startswith(f"{layer}.") for layer in ignored_layers):
            reason = "ignored by request"
        elif reason is None and names[recorded.modules[name]] > 1:
            reason = "it stands in the network under several names"
        if reason is None:
            places[name] = _place(recorded, node)
        else:
            refused[name] = reason
    if not places:
        listed = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "it has no convolution"
        raise UserError(f"{type(model).__name__} has nothing to upgrade ({listed})")
    streams = _streams(channels, places)
    sites = tuple(_site(recorded, channels, place, streams[name]) for name, place in places.items())
    return Anatomy(recorded, channels, sites, places, refused)


def _refusal(recorded: Trace, node: fx.Node, calls: list[fx.Node]) -> str | None:
    conv = recorded.module_of(node)
    assert isinstance(conv, nn.Conv2d)
    owners = [n for n in calls if recorded.module_of(n) is conv]
    shared = [n for n in calls if n is not node and _weight(recorded, n) is conv.weight]
    if type(conv) is not nn.Conv2d:
        return f"a {type(conv).__name__} is not a plain Conv2d"
    if len(owners) > 1 or shared:
        return "its weights are shared by several calls"
    if conv.groups != 1:
        return f"groups={conv.groups}: a grouped convolution is cheap already"
    if conv.padding_mode != "zeros":
        return f"padding_mode={conv.padding_mode!r} is not covered"
    if conv.padding == "same" and any(d * (k - 1) % 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)):
        return f"padding='same' with kernel {_times(conv.kernel_size)} pads unevenly"
    norm = _place(recorded, node).norm
    if norm is not None and getattr(recorded.module_of(norm), "running_mean", None) is None:
        return f"its norm {norm.target} keeps no running statistics"
    if conv.in_channels < MIN_IN_CHANNELS:
        return f"the first convolution ({conv.in_channels} input channels) is left alone"
    if conv.out_channels < 4:
        return f"{conv.out_channels} output channels are too few to share"
    return None


def _times(numbers: Collection[int]) -> str:
    return "×".join(map(str, numbers))


def _weight(recorded: Trace, node: fx.Node) -> object:
    return getattr(recorded.module_of(node), "weight", None)


def _place(recorded: Trace, conv: fx.Node) -> Place:
    norm = _only_reader(conv)
    if norm is None or not isinstance(recorded.module_of(norm), nn.BatchNorm2d) or _calls(recorded, norm) > 1:
        norm = None
    act = _only_reader(norm or conv)
    if act is None or not _is_relu(recorded, act):
        act = None
    return Place(conv, norm, act)


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _calls(recorded: Trace, node: fx.Node) -> int:
    return sum(recorded.module_of(other) is recorded.module_of(node) for other in recorded.nodes)


def _is_relu(recorded: Trace, node: fx.Node) -> bool:
    named = node.op in ("call_function", "call_method") and node.target in (torch.relu, nn.functional.relu, "relu")
    return named or type(recorded.module_of(node)) is nn.ReLU


def _streams(channels: Channels, places: Mapping[str, Place]) -> dict[str, int]:
    """Sites whose channels must stand at the same places get one number."""
    number: dict[str, int] = {}
    groups: list[set[int]] = []
    for name, place in places.items():
        own = set(channels.labels[place.linear]) - {0}
        touching = [g for g in groups if g & own]
        merged = own.union(*touching)
        groups = [g for g in groups if not g & own] + [merged]
        number[name] = -1
    ordered = sorted(groups, key=min)
    for name, place in places.items():
        own = set(channels.labels[place.linear]) - {0}
        number[name] = next(i for i, g in enumerate(ordered) if g & own)
    return number


def _site(recorded: Trace, channels: Channels, place: Place, stream: int) -> Site:
    conv = recorded.module_of(place.conv)
    norm = recorded.module_of(place.norm) if place.norm else None
    assert isinstance(conv, nn.Conv2d)
    size = recorded.shapes[place.conv]
    height, width = conv.kernel_size
    act_module = place.act is not None and place.act.op == "call_module" and _calls(recorded, place.act) == 1
    return Site(
        name=str(place.conv.target),
        norm=str(place.norm.target) if place.norm else None,
        act=str(place.act.target) if place.act is not None and act_module else None,
        relu=place.act is not None,
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=(height, width),
        stride=(conv.stride[0], conv.stride[1]),
        out_size=(size[2], size[3]),
        macs=conv.weight.numel() * size[2] * size[3],
        params=sum(p.numel() for m in (conv, norm) if m is not None for p in m.parameters()),
        stream=stream,
        foldable=_foldable(channels, place, recorded),
    )


def _foldable(channels: Channels, place: Place, recorded: Trace) -> bool:
    """One writer, all channels alike in where they go, none frozen: then any order can be read by the readers."""
    own = channels.labels[place.linear]
    alike = len({channels.signature[label] for label in own}) == 1
    writers = {
        node for node in recorded.nodes
        if isinstance(recorded.module_of(node), nn.Conv2d | nn.Linear)
        and node in channels.labels and set(channels.labels[node]) & set(own)
        and not _carrier(recorded, node)
    }  # fmt: skip
    return alike and len(set(own)) == len(own) and not set(own) & channels.frozen and writers == {place.conv}


def _carrier(recorded: Trace, node: fx.Node) -> bool:
    conv = recorded.module_of(node)
    return isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels == conv.out_channels > 1
