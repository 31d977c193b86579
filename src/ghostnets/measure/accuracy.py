# SPDX-License-Identifier: Apache-2.0
"""How often a classifier is right, and what it says: on any batches, changing nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure.modes import evaluating

Forward = Callable[[Tensor], Tensor]
"""From normalised images (N, C, H, W) to logits (N, classes): a network, or a runtime wrapped in a function."""

Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalised images (N, C, H, W) with their labels (N,)."""


def top1(forward: Forward, batches: Batches) -> float:
    """The percentage of all images whose highest logit is their label's.

    A module runs in evaluation mode and comes back in the modes it had.
    """
    right = total = 0
    for guesses, labels in _guesses(forward, batches):
        right += int((guesses == labels.to(guesses.device)).sum())
        total += len(labels)
    if not total:
        raise UserError("there is no image to measure the accuracy on")
    return 100 * right / total


def predictions(forward: Forward, batches: Batches) -> Tensor:
    """The class with the highest logit for every image (N,), in the order of the batches."""
    guesses = [guesses for guesses, _ in _guesses(forward, batches)]
    return torch.cat(guesses) if guesses else torch.empty(0, dtype=torch.long)


def _guesses(forward: Forward, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    networks = [forward] if isinstance(forward, nn.Module) else []
    for number, (inputs, labels) in enumerate(batches):
        with evaluating(*networks), torch.no_grad():  # not around the yield, where the caller's own code runs
            logits = forward(inputs)
        if logits.ndim != 2 or len(logits) != len(labels):
            raise UserError(f"a classifier should give {len(labels)} rows of logits, not shape {tuple(logits.shape)}")
        if len(labels) and int(labels.max()) >= logits.shape[1]:
            raise UserError(f"label {int(labels.max())} does not fit a network with {logits.shape[1]} outputs")
        if not torch.isfinite(logits).all():
            raise UserError(
                f"the network gives NaN or infinite logits in batch {number}: check its weights and its input"
            )
        yield logits.argmax(1), labels
