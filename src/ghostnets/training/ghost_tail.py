# SPDX-License-Identifier: Apache-2.0
"""Ghost modules that train faster on a CPU: what follows their primary convolution as one function in C.

PyTorch makes some twenty passes over maps that have left the cache meanwhile, forward and backward; ``ghost_tail.c`` makes
six, and keeps two maps for the way back, not five (of ratio 2).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghostnets.blocks.ghost import GhostModule
from ghostnets.blocks.replace import swapped
from ghostnets.blocks.residual import BasicBlock
from ghostnets.training.ghost_primary import primary
from ghostnets.training.native import address, compiled

LARGEST = 7
"""Of the cheap filters' sides."""

FIGURES = 5
"""Of a norm: mean, variance, 1 / sqrt(variance + eps), scale, offset."""

_POINTER, _SIZE, _FLAG, _FIGURE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SHAPE = [*[_SIZE] * 6, _FLAG]
"""Images, height, width, maps, ghosts of each, outputs, side of the filters."""


@cache
def libraries() -> Mapping[torch.dtype, ctypes.CDLL]:
    """The C for maps of each type. Raises NoCompiler where there is none."""
    source = Path(__file__).with_suffix(".c")
    found = {torch.float32: compiled(source), torch.bfloat16: compiled(source, "BF16")}
    for library in found.values():
        library.ghost_forward.argtypes = [
            _POINTER, *_SHAPE, _POINTER, _POINTER, _FIGURE, _FIGURE, _FLAG, _FLAG, _POINTER, _POINTER, _POINTER, _POINTER
        ]  # fmt: skip
        library.ghost_backward.argtypes = [
            _POINTER, _POINTER, _POINTER, _POINTER, *_SHAPE, _POINTER, _POINTER, _FLAG, _FLAG, _POINTER, _POINTER, _POINTER, _POINTER
        ]  # fmt: skip
        library.ghost_forward.restype = library.ghost_backward.restype = None
    return found


def quickened(network: nn.Module) -> nn.Module:
    """A copy whose Ghost modules train by our C where they can; parameters keep their names.

    Raises NoCompiler where it cannot be compiled and some would.
    """
    return swapped(network, _quick)


def _quick(module: nn.Module) -> nn.Module | None:
    if type(module) is GhostModule and _fits(module):
        libraries()
        return QuickGhostModule(module)
    if type(module) is BasicBlock and type(module.bn2) is nn.Identity and type(module.act2) is nn.ReLU:
        return QuickBasicBlock(module)
    return None


class QuickGhostModule(GhostModule):
    """The very Ghost module, its parts and all; only the way through it differs while it trains."""

    def __init__(self, module: GhostModule) -> None:
        nn.Module.__init__(self)  # everything else is there already
        self.__dict__.update(module.__dict__)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """With a shortcut relu(what the module makes + shortcut)."""
        assert self.cheap_operation is not None
        norms = [norm for norm in (self.primary_conv[1], self.cheap_operation[1]) if isinstance(norm, nn.BatchNorm2d)]
        if not all(norm.training for norm in norms) or x.device.type != "cpu":
            return _joined(super().forward(x), shortcut)
        conv = self.primary_conv[0]
        assert isinstance(conv, nn.Conv2d)
        z = primary(conv, x)
        count = z.numel() // z.shape[1]
        if z.dtype not in libraries() or count < 2 or (shortcut is not None and shortcut.dtype != z.dtype):
            return _joined(self.with_ghosts(self.primary_conv[1:](z)), shortcut)
        affine = [norms[0].weight, norms[0].bias, norms[1].weight, norms[1].bias]
        eps = norms[0].eps, norms[1].eps
        out, *found = _Tail.apply(  # pyright: ignore[reportGeneralTypeIssues]
            z, self.cheap_operation[0].weight, *affine, shortcut, self.out_channels, *eps, self.relu
        )
        for norm, figures in zip(norms, found, strict=True):
            _remember_(norm, figures[0], figures[1] * (count / (count - 1)))
        return out


