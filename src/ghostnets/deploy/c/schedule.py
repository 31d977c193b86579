# SPDX-License-Identifier: Apache-2.0
"""Decide when every row is computed, and where in the arena every buffer lies.

Steps whose maps would not stay in the cache run together, row by row: each begins a row as soon as the rows it reads
are there, and what only they read is kept in a ring of a few rows. The drivers that the program will have are run here
on row numbers alone, which tells how long the rings must be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ghostnets.deploy.c.layout import Buffer
from ghostnets.deploy.c.steps import Lowered, Step
from ghostnets.deploy.graph import Conv

RING_FROM = 2**18
"""Bytes of a map from which on it is worth a ring: a part of a second-level cache."""

FUSED_WEIGHTS = 2**19
"""Bytes of weights that steps running together may have, which all come by for every row."""

ALIGNMENT = 16
"""Floats: buffers begin at whole cache lines."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """Steps that run together, and how many rows each computes at a time."""

    steps: tuple[Step, ...]
    rows: tuple[int, ...]
    waits: tuple[tuple[tuple[int, int], ...], ...]
    """For each step, the steps of this stage (and which of its inputs they make; -1: rows they read and it overwrites)
    that must be ahead of it."""

    def ahead(self, index: int, y1: int) -> Iterator[tuple[int, int]]:
        """How many rows other steps must have done before step ``index`` may compute the rows up to ``y1``."""
        step = self.steps[index]
        y0 = max(0, y1 - self.rows[index])
        for other, read in self.waits[index]:
            if read >= 0:
                yield other, min(step.needed(read, y0, y1)[1], self.steps[other].height)
            else:
                yield other, rows_until(self.steps[other], step, y1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """The stages of a program and its buffers with their places."""

    stages: tuple[Stage, ...]
    buffers: dict[str, Buffer]
    floats: int
    """Of the arena."""


def rows_until(reader: Step, writer: Step, y1: int) -> int:
    """The rows a reader must have done before rows up to ``y1`` of what it reads are overwritten: all that read them."""
    assert writer.write is not None
    index = next(i for i, view in enumerate(reader.reads) if view is not None and view.buffer == writer.write.buffer)
    done = 0
    while done < reader.height and reader.needed(index, done, done + 1)[0] < y1:
        done += 1
    return done


def scheduled(
    lowered: Lowered, rows_of: dict[int, int], *, fuse: bool, reuse: bool, ring_from: int = RING_FROM
) -> Schedule:
    """Group the steps, cut the rings, place the buffers. ``rows_of`` says how many rows a step computes at a time.

    Without ``fuse`` every step computes its whole map before the next begins; without ``reuse`` every value is still
    there after a run.
    """
    groups = list(_groups(lowered, ring_from)) if fuse else [[step] for step in lowered.steps]
    index = {id(step): number for number, step in enumerate(lowered.steps)}
    stages = tuple(_stage(group, [rows_of.get(index[id(step)], 1) for step in group]) for group in groups)
    buffers = dict(lowered.buffers)
    if reuse:
        for stage in stages:
            buffers |= _rings(stage, stages, buffers)
    return _placed(stages, buffers, reuse=reuse)


def _groups(lowered: Lowered, ring_from: int) -> Iterator[list[Step]]:
    """Neighbours join where a large map is made by one and read by another, and no step needs all of a map first."""
    group: list[Step] = []
    for step in lowered.steps:
        large = any(
            view is not None
            and any(_writes(earlier, view.buffer) for earlier in group)
            and _bytes(lowered, view.buffer) >= ring_from
            for view in step.reads
        )
        light = sum(_weights(member) for member in (*group, step)) <= FUSED_WEIGHTS
        if group and not (large and light and _streams(step, group)):
            yield group
            group = []
        group.append(step)
    yield group


def _weights(step: Step) -> int:
    return step.operation.weight.nbytes if isinstance(step.operation, Conv) else 0


def _writes(step: Step, buffer: str) -> bool:
    return step.write is not None and step.write.buffer == buffer


def _bytes(lowered: Lowered, name: str) -> int:
    buffer = lowered.buffers[name]
    return 4 * buffer.row * buffer.height


def _streams(step: Step, group: list[Step]) -> bool:
    """Whether a step can begin before the maps that the group makes are whole."""
    for index, view in enumerate(step.reads):
        if view is None or not any(_writes(earlier, view.buffer) for earlier in group):
            continue
        whole = step.needed(index, 0, 1)[1] >= view.shape[1] and view.shape[1] > 1
        if whole:
            return False
    return True


def _stage(steps: list[Step], rows: list[int]) -> Stage:
    waits = []
    for index, step in enumerate(steps):
        found = []
        for other, earlier in enumerate(steps[:index]):
            for read, view in enumerate(step.reads):
                if view is not None and earlier.write is not None and earlier.write.buffer == view.buffer:
                    found.append((other, read))
            reads = {view.buffer for view in earlier.reads if view is not None}
            if step.write is not None and step.write.buffer in reads and _overlaps(step, earlier):
                found.append((other, -1))
        waits.append(tuple(dict.fromkeys(found)))
    return Stage(steps=tuple(steps), rows=tuple(rows), waits=tuple(waits))


def _overlaps(writer: Step, reader: Step) -> bool:
    """Whether the channels that one writes are channels that the other reads."""
    assert writer.write is not None
    written = set(writer.write.offsets.tolist())
    return any(
        view is not None and view.buffer == writer.write.buffer and written & set(view.offsets.tolist())
        for view in reader.reads
    )


def trace(stage: Stage) -> Iterator[tuple[int, int, int]]:
    """The calls of a stage's driver, in their order: the step, and the rows from and to which it computes."""
    done = [0] * len(stage.steps)

    def advance(index: int, until: int) -> Iterator[tuple[int, int, int]]:
        while done[index] < until:
            y0 = done[index]
            y1 = min(y0 + stage.rows[index], stage.steps[index].height)
            for other, rows in stage.ahead(index, y1):
                yield from advance(other, rows)
            yield index, y0, y1
            done[index] = y1

    for index in reversed(range(len(stage.steps))):
        yield from advance(index, stage.steps[index].height)


