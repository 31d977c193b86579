# SPDX-License-Identifier: Apache-2.0
"""How the weights of a recovery go down their slope.

The filters of an ordinary convolution see patches of neighbouring pixels, which are much alike: along a few directions
the loss is steep, along most it is flat, and Adam, which weighs every number for itself, cannot tell them apart.
Muon (K. Jordan et al., 2024; its rate for Adam's: J. Liu et al., arXiv:2502.16982) takes a step of one length in all
directions of such a matrix. Everything else, biases and the ghosts' own small filters, is Adam's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ghostnets.upgrading.flat import FlatWeights


class Descent:
    """Muon and Adam on one vector of weights, each on its part."""

    def __init__(self, weights: FlatWeights) -> None:
        self.gradient = torch.zeros_like(weights.value)
        self.all = _leaf(weights.value, self.gradient)
        self.slopes = weights.matrices(self.gradient)
        self.matrices = [_leaf(*pair) for pair in zip(weights.matrices(weights.value), self.slopes, strict=True)]
        self.adam = torch.optim.Adam([self.all], betas=(0.9, 0.99))
        self.muon = (
            torch.optim.Muon(self.matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw") if self.matrices else None
        )

    def step_(self, gradient: Tensor, rate: float) -> None:
        """Change the weights against ``gradient`` (n,)."""
        self.gradient.copy_(gradient)
        for optimizer in (self.muon, self.adam):
            if optimizer is None:
                continue
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            for slope in self.slopes:
                slope.zero_()  # Muon's part is done: Adam is to leave it alone

    def state_dict(self) -> dict[str, Any]:
        """What both remember."""
        return {"adam": self.adam.state_dict(), "muon": self.muon.state_dict() if self.muon else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.adam.load_state_dict(state["adam"])
        if self.muon:
            self.muon.load_state_dict(state["muon"])


def _leaf(value: Tensor, gradient: Tensor) -> nn.Parameter:
    """A parameter in the memory of ``value``, whose slope lies in that of ``gradient``."""
    parameter = nn.Parameter(value)
    parameter.grad = gradient
    return parameter
