# SPDX-License-Identifier: Apache-2.0
"""ATen's operations that only move elements, or leave everything as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ghostnets.deploy.aten.builder import Builder
from ghostnets.deploy.aten.values import Value

RESHAPES = frozenset("view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as".split())
"""These keep the elements in order."""

MOVES = frozenset(
    "permute transpose movedim moveaxis swapaxes t slice select narrow index_select index chunk split "
    "split_with_sizes tensor_split unbind flip roll expand repeat tile repeat_interleave pixel_shuffle "
    "pixel_unshuffle channel_shuffle native_channel_shuffle unfold reflection_pad2d replication_pad2d".split()
)
"""These are done by PyTorch on the numbers of the places."""

KEPT = frozenset("alias clone contiguous detach lift_fresh_copy lift_fresh to _to_copy positive type_as".split())
"""These change nothing: in float32, on one device."""

DROPPED = frozenset("dropout native_dropout feature_dropout alpha_dropout feature_alpha_dropout".split())
"""In evaluation these change nothing."""


def kept(_b: Builder, x: Value, **_: Any) -> Value:
    """The value itself."""
    return x


def dropped(b: Builder, x: Value, *, train: bool, **_: Any) -> Value:
    """A dropout that draws is refused."""
    if train:
        raise b.refused("draws random numbers", "let its probability depend on self.training, as nn.Dropout does")
    return x


def expanded(b: Builder, x: Value, **_: Any) -> Value:
    """Spread over the places or channels of another tensor."""
    return x.moved(lambda numbers: numbers.expand(b.site.shape))


def padded(b: Builder, x: Value, *, pad: list[int], mode: str = "constant", value: float | None = None) -> Value:
    """F.pad: with zeros, or with elements of the map."""
    if mode == "constant" and value:
        raise b.refused(f"pads with {value:g}", "pad with zeros, or reflect or replicate the map")
    return x.moved(lambda numbers: torch.nn.functional.pad(numbers, pad, mode=mode))


def upsampled(b: Builder, x: Value, call: Any, rest: dict[str, Any]) -> Value:
    """Nearest upsampling to any size. PyTorch picks the places, in float32, of which the rounding depends."""
    height, width = x.shape[-2:]
    rows, columns = torch.arange(height).view(-1, 1).expand(-1, width), torch.arange(width).expand(height, -1)
    if max(height, width) > 2**24:
        raise b.refused(f"reads a map of {height} x {width} places", "upsample smaller maps")
    picked: Tensor = call(torch.stack([rows, columns]).float()[None], **rest)
    return x.moved(lambda numbers: numbers[..., picked[0, 0, :, 0].long(), :][..., picked[0, 1, 0].long()])
