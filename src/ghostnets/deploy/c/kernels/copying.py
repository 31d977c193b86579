# SPDX-License-Identifier: Apache-2.0
"""Values moved and nothing else: images in, answers out, channels, rows and columns in another order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ghostnets.deploy.c.kernels.pooling import clears
from ghostnets.deploy.c.kernels.text import Kernel, block, row, row_inside, text
from ghostnets.deploy.c.layout import Buffer, View
from ghostnets.deploy.c.target import Target


def table(name: str, values: Sequence[int]) -> str:
    """A constant array."""
    return f"static const int {name}[{len(values)}] = {{{', '.join(map(str, values))}}};"


def copy(
    *,
    reads: Buffer,
    writes: Buffer,
    lanes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    columns: Sequence[int],
    target: Target,
) -> Kernel:
    """``lanes`` are pairs of offsets, read and written; a negative one, row or column is read as 0."""
    straight = list(rows) == list(range(len(rows)))
    across = list(columns) == list(range(len(columns)))
    whole = [] if writes.lines or reads.lines or min(columns) < 0 else _vectors(lanes, target)
    moves = whole or lanes
    tables = [table("from", [read for read, _ in moves]), table("to", [write for _, write in moves])]
    tables += [] if straight else [table("rows", rows)]
    tables += [] if across else [table("columns", columns)]
    column = "x" if across else "columns[x]"
    each_place = f"for (int x = 0; x < {writes.width}; x++)"
    each_lane = f"for (int n = 0; n < {len(moves)}; n++)"
    if whole:
        store = f"store(o + x * {writes.pixel} + to[n], load(r + {column} * {reads.pixel} + from[n]));"
    else:
        nothing = "from[n] < 0" + ("" if across or min(columns) >= 0 else " || columns[x] < 0")
        value = f"r[{column} * {reads.pixel} + from[n]]"
        if min(read for read, _ in lanes) < 0 or "||" in nothing:
            value = f"{nothing} ? 0.0f : {value}"
        store = f"o[x * {writes.pixel} + to[n]] = {value};"
    doubled = reads.lines and writes.lines and list(columns) == [x // 2 for x in range(len(columns))]
    if doubled and min(read for read, _ in lanes) >= 0:  # twice as wide: half a vector becomes one
        rest = writes.width % target.lanes
        value, full = "doubled(load(r + from[n] + x / 2))", writes.width - rest
        each_place = f"for (int x = 0; x < {full}; x += {target.lanes})"
        store = f"store(o + to[n] + x, {value});"
        last = f"store(o + to[n] + {full}, first({value.replace('x / 2', str(full // 2))}, {rest}));"
        tables = [line for line in tables if not line.startswith("static const int columns")]
        store_lines = [*block(each_place, store), *([last] if rest else [])]
    else:
        store_lines = []
    outer, inner = (each_lane, each_place) if writes.lines else (each_place, each_lane)
    body = block(
        "for (int y = y0; y < y1; y++)",
        f"const float *r = {row('in', 'y' if straight else 'rows[y]', reads)};",
        f"float *o = {row_inside('out', 'y', writes)};",
        block(outer, store_lines or block(inner, store)),
        clears(writes, whole) if whole else _beside(writes, len(lanes)),
    )
    return Kernel("a copy in another order", ("in", "out", "y0", "y1"), text(tables, body))


def _vectors(lanes: Sequence[tuple[int, int]], target: Target) -> list[tuple[int, int]]:
    """The same in whole vectors, or nothing where lanes do not stay side by side."""
    count = target.lanes
    parts = [lanes[at : at + count] for at in range(0, len(lanes), count)]
    for part in parts:
        (read, write) = part[0]
        if read < 0 or any(source not in (-1, read + lane) for lane, (source, _) in enumerate(part)):
            return []
        if any(place != write + lane for lane, (_, place) in enumerate(part)):
            return []
    return [part[0] for part in parts]


def _beside(writes: Buffer, lanes: int) -> list[str]:
    return [
        line
        for first, count in writes.beside
        for line in block(
            f"for (int x = {first}; x < {first + count}; x++)",
            f"for (int n = 0; n < {lanes}; n++) o[(ptrdiff_t)x * {writes.pixel} + to[n]] = 0.0f;",
        )
    ]


def feed(*, writes: Buffer, view: View, kind: str, scale: np.ndarray | None, shift: np.ndarray | None) -> Kernel:
    """Rows of the image that the caller gives (``kind``: nchw or nhwc, of float or uint8) between their margins."""
    channels, height, width = view.shape
    last = kind.startswith("nhwc")
    image = (
        "const unsigned char *image = (const unsigned char *)in;"
        if kind.endswith("uint8")
        else "const float *image = in;"
    )
    at = (
        f"((size_t)y * {width} + x) * {channels} + c"
        if last
        else f"(size_t)c * {height * width} + (size_t)y * {width} + x"
    )
    value = f"(float)image[{at}]"
    tables = [table("to", [int(offset) for offset in view.offsets])]
    if scale is not None and shift is not None:
        value = f"{value} * scale[c] + shift[c]"
        for name, values in (("scale", scale), ("shift", shift)):
            listed = ", ".join(f"{float(value)!r}f" for value in values.astype(np.float32))
            tables.append(f"static const float {name}[{channels}] = {{{listed}}};")
    store = f"o[(ptrdiff_t)x * {writes.pixel} + to[c]] = {value};"
    along = f"for (int x = 0; x < {width}; x++)"
    across = f"for (int c = 0; c < {channels}; c++)"
    loops = block(along, block(across, store)) if last else block(across, block(along, store))
    lines = [image, *tables]
    lines += block(
        "for (int y = y0; y < y1; y++)",
        f"float *o = {row_inside('out', 'y', writes)};",
        loops,
        _beside(writes, channels),
    )
    return Kernel(f"an image comes in: {kind}", ("in", "out", "y0", "y1"), text(lines))


def deliver(*, reads: Buffer, view: View) -> Kernel:
    """A value as the caller expects it: channels, rows, columns, each after the other."""
    channels, height, width = view.shape
    lines = [table("from", [int(offset) for offset in view.offsets])]
    store = f"out[((size_t)c * {height} + y) * {width} + x] = r[x * {reads.pixel} + from[c]];"
    lines += block(
        "for (int y = y0; y < y1; y++)",
        f"const float *r = {row_inside('in', 'y', reads)};",
        block(f"for (int c = 0; c < {channels}; c++)", block(f"for (int x = 0; x < {width}; x++)", store)),
    )
    return Kernel("an answer goes out", ("in", "out", "y0", "y1"), text(lines))


def softmax(*, reads: Buffer, writes: Buffer, read: View, write: View) -> Kernel:
    """Over the channels of each place."""
    channels, _, width = read.shape
    lines = [table("from", [int(v) for v in read.offsets]), table("to", [int(v) for v in write.offsets])]
    each = f"for (int c = 0; c < {channels}; c++)"
    lines += block(
        "for (int y = y0; y < y1; y++)",
        f"const float *r = {row_inside('in', 'y', reads)};",
        f"float *o = {row_inside('out', 'y', writes)};",
        block(
            f"for (int x = 0; x < {width}; x++)",
            "float most = -INFINITY, sum = 0.0f;",
            block(each, f"const float v = r[x * {reads.pixel} + from[c]];", "most = v > most ? v : most;"),
            block(each, f"sum += o[x * {writes.pixel} + to[c]] = exponential(r[x * {reads.pixel} + from[c]] - most);"),
            block(each, f"o[x * {writes.pixel} + to[c]] /= sum;"),
        ),
        _beside(writes, channels),
    )
    return Kernel("softmax", ("in", "out", "y0", "y1"), text(lines))
