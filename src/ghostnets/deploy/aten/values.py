# SPDX-License-Identifier: Apache-2.0
"""What a tensor of the user's network holds: for each of its elements, the place in a map of the graph it comes from.

Views, slices, shuffles, paddings and upsamplings only move elements. So PyTorch itself moves the numbers of the places,
as floats, and what has become of them is read off when an operation needs a map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from ghostnets.deploy.graph import ZERO, Shape


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """A tensor that depends on the image."""

    name: str
    """Of the graph's value that holds its elements."""
    map: Shape
    """Of that value."""
    shape: tuple[int, ...]
    """As PyTorch has it, with the batch of one."""
    places: Tensor | None = None
    """Of this shape: 1 + the index into the flattened map, or 0 where the element is zero. None: all, in order."""
    memory: object = field(default_factory=object)
    """The same for tensors that share their memory."""

    def numbers(self) -> Tensor:
        """``places``, written out; float64, because PyTorch pads and reflects only floats."""
        if self.places is not None:
            return self.places
        return torch.arange(1, prod(self.shape) + 1, dtype=torch.float64).view(self.shape)

    @property
    def whole(self) -> bool:
        """Whether it holds every element of the map exactly once, in whatever order."""
        if self.places is None:
            return True
        used = self.places.long().flatten()
        return used.numel() == prod(self.map) and bool((used.sort().values == torch.arange(1, len(used) + 1)).all())

    def overlaps(self, other: Value) -> bool:
        """Whether both hold a same element."""
        if self.name != other.name:
            return False
        mine, theirs = (value.numbers().flatten() for value in (self, other))
        return bool(torch.isin(mine[mine > 0], theirs).any())

    def reshaped(self, shape: tuple[int, ...]) -> Value:
        """The same elements in the same order."""
        places = None if self.places is None else self.places.reshape(shape)
        return Value(name=self.name, map=self.map, shape=shape, places=places, memory=self.memory)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Value:
        """What a function that only moves elements makes of it, in memory of its own."""
        return self.of(move(self.numbers()))

    def of(self, places: Tensor) -> Value:
        """Other elements of the same map."""
        return Value(name=self.name, map=self.map, shape=tuple(places.shape), places=places)


def map_shape(shape: tuple[int, ...]) -> Shape | None:
    """The map that a tensor of this shape is: (N, C, H, W), (N, C, W) or (N, C) with one image. None: it is none."""
    if not 2 <= len(shape) <= 4 or shape[0] != 1:
        return None
    height = shape[2] if len(shape) == 4 else 1
    return (shape[1], height, shape[-1] if len(shape) > 2 else 1)


def axes(value: Value) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """The channels, rows and columns of its map that a value consists of, ZERO where it is zero.

    None where it is not made of whole rows and columns of whole channels, or is no map.
    """
    shape = map_shape(value.shape)
    if shape is None:
        return None
    index = value.numbers().long().view(shape) - 1
    _, height, width = value.map
    parts: list[Tensor] = []
    for axis, part in enumerate((index // (height * width), index // width % height, index % width)):
        lines = torch.where(index >= 0, part, ZERO).movedim(axis, 0).flatten(1)
        parts.append(lines.amax(1))
    channels, rows, columns = (part.view([-1 if i == axis else 1 for i in range(3)]) for axis, part in enumerate(parts))
    made = torch.where(
        (channels >= 0) & (rows >= 0) & (columns >= 0), (channels * height + rows) * width + columns, ZERO
    )
    if not torch.equal(made, index):
        return None
    return (_ints(channels), _ints(rows), _ints(columns))


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values.flatten().tolist())
