# SPDX-License-Identifier: Apache-2.0
"""Selects, Resamples and Concats of each other become one, or none."""

from __future__ import annotations

import dataclasses
from itertools import groupby

from ghostnets.deploy.graph import ZERO, Combine, Concat, Conv, Graph, Operation, Pool, Resample, Select
from ghostnets.deploy.passes.draft import Draft
from ghostnets.deploy.passes.scales import scale_of


def idle(graph: Graph) -> Graph:
    """What leaves its map as it is goes: selections of everything in order, pools of one place, a norm that is none."""
    draft = Draft(graph)
    for step in draft.steps():
        if _idle(draft, step):
            draft.forward(step.output, step.inputs[0])
    return draft.graph()


def _idle(draft: Draft, step: Operation) -> bool:
    match step:
        case Select(channels=channels):
            return channels == tuple(range(draft.shape(step.inputs[0])[0]))
        case Resample(rows=rows, columns=columns):
            return (rows, columns) == tuple(tuple(range(side)) for side in draft.shape(step.inputs[0])[1:])
        case Concat(inputs=inputs):
            return len(inputs) == 1
        case Pool(kernel=(1, 1), stride=(1, 1), padding=(0, 0, 0, 0)):
            return True
        case Conv(activation=None):
            scale = scale_of(step)
            return scale is not None and bool((scale.factor == 1).all()) and not scale.shifts
        case _:
            return False


def joined(graph: Graph) -> Graph:
    """A Select or Resample of another, a Select of a Concat or of a convolution, a Concat of Selects or Concats."""
    draft = Draft(graph)
    for step in draft.steps():
        made = draft.maker(step.inputs[0])
        match step, made:
            case Select(), Select():
                draft.put(dataclasses.replace(step, inputs=made.inputs, channels=_through(step.channels, made.channels)))  # fmt: skip
            case Resample(), Resample():
                rows, columns = _through(step.rows, made.rows), _through(step.columns, made.columns)
                draft.put(dataclasses.replace(step, inputs=made.inputs, rows=rows, columns=columns))
            case Select(), Concat():
                _select_of_concat(draft, step, made)
            case Select(), Conv(groups=1) if draft.alone(made.output):
                _select_of_conv(draft, step, made)
            case Concat(), _:
                _concat(draft, step)
            case Conv(groups=1), Select():
                _conv_of_select(draft, step, made)
            case Combine(), _:
                _combine(draft, step)
            case _:
                pass
    return draft.graph()


def _through(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(ZERO if place == ZERO else inner[place] for place in outer)


def _select_of_concat(draft: Draft, step: Select, concat: Concat) -> None:
    """Runs of channels from one part each: these parts joined, where that copies no more than before."""
    sources = [(name, channel) for name in concat.inputs for channel in range(draft.shape(name)[0])]
    if ZERO in step.channels:
        return
    runs = [
        (name, tuple(channel for _, channel in run))
        for name, run in groupby((sources[channel] for channel in step.channels), key=lambda source: source[0])
    ]
    partial = [chosen != tuple(range(draft.shape(name)[0])) for name, chosen in runs]
    if len(runs) > len(concat.inputs) or (len(runs) > 1 and any(partial) and not draft.alone(concat.output)):
        return
    if len(runs) == 1:
        draft.put(dataclasses.replace(step, inputs=(runs[0][0],), channels=runs[0][1]))
        return
    names: list[str] = []
    for (name, chosen), cut in zip(runs, partial, strict=True):
        part = draft.fresh(step.output) if cut else name
        if cut:
            shape = (len(chosen), *step.shape[1:])
            own = f"{step.name}.part{len(names)}"
            cut_out = Select(name=own, inputs=(name,), output=part, shape=shape, channels=chosen)
            draft.put(cut_out, near=step.output)
        names.append(part)
    draft.put(Concat(name=step.name, inputs=tuple(names), output=step.output, shape=step.shape))


def _select_of_conv(draft: Draft, step: Select, conv: Conv) -> None:
    """Another order of filters, or fewer."""
    chosen = list(step.channels)
    if ZERO in chosen or len(set(chosen)) < len(chosen):
        return
    draft.put(dataclasses.replace(conv, output=step.output, shape=step.shape, weight=conv.weight[chosen], bias=conv.bias[chosen]))  # fmt: skip


def _conv_of_select(draft: Draft, step: Conv, select: Select) -> None:
    """Another order of inputs."""
    if sorted(select.channels) != list(range(draft.shape(select.inputs[0])[0])):
        return
    weight = step.weight.copy()
    weight[:, list(select.channels)] = step.weight
    draft.put(dataclasses.replace(step, inputs=select.inputs, weight=weight))


def _concat(draft: Draft, step: Concat) -> None:
    """Parts of the parts; of one value alone, a Select."""
    parts = [(name, draft.maker(name)) for name in step.inputs]
    sources = {made.inputs[0] if isinstance(made, Select) else name for name, made in parts}
    if len(sources) == 1:
        (source,) = sources
        everything = tuple(range(draft.shape(source)[0]))
        channels = [made.channels if isinstance(made, Select) else everything for _, made in parts]
        flat = tuple(channel for chosen in channels for channel in chosen)
        draft.put(Select(name=step.name, inputs=(source,), output=step.output, shape=step.shape, channels=flat))
        return
    inner = [made.inputs if isinstance(made, Concat) and draft.alone(name) else (name,) for name, made in parts]
    if any(len(names) > 1 for names in inner):
        draft.put(dataclasses.replace(step, inputs=tuple(name for names in inner for name in names)))


def _combine(draft: Draft, step: Combine) -> None:
    """A sum or product spreads one place over all by itself."""
    first, second = step.inputs
    inputs = (_unspread(draft, first, second, step), _unspread(draft, second, first, step))
    if inputs != step.inputs and inputs in {(first, inputs[1]), (inputs[0], second)}:
        draft.put(dataclasses.replace(step, inputs=inputs))


def _unspread(draft: Draft, value: str, other: str, step: Combine) -> str:
    """The one place that is spread over a map, where the other operand has all places; else the value."""
    made = draft.maker(value)
    if not isinstance(made, Resample) or draft.shape(other)[1:] != step.shape[1:]:
        return value
    (source,) = made.inputs
    spread = draft.shape(source)[1:] == (1, 1) and ZERO not in {*made.rows, *made.columns}
    return source if spread else value
