# SPDX-License-Identifier: Apache-2.0
"""A graph in a form in which one pass changes it; what comes out is a new graph."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator

from ghostnets.deploy.graph import Graph, Operation, Shape


class Draft:
    """A graph's operations by the value that each makes."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._steps = {step.output: step for step in graph.operations}
        self._place = {step.output: place for place, step in enumerate(graph.operations)}
        self._readers: dict[str, dict[str, int]] = {name: {} for name in graph.shapes}
        for step in graph.operations:
            self._link(step, 1)
        self.output = graph.output
        self.changed = False

    def steps(self, *, backwards: bool = False) -> Iterator[Operation]:
        """All operations that there are now, in order, each as it is when its turn comes."""
        for name in sorted(self._steps, key=self._place.__getitem__, reverse=backwards):
            if name in self._steps:
                yield self._steps[name]

    def maker(self, value: str) -> Operation | None:
        """The operation that makes a value; the input has none."""
        return self._steps.get(value)

    def shape(self, value: str) -> Shape:
        return self._graph.input_shape if value == self._graph.input else self._steps[value].shape

    def readers(self, value: str) -> list[Operation]:
        return [self._steps[name] for name in self._readers[value]]

    def alone(self, value: str) -> bool:
        """Whether a value is read exactly once, and not what the network returns."""
        return value != self.output and sum(self._readers[value].values()) == 1

    def put(self, step: Operation, *, near: str = "") -> None:
        """Let ``step`` make its value, instead of what did; a new value runs where ``near`` is made."""
        old = self._steps.get(step.output)
        if old is not None:
            self._link(old, -1)
        else:
            self._readers[step.output] = {}
            self._place[step.output] = self._place[near]
        self._steps[step.output] = step
        self._link(step, 1)
        self.changed = True

    def forward(self, value: str, to: str) -> None:
        """Whoever reads ``value`` reads ``to`` instead."""
        for reader in self.readers(value):
            self.put(dataclasses.replace(reader, inputs=tuple(to if own == value else own for own in reader.inputs)))
        if self.output == value:
            self.output = to
        self._remove(value)
        self.changed = True

    def fresh(self, value: str) -> str:
        """A name for another value made of this one."""
        number = 2
        while f"{value}_{number}" in self._readers:
            number += 1
        return f"{value}_{number}"

    def graph(self) -> Graph:
        """The result, without what nothing reads; the graph itself where nothing has changed."""
        alive = self._alive()
        if not self.changed and len(alive) == len(self._graph.operations):
            return self._graph
        return dataclasses.replace(self._graph, output=self.output, operations=tuple(self._sorted(alive)))

    def _alive(self) -> set[str]:
        alive: set[str] = set()
        waiting = [self.output]
        while waiting:
            name = waiting.pop()
            if name in self._steps and name not in alive:
                alive.add(name)
                waiting.extend(self._steps[name].inputs)
        return alive

    def _sorted(self, alive: set[str]) -> list[Operation]:
        """In the old order, as far as everything is made before it is read."""
        missing = {name: {own for own in self._steps[name].inputs if own in alive} for name in alive}
        ready = [(self._place[name], name) for name, inputs in missing.items() if not inputs]
        heapq.heapify(ready)
        found: list[Operation] = []
        while ready:
            _, name = heapq.heappop(ready)
            found.append(self._steps[name])
            for reader in self._readers[name]:
                if reader in alive and name in missing[reader]:
                    missing[reader].remove(name)
                    if not missing[reader]:
                        heapq.heappush(ready, (self._place[reader], reader))
        assert len(found) == len(alive)
        return found

    def _link(self, step: Operation, by: int) -> None:
        for name in step.inputs:
            own = self._readers[name]
            own[step.output] = own.get(step.output, 0) + by
            if not own[step.output]:
                del own[step.output]

    def _remove(self, value: str) -> None:
        self._link(self._steps.pop(value), -1)
