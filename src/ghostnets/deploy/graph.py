# SPDX-License-Identifier: Apache-2.0
"""A network as a plain list of operations on one image: what every generator of code reads.

Eight kinds are enough for image CNNs, because many layers are special cases: a linear layer is a convolution with a
kernel as large as its map, a norm on its own a depthwise 1x1 convolution, a global mean a pool, a channel shuffle or a
slice a Select, an upsampling, a crop, a stride or a padding a Resample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np

Shape = tuple[int, int, int]
"""Channels, height, width. What has no places (the output of a classifier) is C x 1 x 1."""

Activation = Literal["relu", "relu6", "hard_sigmoid", "hard_swish", "sigmoid", "silu"]

ZERO = -1
"""In Select and Resample: nothing is read here, the value is 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One step: reads values by name, writes one."""

    name: str
    """The user's module, as in ``named_modules()``, with the operation in it where the module has several."""
    inputs: tuple[str, ...]
    output: str
    shape: Shape
    """Of the output."""

    @property
    def macs(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Operation):
    """A convolution, with everything linear before and after it folded in."""

    weight: np.ndarray
    """float32 (out_channels, in_channels / groups, kernel height, kernel width)"""
    bias: np.ndarray
    """float32 (out_channels)"""
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    """Zeros at the top, left, bottom, right."""
    dilation: tuple[int, int]
    groups: int
    activation: Activation | None = None

    @property
    def macs(self) -> int:
        return self.weight.size * self.shape[1] * self.shape[2]

    @property
    def depthwise(self) -> bool:
        """Whether each output reads one channel, and there are several."""
        return self.groups > 1 and self.weight.shape[1] == 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(Operation):
    """The greatest or the mean of every window."""

    kind: Literal["max", "mean"]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    """(1, 1) for means."""
    padding: tuple[int, int, int, int]
    """Places at the top, left, bottom, right that windows reach beyond the map; never the greatest of a window."""
    counted: tuple[int, int, int, int]
    """How many of these count as zeros in a mean."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Activate(Operation):
    """An activation that stands alone, because others read the map before it."""

    activation: Activation


@dataclass(frozen=True, kw_only=True, eq=False)
class Combine(Operation):
    """The sum or product of two values; either may have one place where the other has many, or one channel."""

    kind: Literal["add", "multiply"]
    activation: Activation | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Operation):
    """Channels of several values, one after another."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Select(Operation):
    """Chosen channels, in an order of its own: a slice, a shuffle, a gather, zero channels."""

    channels: tuple[int, ...]
    """The input's channel for each of the output's, or ZERO."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Resample(Operation):
    """Chosen rows and columns: nearest upsampling, strided slices, crops, zero padding."""

    rows: tuple[int, ...]
    """The input's row for each of the output's, or ZERO."""
    columns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Softmax(Operation):
    """Over the channels of each place."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A network: its operations in an order in which they can run."""

    name: str
    input: str
    input_shape: Shape
    output: str
    output_shape: tuple[int, ...]
    """Of one image as PyTorch gives it, without the batch: (classes,), or (C, H, W), whose product is the size."""
    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        shapes = self.shapes
        for operation in self.operations:
            assert all(name in shapes for name in operation.inputs), operation
        assert prod(self.output_shape) == prod(shapes[self.output]), self.output_shape

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Of every value."""
        return {self.input: self.input_shape} | {step.output: step.shape for step in self.operations}

    @cached_property
    def readers(self) -> dict[str, list[Operation]]:
        """The operations that read each value."""
        found: dict[str, list[Operation]] = {name: [] for name in self.shapes}
        for operation in self.operations:
            for name in dict.fromkeys(operation.inputs):
                found[name].append(operation)
        return found

    @property
    def macs(self) -> int:
        return sum(operation.macs for operation in self.operations)

    def lines(self) -> Iterator[str]:
        """One line for each operation, to read."""
        for step in self.operations:
            shape = "x".join(map(str, step.shape))
            inputs = ", ".join(step.inputs)
            yield f"{step.output} = {type(step).__name__}({inputs}) -> {shape}  # {step.name}, {step.macs:,} MACs"
