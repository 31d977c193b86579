# SPDX-License-Identifier: Apache-2.0
"""Decide where every value lies, so that as little as possible is ever copied.

The parts of a concatenation are written into the whole; slices and shuffles of channels are read where they are; sums
and activations overwrite their input where nothing else reads it afterwards; a convolution whose result is added to a
map writes its channels in the order that map has.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from ghostnets.deploy.c.choice import STRIDES, sizes_in_lines
from ghostnets.deploy.c.kernels import line_pooling, pooling
from ghostnets.deploy.c.layout import Buffer, View
from ghostnets.deploy.c.steps import Copy, Deliver, Feed, Lowered, Step
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import (
    ZERO,
    Activate,
    Combine,
    Concat,
    Conv,
    Graph,
    Operation,
    Pool,
    Resample,
    Select,
    Shape,
    Softmax,
)

CACHE_SET = 2048
"""Bytes: places at multiples of this distance push each other out of a first-level cache."""


class _Local:
    """Where channels lie within a place of their own value, in floats, and how many floats a place has; in lines: which
    line is whose, and how many there are.
    """

    def __init__(self, places: np.ndarray, width: int, *, lines: bool = False) -> None:
        self.places, self.width, self.lines = places, width, lines

    def same(self, other: _Local) -> bool:
        return self.lines == other.lines and self.width == other.width and np.array_equal(self.places, other.places)

    @property
    def distinct(self) -> bool:
        """Whether no two channels lie at one place."""
        return len(np.unique(self.places)) == len(self.places)


def lowered(graph: Graph, target: Target, feed: Feed, *, in_place: bool) -> Lowered:
    """The steps of a graph. ``in_place``: whether maps may be overwritten, which hides what they were."""
    arranged = _Arrangement(graph, target, in_place=in_place)
    arranged.run()
    return arranged.lowered(feed)


class _Arrangement:
    """One walk over the graph; what has been decided so far."""

    def __init__(self, graph: Graph, target: Target, *, in_place: bool) -> None:
        self.graph, self.target, self.in_place = graph, target, in_place
        channels = graph.input_shape[0]
        self.operations: list[Operation] = []
        self.shapes: dict[str, Shape] = {graph.input: graph.input_shape}
        self.local: dict[str, _Local] = {graph.input: _Local(np.arange(channels), channels, lines=True)}
        self.in_lines = sizes_in_lines(graph, target)
        self.home: dict[str, tuple[str, int]] = {}
        """Value -> the value in which it lies, and where there."""
        self.alias: dict[str, str] = {}
        """Value -> the one it is only another look at."""
        self.order = {operation.output: index for index, operation in enumerate(graph.operations)}

    def run(self) -> None:
        """Look at every operation in turn."""
        for operation in self.graph.operations:
            self.shapes[operation.output] = operation.shape
            if isinstance(operation, Conv):
                self._conv(operation)
            elif isinstance(operation, Concat):
                self._concat(operation)
            elif isinstance(operation, Select):
                self._select(operation)
            elif isinstance(operation, Resample):
                self._resample(operation)
            elif isinstance(operation, Combine):
                self._combine(operation)
            else:
                assert isinstance(operation, Pool | Activate | Softmax), operation
                self._mapwise(operation)

    # Each kind of operation

    def _conv(self, conv: Conv) -> None:
        source = conv.inputs[0]
        strided = conv.stride[1] in STRIDES
        if conv.depthwise:
            source = self._distinct(source) if strided else self._channels_last(source)
            inner = self._compact(source)
            multiplier = len(conv.weight) // conv.groups
            places = np.concatenate([inner.places + index * inner.width for index in range(multiplier)])
            places = places.reshape(multiplier, -1).T.ravel()
            local = _Local(places, inner.width * multiplier, lines=inner.lines)
        elif self.local[source].lines and strided and conv.groups == 1 and conv.shape[1:] in self.in_lines:
            local = self._wanted(conv, lines=True) or self._fresh(conv.shape[0], lines=True)
        else:
            local = self._wanted(conv, lines=False) or self._by_group(conv)
        others = tuple(self._matching(name, local, together=True) for name in conv.inputs[1:])
        self._emit(replace(conv, inputs=(source, *others)), local)

    def _by_group(self, conv: Conv) -> _Local:
        channels = len(conv.weight) // conv.groups
        width = self.target.round_up(channels)
        places = np.arange(conv.groups)[:, None] * width + np.arange(channels)
        return _Local(places.ravel(), width * conv.groups)

    def _wanted(self, conv: Conv, *, lines: bool) -> _Local | None:
        """The order that what it is combined with already has."""
        if conv.groups > 1:
            return None
        names = list(conv.inputs[1:])
        readers = self.graph.readers[conv.output]
        if not names and len(readers) == 1 and isinstance(readers[0], Combine):
            names = [name for name in readers[0].inputs if name != conv.output]
        for name in names:
            if name in self.local and self.shapes[name][0] == conv.shape[0] and self.local[name].lines == lines:
                local = self._compact(name)
                if local.distinct:
                    return local
        return None

    def _concat(self, concat: Concat) -> None:
        lines = all(self.local[name].lines for name in concat.inputs)
        places, width = [], 0
        for name in concat.inputs:
            part = name
            taken = part in self.home or part in self.alias or part == self.graph.input
            if taken or self.local[part].lines != lines:
                part = self._copy(name, self._fresh(self.shapes[name][0], lines=lines))
            self.home[part] = (concat.output, width)
            places.append(self.local[part].places + width)
            width += self.local[part].width
        self.local[concat.output] = _Local(np.concatenate(places), width, lines=lines)

    def _select(self, select: Select) -> None:
        (source,) = select.inputs
        own = self.local[source]
        if ZERO in select.channels:
            copy = self._copied(source, select.channels, select.output, select.name)
            self._emit(copy, self._fresh(len(select.channels), lines=own.lines))
            return
        self.alias[select.output] = source
        self.local[select.output] = _Local(own.places[list(select.channels)], own.width, lines=own.lines)

    def _resample(self, resample: Resample) -> None:
        (source,) = resample.inputs
        channels = tuple(range(resample.shape[0]))
        lines = resample.shape[1:] in self.in_lines
        if lines and not self.local[source].lines and prod(resample.shape) > prod(self.shapes[source]):
            source = self._copy(source, self._fresh(len(channels), lines=True))  # while the map is small
        copy = replace(
            self._copied(source, channels, resample.output, resample.name),
            shape=resample.shape,
            rows=resample.rows,
            columns=resample.columns,
        )
        own = self._compact(source)
        kept = own.distinct and own.lines == lines
        self._emit(copy, own if kept else self._fresh(len(channels), lines=lines))

    def _combine(self, combine: Combine) -> None:
        first, second = combine.inputs
        if self.shapes[first] != combine.shape:
            first, second = second, first
        if self.shapes[first] != combine.shape:  # neither has all places and channels
            first = self._spread(first, combine.shape)
        first = self._distinct(first)
        local = self._compact(first)
        if local.lines and self.shapes[second][1:] == (1, 1) != combine.shape[1:]:
            second = self._channels_last(second)  # one figure a line, wherever it lies
        else:
            second = self._matching(second, local)
        apart = second == first or self._root(second)[0] != self._root(first)[0]
        self._emit(replace(combine, inputs=(first, second)), local, over=first if apart else None)

    def _mapwise(self, operation: Operation) -> None:
        (source,) = operation.inputs
        of_all = isinstance(operation, Pool) and pooling.is_mean_of_all(operation, self.shapes[source])
        windows = isinstance(operation, Pool) and line_pooling.is_possible(operation)
        follows = isinstance(operation, Activate) or of_all or windows
        source = self._distinct(source) if follows else self._channels_last(source)
        local = self._compact(source)
        if local.lines and of_all:
            local = self._fresh(operation.shape[0], lines=False)
        over = source if isinstance(operation, Activate) else None
        self._emit(replace(operation, inputs=(source,)), local, over=over)

    # What they share

    def _emit(self, operation: Operation, local: _Local, over: str | None = None) -> None:
        self.operations.append(operation)
        self.shapes[operation.output] = operation.shape
        self.local[operation.output] = local
        if over is not None and self.in_place and self._may_overwrite(over, operation, local):
            self.home[over] = (operation.output, 0)

    def _may_overwrite(self, name: str, operation: Operation, local: _Local) -> bool:
        if name in self.home or name in self.alias or name == self.graph.input or not self.local[name].same(local):
            return False
        now = self.order[operation.output]
        return all(
            self.order[reader.output] <= now
            for value in self._inside(name)
            for reader in self.graph.readers.get(value, [])
        ) and self.graph.output not in self._inside(name)

    def _inside(self, name: str) -> set[str]:
        """The value, those that lie in it and other looks at them."""
        found = {name}
        while True:
            more = {value for value, (whole, _) in self.home.items() if whole in found}
            more |= {value for value, whole in self.alias.items() if whole in found}
            if more <= found:
                return found
            found |= more

    def _fresh(self, channels: int, *, lines: bool) -> _Local:
        return _Local(np.arange(channels), channels if lines else self.target.round_up(channels), lines=lines)

    def _compact(self, name: str) -> _Local:
        """A layout of its own for what is computed from a value vector by vector, or line by line."""
        own = self.local[name]
        lanes = 1 if own.lines else self.target.lanes
        vectors = np.unique(own.places // lanes)
        places = np.searchsorted(vectors, own.places // lanes) * lanes + own.places % lanes
        return _Local(places, len(vectors) * lanes, lines=own.lines)

    def _distinct(self, name: str) -> str:
        """The value, or a copy in which no channel stands twice."""
        own = self.local[name]
        return name if own.distinct else self._copy(name, self._fresh(len(own.places), lines=own.lines))

    def _channels_last(self, name: str) -> str:
        """The value, or a copy in vectors of channels in which none stands twice."""
        own = self.local[name]
        return name if own.distinct and not own.lines else self._copy(name, self._fresh(len(own.places), lines=False))

    def _matching(self, name: str, local: _Local, *, together: bool = False) -> str:
        """The value, or a copy whose channels lie, vector by vector or all ``together``, as in ``local``."""
        channels, own = len(local.places), self.local[name]
        if self.shapes[name][0] == channels and own.lines == local.lines:
            lanes = 1 if own.lines else self.target.lanes
            shift = own.places - local.places
            pairs = {(int(place) // lanes, int(move)) for place, move in zip(local.places, shift, strict=True)}
            moves = 1 if together else len(np.unique(local.places // lanes))
            distances = {move for _, move in pairs} if together else pairs
            if not (shift % lanes).any() and len(distances) == moves:
                return name
        source = (0,) * channels if self.shapes[name][0] == 1 else tuple(range(channels))
        return self._copy(name, local, source)

    def _spread(self, name: str, shape: Shape) -> str:
        own = self.shapes[name]
        copy = self._copied(name, (0,) * shape[0] if own[0] == 1 else tuple(range(shape[0])), f"{name}.spread", name)
        rows = (0,) * shape[1] if own[1] == 1 else tuple(range(shape[1]))
        columns = (0,) * shape[2] if own[2] == 1 else tuple(range(shape[2]))
        local = self._fresh(shape[0], lines=self.local[name].lines)
        self._emit(replace(copy, rows=rows, columns=columns, shape=shape), local)
        return copy.output

    def _copy(self, name: str, local: _Local, channels: tuple[int, ...] | None = None) -> str:
        channels = tuple(range(self.shapes[name][0])) if channels is None else channels
        copies = sum(output.startswith(f"{name}.copy") for output in self.shapes)
        copy = self._copied(name, channels, f"{name}.copy{copies}", f"{name} in another order")
        self._emit(copy, local)
        return copy.output

    def _copied(self, name: str, channels: tuple[int, ...], output: str, title: str) -> Copy:
        _, height, width = self.shapes[name]
        return Copy(
            name=title,
            inputs=(name,),
            output=output,
            shape=(len(channels), height, width),
            channels=channels,
            rows=tuple(range(height)),
            columns=tuple(range(width)),
        )

    # Places in memory

    def lowered(self, feed: Feed) -> Lowered:
        """The steps with their views."""
        roots = {name: self._root(name) for name in self.shapes}
        margins = self._margins(roots)
        buffers = {root: self._buffer(root, *margins.get(root, (0, 0))) for root, _ in roots.values()}
        views = {name: self._view(name, *roots[name], buffers) for name in self.shapes}
        image = Step(operation=feed, reads=(None,), write=views[self.graph.input])
        steps = [
            Step(
                operation=operation,
                reads=tuple(views[name] for name in operation.inputs),
                write=views[operation.output],
            )
            for operation in self.operations
        ]
        output = self.graph.output
        deliver = Deliver(name="answer", inputs=(output,), output="answer", shape=self.shapes[output])
        answer = Step(operation=deliver, reads=(views[output],), write=None)
        return Lowered(steps=(image, *steps, answer), buffers=buffers, views=views)

    def _root(self, name: str) -> tuple[str, int]:
        """The value whose buffer holds this one, and where in a place."""
        base = 0
        while name in self.alias or name in self.home:
            if name in self.alias:
                name = self.alias[name]
            else:
                name, more = self.home[name]
                base += more
        return name, base

    def _margins(self, roots: dict[str, tuple[str, int]]) -> dict[str, tuple[int, int]]:
        """Columns of zeros that convolutions read at the left and right of each buffer."""
        found: dict[str, tuple[int, int]] = {}
        for operation in self.operations:
            if isinstance(operation, Conv):
                name = operation.inputs[0]
                (root, _), width = roots[name], self.shapes[name][2]
                reach = (operation.shape[2] - 1) * operation.stride[1] - operation.padding[1]
                last = reach + (operation.weight.shape[3] - 1) * operation.dilation[1]
                left, right = found.get(root, (0, 0))
                found[root] = (max(left, operation.padding[1]), max(right, last - (width - 1)))
        return found

    def _buffer(self, root: str, left: int, right: int) -> Buffer:
        _, height, width = self.shapes[root]
        own = self.local[root]
        if own.lines:
            line = self.target.round_up(width + max(left, right))
            row = self.target.round_up(left) + own.width * line
            return _rows_of(root, height, width, left, right, lines=True, pixel=1, line=line, row=row)
        pixel = own.width
        if width > 1 and pixel * 4 % CACHE_SET == 0:
            pixel += self.target.lanes
        row = pixel * (left + width + right)
        return _rows_of(root, height, width, left, right, lines=False, pixel=pixel, line=1, row=row)

    def _view(self, name: str, root: str, base: int, buffers: dict[str, Buffer]) -> View:
        buffer, places = buffers[root], self.local[name].places + base
        before = self.target.round_up(buffer.left) if buffer.lines else buffer.left * buffer.pixel
        return View(buffer=root, shape=self.shapes[name], offsets=before + places * buffer.line)


def _rows_of(
    name: str, height: int, width: int, left: int, right: int, *, lines: bool, pixel: int, line: int, row: int
) -> Buffer:
    return Buffer(
        name=name,
        lines=lines,
        height=height,
        width=width,
        left=left,
        right=right,
        pixel=pixel,
        line=line,
        row=row,
        ring=height,
    )
