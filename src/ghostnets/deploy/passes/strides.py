# SPDX-License-Identifier: Apache-2.0
"""Resamples that only pad with zeros, or take every k-th place, go into the convolutions and pools around them."""

from __future__ import annotations

import dataclasses

from ghostnets.deploy.graph import ZERO, Conv, Graph, Operation, Pool, Resample
from ghostnets.deploy.passes.draft import Draft


def paddings(graph: Graph) -> Graph:
    """Zeros around a map into the padding of the convolutions and means that read it."""
    draft = Draft(graph)
    for step in draft.steps():
        if isinstance(step, Resample):
            _, height, width = draft.shape(step.inputs[0])
            rows, columns = _around(step.rows, height), _around(step.columns, width)
            if rows is not None and columns is not None:
                for reader in draft.readers(step.output):
                    padded = _padded(reader, step, (rows[0], columns[0], rows[1], columns[1]))
                    if padded is not None:
                        draft.put(padded)
    return draft.graph()


def _around(places: tuple[int, ...], size: int) -> tuple[int, int] | None:
    """How many zeros stand before and after all places in order; None where it is something else."""
    before = next((i for i, place in enumerate(places) if place != ZERO), 0)
    after = len(places) - before - size
    return (before, after) if places == (ZERO,) * before + tuple(range(size)) + (ZERO,) * after else None


def _padded(reader: Operation, step: Resample, more: tuple[int, int, int, int]) -> Operation | None:
    """The reader of the padded map as a reader of the map."""

    def grown(padding: tuple[int, int, int, int]) -> tuple[int, ...]:
        return tuple(own + new for own, new in zip(padding, more, strict=True))

    match reader:
        case Conv():
            return dataclasses.replace(reader, inputs=step.inputs, padding=grown(reader.padding))
        case Pool(kind="mean"):
            return dataclasses.replace(
                reader, inputs=step.inputs, padding=grown(reader.padding), counted=grown(reader.counted)
            )
        case _:
            return None


def strides(graph: Graph) -> Graph:
    """Every k-th row and column: a stride of the convolution before, which alone is read, or of 1x1 ones after."""
    draft = Draft(graph)
    for step in draft.steps():
        if not isinstance(step, Resample):
            continue
        _, height, width = draft.shape(step.inputs[0])
        down, right = _every(step.rows, height), _every(step.columns, width)
        if down is None or right is None:
            continue
        made = draft.maker(step.inputs[0])
        if isinstance(made, Conv) and draft.alone(made.output):
            strided = (made.stride[0] * down, made.stride[1] * right)
            draft.put(dataclasses.replace(made, output=step.output, shape=step.shape, stride=strided))
            continue
        for reader in draft.readers(step.output):
            if isinstance(reader, Conv) and reader.weight.shape[2:] == (1, 1) and not any(reader.padding):
                strided = (reader.stride[0] * down, reader.stride[1] * right)
                draft.put(dataclasses.replace(reader, inputs=step.inputs, stride=strided))
    return draft.graph()


def _every(places: tuple[int, ...], size: int) -> int | None:
    """k, where the places are every k-th one from the first on."""
    step = places[1] - places[0] if len(places) > 1 else size
    return step if step > 0 and places == tuple(range(0, size, step)) else None
