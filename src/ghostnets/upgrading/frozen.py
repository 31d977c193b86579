# SPDX-License-Identifier: Apache-2.0
"""A network to train in, with its norms frozen and merged: it computes the same in far fewer passes over memory.

On a CPU a training step of a Ghost network spends most of its time in batch norm, concat, gathers and their
gradients, and in casting and scaling thousands of small weights. Here the norms are merged into the convolutions
once, before training, which then goes on with the merged weights in half precision; afterwards they are written
back. The two branches of a small Ghost module become two dense convolutions: the second copies the intrinsic maps
and makes the ghosts in one go, in the order their readers expect, without a concat and a gather.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.blocks.conv import merged, set_merged_
from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.blocks.replace import replace_
from ghostnets.measure.trace import Trace
from ghostnets.upgrading.layout import gather_at

DENSE_LIMIT = 64  # intrinsic maps up to which a dense convolution beats depthwise and concat


class MergedConv(nn.Module):
    """A convolution with a norm merged in, computed in the precision of its own weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, *, relu: bool, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, groups
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return F.relu(out, inplace=True) if self.relu else out


class FrozenGhost(nn.Module):
    """A Ghost module's two branches, merged; small ones make intrinsic maps and ghosts in one dense convolution.

    A ``gather`` behind the module is carried out here as well.
    """

    def __init__(self, module: GhostModule, gather: ChannelGather | None) -> None:
        super().__init__()
        (conv, norm), (cheap, cheap_norm) = _branches(module)
        count = module.intrinsic_channels
        self.ghosts = module.out_channels - count
        self.source = torch.arange(self.ghosts) // (module.ratio - 1)
        self.primary = MergedConv(*merged(conv, norm), conv, relu=module.relu, groups=conv.groups)
        self.dense = count <= DENSE_LIMIT
        self.gather = None if self.dense else gather
        weight, bias = merged(cheap, cheap_norm)
        if self.dense:
            order = torch.arange(module.out_channels) if gather is None else gather.index
            self.places = torch.argsort(order)[count:]  # of the ghosts in the output
            copies = torch.zeros(count, count, *cheap.kernel_size)
            copies[range(count), range(count), cheap.kernel_size[0] // 2, cheap.kernel_size[1] // 2] = 1
            made = torch.zeros(self.ghosts, count, *cheap.kernel_size)
            made[range(self.ghosts), self.source] = weight[: self.ghosts, 0]
            weight, bias = torch.cat([copies, made])[order], F.pad(bias[: self.ghosts], (count, 0))[order]
        self.cheap = MergedConv(weight, bias, cheap, relu=module.relu, groups=1 if self.dense else cheap.groups)

    def forward(self, x: Tensor) -> Tensor:
        intrinsic = self.primary(x)
        made = self.cheap(intrinsic)
        if self.dense:
            return made
        out = torch.cat([intrinsic, made[:, : self.ghosts]], 1)
        return out if self.gather is None else self.gather(out)

    def learns(self) -> tuple[Tensor, Tensor]:
        """Of the cheap convolution's weight and bias the parts that belong to ghosts: 1, and 0 elsewhere."""
        weight, bias = self.cheap.weight, self.cheap.bias
        assert bias is not None
        if not self.dense:
            return torch.ones_like(weight), torch.ones_like(bias)
        inside, level = torch.zeros_like(weight), torch.zeros_like(bias)
        inside[self.places, self.source] = 1
        level[self.places] = 1
        return inside, level

    def write_back_(self, module: GhostModule) -> None:
        """Set the two branches of ``module`` to what these weights do."""
        (conv, norm), (cheap, cheap_norm) = _branches(module)
        set_merged_(conv, norm, self.primary.weight, self.primary.bias)
        weight, bias = self.cheap.weight, self.cheap.bias
        assert bias is not None
        if self.dense:
            old_weight, old_bias = merged(cheap, cheap_norm)  # ghosts that are computed and cut off stay as they were
            weight = torch.cat([weight[self.places, self.source][:, None], old_weight[self.ghosts :]])
            bias = torch.cat([bias[self.places], old_bias[self.ghosts :]])
        set_merged_(cheap, cheap_norm, weight, bias)


def _branches(module: GhostModule) -> tuple[tuple[nn.Conv2d, nn.BatchNorm2d], tuple[nn.Conv2d, nn.BatchNorm2d]]:
    assert module.cheap_operation is not None
    conv, norm = module.primary_conv[0], module.primary_conv[1]
    cheap, cheap_norm = module.cheap_operation[0], module.cheap_operation[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(cheap, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(cheap_norm, nn.BatchNorm2d)
    return (conv, norm), (cheap, cheap_norm)


def frozen_view(model: nn.Module, norms: Mapping[str, str], dtype: torch.dtype) -> nn.Module:
    """A copy of ``model`` in eval mode with merged weights of its own in ``dtype``; other layers keep their precision.

    ``norms`` maps each convolution outside Ghost modules to the norm that alone reads it; where a site was converted
    its gather stands in the norm's place.
    """
    view = copy.deepcopy(model).eval()
    for name in _ghosts(model, norms):
        module = view.get_submodule(name)
        assert isinstance(module, GhostModule)
        gather = gather_at(view, name, norms.get(name)) or gather_at(view, name.rpartition(".")[0], None)
        if gather is not None:
            replace_(view, gather, nn.Identity())  # first, for a large module keeps it inside
        replace_(view, module, FrozenGhost(module, gather).to(dtype))
    for name, norm_name in _convs(model, norms):
        conv = view.get_submodule(name)
        norm = view.get_submodule(norm_name) if norm_name else None
        assert isinstance(conv, nn.Conv2d)
        weight, bias = merged(conv, norm)
        bias = bias if norm_name or conv.bias is not None else None
        replace_(view, conv, MergedConv(weight, bias, conv, relu=False, groups=conv.groups).to(dtype))
        if norm is not None:
            replace_(view, norm, nn.Identity())
    parts = {
        id(part) for module in view.modules() if isinstance(module, FrozenGhost | MergedConv) for part in module.modules()
    }  # fmt: skip
    for module in view.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # pyright: ignore[reportArgumentType]
        if id(module) not in parts and _has_weights(module):
            module.register_forward_pre_hook(_widened)
    return view


@torch.no_grad()
def write_back_(view: nn.Module, model: nn.Module, norms: Mapping[str, str]) -> None:
    """Set ``model``, of which ``view`` is a frozen view, to what the view's weights do."""
    done: list[str] = []
    for name in _ghosts(model, norms):
        module, ghost = model.get_submodule(name), view.get_submodule(name)
        assert isinstance(module, GhostModule)
        assert isinstance(ghost, FrozenGhost)
        ghost.write_back_(module)
        done.append(f"{name}.")
    for name, norm_name in _convs(model, norms):
        conv, frozen = model.get_submodule(name), view.get_submodule(name)
        norm = model.get_submodule(norm_name) if norm_name else None
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(frozen, MergedConv)
        assert norm is None or isinstance(norm, nn.BatchNorm2d)
        set_merged_(conv, norm, frozen.weight, frozen.bias)
        done += [f"{name}.", f"{norm_name}."] if norm_name else [f"{name}."]
    for name, parameter in model.named_parameters():
        if not name.startswith(tuple(done)):
            parameter.copy_(view.get_parameter(name))


def _ghosts(model: nn.Module, norms: Mapping[str, str]) -> tuple[str, ...]:
    """The Ghost modules to merge as a whole. Where somebody looks inside one, it stays: its convolutions have norms."""
    return tuple(
        name for name, module in model.named_modules()
        if isinstance(module, GhostModule) and module.cheap_operation is not None
        and not any(conv.startswith(f"{name}.") for conv in norms)
    )  # fmt: skip


def _convs(model: nn.Module, norms: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """The convolutions outside those Ghost modules, each with the name of its norm. One that shares its weight stays."""
    inside = tuple(f"{name}." for name in _ghosts(model, norms))
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for name, module in model.named_modules():
        mergeable = type(module) is nn.Conv2d and module.padding_mode == "zeros" and uses[id(module.weight)] == 1
        if mergeable and not name.startswith(inside):
            yield name, norms.get(name)


def _has_weights(module: nn.Module) -> bool:
    """Whether it is a layer with numbers of its own. A gather's buffers are whole numbers."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(t.is_floating_point() for t in own) and not list(module.children())


def _widened(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs in the precision of the layer's own weights: it knows no mixed one."""
    dtype = next(t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def norm_behind(recorded: Trace) -> dict[str, str]:
    """For every convolution the BatchNorm2d that alone reads it, where there is one that can be merged: neither of
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


def fast_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32."""
    # PyTorch has no public name for this question yet; without an answer float32 is always right.
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if native() else torch.float32
