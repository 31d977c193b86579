# SPDX-License-Identifier: Apache-2.0
"""Graphs of many drawn layers, each of which reads a map that the program itself wrote, and all of which the answer needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ghostnets.deploy.graph import (
    ZERO,
    Activate,
    Activation,
    Combine,
    Concat,
    Conv,
    Graph,
    Operation,
    Pool,
    Resample,
    Select,
    Shape,
    Softmax,
)  # fmt: skip

IMAGE: Shape = (3, 13, 11)

ACTIVATIONS: tuple[Activation | None, ...] = (None, *get_args(Activation))

UNCHECKED = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
"""Graphs are large, and compilers slow."""

FEW = 8
"""Numbers of a map."""

Pads = tuple[int, int, int, int]
NONE: Pads = (0, 0, 0, 0)


class Draft:
    """A graph that grows; names tell the order."""

    def __init__(self, shape: Shape, number: int) -> None:
        self.random = np.random.default_rng(number)
        self.input_shape = shape
        self.shapes: dict[str, Shape] = {"image": shape}
        self.operations: list[Operation] = []

    def add(self, made: Callable[..., Operation], /, *inputs: str, shape: Shape, **fields: Any) -> str:
        name = f"{made.__name__.lower()}{len(self.operations)}"
        self.operations.append(made(name=name, inputs=inputs, output=name, shape=shape, **fields))
        self.shapes[name] = shape
        return name

    def conv(
        self, source: str, channels: int, kernel: tuple[int, int] = (1, 1), stride: tuple[int, int] = (1, 1),
        padding: Pads = NONE, dilation: tuple[int, int] = (1, 1), groups: int = 1, activation: Activation | None = None,
    ) -> str:  # fmt: skip
        """With drawn weights; what comes out is about as large as what goes in. A few numbers are kept away from zero: where
        terms cancel each other, any rounding is much.
        """
        inside, *size = self.shapes[source]
        height, width = (
            (size[i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
        )
        weight = (
            self.random.normal(size=(channels, inside // groups, *kernel))
            / (inside // groups * kernel[0] * kernel[1]) ** 0.5
        )
        bias = self.random.normal(size=channels)
        if channels * height * width <= FEW:
            weight, bias = weight / 4, 2 + bias / 4
        return self.add(
            Conv, source, shape=(channels, height, width), weight=weight.astype(np.float32),
            bias=bias.astype(np.float32), stride=stride, padding=padding, dilation=dilation,
            groups=groups, activation=activation,
        )  # fmt: skip

    def map(self, channels: int, height: int, width: int, activation: Activation | None = None) -> str:
        """A map that a convolution makes of some places of the image."""
        rows, columns = (tuple(int(i) for i in self.random.integers(side, size=n)) for side, n in zip(self.input_shape[1:], (height, width), strict=True))  # fmt: skip
        some = self.add(Resample, "image", shape=(self.input_shape[0], height, width), rows=rows, columns=columns)
        return self.conv(some, channels, activation=activation)

    def __repr__(self) -> str:
        """What failed, to read."""
        return "\n".join(["", *self.graph().lines()])

    def graph(self) -> Graph:
        """Every value that nothing reads goes into the answer, all of it."""
        return copy.deepcopy(self)._finished()

    def _finished(self) -> Graph:
        read = {name for operation in self.operations for name in operation.inputs}
        loose = [name for name in self.shapes if name not in read]
        parts = [self.conv(name, 8, self.shapes[name][1:]) for name in loose]
        whole = self.add(Concat, *parts, shape=(8 * len(parts), 1, 1))
        return Graph(
            name="drawn", input="image", input_shape=self.input_shape, output=whole, output_shape=(8 * len(parts),),
            operations=tuple(self.operations),
        )  # fmt: skip


Layer = Callable[[Draft], None]
"""Adds a map and what reads it."""

counts = st.integers(1, 67)
sides = st.tuples(st.integers(1, 19), st.integers(1, 37))
small = st.integers(1, 3)
pairs = st.tuples(small, small)
activations = st.sampled_from(ACTIVATIONS)
pads = st.tuples(*[st.integers(0, 3)] * 4)


def _fitting(
    size: tuple[int, int], kernel: tuple[int, int], padding: Pads, dilation: tuple[int, int]
) -> tuple[int, int]:
    """The size, grown to what a window needs."""
    height, width = (
        max(size[i], dilation[i] * (kernel[i] - 1) + 1 - padding[i] - padding[i + 2]) for i in (0, 1)
    )  # fmt: skip
    return height, width


@st.composite
def convolutions(draw: st.DrawFn) -> Layer:
    """Dense or in groups; some read a selection or a concatenation, some have a map added before the activation."""
    kernel, stride = draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), draw(pairs)
    if draw(st.booleans()):
        stride = (stride[0], stride[0])
    dilation, padding, activation = draw(pairs), draw(pads), draw(activations)
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5, 8]))
    own, outside = draw(st.integers(1, 67 // groups)), draw(st.integers(1, 67 // groups))
    size = _fitting(draw(sides), kernel, padding, dilation)
    chained = draw(st.booleans())
    added = draw(st.booleans())

    def layer(draft: Draft) -> None:
        source = draft.map(own * groups, *size, draft_activation(draft))
        alone = draft.conv(
            source, outside * groups, kernel, stride, padding, dilation, groups, None if added else activation
        )
        if added:
            other = draft.map(*draft.shapes[alone])
            alone = draft.add(Combine, *_shuffled(draft, alone, other), shape=draft.shapes[alone], kind="add", activation=activation)  # fmt: skip
        if chained:
            draft.conv(alone, 5, (3, 3), padding=(1, 1, 1, 2))

    return layer


@st.composite
def tiled(draw: st.DrawFn) -> Layer:
    """3x3, one after another, most over whole vectors of channels; some have a map added before the activation."""
    channels = draw(st.lists(st.sampled_from((16, 32, 48, 1, 7, 20)), min_size=2, max_size=4))
    size, activation, added = (
        draw(st.tuples(st.integers(1, 17), st.integers(1, 35))),
        draw(activations),
        draw(st.booleans()),
    )

    def layer(draft: Draft) -> None:
        made = draft.map(channels[0], *size, draft_activation(draft))
        for count in channels[1:]:
            made = draft.conv(made, count, (3, 3), padding=(1, 1, 1, 1), activation=None if added else activation)
            if added:
                other = draft.map(*draft.shapes[made])
                made = draft.add(Combine, *_shuffled(draft, made, other), shape=draft.shapes[made], kind="add", activation=activation)  # fmt: skip

    return layer


@st.composite
def depthwise(draw: st.DrawFn) -> Layer:
    """One to three filters for each channel; the next convolution reads them all."""
    kernel, stride = draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), draw(pairs)
    if draw(st.booleans()):
        stride = (stride[0], stride[0])
    dilation, padding, activation = draw(pairs), draw(pads), draw(activations)
    channels, multiplier = draw(st.integers(2, 67)), draw(small)
    size, chained = _fitting(draw(sides), kernel, padding, dilation), draw(st.sampled_from(["", "depthwise", "dense"]))

    def layer(draft: Draft) -> None:
        source = draft.map(channels, *size, draft_activation(draft))
        made = draft.conv(source, channels * multiplier, kernel, stride, padding, dilation, channels, activation)
        if chained == "depthwise":
            draft.conv(made, channels * multiplier, (3, 3), padding=(1, 1, 1, 2), groups=channels * multiplier)
        elif chained:
            draft.conv(made, 7, (1, 3), padding=(0, 1, 0, 2))

    return layer


@st.composite
def pools(draw: st.DrawFn) -> Layer:
    """No window lies beyond the map altogether; some are the whole map."""
    kind, channels = draw(st.sampled_from(["max", "mean"])), draw(counts)
    if draw(st.integers(0, 3)) == 0:
        height, width = draw(sides)

        def whole(draft: Draft) -> None:
            draft.add(
                Pool, draft.map(channels, height, width), shape=(channels, 1, 1), kind=kind, kernel=(height, width),
                stride=(height, width), dilation=(1, 1), padding=NONE, counted=NONE,
            )  # fmt: skip

        return whole
    kernel, stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), draw(pairs)
    dilation = draw(pairs) if kind == "max" else (1, 1)
    # Fewer places beyond than a window has, and a map of more than a dilation, so that each window has one on the map.
    padding: Any = tuple(draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4))
    counted: Any = tuple(draw(st.integers(0, n)) if kind == "mean" else 0 for n in padding)
    size = _fitting(draw(sides), kernel, padding, dilation)
    size = max(size[0], 4 * dilation[0]), max(size[1], 4 * dilation[1])
    shape = tuple((size[i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))  # fmt: skip

    def layer(draft: Draft) -> None:
        draft.add(
            Pool, draft.map(channels, *size), shape=(channels, *shape), kind=kind, kernel=kernel, stride=stride,
            dilation=dilation, padding=padding, counted=counted,
        )  # fmt: skip

    return layer


@st.composite
def combinations(draw: st.DrawFn) -> Layer:
    """Sums and products of two maps, of which either may have one place or one channel; or of a map and itself."""
    kind, activation, channels = draw(st.sampled_from(["add", "multiply"])), draw(activations), draw(counts)
    height, width = draw(sides)
    shapes = [(channels, height, width), (channels, 1, 1), (1, height, width), (1, 1, 1)]
    first, second = draw(st.sampled_from([(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (0, 1), (0, 4)]))
    turned, again = draw(st.booleans()), draw(st.booleans())

    def layer(draft: Draft) -> None:
        one = draft.map(*shapes[first])
        two = one if second == 4 else draft.map(*shapes[second])
        names = (two, one) if turned else (one, two)
        made = draft.add(Combine, *names, shape=shapes[0], kind=kind, activation=activation)
        if again:  # what was an operand is still there
            draft.conv(one, 3, (1, 1))
        draft.conv(made, 4, (3, 3), padding=(1, 1, 1, 1))

    return layer


@st.composite
def selections(draw: st.DrawFn) -> Layer:
    """Channels joined, cut, shuffled, repeated or none, and read by each kind of layer."""
    height, width = draw(sides)
    channels = draw(st.lists(counts, min_size=2, max_size=4))
    way = draw(st.sampled_from(["concat", "slice", "shuffle", "repeat", "zero", "concat of slices", "nested"]))
    reader = draw(st.sampled_from(["dense", "depthwise", "max", "mean", "add", "relu", "two"]))

    def layer(draft: Draft) -> None:
        names = [draft.map(count, height, width) for count in channels]
        made = _selected(draft, way, names)
        count, *_ = shape = draft.shapes[made]
        match reader:
            case "dense":
                draft.conv(made, 6, (3, 3), padding=(1, 1, 1, 1))
            case "depthwise":
                draft.conv(made, 2 * count, (3, 3), padding=(1, 1, 1, 1), groups=count)
            case "max" | "mean" as kind:
                draft.add(
                    Pool, made, shape=(count, -(-height // 2), -(-width // 2)), kind=kind, kernel=(3, 3), stride=(2, 2),
                    dilation=(1, 1), padding=(1, 1, 1, 1), counted=NONE,
                )  # fmt: skip
            case "add":
                draft.add(Combine, made, draft.map(*shape), shape=shape, kind="add", activation="relu")
            case "relu":
                draft.add(Activate, made, shape=shape, activation="relu")
            case _:
                draft.conv(made, 6)
                draft.conv(names[0], 6)

    return layer


def _selected(draft: Draft, way: str, names: list[str]) -> str:
    _, height, width = draft.shapes[names[0]]
    counts_of = [draft.shapes[name][0] for name in names]
    total, random = sum(counts_of), draft.random

    def select(name: str, channels: list[int]) -> str:
        return draft.add(Select, name, shape=(len(channels), height, width), channels=tuple(channels))

    def concat(*parts: str) -> str:
        return draft.add(Concat, *parts, shape=(sum(draft.shapes[name][0] for name in parts), height, width))

    match way:
        case "concat of slices":
            return concat(
                *(select(name, list(range(count // 2, count))) for name, count in zip(names, counts_of, strict=True))
            )
        case "nested":
            return concat(names[0], concat(*names[1:], names[0]))
        case "slice":
            start = int(random.integers(total))
            channels = list(range(start, int(random.integers(start, total)) + 1))
        case "shuffle":
            channels = random.permutation(total).tolist()
        case "repeat":
            channels = random.integers(total, size=total).tolist()
        case "zero":
            channels = [*random.integers(-1, total, size=total + 3).tolist(), ZERO]
        case _:
            return concat(*names)
    return select(concat(*names), channels)


@st.composite
def resamplings(draw: st.DrawFn) -> Layer:
    """Rows and columns cut, repeated, turned and padded."""
    channels, size = draw(counts), draw(sides)
    rows, columns = (draw(st.lists(st.integers(-1, side - 1), min_size=1, max_size=17)) for side in size)
    chosen = draw(st.booleans())

    def layer(draft: Draft) -> None:
        source = draft.map(channels, *size)
        if chosen:
            order = tuple(draft.random.integers(channels, size=channels).tolist())
            source = draft.add(Select, source, shape=(channels, *size), channels=order)
        made = draft.add(
            Resample, source, shape=(channels, len(rows), len(columns)), rows=tuple(rows), columns=tuple(columns)
        )
        draft.conv(made, 3, (3, 3), padding=(1, 1, 1, 1))

    return layer


@st.composite
def softmaxes(draw: st.DrawFn) -> Layer:
    """Of numbers that are not small either."""
    channels, size = draw(counts), draw(sides)
    read, chosen = draw(st.booleans()), draw(st.booleans())

    def layer(draft: Draft) -> None:
        source = draft.map(channels, *size)
        if chosen:
            order = tuple(draft.random.permutation(channels).tolist())
            source = draft.add(Select, source, shape=(channels, *size), channels=order)
        wide = draft.add(Combine, source, draft.map(1, 1, 1), shape=(channels, *size), kind="multiply")
        made = draft.add(Softmax, wide, shape=(channels, *size))
        if read:
            draft.conv(made, 3, (3, 3), padding=(1, 1, 1, 1))

    return layer


def draft_activation(draft: Draft) -> Activation | None:
    """Of the map before: some are never below zero, some always small."""
    return ACTIVATIONS[int(draft.random.integers(len(ACTIVATIONS)))]


def _shuffled(draft: Draft, *names: str) -> tuple[str, ...]:
    return tuple(names[i] for i in draft.random.permutation(len(names)))


FAMILIES: dict[str, st.SearchStrategy[Layer]] = {
    "tiled": tiled(),
    "convolutions": convolutions(),
    "depthwise": depthwise(),
    "pools": pools(),
    "combinations": combinations(),
    "selections": selections(),
    "resamplings": resamplings(),
    "softmaxes": softmaxes(),
}


@st.composite
def drafts(draw: st.DrawFn, *families: str, layers: int = 8) -> Draft:
    """Independent layers of these families, in turn."""
    draft = Draft(IMAGE, draw(st.integers(0, 2**31)))
    for number in range(layers):
        draw(FAMILIES[families[number % len(families)]])(draft)
    return draft


def example(number: int, *families: str, layers: int = 8) -> Graph:
    """One such graph, the same every time; hypothesis' first ones are the smallest there are, so it is a later one."""
    found: list[Draft] = []

    @seed(number)
    @settings(max_examples=6, database=None, phases=[Phase.generate], suppress_health_check=UNCHECKED)
    @given(drafts(*families, layers=layers))
    def collect(draft: Draft) -> None:
        found.append(draft)

    collect()
    return found[-1].graph()
