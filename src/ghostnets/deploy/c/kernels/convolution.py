# SPDX-License-Identifier: Apache-2.0
"""Convolutions that read single values and multiply them with vectors of output channels.

A tile is some places times some vectors, held in registers while all inputs go by: one load of weights serves every
place, one broadcast of an input every vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from ghostnets.deploy.c.kernels.activation import activated
from ghostnets.deploy.c.kernels.text import Kernel, block, row, row_inside, text
from ghostnets.deploy.c.layout import Buffer, Run, View, runs
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Conv

MOST_PLACES = 14
"""In a tile: 14 divides the widths of networks for images of 224 pixels."""

MOST_VECTORS = 12
"""In a tile."""

LINE = 16
"""Floats that come in together."""

PREFETCHED = 4096
"""Bytes that weights are asked for ahead: no cache reads on beyond a page by itself."""

STREAMED_FROM = 2**18
"""Bytes of weights from which on a tile of channels computes the whole map before the next one begins: each tile's weights
come in once, while the tile before is at work.
"""

LATENCY = 8
"""Sums that must be on their way to keep two multiply-add units busy."""


@dataclass(frozen=True)
class Tile:
    """What one loop over the inputs computes."""

    rows: int
    columns: int
    vectors: int

    @property
    def places(self) -> int:
        return self.rows * self.columns

    @property
    def cycles(self) -> float:
        """For one input: two multiply-adds or two loads in each."""
        sums = self.places * self.vectors
        return max(sums, LATENCY, self.places + self.vectors) / 2

    def fits(self, target: Target) -> bool:
        """Whether sums, weights and one input are held without spilling."""
        return self.places * self.vectors + self.vectors + 1 <= target.registers


@dataclass(frozen=True)
class Tiling:
    """A map cut into tiles: full ones and what is left at the right, at the bottom and of the vectors."""

    tile: Tile
    width: int
    height: int
    vectors: int

    @property
    def column_parts(self) -> list[int]:
        return _parts(self.width, self.tile.columns)

    @property
    def row_parts(self) -> list[int]:
        return _parts(self.height, self.tile.rows)

    @property
    def vector_parts(self) -> list[int]:
        return _parts(self.vectors, self.tile.vectors)

    def cycles(self, inputs: int) -> float:
        """Of the whole convolution."""
        rows, columns, vectors = (Counter(parts) for parts in (self.row_parts, self.column_parts, self.vector_parts))
        return sum(
            (Tile(r, c, v).cycles * inputs + 2 * r * c * v) * rows[r] * columns[c] * vectors[v]
            for r, c, v in product(rows, columns, vectors)
        )


def tiling(width: int, height: int, vectors: int, inputs: int, target: Target) -> Tiling:
    """The cheapest, for so many output places, output vectors and inputs of each output."""
    candidates = [
        Tiling(Tile(rows, columns, count), width, height, vectors)
        for rows in ((1, 2) if height > 1 else (1,))
        for columns in range(1, min(width, MOST_PLACES) + 1)
        for count in range(1, min(vectors, MOST_VECTORS) + 1)
        if Tile(rows, columns, count).fits(target) and rows * columns <= MOST_PLACES
    ]
    if width == height == 1 and vectors > MOST_VECTORS // 2:  # weights are all that counts: an even number of tiles
        most = max(tiles.tile.vectors for tiles in candidates)
        return Tiling(Tile(1, 1, -(-vectors // (2 * -(-vectors // (2 * most))))), width, height, vectors)
    return min(candidates, key=lambda tiles: (tiles.cycles(inputs), -tiles.tile.places))


def _parts(total: int, most: int) -> list[int]:
    return [most] * (total // most) + ([total % most] if total % most else [])


@dataclass(frozen=True, kw_only=True)
class Group:
    """The inputs and outputs of one group of a convolution; one without groups is one group."""

    start: int
    """Of the first input, from the beginning of a row."""
    inputs: tuple[Run, ...]
    """From there on, in the order in which weights follow each other."""
    channels: np.ndarray
    """The input channel (within the group) of each."""
    base: int
    """Of the first output vector, from the beginning of a row."""
    outputs: np.ndarray
    """The output channel in each lane of each output vector, or -1."""


def groups_of(conv: Conv, read: View, write: View, stride: int, target: Target) -> list[Group]:
    """Which inputs and lanes belong together; ``stride`` is from one input to the next."""
    inside, outside = conv.weight.shape[1], len(conv.weight) // conv.groups
    found = []
    for group in range(conv.groups):
        offsets = read.offsets[group * inside : (group + 1) * inside]
        order = np.argsort(offsets, kind="stable")
        sorted_offsets = offsets[order]
        keep = np.concatenate([[True], np.diff(sorted_offsets) > 0])  # a channel read twice: its weights are added
        lanes = write.offsets[group * outside : (group + 1) * outside]
        base = int(lanes.min()) // target.lanes * target.lanes
        width = target.round_up(int(lanes.max()) + 1 - base)
        outputs = np.full(width, -1)
        outputs[lanes - base] = np.arange(group * outside, (group + 1) * outside)
        found.append(
            Group(
                start=int(sorted_offsets[0]),
                inputs=tuple(runs(sorted_offsets[keep] - sorted_offsets[0], stride)),
                channels=np.searchsorted(sorted_offsets[keep], offsets),
                base=base,
                outputs=outputs,
            )
        )
    return found


def packed(conv: Conv, group: Group, widths: Iterable[int]) -> np.ndarray:
    """A group's weights in the order in which its kernel reads them: for each tile, of so many outputs, the biases, then
    input after input.
    """
    _, _, height, width = conv.weight.shape
    used = group.outputs >= 0
    dense = np.zeros((height, width, int(group.channels.max()) + 1, len(group.outputs)), np.float32)
    weights = conv.weight[group.outputs[used]]  # (out, in, height, width)
    for channel, place in enumerate(group.channels):
        dense[:, :, place, used] += weights[:, channel].transpose(1, 2, 0)
    bias = np.zeros(len(group.outputs), np.float32)
    bias[used] = conv.bias[group.outputs[used]]
    parts, at = [], 0
    for count in widths:
        parts += [bias[at : at + count], dense[..., at : at + count].ravel()]
        at += count
    return np.concatenate(parts)


def kernel(
    conv: Conv, group: Group, tiles: Tiling, *, reads: Buffer, writes: Buffer, other: Buffer | None, target: Target
) -> Kernel:
    """The function for one group, given pointers to its first input and output; ``other`` is added before the activation."""
    _, _, height, width = conv.weight.shape
    inputs = int(group.channels.max()) + 1
    step = tiles.tile.vectors * target.lanes
    weights = step * (1 + height * width * inputs)
    shapes = sorted(
        {
            Tile(rows, columns, vectors)
            for rows in tiles.row_parts
            for columns in tiles.column_parts
            for vectors in tiles.vector_parts
        },
        key=lambda tile: (-tile.places, -tile.vectors),
    )
    stream = _stream(conv, group, tiles, weights)
    parts = tuple(
        (f"NAME_{tile.rows}x{tile.columns}x{tile.vectors}", _tile_text(conv, group, tile, reads, writes, other, stream))
        for tile in shapes
    )
    full_vectors, rest_vectors = divmod(tiles.vectors, tiles.tile.vectors)
    lines = []
    for rows in dict.fromkeys(tiles.row_parts):
        calls = [
            _columns(conv, tiles, rows, vectors, reads, writes, other, stream)
            for vectors in dict.fromkeys(tiles.vector_parts)
        ]
        choice = calls[0]
        if full_vectors and rest_vectors:
            choice = [*block(f"if (n < {full_vectors})", calls[0]), *block("else", calls[1])]
        setup = _rows(conv, rows, reads, writes, other)
        clear = _margins(rows, writes, step, len(group.outputs))
        over = block(
            "for (int n = n0; n < n1; n++)",
            f"const float *wn = w + (size_t)n * {weights};",
            choice,
        )
        if rows == tiles.tile.rows:
            lines += block(
                f"for (; y + {rows} <= y1; y += {rows})" if rows > 1 else "for (; y < y1; y++)", setup, over, clear
            )
        else:
            lines += block("if (y < y1)" if rows == 1 else f"if (y + {rows} <= y1)", setup, over, clear)
    arguments = ("in", *(["other"] if other else []), "w", "out", "y0", "y1", "n0", "n1")
    comment = (
        f"{height}x{width} convolution, {inputs} to {int((group.outputs >= 0).sum())} channels, "
        f"{tiles.tile.rows}x{tiles.tile.columns} places times {tiles.tile.vectors} vectors at a time"
    )
    begin = [f"const float *ahead = w + (size_t)(n0 + 1) * {weights};"] if stream else []
    return Kernel(comment, arguments, text(begin, "int y = y0;", lines), parts)


def is_streamed(weights: int) -> bool:
    """Whether so many floats of weights come in tile by tile of channels."""
    return 4 * weights >= STREAMED_FROM


@dataclass(frozen=True)
class Stream:
    """How the next tile's weights are asked for, a little with every input of this one's."""

    step: int
    """Floats with each."""
    inputs: int
    """Of a tile."""


def _stream(conv: Conv, group: Group, tiles: Tiling, weights: int) -> Stream | None:
    _, _, height, width = conv.weight.shape
    inputs = height * width * (int(group.channels.max()) + 1)
    calls = len(tiles.row_parts) * len(tiles.column_parts)
    if calls == 1 or not is_streamed(len(group.outputs) * (1 + inputs)):
        return None
    return Stream(step=-(-weights // (calls * inputs)), inputs=inputs)


def _rows(conv: Conv, rows: int, reads: Buffer, writes: Buffer, other: Buffer | None) -> list[str]:
    """Pointers to the rows that are read and written."""
    needed = sorted(
        {r * conv.stride[0] + ky * conv.dilation[0] for r in range(rows) for ky in range(conv.weight.shape[2])}
    )
    items = ", ".join(row("in", f"y * {conv.stride[0]} + {place - conv.padding[0]}", reads) for place in needed)
    lines = [f"const float *const r[{len(needed)}] = {{{items}}};"]
    for index in range(rows):
        lines.append(f"float *o{index} = {row_inside('out', f'y + {index}', writes)};")
        if other is not None:
            lines.append(f"const float *q{index} = {row_inside('other', f'y + {index}', other)};")
    return lines


def _columns(
    conv: Conv,
    tiles: Tiling,
    rows: int,
    vectors: int,
    reads: Buffer,
    writes: Buffer,
    other: Buffer | None,
    stream: Stream | None,
) -> list[str]:
    """Calls of the tiles of one or two rows."""
    columns, rest = tiles.tile.columns, tiles.width % tiles.tile.columns
    full = tiles.width - rest
    lane = f"(size_t)n * {tiles.tile.vectors} * LANES"

    def call(columns: int, x: str) -> list[str]:
        outs = "".join(f", o{index} + {x} * {writes.pixel} + {lane}" for index in range(rows))
        others = "".join(f", q{index} + {x} * {other.pixel} + {lane}" for index in range(rows)) if other else ""
        name, more = f"NAME_{rows}x{columns}x{vectors}", ", ahead" if stream else ""
        lines = [f"{name}(r, {x} * {conv.stride[1] * reads.pixel}, wn{more}{outs}{others});"]
        return [*lines, f"ahead += {stream.inputs * stream.step};"] if stream else lines

    lines = []
    if full == columns:
        lines += call(columns, "0")
    elif full:
        lines += block(f"for (int x = 0; x < {full}; x += {columns})", call(columns, "x"))
    if rest:
        lines += call(rest, str(full))
    return lines


def _margins(rows: int, writes: Buffer, step: int, floats: int) -> list[str]:
    """Zeros beside what was written: tiles n0 to n1, each of ``step`` of the group's ``floats`` but the last."""
    lines = [f"const int f0 = n0 * {step}, f1 = least(n1 * {step}, {floats});"] if writes.beside else []
    for index in range(rows):
        for first, columns in writes.beside:
            lines.append(f"clear(o{index} + {first * writes.pixel} + f0, {columns}, {writes.pixel}, f1 - f0);")
    return lines


