# SPDX-License-Identifier: Apache-2.0
"""Convolutions of lines: vectors of neighbouring places, multiplied with single weights.

A tile is some output channels times some vectors of places, held in registers while all inputs go by.
"""

from __future__ import annotations

import numpy as np

from ghostnets.deploy.c.kernels.activation import activated
from ghostnets.deploy.c.kernels.convolution import Group, Tile, Tiling
from ghostnets.deploy.c.kernels.text import Kernel, block, row, row_inside, text
from ghostnets.deploy.c.layout import Buffer, View, runs
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Conv


def group_of(conv: Conv, read: View, write: View, reads: Buffer, writes: Buffer) -> Group:
    """Inputs and outputs, one line each."""
    order = np.sort(np.unique(read.offsets))
    base = int(write.offsets.min())
    lines = (write.offsets - base) // writes.line
    outputs = np.full(int(lines.max()) + 1, -1)
    outputs[lines] = np.arange(len(conv.weight))
    return Group(
        start=int(order[0]),
        inputs=tuple(runs(order - order[0], reads.line)),
        channels=np.searchsorted(order, read.offsets),
        base=base,
        outputs=outputs,
    )


def kernel(
    conv: Conv,
    group: Group,
    tiles: Tiling,
    *,
    reads: Buffer,
    writes: Buffer,
    other: Buffer | None,
    target: Target,
    lead: bool,
) -> Kernel:
    """``tiles`` cut the output channels (its columns) and the vectors of a row; ``other`` is added before the activation."""
    _, _, height, width = conv.weight.shape
    inputs = int(group.channels.max()) + 1
    items = ", ".join(
        row("in", f"y * {conv.stride[0]} + {ky * conv.dilation[0] - conv.padding[0]}", reads) for ky in range(height)
    )
    setup = [
        f"const float *const r[{height}] = {{{items}}};",
        f"float *o = {row_inside('out', 'y', writes)};",
        "const float *wn = w;",
    ]
    if other is not None:
        setup.append(f"const float *q = {row_inside('other', 'y', other)};")
    along = vector_parts(tiles, writes.width, target)
    calls, parts = [], {}
    for count in dict.fromkeys(tiles.column_parts):
        lines = []
        for first, vectors, rest in along:
            name = f"NAME_{count}x{vectors}" + (f"_{rest}" if rest else "")
            parts[name] = _tile_text(conv, group, count, vectors, rest, name, writes, other, target)
            shift = first * target.lanes
            more = f", q + {shift}" if other is not None else ""
            lines.append(f"{name}(r, {shift * conv.stride[1]}, wn, o + {shift}{more});")
        lines.append(f"wn += {count * (1 + height * width * inputs)};")
        lines.append(f"o += {count * writes.line};")
        if other is not None:
            lines.append(f"q += {count * other.line};")
        times = tiles.column_parts.count(count)
        calls += block(f"for (int n = 0; n < {times}; n++)", lines) if times > 1 else lines
    clear = clears(writes, len(group.outputs), target, lead=lead)
    body = block("for (int y = y0; y < y1; y++)", setup, clear, calls)
    comment = (
        f"{height}x{width} convolution of lines, {inputs} to {len(group.outputs)} channels, "
        f"{tiles.tile.columns} channels times {tiles.tile.vectors} vectors at a time"
    )
    arguments = ("in", *(["other"] if other else []), "w", "out", "y0", "y1")
    return Kernel(comment, arguments, text(body), tuple(parts.items()))


def clears(writes: Buffer, lines: int, target: Target, *, lead: bool) -> list[str]:
    """Zeros beside lines at ``o``: after each, and where the first is the row's first (``lead``) before it.

    Between two lines one margin serves both, and what is left of a line's last vector is stored as zeros.
    """
    end, before = target.round_up(writes.width), target.round_up(writes.left)
    found = []
    if lead and before:
        found.append(f"clear_lines(o, 1, 0, {-before}, {before});")
    if writes.line > end:
        found.append(f"clear_lines(o, {lines}, {writes.line}, {end}, {writes.line - end});")
    return found


def vector_parts(tiles: Tiling, width: int, target: Target) -> list[tuple[int, int, int]]:
    """The vectors of a row in tiles: the first, how many, and the places in the last one where it is not full."""
    found, at = [], 0
    for vectors in tiles.vector_parts:
        last = at + vectors == tiles.vectors
        found.append((at, vectors, width % target.lanes if last else 0))
        at += vectors
    return found


def _tile_text(
    conv: Conv,
    group: Group,
    count: int,
    vectors: int,
    rest: int,
    name: str,
    writes: Buffer,
    other: Buffer | None,
    target: Target,
) -> str:
    _, _, height, width = conv.weight.shape
    stride = conv.stride[1]
    sums = {(n, v): f"s{n}_{v}" for n in range(count) for v in range(vectors)}
    lines = ["vec " + ", ".join(f"{sums[n, v]} = splat(w[{n}])" for v in range(vectors)) + ";" for n in range(count)]
    lines.append(f"w += {count};")
    inner = []
    for v in range(vectors):
        place = v * target.lanes * stride
        value = f"load(p + k + {place})"
        if stride == 2:
            value = f"evens({value}, load(p + k + {place + target.lanes}))"
        inner.append(f"const vec a{v} = {value};")
    inner.append("vec b;")
    inner += [
        f"b = splat(w[{n}]); " + " ".join(f"{sums[n, v]} += a{v} * b;" for v in range(vectors)) for n in range(count)
    ]
    inner.append(f"w += {count};")
    body: list[str] = []
    for run in group.inputs:
        along = f" + j * {conv.dilation[1]}" if width > 1 else ""
        pointer = f"const float *p = r[{'i' if height > 1 else '0'}] + x + ({run.start - conv.padding[1]}){along};"
        loop = block(f"for (int k = 0; k < {run.count * run.stride}; k += {run.stride})", inner)
        body += block("", pointer, loop) if len(group.inputs) > 1 else [pointer, *loop]
    if width > 1:
        body = block(f"for (int j = 0; j < {width}; j++)", body)
    if height > 1:
        body = block(f"for (int i = 0; i < {height}; i++)", body)
    lines += body
    for n in range(count):
        for v in range(vectors):
            value = sums[n, v]
            if other is not None:
                value = f"{value} + load(q + {n * other.line + v * target.lanes})"
            value = activated(value, conv.activation)
            if rest and v == vectors - 1:
                value = f"first({value}, {rest})"
            lines.append(f"store(o + {n * writes.line + v * target.lanes}, {value});")
    more = ", const float *q" if other is not None else ""
    head = f"static void {name}(const float *const *r, size_t x, const float *w, float *o{more})"
    return "\n".join([f"{head} {{", text(lines), "}"])


def tile_of(channels: int, width: int, inputs: int, target: Target) -> Tiling:
    """The cheapest tiles for so many output channels, places and inputs of each output."""
    vectors = -(-width // target.lanes)
    candidates = [
        Tiling(Tile(1, count, together), channels, 1, vectors)
        for count in range(1, min(channels, 12) + 1)
        for together in range(1, min(vectors, 7) + 1)
        if Tile(1, count, together).fits(target)
    ]
    return min(candidates, key=lambda tiles: (tiles.cycles(inputs), -tiles.tile.places))
