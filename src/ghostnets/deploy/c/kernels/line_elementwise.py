# SPDX-License-Identifier: Apache-2.0
"""Sums, products and activations of lines."""

from __future__ import annotations

from collections.abc import Sequence

from ghostnets.deploy.c.kernels.activation import activated
from ghostnets.deploy.c.kernels.elementwise import SIGNS
from ghostnets.deploy.c.kernels.line_convolution import clears
from ghostnets.deploy.c.kernels.text import Kernel, block, row_inside, text
from ghostnets.deploy.c.layout import Buffer
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Activate, Combine

Moves = Sequence[tuple[int, int, int]]
"""For each line where it is read, in the other operand, and written."""


def kernel(
    step: Combine | Activate,
    *,
    reads: Buffer,
    writes: Buffer,
    other: Buffer | None,
    moves: Moves,
    target: Target,
    lead: bool,
) -> Kernel:
    """An operand of one place serves every place of its line."""
    single = other is not None and not other.lines
    setup = [f"float *o = {row_inside('out', 'y', writes)};", f"const float *r = {row_inside('in', 'y', reads)};"]
    value = "load(r + from[n] + x)"
    before: list[str] = []
    if other is not None:
        assert isinstance(step, Combine)
        setup.append(f"const float *q = {row_inside('other', 'y' if other.height > 1 else '0', other)};")
        before = ["const vec a = splat(q[with[n]]);"] if single else []
        value = f"{value} {SIGNS[step.kind]} {'a' if single else 'load(q + with[n] + x)'}"
    value = activated(value, step.activation)
    lanes, rest = target.lanes, writes.width % target.lanes
    full = writes.width - rest
    inner = [*before]
    if full:
        inner += block(f"for (int x = 0; x < {full}; x += {lanes})", f"store(o + to[n] + x, {value});")
    if rest:
        inner += block("", f"const int x = {full};", f"store(o + to[n] + x, first({value}, {rest}));")
    inner += [line.replace("(o,", "(o + to[n],") for line in clears(writes, 1, target, lead=False)]
    setup += clears(writes, 0, target, lead=lead) if lead else []
    tables = [
        f"static const int {name}[{len(moves)}] = {{{', '.join(str(move[index]) for move in moves)}}};"
        for index, name in enumerate(("from", "with", "to"))
        if name != "with" or other is not None
    ]
    body = block("for (int y = y0; y < y1; y++)", setup, block(f"for (int n = 0; n < {len(moves)}; n++)", inner))
    kind = step.kind if isinstance(step, Combine) else step.activation
    return Kernel(f"{kind} of lines", ("in", *(["other"] if other else []), "out", "y0", "y1"), text(tables, body))
