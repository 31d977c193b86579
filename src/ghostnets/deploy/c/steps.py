# SPDX-License-Identifier: Apache-2.0
"""What a program does, step by step: operations that know where their values lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ghostnets.deploy.c.layout import Buffer, View
from ghostnets.deploy.graph import Activate, Combine, Conv, Operation, Pool, Softmax


@dataclass(frozen=True, kw_only=True, eq=False)
class Feed(Operation):
    """The caller's image, row by row."""

    kind: str
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Copy(Operation):
    """Channels, rows and columns in another order; ZERO is nothing."""

    channels: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Deliver(Operation):
    """The answer, as the caller expects it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """An operation with the places of its values."""

    operation: Operation
    reads: tuple[View | None, ...]
    """None: the caller's image."""
    write: View | None
    """None: the caller's answer."""

    @property
    def height(self) -> int:
        """Rows it computes."""
        return self.operation.shape[1]

    def needed(self, index: int, y0: int, y1: int) -> tuple[int, int]:
        """The rows of an input, first and last but one, that rows y0 to y1 are computed from."""
        view, op = self.reads[index], self.operation
        if view is None:
            return (0, 0)
        height = view.shape[1]
        if isinstance(op, Conv | Pool) and index == 0:
            stride, dilation, top = op.stride[0], op.dilation[0], op.padding[0]
            kernel = op.weight.shape[2] if isinstance(op, Conv) else op.kernel[0]
            low, high = y0 * stride - top, (y1 - 1) * stride - top + (kernel - 1) * dilation + 1
        elif isinstance(op, Copy):
            rows = [row for row in op.rows[y0:y1] if row >= 0] or [0]
            low, high = min(rows), max(rows) + 1
        elif isinstance(op, Combine) and height == 1:
            low, high = 0, 1
        else:
            assert isinstance(op, Conv | Activate | Combine | Softmax | Deliver), op
            low, high = y0, y1
        return max(0, min(low, height - 1)), min(height, max(high, 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Lowered:
    """The steps of a program and the memory that they use, before anything is said about when."""

    steps: tuple[Step, ...]
    buffers: dict[str, Buffer] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    """Of every value that is stored, by its name in the graph."""
