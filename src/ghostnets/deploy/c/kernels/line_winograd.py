# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions of lines with 12 multiplications for two outputs, one above the other, instead of 18.

F(2, 3) of Winograd's algorithms (Lavin and Gray, arXiv:1509.09308, equation 5) along columns: four rows of inputs become four others,
each of these goes through a 1x3 convolution, and the sums become two rows of outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ghostnets.deploy.c.kernels.activation import activated
from ghostnets.deploy.c.kernels.convolution import Group, Tiling
from ghostnets.deploy.c.kernels.line_convolution import clears, tile_of, vector_parts
from ghostnets.deploy.c.kernels.text import Kernel, block, row, row_inside, text
from ghostnets.deploy.c.kernels.winograd import G, is_possible
from ghostnets.deploy.c.layout import Buffer
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Conv

ROWS = 2
"""Of outputs at a time."""

VALUES = 4
"""That two outputs are made of."""

FORTH, BACK = 6, 6
"""Cycles that a vector of inputs, or of outputs, takes to be transformed: 4 loads, 4 or 6 sums, 4 or 2 stores."""


@dataclass(frozen=True)
class Plan:
    """How rows are cut: channels and vectors at a time."""

    tiles: Tiling

    def cycles(self, conv: Conv, target: Target) -> float:
        """Of the whole map."""
        outputs, inputs = conv.weight.shape[:2]
        vectors = target.round_up(conv.shape[2]) // target.lanes
        each = VALUES * self.tiles.cycles(3 * inputs) + FORTH * inputs * (vectors + 1) + BACK * outputs * vectors
        return -(-conv.shape[1] // ROWS) * each


def worth(conv: Conv, target: Target) -> Plan | None:
    """How a convolution would be done, where that takes less than the usual way."""
    outputs, inputs = conv.weight.shape[:2]
    _, height, width = conv.shape
    if not is_possible(conv, target) or height < ROWS:
        return None
    plan = Plan(tile_of(outputs, width, 3 * inputs, target))
    usual = height * tile_of(outputs, width, 9 * inputs, target).cycles(9 * inputs)
    return plan if plan.cycles(conv, target) < usual else None


def planned(conv: Conv, group: Group, reads: Buffer, target: Target) -> Plan | None:
    """How a convolution of lines is done, where its inputs lie one after another and that pays."""
    (first, *others), line = group.inputs, reads.line
    return worth(conv, target) if not others and (first.count == 1 or first.stride == line) else None


def scratch(group: Group, reads: Buffer, target: Target) -> int:
    """Floats of the transformed lines, a margin before them and what is read beyond them."""
    return VALUES * _span(group, reads, target)


def _span(group: Group, reads: Buffer, target: Target) -> int:
    return group.inputs[0].count * reads.line + 2 * target.lanes


def packed(conv: Conv, group: Group, plan: Plan) -> np.ndarray:
    """For each tile of outputs the biases, then for each of the four values input after input, three columns of each."""
    moved = np.einsum("ij,ocjx->icxo", G, conv.weight.astype(np.float64))
    inputs = int(group.channels.max()) + 1
    dense = np.zeros((VALUES, inputs, 3, len(group.outputs)), np.float32)
    used = group.outputs >= 0
    for channel, place in enumerate(group.channels):
        dense[:, place, :, used] += moved[:, channel][:, :, group.outputs[used]].transpose(2, 0, 1).astype(np.float32)
    bias = np.zeros(len(group.outputs), np.float32)
    bias[used] = conv.bias[group.outputs[used]]
    ends = list(accumulate(plan.tiles.column_parts))
    parts = [(bias[low:high], dense[..., low:high].ravel()) for low, high in zip([0, *ends], ends, strict=False)]
    return np.concatenate([piece for pair in parts for piece in pair])


def kernel(
    conv: Conv,
    group: Group,
    plan: Plan,
    *,
    reads: Buffer,
    writes: Buffer,
    other: Buffer | None,
    target: Target,
    lead: bool,
) -> Kernel:
    """The function, given pointers to its first input and output line; ``other`` is added before the activation."""
    inputs, span = group.inputs[0].count, _span(group, reads, target)
    items = ", ".join(row("in", f"y + {place}", reads) for place in range(-1, 3))
    body = [f"const float *const r[4] = {{{items}}};", "const float *wn = w;"]
    body += block(
        f"for (int n = {-target.lanes}; n < {inputs * reads.line}; n += LANES)",
        "const vec a = load(r[0] + n), b = load(r[1] + n), c = load(r[2] + n), d = load(r[3] + n);",
        f"float *v = scratch + {target.lanes} + n;",
        *(f"store(v + {i * span}, {value});" for i, value in enumerate(("a - c", "b + c", "c - b", "b - d"))),
    )
    for index in range(ROWS):
        there = f"y + {index} >= y1 ? NULL : " if index else ""
        body.append(f"float *o{index} = {there}{row_inside('out', f'y + {index}', writes)};")
        if other is not None:
            body.append(f"const float *q{index} = {there}{row_inside('other', f'y + {index}', other)};")
        cleared = [line.replace("(o,", f"(o{index},") for line in clears(writes, len(group.outputs), target, lead=lead)]
        body += block("if (o1)", cleared) if index and cleared else cleared
    parts: dict[str, str] = {}
    for count in dict.fromkeys(plan.tiles.column_parts):
        lines = []
        for first, vectors, rest in vector_parts(plan.tiles, writes.width, target):
            name = f"NAME_{count}x{vectors}" + (f"_{rest}" if rest else "")
            parts[name] = _tile_text(conv, inputs, span, count, vectors, rest, name, reads, writes, other, target)
            shift = first * target.lanes
            moved = [f"o0 + {shift}", f"o1 ? o1 + {shift} : NULL"]
            moved += [f"q0 + {shift}", f"q1 ? q1 + {shift} : NULL"] if other is not None else []
            lines.append(f"{name}(scratch + {target.lanes + shift}, wn, {', '.join(moved)});")
        lines.append(f"wn += {count * (1 + VALUES * 3 * inputs)};")
        for pointer, buffer in (("o", writes), ("q", other)):
            if buffer is not None:
                lines.append(
                    f"{pointer}0 += {count * buffer.line}; if ({pointer}1) {pointer}1 += {count * buffer.line};"
                )
        body += block(f"for (int n = 0; n < {plan.tiles.column_parts.count(count)}; n++)", lines)
    comment = f"3x3 convolution of lines by Winograd, {inputs} to {len(group.outputs)} channels, two rows at a time"
    arguments = ("in", *(["other"] if other else []), "w", "out", "scratch", "y0", "y1")
    whole = text(block(f"for (int y = y0; y < y1; y += {ROWS})", body))
    return Kernel(comment, arguments, whole, tuple(parts.items()))


def _tile_text(
    conv: Conv, inputs: int, span: int, count: int, vectors: int, rest: int, name: str, reads: Buffer, writes: Buffer,
    other: Buffer | None, target: Target,
) -> str:  # fmt: skip
    sums = [(n, v) for n in range(count) for v in range(vectors)]
    lines = [f"vec m[{VALUES}][{len(sums)}];", "const float *bias = w;", f"w += {count};"]
    inner = ["vec b;"]
    for j in range(3):
        loads = ", ".join(f"a{v} = load(p + k + {j - 1 + v * target.lanes})" for v in range(vectors))
        added = (
            f"b = splat(w[{j * count + n}]); " + " ".join(f"s{n}_{v} += a{v} * b;" for v in range(vectors))
            for n in range(count)
        )
        inner += block("", f"const vec {loads};", added)
    inner.append(f"w += {3 * count};")
    loop = block(f"for (int k = 0; k < {inputs * reads.line}; k += {reads.line})", inner)
    lines += block(
        f"for (int i = 0; i < {VALUES}; i++)",
        "vec " + ", ".join(f"s{n}_{v} = splat(0.0f)" for n, v in sums) + ";",
        f"const float *p = x + i * {span};",
        loop,
        *(f"m[i][{at}] = s{n}_{v};" for at, (n, v) in enumerate(sums)),
    )
    for index, (first, second, third) in enumerate((("m[0]", "+ m[1]", "+ m[2]"), ("m[1]", "- m[2]", "- m[3]"))):
        stores = []
        for at, (n, v) in enumerate(sums):
            value = f"{first}[{at}] {second}[{at}] {third}[{at}] + splat(bias[{n}])"
            if other is not None:
                value = f"{value} + load(q{index} + {n * other.line + v * target.lanes})"
            value = activated(value, conv.activation)
            value = f"first({value}, {rest})" if rest and v == vectors - 1 else value
            stores.append(f"store(o{index} + {n * writes.line + v * target.lanes}, {value});")
        lines += block("if (o1)", stores) if index else stores
    others = ", const float *q0, const float *q1" if other is not None else ""
    head = f"static void {name}(const float *x, const float *w, float *o0, float *o1{others})"
    return "\n".join(block(head, lines))
