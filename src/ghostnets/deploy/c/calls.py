# SPDX-License-Identifier: Apache-2.0
"""Which kernels a step calls, on which places, with which weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ghostnets.deploy.c.kernels import (
    convolution,
    copying,
    depthwise,
    elementwise,
    line_convolution,
    line_depthwise,
    line_elementwise,
    line_pooling,
    line_winograd,
    pooling,
    winograd,
)
from ghostnets.deploy.c.kernels.text import Kernel
from ghostnets.deploy.c.layout import Buffer, View
from ghostnets.deploy.c.steps import Copy, Deliver, Feed, Step
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Activate, Combine, Conv, Pool, Softmax

NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of a kernel, or several on places at equal distances."""

    kernel: Kernel
    reads: int = 0
    """Floats from the beginning of the buffer read to where the kernel is to begin; so for the others."""
    other: int = 0
    writes: int = 0
    weights: np.ndarray = field(default_factory=lambda: NOTHING)
    tiles: int = 1
    """Tiles of output channels, where the kernel counts them."""
    vectors: int = 1
    """Of all tiles."""
    tile: tuple[int, int] = (1, 1)
    """Vectors of a tile, and rows that it likes to compute together."""
    parts: int = 0
    """Floats of a result of which each thread may find a part, from its own rows, so that the parts are added; 0: not so."""
    scratch: int = 0
    """Floats that the kernel needs for itself."""


def calls(step: Step, buffers: dict[str, Buffer], target: Target) -> list[Call]:
    """The calls of one step, for buffers whose rings are known."""
    operation = step.operation
    if isinstance(operation, Conv):
        return (
            _depthwise(step, operation, buffers, target)
            if operation.depthwise
            else _dense(step, operation, buffers, target)
        )
    read, write = step.reads[0], step.write
    if isinstance(operation, Feed):
        assert write is not None
        scale, shift = operation.scale, operation.shift
        feed = copying.feed(writes=buffers[write.buffer], view=write, kind=operation.kind, scale=scale, shift=shift)
        return [Call(kernel=feed)]
    assert read is not None
    reads = buffers[read.buffer]
    if isinstance(operation, Deliver):
        return [Call(kernel=copying.deliver(reads=reads, view=read))]
    assert write is not None
    writes = buffers[write.buffer]
    if isinstance(operation, Copy):
        lanes = _lanes(operation, read, write, 1 if writes.lines else target.lanes)
        return [
            Call(
                kernel=copying.copy(
                    reads=reads,
                    writes=writes,
                    lanes=lanes,
                    rows=operation.rows,
                    columns=operation.columns,
                    target=target,
                )
            )
        ]
    if isinstance(operation, Softmax):
        return [Call(kernel=copying.softmax(reads=reads, writes=writes, read=read, write=write))]
    if isinstance(operation, Pool):
        return [_pool(step, operation, reads, writes, target)]
    assert isinstance(operation, Combine | Activate)
    second = step.reads[1] if isinstance(operation, Combine) else None
    moves = _moves(step, reads, writes, target)
    (a, b, c) = moves[0]
    near = [(x - a, y - b, z - c) for x, y, z in moves]
    other = buffers[second.buffer] if second is not None else None
    if writes.lines:
        kernel = line_elementwise.kernel(
            operation,
            reads=reads,
            writes=writes,
            other=other,
            moves=near,
            target=target,
            lead=_leads(step, writes, target),
        )
    else:
        kernel = elementwise.kernel(operation, reads=reads, writes=writes, other=other, moves=near, lanes=target.lanes)
    return [Call(kernel=kernel, reads=a, other=b, writes=c)]


