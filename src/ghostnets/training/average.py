# SPDX-License-Identifier: Apache-2.0
"""A moving average of a network's weights, and of its norms' statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def decay_at(decay: float, step: int) -> float:
    """After the ``step``-th step, counted from 1: early on an average forgets its start fast, as timm's does."""
    return min(decay, step / (step + 10))


class Average:
    """``model`` is the average so far; ``update_`` takes one step of another network into it."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay

    def update_(self, network: nn.Module, step: int) -> None:
        """After the ``step``-th step, counted from 1."""
        pairs = list(zip(_tensors(self.model), _tensors(network), strict=True))
        averaged = [(own, new) for own, new in pairs if own.is_floating_point()]
        if averaged:
            own, new = map(list, zip(*averaged, strict=True))
            get_ema_multi_avg_fn(decay_at(self.decay, step))(own, new, step)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    """Every one once, under however many names it stands."""
    return chain(network.parameters(), network.buffers())
