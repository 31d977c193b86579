# SPDX-License-Identifier: Apache-2.0
"""Write the program: kernels, stages and the few functions that a caller needs, in one file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np

from ghostnets.deploy.c.calls import Call, calls
from ghostnets.deploy.c.kernels.copying import table
from ghostnets.deploy.c.kernels.text import block
from ghostnets.deploy.c.schedule import Schedule, Stage, trace
from ghostnets.deploy.c.steps import Step
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Conv

STREAMED_FROM = 2**18
"""Bytes of weights from which on a step runs tile by tile of channels, so that each tile's weights come in once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A program as text, and its weights."""

    kernels: str
    stages: str
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


def written(schedule: Schedule, target: Target) -> Source:
    """The parts of ``model.c`` that depend on the network."""
    names: dict[str, str] = {}
    texts: list[str] = []
    weights: list[np.ndarray] = []
    at = 0
    lines: list[str] = []
    number = 0
    steps: list[Step] = []
    for stage in schedule.stages:
        written_calls: list[list[str]] = []
        for step in stage.steps:
            parts = []
            for call in calls(step, schedule.buffers, target):
                anonymous = call.kernel.named("NAME")
                if anonymous not in names:
                    names[anonymous] = f"{_kind(step)}_{len(names)}"
                    texts.append(call.kernel.named(names[anonymous]))
                parts.append((names[anonymous], call, at))
                weights.append(call.weights)
                at += len(call.weights)
            written_calls.append([_call_line(step, schedule, *part, alone=len(stage.steps) == 1) for part in parts])
            steps.append(step)
        lines += _stage_lines(stage, written_calls, number)
        number += len(stage.steps)
    blob = np.concatenate([np.zeros(0, np.float32), *weights])
    text = "\n".join(texts)
    body = "\n".join(f"  {line}" for line in lines)
    key = int.from_bytes(hashlib.sha256((text + body).encode()).digest()[:8], "little")
    buffers = schedule.buffers.values()
    margin = max(target.round_up(buffer.left * buffer.pixel) + target.lanes for buffer in buffers)
    return Source(
        kernels=text,
        stages=body,
        steps=tuple(steps),
        weights=blob,
        key=key,
        zeros=max(buffer.row for buffer in buffers) + margin + target.lanes,
        margin=margin,
        arena=schedule.floats + 4 * target.lanes,
    )


def _kind(step: Step) -> str:
    operation = step.operation
    if isinstance(operation, Conv):
        return "depthwise" if operation.groups > 1 and operation.weight.shape[1] == 1 else "conv"
    return type(operation).__name__.lower()


def _call_line(step: Step, schedule: Schedule, name: str, call: Call, weights: int, *, alone: bool) -> str:
    def place(view: object, shift: int) -> str:
        buffer = schedule.buffers[view.buffer]  # type: ignore[attr-defined]
        return f"a + {buffer.offset + shift}"

    first = step.reads[0]
    height = step.height
    values = {
        "in": "in" if first is None else place(first, call.reads),
        "out": "out" if step.write is None else place(step.write, call.writes),
        "w": f"w + {weights}",
        "y0": "0" if alone else "y",
        "y1": str(height) if alone else "z",
        "n0": "0",
        "n1": str(call.tiles),
    }
    if len(step.reads) > 1:
        values["other"] = place(step.reads[1], call.other)
    arguments = ", ".join(values[argument] for argument in call.kernel.arguments)
    if (
        alone
        and "n0" in call.kernel.arguments
        and call.tiles > 1
        and height > 1
        and call.weights.nbytes >= STREAMED_FROM
    ):
        arguments = ", ".join({"n0": "n", "n1": "n + 1"}.get(key, values[key]) for key in call.kernel.arguments)
        return f"for (int n = 0; n < {call.tiles}; n++) {name}({arguments});"
    return f"{name}({arguments});"


def _about(step: Step) -> str:
    operation = step.operation
    shape = "x".join(map(str, operation.shape))
    macs = f", {operation.macs:,} MACs" if operation.macs else ""
    return f"/* {operation.name}: {type(operation).__name__} -> {shape}{macs} */"


def _stage_lines(stage: Stage, written_calls: list[list[str]], number: int) -> Iterator[str]:
    """One step as calls on the whole map; several as a list of whose turn it is."""
    if len(stage.steps) == 1:
        yield _about(stage.steps[0])
        yield from written_calls[0]
        yield f"DONE({number})"
        return
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
