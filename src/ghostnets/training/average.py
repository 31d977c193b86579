# SPDX-License-Identifier: Apache-2.0
"""A moving average of a network's weights, and of its norms' statistics."""

from __future__ import annotations

import copy

from torch import nn


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
        decay = decay_at(self.decay, step)
        new = network.state_dict()
        own = {id(tensor): (name, tensor) for name, tensor in self.model.state_dict(keep_vars=True).items()}
        for name, tensor in own.values():  # once each: a shared layer stands there under all its names
            if tensor.is_floating_point():
                tensor.lerp_(new[name], 1 - decay)
            else:
                tensor.copy_(new[name])
