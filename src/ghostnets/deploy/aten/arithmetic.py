# SPDX-License-Identifier: Apache-2.0
"""ATen's arithmetic: two maps make a Combine, a map and a constant a depthwise 1x1 convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ghostnets.deploy.aten.builder import Builder
from ghostnets.deploy.aten.refusals import ARITHMETIC
from ghostnets.deploy.aten.values import Value
from ghostnets.deploy.graph import Combine, Conv, Shape

Operand = Value | Tensor | float


def add(b: Builder, x: Operand, other: Operand, *, alpha: float = 1, **_: Any) -> Value:
    """``x`` and ``alpha`` times the other."""
    if isinstance(x, Value) and isinstance(other, Value):
        return combined(b, "add", x, other if alpha == 1 else affine(b, other, alpha, 0.0))
    if isinstance(x, Value):
        return affine(b, x, 1.0, _constant(other) * alpha)
    return affine(b, _value(other), alpha, _constant(x))


def subtract(b: Builder, x: Operand, other: Operand, *, alpha: float = 1, **_: Any) -> Value:
    """``x`` less ``alpha`` times the other."""
    return add(b, x, other, alpha=-alpha)


def subtract_from(b: Builder, x: Operand, other: Operand, *, alpha: float = 1, **_: Any) -> Value:
    """The other less ``alpha`` times ``x``."""
    return add(b, other, x, alpha=-alpha)


def multiply(b: Builder, x: Operand, other: Operand, **_: Any) -> Value:
    """Element by element."""
    if isinstance(x, Value) and isinstance(other, Value):
        return combined(b, "multiply", x, other)
    value, constant = (x, other) if isinstance(x, Value) else (_value(other), x)
    return affine(b, value, _constant(constant), 0.0)


def divide(b: Builder, x: Operand, other: Operand, *, rounding_mode: str | None = None, **_: Any) -> Value:
    """By a constant."""
    if rounding_mode is not None or isinstance(other, Value):
        raise b.refused("divides by a map" if rounding_mode is None else "rounds", ARITHMETIC)
    return affine(b, _value(x), 1 / _constant(other), 0.0)


def negate(b: Builder, x: Value) -> Value:
    """Minus ``x``."""
    return affine(b, x, -1.0, 0.0)


def norm(
    b: Builder,
    x: Value,
    *,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    training: bool = False,
    **_: Any,
) -> Value:
    """A batch norm in evaluation."""
    if training or running_mean is None or running_var is None:
        raise b.refused("keeps no running statistics", "the nearest is a norm with track_running_stats=True")
    scale = torch.rsqrt(running_var.double() + eps)
    if weight is not None:
        scale = scale * weight.double()
    shift = -running_mean.double() * scale + (0.0 if bias is None else bias.double())
    shape = (1, -1, *(1,) * (len(x.shape) - 2))
    return affine(b, x, scale.view(shape), shift.view(shape))


def affine(b: Builder, x: Value, scale: Tensor | float, shift: Tensor | float) -> Value:
    """``x`` times a constant plus a constant, each the same for all places of a channel."""
    scale, shift = (torch.as_tensor(part).detach().cpu().double() for part in (scale, shift))
    if torch.broadcast_shapes(x.shape, scale.shape, shift.shape) != x.shape:
        raise b.refused("spreads a map over a larger constant", ARITHMETIC)
    whole = x if x.whole else b.as_map(x)
    scales, shifts = (_by_channel(b, whole, part) for part in (scale, shift))
    made = b.add(
        Conv,
        whole,
        shape=whole.map,
        weight=scales.float().view(-1, 1, 1, 1).numpy(),
        bias=shifts.float().numpy(),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=whole.map[0],
    )
    return Value(name=made.name, map=made.map, shape=x.shape, places=whole.places if whole is x else None)


def _by_channel(b: Builder, x: Value, constant: Tensor) -> Tensor:
    """The constant for each channel of the value's map: (C,)."""
    if constant.numel() == 1:
        return constant.reshape(1).expand(x.map[0]).contiguous()
    full = constant.broadcast_to(x.shape).flatten()
    if x.places is not None:
        full = torch.empty_like(full).index_copy(0, x.places.long().flatten() - 1, full)
    channels = full.view(x.map[0], -1)
    if not bool((channels == channels[:, :1]).all()):
        raise b.refused(
            "has a constant that differs from place to place", "the nearest is one constant for each channel"
        )
    return channels[:, 0].contiguous()


def combined(b: Builder, kind: Literal["add", "multiply"], x: Value, other: Value) -> Value:
    """The sum or product of two maps, in which PyTorch may spread one over the other."""
    if _alike(x, other):
        made = b.add(Combine, x, other, shape=x.map, kind=kind)
        return Value(name=made.name, map=made.map, shape=x.shape, places=x.places)
    shape = torch.broadcast_shapes(x.shape, other.shape)
    x, other = (b.as_map(value.reshaped((*(1,) * (len(shape) - len(value.shape)), *value.shape))) for value in (x, other))  # fmt: skip
    channels, height, width = (max(sizes) for sizes in zip(x.map, other.map, strict=True))
    full: Shape = (channels, height, width)
    x, other = (_spread(b, value, full) for value in (x, other))
    return b.add(Combine, x, other, shape=full, kind=kind).reshaped(tuple(shape))


def _alike(x: Value, other: Value) -> bool:
    """Whether element by element of the maps is element by element of the tensors."""
    if x.shape != other.shape or x.map != other.map or not x.whole or not other.whole:
        return False
    return (x.places is None and other.places is None) or torch.equal(x.numbers(), other.numbers())


def _spread(b: Builder, x: Value, full: Shape) -> Value:
    """A Combine spreads one place over all, or one channel; a single row or column is spread before."""
    if x.map[1:] in {(1, 1), full[1:]}:
        return x
    return b.as_map(x.moved(lambda numbers: numbers.expand(1, x.map[0], *full[1:])))


def _value(operand: Operand) -> Value:
    assert isinstance(operand, Value)  # where all are constants, PyTorch does it
    return operand


def _constant(operand: Operand) -> Tensor:
    assert not isinstance(operand, Value)
    return torch.as_tensor(operand, dtype=torch.float64).cpu()


Arithmetic = Callable[..., Value]

ARITHMETICS: dict[str, Arithmetic] = {
    "add": add, "sub": subtract, "subtract": subtract, "rsub": subtract_from, "mul": multiply, "multiply": multiply,
    "div": divide, "divide": divide, "true_divide": divide,
}  # fmt: skip
"""ATen's name -> what it becomes; either operand may be the map."""
