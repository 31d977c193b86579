# SPDX-License-Identifier: Apache-2.0
"""What multiplies each channel and adds to it goes into the convolution before it, or into those after it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

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
)  # fmt: skip
from ghostnets.deploy.passes.draft import Draft


@dataclass(frozen=True)
class Scale:
    """Each channel times ``factor`` plus ``shift``: float64 (C,) both."""

    factor: np.ndarray
    shift: np.ndarray

    def part(self, channels: slice) -> Scale:
        return Scale(self.factor[channels], self.shift[channels])

    @property
    def shifts(self) -> bool:
        return bool(self.shift.any())


Edits = list[Operation] | None
"""What stands in place of the operations that make the same values; None: it cannot be done."""


def scale_of(step: Operation | None) -> Scale | None:
    """What a depthwise 1x1 convolution of stride 1 does to each channel; None for anything else."""
    if not isinstance(step, Conv) or step.weight.shape[1:] != (1, 1, 1) or step.groups != len(step.weight):
        return None
    if step.stride != (1, 1) or any(step.padding):
        return None
    return Scale(step.weight.astype(np.float64).reshape(-1), step.bias.astype(np.float64))


def into_makers(graph: Graph) -> Graph:
    """Norms, scales and shifts into the convolutions that make the map, where they alone read it."""
    draft = Draft(graph)
    for step in draft.steps():
        scale = scale_of(step)
        if scale is not None:
            _fold(draft, step, _made(draft, step.inputs[0], scale))
    return draft.graph()


def into_readers(graph: Graph) -> Graph:
    """Norms, scales and shifts into the convolutions that read the map, where nothing else does."""
    draft = Draft(graph)
    for step in draft.steps(backwards=True):
        scale = scale_of(step)
        if scale is not None and isinstance(step, Conv) and step.activation is None:
            edits = _read(draft, step.output, scale)
            if edits is not None and len({edit.output for edit in edits}) == len(edits):
                _fold(draft, step, edits)
    return draft.graph()


def _fold(draft: Draft, step: Operation, edits: Edits) -> None:
    """Make the edits; of the step that they take in, only an activation stays."""
    if edits is None:
        return
    for edit in edits:
        draft.put(edit)
    assert isinstance(step, Conv)
    if step.activation is None:
        draft.forward(step.output, step.inputs[0])
    else:
        draft.put(
            Activate(
                name=step.name, inputs=step.inputs, output=step.output, shape=step.shape, activation=step.activation
            )
        )


def _made(draft: Draft, value: str, scale: Scale) -> Edits:
    """What makes a value that is scaled, shifted already."""
    step = draft.maker(value)
    if step is None or not draft.alone(value):
        return None
    match step:
        case Conv(activation=None):
            return [scaled(step, scale)]
        case Concat():
            ends = np.cumsum([draft.shape(name)[0] for name in step.inputs])
            parts = [scale.part(slice(end - draft.shape(name)[0], end)) for name, end in zip(step.inputs, ends, strict=True)]  # fmt: skip
            return _all(*(_made(draft, name, part) for name, part in zip(step.inputs, parts, strict=True)))
        case Select():
            chosen = _unselected(step, scale, draft.shape(step.inputs[0])[0])
            return None if chosen is None else _made(draft, step.inputs[0], chosen)
        case Resample() | Pool(kind="mean"):
            return None if scale.shifts and reads_zeros(step) else _made(draft, step.inputs[0], scale)
        case Combine(kind="add", activation=None):
            first, second = step.inputs
            rest = Scale(scale.factor, np.zeros_like(scale.shift))
            if any(draft.shape(name)[0] != len(scale.factor) for name in step.inputs):
                return None
            return _all(_made(draft, first, scale), _made(draft, second, rest))
        case Combine(kind="multiply", activation=None) if not scale.shifts:
            own = [name for name in step.inputs if draft.shape(name)[0] == len(scale.factor)]
            edits = (_made(draft, name, scale) for name in own)
            return next((edit for edit in edits if edit is not None), None)
        case _:
            return None


def _read(draft: Draft, value: str, scale: Scale) -> Edits:
    """What reads a value that is neither scaled nor shifted yet."""
    if value == draft.output:
        return None
    found: list[Edits] = []
    for step in draft.readers(value):
        match step:
            case Conv() if not (scale.shifts and any(step.padding)):
                found.append([_fed(step, scale)])
            case Concat():
                pieces = [scale if name == value else _nothing(draft.shape(name)[0]) for name in step.inputs]
                both = [np.concatenate(parts) for parts in zip(*((p.factor, p.shift) for p in pieces), strict=True)]
                found.append(_read(draft, step.output, Scale(both[0], both[1])))
            case Select():
                found.append(_read(draft, step.output, _selected(step, scale)))
            case Resample() | Pool(kind="mean") if not (scale.shifts and reads_zeros(step)):
                found.append(_read(draft, step.output, scale))
            case Pool(kind="max") if bool((scale.factor > 0).all()):
                found.append(_read(draft, step.output, scale))
            case _:
                return None
    return _all(*found)


def scaled(step: Conv, scale: Scale) -> Conv:
    """The convolution, then the scale."""
    weight = step.weight.astype(np.float64) * scale.factor[:, None, None, None]
    bias = step.bias.astype(np.float64) * scale.factor + scale.shift
    return dataclasses.replace(step, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def _fed(step: Conv, scale: Scale) -> Conv:
    """The scale, then the convolution."""
    out, own, *kernel = step.weight.shape
    weight = step.weight.astype(np.float64).reshape(step.groups, out // step.groups, own, *kernel)
    factor, shift = (part.reshape(step.groups, 1, own, 1, 1) for part in (scale.factor, scale.shift))
    bias = step.bias.astype(np.float64) + (weight * shift).sum((2, 3, 4)).reshape(-1)
    weight = (weight * factor).reshape(step.weight.shape)
    return dataclasses.replace(step, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def reads_zeros(step: Operation) -> bool:
    """Whether places that are no places of the map count as zeros in what it makes."""
    if isinstance(step, Pool):
        return any(step.counted)
    assert isinstance(step, Resample)
    return ZERO in step.rows or ZERO in step.columns


def _selected(step: Select, scale: Scale) -> Scale:
    """For each of the selected channels; a zero stays one."""
    chosen = np.array(step.channels)
    return Scale(np.where(chosen == ZERO, 1, scale.factor[chosen]), np.where(chosen == ZERO, 0, scale.shift[chosen]))


def _unselected(step: Select, scale: Scale, channels: int) -> Scale | None:
    """For the channels selected from; None where one would need two scales."""
    chosen = np.array(step.channels)
    found = _nothing(channels)
    used = chosen != ZERO
    found.factor[chosen[used]], found.shift[chosen[used]] = scale.factor[used], scale.shift[used]
    again = _selected(step, found)
    same = np.array_equal(again.factor[used], scale.factor[used]) and np.array_equal(again.shift, scale.shift)
    return found if same else None


def _nothing(channels: int) -> Scale:
    return Scale(np.ones(channels), np.zeros(channels))


def _all(*parts: Edits) -> Edits:
    """All of them, or None."""
    found: list[Operation] = []
    for part in parts:
        if part is None:
            return None
        found.extend(part)
    return found
