# SPDX-License-Identifier: Apache-2.0
"""ATen's convolutions, linear layers, activations, softmax and concat."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from ghostnets.deploy.aten.builder import Builder
from ghostnets.deploy.aten.values import Value
from ghostnets.deploy.graph import ZERO, Activate, Activation, Concat, Conv, Select, Softmax


def conv2d(
    b: Builder,
    x: Value,
    *,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int] | str,
    dilation: list[int],
    groups: int,
) -> Value:
    """Weight (out, in / groups, kh, kw); ``padding`` may be a word."""
    down, right = _pair(dilation)
    if padding == "same":  # an odd one is at the end
        total = [dilated * (size - 1) for dilated, size in zip((down, right), weight.shape[2:], strict=True)]
        pads = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        tall, wide = (0, 0) if isinstance(padding, str) else _pair(padding)
        pads = (tall, wide, tall, wide)
    _, channels, height, width = b.site.shape
    return b.add(
        Conv,
        b.as_map(x),
        shape=(channels, height, width),
        weight=_float32(b, weight),
        bias=_float32(b, weight.new_zeros(channels) if bias is None else bias),
        stride=_pair(stride),
        padding=pads,
        dilation=(down, right),
        groups=groups,
    )


def linear(b: Builder, x: Value, *, weight: Tensor, bias: Tensor | None = None) -> Value:
    """Over one vector: a kernel as large as its map. Over the channels of (N, H, W, C): a 1x1 convolution."""
    if prod(x.shape[:-1]) > 1:
        maps = b.as_map(x.moved(lambda numbers: numbers.movedim(-1, 1)))
        made = _full(b, maps, weight[:, :, None, None], bias)
        return made.moved(lambda numbers: numbers.movedim(1, -1))
    if x.map[1:] == (1, 1):
        x = b.as_map(x.reshaped((1, x.shape[-1])))
    if x.places is not None:  # each weight goes where its element lies in the map
        spread = weight.new_zeros(len(weight), prod(x.map) + 1)
        weight = spread.index_add(1, x.places.long().flatten().to(weight.device), weight)[:, 1:]
    return _full(b, x, weight.reshape(-1, *x.map), bias).reshaped(b.site.shape)


def _full(b: Builder, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """A convolution without padding or stride."""
    return b.add(
        Conv,
        x,
        shape=(len(weight), x.map[1] - weight.shape[2] + 1, x.map[2] - weight.shape[3] + 1),
        weight=_float32(b, weight),
        bias=_float32(b, weight.new_zeros(len(weight)) if bias is None else bias),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
    )


def _float32(b: Builder, tensor: Tensor) -> Any:
    if tensor.dtype != torch.float32:
        raise b.refused(f"has weights of {tensor.dtype}", "call float() on the network first")
    return tensor.detach().cpu().contiguous().numpy()


def activated(b: Builder, x: Value, kind: Activation) -> Value:
    """An activation does not ask where an element lies."""
    whole = x if x.whole else b.as_map(x)
    made = b.add(Activate, whole, shape=whole.map, activation=kind)
    return Value(name=made.name, map=made.map, shape=x.shape, places=whole.places if whole is x else None)


def clamped(b: Builder, x: Value, *, low: float | None = None, high: float | None = None) -> Value:
    """ReLU and ReLU6 under their other names."""
    if low != 0 or high not in {None, 6}:
        raise b.refused(f"cuts at {low} and {high}")
    return activated(b, x, "relu" if high is None else "relu6")


def softmax(b: Builder, x: Value, *, dim: int, **_: Any) -> Value:
    """Over the channels."""
    if dim % len(x.shape) != 1:
        raise b.refused(f"goes over dimension {dim}", "the nearest is softmax over the channels, dimension 1")
    maps = b.as_map(x)
    return b.add(Softmax, maps, shape=maps.map).reshaped(x.shape)


def concat(b: Builder, *, tensors: list[Value | Tensor], dim: int = 0) -> Value:
    """Along the channels; tensors of zeros may be among them."""
    first = next(value for value in tensors if isinstance(value, Value))
    if dim % len(first.shape) != 1:
        raise b.refused(f"goes along dimension {dim}", "the nearest is torch.cat along the channels, dimension 1")
    base = b.as_map(first)
    parts = [b.as_map(part) if isinstance(part, Value) else _zeros(b, base, part) for part in tensors]
    channels = sum(part.map[0] for part in parts)
    return b.add(Concat, *parts, shape=(channels, *base.map[1:])).reshaped(b.site.shape)


def _zeros(b: Builder, like: Value, constant: Tensor) -> Value:
    if bool(constant.any()):
        raise b.refused("joins a constant that is not zero", "add it to zero channels instead")
    count = constant.shape[1]
    return b.add(Select, like, shape=(count, *like.map[1:]), says="zeros", channels=(ZERO,) * count)


def _pair(sizes: list[int]) -> tuple[int, int]:
    return (sizes[0], sizes[-1])
