# SPDX-License-Identifier: Apache-2.0
"""The maps of one image as small grey pictures: what figures and pages are drawn from, without the network."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ghostnets.inspecting.layers import Place, hooked, run
from ghostnets.records import Matches

MOST = 64
"""Maps of a layer that are kept."""

SIDE = 32
"""Pixels; larger maps are averaged down."""

Arrays = dict[str, NDArray[Any]]
"""Name -> array, as ``numpy.savez`` takes them."""


def chosen(channels: int, matches: Matches | None, most: int = MOST) -> tuple[int, ...]:
    """The maps to keep, in their order: all, or the best ghosts and the maps they are made from."""
    if channels <= most or matches is None:
        return tuple(range(min(channels, most)))
    kept: dict[int, None] = {}
    for target in np.argsort(matches.nmse, kind="stable").tolist():
        if matches.source[target] >= 0:
            pair = {target: None, matches.source[target]: None}
            if len(kept | pair) > most:
                break
            kept |= pair
    spare = (k for k in range(channels) if k not in kept)
    while len(kept) < most:
        kept[next(spare)] = None
    return tuple(sorted(kept))


def chosen_ghosts(channels: int, ratio: int, most: int = MOST) -> tuple[int, ...]:
    """Places of a Ghost module's maps: the first computed ones, each with all its ghosts."""
    computed = -(-channels // ratio)
    if channels <= most:
        return tuple(range(channels))
    kept = most // ratio
    ghosts = range(computed, min(channels, computed + kept * (ratio - 1)))
    return (*range(kept), *ghosts)


def packed(arrays: Arrays) -> bytes:
    """As a compressed ``.npz``."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def thumbnails(model: nn.Module, image: Tensor, ends: Mapping[str, tuple[Place, Sequence[int]]]) -> Arrays:
    """What these layers make of one image (1, C, H, W): for each name, of the maps asked for, ``NAME`` uint8 (n, h, w),
    each map from its own least to its own greatest value, and ``NAME#`` the maps' numbers.

    ``ends`` is name -> (what gives the maps out, which of them).
    """
    found: Arrays = {}
    readers: dict[Place, list[str]] = {}
    for name, (place, _) in ends.items():
        readers.setdefault(place, []).append(name)

    def see(place: Place, _inputs: tuple[Any, ...], output: Any) -> None:
        for name in readers.get(place, ()):
            index = list(ends[name][1])
            found[name] = grey(output[0, index].float())
            found[f"{name}#"] = np.array(index, dtype=np.int32)

    with hooked(model, [place.module for place in readers], see):
        run(model, image)
    return found


def grey(maps: Tensor, side: int = SIDE) -> NDArray[np.uint8]:
    """(n, H, W) as uint8 (n, h, w), no side longer than ``side``; what is not finite is black."""
    maps = torch.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0)
    height, width = maps.shape[1:]
    scale = max(height, width) / side
    if scale > 1:
        size = (max(1, round(height / scale)), max(1, round(width / scale)))
        maps = torch.nn.functional.adaptive_avg_pool2d(maps[None], size)[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8).numpy()
