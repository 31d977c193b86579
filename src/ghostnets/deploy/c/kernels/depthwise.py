# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolutions: the cheap operations. A vector of channels, some places in a row, one column after another.

Every input is loaded once and serves all outputs that it reaches. With several filters for each channel (a ratio above
2), a filter is a convolution of its own that reads the same maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghostnets.deploy.c.kernels.activation import activated
from ghostnets.deploy.c.kernels.text import Kernel, block, row, row_inside, text
from ghostnets.deploy.c.layout import Buffer, View
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Conv


@dataclass(frozen=True, kw_only=True)
class Filters:
    """One filter for each of some channels, in whole vectors."""

    sources: np.ndarray
    """Where each vector is read in a row."""
    base: int
    """Where the first is written."""
    outputs: np.ndarray
    """The output channel in each lane, or -1."""


def filters_of(conv: Conv, read: View, write: View, target: Target) -> list[Filters]:
    """The vectors of inputs, once for each filter a channel has."""
    multiplier = len(conv.weight) // conv.groups
    found = []
    for index in range(multiplier):
        lanes = write.offsets[index::multiplier]
        base = int(lanes.min()) // target.lanes * target.lanes
        width = target.round_up(int(lanes.max()) + 1 - base)
        outputs, sources = np.full(width, -1), np.full(width // target.lanes, -1)
        outputs[lanes - base] = np.arange(index, len(conv.weight), multiplier)
        vectors = (lanes - base) // target.lanes
        sources[vectors] = read.offsets // target.lanes * target.lanes
        lane_kept = (read.offsets - lanes) % target.lanes == 0
        assert lane_kept.all(), "a depthwise convolution moves no channel to another lane"
        assert (sources >= 0).all(), "every vector holds a channel"
        found.append(Filters(sources=sources, base=base, outputs=outputs))
    return found


def packed(conv: Conv, filters: Filters, target: Target) -> np.ndarray:
    """For each vector of channels its bias, then one vector for each weight of the filter."""
    _, _, height, width = conv.weight.shape
    used = filters.outputs >= 0
    dense = np.zeros((1 + height * width, len(filters.outputs)), np.float32)
    dense[0, used] = conv.bias[filters.outputs[used]]
    dense[1:, used] = conv.weight[filters.outputs[used], 0].reshape(int(used.sum()), -1).T
    vectors = len(filters.outputs) // target.lanes
    return dense.reshape(1 + height * width, vectors, target.lanes).transpose(1, 0, 2).ravel()


def kernel(
    conv: Conv, filters: Filters, *, reads: Buffer, writes: Buffer, other: Buffer | None, target: Target
) -> Kernel:
    """The function for one filter of each channel, given pointers to the first; ``other`` is added before the activation."""
    _, _, height, width = conv.weight.shape
    columns = _columns(writes.width, conv, target)
    rest = writes.width % columns
    full = writes.width - rest
    vectors = len(filters.sources)
    needed = [ky * conv.dilation[0] for ky in range(height)]
    items = ", ".join(row("in", f"y * {conv.stride[0]} + {place - conv.padding[0]}", reads) for place in needed)
    setup = [
        f"const float *const r[{height}] = {{{items}}};",
        f"float *o = {row_inside('out', 'y', writes)};",
    ]
    if other is not None:
        setup.append(f"const float *q = {row_inside('other', 'y', other)};")
    steps = np.diff(filters.sources)
    regular = bool((steps == target.lanes).all())
    source = "n * LANES" if regular else "from[n]"

    def call(count: int, x: str) -> str:
        at = f"{x} * {conv.stride[1] * reads.pixel} + {source} - {conv.padding[1] * reads.pixel}"
        more = f", q + {x} * {other.pixel} + n * LANES" if other is not None else ""
        return f"NAME_{count}(r, {at}, w + n * {(1 + height * width) * target.lanes}, o + {x} * {writes.pixel} + n * LANES{more});"

    loops = []
    each = f"for (int n = 0; n < {vectors}; n++)"
    if full == columns:
        loops += block(each, call(columns, "0"))
    elif full:
        loops += block(f"for (int x = 0; x < {full}; x += {columns})", block(each, call(columns, "x")))
    if rest:
        loops += block(each, call(rest, str(full)))
    clear = [
        f"clear(o + {first * writes.pixel}, {count}, {writes.pixel}, {len(filters.outputs)});"
        for first, count in writes.beside
    ]
    lines = (
        []
        if regular
        else [f"static const int from[{vectors}] = {{{', '.join(map(str, filters.sources - filters.sources[0]))}}};"]
    )
    lines += block("for (int y = y0; y < y1; y++)", setup, loops, clear)
    tiles = [columns, rest] if full and rest else [columns if full else rest]
    parts = tuple((f"NAME_{count}", _tile_text(conv, count, reads, writes, other)) for count in tiles)
    comment = f"{height}x{width} depthwise convolution, {int((filters.outputs >= 0).sum())} channels, {columns} places at a time"
    return Kernel(comment, ("in", *(["other"] if other else []), "w", "out", "y0", "y1"), text(lines), parts)


def _columns(width: int, conv: Conv, target: Target) -> int:
    """Outputs at a time: their sums, a row of weights and one input are held."""
    most = min(width, target.registers - conv.weight.shape[3] - 2, 14)
    even = [count for count in range(1, most + 1) if width % count == 0]
    return max(even) if 2 * max(even) > most else most


def _tile_text(conv: Conv, count: int, reads: Buffer, writes: Buffer, other: Buffer | None) -> str:
    _, _, height, width = conv.weight.shape
    stride, dilation = conv.stride[1], conv.dilation[1]
    lines = [
        "const vec b = load(w);",
        "vec " + ", ".join(f"s{q} = b" for q in range(count)) + ";",
        "w += LANES;",
    ]
    reached: dict[int, list[tuple[int, int]]] = {}
    for q in range(count):
        for kx in range(width):
            reached.setdefault(q * stride + kx * dilation, []).append((q, kx))
    body = [
        "const float *p = r[i] + x;",
        *(f"const vec w{kx} = load(w + {kx} * LANES);" for kx in range(width)),
        "vec a;",
    ]
    for column in sorted(reached):
        sums = " ".join(f"s{q} += a * w{kx};" for q, kx in reached[column])
        body.append(f"a = load(p + {column * reads.pixel}); {sums}")
    body.append(f"w += {width} * LANES;")
    lines += block(f"for (int i = 0; i < {height}; i++)", body) if height > 1 else block("", "const int i = 0;", body)
    for q in range(count):
        value = f"s{q}" if other is None else f"s{q} + load(q + {q * other.pixel})"
        lines.append(f"store(o + {q * writes.pixel}, {activated(value, conv.activation)});")
    more = ", const float *q" if other is not None else ""
    head = f"static void NAME_{count}(const float *const *r, ptrdiff_t x, const float *w, float *o{more})"
    return "\n".join([f"{head} {{", text(lines), "}"])
