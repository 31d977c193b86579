# SPDX-License-Identifier: Apache-2.0
"""ATen's pools and means: windows of a map, and how far they reach beyond it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ghostnets.deploy.aten.arithmetic import affine
from ghostnets.deploy.aten.builder import Builder
from ghostnets.deploy.aten.refusals import MEANS
from ghostnets.deploy.aten.values import Value, map_shape
from ghostnets.deploy.graph import Conv, Pool

Kind = Literal["max", "mean"]
NONE = (0, 0, 0, 0)


def max_pool(
    b: Builder,
    x: Value,
    *,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    **_: Any,
) -> Value:
    """The greatest of each window; what lies beyond the map is none."""
    return _pooled(b, x, "max", kernel_size, stride, padding, dilation, counted="nothing")


def max_pool_with_indices(b: Builder, x: Value, **rest: Any) -> tuple[Value, None]:
    """The same; where the greatest lie, nobody may ask."""
    return (max_pool(b, x, **rest), None)


def mean_pool(
    b: Builder,
    x: Value,
    *,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    count_include_pad: bool,
    divisor_override: int | None,
    **_: Any,
) -> Value:
    """With a divisor of its own, whatever lies beyond the map counts as zeros, and the mean is scaled."""
    counted = "padding" if count_include_pad else "nothing"
    if not divisor_override:
        return _pooled(b, x, "mean", kernel_size, stride, padding, [1], counted=counted)
    made = _pooled(b, x, "mean", kernel_size, stride, padding, [1], counted="everything")
    return affine(b, made, kernel_size[0] * kernel_size[-1] / divisor_override, 0.0)


def _pooled(
    b: Builder,
    x: Value,
    kind: Kind,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    *,
    counted: str,
) -> Value:
    """``counted``: what lies beyond the map and counts as zeros; ceil mode reaches further than the padding."""
    maps = b.as_map(x)
    (tall, wide), (down, right), (top, left), (dy, dx) = (
        _pair(p) for p in (kernel, stride or kernel, padding, dilation)
    )
    height, width = b.site.shape[-2:]
    bottom = max(0, (height - 1) * down + dy * (tall - 1) + 1 - maps.map[1] - top)
    edge = max(0, (width - 1) * right + dx * (wide - 1) + 1 - maps.map[2] - left)
    reach = (top, left, bottom, edge)
    counts = {"nothing": NONE, "padding": (top, left, min(bottom, top), min(edge, left)), "everything": reach}
    return b.add(
        Pool,
        maps,
        shape=(maps.map[0], height, width),
        kind=kind,
        kernel=(tall, wide),
        stride=(down, right),
        dilation=(dy, dx),
        padding=reach,
        counted=counts[counted],
    )


def adaptive_mean(b: Builder, x: Value, *, output_size: list[int]) -> Value:
    """As many windows as there are to be places."""
    return _adaptive(b, x, "mean", output_size)


def adaptive_max(b: Builder, x: Value, *, output_size: list[int]) -> tuple[Value, None]:
    """The same with the greatest; where they lie, nobody may ask."""
    return (_adaptive(b, x, "max", output_size), None)


def _adaptive(b: Builder, x: Value, kind: Kind, output_size: list[int]) -> Value:
    """Where all windows are equal and equally far apart; along an axis on which they are single places, these."""
    maps, (height, width) = b.as_map(x), _pair(output_size)
    rows, columns = _windows(maps.map[1], height), _windows(maps.map[2], width)
    if rows is None or columns is None:
        raise b.refused(
            f"makes {height} x {width} of {maps.map[1]} x {maps.map[2]} places with windows of several sizes",
            "choose an output size that divides the map's, or 1",
        )
    if 1 in {rows[0], columns[0]}:
        every = [range(side) if size > 1 else starts for (size, _, starts), side in zip((rows, columns), maps.map[1:], strict=True)]  # fmt: skip
        maps = b.as_map(maps.moved(lambda numbers: numbers[:, :, list(every[0])][:, :, :, list(every[1])]))
    if rows[0] == columns[0] == 1:
        return maps
    kernel, stride = zip(rows[:2], columns[:2], strict=True)
    return _window_pool(b, maps, kind, kernel, stride)


def _windows(size: int, out: int) -> tuple[int, int, tuple[int, ...]] | None:
    """Length, distance and starts of an axis' windows, by PyTorch's formula. None: they are not all alike."""
    starts = [i * size // out for i in range(out)]
    lengths = {-(-(i + 1) * size // out) - start for i, start in enumerate(starts)}
    if lengths == {1}:
        return (1, 1, tuple(starts))
    steps = set(np.diff(starts).tolist()) or {size}
    return (lengths.pop(), steps.pop(), tuple(starts)) if len(lengths) == len(steps) == 1 else None


def mean(b: Builder, x: Value, *, dim: list[int] | None = None, dtype: object = None, **_: Any) -> Value:
    """Over rows, columns or both: a pool. Over the channels: a 1x1 convolution."""
    del dtype  # every value is float32
    maps, over = _reduced(b, x, dim)
    if over == {1}:
        channels = maps.map[0]
        weight = np.full((1, channels, 1, 1), 1 / channels, np.float32)
        made = b.add(
            Conv, maps, shape=(1, *maps.map[1:]), weight=weight, bias=np.zeros(1, np.float32), stride=(1, 1),
            padding=NONE, dilation=(1, 1), groups=1,
        )  # fmt: skip
        return made.reshaped(b.site.shape)
    return _over(b, maps, "mean", over).reshaped(b.site.shape)


def total(b: Builder, x: Value, *, dim: list[int] | None = None, **_: Any) -> Value:
    """A mean times its places."""
    maps, over = _reduced(b, x, dim)
    if 1 in over:
        raise b.refused("goes over the channels", MEANS)
    count = int(np.prod([maps.map[axis - 1] for axis in over]))
    return affine(b, _over(b, maps, "mean", over), float(count), 0.0).reshaped(b.site.shape)


def greatest(b: Builder, x: Value, *, dim: list[int] | None, **_: Any) -> Value:
    """Of all places, a row or a column."""
    maps, over = _reduced(b, x, dim)
    if 1 in over:
        raise b.refused("goes over the channels", MEANS)
    return _over(b, maps, "max", over).reshaped(b.site.shape)


def _reduced(b: Builder, x: Value, dim: list[int] | None) -> tuple[Value, set[int]]:
    """The map, and over which of its axes a reduction goes: {1}, {2}, {3} or {2, 3}."""
    over = {axis % len(x.shape) for axis in dim or range(len(x.shape))}
    flat = len(x.shape) == 3 and x.places is None and x.shape[1] == x.map[0]
    if flat and over == {2}:  # the places of (N, C, H * W)
        return b.as_map(x.reshaped((1, *x.map))), {2, 3}
    if over not in ({1}, {2}, {3}, {2, 3}) or (len(x.shape) != 4 and over != {1}) or map_shape(x.shape) is None:
        raise b.refused(f"goes over dimensions {sorted(over)} of {len(x.shape)}", MEANS)
    return b.as_map(x), over


def _over(b: Builder, maps: Value, kind: Kind, over: set[int]) -> Value:
    """A window as large as the map along the axes in ``over``."""
    kernel = tuple(size if axis in over else 1 for axis, size in zip((2, 3), maps.map[1:], strict=True))
    return _window_pool(b, maps, kind, kernel, kernel)


def _window_pool(b: Builder, maps: Value, kind: Kind, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Value:
    """Windows that stay within the map."""
    height, width = ((size - own) // step + 1 for size, own, step in zip(maps.map[1:], kernel, stride, strict=True))
    return b.add(
        Pool, maps, shape=(maps.map[0], height, width), kind=kind, kernel=kernel, stride=stride, dilation=(1, 1),
        padding=NONE, counted=NONE,
    )  # fmt: skip


def _pair(sizes: list[int]) -> tuple[int, int]:
    return (sizes[0], sizes[-1])
