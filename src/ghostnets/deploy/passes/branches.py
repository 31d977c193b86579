# SPDX-License-Identifier: Apache-2.0
"""Convolutions side by side whose results are added are one convolution, as in GhostNetV3 while it trains."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import gcd

import numpy as np

from ghostnets.deploy.graph import Combine, Conv, Graph
from ghostnets.deploy.passes.draft import Draft


def branches(graph: Graph) -> Graph:
    """Sums of convolutions of one map into one, where it needs no more multiplications than they."""
    draft = Draft(graph)
    for step in draft.steps():
        if isinstance(step, Combine) and step.kind == "add":
            parts = _parts(draft, step)
            merged = None if parts is None else _merged(*parts)
            if merged is not None:
                draft.put(dataclasses.replace(merged, output=step.output, activation=step.activation))
    return draft.graph()


def _parts(draft: Draft, step: Combine) -> tuple[Conv, Conv] | None:
    """The two convolutions of one map that a sum adds; the map itself counts as one."""
    first, second = (draft.maker(name) for name in step.inputs)
    convs = [
        made for name, made in zip(step.inputs, (first, second), strict=True)
        if isinstance(made, Conv) and made.activation is None and draft.alone(name) and made.shape == step.shape
    ]  # fmt: skip
    if len(convs) == 1:
        (conv,) = convs
        (other,) = (name for name in step.inputs if name != conv.output)
        if conv.inputs == (other,) and draft.shape(other) == step.shape:
            convs.append(_identity(conv))
    if len(convs) != 2 or convs[0].inputs != convs[1].inputs or convs[0].stride != convs[1].stride:
        return None
    return (convs[0], convs[1])


def _identity(like: Conv) -> Conv:
    channels = like.shape[0]
    return dataclasses.replace(
        like, weight=np.ones((channels, 1, 1, 1), np.float32), bias=np.zeros(channels, np.float32), stride=(1, 1),
        padding=(0, 0, 0, 0), dilation=(1, 1), groups=channels,
    )  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """The places that a kernel reads along rows or columns: ``size`` from ``start`` on, ``step`` apart."""

    start: int
    size: int
    step: int
    after: int
    """The padding at the end."""

    @property
    def last(self) -> int:
        return self.start + (self.size - 1) * self.step


def _merged(one: Conv, two: Conv) -> Conv | None:
    axes = [_axis(_line(one, axis), _line(two, axis)) for axis in (0, 1)]
    rows, columns = axes
    if rows is None or columns is None:
        return None
    groups = gcd(one.groups, two.groups)
    weight = sum(_embedded(conv, rows, columns, groups) for conv in (one, two))
    assert isinstance(weight, np.ndarray)
    bias = one.bias.astype(np.float64) + two.bias
    whole = dataclasses.replace(
        one,
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        padding=(-rows.start, -columns.start, rows.after, columns.after),
        dilation=(rows.step, columns.step),
        groups=groups,
    )
    return whole if whole.macs <= one.macs + two.macs else None


def _line(conv: Conv, axis: int) -> Axis:
    return Axis(-conv.padding[axis], conv.weight.shape[2 + axis], conv.dilation[axis], conv.padding[axis + 2])


def _axis(one: Axis, two: Axis) -> Axis | None:
    """The least that holds both; None where it would begin within the map."""
    apart = [line.step for line in (one, two) if line.size > 1]
    step = gcd(one.start - two.start, *apart) or 1
    start, last = min(one.start, two.start), max(one.last, two.last)
    if start > 0:  # a padding below zero
        return None
    after = one.after if one.last == last else two.after
    return Axis(start, (last - start) // step + 1, step, after)


def _embedded(conv: Conv, rows: Axis, columns: Axis, groups: int) -> np.ndarray:
    """The kernel in the larger one, in float64, with fewer groups: zeros between the channels of different ones."""
    out, own, tall, wide = conv.weight.shape
    inputs = own * conv.groups
    top, left = (-conv.padding[0] - rows.start) // rows.step, (-conv.padding[1] - columns.start) // columns.step
    whole = np.zeros((out, inputs // groups, rows.size, columns.size))
    down, right = conv.dilation[0] // rows.step or 1, conv.dilation[1] // columns.step or 1
    for channel in range(out):
        group = channel // (out // conv.groups)
        first = group * own - channel // (out // groups) * (inputs // groups)
        places = whole[channel, first : first + own, top : top + tall * down : down, left : left + wide * right : right]
        places[...] = conv.weight[channel]
    return whole
