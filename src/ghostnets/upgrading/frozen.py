# SPDX-License-Identifier: Apache-2.0
"""A network to train through, with its norms frozen and folded on the fly: the same parameters, fewer passes.

On a CPU a training step of a Ghost network spends most of its time in batch norm, ReLU, concat and their
gradients, all bound by memory. With the statistics frozen a norm is a scale and a shift, and both go into the
convolution's weights (a few thousand numbers) before it runs, so gradients still reach every parameter and the
maps are passed over once. The two branches of a small Ghost module become two dense convolutions: the second
copies the intrinsic maps and makes the ghosts in one go, without a concat.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.blocks.ghost import GhostModule
from ghostnets.measure.trace import Trace

DENSE_LIMIT = 64  # intrinsic maps up to which a dense convolution beats depthwise and concat


class FrozenConvNorm(nn.Module):
    """A convolution and its norm as one convolution, computed in ``dtype``; both keep their own parameters."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, *, relu: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.relu = relu
        self.dtype = dtype

    def fused(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the norm's running statistics folded in, differentiable."""
        weight, bias = self.conv.weight, self.conv.bias
        if self.norm is None:
            return weight, bias
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale * norm.weight if norm.affine else scale
        mean = norm.running_mean if bias is None else norm.running_mean - bias
        shift = norm.bias - mean * scale if norm.affine else -mean * scale
        return weight * scale[:, None, None, None], shift

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.fused()
        conv = self.conv
        out = _convolve(x, weight, bias, conv, self.dtype)
        return F.relu(out, inplace=True) if self.relu else out


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    bias = None if bias is None else bias.to(dtype)
    return F.conv2d(x.to(dtype), weight.to(dtype), bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class Wide(nn.Module):
    """A layer computed in its own weights' precision, whatever its input's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.dtype = next(t.dtype for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.dtype))


class FrozenGhost(nn.Module):
    """A Ghost module's two branches, frozen; small ones make intrinsic maps and ghosts in one dense convolution."""

    copying: Tensor
    belongs: Tensor

    def __init__(self, module: GhostModule, dtype: torch.dtype) -> None:
        super().__init__()
        assert module.cheap_operation is not None
        conv, norm = module.primary_conv[0], module.primary_conv[1]
        cheap, cheap_norm = module.cheap_operation[0], module.cheap_operation[1]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(cheap, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(cheap_norm, nn.BatchNorm2d)
        self.primary = FrozenConvNorm(conv, norm, relu=module.relu, dtype=dtype)
        self.cheap = FrozenConvNorm(cheap, cheap_norm, relu=module.relu, dtype=dtype)
        self.out_channels = module.out_channels
        intrinsic = module.intrinsic_channels
        self.ghosts = self.out_channels - intrinsic
        size = module.cheap_size
        identity = torch.zeros(intrinsic, intrinsic, size, size)
        identity[torch.arange(intrinsic), torch.arange(intrinsic), size // 2, size // 2] = 1
        self.register_buffer("copying", identity, persistent=False)
        belongs = F.one_hot(torch.arange(self.ghosts) // (module.ratio - 1), intrinsic).float()
        self.register_buffer("belongs", belongs[:, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        intrinsic = self.primary(x)
        if intrinsic.shape[1] > DENSE_LIMIT:
            return torch.cat([intrinsic, self.cheap(intrinsic)[:, : self.ghosts]], 1)
        weight, bias = self.cheap.fused()
        assert bias is not None
        dense = torch.cat([self.copying, weight[: self.ghosts] * self.belongs])
        shift = F.pad(bias[: self.ghosts], (len(self.copying), 0))
        dtype = self.primary.dtype
        out = F.conv2d(intrinsic, dense.to(dtype), shift.to(dtype), padding=dense.shape[2] // 2)
        return F.relu(out, inplace=True) if self.cheap.relu else out


def frozen_view(model: nn.Module, norms: dict[str, str], dtype: torch.dtype) -> nn.Module:
    """A second network over the same parameters, its norms frozen and folded: train it and ``model`` has learnt.

    ``norms`` maps each convolution outside Ghost modules to the norm that alone reads it.
    """
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    view = copy.deepcopy(model, shared)
    # Where somebody looks inside a Ghost module, it stays: whose convolutions have norms is known by their names.
    whole = {
        name for name, module in model.named_modules()
        if isinstance(module, GhostModule) and module.cheap_operation is not None
        and not any(conv.startswith(f"{name}.") for conv in norms)
    }  # fmt: skip
    folded = {norms[name] for name in norms if type(view.get_submodule(name)) is nn.Conv2d}
    for name, module in list(view.named_modules()):
        if any(name.startswith(f"{ghost}.") for ghost in whole) or name in folded:
            continue
        if name in whole:
            assert isinstance(module, GhostModule)
            _put(view, name, FrozenGhost(module, dtype))
        elif type(module) is nn.Conv2d and module.padding_mode == "zeros":
            norm = view.get_submodule(norms[name]) if name in norms else None
            assert norm is None or isinstance(norm, nn.BatchNorm2d)
            _put(view, name, FrozenConvNorm(module, norm, relu=False, dtype=dtype))
            if norm is not None:
                _put(view, norms[name], nn.Identity())
        elif _is_layer_with_weights(module):
            _put(view, name, Wide(module))
    for module in view.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # pyright: ignore[reportArgumentType]
    return view.eval()


def _is_layer_with_weights(module: nn.Module) -> bool:
    """One that knows no mixed precision. A gather's buffers are whole numbers."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(t.is_floating_point() for t in own) and not list(module.children())


def norm_behind(recorded: Trace) -> dict[str, str]:
    """For every convolution the BatchNorm2d that alone reads it, where there is one that can be folded: neither of
    them is called elsewhere, and the norm keeps running statistics.
    """
    calls = Counter(id(recorded.module_of(node)) for node in recorded.nodes)
    found: dict[str, str] = {}
    for node in recorded.nodes:
        conv = recorded.module_of(node)
        if type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and len(node.users) == 1:
            (reader,) = node.users
            norm = recorded.module_of(reader)
            alone = calls[id(conv)] == calls[id(norm)] == 1
            if type(norm) is nn.BatchNorm2d and norm.running_mean is not None and alone:
                found[str(node.target)] = str(reader.target)
    return found


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def fast_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32."""
    # PyTorch has no public name for this question yet; without an answer float32 is always right.
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if native() else torch.float32
