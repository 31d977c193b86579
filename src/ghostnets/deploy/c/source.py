# SPDX-License-Identifier: Apache-2.0
"""Write the program: kernels, stages and the few functions that a caller needs, in one file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources

import numpy as np

from ghostnets.deploy.c.calls import Call, calls, rows_at_a_time
from ghostnets.deploy.c.kernels.convolution import is_streamed
from ghostnets.deploy.c.kernels.copying import table
from ghostnets.deploy.c.kernels.text import block
from ghostnets.deploy.c.layout import View
from ghostnets.deploy.c.schedule import ALIGNMENT, Schedule, Stage, trace
from ghostnets.deploy.c.steps import Step
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Conv


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A program as text, and its weights."""

    kernels: str
    kernels_many: str
    """Those that only several threads call, on whole maps where one thread has rings."""
    stages: str
    shared: str
    """The stages for several threads."""
    steps: tuple[Step, ...]
    weights: np.ndarray
    """float32, in order of use."""
    key: int
    """Of the program these weights belong to."""
    zeros: int
    """Floats of the longest row, with the widest margin before it."""
    margin: int
    arena: int
    """Floats."""
    arena_many: int
    """The same for several threads, which keep whole maps, without what each needs for itself."""
    arena_each: int
    """For each of several threads, after that."""

    def arena_of(self, threads: int) -> int:
        """Floats, for so many threads."""
        return self.arena if threads == 1 else self.arena_many + threads * self.arena_each


def written(schedule: Schedule, shared: Schedule, target: Target) -> Source:
    """The parts of ``model.c`` that depend on the network; ``shared`` has the same steps, each a stage of its own."""
    kernels = _Kernels()
    lines: list[str] = []
    steps: list[Step] = []
    scratch = 0
    for stage in schedule.stages:
        own = [kernels.calls(step, schedule, target) for step in stage.steps]
        if len(stage.steps) == 1:
            lines += _alone(stage.steps[0], own[0], schedule, len(steps))
        else:
            rows = [_lines(step, made, schedule) for step, made in zip(stage.steps, own, strict=True)]
            lines += _stage_lines(stage, rows, len(steps))
        steps += stage.steps
        scratch = max(scratch, *(call.scratch for made in own for _, call, _ in made))
    weights = np.concatenate([np.zeros(0, np.float32), *kernels.weights])
    text = "\n".join(kernels.texts)
    kernels.rewind()
    called = [kernels.calls(step, shared, target) for step in steps]
    arena, arena_many = (_aligned(one.floats + 4 * target.lanes) for one in (schedule, shared))
    each = _aligned(max(scratch, *(call.parts for own in called for _, call, _ in own)))
    parts = f"a + {arena_many}"
    many = [f"float *const own = {parts} + (size_t)t * {each};"] if each else []
    for number, (step, own) in enumerate(zip(steps, called, strict=True)):
        many += [*_shared(step, own, shared, target, f"{parts}, {each}"), f"ALL_DONE({number})"]
    if scratch:
        lines = [f"float *const own = a + {arena};", *lines]
    body = _indented(lines)
    buffers = (*schedule.buffers.values(), *shared.buffers.values())
    margin = max(target.round_up(buffer.left * buffer.pixel) + target.lanes for buffer in buffers)
    return Source(
        kernels=text,
        kernels_many="\n".join(kernels.texts),
        stages=body,
        shared=_indented(many),
        steps=tuple(steps),
        weights=weights,
        key=int.from_bytes(hashlib.sha256((text + body).encode()).digest()[:8], "little"),
        zeros=max(buffer.row for buffer in buffers) + margin + 4 * target.lanes,
        margin=margin,
        arena=arena + _aligned(scratch),
        arena_many=arena_many,
        arena_each=each,
    )


