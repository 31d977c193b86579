# SPDX-License-Identifier: Apache-2.0
"""Schedules of drawn chains, played in numbers: every row is there when it is read, and nothing lies upon another."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import drawn
from ghostnets.deploy.c.calls import rows_at_a_time
from ghostnets.deploy.c.generation import Generated, Options, from_graph
from ghostnets.deploy.c.kernels import convolution, line_convolution
from ghostnets.deploy.c.kernels.convolution import tiling
from ghostnets.deploy.c.layout import View
from ghostnets.deploy.c.schedule import ALIGNMENT, Schedule, scheduled, trace
from ghostnets.deploy.c.steps import Lowered, Step
from ghostnets.deploy.c.target import TARGETS
from ghostnets.deploy.graph import Activate, Combine, Concat, Conv, Pool, Select

TARGET = TARGETS["avx2"]

targets = st.sampled_from(list(TARGETS.values()))


@st.composite
def chains(draw: st.DrawFn) -> drawn.Draft:
    """Layers one after another, some of which read what came long before, and two maps joined or added."""
    draft = drawn.Draft((3, draw(st.integers(4, 24)), draw(st.integers(3, 20))), draw(st.integers(0, 2**31)))
    last = draft.conv("image", draw(st.integers(1, 20)))
    for _ in range(draw(st.integers(2, 9))):
        last = _longer(draft, draw, last)
    return draft


def _longer(draft: drawn.Draft, draw: st.DrawFn, last: str) -> str:
    channels, height, width = shape = draft.shapes[last]
    kernel, stride = draw(st.integers(1, min(4, height, width))), draw(st.sampled_from([1, 1, 1, 2]))
    beside = draw(st.integers(0, kernel - 1))
    around = (beside, beside, beside, beside)
    match draw(st.sampled_from(["conv", "conv", "depthwise", "pool", "add", "concat", "relu", "select"])):
        case "conv":
            return draft.conv(last, draw(st.integers(1, 20)), (kernel, kernel), (stride, stride), around)
        case "depthwise":
            return draft.conv(last, channels, (kernel, kernel), (stride, stride), around, groups=channels)
        case "pool":
            down, across = ((side + 2 * beside - kernel) // stride + 1 for side in (height, width))
            return draft.add(
                Pool, last, shape=(channels, down, across), kind="max", kernel=(kernel, kernel), stride=(stride, stride),
                dilation=(1, 1), padding=around, counted=drawn.NONE,
            )  # fmt: skip
        case "relu":
            return draft.add(Activate, last, shape=shape, activation="relu")
        case "select":
            return draft.add(Select, last, shape=shape, channels=tuple(draft.random.permutation(channels).tolist()))
        case kind:
            same = [name for name, other in draft.shapes.items() if other[1:] == shape[1:]]
            if kind == "concat":
                other = draw(st.sampled_from(same))
                return draft.add(Concat, last, other, shape=(channels + draft.shapes[other][0], height, width))
            other = draw(st.sampled_from([name for name in same if draft.shapes[name] == shape]))
            return draft.add(Combine, last, other, shape=shape, kind="add", activation="relu")


def planned(draft: drawn.Draft, target: str = "avx2") -> tuple[Generated, Schedule]:
    """The program, and its schedule with a ring wherever one can be."""
    program = from_graph(draft.graph(), Options(target=target))
    low, own = program.lowered, program.options.instructions
    rows = {number: rows_at_a_time(step, low.buffers, own) for number, step in enumerate(low.steps)}
    return program, scheduled(low, rows, fuse=True, reuse=True, ring_from=1)


def rows_read(step: Step, index: int, view: View, y: int) -> set[int]:
    """The rows of an input that row y is made of, counted out from what the operation means."""
    operation, height = step.operation, view.shape[1]
    if isinstance(operation, Conv | Pool) and index == 0:
        kernel = operation.weight.shape[2] if isinstance(operation, Conv) else operation.kernel[0]
        rows = {y * operation.stride[0] - operation.padding[0] + i * operation.dilation[0] for i in range(kernel)}
    elif hasattr(operation, "rows"):
        rows = {operation.rows[y]}  # pyright: ignore[reportAttributeAccessIssue]
    else:
        rows = {y if height > 1 else 0}
    return {row for row in rows if 0 <= row < height}


def whose(low: Lowered) -> dict[tuple[str, int], dict[str, None]]:
    """For each buffer's float of a row, the values that may stand there, in the order in which they are written."""
    found: dict[tuple[str, int], dict[str, None]] = {}
    for step in low.steps:
        if step.write is not None:
            for offset in step.write.offsets.tolist():
                found.setdefault((step.write.buffer, offset), {})[step.operation.output] = None
    return found


