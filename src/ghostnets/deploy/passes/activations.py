# SPDX-License-Identifier: Apache-2.0
"""Activations: spelled out in arithmetic they get their names back, and each goes into what makes its map."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ghostnets.deploy.graph import (
    ZERO,
    Activate,
    Activation,
    Combine,
    Concat,
    Conv,
    Graph,
    Operation,
    Resample,
    Select,
)  # fmt: skip
from ghostnets.deploy.passes.draft import Draft
from ghostnets.deploy.passes.scales import Edits, reads_zeros, scale_of

GATED: Mapping[Activation, Activation] = {"sigmoid": "silu", "hard_sigmoid": "hard_swish"}
"""x times this of x is that."""

TWICE: Mapping[tuple[Activation | None, Activation], Activation] = {
    ("relu", "relu"): "relu",
    ("relu6", "relu"): "relu6",
    ("relu", "relu6"): "relu6",
    ("relu6", "relu6"): "relu6",
}
"""One activation, then another: the one that does both."""

KEEPS_ZERO = frozenset(("relu", "relu6", "hard_swish", "silu"))


def hard_sigmoids(graph: Graph) -> Graph:
    """relu6(x + 3) becomes 6 times the hard sigmoid of x: a division by 6 then takes the 6 away."""
    draft = Draft(graph)
    for step in draft.steps():
        if not isinstance(step, Activate) or step.activation != "relu6":
            continue
        added = draft.maker(step.inputs[0])
        scale = scale_of(added)
        if added is None or scale is None or not ((scale.factor == 1).all() and (scale.shift == 3).all()):
            continue
        if isinstance(added, Conv) and added.activation is None:
            channels = step.shape[0]
            gate = draft.fresh(step.output)
            draft.put(
                dataclasses.replace(step, inputs=added.inputs, output=gate, activation="hard_sigmoid"), near=step.output
            )
            six = np.full((channels, 1, 1, 1), 6, np.float32)
            draft.put(dataclasses.replace(added, inputs=(gate,), output=step.output, weight=six, bias=np.zeros(channels, np.float32)))  # fmt: skip
    return draft.graph()


def gates(graph: Graph) -> Graph:
    """X times its sigmoid becomes SiLU, x times its hard sigmoid hard-swish."""
    draft = Draft(graph)
    for step in draft.steps():
        if not isinstance(step, Combine) or step.kind != "multiply":
            continue
        for value, gate in (step.inputs, step.inputs[::-1]):
            made = draft.maker(gate)
            if isinstance(made, Activate) and made.inputs == (value,) and made.activation in GATED:
                whole = Activate(
                    name=step.name, inputs=(value,), output=step.output, shape=step.shape, activation=GATED[made.activation]
                )  # fmt: skip
                _with_activation(draft, step, whole)
                break
    return draft.graph()


def _with_activation(draft: Draft, step: Combine, whole: Activate) -> None:
    """What was done after the product is done after it still."""
    if step.activation is None:
        draft.put(whole)
        return
    inner = draft.fresh(step.output)
    draft.put(dataclasses.replace(whole, name=f"{step.name}.gate", output=inner), near=step.output)
    draft.put(dataclasses.replace(whole, inputs=(inner,), activation=step.activation))


def into_makers(graph: Graph) -> Graph:
    """Activations into the convolution, sum or product that makes the map, where they alone read it."""
    draft = Draft(graph)
    for step in draft.steps():
        if isinstance(step, Activate):
            edits = _made(draft, step.inputs[0], step.activation)
            if edits is not None:
                for edit in edits:
                    draft.put(edit)
                draft.forward(step.output, step.inputs[0])
    return draft.graph()


def _made(draft: Draft, value: str, activation: Activation) -> Edits:
    """What makes a value that is activated already."""
    step = draft.maker(value)
    if step is None:
        return None
    both = TWICE.get((step.activation, activation)) if isinstance(step, Conv | Combine | Activate) else None
    if isinstance(step, Conv | Combine | Activate) and both == step.activation and both is not None:
        return []
    if not draft.alone(value):
        return None
    match step:
        case Conv() | Combine() | Activate() if both is not None:
            return [dataclasses.replace(step, activation=both)]
        case Conv(activation=None) | Combine(activation=None):
            return [dataclasses.replace(step, activation=activation)]
        case Concat():
            return _every(draft, step, activation)
        case Select() if activation in KEEPS_ZERO or ZERO not in step.channels:
            return _every(draft, step, activation)
        case Resample() if activation in KEEPS_ZERO or not reads_zeros(step):
            return _every(draft, step, activation)
        case _:
            return None


def _every(draft: Draft, step: Operation, activation: Activation) -> Edits:
    """Of all inputs."""
    found: list[Operation] = []
    for name in step.inputs:
        part = _made(draft, name, activation)
        if part is None:
            return None
        found.extend(part)
    return found