def _pool(step: Step, pool: Pool, reads: Buffer, writes: Buffer, target: Target) -> Call:
    read = step.reads[0]
    assert read is not None
    moves = _moves(step, reads, writes, target)
    (a, _, b) = moves[0]
    parts = target.round_up(moves[-1][2] + 1 - b) if pooling.is_mean_of_all(pool, read.shape) else 0
    if reads.lines:
        near = [(x - a, 0, y - b) for x, _, y in moves]
        if not writes.lines:
            return Call(
                kernel=line_pooling.mean(pool, reads=reads, moves=near, target=target), reads=a, writes=b, parts=parts
            )
        lead = _leads(step, writes, target)
        kernel = line_pooling.kernel(pool, reads=reads, writes=writes, moves=near, target=target, lead=lead)
        return Call(kernel=kernel, reads=a, writes=b)
    height, width = read.shape[1:]
    kernel = pooling.kernel(
        pool, reads=reads, writes=writes, moves=[(x - a, y - b) for x, _, y in moves], height=height, width=width
    )
    return Call(kernel=kernel, reads=a, writes=b, parts=parts)


def rows_at_a_time(step: Step, buffers: dict[str, Buffer], target: Target) -> int:
    """How many rows a step's kernel likes to compute together."""
    operation = step.operation
    if not isinstance(operation, Conv) or step.write is None:
        return 1
    lines = buffers[step.write.buffer].lines
    if operation.depthwise:
        return line_depthwise.rows_of(operation) if lines else 1
    if lines:
        return line_winograd.ROWS if _line_winograd(step, operation, buffers, target) else 1
    if (plan := _winograd(step, operation, buffers, target)) is not None:
        return plan.rows
    return max(tiles.tile.rows for _, tiles in _tiled(step, operation, buffers, target))


def _call(
    step: Step, kernel: Kernel, start: int, base: int, weights: np.ndarray, *, scratch: int = 0,
    tiles: convolution.Tiling | None = None,
) -> Call:  # fmt: skip
    """A convolution's, from its first input ``start`` to its first output ``base``; what is added lies as what is written."""
    write, added = step.write, step.reads[1] if len(step.reads) > 1 else None
    assert write is not None
    counted = {} if tiles is None else {"tiles": len(tiles.vector_parts), "vectors": tiles.vectors}
    return Call(
        kernel=kernel,
        reads=start,
        other=base + int(added.offsets[0] - write.offsets[0]) if added is not None else 0,
        writes=base,
        weights=weights,
        tile=(tiles.tile.vectors, tiles.tile.rows) if tiles is not None else (1, 1),
        scratch=scratch,
        **counted,
    )


def _dense(step: Step, conv: Conv, buffers: dict[str, Buffer], target: Target) -> list[Call]:
    read, write = step.reads[0], step.write
    assert read is not None
    assert write is not None
    reads, writes = buffers[read.buffer], buffers[write.buffer]
    added = step.reads[1] if len(step.reads) > 1 else None
    other = buffers[added.buffer] if added is not None else None
    if writes.lines:
        group, lead = line_convolution.group_of(conv, read, write, reads, writes), _leads(step, writes, target)
        if (plan := line_winograd.planned(conv, group, reads, target)) is not None:
            kernel = line_winograd.kernel(
                conv, group, plan, reads=reads, writes=writes, other=other, target=target, lead=lead
            )
            weights, own = line_winograd.packed(conv, group, plan), line_winograd.scratch(group, reads, target)
            return [_call(step, kernel, group.start, group.base, weights, scratch=own)]
        tiles = line_convolution.tile_of(len(group.outputs), conv.shape[2], conv.weight[0].size, target)
        kernel = line_convolution.kernel(
            conv, group, tiles, reads=reads, writes=writes, other=other, target=target, lead=lead
        )
        return [_call(step, kernel, group.start, group.base, convolution.packed(conv, group, tiles.column_parts))]
    if (plan := _winograd(step, conv, buffers, target)) is not None:
        (group,) = convolution.groups_of(conv, read, write, 1, target)
        kernel = winograd.kernel(conv, plan, reads=reads, writes=writes, other=other, target=target)
        weights, own = winograd.packed(conv, group, plan, target), winograd.scratch(conv, plan, target)
        return [_call(step, kernel, group.start, group.base, weights, scratch=own)]
    found = []
    for group, tiles in _tiled(step, conv, buffers, target):
        kernel = convolution.kernel(conv, group, tiles, reads=reads, writes=writes, other=other, target=target)
        weights = convolution.packed(conv, group, [target.lanes * vectors for vectors in tiles.vector_parts])
        found.append(_call(step, kernel, group.start, group.base, weights, tiles=tiles))
    return found


