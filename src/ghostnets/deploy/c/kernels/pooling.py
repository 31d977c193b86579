# SPDX-License-Identifier: Apache-2.0
"""Windows' greatest values and means, and the mean of a whole map."""

from __future__ import annotations

from collections.abc import Sequence

from ghostnets.deploy.c.kernels.text import Kernel, block, row_inside, text
from ghostnets.deploy.c.layout import Buffer
from ghostnets.deploy.graph import Pool, Shape


def is_mean_of_all(pool: Pool, shape: Shape) -> bool:
    """Whether this is the mean of a whole map of that shape; its kernel adds up some rows' part of it."""
    return pool.kind == "mean" and not any(pool.padding) and pool.kernel == shape[1:] and pool.shape[1:] == (1, 1)


def kernel(
    pool: Pool, *, reads: Buffer, writes: Buffer, moves: Sequence[tuple[int, int]], height: int, width: int
) -> Kernel:
    """``moves`` says for each vector where in a place it is read and written; the map read has ``height`` x ``width``."""
    if is_mean_of_all(pool, (len(moves), height, width)):
        return _whole(pool, reads, moves)
    (ky, kx), (sy, sx), (dy, dx) = pool.kernel, pool.stride, pool.dilation
    top, left, _, _ = pool.padding
    window = [
        f"const int ya = y * {sy} - {top}, xa = x * {sx} - {left};",
        *_bounds("y", ky, dy, height),
        *_bounds("x", kx, dx, width),
    ]
    first = "splat(-INFINITY)" if pool.kind == "max" else "splat(0.0f)"
    gather = "s = greatest(s, a);" if pool.kind == "max" else "s += a;"
    scale: list[str] = []
    if pool.kind == "mean":
        above, before, below, behind = pool.counted
        scale = [
            f"const int rows = least(ya + {ky}, {height + below}) - most(ya, {-above});",
            f"const int columns = least(xa + {kx}, {width + behind}) - most(xa, {-before});",
            "s *= splat(1.0f / (float)(rows * columns));",
        ]
    body = block(
        f"for (int n = 0; n < {len(moves)}; n++)",
        f"vec s = {first};",
        block(
            "for (int i = yb; i < yc; i++)",
            f"const float *r = {row_inside('in', f'ya + i * {dy}', reads)};",
            block(
                "for (int j = xb; j < xc; j++)",
                f"const vec a = load(r + (xa + j * {dx}) * {reads.pixel} + from[n]);",
                gather,
            ),
        ),
        scale,
        f"store(o + x * {writes.pixel} + to[n], s);",
    )
    lines = [*_tables(moves)]
    lines += block(
        "for (int y = y0; y < y1; y++)",
        f"float *o = {row_inside('out', 'y', writes)};",
        block(f"for (int x = 0; x < {writes.width}; x++)", window, body),
        [f"{line}" for line in clears(writes, moves)],
    )
    return Kernel(f"{pool.kind} of {ky}x{kx} windows", ("in", "out", "y0", "y1"), text(lines))


def clears(writes: Buffer, moves: Sequence[tuple[int, int]]) -> list[str]:
    """Zeros beside the row at ``o``, in the vectors that are written."""
    lines = []
    for place, columns in writes.beside:
        lines += block(
            f"for (int n = 0; n < {len(moves)}; n++)",
            f"clear(o + {place * writes.pixel} + to[n], {columns}, {writes.pixel}, LANES);",
        )
    return lines


def _bounds(axis: str, kernel: int, dilation: int, size: int) -> list[str]:
    """The part of a window that lies inside the map."""
    return [
        f"const int {axis}b = {axis}a < 0 ? (-{axis}a + {dilation - 1}) / {dilation} : 0;",
        f"const int {axis}c = least({kernel}, ({size} - {axis}a + {dilation - 1}) / {dilation});",
    ]


def _tables(moves: Sequence[tuple[int, int]]) -> list[str]:
    count = len(moves)
    return [
        f"static const int from[{count}] = {{{', '.join(str(read) for read, _ in moves)}}};",
        f"static const int to[{count}] = {{{', '.join(str(write) for _, write in moves)}}};",
    ]


def _whole(pool: Pool, reads: Buffer, moves: Sequence[tuple[int, int]]) -> Kernel:
    height, width = pool.kernel
    body = block(
        f"for (int n = 0; n < {len(moves)}; n++)",
        "vec s = splat(0.0f), t = splat(0.0f);",
        block(
            "for (int y = y0; y < y1; y++)",
            f"const float *r = {row_inside('in', 'y', reads)} + from[n];",
            "int x = 0;",
            block(
                f"for (; x + 1 < {width}; x += 2)",
                f"s += load(r + x * {reads.pixel});",
                f"t += load(r + x * {reads.pixel} + {reads.pixel});",
            ),
            *([f"s += load(r + x * {reads.pixel});"] if width % 2 else []),
        ),
        f"store(out + to[n], (s + t) * splat({1 / (height * width)!r}f));",
    )
    return Kernel(f"mean of a {height}x{width} map", ("in", "out", "y0", "y1"), text(_tables(moves), body))
