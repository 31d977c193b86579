# SPDX-License-Identifier: Apache-2.0
"""Carry the weights over, in closed form: walk through the network once, layer after layer, on a copy.

Every layer is fitted on the input it really gets, that of the already converted network, towards what the
original's layer gave; a branch's last layer before an addition also makes up for what the other branch has
lost. So the error of one layer is corrected by the next instead of adding up.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import operator

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from ghostnets.errors import UserError
from ghostnets.measure.trace import Env, Trace, compute
from ghostnets.records import Pairing, Plan, Site
from ghostnets.upgrading.convert import ghost_module
from ghostnets.upgrading.fit import (
    Window, cheap_window, draw_positions, fit_ghosts, fit_primary, patches, values_at,
)  # fmt: skip
from ghostnets.upgrading.look import Chunks, Progress
from ghostnets.upgrading.order import intrinsic_count, source_places
from ghostnets.upgrading.sites import Anatomy, Place

MEMORY_LIMIT = 384 << 20  # bytes of kept activations; beyond it they wait on disk
FEW_ROWS = 4  # rows per unknown below which a fit leans on its ridge


@dataclass(frozen=True)
class Sample:
    """Rows of one layer: what its filters see in the converted network, and what they should give."""

    rows: Tensor
    """(S, C, kernel area)"""
    wanted: Tensor
    """(S, n), before activation."""


def transfer_(
    student: nn.Module,
    original: nn.Module,
    anatomy: Anatomy,
    plan: Plan,
    chunks: Chunks,
    *,
    rows: int,
    progress: Progress,
) -> tuple[Pairing, ...]:
    """Fill the converted ``student`` (same graph, Ghost modules in place) from ``original``, in its channel order.

    ``rows`` bounds the sampled rows of each fit. Returns the errors of every Ghost module on these images.
    """
    decided = {d.name: d for d in plan.decisions}
    sites = {site.name: site for site in anatomy.sites}
    by_node = {anatomy.places[name].conv: name for name in sites}
    readers = _linear_layers(anatomy.trace)
    walk = Walk(anatomy.trace, original, student, chunks, seed=plan.seed)
    pairings: list[Pairing] = []
    touched = False
    try:
        steps = [n for n in anatomy.trace.nodes if n in by_node or n in readers]
        for number, node in enumerate(steps):
            if node in by_node:
                name = by_node[node]
                ratio = decided[name].ratio
                if ratio > 1:
                    pairings.append(_fill_ghost_(walk, sites[name], anatomy.places[name], ratio, decided[name].kernel, rows))
                    touched = True
                elif touched:
                    _refit_conv_(walk, sites[name], anatomy.places[name], rows)
            elif touched:
                _refit_linear_(walk, node)
            progress("closed form", number + 1, len(steps))
    finally:
        walk.close()
    return tuple(pairings)


def _linear_layers(recorded: Trace) -> set[fx.Node]:
    return {
        node for node in recorded.nodes
        if isinstance(recorded.module_of(node), nn.Linear) and len(recorded.shapes[node]) == 2
        and node is recorded.output
    }  # fmt: skip


class Walk:
    """Both networks on all chunks, computed as far as they have been asked for.

    Values that some later node still needs are kept, in memory while they are few and on disk beyond that.
    """

    def __init__(self, recorded: Trace, original: nn.Module, student: nn.Module, chunks: Chunks, *, seed: int) -> None:
        self.recorded = recorded
        self.networks = (original, student)
        self.generator = torch.Generator().manual_seed(seed)
        self.done: tuple[set[fx.Node], set[fx.Node]] = (set(), set())
        self.store = _Store()
        self.count = 0
        for chunk in chunks():
            self.store.put(len(self.store), ({recorded.input: chunk}, {recorded.input: chunk}))
            self.count += len(chunk)

    def close(self) -> None:
        """Remove whatever waits on disk."""
        self.store.close()

    def visit(self, student_nodes: list[fx.Node], original_nodes: list[fx.Node]) -> Iterator[tuple[Env, Env]]:
        """Chunk by chunk the values of these nodes in the original and in the student, among others."""
        for number in range(len(self.store)):
            envs = self.store.get(number)
            for env, network, done, wanted in zip(
                envs, self.networks, self.done, (original_nodes, student_nodes), strict=True
            ):
                for node in wanted:
                    _ensure(network, node, env, done)
            yield envs
            for env, done in zip(envs, self.done, strict=True):
                for node in [n for n in env if all(user in done for user in n.users)]:
                    del env[node]
            self.store.put(number, envs)


@torch.no_grad()
def _ensure(network: nn.Module, wanted: fx.Node, env: Env, done: set[fx.Node]) -> None:
    """Compute ``wanted`` and whatever it still lacks."""
    waiting = [wanted]
    while waiting:
        node = waiting[-1]
        missing = [n for n in node.all_input_nodes if n not in env]
        if node in env or not missing:
            if node not in env:
                env[node] = compute(network, node, env)
                done.add(node)
            waiting.pop()
        waiting.extend(missing if node not in env else [])


class _Store:
    """Pairs of environments by number; on disk once they are too many for memory."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Env, Env]] = {}
        self.sizes: dict[int, int] = {}
        self.folder: Path | None = None
        self.other: dict[int, tuple[dict[fx.Node, Any], dict[fx.Node, Any]]] = {}
        self.names: dict[int, tuple[list[fx.Node], list[fx.Node]]] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def put(self, number: int, envs: tuple[Env, Env]) -> None:
        size = sum(v.numel() * v.element_size() for env in envs for v in env.values() if isinstance(v, Tensor))
        self.sizes[number] = size
        held = sum(self.sizes[n] for n in self.kept if n != number)
        if held + size <= MEMORY_LIMIT:
            self.kept[number] = envs
            return
        self.kept.pop(number, None)
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="ghostnets-walk-"))
        tensors: dict[str, Tensor] = {}
        for side, env in enumerate(envs):
            tensors |= {f"{side}.{i}": v.contiguous() for i, v in enumerate(env.values()) if isinstance(v, Tensor)}
        self.names[number] = (list(envs[0]), list(envs[1]))
        self.other[number] = tuple(  # pyright: ignore[reportArgumentType]
            {n: v for n, v in env.items() if not isinstance(v, Tensor)} for env in envs
        )
        save_file(tensors, self.folder / f"{number}.safetensors")

    def get(self, number: int) -> tuple[Env, Env]:
        if number in self.kept:
            return self.kept[number]
        assert self.folder is not None
        tensors = load_file(self.folder / f"{number}.safetensors")
        first, second = (
            {n: tensors.get(f"{side}.{i}", self.other[number][side].get(n)) for i, n in enumerate(self.names[number][side])}
            for side in (0, 1)
        )
        return first, second

    def close(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _sample(walk: Walk, place: Place, conv: nn.Conv2d, rows: int) -> tuple[Sample, list[Tensor]]:
    """Rows of this site on the student's input, and the positions they were drawn at, chunk by chunk."""
    others = _other_summands(place)
    source = place.conv.all_input_nodes[0]
    size = walk.recorded.shapes[place.conv]
    per_image = max(1, -(-rows // walk.count))
    seen: list[Tensor] = []
    wanted: list[Tensor] = []
    drawn: list[Tensor] = []
    for original, student in walk.visit([source, *others], [place.linear, *others]):
        target = original[place.linear]
        for other in others:
            target = target + (original[other] - student[other])
        positions = draw_positions(len(target), (size[2], size[3]), per_image, walk.generator)
        seen.append(patches(student[source], positions, size[3], window_of(conv)))
        wanted.append(values_at(target, positions))
        drawn.append(positions)
    return Sample(torch.cat(seen), torch.cat(wanted)), drawn


def _other_summands(place: Place) -> list[fx.Node]:
    """What is added to this site's value, if an addition is all that reads it: its loss can be made up for here."""
    if place.act is not None or len(place.linear.users) != 1:
        return []
    (reader,) = place.linear.users
    if reader.target not in (operator.add, torch.add, "add") or len(reader.all_input_nodes) != 2 or reader.kwargs:
        return []
    return [n for n in reader.all_input_nodes if n is not place.linear and place.conv not in _ancestors(n)]


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def window_of(conv: nn.Conv2d) -> Window:
    """How this convolution reads its input; "same" padding must be even on both sides."""
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    if conv.padding == "valid":
        padding = (0, 0)
    elif conv.padding == "same":
        padding = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
    else:
        assert not isinstance(conv.padding, str)
        padding = (conv.padding[0], conv.padding[1])
    return Window((kernel[0], kernel[1]), (stride[0], stride[1]), padding, (dilation[0], dilation[1]))


def _fill_ghost_(walk: Walk, site: Site, place: Place, ratio: int, kernel: int, rows: int) -> Pairing:
    original, student = walk.networks
    start = original.get_submodule(site.name)
    module = ghost_module(student, site.name)
    assert isinstance(start, nn.Conv2d)
    norm = original.get_submodule(site.norm) if site.norm else None
    order = torch.arange(site.out_channels)
    if site.norm and hasattr(student.get_submodule(site.norm), "inverse"):
        order = student.get_submodule(site.norm).inverse  # pyright: ignore[reportAssignmentType]
    elif isinstance(student.get_submodule(site.name), nn.Sequential):
        order = student.get_submodule(site.name)[1].inverse  # pyright: ignore[reportIndexIssue]
    intrinsic = intrinsic_count(site.out_channels, ratio)
    sample, drawn = _sample(walk, place, start, rows)
    wanted = sample.wanted[:, order]
    weight, bias = fused_weight(start, norm)
    flat = sample.rows.flatten(1)
    primary, shift = fit_primary(flat, wanted[:, :intrinsic], weight.flatten(1)[order[:intrinsic]], relu=site.relu)
    made = flat @ primary.T + shift
    _write_(module.primary_conv, primary, made, shift)
    error = _error(made, wanted[:, :intrinsic], site.relu)

    sources = torch.from_numpy(source_places(site.out_channels, ratio))
    seen: list[Tensor] = []
    source = place.conv.all_input_nodes[0]
    with torch.no_grad():
        for (_, env), positions in zip(walk.visit([source], []), drawn, strict=True):
            maps = module.primary_conv.eval()(env[source])
            seen.append(patches(maps[:, sources], positions, site.out_size[1], cheap_window(kernel)))
    neighbours = torch.cat(seen)
    cheap, cheap_bias = fit_ghosts(neighbours, wanted[:, intrinsic:], relu=site.relu)
    ghosts = torch.einsum("sgk,gk->sg", neighbours, cheap) + cheap_bias
    assert module.cheap_operation is not None
    total = module.cheap_operation[0].out_channels
    _write_(module.cheap_operation, _pad(cheap, total), _pad(ghosts.T, total).T, _pad(cheap_bias[:, None], total)[:, 0])
    return Pairing(
        name=site.name,
        intrinsic=tuple(order[:intrinsic].tolist()),
        source=tuple(order[sources].tolist()),
        order=tuple(order.tolist()),
        primary_error=error,
        ghost_error=_error(ghosts, wanted[:, intrinsic:], site.relu),
    )


def _pad(rows: Tensor, total: int) -> Tensor:
    """Zero rows for the ghosts that are computed and cut off."""
    return torch.cat([rows, rows.new_zeros(total - len(rows), *rows.shape[1:])])


def _error(made: Tensor, wanted: Tensor, relu: bool) -> float:
    """Squared error over variance, after the activation."""
    if relu:
        made, wanted = made.relu(), wanted.relu()
    spread = (wanted - wanted.mean(0)).square().sum().clamp_min(1e-20)
    return float((made - wanted).square().sum() / spread)


def _refit_conv_(walk: Walk, site: Site, place: Place, rows: int) -> None:
    """A convolution that stays is fitted too: its input has changed."""
    original, student = walk.networks
    start, conv = original.get_submodule(site.name), student.get_submodule(site.name)
    assert isinstance(start, nn.Conv2d)
    assert isinstance(conv, nn.Conv2d)
    norm = original.get_submodule(site.norm) if site.norm else None
    sample, _ = _sample(walk, place, start, rows)
    flat = sample.rows.flatten(1)
    weight, _ = fused_weight(start, norm)
    fitted, bias = fit_primary(flat, sample.wanted, weight.flatten(1), relu=site.relu)
    if site.norm is None:
        with torch.no_grad():
            conv.weight.copy_(fitted.view_as(conv.weight))
            if conv.bias is not None:
                conv.bias.copy_(bias)
        return
    _write_(nn.Sequential(conv, student.get_submodule(site.norm)), fitted, flat @ fitted.T + bias, bias)


def _refit_linear_(walk: Walk, node: fx.Node) -> None:
    """The classifier, fitted to the original's logits; all images are its rows."""
    original, student = (network.get_submodule(str(node.target)) for network in walk.networks)
    assert isinstance(original, nn.Linear)
    assert isinstance(student, nn.Linear)
    source = node.all_input_nodes[0]
    pairs = [(env[source], teacher[node]) for teacher, env in walk.visit([source], [node])]
    seen, wanted = (torch.cat(part) for part in zip(*pairs, strict=True))
    weight, bias = fit_primary(seen, wanted, original.weight.detach(), relu=False, ridge=1e-2)
    with torch.no_grad():
        student.weight.copy_(weight)
        if student.bias is not None:
            student.bias.copy_(bias)


def fused_weight(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """The convolution's weight and bias with its norm folded in."""
    weight = conv.weight.detach()
    bias = conv.bias.detach() if conv.bias is not None else weight.new_zeros(conv.out_channels)
    if not isinstance(norm, nn.BatchNorm2d):
        return weight, bias
    if norm.running_mean is None or norm.running_var is None:
        raise UserError("a BatchNorm2d without running statistics cannot be folded; track them first")
    scale = torch.rsqrt(norm.running_var + norm.eps)
    shift = -norm.running_mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight.detach(), shift * norm.weight.detach() + norm.bias.detach()
    return weight * scale[:, None, None, None], bias * scale + shift


@torch.no_grad()
def _write_(branch: nn.Sequential, weight: Tensor, made: Tensor, bias: Tensor) -> None:
    """Filters into the convolution, and the norm set so that it adds ``bias`` and nothing else.

    The norm's statistics are those of its real input (``made`` without the bias): with mean 0 and variance 1
    written instead, the first step in train mode would rescale every map.
    """
    conv, norm = branch[0], branch[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    conv.weight.copy_(weight.view_as(conv.weight))
    plain = made - bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(plain.mean(0))
    norm.running_var.copy_(plain.var(0, unbiased=False).clamp_min(1e-8))
    norm.weight.copy_(torch.sqrt(norm.running_var + norm.eps))
    norm.bias.copy_(norm.running_mean + bias)
