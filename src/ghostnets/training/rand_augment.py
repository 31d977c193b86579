# SPDX-License-Identifier: Apache-2.0
"""RandAugment (Cubuk et al., arXiv:1909.13719) by torchvision, asked for in timm's words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from ghostnets.errors import MissingExtra, UserError

BINS = 11
"""Timm's magnitudes are 0 to 10."""


def rand_augment(spec: str) -> Callable[[Any, int], Any]:
    """A function of an image (Pillow's, or a uint8 tensor) and a seed. ``rand-m9-n2`` is two changes of nine tenths of the
    largest strength each.

    Raises UserError where the words mean something else, MissingExtra without torchvision.
    """
    parts = spec.split("-")
    figures = {part[0]: int(part[1:]) for part in parts[1:] if re.fullmatch(r"[mn]\d+", part)}
    if parts[0] != "rand" or len(figures) != len(parts) - 1 or figures.get("m", 9) >= BINS:
        raise UserError(f"recipe: aa {spec!r} is not understood: write rand-m9-n2, with a strength m of at most 10")
    try:
        from torchvision.transforms import RandAugment  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError):  # RuntimeError: built for another PyTorch
        raise MissingExtra(f"RandAugment ({spec})", "vision") from None
    change = RandAugment(num_ops=figures.get("n", 2), magnitude=figures.get("m", 9), num_magnitude_bins=BINS)

    def changed(image: Any, seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU's too
            return change(image)

    return changed
