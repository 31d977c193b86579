# SPDX-License-Identifier: Apache-2.0
"""A trained network that another one learns from, asked once about images that come again."""

from __future__ import annotations

import copy
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from ghostnets.training.pupil import Watched

Answers = tuple[Tensor, Tensor]
"""Logits (N, K), and what the classifier has read (N, D)."""


class Teacher:
    """Answers in the mode of inference, without gradients, by a copy of the network.

    With ``remembers`` the answers are kept in main memory, in the precision that they are given in: for every view N images
    times K classes (and D features, where they are compared) numbers of two bytes, or of four in float32.
    """

    def __init__(self, network: nn.Module, *, remembers: bool, features: bool) -> None:
        self.network = Watched(copy.deepcopy(network).eval().requires_grad_(False))
        self.remembers, self.features = remembers, features
        self._said: dict[Hashable, Answers] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor, sight: Hashable) -> Answers:
        """What it says of images (N, C, H, W); equal ``sight`` promises equal images."""
        if sight in self._said:
            logits, read = self._said[sight]
            return logits.to(images.device), read.to(images.device)
        logits, read = self.network(images)
        if not self.features:
            read = read.new_empty(len(read), 0)
        if self.remembers:
            self._said[sight] = logits.cpu(), read.cpu()
        return logits, read
