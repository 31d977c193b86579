# SPDX-License-Identifier: Apache-2.0
"""How good a classifier is in figures: accuracy, log-likelihood, calibration, class by class."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure.accuracy import Batches
from ghostnets.measure.modes import evaluating
from ghostnets.records import ClassQuality, Quality

BINS = 15
"""Of the expected calibration error, equally wide (Guo et al., arXiv:1706.04599)."""


def tally(network: nn.Module, batches: Batches, classes: int) -> Tally:
    """The sums over all batches. The network runs in evaluation mode and is left as it was.

    Raises UserError where its logits do not fit the labels or are not finite.
    """
    found = Tally(classes)
    with evaluating(network), torch.no_grad():
        for inputs, labels in batches:
            found.add_(network(inputs), labels)
    return found


class Tally:
    """Sums over batches, from which the figures follow; those of several processes may be added."""

    def __init__(self, classes: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.float64)
        """Images by label and by answer."""
        self.sums = torch.zeros(2, dtype=torch.float64)
        """Of those with the label among the five likeliest, and of the log-likelihoods."""
        self.bins = torch.zeros(3, BINS, dtype=torch.float64)
        """Images, right answers and confidence, by confidence."""

    def add_(self, logits: Tensor, labels: Tensor) -> None:
        """One batch, (N, K) and (N,). Raises UserError where logits are not finite or a label has no logit."""
        classes = len(self.confusion)
        logits, labels = logits.detach().cpu().double(), labels.cpu()  # in this order: not all devices have doubles
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise UserError(f"a classifier of {classes} classes should not give logits of shape {tuple(logits.shape)}")
        if len(logits) != len(labels):
            raise UserError(f"a classifier should give {len(labels)} rows of logits, not shape {tuple(logits.shape)}")
        odd = labels[(labels < 0) | (labels >= classes)]
        if len(odd):
            raise UserError(f"label {int(odd[0])} does not fit a network with {classes} outputs")
        if not torch.isfinite(logits).all():
            raise UserError("the network gives NaN or infinite logits: check its weights and its input")
        confidence, answers = logits.softmax(1).amax(1), logits.argmax(1)  # which the softmax may round to equal
        right = (answers == labels).double()
        self.confusion.view(-1).index_add_(0, labels * classes + answers, torch.ones_like(right))
        among = (logits.topk(min(5, classes)).indices == labels[:, None]).any(1)
        self.sums += torch.stack([among.double().sum(), F.cross_entropy(logits, labels, reduction="sum")])
        where = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        self.bins.index_add_(1, where, torch.stack([torch.ones_like(right), right, confidence]))

    def vector(self) -> Tensor:
        """All sums in one, to be added to those of other processes."""
        return torch.cat([self.confusion.flatten(), self.sums, self.bins.flatten()])

    def take_(self, vector: Tensor) -> None:
        """The sums that ``vector`` holds."""
        sizes = [self.confusion.numel(), 2, self.bins.numel()]
        confusion, self.sums, bins = vector.double().cpu().split(sizes)
        self.confusion, self.bins = confusion.view_as(self.confusion), bins.view_as(self.bins)

    def quality(self, names: Iterable[str]) -> Quality:
        """The figures. Raises UserError where no image was counted."""
        images = int(self.confusion.sum())
        if not images:
            raise UserError("there is no image to measure the accuracy on")
        counts, right, confidence = self.bins
        right_each, of_label, of_answer = self.confusion.diag(), self.confusion.sum(1), self.confusion.sum(0)
        rows = [
            ClassQuality(
                name=name,
                images=int(of_label[k]),
                recall=100 * float(right_each[k] / of_label[k]) if of_label[k] else None,
                precision=100 * float(right_each[k] / of_answer[k]) if of_answer[k] else None,
            )
            for k, name in enumerate(names)
        ]
        return Quality(
            images=images,
            top1=100 * float(right_each.sum()) / images,
            top5=100 * float(self.sums[0]) / images,
            nll=float(self.sums[1]) / images,
            ece=float((right - confidence).abs().sum() / counts.sum()),
            classes=tuple(rows),
        )
