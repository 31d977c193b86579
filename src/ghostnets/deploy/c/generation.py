# SPDX-License-Identifier: Apache-2.0
"""From a network to a C program: every pass in its turn, each of which can be printed."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from torch import Tensor, nn

from ghostnets.deploy.c.calls import rows_at_a_time
from ghostnets.deploy.c.fusion import fused
from ghostnets.deploy.c.lower import lowered
from ghostnets.deploy.c.schedule import Schedule, scheduled
from ghostnets.deploy.c.source import Source, plain, runtime, written
from ghostnets.deploy.c.steps import Feed, Lowered
from ghostnets.deploy.c.target import Target, target_named
from ghostnets.deploy.capture import captured
from ghostnets.deploy.graph import Graph
from ghostnets.deploy.simplify import steps
from ghostnets.errors import UserError
from ghostnets.records import write_bytes

Layout = Literal["nchw", "nhwc", "nhwc-uint8"]
"""Of the image: float32 channel by channel, float32 place by place, or bytes place by place, as cameras give them."""

HEADER = 64
"""Bytes of ``model.weights`` before the weights, so that these are aligned."""

START, PRIME = 14695981039346656037, 1099511628211
"""Of the checksum, as in ``model.c``: the two numbers of FNV's hash of 64 bits."""