def _line_winograd(step: Step, conv: Conv, buffers: dict[str, Buffer], target: Target) -> line_winograd.Plan | None:
    read, write = step.reads[0], step.write
    assert read is not None
    assert write is not None
    reads, writes = buffers[read.buffer], buffers[write.buffer]
    return line_winograd.planned(conv, line_convolution.group_of(conv, read, write, reads, writes), reads, target)


def _winograd(step: Step, conv: Conv, buffers: dict[str, Buffer], target: Target) -> winograd.Plan | None:
    read, write = step.reads[0], step.write
    assert read is not None
    assert write is not None
    return winograd.planned(conv, read, write, buffers[read.buffer], target)


def _tiled(
    step: Step, conv: Conv, buffers: dict[str, Buffer], target: Target
) -> list[tuple[convolution.Group, convolution.Tiling]]:
    """The groups of a convolution that writes channels last, and how each is cut into tiles."""
    read, write = step.reads[0], step.write
    assert read is not None
    assert write is not None
    reads = buffers[read.buffer]
    _, _, height, width = conv.weight.shape
    return [
        (
            group,
            convolution.tiling(
                conv.shape[2],
                conv.shape[1],
                len(group.outputs) // target.lanes,
                (int(group.channels.max()) + 1) * height * width,
                target,
            ),
        )
        for group in convolution.groups_of(conv, read, write, reads.line if reads.lines else 1, target)
    ]


def _depthwise(step: Step, conv: Conv, buffers: dict[str, Buffer], target: Target) -> list[Call]:
    read, write = step.reads[0], step.write
    assert read is not None
    assert write is not None
    reads, writes = buffers[read.buffer], buffers[write.buffer]
    added = step.reads[1] if len(step.reads) > 1 else None
    other = buffers[added.buffer] if added is not None else None
    found = []
    if writes.lines:
        for filters in line_depthwise.filters_of(conv, read, write, writes):
            lead = _leads(step, writes, target) and filters.base == write.start
            kernel = line_depthwise.kernel(
                conv, filters, reads=reads, writes=writes, other=other, target=target, lead=lead
            )
            weights = line_depthwise.packed(conv, filters)
            found.append(_call(step, kernel, int(filters.sources[0]), filters.base, weights))
        return found
    for filters in depthwise.filters_of(conv, read, write, target):
        kernel = depthwise.kernel(conv, filters, reads=reads, writes=writes, other=other, target=target)
        weights = depthwise.packed(conv, filters, target)
        found.append(_call(step, kernel, int(filters.sources[0]), filters.base, weights))
    return found


def _moves(step: Step, reads: Buffer, writes: Buffer, target: Target) -> list[tuple[int, int, int]]:
    """For each vector of channels, or each line, where it is read, in the other operand, and written."""
    read, write = step.reads[0], step.write
    assert read is not None
    assert write is not None
    other = step.reads[1] if len(step.reads) > 1 else None
    second = np.broadcast_to(read.offsets if other is None else other.offsets, read.offsets.shape)
    lanes = 1 if reads.lines or writes.lines else target.lanes
    found = {
        (int(a) // lanes * lanes, int(b) // lanes * lanes, int(c) // lanes * lanes)
        for a, b, c in zip(read.offsets, second, write.offsets, strict=True)
    }
    return sorted(found, key=lambda move: move[2])


def _leads(step: Step, writes: Buffer, target: Target) -> bool:
    """Whether a step writes the first line of its rows."""
    return step.write is not None and step.write.start == target.round_up(writes.left)


def _lanes(copy: Copy, read: View, write: View, lanes: int) -> list[tuple[int, int]]:
    """For every lane written: what is read; -1: nothing."""
    found = {int(offset) // lanes * lanes + lane: -1 for offset in write.offsets for lane in range(lanes)}
    for channel, offset in zip(copy.channels, write.offsets, strict=True):
        found[int(offset)] = int(read.offsets[channel]) if channel >= 0 else -1
    return sorted(((source, place) for place, source in found.items()), key=lambda lane: lane[1])
