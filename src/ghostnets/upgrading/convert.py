# SPDX-License-Identifier: Apache-2.0
"""Change the structure: Ghost modules in the planned places, and channels in their new order. Weights come later."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.errors import UnsupportedLayer, UserError
from ghostnets.measure.channels import Channels
from ghostnets.measure.trace import Trace
from ghostnets.records import Decision, Pairing, Plan
from ghostnets.upgrading.calibration import Chunks, Progress, as_chunks, first_image, quiet
from ghostnets.upgrading.layout import gather_at
from ghostnets.upgrading.sites import Anatomy, find_sites
from ghostnets.upgrading.transfer import transfer_

ROWS = 64_000  # of patches for one layer's fit; facts in docs/upgrade.md


@dataclass(frozen=True)
class Converted:
    """A converted network, and who makes whom in it with which error."""

    model: nn.Module
    pairings: tuple[Pairing, ...]


def convert(
    model: nn.Module,
    plan: Plan,
    images: Chunks | Tensor,
    *,
    ignored_layers: Collection[str] = (),
    rows: int = ROWS,
    progress: Progress = quiet,
) -> Converted:
    """Carry out ``plan`` on a copy of ``model``, in closed form, fitting on ``images``; no training.

    ``rows`` bounds the sampled rows of each least squares problem. Raises UserError where the plan is not one
    for this network.
    """
    chunks = as_chunks(images)
    anatomy = find_sites(copy.deepcopy(model).eval(), first_image(chunks), ignored_layers=ignored_layers)
    _check(plan, anatomy)
    original = reordered(model, plan, anatomy)
    student = restructure(original, edits(anatomy, plan.decisions))
    for decision, site in zip(plan.decisions, anatomy.sites, strict=True):
        gather = gather_at(student, site.name, site.norm)
        if gather is not None:
            gather.set_(torch.argsort(torch.tensor(decision.channels)))
    pairings = transfer_(student, original, anatomy, plan, chunks, rows=rows, progress=progress)
    _take_modes_(student, model)
    return Converted(student, pairings)


def _take_modes_(student: nn.Module, model: nn.Module) -> None:
    """Training or evaluation as in the original, module by module; what is new is in the mode of what it is part of."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in student.named_modules():
        known = name
        while known not in modes:
            known = known.rpartition(".")[0]
        module.training = modes[known]


def reordered(model: nn.Module, plan: Plan, anatomy: Anatomy) -> nn.Module:
    """A copy of ``model`` in eval mode that does the same, its channels in the order the plan's modules have."""
    content: dict[int, int] = {}
    for decision in plan.decisions:
        if decision.order in ("folded", "agreed"):
            labels = anatomy.channels.labels[anatomy.places[decision.name].linear]
            content |= {label: labels[channel] for label, channel in zip(labels, decision.channels, strict=True)}
    return reorder_channels(model, anatomy.trace, anatomy.channels, content).eval()


def _check(plan: Plan, anatomy: Anatomy) -> None:
    planned, found = [d.name for d in plan.decisions], [site.name for site in anatomy.sites]
    if planned != found:
        other = sorted(set(planned) ^ set(found))
        raise UserError(f"the plan is for another network: {other[0] if other else planned[0]!r} does not match")
    for decision, site in zip(plan.decisions, anatomy.sites, strict=True):
        if decision.decision == "ghost" and sorted(decision.channels) != list(range(site.out_channels)):
            raise UserError(f"the plan's channels for {site.name} are not an order of its {site.out_channels} channels")


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at ``name``, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@dataclass(frozen=True)
class Edit:
    """What ``restructure`` needs to know of one Ghost module: enough to rebuild it from a file."""

    name: str
    norm: str | None
    act: str | None
    relu: bool
    ratio: int
    kernel: int
    gather: bool


def edits(anatomy: Anatomy, decisions: Iterable[Decision]) -> tuple[Edit, ...]:
    """The structural edits of a plan's Ghost decisions."""
    sites = {site.name: site for site in anatomy.sites}
    return tuple(
        Edit(d.name, sites[d.name].norm, sites[d.name].act, sites[d.name].relu, d.ratio, d.kernel, d.order == "gather")
        for d in decisions
        if d.decision == "ghost"
    )