def play(low: Lowered, schedule: Schedule) -> None:
    """Run the drivers on an arena in which every float only knows who wrote it for which row."""
    arena: dict[int, tuple[int, str, int]] = {}
    number = {id(step): index for index, step in enumerate(low.steps)}
    makers = whose(low)
    written: Counter[int] = Counter()

    def places(view: View, y: int) -> list[int]:
        buffer = schedule.buffers[view.buffer]
        start = buffer.offset + y % buffer.ring * buffer.row
        return [start + int(offset) + x * buffer.pixel for offset in view.offsets for x in {0, view.shape[2] - 1}]

    for stage in schedule.stages:
        for index, y0, y1 in trace(stage):
            step = stage.steps[index]
            for y in range(y0, y1):
                for position, view in enumerate(step.reads):
                    if view is None:
                        continue
                    for row in rows_read(step, position, view, y):
                        for place, offset in zip(
                            places(view, row), np.repeat(view.offsets, len({0, view.shape[2] - 1})), strict=True
                        ):
                            _same(arena.get(place), view, row, int(offset), makers, number, low, step)
                if step.write is not None:
                    for place in places(step.write, y):
                        arena[place] = (number[id(step)], step.write.buffer, y)
                written[number[id(step)]] += 1
    assert [written[index] for index in range(len(low.steps))] == [step.height for step in low.steps]


def _same(found: tuple[int, str, int] | None, view: View, row: int, offset: int, makers: dict[tuple[str, int], dict[str, None]], number: dict[int, int], low: Lowered, reader: Step) -> None:  # fmt: skip
    """What is read is what the last writer before the reader, in the order of the graph, wrote for that row."""
    before = [
        number[id(step)]
        for step in low.steps[: number[id(reader)]]
        if step.write is not None and step.write.buffer == view.buffer and offset in step.write.offsets
    ]
    assert makers[view.buffer, offset]
    assert found == (before[-1], view.buffer, row), (reader.operation.name, view.buffer, row, found)


@given(chains())
@settings(max_examples=25)
def test_every_row_is_there_when_it_is_read(draft: drawn.Draft) -> None:
    program, rings = planned(draft)
    play(program.lowered, rings)
    play(program.lowered, program.schedule)


def test_the_player_notices_a_ring_that_is_too_short() -> None:
    draft = drawn.Draft((3, 20, 8), 0)
    last = draft.conv("image", 8)
    for _ in range(3):
        last = draft.conv(last, 8, (3, 3), padding=(1, 1, 1, 1))
    program, rings = planned(draft)
    shortened = 0
    for name, buffer in rings.buffers.items():
        if 1 < buffer.ring < buffer.height:
            shortened += 1
            short = {**rings.buffers, name: replace(buffer, ring=buffer.ring - 1)}
            with pytest.raises(AssertionError):
                play(program.lowered, Schedule(stages=rings.stages, buffers=short, floats=rings.floats))
    assert shortened >= 2


