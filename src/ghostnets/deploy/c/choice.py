# SPDX-License-Identifier: Apache-2.0
"""Decide which maps lie in lines: those of so few channels that vectors of channels would be half empty.

In lines a vector holds neighbouring places of one channel, so no number of channels wastes any of it, and depthwise
convolutions read what they need at an offset; channels last, a vector holds the channels of one place, so no width does.
"""

from __future__ import annotations

from collections import defaultdict

from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Conv, Graph

DEPTHWISE = {"lines": 2.0, "last": 4.0}
"""Cost of a multiply-add of a depthwise convolution, in those of a dense one, as measured on AVX-512."""

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
    """Multiply-adds of whole vectors, weighed."""
    channels, height, width = conv.shape
    depthwise = conv.groups > 1 and conv.weight.shape[1] == 1
    each = conv.weight[0].size
    if not depthwise and conv.groups > 1:
        return {"lines": float("inf"), "last": 0.0}
    if conv.stride[0] not in STRIDES or conv.stride[1] != conv.stride[0]:
        return {"lines": float("inf"), "last": 0.0}
    weigh = DEPTHWISE if depthwise else {"lines": 1.0, "last": 1.0}
    return {
        "lines": weigh["lines"] * each * channels * height * target.round_up(width),
        "last": weigh["last"] * each * target.round_up(channels) * height * width,
    }
