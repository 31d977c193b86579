# SPDX-License-Identifier: Apache-2.0
"""How far answers are from the right ones: labels, smoothed or mixed, and what a teacher says."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def targets(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Labels (N,) as distributions (N, K): all but ``smoothing`` for the label, that spread over all classes
    (Szegedy et al., arXiv:1512.00567, section 7).
    """
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """From distributions (N, K), in nats an image."""
    return -(wanted * logits.float().log_softmax(1)).sum(1).mean()


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) of softmaxes at temperature T, in nats an image (Hinton et al., arXiv:1503.02531)."""
    student = (logits.float() / temperature).log_softmax(1)
    wanted = (teacher.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(student, wanted, log_target=True, reduction="batchmean")


def feature_error(features: Tensor, teacher: Tensor) -> Tensor:
    """Squared error over the teacher's own square, image by image, then the mean over images; both (N, D).

    Image by image, so that processes that share a batch come to what one would.
    """
    wanted = teacher.float()
    return ((features.float() - wanted).square().sum(1) / wanted.square().sum(1).clamp_min(1e-12)).mean()