@given(chains(), st.booleans())
@settings(max_examples=25)
def test_what_lives_at_the_same_time_lies_apart(draft: drawn.Draft, fused: bool) -> None:
    program, rings = planned(draft)
    schedule = rings if fused else program.schedule
    lives: dict[str, list[int]] = {}
    for number, stage in enumerate(schedule.stages):
        for step in stage.steps:
            for view in (*step.reads, step.write):
                if view is not None:
                    lives.setdefault(view.buffer, []).append(number)
    owner = np.full((len(schedule.stages), schedule.floats), -1)
    for index, (name, stages) in enumerate(lives.items()):
        buffer = schedule.buffers[name]
        assert buffer.offset % ALIGNMENT == 0
        assert 1 <= buffer.ring <= buffer.height
        part = owner[min(stages) : max(stages) + 1, buffer.offset : buffer.offset + buffer.floats]
        assert part.shape[1] == buffer.floats, "beyond the arena"
        assert (part == -1).all()
        part[:] = index


@given(chains())
@settings(max_examples=15)
def test_fusion_and_reuse_only_save_memory(draft: drawn.Draft) -> None:
    program, rings = planned(draft)
    low = program.lowered
    kept = scheduled(low, {}, fuse=False, reuse=False)
    assert kept.floats == sum(-(-buffer.floats // ALIGNMENT) * ALIGNMENT for buffer in kept.buffers.values())
    for schedule in (rings, program.schedule):
        assert schedule.floats <= kept.floats
        assert [step for stage in schedule.stages for step in stage.steps] == list(low.steps)
        assert all(schedule.buffers[name].floats <= buffer.floats for name, buffer in kept.buffers.items())


def test_a_chain_of_large_maps_needs_a_few_rows_of_each() -> None:
    draft = drawn.Draft((3, 64, 40), 0)
    last = draft.conv("image", 8)
    for _ in range(4):
        last = draft.conv(last, 8, (3, 3), padding=(1, 1, 1, 1), groups=8)
    draft.conv(last, 8, (4, 4), (4, 4))
    program, rings = planned(draft)
    assert rings.floats < scheduled(program.lowered, {}, fuse=False, reuse=True).floats / 2


# Tiles and weights


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.integers(1, 600), targets)
@settings(max_examples=25)
def test_tiles_cover_every_place_once(width: int, height: int, vectors: int, inputs: int, target: object) -> None:
    tiles = tiling(width, height, vectors, inputs, target)  # pyright: ignore[reportArgumentType]
    for parts, total, most in (
        (tiles.column_parts, width, tiles.tile.columns), (tiles.row_parts, height, tiles.tile.rows),
        (tiles.vector_parts, vectors, tiles.tile.vectors),
    ):  # fmt: skip
        assert sum(parts) == total
        assert all(0 < part <= most for part in parts)
        assert all(part == most for part in parts[:-1])
    assert tiles.tile.fits(target)  # pyright: ignore[reportArgumentType]


@given(drawn.drafts("convolutions", "depthwise", "selections", layers=3), targets)
@settings(max_examples=5)
def test_packed_weights_hold_every_weight_once(draft: drawn.Draft, target: object) -> None:
    name = target.name  # pyright: ignore[reportAttributeAccessIssue]
    program = from_graph(draft.graph(), Options(target=name))
    if "Winograd" in program.source.kernels:
        return  # which packs other numbers, four for every three
    packed = Counter(program.source.weights[program.source.weights != 0].tolist())
    doubled = Counter[float]()
    for step in program.graph.operations:
        if isinstance(step, Conv):
            view = next(low.reads[0] for low in program.lowered.steps if low.operation.output == step.output)
            assert view is not None
            if len(np.unique(view.offsets)) < len(view.offsets) and step.groups == 1:
                return  # a channel that is read twice: its weights are added, which test_layers.py checks
            doubled.update(step.weight[step.weight != 0].tolist())
            doubled.update(step.bias[step.bias != 0].tolist())
    assert packed == doubled


def test_the_cheapest_tiles_keep_the_units_busy() -> None:
    for target in (TARGETS["avx512"], TARGETS["avx2"], TARGETS["neon"]):
        tiles = tiling(56, 56, 4, 576, target)
        assert tiles.tile.places * tiles.tile.vectors >= convolution.LATENCY
        lines = line_convolution.tile_of(24, 112, 144, target)
        assert sum(lines.column_parts) == 24
        assert sum(lines.vector_parts) == -(-112 // target.lanes)
