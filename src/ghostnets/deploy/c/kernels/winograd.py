# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions of channels last with 16 multiplications for four outputs instead of 36.

F(2x2, 3x3) of Winograd's algorithms (Lavin and Gray, arXiv:1509.09308, section 4.1): tiles of 4x4 inputs are transformed, then
for each of their 16 values the channels are multiplied as in a 1x1 convolution, and the sums are transformed to 2x2 outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghostnets.deploy.c.kernels.activation import activated
from ghostnets.deploy.c.kernels.convolution import PREFETCHED, Group, Tile, Tiling, tiling
from ghostnets.deploy.c.kernels.text import Kernel, block, row, row_inside, text
from ghostnets.deploy.c.layout import Buffer, View
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Conv

VALUES = 16
"""Of a tile."""

FEW_COLUMNS = 7
"""Tiles in a row of them, up to which two rows of tiles are done at a time: the products then fill their registers."""

MOST_WEIGHTS = 2**18
"""Floats of transformed weights, all of which come by for every row of tiles: half of a second-level cache."""

FORTH, BACK = 48, 33
"""Cycles that a vector of channels of one tile takes to be transformed, as counted: 16 or 16 loads, 32 or 24 sums, 16 or 4 stores."""

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
"""Makes four values of the three weights along one direction."""


def is_possible(conv: Conv, target: Target) -> bool:
    """Whether a convolution is one that F(2, 3) does, along one direction or both."""
    alike = conv.weight.shape[2:] == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.padding == (1, 1, 1, 1)
    return alike and conv.groups == 1 and target.lanes > 1


