# SPDX-License-Identifier: Apache-2.0
"""Where every channel goes: which channels of which tensors are one and the same, and which may change places.

Every convolution gives birth to new channels; norms, activations, pooling, slicing, padding and flattening
carry them; an addition or product makes two channels one, because they must stand at the same place; a
convolution or linear layer reads them and ends them. To learn what another operation does to channels we run it
on tensors in which every channel holds a number of its own, so no table of operations is needed; whatever does
not come out as whole channels is frozen: nobody may move it.
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

_PER_CHANNEL_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Mish, nn.Dropout, nn.Dropout2d,
    nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
_PER_CHANNEL_FUNCTIONS: set[object] = {
    torch.relu, torch.sigmoid, torch.tanh, torch.neg, operator.neg, F.relu, F.relu6, F.leaky_relu, F.silu, F.gelu,
    F.elu, F.hardswish, F.hardsigmoid, F.hardtanh, F.dropout, F.mish, F.softplus, F.avg_pool2d, F.max_pool2d,
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, torch.clamp,
}  # fmt: skip
_PER_CHANNEL_METHODS = {"relu", "sigmoid", "tanh", "contiguous", "clone", "float", "neg", "clamp"}
_JOINING_FUNCTIONS: set[object] = {
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
}  # fmt: skip
_JOINING_METHODS = {"add", "sub", "mul", "div"}
_PAINTS = 3  # ways to number the channels; an operation that compares or mixes them answers otherwise to each
_LARGEST = 1 << 30  # whole numbers, so that the mean of equal ones is exact


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
        self.births: list[list[int]] = []
        self.generator = torch.Generator().manual_seed(0)
        self.users: dict[int, int] = defaultdict(int)
        """How many calls use a parameter."""
        for node in recorded.nodes:
            called = recorded.module_of(node)
            for parameter in called.parameters() if called is not None else ():
                self.users[id(parameter)] += 1
            if node.op == "get_attr":
                self.users[id(operator.attrgetter(str(node.target))(model))] += 1

    def visit(self, node: fx.Node) -> None:
        module = self.recorded.module_of(node)
        direct = [n for n in node.all_input_nodes if n in self.labels]
        if node.op == "placeholder" or not self._tensors_behind(node):
            self.labels[node] = self._new(node)
            self.freeze(self.labels[node])
        elif module is not None and self._is_bound(module):
            self._stop(node)
        elif type(module) is nn.Conv2d and module.groups == module.in_channels == module.out_channels > 1:
            self.labels[node] = self._without_zeros(self.labels[direct[0]])
        elif (type(module) is nn.Conv2d and module.groups == 1) or (
            type(module) is nn.Linear and len(self.recorded.shapes[node]) == 2
        ):
            self.labels[node] = self._new(node)
        elif type(module) in (nn.BatchNorm2d, nn.BatchNorm1d):
            self.labels[node] = self._without_zeros(self.labels[direct[0]])
        elif module is not None and [*module.parameters(), *module.buffers()]:
            self._stop(node)  # weights of a kind we do not know: they may belong to single channels
        elif _is(node, module, _PER_CHANNEL_MODULES, _PER_CHANNEL_FUNCTIONS, _PER_CHANNEL_METHODS) and len(direct) == 1:
            self.labels[node] = self._kept_zeros(node, direct[0])
        elif _is(node, module, (), _JOINING_FUNCTIONS, _JOINING_METHODS):
            self._join(node, direct)
        else:
            self._carry(node)

    def _is_bound(self, module: nn.Module) -> bool:
        """Whether its weights are used elsewhere too, or made from others: then they cannot simply be reordered."""
        own = dict(module.named_parameters())
        return not set(own) <= {"weight", "bias"} or any(self.users[id(p)] > 1 for p in own.values())

    def _tensors_behind(self, node: fx.Node) -> list[fx.Node]:
        """The labelled tensors this node reads, also through sizes and through tuples of tensors."""
        found: dict[fx.Node, None] = {}
        for n in node.all_input_nodes:
            found |= dict.fromkeys([n] if n in self.labels else self._tensors_behind(n))
        return list(found)

    def _without_zeros(self, labels: list[int]) -> list[int]:
        """A bias makes of each zero channel a constant of its own: another frozen class."""
        fresh = [label or self._class() for label in labels]
        self.freeze([label for label in fresh if label not in labels])
        return fresh

    def _kept_zeros(self, node: fx.Node, source: fx.Node) -> list[int]:
        labels = self.labels[source]
        if 0 not in labels:
            return list(labels)
        zeros = torch.zeros(self.recorded.shapes[source])
        value = compute(
            self.model, node, {n: zeros if n is source else self._value(n, {}) for n in node.all_input_nodes}
        )
        return self._without_zeros(labels) if bool((value != 0).any()) else list(labels)

    def _class(self) -> int:
        self.parent.append(len(self.parent))
        return self.parent[-1]

    def _new(self, node: fx.Node) -> list[int]:
        shape = self.recorded.shapes[node]
        born = [self._class() for _ in range(shape[1] if len(shape) > 1 else 1)]
        self.births.append(born)
        return born

    def _join(self, node: fx.Node, sources: list[fx.Node]) -> None:
        shape = self.recorded.shapes[node]
        sources = [n for n in sources if self.recorded.shapes[n]]  # one number scales all channels alike
        alike = [len(self.recorded.shapes[n]) == len(shape) and len(self.labels[n]) == shape[1] for n in sources]
        if len(shape) < 2 or not sources or not all(alike):
            self._stop(node)
            return
        wide = shape[1]
        self.labels[node] = list(self.labels[sources[0]])
        # A zero that is added to a channel takes that channel's place, so it becomes a class of its own first.
        for position in range(wide):
            names = {self.labels[source][position] for source in sources} - {0}
            head, *others = sorted(names) if names else (0,)
            for other in others:
                self._unite(head, other)
            self.labels[node][position] = head

    def _carry(self, node: fx.Node) -> None:
        """Run the operation on tensors in which every channel holds a number of its own.

        Each time with other numbers, so that a maximum, a clamp or a mean that comes out as some channel's number
        by chance is found out; at last with noise, in which what seems a zero must still be one.
        """
        behind = self._tensors_behind(node)
        known = sorted({0} | {label for source in behind for label in self.labels[source]})
        answers: list[list[int] | None] = []
        for _ in range(_PAINTS):
            numbers = torch.randint(-_LARGEST, _LARGEST, (len(known),), generator=self.generator)
            paint = {**dict(zip(known, numbers.tolist(), strict=True)), 0: 0}
            answers.append(_read(self._computed(node, paint), paint))
        found = answers[0]
        if found is None or any(answer != found for answer in answers) or not self._zeros_stay(node, found):
            self._stop(node)
        else:
            self.labels[node] = found

    def _zeros_stay(self, node: fx.Node, labels: list[int]) -> bool:
        if 0 not in labels:
            return True
        value = self._computed(node, None)
        zeros = torch.tensor([label == 0 for label in labels])
        return value is not None and not bool((value[:, zeros] != 0).any())

    def _stop(self, node: fx.Node) -> None:
        """Nothing that goes in or comes out of this node may be moved."""
        self.labels[node] = self._new(node)
        self.freeze(self.labels[node])
        for source in self._tensors_behind(node):
            self.freeze(self.labels[source])

    def _computed(self, node: fx.Node, paint: Mapping[int, int] | None) -> Tensor | None:
        """The node's value from painted tensors, None where it refuses them: then it does nothing we know."""
        try:
            with torch.no_grad():
                value = compute(self.model, node, {n: self._value(n, paint) for n in node.all_input_nodes})
        except Exception:  # noqa: BLE001 any operation at all may stand here
            return None
        return value if isinstance(value, Tensor) else None

    def _value(self, node: fx.Node, paint: Mapping[int, int] | None) -> object:
        """A painted tensor, or noise where there is no paint; a size or a tuple is computed from such tensors."""
        if node not in self.labels:
            return compute(self.model, node, {n: self._value(n, paint) for n in node.all_input_nodes})
        shape = self.recorded.shapes[node]
        if len(shape) < 2:  # no channels, so no paint: a constant is what it is, others are recognised nowhere
            constant = not node.all_input_nodes and node.op != "placeholder"
            return compute(self.model, node, {}) if constant else torch.full(shape, 0.5, dtype=torch.float64)
        names = self.labels[node]
        column = (1, -1, *[1] * (len(shape) - 2))
        if paint is None:
            noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
            return noise * torch.tensor([float(label != 0) for label in names], dtype=torch.float64).view(column)
        numbers = torch.tensor([paint.get(label, 0) for label in names], dtype=torch.float64)
        return numbers.view(column).expand(shape).clone()

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
        for born in self.births:
            roots = [self._root(label) for label in born]
            # channels of one layer that became one class: which of them a position means is no longer known
            self.freeze([root for root in roots if roots.count(root) > 1])
        frozen = frozenset(self._root(x) for x in self.frozen)
        places: dict[int, dict[fx.Node, int]] = defaultdict(lambda: defaultdict(int))
        for node, names in labels.items():
            for label in names:
                places[label][node] += 1
        signature = {label: frozenset(counts.items()) for label, counts in places.items()}
        return Channels(labels, frozen, signature)


def _is(
    node: fx.Node, module: nn.Module | None, modules: tuple[type, ...], functions: set[object], methods: set[str]
) -> bool:
    """Whether this node calls one of these; a module may bear any name, a method's too."""
    if node.op == "call_module":
        return type(module) in modules
    return node.target in (functions if node.op == "call_function" else methods)


def _read(value: Tensor | None, paint: Mapping[int, int]) -> list[int] | None:
    """The class of every channel of a painted value, where it is made of whole channels."""
    if value is None or value.dim() < 2 or not value.numel():
        return None
    name = {number: label for label, number in paint.items()}
    value = value.double()
    rounded = value.round()
    if not bool((value - rounded).abs().max() < 1e-3):  # an interpolation rounds; NaN is no number at all
        return None
    flat = rounded[0].reshape(value.shape[1], -1)
    held = flat.gather(1, flat.abs().argmax(1, keepdim=True))
    inside = (rounded != 0).any(1, keepdim=True)  # around it the same zeros in all channels: padding
    if not bool((rounded == held.view(1, -1, *[1] * (value.dim() - 2)) * inside).all()):
        return None
    labels = [name.get(int(number)) for number in held.flatten().tolist()]
    return [label for label in labels if label is not None] if None not in labels else None
