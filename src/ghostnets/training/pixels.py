# SPDX-License-Identifier: Apache-2.0
"""Stores of uint8 pixels (N, C, H, W): in memory, or when large in a mapped file that vanishes with its last user."""

from __future__ import annotations

import math
import os
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ghostnets.errors import UserError

IN_MEMORY = 256 * 2**20
"""Bytes; larger stores are mapped, so that the system may drop their pages whenever memory runs short."""

CHUNK = 1024
"""Images worked on at a time, which bounds the temporary memory of every function here."""


def empty(shape: tuple[int, ...]) -> Tensor:
    """A zero-filled uint8 store of that shape (N, C, H, W)."""
    size = math.prod(shape)
    if size <= IN_MEMORY:
        return torch.zeros(shape, dtype=torch.uint8)
    with tempfile.TemporaryFile(prefix="ghostnets-") as file:  # the mapping outlives the handle and the name
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk must fail here, not as SIGBUS on a later write
            mapped = np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
        except OSError as error:
            raise UserError(
                f"{size / 2**30:.1f} GiB of pixels do not fit into {tempfile.gettempdir()} ({error.strerror}): "
                "free some space, set TMPDIR to a larger disk, or ask for a smaller image size"
            ) from None
    return torch.from_numpy(mapped)


def take(pixels: Tensor, index: Tensor) -> Tensor:
    """The images at ``index`` (K,), copied into a store of their own."""
    if len(index) * pixels[:1].numel() <= IN_MEMORY:
        return pixels[index]
    out = empty((len(index), *pixels.shape[1:]))
    for start in range(0, len(index), CHUNK):
        out[start : start + CHUNK] = pixels[index[start : start + CHUNK]]
    return out


def fit(pixels: Tensor, *, size: tuple[int, int], channels: int) -> Tensor:
    """The same images with ``channels`` 1 or 3 and ``size`` (H, W): grey is repeated, colour becomes its luma
    (ITU-R 601), and a change of size is bilinear, low-pass filtered when shrinking.
    """
    if (pixels.shape[1], *pixels.shape[2:]) == (channels, *size):
        return pixels
    out = empty((len(pixels), channels, *size))
    for start in range(0, len(pixels), CHUNK):
        part = _recolour(pixels[start : start + CHUNK], channels).float()
        if part.shape[2:] != size:
            part = F.interpolate(part, size=size, mode="bilinear", antialias=True).round_().clamp_(0, 255)
        out[start : start + CHUNK] = part.to(torch.uint8)
    return out


def _recolour(pixels: Tensor, channels: int) -> Tensor:
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    weight = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(1, 3, 1, 1)  # 601 luma in 1/65536, as Pillow's
    return ((pixels.int() * weight).sum(1, keepdim=True) + 2**15).div(2**16, rounding_mode="floor").to(torch.uint8)
