# SPDX-License-Identifier: Apache-2.0
"""What a graph becomes before memory is thought of: sums join the convolution before them, thin groups stand together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Combine, Conv, Graph, Operation


def fused(graph: Graph, target: Target) -> Graph:
    """The graph with convolutions that may have a second input, which is added before their activation."""
    return _sums_joined(_groups_widened(graph, target))


def _sums_joined(graph: Graph) -> Graph:
    """``conv(x) + y`` and its activation are one step, where nothing else reads the convolution."""
    makers = {operation.output: operation for operation in graph.operations}
    gone: set[str] = set()
    made: dict[str, Operation] = {}
    for operation in graph.operations:
        if not isinstance(operation, Combine) or operation.kind != "add":
            continue
        for name, added in (operation.inputs, operation.inputs[::-1]):
            conv = makers.get(name)
            if (
                isinstance(conv, Conv)
                and conv.groups == 1
                and conv.activation is None
                and len(conv.inputs) == 1
                and name not in {graph.output, added}
                and len(graph.readers[name]) == 1
                and graph.shapes[added] == conv.shape == operation.shape
            ):
                gone.add(name)
                made[operation.output] = replace(
                    conv, inputs=(conv.inputs[0], added), output=operation.output, activation=operation.activation
                )
                break
    operations = tuple(made.get(step.output, step) for step in graph.operations if step.output not in gone)
    return replace(graph, operations=operations)


def _groups_widened(graph: Graph, target: Target) -> Graph:
    """Groups of fewer outputs than a vector has lanes are computed together, with zeros between them."""
    return replace(
        graph, operations=tuple(_widened(step, target) if isinstance(step, Conv) else step for step in graph.operations)
    )


def _widened(conv: Conv, target: Target) -> Conv:
    outputs, inputs = len(conv.weight) // conv.groups, conv.weight.shape[1]
    if conv.groups == 1 or inputs == 1 or outputs >= target.lanes:
        return conv
    together = next(
        n
        for n in range(1, conv.groups + 1)
        if conv.groups % n == 0 and (n * outputs >= target.lanes or n == conv.groups)
    )
    weight = np.zeros((len(conv.weight), together * inputs, *conv.weight.shape[2:]), np.float32)
    for output in range(len(conv.weight)):
        place = output // outputs % together
        weight[output, place * inputs : (place + 1) * inputs] = conv.weight[output]
    return replace(conv, weight=weight, groups=conv.groups // together)
