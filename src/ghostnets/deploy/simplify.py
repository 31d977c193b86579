# SPDX-License-Identifier: Apache-2.0
"""A captured graph with fewer operations that compute the same, but for rounding: a row of small passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ghostnets.deploy.graph import Graph
from ghostnets.deploy.passes import activations, scales, selections, strides
from ghostnets.deploy.passes.branches import branches


@dataclass(frozen=True)
class Pass:
    """One step: a graph in, a graph out; the same one where there was nothing to do."""

    name: str
    run: Callable[[Graph], Graph]


PASSES: tuple[Pass, ...] = (
    Pass("what does nothing goes", selections.idle),
    Pass("relu6(x + 3) is a hard sigmoid", activations.hard_sigmoids),
    Pass("selections become one", selections.joined),
    Pass("zeros around a map become padding", strides.paddings),
    Pass("every k-th place becomes a stride", strides.strides),
    Pass("norms go into the convolutions before", scales.into_makers),
    Pass("norms go into the convolutions after", scales.into_readers),
    Pass("x times its sigmoid is an activation", activations.gates),
    Pass("branches that are added become one", branches),
    Pass("activations go into what makes their map", activations.into_makers),
)


def simplified(graph: Graph) -> Graph:
    """The graph after all passes; what it computes differs by rounding only."""
    last = graph
    for _, after in steps(graph):
        last = after
    return last


def steps(graph: Graph) -> Iterator[tuple[str, Graph]]:
    """The name of each pass that changed something, and the graph after it; over and over until none does."""
    before = None
    while before is not graph:
        before = graph
        for step in PASSES:
            after = step.run(graph)
            if after is not graph:
                graph = after
                yield step.name, graph
