# SPDX-License-Identifier: Apache-2.0
"""The network that learns, with what its classifier reads laid open, so that a teacher's can be set beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure.modes import evaluating


def head_of(model: nn.Module) -> nn.Module:
    """The classifier: what timm's ``get_classifier`` names, else the last linear layer or convolution.

    Raises UserError where there is none.
    """
    named: Any = getattr(model, "get_classifier", None)
    head = named() if named is not None else None
    if isinstance(head, nn.Module) and any(True for _ in head.parameters()):
        return head
    found = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not found:
        raise UserError(f"{type(model).__name__} has no layer that could be its classifier")
    return found[-1]


class Watched(nn.Module):
    """A network that also returns what its classifier has read, (N, D).

    Calling it raises UserError where nothing has gone through that layer.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._read: Tensor | None = None
        head = head_of(network)
        self.head_name = next(name for name, module in network.named_modules() if module is head)
        self.hook = head.register_forward_pre_hook(self._note)

    def _note(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._read = inputs[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(x)
        read, self._read = self._read, None
        if read is None:
            raise UserError(
                f"{type(self.network).__name__} does not use what looks like its classifier, {self.head_name}: name the "
                "right layer by a method get_classifier"
            )
        return logits, read.flatten(1)


class Pupil(nn.Module):
    """Logits and, where features are compared, the classifier's input in the teacher's width; else None.

    Where the widths differ a linear layer that learns too stands between (Romero et al., arXiv:1412.6550).
    """

    def __init__(self, network: nn.Module, widths: tuple[int, int] | None) -> None:
        super().__init__()
        self.network = network
        self.watched = (Watched(network),) if widths is not None else ()  # in a tuple: not a second name of the weights
        own, teachers = widths or (0, 0)
        self.adapter: nn.Module = nn.Linear(own, teachers) if own != teachers else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.watched:
            return self.network(x), None
        logits, read = self.watched[0](x)
        return logits, self.adapter(read)


def widths(network: nn.Module, teacher: Watched, size: tuple[int, int, int]) -> tuple[int, int]:
    """What the classifiers of both read on one image (C, H, W), in channels. Changes nothing."""
    watched = Watched(network)
    try:
        with evaluating(watched, teacher), torch.no_grad():
            own, wanted = (model(torch.zeros(1, *size))[1].shape[1] for model in (watched, teacher))
    finally:
        watched.hook.remove()
    return int(own), int(wanted)
