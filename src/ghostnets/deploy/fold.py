# SPDX-License-Identifier: Apache-2.0
"""Merge every batch norm into the convolution before it: fewer layers, the same function."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from ghostnets.blocks.conv import merged
from ghostnets.blocks.dfc_attention import Attention
from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.blocks.replace import replace_
from ghostnets.errors import GhostnetsError, UnsupportedLayer, UserError


def fold(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of ``model`` in evaluation mode in which no BatchNorm2d is left that directly follows a Conv2d.

    A norm is merged where it alone reads its convolution and each runs once; everything else stays as it is. Ghost
    modules are folded branch by branch. The copy is run on ``example`` (N, C, H, W) before and after.

    Raises UnsupportedLayer for a norm without running statistics, which in evaluation depend on the batch, and for
    hooks on a layer to be merged.
    """
    folded = copy.deepcopy(model).eval()
    before = _output(folded, example)
    for conv_name, norm_name in _pairs(folded):
        _merge_(folded, conv_name, norm_name)
    after = _output(folded, example)
    # Rounding adds up over the layers; half of the digits is far more than that, and far less than any mistake.
    allowed = torch.finfo(before.dtype).eps ** 0.5 * float(before.abs().max())
    if not torch.allclose(after, before, rtol=0, atol=allowed, equal_nan=True):
        off = float((after - before).abs().max())
        raise GhostnetsError(f"folding {type(model).__name__} changed its output by {off:g}, {allowed:g} is allowed")
    return folded


def _output(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(example)
    if not isinstance(output, Tensor):
        raise UserError(f"{type(model).__name__} must return one tensor to be folded")
    return output


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """The names of every convolution and the norm that alone reads it."""
    wrapped: nn.Module = nn.Sequential(
        copy.deepcopy(model)
    )  # a copy, because fx hangs a forward's constants on what it traces
    try:
        graph = _Tracer().trace(wrapped)
    except Exception as error:  # any user code may run here
        raise UserError(
            f"{type(model).__name__} cannot be traced: {error}; write its forward without branches"
        ) from error
    modules: dict[str, nn.Module] = dict(wrapped.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = [str(node.target) for node in graph.nodes if node.op == "get_attr"]  # weights used outside their layer
    pairs = list(_ghost_pairs(modules))
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        conv, norm = str(source.target), str(node.target)
        if (
            type(modules[conv]) is nn.Conv2d  # no subclass, whose weights may be computed
            and type(modules[norm]) is nn.BatchNorm2d
            and calls[conv] == calls[norm] == len(source.users) == 1
            and not any(name.startswith((f"{conv}.", f"{norm}.")) for name in read)
        ):
            pairs.append((conv, norm))
    return [(conv.removeprefix("0."), norm.removeprefix("0.")) for conv, norm in pairs]


def _ghost_pairs(modules: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    for name, module in modules.items():
        if isinstance(module, GhostModule):
            for branch in ("primary_conv", "cheap_operation"):
                if f"{name}.{branch}" in modules:
                    yield f"{name}.{branch}.0", f"{name}.{branch}.1"
        if isinstance(module, Attention):
            yield from ((f"{name}.{index}", f"{name}.{index + 1}") for index in range(0, len(module), 2))


class _Tracer(fx.Tracer):
    """Looks into every module but PyTorch's and our three that compute with sizes or ask for gradients."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, GhostModule | Attention | ChannelGather) or super().is_leaf_module(
            m, module_qualified_name
        )


def _merge_(model: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    for name, module in ((conv_name, conv), (norm_name, norm)):
        if module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001 - there is no public way to ask
            raise UnsupportedLayer(f"{name} has hooks, which merging {norm_name} into {conv_name} would silence")
    if norm.running_mean is None:
        raise UnsupportedLayer(f"{norm_name} keeps no running statistics, so it cannot be merged into {conv_name}")
    weight, bias = merged(conv, norm)
    conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
    replace_(model, norm, nn.Identity().eval())
