# SPDX-License-Identifier: Apache-2.0
"""The graph as it grows: who asks for an operation, what it is called, and values as maps."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ghostnets.deploy.aten.refusals import NEAREST, USUAL
from ghostnets.deploy.aten.values import Value, axes, map_shape
from ghostnets.deploy.graph import Operation, Resample, Select, Shape
from ghostnets.errors import UnsupportedLayer

_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Site:
    """A call in the user's code."""

    library: str
    """``aten``, or whose the operation is."""
    operation: str
    """ATen's name, without overload and without the underscore of what happens in place."""
    module: str
    """As in ``named_modules()``; empty for the network itself."""
    line: str
    """``file.py:17`` of the innermost line that is not PyTorch's; empty where it is not known."""
    shape: tuple[int, ...]
    """Of what it returns, the first where it returns several."""

    def __str__(self) -> str:
        place = self.module or "the network itself"
        return f"{place} ({self.line})" if self.line else place


def site_of(node: fx.Node) -> Site:
    """Where in the user's code a node of an exported graph comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    returned = pytree.tree_leaves(node.meta.get("val"))
    shape = getattr(returned[0], "shape", ()) if returned else ()
    library = str(getattr(node.target, "namespace", "aten"))
    return Site(
        library,
        operation_of(node),
        stack[-1][0] if stack else "",
        own_line(node.meta.get("stack_trace") or ""),
        tuple(shape),
    )


def own_line(trace: str) -> str:
    """``file.py:17`` of a trace's innermost line that is not PyTorch's; empty where there is none."""
    frames = re.findall(r'File "(.+?)", line (\d+)', trace)
    own = [f"{Path(file).name}:{line}" for file, line in frames if not file.startswith(_TORCH)]
    return own[-1] if own else ""


def operation_of(node: fx.Node) -> str:
    """ATen's name of what a node does, such as ``conv2d``."""
    name = str(getattr(getattr(node.target, "overloadpacket", node.target), "__name__", node.name))
    return name.rstrip("_")


class Builder:
    """Collects operations; ``site`` is the call that is being translated."""

    def __init__(self) -> None:
        self.site = Site("", "", "", "", ())
        self._operations: list[tuple[Operation, Site]] = []
        self._maps: dict[Value, Value] = {}
        self._counts: Counter[str] = Counter()

    def add(self, kind: type[Operation], /, *inputs: Value, shape: Shape, says: str = "", **fields: Any) -> Value:
        """A new operation and the map it makes. ``says`` is its word in names, where it is not the call itself."""
        word = says or self.site.operation.strip("_")
        self._counts[word] += 1
        output = f"{word}_{self._counts[word]}"
        read = tuple(value.name for value in inputs)
        site = dataclasses.replace(self.site, operation=word)
        own = kind(name=site.module if not says else "", inputs=read, output=output, shape=shape, **fields)
        self._operations.append((own, site))
        return Value(name=output, map=shape, shape=(1, *shape))

    def as_map(self, value: Value) -> Value:
        """The value as a map of the graph, elements in order, which may take a Resample and a Select."""
        shape = map_shape(value.shape)
        if value.places is None and shape == value.map:
            return value.reshaped((1, *value.map))
        if value not in self._maps:
            self._maps[value] = self._gathered(value)
        return self._maps[value]

    def _gathered(self, value: Value) -> Value:
        chosen = axes(value)
        if chosen is None:
            shape = " x ".join(map(str, value.shape))
            raise self.refused(
                f"reads a tensor of {shape} that is not made of whole rows, columns and channels of one map",
                "move channels or places of (N, C, H, W) maps, not elements between them",
            )
        channels, rows, columns = chosen
        made = Value(name=value.name, map=value.map, shape=(1, *value.map))
        whole = tuple(tuple(range(size)) for size in value.map)
        if (rows, columns) != whole[1:]:
            shape = (value.map[0], len(rows), len(columns))
            made = self.add(Resample, made, shape=shape, says="resample", rows=rows, columns=columns)
        if channels != whole[0]:
            made = self.add(Select, made, shape=(len(channels), *made.map[1:]), says="select", channels=channels)
        return made

    def refused(self, why: str = "", instead: str = "") -> UnsupportedLayer:
        """The error for the call: what it is, where, and what to use ``instead``."""
        reason = f"{self.site.library}.{self.site.operation} at {self.site} {why or 'is not supported'}"
        return UnsupportedLayer(f"{reason}: {instead or NEAREST.get(self.site.operation, USUAL)}")

    def operations(self) -> tuple[Operation, ...]:
        """All, named after the user's modules."""
        several = Counter(step.name for step, _ in self._operations)
        wanted = [
            step.name if step.name and several[step.name] == 1 else f"{site.module}.{site.operation}".lstrip(".")
            for step, site in self._operations
        ]
        steps = [step for step, _ in self._operations]
        return tuple(dataclasses.replace(step, name=n) for step, n in zip(steps, _unique(wanted), strict=True))


def _unique(names: Sequence[str]) -> list[str]:
    """Those that come again get a number."""
    taken: set[str] = set()
    found: list[str] = []
    for name in names:
        own, number = name, 1
        while own in taken:
            number += 1
            own = f"{name}_{number}"
        taken.add(own)
        found.append(own)
    return found
