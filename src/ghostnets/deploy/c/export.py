# SPDX-License-Identifier: Apache-2.0
"""From a network to a folder with a C program: every pass in its turn, each of which can be printed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod

import numpy as np

from ghostnets.deploy.c.calls import rows_at_a_time
from ghostnets.deploy.c.fusion import fused
from ghostnets.deploy.c.lower import lowered
from ghostnets.deploy.c.schedule import Schedule, scheduled
from ghostnets.deploy.c.source import Source, runtime, written
from ghostnets.deploy.c.steps import Feed, Lowered
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Graph


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """A program and all that led to it."""

    graph: Graph
    lowered: Lowered
    schedule: Schedule
    source: Source
    target: Target
    feed: Feed

    @property
    def weights_file(self) -> bytes:
        """``model.weights``."""
        data = self.source.weights.astype("<f4").tobytes()
        header = b"GHOSTNET" + struct.pack("<QQQ", self.source.key, self.source.weights.size, checksum(data))
        return header.ljust(64, b"\0") + data


def generated(graph: Graph, target: Target, *, kind: str = "nchw", debug: bool = False) -> Generated:
    """A simplified graph as a program. ``debug``: every value is still there after a run."""
    ready = fused(graph, target)
    feed = Feed(name="image", inputs=(), output=graph.input, shape=graph.input_shape, kind=kind)
    low = lowered(ready, target, feed, in_place=not debug)
    rows = {number: rows_at_a_time(step, target) for number, step in enumerate(low.steps)}
    schedule = scheduled(low, rows, fuse=not debug, reuse=not debug)
    return Generated(
        graph=ready, lowered=low, schedule=schedule, source=written(schedule, target), target=target, feed=feed
    )


def files(program: Generated, title: str, version: str) -> dict[str, str]:
    """``model.c`` and ``model.h``."""
    source, graph = program.source, program.graph
    channels, height, width = graph.input_shape
    fields = {
        "TITLE": title, "VERSION": version, "TARGET": program.target.name, "LANES": program.target.lanes,
        "ZEROS": source.zeros, "MARGIN": source.margin, "VECTOR": runtime("vector.h"), "KERNELS": source.kernels, "STAGES": source.stages,
        "KEY": source.key, "FLOATS": source.weights.size, "ARENA": source.arena,
        "INPUT": "unsigned char" if program.feed.kind.endswith("uint8") else "float",
        "LAYOUT": "channel by channel" if program.feed.kind.startswith("nchw") else "place by place",
        "CHANNELS": channels, "HEIGHT": height, "WIDTH": width, "OUT": prod(graph.output_shape),
        "ANSWER": " x ".join(map(str, graph.output_shape)), "STEPS": len(source.steps),
    }  # fmt: skip
    return {name: _filled(runtime(name), fields) for name in ("model.c", "model.h")}


def _filled(template: str, fields: dict[str, object]) -> str:
    for name, value in fields.items():
        template = template.replace(f"@{name}@", str(value))
    return template


def checksum(data: bytes) -> int:
    """As ``model.c`` computes it: FNV-1a over words of 8 bytes."""
    words = np.frombuffer(data.ljust(-(-len(data) // 8) * 8, b"\0"), "<u8").tolist()
    total = 14695981039346656037
    for word in words:
        total = ((total ^ word) * 1099511628211) & 0xFFFFFFFFFFFFFFFF
    return total
