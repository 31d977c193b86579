# SPDX-License-Identifier: Apache-2.0
"""All weights that are trained as one vector: an optimiser's step on it is a handful of operations."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ghostnets.upgrading.frozen import FrozenGhost, frozen_view, write_back_


class FlatWeights:
    """A network's frozen view, computed in ``dtype``, whose weights are kept and learn in float32."""

    value: Tensor
    """(n,) float32: change it, then ``publish_``."""
    learns: Tensor
    """(n,): 1 for a weight of the network, 0 for a number that only the view has."""

    def __init__(self, model: nn.Module, norms: Mapping[str, str], dtype: torch.dtype) -> None:
        self.model = model
        self.norms = norms
        self.view = frozen_view(model, norms, dtype)
        self.exact = frozen_view(model, norms, torch.float32)
        both = zip(self.view.parameters(), self.exact.parameters(), strict=True)
        pairs = sorted(((mine, exact) for mine, exact in both if mine.requires_grad), key=lambda p: p[0].dtype != dtype)
        self.trained = [exact for _, exact in pairs]
        self.value = _flat(self.trained)
        self.learns = _learning(self.exact, self.trained)
        narrow = [mine for mine, _ in pairs if mine.dtype == dtype]
        wide = [mine for mine, _ in pairs if mine.dtype != dtype]
        self.count = sum(p.numel() for p in narrow)
        self.shown = (self.value[: self.count].to(dtype), self.value[self.count :].clone())
        self.slopes = tuple(torch.zeros_like(shown) for shown in self.shown)
        for parameters, shown, slopes in zip((narrow, wide), self.shown, self.slopes, strict=True):
            _lay_(parameters, shown, slopes)

    def publish_(self) -> None:
        """Show ``value`` to the view."""
        self.shown[0].copy_(self.value[: self.count])
        self.shown[1].copy_(self.value[self.count :])

    def gradient(self, loss: Tensor) -> Tensor:
        """(n,) float32: the slope of ``loss``, which was computed through the view."""
        for slopes in self.slopes:
            slopes.zero_()
        loss.backward()
        return torch.cat([slopes.float() for slopes in self.slopes]) * self.learns

    def matrices(self, value: Tensor) -> list[Tensor]:
        """(filters, numbers of one): where the ordinary convolutions lie in ``value``, which has the weights' form."""
        split = zip(_split(value, self.trained), _split(self.learns, self.trained), strict=True)
        return [
            part.flatten(1) for part, learns in split
            if part.dim() == 4 and min(part.shape[:2]) > 1 and bool(learns.all())
        ]  # fmt: skip

    def written(self, value: Tensor) -> nn.Module:
        """A copy of the network with these weights."""
        result = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter, part in zip(self.trained, _split(value, self.trained), strict=True):
                parameter.copy_(part)
        write_back_(self.exact, result, self.norms)
        return result


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors]) if tensors else torch.zeros(0)


def _split(value: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = value.split([t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]


def _lay_(parameters: Sequence[nn.Parameter], values: Tensor, slopes: Tensor) -> None:
    """Let these parameters and their gradients lie in the two vectors."""
    for parameter, value, slope in zip(parameters, _split(values, parameters), _split(slopes, parameters), strict=True):
        parameter.data, parameter.grad = value, slope


def _learning(view: nn.Module, trained: Sequence[Tensor]) -> Tensor:
    masks = {
        id(parameter): mask
        for ghost in view.modules() if isinstance(ghost, FrozenGhost)
        for parameter, mask in zip(ghost.cheap.parameters(), ghost.learns(), strict=True)
    }  # fmt: skip
    return _flat([masks.get(id(parameter), torch.ones_like(parameter)) for parameter in trained])
