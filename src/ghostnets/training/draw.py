# SPDX-License-Identifier: Apache-2.0
"""Random numbers for a batch that several processes share: together they draw what one would draw alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def seed_of(*place: int) -> int:
    """A seed that belongs to one place in a run, such as ``(seed, epoch, step)``, and to no other."""
    digest = hashlib.sha256(repr(place).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*place: int) -> torch.Generator:
    """Random numbers that belong to one place in a run."""
    return torch.Generator().manual_seed(seed_of(*place))


@dataclass(frozen=True)
class Draw:
    """Numbers for the images ``start`` to ``stop`` of a batch of ``total``; every call draws new ones, for all of them."""

    source: torch.Generator
    total: int
    start: int
    stop: int

    def integers(self, high: int, kinds: int) -> Tensor:
        """(kinds, N) whole numbers below ``high``."""
        return torch.randint(high, (kinds, self.total), generator=self.source)[:, self.start : self.stop]

    def uniform(self, kinds: int) -> Tensor:
        """(kinds, N) numbers from 0 to 1."""
        return torch.rand(kinds, self.total, generator=self.source)[:, self.start : self.stop]

    def normal(self, *shape: int) -> Tensor:
        """(N, …) normal numbers."""
        return torch.randn(self.total, *shape, generator=self.source)[self.start : self.stop]

    def numbers(self) -> np.random.Generator:
        """For what is drawn once for the whole batch."""
        return np.random.default_rng(int(torch.randint(2**62, (1,), generator=self.source)))


def whole(source: torch.Generator, count: int) -> Draw:
    """For a batch that is not shared."""
    return Draw(source, count, 0, count)
