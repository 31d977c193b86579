# SPDX-License-Identifier: Apache-2.0
"""Run a graph the slow, obvious way: PyTorch's own functions, one operation after another, every value kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ghostnets.deploy.graph import (
    ZERO,
    Activate,
    Activation,
    Combine,
    Concat,
    Conv,
    Graph,
    Operation,
    Pool,
    Resample,
    Select,
    Softmax,
)  # fmt: skip

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}


@torch.no_grad()
def outputs(graph: Graph, image: np.ndarray, dtype: torch.dtype = torch.float64) -> dict[str, np.ndarray]:
    """Every value of the graph for one ``image`` (C, H, W), the input included: (C, H, W) each, in ``dtype``."""
    values = {graph.input: torch.from_numpy(np.ascontiguousarray(image)).to(dtype)[None]}
    for step in graph.operations:
        made = STEPS[type(step)](step, *(values[name] for name in step.inputs))
        assert made.shape[1:] == step.shape, f"{step.name} makes {tuple(made.shape[1:])}, not {step.shape}"
        values[step.output] = made
    return {name: value[0].numpy() for name, value in values.items()}


def _conv(step: Conv, x: Tensor) -> Tensor:
    weight, bias = (torch.from_numpy(part).to(x.dtype) for part in (step.weight, step.bias))
    made = F.conv2d(_padded(x, step.padding), weight, bias, step.stride, 0, step.dilation, step.groups)
    return _activated(step.activation, made)


def _pool(step: Pool, x: Tensor) -> Tensor:
    if step.kind == "max":
        x = _padded(x, step.padding, -torch.inf)
        return F.max_pool2d(x, step.kernel, step.stride, 0, step.dilation)[..., : step.shape[1], : step.shape[2]]
    inside = F.pad(torch.ones_like(x), _sides(step.counted), value=1.0)
    beyond = tuple(whole - counted for whole, counted in zip(step.padding, step.counted, strict=True))
    sums = F.avg_pool2d(_padded(x, step.padding), step.kernel, step.stride)
    shares = F.avg_pool2d(F.pad(inside, _sides(beyond)), step.kernel, step.stride)
    return (sums / shares)[..., : step.shape[1], : step.shape[2]]


def _combine(step: Combine, x: Tensor, other: Tensor) -> Tensor:
    return _activated(step.activation, x + other if step.kind == "add" else x * other)


def _select(step: Select, x: Tensor) -> Tensor:
    return _gathered(x, 1, step.channels)


def _resample(step: Resample, x: Tensor) -> Tensor:
    return _gathered(_gathered(x, 2, step.rows), 3, step.columns)


def _gathered(x: Tensor, axis: int, chosen: tuple[int, ...]) -> Tensor:
    zeros = torch.zeros_like(x.narrow(axis, 0, 1))
    places = [x.shape[axis] if place == ZERO else place for place in chosen]
    return torch.cat([x, zeros], axis).index_select(axis, torch.tensor(places))


def _activated(kind: Activation | None, x: Tensor) -> Tensor:
    return x if kind is None else ACTIVATIONS[kind](x)


def _padded(x: Tensor, padding: tuple[int, ...], value: float = 0.0) -> Tensor:
    return F.pad(x, _sides(padding), value=value)


def _sides(padding: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right in PyTorch's order."""
    top, left, bottom, right = padding
    return (left, right, top, bottom)


STEPS: Mapping[type[Operation], Callable[..., Any]] = {
    Conv: _conv,
    Pool: _pool,
    Activate: lambda step, x: _activated(step.activation, x),
    Combine: _combine,
    Concat: lambda _step, *parts: torch.cat(parts, 1),
    Select: _select,
    Resample: _resample,
    Softmax: lambda _step, x: torch.softmax(x, 1),
}