class QuickBasicBlock(BasicBlock):
    """The very block; a Ghost module that ends its branch adds the shortcut itself."""

    def __init__(self, block: BasicBlock) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(block.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.conv2, QuickGhostModule):
            return super().forward(x)
        out = self.act1(self.bn1(self.conv1(x)))
        return self.conv2(out, self.downsample(x))


def _joined(out: Tensor, shortcut: Tensor | None) -> Tensor:
    return out if shortcut is None else torch.relu(out + shortcut)


class _Tail(torch.autograd.Function):
    """z (N, C, H, W) -> maps and ghosts (N, outputs, H, W), and of both norms mean and variance (2, C), (2, ghosts * C)."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, z: Tensor, weight: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
        shortcut: Tensor | None, outputs: int, eps1: float, eps2: float, relu: bool,  # noqa: FBT001 - apply takes no names
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        z = z.contiguous(memory_format=torch.channels_last)
        n, c, h, w = z.shape
        side, ghosts = weight.shape[-1], len(weight) // c
        filters = _by_ghost(weight.detach().reshape(-1, side * side), c)
        affine = torch.stack([t.detach() for t in (weight1, bias1)])
        affine = torch.cat([affine, _by_ghost(torch.stack([weight2.detach(), bias2.detach()], 1), c).flatten(0, 1)])
        plus = shortcut.contiguous(memory_format=torch.channels_last) if shortcut is not None else None
        r = torch.empty(ghosts, n, h, w, c, dtype=z.dtype)
        y = torch.empty(n, outputs, h, w, dtype=z.dtype, memory_format=torch.channels_last)
        norms = torch.empty(1 + ghosts, FIGURES, c)
        shape = n, h, w, c, ghosts, outputs, side
        libraries()[z.dtype].ghost_forward(
            z.data_ptr(), *shape, filters.data_ptr(), affine.data_ptr(), eps1, eps2, relu, relu, address(plus), r.data_ptr(),
            y.data_ptr(), norms.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(z, r, filters, norms, y if plus is not None else None)
        ctx.relu, ctx.shape = relu, shape
        found = norms[0, :2], _by_map(norms[1:, :2])
        ctx.mark_non_differentiable(*found)
        return y, *found

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_figures: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, r, filters, norms, y = ctx.saved_tensors
        c, ghosts, _, side = ctx.shape[3:]
        dy = dy.to(z.dtype).contiguous(memory_format=torch.channels_last)
        dz, dfilters, daffine = torch.empty_like(z), torch.empty_like(filters), torch.empty(1 + ghosts, 2, c)
        dplus = torch.empty_like(dy) if y is not None else None
        libraries()[z.dtype].ghost_backward(
            z.data_ptr(), r.data_ptr(), address(y), dy.data_ptr(), *ctx.shape, filters.data_ptr(), norms.data_ptr(), ctx.relu,
            ctx.relu, dz.data_ptr(), address(dplus), dfilters.data_ptr(), daffine.data_ptr(),
        )  # fmt: skip
        dweight = _by_map(dfilters).t().reshape(ghosts * c, 1, side, side)
        return dz, dweight, *daffine[0], *_by_map(daffine[1:]), dplus, None, None, None, None


def _by_ghost(figures: Tensor, maps: int) -> Tensor:
    """(maps * ghosts, K), the ghosts of one map neighbours, as (ghosts, K, maps)."""
    return figures.reshape(maps, -1, figures.shape[1]).permute(1, 2, 0).contiguous()


def _by_map(figures: Tensor) -> Tensor:
    """(ghosts, K, maps) as (K, maps * ghosts), the ghosts of one map neighbours."""
    return figures.permute(1, 2, 0).reshape(figures.shape[1], -1)


def _fits(module: GhostModule) -> bool:
    """Whether it is what the C computes."""
    cheap = module.cheap_operation
    if cheap is None or module.cheap_size > LARGEST:
        return False
    kinds = [nn.Conv2d, nn.BatchNorm2d, *([nn.ReLU] if module.relu else [])]
    if any([type(part) for part in unit] != kinds for unit in (module.primary_conv, cheap)):
        return False
    norms = module.primary_conv[1], cheap[1]
    return all(
        isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.track_running_stats and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        for norm in norms
    )  # fmt: skip


@torch.no_grad()
def _remember_(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance, norm.momentum)
