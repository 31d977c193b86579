# SPDX-License-Identifier: Apache-2.0
"""Windows' greatest values and means in lines, and the mean of whole lines."""

from __future__ import annotations

from ghostnets.deploy.c.choice import STRIDES
from ghostnets.deploy.c.kernels.copying import table
from ghostnets.deploy.c.kernels.line_convolution import clears
from ghostnets.deploy.c.kernels.line_elementwise import Moves
from ghostnets.deploy.c.kernels.text import Kernel, block, row_inside, text
from ghostnets.deploy.c.layout import Buffer
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Pool


def is_possible(pool: Pool) -> bool:
    """Whether every window lies in the map, and is read in vectors."""
    return not any(pool.padding) and pool.dilation == (1, 1) and pool.stride[1] in STRIDES


def kernel(pool: Pool, *, reads: Buffer, writes: Buffer, moves: Moves, target: Target, lead: bool) -> Kernel:
    """``moves`` says for each line where it is read, and, last, where written."""
    (height, width), (down, along), lanes = pool.kernel, pool.stride, target.lanes
    one = "s = greatest(s, {});" if pool.kind == "max" else "s += {};"
    window = []
    for j in range(width):
        value = f"load(p + {j})" if along == 1 else f"evens(load(p + {j}), load(p + {j + lanes}))"
        window.append(one.format(value))
    value = "s" if pool.kind == "max" else f"s * splat({1 / (height * width)!r}f)"
    rest = writes.width % lanes
    vector = [
        f"vec s = splat({'-INFINITY' if pool.kind == 'max' else '0.0f'});",
        *block(
            f"for (int i = 0; i < {height}; i++)",
            f"const float *p = {row_inside('in', f'(y * {down} + i)', reads)} + from[n] + x * {along};",
            window,
        ),
    ]
    full = writes.width - rest
    inner = []
    if full:
        inner += block(f"for (int x = 0; x < {full}; x += {lanes})", vector, f"store(o + to[n] + x, {value});")
    if rest:
        inner += block("", f"const int x = {full};", vector, f"store(o + to[n] + x, first({value}, {rest}));")
    inner += [line.replace("(o,", "(o + to[n],") for line in clears(writes, 1, target, lead=False)]
    lines = [table("from", [move[0] for move in moves]), table("to", [move[2] for move in moves])]
    lines += block(
        "for (int y = y0; y < y1; y++)",
        f"float *o = {row_inside('out', 'y', writes)};",
        clears(writes, 0, target, lead=lead) if lead else [],
        block(f"for (int n = 0; n < {len(moves)}; n++)", inner),
    )
    return Kernel(f"{pool.kind} of {height}x{width} windows of lines", ("in", "out", "y0", "y1"), text(lines))


def mean(pool: Pool, *, reads: Buffer, moves: Moves, target: Target) -> Kernel:
    """Of all places of each line; what lies beyond a line's end is zero."""
    height, width = pool.kernel
    body = block(
        f"for (int n = 0; n < {len(moves)}; n++)",
        "vec s = splat(0.0f);",
        block(
            "for (int y = y0; y < y1; y++)",
            f"const float *r = {row_inside('in', 'y', reads)} + from[n];",
            f"for (int x = 0; x < {target.round_up(width)}; x += {target.lanes}) s += load(r + x);",
        ),
        f"out[to[n]] = total(s) * {1 / (height * width)!r}f;",
    )
    tables = [table("from", [move[0] for move in moves]), table("to", [move[2] for move in moves])]
    return Kernel(f"mean of {height}x{width} places of each line", ("in", "out", "y0", "y1"), text(tables, body))
