# SPDX-License-Identifier: Apache-2.0
"""Where every channel goes: which channels of which tensors are one and the same, and which may change places.

Every convolution gives birth to new channels; norms, activations, pooling, slicing, padding and flattening
carry them; an addition or product makes two channels one, because they must stand at the same place; a
convolution or linear layer reads them and ends them. To learn what an operation does to channels we run it on
tensors that hold each channel's number, so no table of operations is needed; whatever does not come out as
whole channels is frozen: nobody may move it.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghostnets.measure.trace import Trace, compute

_ELEMENTWISE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Mish, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_ELEMENTWISE = {
    torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.silu, F.gelu, F.elu, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.dropout, F.mish, "relu", "sigmoid", "tanh", "contiguous", "clone", "clamp", "float",
}  # fmt: skip
_JOINING = {operator.add, operator.sub, operator.mul, torch.add, torch.sub, torch.mul, "add", "sub", "mul"}


@dataclass(frozen=True)
class Channels:
    """For every tensor the class of each of its channels (dimension 1).

    ``labels[node][p]`` names the class at position p, 0 a constant zero. Two positions with one label, in one
    tensor or in many, must always hold the same original channel.
    """

    labels: Mapping[fx.Node, tuple[int, ...]]
    frozen: frozenset[int]
    signature: Mapping[int, frozenset[tuple[fx.Node, int]]]
    """For every class the tensors it stands in, and how often: classes of equal signature may change places."""

    def positions(self, node: fx.Node) -> Mapping[int, list[int]]:
        """For every class in this tensor, where it stands."""
        places: dict[int, list[int]] = defaultdict(list)
        for position, label in enumerate(self.labels[node]):
            places[label].append(position)
        return places


def follow_channels(recorded: Trace, model: nn.Module) -> Channels:
    """Follow every channel through the recorded network."""
    follower = _Follower(recorded, model)
    for node in recorded.nodes[:-1]:
        if node in recorded.shapes:
            follower.visit(node)
    follower.freeze(follower.labels[recorded.output])
    return follower.result()


class _Follower:
    """Union-find over channel classes, filled node by node."""

    def __init__(self, recorded: Trace, model: nn.Module) -> None:
        self.recorded = recorded
        self.model = model
        self.parent = [0]
        self.frozen: set[int] = {0}
        self.labels: dict[fx.Node, list[int]] = {}

    def visit(self, node: fx.Node) -> None:
        module = self.recorded.module_of(node)
        sources = [n for n in node.all_input_nodes if n in self.labels]
        if node.op == "placeholder" or not sources:
            self.labels[node] = self._new(node)
            self.freeze(self.labels[node])
        elif isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1:
            self.labels[node] = list(self.labels[sources[0]])
        elif isinstance(module, nn.Conv2d | nn.Linear):
            self.labels[node] = self._new(node)
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                self.freeze(self.labels[sources[0]] + self.labels[node])
            if isinstance(module, nn.Linear) and len(self.recorded.shapes[node]) != 2:
                self.freeze(self.labels[sources[0]] + self.labels[node])
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d, *_ELEMENTWISE_MODULES)) or node.target in _ELEMENTWISE:
            self.labels[node] = list(self.labels[sources[0]])
        elif node.target in _JOINING:
            self._join(node, sources)
        elif module is not None and next(module.parameters(), None) is not None:
            self._stop(node, sources)  # weights of a kind we do not know: they may belong to single channels
        else:
            self._carry(node, sources)

    def _new(self, node: fx.Node) -> list[int]:
        shape = self.recorded.shapes[node]
        first = len(self.parent)
        count = shape[1] if len(shape) > 1 else 1
        self.parent.extend(range(first, first + count))
        return list(range(first, first + count))

    def _join(self, node: fx.Node, sources: list[fx.Node]) -> None:
        wide = self.recorded.shapes[node][1]
        self.labels[node] = list(self.labels[sources[0]])
        for source in sources:
            if len(self.labels[source]) != wide or len(self.recorded.shapes[source]) < 2:
                self._stop(node, sources)
                return
        # A zero that is added to a channel takes that channel's place, so it becomes a class of its own first.
        for position in range(wide):
            names = {self.labels[source][position] for source in sources} - {0}
            head, *others = sorted(names) if names else (0,)
            for other in others:
                self._unite(head, other)
            self.labels[node][position] = head

    def _carry(self, node: fx.Node, sources: list[fx.Node]) -> None:
        """Run the operation on tensors whose every value is its channel's number."""
        painted = {source: self._paint(source) for source in sources}
        constants = {n: self.recorded_value(n) for n in node.all_input_nodes if n not in painted}
        try:
            with torch.no_grad():
                value = compute(self.model, node, {**constants, **painted})
        except Exception:  # an operation that refuses painted tensors moves channels in no way we know
            value = None
        found = self._read(value, sources) if isinstance(value, Tensor) else None
        if found is None:
            self._stop(node, sources)
        else:
            self.labels[node] = found

    def _stop(self, node: fx.Node, sources: list[fx.Node]) -> None:
        """Nothing that goes in or comes out of this node may be moved."""
        self.labels[node] = self._new(node)
        self.freeze(self.labels[node] + [label for source in sources for label in self.labels[source]])

    def recorded_value(self, node: fx.Node) -> object:
        """A non-tensor argument (a size, say): recomputed from painted tensors it is what it was."""
        inner = {n: self._paint(n) if n in self.labels else self.recorded_value(n) for n in node.all_input_nodes}
        return compute(self.model, node, inner)

    def _paint(self, node: fx.Node) -> Tensor:
        shape = self.recorded.shapes[node]
        labels = torch.tensor(self.labels[node], dtype=torch.float64)
        return labels.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).clone()

    def _read(self, value: Tensor, sources: list[fx.Node]) -> list[int] | None:
        if value.dim() < 2:
            return None
        flat = value[0].reshape(value.shape[1], -1)
        known = {0} | {label for source in sources for label in self.labels[source]}
        labels = [round(v) for v in flat[:, 0].tolist()]
        whole = bool((flat == torch.tensor(labels, dtype=flat.dtype)[:, None]).all())
        return labels if whole and set(labels) <= known else None

    def freeze(self, labels: list[int]) -> None:
        self.frozen.update(labels)

    def _root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def _unite(self, one: int, other: int) -> None:
        one, other = sorted((self._root(one), self._root(other)))
        self.parent[other] = one

    def result(self) -> Channels:
        labels = {node: tuple(self._root(x) for x in names) for node, names in self.labels.items()}
        frozen = frozenset(self._root(x) for x in self.frozen)
        places: dict[int, dict[fx.Node, int]] = defaultdict(lambda: defaultdict(int))
        for node, names in labels.items():
            for label in names:
                places[label][node] += 1
        signature = {label: frozenset(counts.items()) for label, counts in places.items()}
        return Channels(labels, frozen, signature)
