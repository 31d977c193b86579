# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolutions of lines: every tap is the same line, read one place further on."""

from __future__ import annotations

import numpy as np

from ghostnets.deploy.c.kernels.activation import activated
from ghostnets.deploy.c.kernels.depthwise import Filters
from ghostnets.deploy.c.kernels.line_convolution import clears
from ghostnets.deploy.c.kernels.text import Kernel, block, row, row_inside, text
from ghostnets.deploy.c.layout import Buffer, View
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Conv


def filters_of(conv: Conv, read: View, write: View, writes: Buffer) -> list[Filters]:
    """The lines of inputs, once for each filter a channel has."""
    multiplier = len(conv.weight) // conv.groups
    found = []
    for index in range(multiplier):
        offsets = write.offsets[index::multiplier]
        base = int(offsets.min())
        lines = (offsets - base) // writes.line
        sources, outputs = np.full(int(lines.max()) + 1, -1), np.full(int(lines.max()) + 1, -1)
        sources[lines], outputs[lines] = read.offsets, np.arange(index, len(conv.weight), multiplier)
        assert (outputs >= 0).all(), "every line holds a channel"
        found.append(Filters(sources=sources, base=base, outputs=outputs))
    return found


def packed(conv: Conv, filters: Filters) -> np.ndarray:
    """For each channel its bias and its filter."""
    weights = conv.weight[filters.outputs, 0].reshape(len(filters.outputs), -1)
    return np.concatenate([conv.bias[filters.outputs, None], weights], axis=1).ravel()


def rows_of(conv: Conv) -> int:
    """Rows of outputs at a time, a divisor of all: what is loaded for one serves the others."""
    return next(rows for rows in (4, 3, 2, 1) if conv.shape[1] % rows == 0)


def kernel(
    conv: Conv, filters: Filters, *, reads: Buffer, writes: Buffer, other: Buffer | None, target: Target, lead: bool
) -> Kernel:
    """The function for one filter of each channel, given pointers to the first; ``other`` is added before the activation."""
    _, _, height, width = conv.weight.shape
    count_lines, vectors = len(filters.outputs), -(-writes.width // target.lanes)
    regular = bool((np.diff(filters.sources) == reads.line).all())
    source = f"n * {reads.line}" if regular else "from[n]"
    table = ", ".join(map(str, filters.sources - filters.sources[0]))
    lines = [] if regular else [f"static const int from[{count_lines}] = {{{table}}};"]
    parts: dict[str, str] = {}
    rows = rows_of(conv)
    needed = _needed(conv, rows)
    items = ", ".join(row("in", f"y * {conv.stride[0]} + {place - conv.padding[0]}", reads) for place in needed)
    setup = [f"const float *const r[{len(needed)}] = {{{items}}};"]
    for index in range(rows):
        setup.append(f"float *o{index} = {row_inside('out', f'y + {index}', writes)};")
        if other is not None:
            setup.append(f"const float *q{index} = {row_inside('other', f'y + {index}', other)};")
    most = max(1, (target.registers - 1 - min(height * width, 10)) // rows)
    count = min(most, vectors)
    count = -(-vectors // -(-vectors // count))  # as even as possible
    calls = []
    for first in range(0, vectors, count):
        tile = min(count, vectors - first)
        rest = writes.width % target.lanes if first + tile == vectors else 0
        name = f"NAME_{rows}x{tile}" + (f"_{rest}" if rest else "")
        parts[name] = _tile_text(conv, rows, tile, rest, name, other, target)
        shift = first * target.lanes
        outs = "".join(f", o{index} + (size_t)n * {writes.line} + {shift}" for index in range(rows))
        if other is not None:
            outs += "".join(f", q{index} + (size_t)n * {other.line} + {shift}" for index in range(rows))
        at = f"(ptrdiff_t)({source}) + {shift * conv.stride[1]} - {conv.padding[1]}"
        calls.append(f"{name}(r, {at}, w + n * {1 + height * width}{outs});")
    clear = [
        line.replace("(o,", f"(o{index},")
        for index in range(rows)
        for line in clears(writes, count_lines, target, lead=lead)
    ]
    lines += block(
        f"for (int y = y0; y < y1; y += {rows})", setup, block(f"for (int n = 0; n < {count_lines}; n++)", calls), clear
    )
    comment = f"{height}x{width} depthwise convolution of {count_lines} lines, {rows} rows at a time"
    return Kernel(
        comment, ("in", *(["other"] if other else []), "w", "out", "y0", "y1"), text(lines), tuple(parts.items())
    )


def _needed(conv: Conv, rows: int) -> list[int]:
    """The input rows, from the first on, that so many output rows are made of."""
    return sorted(
        {r * conv.stride[0] + ky * conv.dilation[0] for r in range(rows) for ky in range(conv.weight.shape[2])}
    )


def _tile_text(conv: Conv, rows: int, vectors: int, rest: int, name: str, other: Buffer | None, target: Target) -> str:
    _, _, height, width = conv.weight.shape
    stride, lanes = conv.stride[1], target.lanes
    sums = {(r, v): f"s{r}_{v}" for r in range(rows) for v in range(vectors)}
    lines = ["const vec b = splat(w[0]);", "vec " + ", ".join(f"{name} = b" for name in sums.values()) + ";"]
    lines += [f"const vec w{i}_{j} = splat(w[{1 + i * width + j}]);" for i in range(height) for j in range(width)]
    lines += ["const float *p;", "vec a, c;" if stride == 2 else "vec a;"]
    taps = [j * conv.dilation[1] for j in range(width)]
    for index, place in enumerate(_needed(conv, rows)):
        uses = [
            (r, i) for r in range(rows) for i in range(height) if r * conv.stride[0] + i * conv.dilation[0] == place
        ]
        lines.append(f"p = r[{index}] + x;")
        if stride == 1:
            for j, tap in enumerate(taps):
                for v in range(vectors):
                    added = " ".join(f"{sums[r, v]} += a * w{i}_{j};" for r, i in uses)
                    lines.append(f"a = load(p + {tap + v * lanes}); {added}")
            continue
        for even in dict.fromkeys(tap - tap % 2 for tap in taps):  # both parities come out of the same two vectors
            for v in range(vectors):
                at = even + 2 * v * lanes
                lines.append(f"a = load(p + {at}); c = load(p + {at + lanes});")
                for parity, pick in enumerate(("evens", "odds")):
                    if even + parity in taps:
                        j = taps.index(even + parity)
                        added = " ".join(f"{sums[r, v]} += e * w{i}_{j};" for r, i in uses)
                        lines.append(f"{{ const vec e = {pick}(a, c); {added} }}")
    for (r, v), total in sums.items():
        value = activated(total if other is None else f"{total} + load(q{r} + {v * lanes})", conv.activation)
        if rest and v == vectors - 1:
            value = f"first({value}, {rest})"
        lines.append(f"store(o{r} + {v * lanes}, {value});")
    outs = "".join(f", float *o{r}" for r in range(rows))
    outs += "".join(f", const float *q{r}" for r in range(rows)) if other is not None else ""
    head = f"static void {name}(const float *const *r, ptrdiff_t x, const float *w{outs})"
    return "\n".join([f"{head} {{", text(lines), "}"])
