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
    """``model`` is the average so far of ``network``, which is followed: ``update_`` takes its last step in."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.places = list(zip(_places(self.model), _places(network), strict=True))

    def update_(self, step: int) -> None:
        """After the ``step``-th step, counted from 1."""
        pairs = [(getattr(*own), getattr(*new)) for own, new in self.places]
        averaged = [(own, new) for own, new in pairs if own.is_floating_point()]
        if averaged:
            own, new = map(list, zip(*averaged, strict=True))
            get_ema_multi_avg_fn(decay_at(self.decay, step))(own, new, step)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)


def _places(network: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where every tensor lies, once under however many names it stands. To look for them at every step would take longer
    than to average them; a module may put another tensor in the place.
    """
    seen: set[Tensor] = set()
    for module in network.modules():
        for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            if tensor not in seen:
                seen.add(tensor)
                yield module, name