def _aligned(floats: int) -> int:
    """As many or more, in whole cache lines."""
    return -(-floats // ALIGNMENT) * ALIGNMENT


class _Kernels:
    """Kernels and weights as they are first called for: equal kernels are written once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.weights: list[np.ndarray] = []
        self._names: dict[str, str] = {}
        self._at = 0

    def calls(self, step: Step, schedule: Schedule, target: Target) -> list[tuple[str, Call, int]]:
        """The name of the kernel, the call and the place of its weights, for every call of a step."""
        found = []
        for call in calls(step, schedule.buffers, target):
            anonymous = call.kernel.named("NAME")
            if anonymous not in self._names:
                name = f"{_kind(step)}_{len(self._names)}"
                self._names[anonymous] = name
                self.texts.append(call.kernel.named(name))
            found.append((self._names[anonymous], call, self._at))
            whole = _aligned(len(call.weights))
            self.weights.append(np.pad(call.weights, (0, whole - len(call.weights))))
            self._at += whole
        return found

    def rewind(self) -> None:
        """The same steps come once more, with the same weights; only new kernels are kept from now on."""
        self._at = 0
        self.texts = []


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _kind(step: Step) -> str:
    operation = step.operation
    if isinstance(operation, Conv):
        return "depthwise" if operation.depthwise else "conv"
    return type(operation).__name__.lower()


def _height(step: Step, call: Call) -> int:
    """Rows that a call's y0 and y1 count: of the result, or of the map of which it is a mean."""
    read = step.reads[0]
    return read.shape[1] if call.parts and read is not None else step.height


def _arguments(step: Step, schedule: Schedule, call: Call, weights: int, **bounds: str) -> dict[str, str]:
    def place(view: View | None, shift: int, outside: str) -> str:
        return outside if view is None else f"a + {schedule.buffers[view.buffer].offset + shift}"

    values = {
        "in": place(step.reads[0], call.reads, "in"),
        "out": place(step.write, call.writes, "out"),
        "w": f"w + {weights}",
        "y0": "0", "y1": str(_height(step, call)), "n0": "0", "n1": str(call.tiles), "scratch": "own",
        **bounds,
    }  # fmt: skip
    if len(step.reads) > 1:
        values["other"] = place(step.reads[1], call.other, "in")
    return {name: values[name] for name in call.kernel.arguments}


def _called(name: str, step: Step, schedule: Schedule, call: Call, weights: int, **bounds: str) -> str:
    return f"{name}({', '.join(_arguments(step, schedule, call, weights, **bounds).values())});"


def _lines(step: Step, own: list[tuple[str, Call, int]], schedule: Schedule) -> list[str]:
    """A step's calls on rows y to z."""
    return [_called(name, step, schedule, call, at, y0="y", y1="z") for name, call, at in own]


def _by_tiles(call: Call) -> bool:
    """Whether weights rather than maps come by, so that a tile of channels does the whole map before the next one."""
    return "n0" in call.kernel.arguments and call.tiles > 1 and is_streamed(call.weights.size)


def _alone(step: Step, own: list[tuple[str, Call, int]], schedule: Schedule, number: int) -> Iterator[str]:
    """A step's calls on the whole map."""
    yield _about(step)
    for name, call, at in own:
        if _by_tiles(call) and step.height > 1:
            tile = _called(name, step, schedule, call, at, n0="n", n1="n + 1")
            yield f"for (int n = 0; n < {call.tiles}; n++) {tile}"
        else:
            yield _called(name, step, schedule, call, at)
    yield f"DONE({number})"


def _shared(
    step: Step, own: list[tuple[str, Call, int]], schedule: Schedule, target: Target, parts: str
) -> Iterator[str]:
    """A step's calls on the share of thread t: rows, or tiles of channels where there are few rows or many weights; ``parts``
    says where the first thread's own memory begins, and how far it is to the next one's.
    """
    yield _about(step)
    rows = rows_at_a_time(step, schedule.buffers, target)
    for name, call, at in own:
        one = partial(_called, name, step, schedule, call, at)
        if call.parts:
            yield one(out="own", **_shares("y", f"share({_height(step, call)}, 1, {{}}, threads)"))
            whole = _arguments(step, schedule, call, at)["out"]
            yield f"meet(all); if (t == 0) gathered({parts}, {whole}, {call.parts}, threads);"
        elif "n0" in call.kernel.arguments and step.height == 1:
            yield one(**_shares("n", f"share({call.tiles}, 1, {{}}, threads)"))
        elif "n0" in call.kernel.arguments and _by_tiles(call):
            vectors, block_rows = call.tile
            of_tile = f"cut({call.vectors}, {vectors}, n, {step.height}, {block_rows}, {{}}, threads)"
            yield f"for (int n = 0; n < {call.tiles}; n++) {one(n0='n', n1='n + 1', **_shares('y', of_tile))}"
        elif "y0" in call.kernel.arguments and step.height > rows:
            yield one(**_shares("y", f"share({step.height}, {rows}, {{}}, threads)"))
        else:
            yield f"if (t == 0) {one()}"


def _shares(axis: str, begin: str) -> dict[str, str]:
    """Where the share of thread t begins and ends: where the next one's begins."""
    return {f"{axis}0": begin.format("t"), f"{axis}1": begin.format("t + 1")}


def plain(name: str) -> str:
    """A name as it may stand in a comment and in a string of C."""
    return re.sub(r"[^\w .,()\[\]-]", "_", name, flags=re.ASCII)


def _about(step: Step) -> str:
    operation = step.operation
    shape = "x".join(map(str, operation.shape))
    macs = f", {operation.macs:,} MACs" if operation.macs else ""
    return f"/* {plain(operation.name)}: {type(operation).__name__} -> {shape}{macs} */"


def _stage_lines(stage: Stage, written_calls: list[list[str]], number: int) -> Iterator[str]:
    """Several steps, row by row, by a list of whose turn it is."""
    order = [index for index, _, _ in trace(stage)]
    cases = []
    for index, (step, lines) in enumerate(zip(stage.steps, written_calls, strict=True)):
        cases.append(_about(step))
        head = f"case {index}: {{ const int y = at[{index}], z = least(y + {stage.rows[index]}, {step.height});"
        cases += [f"{head}", *(f"  {line}" for line in lines), f"  at[{index}] = z; DONE({number + index}) break; }}"]
    yield from block(
        "",
        "/* row by row: whose turn it is */",
        table("turns", order).replace("const int", "const unsigned char"),
        f"int at[{len(stage.steps)}] = {{0}};",
        block("for (size_t i = 0; i < sizeof turns; i++) switch (turns[i])", cases),
    )


def runtime(name: str) -> str:
    """One of the texts that are the same for every network."""
    return (resources.files("ghostnets.deploy.c") / "runtime" / name).read_text(encoding="utf-8")
