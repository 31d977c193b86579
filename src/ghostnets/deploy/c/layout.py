# SPDX-License-Identifier: Apache-2.0
"""Where the values of a network lie in memory.

A map is stored row by row. In the layout ``channels last`` a row holds, place after place, all channels, in whole
vectors; in ``lines`` it holds, channel after channel, all places. Several values may share a buffer: the parts of a
concatenation are written where the whole is read, and a slice or a shuffle of channels is only another list of offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghostnets.deploy.graph import Shape


@dataclass(frozen=True, kw_only=True, eq=False)
class Buffer:
    """Memory of whole rows: all of a map, or a ring in which row y lies at y % ring."""

    name: str
    lines: bool
    """Whether a row holds channel after channel."""
    height: int
    width: int
    left: int
    """Columns of zeros before the map, which convolutions read instead of testing for its border."""
    right: int
    pixel: int
    """Floats from one place to the next: 1 in lines."""
    line: int
    """Floats from one channel to the next: 1 in channels last."""
    row: int
    """Floats from one row to the next."""
    ring: int
    """Rows kept."""
    offset: int = 0
    """Of the first float in the arena."""

    @property
    def floats(self) -> int:
        return self.ring * self.row

    @property
    def beside(self) -> tuple[tuple[int, int], ...]:
        """The columns of zeros, as pairs: the first, and how many."""
        right = self.line - self.width if self.lines else self.right
        return tuple((first, count) for first, count in ((-self.left, self.left), (self.width, right)) if count)


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One value in its buffer."""

    buffer: str
    shape: Shape
    offsets: np.ndarray
    """int (channels): of each channel's first place from the beginning of its row."""

    @property
    def start(self) -> int:
        return int(self.offsets.min())


@dataclass(frozen=True)
class Run:
    """Channels at equal distances."""

    start: int
    count: int
    stride: int

    @property
    def places(self) -> list[int]:
        return [self.start + index * self.stride for index in range(self.count)]


def runs(offsets: np.ndarray, stride: int) -> list[Run]:
    """Sorted offsets as runs of that stride."""
    breaks = np.flatnonzero(np.diff(offsets) != stride) + 1
    return [Run(int(part[0]), len(part), stride) for part in np.split(offsets, breaks)]
