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

TOGETHER = 4
"""Vectors at a time: enough sums to be on their way at once."""


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


def kernel(
    conv: Conv, filters: Filters, *, reads: Buffer, writes: Buffer, other: Buffer | None, target: Target, lead: bool
) -> Kernel:
    """The function for one filter of each channel, given pointers to the first; ``other`` is added before the activation."""
    _, _, height, width = conv.weight.shape
    lines_count = len(filters.outputs)
    items = ", ".join(
        row("in", f"y * {conv.stride[0]} + {ky * conv.dilation[0] - conv.padding[0]}", reads) for ky in range(height)
    )
    setup = [f"const float *const r[{height}] = {{{items}}};", f"float *o = {row_inside('out', 'y', writes)};"]
    if other is not None:
        setup.append(f"const float *q = {row_inside('other', 'y', other)};")
    regular = bool((np.diff(filters.sources) == reads.line).all())
    source = f"n * {reads.line}" if regular else "from[n]"
    vectors = -(-writes.width // target.lanes)
    count = min(TOGETHER, vectors)
    starts = list(range(0, vectors, count))
    inner, parts = [], {}
    for first in starts:
        together = min(count, vectors - first)
        rest = writes.width % target.lanes if first + together == vectors else 0
        name = f"NAME_{together}" + (f"_{rest}" if rest else "")
        parts[name] = _tile_text(conv, together, rest, name, other, target)
        shift = first * target.lanes
        more = f", q + (size_t)n * {other.line} + {shift}" if other is not None else ""
        at = f"(size_t)({source}) + {shift * conv.stride[1]} - {conv.padding[1]}"
        inner.append(f"{name}(r, {at}, w + n * {1 + height * width}, o + (size_t)n * {writes.line} + {shift}{more});")
    clear = clears(writes, lines_count, target, lead=lead)
    table = (
        []
        if regular
        else [
            f"static const int from[{lines_count}] = {{{', '.join(map(str, filters.sources - filters.sources[0]))}}};"
        ]
    )
    body = block(
        "for (int y = y0; y < y1; y++)", setup, block(f"for (int n = 0; n < {lines_count}; n++)", inner), clear
    )
    comment = f"{height}x{width} depthwise convolution of {lines_count} lines, {count} vectors at a time"
    return Kernel(
        comment, ("in", *(["other"] if other else []), "w", "out", "y0", "y1"), text(table, body), tuple(parts.items())
    )


def _tile_text(conv: Conv, vectors: int, rest: int, name: str, other: Buffer | None, target: Target) -> str:
    _, _, height, width = conv.weight.shape
    stride, dilation, lanes = conv.stride[1], conv.dilation[1], target.lanes
    lines = ["const vec b = splat(w[0]);", "vec " + ", ".join(f"s{v} = b" for v in range(vectors)) + ";"]
    body = [
        "const float *p = r[i] + x;",
        f"const float *t = w + 1 + i * {width};",
        "vec a, c;" if stride == 2 else "vec a;",
    ]
    taps = [j * dilation for j in range(width)]
    if stride == 1:
        for j, tap in enumerate(taps):
            body.append(f"a = splat(t[{j}]);")
            body.append(" ".join(f"s{v} += load(p + {tap + v * lanes}) * a;" for v in range(vectors)))
    else:
        for even in dict.fromkeys(tap - tap % 2 for tap in taps):  # both parities come out of the same two vectors
            for v in range(vectors):
                at = even + 2 * v * lanes
                body.append(f"a = load(p + {at}); c = load(p + {at + lanes});")
                for parity, pick in enumerate(("evens", "odds")):
                    if even + parity in taps:
                        body.append(f"s{v} += {pick}(a, c) * splat(t[{taps.index(even + parity)}]);")
    lines += block(f"for (int i = 0; i < {height}; i++)", body)
    for v in range(vectors):
        value = f"s{v}" if other is None else f"s{v} + load(q + {v * lanes})"
        value = activated(value, conv.activation)
        if rest and v == vectors - 1:
            value = f"first({value}, {rest})"
        lines.append(f"store(o + {v * lanes}, {value});")
    more = ", const float *q" if other is not None else ""
    head = f"static void {name}(const float *const *r, size_t x, const float *w, float *o{more})"
    return "\n".join([f"{head} {{", text(lines), "}"])