FILES = ("model.c", "model.h", "model.weights", "main.c", "Makefile", "README.md")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a program is to be."""

    target: str = "native"
    """An instruction set: a row of TARGETS, or ``native``."""
    layout: Layout = "nchw"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Of the network's images, from 0 to 1: folded into a program that takes bytes, used by ``main.c`` of others."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    debug: bool = False
    """Every value is still there after a run: nothing is overwritten, nothing runs row by row."""
    instructions: Target = field(init=False)

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise UserError(f"{self.layout} is no layout of images: choose {', '.join(get_args(Layout))}")
        if not all(value > 0 for value in self.std):
            raise UserError(f"a standard deviation of {min(self.std)} cannot be divided by")
        object.__setattr__(self, "instructions", target_named(self.target))


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """A program and all that led to it."""

    name: str
    options: Options
    graphs: tuple[tuple[str, Graph], ...]
    """The graph after every pass that changed it, the last one as it is computed."""
    lowered: Lowered
    schedule: Schedule
    source: Source

    @property
    def graph(self) -> Graph:
        """The network as it is computed."""
        return self.graphs[-1][1]

    @cached_property
    def key(self) -> str:
        """Of everything that is written."""
        return hashlib.sha256(b"".join(self.files.values())).hexdigest()

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The contents of FILES."""
        texts = {name: _filled(runtime(name), self._fields()).encode() for name in FILES if name != "model.weights"}
        data = self.source.weights.astype("<f4").tobytes()
        header = b"GHOSTNET" + struct.pack("<QQQ", self.source.key, self.source.weights.size, checksum(data))
        return {**texts, "model.weights": header.ljust(HEADER, b"\0") + data}

    def save(self, folder: Path) -> None:
        """Write FILES into a folder, which is made where it is not there, each file whole or not at all.

        Raises UserError where there can be no such folder.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}") from None
        for name, contents in self.files.items():
            write_bytes(folder / name, contents)

    def explained(self) -> Iterator[str]:
        """What every pass made, to read."""
        for name, graph in self.graphs:
            yield f"== {name}: {len(graph.operations)} operations, {graph.macs:,} MACs"
            yield from graph.lines()
        yield f"== schedule: {len(self.schedule.stages)} stages, arena of {self.schedule.floats * 4 / 2**20:.2f} MiB"
        for stage in self.schedule.stages:
            yield " + ".join(step.operation.name for step in stage.steps)
        for buffer in self.schedule.buffers.values():
            kept = "" if buffer.ring == buffer.height else f", {buffer.ring} kept"
            yield f"{buffer.name}: {buffer.height} rows of {buffer.row} floats{kept}, at {buffer.offset}"
        yield f"== C: {self.source.kernels.count(chr(10))} lines of kernels, {self.source.weights.size:,} weights"

    def _fields(self) -> dict[str, object]:
        source, options, target = self.source, self.options, self.options.instructions
        channels, height, width = self.graph.input_shape
        mean, std = (_channels(values, channels) for values in (options.mean, options.std))
        uint8 = options.layout == "nhwc-uint8"
        image = (channels, height, width) if options.layout == "nchw" else (height, width, channels)
        return {
            "TITLE": plain(self.name), "VERSION": _version(), "TARGET": target.name, "LANES": target.lanes,
            "FLAGS": " ".join(target.flags), "ZEROS": source.zeros, "MARGIN": source.margin, "VECTOR": runtime("vector.h"),
            "KERNELS": source.kernels, "STAGES": source.stages, "KEY": source.key, "FLOATS": source.weights.size,
            "ARENA": source.arena, "ARENA_MANY": source.arena_many, "ARENA_EACH": source.arena_each, "TEAM": _filled(runtime("team.h"), {"SHARED": source.shared, "KERNELS_MANY": source.kernels_many}),
            "INPUT": "unsigned char" if uint8 else "float",
            "LAYOUT": "channel by channel" if options.layout == "nchw" else "place by place: red, green, blue, red, ...",
            "IS_BYTES": int(uint8), "IS_PLANES": int(options.layout == "nchw"),
            "CHANNELS": channels, "HEIGHT": height, "WIDTH": width, "OUT": prod(self.graph.output_shape),
            "ANSWER": " x ".join(map(str, self.graph.output_shape)),
            "SHAPES": ";".join(",".join(map(str, shape)) for shape in (image, self.graph.output_shape)),
            "KIND": "uint8" if uint8 else "float32",
            "NAMES": "\n".join(f'    "{step.operation.macs} {plain(step.operation.name)}",' for step in source.steps),
            "STEPS": len(source.steps), "MACS": f"{self.graph.macs:,}",
            "MEAN": ", ".join(f"{value!r}f" for value in mean), "STD": ", ".join(f"{value!r}f" for value in std),
            "ARENA_KIB": source.arena * 4 // 1024, "WEIGHTS_KIB": source.weights.size * 4 // 1024,
        }  # fmt: skip


def generated(
    model: nn.Module, example: Tensor, options: Options | None = None, *, name: str | None = None
) -> Generated:
    """The program of a network for images of the size of ``example`` (N, C, H, W).

    Raises UserError and UnsupportedLayer for what cannot be captured.
    """
    return from_graph(captured(model, example), options or Options(), name=name)


def from_graph(graph: Graph, options: Options, *, name: str | None = None) -> Generated:
    """The program of a graph as it was captured."""
    target = options.instructions
    graphs = [("captured", graph), *steps(graph)]
    ready = fused(graphs[-1][1], target)
    graphs.append(("sums go into the convolutions before", ready))
    low = lowered(ready, target, _feed(ready, options), in_place=not options.debug)
    rows = {number: rows_at_a_time(step, low.buffers, target) for number, step in enumerate(low.steps)}
    schedule = scheduled(low, rows, fuse=not options.debug, reuse=not options.debug)
    shared = scheduled(low, rows, fuse=False, reuse=not options.debug)
    return Generated(
        name=name or graph.name,
        options=options,
        graphs=tuple(graphs),
        lowered=low,
        schedule=schedule,
        source=written(schedule, shared, target),
    )


def export(
    model: nn.Module, example: Tensor, folder: str | Path, options: Options | None = None, *, name: str | None = None
) -> Generated:
    """Write the program of a network to a folder: FILES.

    Raises UserError where the folder holds anything else, and what ``generated`` raises.
    """
    folder = Path(folder)
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES) if folder.is_dir() else []
    if others or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} holds something else ({others[0] if others else 'a file'}): give a new folder")
    program = generated(model, example, options, name=name)
    program.save(folder)
    return program


def checksum(data: bytes) -> int:
    """As ``model.c`` computes it: words of 8 bytes as the digits of a number to the base PRIME, from START on, modulo 2**64.

    The base is odd: so no change of one word goes unseen.
    """
    words = np.frombuffer(data.ljust(-(-len(data) // 8) * 8, b"\0"), "<u8")
    powers = np.multiply.accumulate(np.full(min(len(words), 2**16), PRIME, np.uint64))  # they wrap
    total = START
    for at in range(0, len(words), 2**16):
        part = words[at : at + 2**16]
        below = int((part[:-1][::-1] * powers[: len(part) - 1]).sum(dtype=np.uint64)) + int(part[-1])
        total = (total * int(powers[len(part) - 1]) + below) % 2**64
    return total


def _feed(graph: Graph, options: Options) -> Feed:
    channels = graph.input_shape[0]
    scale = shift = None
    if options.layout == "nhwc-uint8":
        mean, std = (np.array(_channels(values, channels)) for values in (options.mean, options.std))
        scale, shift = 1 / (255 * std), -mean / std
    return Feed(
        name="image",
        inputs=(),
        output=graph.input,
        shape=graph.input_shape,
        kind=options.layout,
        scale=scale,
        shift=shift,
    )


def _channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One figure for each channel."""
    if len(values) not in (1, channels):
        if len(values) == 3:
            return (sum(values) / 3,) * channels
        raise UserError(f"{len(values)} means or deviations do not fit {channels} channels: give one, or one for each")
    return values if len(values) == channels else values * channels


def _filled(template: str, fields: dict[str, object]) -> str:
    for name, value in fields.items():
        template = template.replace(f"@{name}@", str(value))
    return template


def _version() -> str:
    try:
        return metadata.version("ghostnets")
    except metadata.PackageNotFoundError:  # used from a source folder
        return "(a source folder)"
