# SPDX-License-Identifier: Apache-2.0
"""Values moved and nothing else: images in, answers out, channels, rows and columns in another order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ghostnets.deploy.c.kernels.text import Kernel, block, row_inside, text
from ghostnets.deploy.c.layout import Buffer, View


def table(name: str, values: Sequence[int]) -> str:
    """A constant array."""
    return f"static const int {name}[{len(values)}] = {{{', '.join(map(str, values))}}};"


def copy(
    *, reads: Buffer, writes: Buffer, lanes: Sequence[tuple[int, int]], rows: Sequence[int], columns: Sequence[int]
) -> Kernel:
    """``lanes`` are pairs of offsets, read and written; a negative one, row or column is read as 0."""
    straight = list(rows) == list(range(len(rows)))
    across = list(columns) == list(range(len(columns)))
    tables = [table("from", [read for read, _ in lanes]), table("to", [write for _, write in lanes])]
    tables += [] if straight else [table("rows", rows)]
    tables += [] if across else [table("columns", columns)]
    source = f"in ? row(in, {'y' if straight else 'rows[y]'}, {reads.height}, {reads.ring}, {reads.row}) : 0"
    source = source.removeprefix("in ? ").removesuffix(" : 0")
    column = "x" if across else "columns[x]"
    value = f"from[n] < 0 ? 0.0f : r[{column} * {reads.pixel} + from[n]]"
    if not across and min(columns) < 0:
        value = f"from[n] < 0 || columns[x] < 0 ? 0.0f : r[{column} * {reads.pixel} + from[n]]"
    places = block(
        f"for (int x = 0; x < {writes.width}; x++)",
        block(f"for (int n = 0; n < {len(lanes)}; n++)", f"o[x * {writes.pixel} + to[n]] = {value};"),
    )
    lines = [*tables]
    lines += block(
        "for (int y = y0; y < y1; y++)",
        f"const float *r = {source};",
        f"float *o = {row_inside('out', 'y', writes)};",
        places,
        _beside(writes, len(lanes)),
    )
    return Kernel("a copy in another order", ("in", "out", "y0", "y1"), text(lines))


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
            listed = ", ".join(f"{float(v)!r}f" for v in np.float32(values))
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
    )
    return Kernel("softmax", ("in", "out", "y0", "y1"), text(lines))