@dataclass(frozen=True)
class Plan:
    """How a map is cut: some rows of tiles at a time, whose products are a 1x1 convolution."""

    pairs: int
    columns: int
    """Tiles in a row of them."""
    tiles: Tiling
    """Of the products, all places in one row."""

    @property
    def rows(self) -> int:
        """Output rows at a time."""
        return 2 * self.pairs

    @property
    def places(self) -> int:
        """Tiles at a time."""
        return self.pairs * self.columns

    def cycles(self, conv: Conv, target: Target) -> float:
        """Of the whole map."""
        outputs, inputs = (count / target.lanes for count in conv.weight.shape[:2])
        each = VALUES * self.tiles.cycles(conv.weight.shape[1]) + self.places * (inputs * FORTH + outputs * BACK)
        return -(-conv.shape[1] // self.rows) * each


def planned(conv: Conv, read: View, write: View, reads: Buffer, target: Target) -> Plan | None:
    """How a convolution is done, where its values lie so that it can be, and that pays."""
    lie = not reads.lines and _whole(read, target) and _whole(write, target)
    return worth(conv, target) if lie else None


def worth(conv: Conv, target: Target) -> Plan | None:
    """How a convolution would be done, where that takes less than the usual way."""
    outputs, inputs = conv.weight.shape[:2]
    _, height, width = conv.shape
    if not is_possible(conv, target) or min(height, width) < 4:
        return None
    if inputs % target.lanes or outputs % target.lanes or VALUES * outputs * inputs > MOST_WEIGHTS:
        return None
    columns = -(-width // 2)
    pairs = 2 if columns <= FEW_COLUMNS else 1
    plan = Plan(pairs, columns, tiling(pairs * columns, 1, outputs // target.lanes, inputs, target))
    usual = tiling(width, height, outputs // target.lanes, 9 * inputs, target)
    return plan if plan.cycles(conv, target) < usual.cycles(9 * inputs) else None


def _whole(view: View, target: Target) -> bool:
    """Whether a value's channels are whole vectors, one beside the other."""
    start, count = view.start, len(view.offsets)
    beside = sorted(view.offsets.tolist()) == list(range(start, start + count))
    return beside and start % target.lanes == count % target.lanes == 0


def scratch(conv: Conv, plan: Plan, target: Target) -> int:
    """Floats of the tiles at a time: transformed inputs, and products of a tile of channels."""
    return VALUES * plan.places * (conv.weight.shape[1] + plan.tiles.tile.vectors * target.lanes)


def packed(conv: Conv, group: Group, plan: Plan, target: Target) -> np.ndarray:
    """For each tile of outputs the biases, then for each of the 16 values the weights of input after input."""
    moved = np.einsum("aj,ocjk,bk->abco", G, conv.weight.astype(np.float64), G)
    moved = moved.reshape(VALUES, *moved.shape[2:])[:, np.argsort(group.channels)][:, :, group.outputs].astype(
        np.float32
    )
    bias, parts, at = conv.bias[group.outputs].astype(np.float32), [], 0
    for vectors in plan.tiles.vector_parts:
        until = at + vectors * target.lanes
        parts += [bias[at:until], moved[:, :, at:until].ravel()]
        at = until
    return np.concatenate(parts)


def kernel(conv: Conv, plan: Plan, *, reads: Buffer, writes: Buffer, other: Buffer | None, target: Target) -> Kernel:
    """The function, given pointers to its first input and output; ``other`` is added before the activation."""
    outputs, inputs = conv.weight.shape[:2]
    full, odd = divmod(conv.shape[2], 2)
    products = VALUES * plan.places * inputs
    body: list[str] = []
    for pair in range(plan.pairs):
        items = ", ".join(row("in", f"y + {2 * pair + place}", reads) for place in range(-1, 3))
        at = f"(ptrdiff_t)(2 * p - 1) * {reads.pixel}, scratch + ({pair * plan.columns} + p) * {inputs}"
        forth = block(f"for (int p = 0; p < {full}; p++)", f"NAME_forth(r, {at});")
        forth += block("", f"const int p = {full};", f"NAME_forth_last(r, {at});") if odd else []
        body += block("", f"const float *const r[4] = {{{items}}};", forth)
    for index in range(plan.rows):
        there = "" if index == 0 else f"y + {index} >= y1 ? NULL : "
        body.append(f"float *o{index} = {there}{row_inside('out', f'y + {index}', writes)};")
        if other is not None:
            body.append(f"const float *q{index} = {there}{row_inside('other', f'y + {index}', other)};")
    at, begun = "w", 0
    for vectors in dict.fromkeys(plan.tiles.vector_parts):
        times, floats = plan.tiles.vector_parts.count(vectors), vectors * target.lanes
        size = floats * (1 + VALUES * inputs)
        lines = [f"const float *wn = {at} + (size_t)n * {size};"]
        lines += block(f"for (int i = 0; i < {VALUES}; i++)", _products(plan, vectors, floats, inputs, products))
        lines += [f"const float *m = scratch + {products};", f"const size_t c = {begun} + (size_t)n * {floats};"]
        for pair in range(plan.pairs):
            lines += _outputs(plan, pair, vectors, floats, full, odd, writes, other)
        body += block(f"for (int n = 0; n < {times}; n++)", lines)
        at, begun = f"{at} + {times * size}", begun + times * floats
    for index in range(plan.rows):
        for first, columns in writes.beside:
            guard = f"if (o{index}) " if index else ""
            body.append(f"{guard}clear(o{index} + {first * writes.pixel}, {columns}, {writes.pixel}, {outputs});")
    comment = f"3x3 convolution by Winograd, {inputs} to {outputs} channels, {plan.places} tiles of 2x2 at a time"
    arguments = ("in", *(["other"] if other else []), "w", "out", "scratch", "y0", "y1")
    whole = text(block(f"for (int y = y0; y < y1; y += {plan.rows})", body))
    return Kernel(comment, arguments, whole, tuple(_parts(conv, plan, reads, writes, other)))


def _products(plan: Plan, vectors: int, floats: int, inputs: int, products: int) -> list[str]:
    """Calls for one of the 16 values: all places, one tile of channels."""
    lines, at = [], 0
    for columns in plan.tiles.column_parts:
        place = f"(i * {plan.places} + {at})"
        lines.append(
            f"NAME_{columns}x{vectors}(scratch + {place} * {inputs}, wn + {floats} + i * {inputs * floats}, "
            f"scratch + {products} + {place} * {floats});"
        )
        at += columns
    return lines


def _outputs(
    plan: Plan, pair: int, vectors: int, floats: int, full: int, odd: int, writes: Buffer, other: Buffer | None
) -> list[str]:
    """Calls that make two output rows of a tile of channels."""
    rows = (2 * pair, 2 * pair + 1)

    def call(name: str) -> str:
        outs = "".join(f", {_moved('o', index, f'2 * p * {writes.pixel} + c')}" for index in rows)
        others = "".join(f", {_moved('q', index, f'2 * p * {other.pixel} + c')}" for index in rows) if other else ""
        return f"{name}(m + ({pair * plan.columns} + p) * {floats}, wn{outs}{others});"

    lines = block(f"for (int p = 0; p < {full}; p++)", call(f"NAME_back{vectors}"))
    lines += block("", f"const int p = {full};", call(f"NAME_back{vectors}_last")) if odd else []
    return block(f"if (o{rows[0]})", lines) if pair else lines


def _moved(name: str, index: int, by: str) -> str:
    return f"{name}{index} ? {name}{index} + {by} : NULL" if index % 2 else f"{name}{index} + {by}"


def _parts(conv: Conv, plan: Plan, reads: Buffer, writes: Buffer, other: Buffer | None) -> list[tuple[str, str]]:
    """The functions that the kernel calls."""
    inputs, odd = conv.weight.shape[1], conv.shape[2] % 2
    found = {"NAME_forth": _forth_text(inputs, plan.places, reads, last=False)}
    if odd:
        found["NAME_forth_last"] = _forth_text(inputs, plan.places, reads, last=True)
    for vectors in dict.fromkeys(plan.tiles.vector_parts):
        for columns in dict.fromkeys(plan.tiles.column_parts):
            found[f"NAME_{columns}x{vectors}"] = _product_text(Tile(1, columns, vectors), inputs)
        for last in (False, True) if odd else (False,):
            name = f"NAME_back{vectors}{'_last' if last else ''}"
            found[name] = _back_text(name, conv, vectors, plan.places, writes, other, last=last)
    return list(found.items())


def _forth_text(inputs: int, places: int, reads: Buffer, *, last: bool) -> str:
    """One tile of inputs, all channels; of the last one of an odd width the last column is no part of the map."""
    lines = []
    for i in range(4):
        values = [f"load(r[{i}] + x + {j * reads.pixel} + n)" for j in range(3)]
        values.append("splat(0.0f)" if last else f"load(r[{i}] + x + {3 * reads.pixel} + n)")
        lines.append("const vec " + ", ".join(f"d{i}{j} = {value}" for j, value in enumerate(values)) + ";")
    for j in range(4):
        sums = (f"d0{j} - d2{j}", f"d1{j} + d2{j}", f"d2{j} - d1{j}", f"d1{j} - d3{j}")
        lines.append("const vec " + ", ".join(f"t{i}{j} = {value}" for i, value in enumerate(sums)) + ";")
    for i in range(4):
        for j, value in enumerate((f"t{i}0 - t{i}2", f"t{i}1 + t{i}2", f"t{i}2 - t{i}1", f"t{i}1 - t{i}3")):
            lines.append(f"store(v + {(4 * i + j) * places * inputs} + n, {value});")
    head = f"static void NAME_forth{'_last' if last else ''}(const float *const *r, ptrdiff_t x, float *v)"
    return "\n".join(block(head, block(f"for (int n = 0; n < {inputs}; n += LANES)", lines)))


def _product_text(tile: Tile, inputs: int) -> str:
    """A tile of a 1x1 convolution whose places lie one after the other."""
    sums = [[f"s{p}_{v}" for v in range(tile.vectors)] for p in range(tile.columns)]
    lines = ["vec " + ", ".join(f"{name} = splat(0.0f)" for name in row) + ";" for row in sums]
    inner = [f"const vec w{v} = load(w + {v} * LANES);" for v in range(tile.vectors)]
    inner += [f"prefetch(w + {PREFETCHED // 4} + {v} * LANES);" for v in range(tile.vectors)]
    inner.append("vec a;")
    for p, row_of_sums in enumerate(sums):
        added = " ".join(f"{name} += a * w{v};" for v, name in enumerate(row_of_sums))
        inner.append(f"a = splat(a0[{p * inputs} + k]); {added}")
    inner.append(f"w += {tile.vectors} * LANES;")
    lines += block(f"for (int k = 0; k < {inputs}; k++)", inner)
    lines += [
        f"store(m + {p * tile.vectors + v} * LANES, {name});"
        for p, row in enumerate(sums)
        for v, name in enumerate(row)
    ]
    head = f"static void NAME_{tile.columns}x{tile.vectors}(const float *a0, const float *w, float *m)"
    return "\n".join(block(head, lines))


def _back_text(
    name: str, conv: Conv, vectors: int, places: int, writes: Buffer, other: Buffer | None, *, last: bool
) -> str:
    """One tile of outputs, some vectors of channels; the second row, and of an odd width the last column, may not be there."""
    lines, columns = [], range(3 if last else 4)
    for i in range(4):
        loads = (f"m{i}{j} = load(m + {(4 * i + j) * places * vectors} * LANES + n)" for j in columns)
        lines.append("const vec " + ", ".join(loads) + ";")
    lines += [f"const vec t0{j} = m0{j} + m1{j} + m2{j}, t1{j} = m1{j} - m2{j} - m3{j};" for j in columns]
    lines.append("const vec b = load(bias + n);")
    for i in range(2):
        stores = []
        for j, value in enumerate((f"t{i}0 + t{i}1 + t{i}2 + b", f"t{i}1 - t{i}2 - t{i}3 + b")[: 1 if last else 2]):
            added = f"{value} + load(q{i} + {j * other.pixel} + n)" if other else value
            stores.append(f"store(o{i} + {j * writes.pixel} + n, {activated(added, conv.activation)});")
        lines += block(f"if (o{i})", stores) if i else stores
    others = ", const float *q0, const float *q1" if other else ""
    head = f"static void {name}(const float *m, const float *bias, float *o0, float *o1{others})"
    return "\n".join(block(head, block(f"for (int n = 0; n < {vectors} * LANES; n += LANES)", lines)))
