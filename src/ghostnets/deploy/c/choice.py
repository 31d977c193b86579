# SPDX-License-Identifier: Apache-2.0
"""Decide which maps lie in lines: those of so few channels that vectors of channels would be half empty.

In lines a vector holds neighbouring places of one channel, so no number of channels wastes any of it, and depthwise
convolutions read what they need at an offset; channels last, a vector holds the channels of one place, so no width does.
"""

from __future__ import annotations

from collections import defaultdict

from ghostnets.deploy.c.kernels import convolution, line_convolution, line_winograd, winograd
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Conv, Graph

DEPTHWISE = 1.25
"""Cycles for one multiply-add of a vector in a depthwise convolution, in either layout, as measured with AVX-512."""

STRIDES = (1, 2)
"""Of convolutions in lines: every vector of outputs is shuffled from that many of inputs."""

Size = tuple[int, int]


def sizes_in_lines(graph: Graph, target: Target) -> frozenset[Size]:
    """Heights and widths of the maps that dense convolutions write in lines: the largest ones, as long as it pays."""
    if target.lanes == 1:
        return frozenset()
    costs: dict[Size, dict[str, float]] = defaultdict(lambda: {"lines": 0.0, "last": 0.0})
    for step in graph.operations:
        if isinstance(step, Conv):
            for layout, cost in _costs(step, target).items():
                costs[step.shape[1:]][layout] += cost
    chosen: list[Size] = []
    for size in sorted(costs, reverse=True):
        if not costs[size]["lines"] < costs[size]["last"]:
            break
        chosen.append(size)
    return frozenset(chosen)


def _costs(conv: Conv, target: Target) -> dict[str, float]:
    """Cycles, as far as they can be counted."""
    channels, height, width = conv.shape
    inputs = conv.weight[0].size
    if conv.stride[1] not in STRIDES or (conv.groups > 1 and conv.weight.shape[1] > 1):
        return {"lines": float("inf"), "last": 0.0}
    columns, vectors = target.round_up(width) // target.lanes, target.round_up(channels) // target.lanes
    if conv.groups > 1:
        each = DEPTHWISE * inputs * height
        return {"lines": each * channels * columns, "last": each * vectors * width}
    in_lines, last = line_winograd.worth(conv, target), winograd.worth(conv, target)
    usual = height * line_convolution.tile_of(channels, width, inputs, target).cycles(inputs)
    usual_last = convolution.tiling(width, height, vectors, inputs, target).cycles(inputs)
    return {
        "lines": in_lines.cycles(conv, target) if in_lines else usual,
        "last": last.cycles(conv, target) if last else usual_last,
    }