def _tile_text(
    conv: Conv, group: Group, tile: Tile, reads: Buffer, writes: Buffer, other: Buffer | None, stream: Stream | None
) -> str:
    _, _, height, width = conv.weight.shape
    places = [(r, c) for r in range(tile.rows) for c in range(tile.columns)]
    needed = sorted({r * conv.stride[0] + ky * conv.dilation[0] for r in range(tile.rows) for ky in range(height)})
    sums = {(p, v): f"s{p}_{v}" for p in range(len(places)) for v in range(tile.vectors)}
    lines = [f"const vec b{v} = load(w + {v} * LANES);" for v in range(tile.vectors)]
    lines += ["vec " + ", ".join(f"{sums[p, v]} = b{v}" for v in range(tile.vectors)) + ";" for p in range(len(places))]
    lines.append(f"w += {tile.vectors} * LANES;")

    merged_run = (
        len(group.inputs) == 1
        and group.inputs[0].stride == 1
        and group.inputs[0].count == reads.pixel
        and conv.dilation[1] == 1
    )
    columns = 1 if merged_run else width

    def products(r: int, c: int, p: int) -> list[str]:
        at = c * conv.stride[1] * reads.pixel
        index = f"{at} + k" if at else "k"
        return [f"a = splat(p{r}[{index}]);", *(f"{sums[p, v]} += a * w{v};" for v in range(tile.vectors))]

    inner: list[str] = [f"const vec w{v} = load(w + {v} * LANES);" for v in range(tile.vectors)]
    if stream is None:
        inner += [f"prefetch(w + {PREFETCHED // 4} + {v} * LANES);" for v in range(tile.vectors)]
    else:
        inner += [f"__builtin_prefetch(ahead + {place}, 0, 2);" for place in range(0, stream.step, LINE)]
        inner.append(f"ahead += {stream.step};")
    inner.append("vec a;")
    for p, (r, c) in enumerate(places):
        inner.append(" ".join(products(r, c, p)))
    inner.append(f"w += {tile.vectors} * LANES;")

    body: list[str] = []
    for run in group.inputs:
        count = run.count * (width if merged_run else 1)
        shift = run.start - conv.padding[1] * reads.pixel
        pointers = []
        for r in range(tile.rows):
            index = "i" if tile.rows == 1 else f"at[i][{r}]"
            if tile.rows == 1 and height == 1:
                index = "0"
            along = f" + j * {conv.dilation[1] * reads.pixel}" if columns > 1 else ""
            pointers.append(f"const float *p{r} = r[{index}] + x + ({shift}){along};")
        if run.stride == 1:
            loop = block(f"for (int k = 0; k < {count}; k++)", inner)
        else:
            loop = block(f"for (int k = 0; k < {count * run.stride}; k += {run.stride})", inner)
        body += block("", pointers, loop) if len(group.inputs) > 1 else [*pointers, *loop]
    if columns > 1:
        body = block(f"for (int j = 0; j < {columns}; j++)", body)
    if tile.rows > 1:
        table = ", ".join(
            "{"
            + ", ".join(str(needed.index(r * conv.stride[0] + ky * conv.dilation[0])) for r in range(tile.rows))
            + "}"
            for ky in range(height)
        )
        lines.append(f"static const int at[{height}][{tile.rows}] = {{{table}}};")
    if height > 1 or tile.rows > 1:
        body = block(f"for (int i = 0; i < {height}; i++)", body)
    lines += body
    for p, (r, c) in enumerate(places):
        for v in range(tile.vectors):
            value = sums[p, v]
            if other is not None:
                value = f"{value} + load(q{r} + {c * other.pixel} + {v} * LANES)"
            lines.append(f"store(o{r} + {c * writes.pixel} + {v} * LANES, {activated(value, conv.activation)});")
    outs = "".join(f", float *o{r}" for r in range(tile.rows))
    others = "".join(f", const float *q{r}" for r in range(tile.rows)) if other else ""
    head = f"static void NAME_{tile.rows}x{tile.columns}x{tile.vectors}(const float *const *r, size_t x, const float *w{', const float *ahead' if stream else ''}{outs}{others})"
    return "\n".join([f"{head} {{", text(lines), "}"])
