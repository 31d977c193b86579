# SPDX-License-Identifier: Apache-2.0
"""Batch norms that see the whole batch of all processes, on any device: PyTorch's own do so on accelerators alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ghostnets.blocks.replace import swapped


class SyncBatchNorm2d(nn.BatchNorm2d):
    """As ``nn.BatchNorm2d``, its mean and variance over the batches of all processes."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - the other's name for x
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = _summed(wide.new_tensor([x.numel() / x.shape[1]]))
        mean = _summed(wide.sum((0, 2, 3))) / total
        variance = _summed((wide - mean[:, None, None]).square().sum((0, 2, 3))) / total
        self._remember(mean.detach(), variance.detach() * (total / (total - 1)))
        learned = dict(self.named_parameters(recurse=False))  # both, none, or the weight alone
        factor = (variance + self.eps).rsqrt() * learned.get("weight", 1)
        offset = learned.get("bias", torch.zeros_like(mean))
        return torch.addcmul((offset - mean * factor)[:, None, None], wide, factor[:, None, None]).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; each one's gradient is the sum of all of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 # pyright: ignore[reportIncompatibleMethodOverride]
        out = x.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004 # pyright: ignore[reportIncompatibleMethodOverride]
        out = grad.clone()
        dist.all_reduce(out)
        return out


def _summed(x: Tensor) -> Tensor:
    out = _AllReduce.apply(x)
    assert isinstance(out, Tensor)
    return out


def synchronised(model: nn.Module) -> nn.Module:
    """A copy whose two-dimensional batch norms see the whole batch; parameters keep their names."""
    return swapped(model, lambda module: _synchronised(module) if type(module) is nn.BatchNorm2d else None)


def _synchronised(norm: nn.BatchNorm2d) -> SyncBatchNorm2d:
    """With the very tensors of ``norm``: their device, precision, and whether they learn."""
    made = SyncBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made.weight, made.bias = norm.weight, norm.bias
    made.running_mean, made.running_var = norm.running_mean, norm.running_var
    made.num_batches_tracked = norm.num_batches_tracked
    return made.train(norm.training)