def restructure(model: nn.Module, changes: Sequence[Edit]) -> nn.Module:
    """A copy of ``model`` with fresh Ghost modules in the named places; their weights still mean nothing.

    The convolution's place takes the Ghost module, whose branches hold their own norm and ReLU, so those places
    become Identity (the norm's a gather where the order must be restored). A ReLU that is no module of its own
    stays in the network's forward, where it changes nothing any more.
    """
    changed = copy.deepcopy(model)
    for change in changes:
        conv = changed.get_submodule(change.name)
        assert isinstance(conv, nn.Conv2d)
        with torch.random.fork_rng(devices=[]):  # fresh modules draw weights, and the caller's draws shall not notice
            replace_module(changed, change.name, ghost_like(conv, change))
        after = ChannelGather(conv.out_channels) if change.gather else nn.Identity()
        if change.norm is not None:
            replace_module(changed, change.norm, after)
        elif change.gather:
            ghost = changed.get_submodule(change.name)
            replace_module(changed, change.name, nn.Sequential(ghost, after))
        if change.act is not None:
            replace_module(changed, change.act, nn.Identity())
    return changed


def ghost_like(conv: nn.Conv2d, change: Edit) -> GhostModule:
    """A Ghost module of this convolution's shape: its kernel, stride, padding and dilation go to the primary."""
    module = GhostModule(
        conv.in_channels,
        conv.out_channels,
        kernel_size=(conv.kernel_size[0], conv.kernel_size[1]),
        ratio=change.ratio,
        cheap_size=change.kernel,
        stride=(conv.stride[0], conv.stride[1]),
        padding=conv.padding if isinstance(conv.padding, str) else (conv.padding[0], conv.padding[1]),
        dilation=(conv.dilation[0], conv.dilation[1]),
        relu=change.relu,
    )
    return module.to(conv.weight.device, conv.weight.dtype).train(conv.training)


def reorder_channels(model: nn.Module, recorded: Trace, channels: Channels, content: Mapping[int, int]) -> nn.Module:
    """A copy whose channels stand in another order and whose output is the same.

    ``content[u] = v``: where class u stood, class v's channel stands now; a permutation of classes of equal
    signature. Every layer that writes, carries or reads them gets its weights permuted.

    Raises UnsupportedLayer where a module that is called more than once would need two orders.
    """
    changed = copy.deepcopy(model)
    moved = {u: v for u, v in content.items() if u != v}
    done: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    if not moved:
        return changed
    for node in recorded.nodes:
        module = recorded.module_of(node)
        if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d):
            continue
        read = _permutation(channels, node.all_input_nodes[0], moved)
        written = _permutation(channels, node, moved)
        name = str(node.target)
        if name in done:
            if not all(np.array_equal(a, b) for a, b in zip(done[name], (read, written), strict=True)):
                raise UnsupportedLayer(f"{name} is called more than once and would need two channel orders")
            continue
        done[name] = (read, written)
        if _is_identity(read) and _is_identity(written):
            continue  # also where a linear layer reads another dimension than the channels'
        _permute_(changed.get_submodule(name), torch.from_numpy(read), torch.from_numpy(written))
    return changed


def _permutation(channels: Channels, node: fx.Node, moved: Mapping[int, int]) -> NDArray[np.int64]:
    """For every position of this tensor the old position of the channel that stands there now."""
    labels = channels.labels[node]
    places = channels.positions(node)
    occurrence: dict[int, int] = {}
    result = np.empty(len(labels), dtype=np.int64)
    for position, label in enumerate(labels):
        nth = occurrence.get(label, 0)
        occurrence[label] = nth + 1
        result[position] = places[moved[label]][nth] if label in moved else position
    return result


def _is_identity(order: NDArray[np.int64]) -> bool:
    return np.array_equal(order, np.arange(len(order)))


def _permute_(module: nn.Module, read: Tensor, written: Tensor) -> None:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
    with torch.no_grad():
        for tensor in tensors.values():
            if tensor.dim() == 0:
                continue  # BatchNorm's num_batches_tracked
            value = tensor.index_select(0, written) if len(tensor) == len(written) else tensor
            if tensor.dim() > 1 and not depthwise:
                value = value.index_select(1, read)
            tensor.copy_(value)