def _rings(stage: Stage, stages: tuple[Stage, ...], buffers: dict[str, Buffer]) -> dict[str, Buffer]:
    """The buffers that only this stage uses, as short as its driver allows."""
    inside = _names(stage)
    outside = {name for other in stages if other is not stage for name in _names(other)}
    if len(stage.steps) == 1:
        return {}
    written: dict[str, dict[int, int]] = {name: {} for name in inside - outside}
    used: dict[str, dict[int, int]] = {name: {} for name in inside - outside}
    for now, (index, y0, y1) in enumerate(trace(stage)):
        step = stage.steps[index]
        for number, view in enumerate(step.reads):
            if view is not None and view.buffer in used:
                for y in range(*step.needed(number, y0, y1)):
                    used[view.buffer][y] = now
        if step.write is not None and step.write.buffer in used:
            for y in range(y0, y1):
                written[step.write.buffer].setdefault(y, now)
                used[step.write.buffer][y] = now
    return {name: replace(buffers[name], ring=_ring(written[name], used[name], buffers[name].height)) for name in used}


def _ring(written: dict[int, int], used: dict[int, int], height: int) -> int:
    """The fewest rows such that none is written before its predecessor was used for the last time."""
    return next(ring for ring in range(1, height + 1) if all(used[y] < written[y + ring] for y in range(height - ring)))


def _names(stage: Stage) -> set[str]:
    views = [view for step in stage.steps for view in (*step.reads, step.write)]
    return {view.buffer for view in views if view is not None}


def _placed(stages: tuple[Stage, ...], buffers: dict[str, Buffer], *, reuse: bool) -> Schedule:
    """The largest first, each at the lowest place where nothing lies that lives at the same time."""
    lives: dict[str, tuple[int, int]] = {}
    for number, stage in enumerate(stages):
        for name in _names(stage):
            lives[name] = (lives.get(name, (number, number))[0], number)
    if not reuse:
        lives = dict.fromkeys(lives, (0, len(stages)))
    placed: dict[str, tuple[int, int]] = {}
    for name in sorted(lives, key=lambda name: (-buffers[name].floats, name)):
        size = -(-buffers[name].floats // ALIGNMENT) * ALIGNMENT
        taken = sorted(
            placed[other] for other in placed if lives[other][0] <= lives[name][1] and lives[name][0] <= lives[other][1]
        )
        at = 0
        for low, high in taken:
            if low - at >= size:
                break
            at = max(at, high)
        placed[name] = (at, at + size)
    floats = max((high for _, high in placed.values()), default=0)
    return Schedule(
        stages=stages,
        buffers={name: replace(buffers[name], offset=placed[name][0]) for name in placed},
        floats=floats,
    )
