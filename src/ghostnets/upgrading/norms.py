# SPDX-License-Identifier: Apache-2.0
"""Give norms the statistics of the input they really get, without changing what they do.

A network trained with frozen norms carries stale statistics: harmless in eval mode, but the first step in
train mode would rescale every map (facts/upgrade-study.md: 87 % fell to 22 %).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ghostnets.measure.modes import evaluating
from ghostnets.upgrading.calibration import Chunks


@torch.no_grad()
def refresh_norms_(model: nn.Module, chunks: Chunks) -> None:
    """Set every BatchNorm2d's running statistics to those of its input; scale and shift make up for it."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine and m.track_running_stats]
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}
    handles = [norm.register_forward_pre_hook(_summing(sums[norm])) for norm in norms]
    try:
        with evaluating(model):
            for chunk in chunks():
                model(chunk)
    finally:
        for handle in handles:
            handle.remove()
    for norm in norms:
        count, total, square = sums[norm]
        if count[0]:
            mean = (total / count).float()
            variance = (square / count - (total / count) ** 2).clamp_min(1e-8).float()
            _restate_(norm, mean, variance)


def _summing(sums: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double()
        sums[0] += x.numel() // x.shape[1]
        sums[1] += x.sum((0, 2, 3))
        sums[2] += x.square().sum((0, 2, 3))

    return add


def _restate_(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    norm.bias.add_((mean - norm.running_mean) * scale)
    norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
