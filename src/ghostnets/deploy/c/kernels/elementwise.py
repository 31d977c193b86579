# SPDX-License-Identifier: Apache-2.0
"""Sums, products and activations of maps, vector by vector."""

from __future__ import annotations

from collections.abc import Sequence

from ghostnets.deploy.c.kernels.activation import activated
from ghostnets.deploy.c.kernels.pooling import clears
from ghostnets.deploy.c.kernels.text import Kernel, block, row_inside, text
from ghostnets.deploy.c.layout import Buffer
from ghostnets.deploy.graph import Activate, Combine

SIGNS = {"add": "+", "multiply": "*"}


def kernel(
    step: Combine | Activate,
    *,
    reads: Buffer,
    writes: Buffer,
    other: Buffer | None,
    moves: Sequence[tuple[int, int, int]],
    lanes: int,
) -> Kernel:
    """``moves`` says for each vector where in a place it is read, in the other operand, and written.

    An operand of one place serves every place; one of one row, every row.
    """
    activation = step.activation
    value = f"load(r + x * {reads.pixel if reads.width > 1 or writes.width == 1 else 0} + from[n])"
    setup = [
        f"float *o = {row_inside('out', 'y', writes)};",
        f"const float *r = {row_inside('in', 'y' if reads.height > 1 else '0', reads)};",
    ]
    if other is not None:
        assert isinstance(step, Combine)
        setup.append(f"const float *q = {row_inside('other', 'y' if other.height > 1 else '0', other)};")
        second = f"load(q + x * {other.pixel if other.width > 1 or writes.width == 1 else 0} + with[n])"
        value = f"{value} {SIGNS[step.kind]} {second}"
    count = len(moves)
    tables = [
        f"static const int {name}[{count}] = {{{', '.join(str(move[index]) for move in moves)}}};"
        for index, name in enumerate(("from", "with", "to"))
        if name != "with" or other is not None
    ]
    store = f"store(o + x * {writes.pixel} + to[n], {activated(value, activation)});"
    first = moves[0]
    if all(move == tuple(place + index * lanes for place in first) for index, move in enumerate(moves)):
        tables = []  # vectors that follow each other need no table
        for name, place in zip(("from", "with", "to"), first, strict=True):
            store = store.replace(f"{name}[n]", f"{place} + n * LANES")
    vectors = block(f"for (int n = 0; n < {count}; n++)", store)
    places = block(f"for (int x = 0; x < {writes.width}; x++)", vectors)
    clear = clears(writes, [(0, move[2]) for move in moves])
    if clear and not tables:
        tables = [f"static const int to[{count}] = {{{', '.join(str(move[2]) for move in moves)}}};"]
    lines = [*tables, *block("for (int y = y0; y < y1; y++)", setup, places, clear)]
    kind = step.kind if isinstance(step, Combine) else step.activation
    return Kernel(f"{kind}", ("in", *(["other"] if other else []), "out", "y0", "y1"), text(lines))
