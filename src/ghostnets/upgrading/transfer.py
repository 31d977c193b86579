# SPDX-License-Identifier: Apache-2.0
"""Carry the weights over, in closed form: walk through the network once, layer after layer, on a copy.

Every layer is fitted on the input it really gets, that of the already converted network, towards what the
original's layer gave; a branch's last layer before an addition also makes up for what the other branch has
lost. So the error of one layer is corrected by the next instead of adding up.
"""

from __future__ import annotations

import operator
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from ghostnets.blocks.conv import merged, set_merged_
from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.measure.trace import Env, Trace, compute
from ghostnets.records import Decision, Pairing, Plan, Site
from ghostnets.upgrading.calibration import Chunks, Progress
from ghostnets.upgrading.fit import (
    RIDGE,
    Window,
    cheap_window,
    draw_positions,
    fit_ghosts,
    fit_primary,
    patches,
    values_at,
)  # fmt: skip
from ghostnets.upgrading.order import intrinsic_count, source_places
from ghostnets.upgrading.sites import Anatomy, Place

MEMORY_LIMIT = 768 << 20  # bytes of kept activations; beyond it they wait on disk
EXACT_LIMIT = 768 << 20  # bytes of activations that would be kept in full; beyond it in half precision
HALF_RANGE = (1e-3, 1e3)  # of the largest value: half precision ends at 65504, and its steps are never below 6e-8
GHOST_ROWS = 16000  # rows for the d² + 1 unknowns of a cheap filter


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
        walk.unfitted = set(steps)
        for number, node in enumerate(steps):
            if node in by_node:
                name = by_node[node]
                if decided[name].ratio > 1:
                    pairings.append(_fill_ghost_(walk, sites[name], anatomy.places[name], decided[name], rows))
                    touched = True
                elif touched:
                    _refit_conv_(walk, sites[name], anatomy.places[name], rows)
            elif touched:
                _refit_linear_(walk, node)
            walk.unfitted.remove(node)
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
        self.unfitted: set[fx.Node] = set()
        """Layers of the student whose weights are still to come: nothing may be computed through them."""
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
    """Pairs of environments by number; in half precision, then on disk, as they become too many for memory.

    Half precision rounds to 1 part in 2000: far below the errors that are mostly corrected, but not below those of a
    network that was a Ghost network all along.
    """

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Env, Env]] = {}
        self.sizes: dict[int, int] = {}
        self.folder: Path | None = None
        self.small: dict[fx.Node, bool] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def put(self, number: int, envs: tuple[Env, Env]) -> None:
        first, second = envs
        if _size(envs) * max(len(self), 1) > EXACT_LIMIT:
            first, second = ({node: self._narrow(node, value) for node, value in env.items()} for env in envs)
        self.sizes[number] = _size((first, second))
        held = sum(self.sizes[n] for n in self.kept if n != number)
        if held + self.sizes[number] > MEMORY_LIMIT:
            first, second = self._spill(number, 0, first), self._spill(number, 1, second)
        self.kept[number] = (first, second)

    def _narrow(self, node: fx.Node, value: Any) -> Any:
        """Half precision where the first chunk's values stay far from its limits."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if node not in self.small:
            self.small[node] = HALF_RANGE[0] < float(value.abs().max()) < HALF_RANGE[1]
        return value.half() if self.small[node] else value

    def get(self, number: int) -> tuple[Env, Env]:
        first, second = self.kept[number]
        return {n: _widen(v) for n, v in first.items()}, {n: _widen(v) for n, v in second.items()}

    def close(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _spill(self, number: int, side: int, env: Env) -> Env:
        """Tensors to one file; what stays behind are handles that read them back."""
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="ghostnets-walk-"))
        path = self.folder / f"{number}.{side}.safetensors"
        tensors = {str(i): v.contiguous() for i, v in enumerate(env.values()) if isinstance(v, Tensor)}
        save_file(tensors, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)  # what was read from the old file may still be mapped to it
        self.sizes[number] = 0
        return {n: _OnDisk(path, str(i)) if isinstance(v, Tensor) else v for i, (n, v) in enumerate(env.items())}


def _size(envs: tuple[Env, Env]) -> int:
    """Bytes; a tensor that both networks share counts once."""
    tensors = {id(v): v for env in envs for v in env.values() if isinstance(v, Tensor)}
    return sum(v.numel() * v.element_size() for v in tensors.values())


@dataclass(frozen=True)
class _OnDisk:
    path: Path
    key: str


def _widen(value: Any) -> Any:
    if isinstance(value, _OnDisk):
        with safe_open(value.path, framework="pt") as file:
            value = file.get_tensor(value.key)
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _sample(walk: Walk, place: Place, conv: nn.Conv2d, rows: int) -> tuple[Sample, list[Tensor]]:
    """Rows of this site on the student's input, and the positions they were drawn at, chunk by chunk."""
    others = _other_summands(walk, place)
    source = place.conv.all_input_nodes[0]
    size = walk.recorded.shapes[place.conv]
    per_image = min(size[2] * size[3], max(1, -(-rows // walk.count)))
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


def _other_summands(walk: Walk, place: Place) -> list[fx.Node]:
    """What is added to this site's value, if an addition is all that reads it: its loss can be made up for here.

    Only where all layers behind the other summand have been fitted: one that runs later will make up for this one.
    """
    if place.act is not None or len(place.linear.users) != 1:
        return []
    (reader,) = place.linear.users
    adds = reader.op in ("call_function", "call_method") and reader.target in (operator.add, torch.add, "add")
    if not adds or len(reader.all_input_nodes) != 2 or len(reader.args) != 2 or reader.kwargs:
        return []
    shapes = walk.recorded.shapes
    if shapes[reader] != shapes[place.linear]:
        return []  # each of this site's values is added to many
    others = [n for n in reader.all_input_nodes if n is not place.linear]
    return [n for n in others if not walk.unfitted & {n, *_ancestors(n)}]


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


def _fill_ghost_(walk: Walk, site: Site, place: Place, decision: Decision, rows: int) -> Pairing:
    original, student = walk.networks
    ratio, kernel = decision.ratio, decision.kernel
    start = original.get_submodule(site.name)
    module = ghost_module(student, site.name)
    assert isinstance(start, nn.Conv2d)
    norm = original.get_submodule(site.norm) if site.norm else None
    order = _places(student, site)
    intrinsic = intrinsic_count(site.out_channels, ratio)
    sample, drawn = _sample(walk, place, start, rows)
    wanted = sample.wanted[:, order]
    weight, _ = merged(start, norm)
    flat = sample.rows.flatten(1)
    primary, shift = fit_primary(flat, wanted[:, :intrinsic], weight.flatten(1)[order[:intrinsic]], relu=site.relu)
    made = flat @ primary.T + shift
    _write_(module.primary_conv, primary, made, shift)
    error = _error(made, wanted[:, :intrinsic], relu=site.relu)

    sources = torch.from_numpy(source_places(site.out_channels, ratio))
    seen: list[Tensor] = []
    source = place.conv.all_input_nodes[0]
    few = max(1, -(-GHOST_ROWS // walk.count))
    with torch.no_grad():
        for (_, env), positions in zip(walk.visit([source], []), drawn, strict=True):
            maps = module.primary_conv.eval()(env[source])
            seen.append(patches(maps[:, sources], positions[:, :few], site.out_size[1], cheap_window(kernel)))
    neighbours = torch.cat(seen)
    wanted = torch.cat([w[:, :few].flatten(0, 1) for w in _by_chunk(wanted, drawn)])
    cheap, cheap_bias = fit_ghosts(neighbours, wanted[:, intrinsic:], relu=site.relu)
    ghosts = torch.einsum("sgk,gk->sg", neighbours, cheap) + cheap_bias
    assert module.cheap_operation is not None
    cheap_conv = module.cheap_operation[0]
    assert isinstance(cheap_conv, nn.Conv2d)
    total = cheap_conv.out_channels
    _write_(module.cheap_operation, _pad(cheap, total), _pad(ghosts.T, total).T, _pad(cheap_bias[:, None], total)[:, 0])
    return Pairing(
        name=site.name,
        intrinsic=decision.channels[:intrinsic],
        source=tuple(decision.channels[place] for place in sources.tolist()),
        order=decision.channels,
        primary_error=error,
        ghost_error=_error(ghosts, wanted[:, intrinsic:], relu=site.relu),
    )


def _by_chunk(values: Tensor, drawn: list[Tensor]) -> list[Tensor]:
    """(S, n) rows back into (N, P, n) for every chunk."""
    parts = values.split([positions.numel() for positions in drawn])
    return [part.view(*positions.shape, -1) for part, positions in zip(parts, drawn, strict=True)]


def _places(student: nn.Module, site: Site) -> Tensor:
    """The reordered original's channel at each place of the module: another only where a gather restores the order."""
    behind = student.get_submodule(site.norm) if site.norm else student.get_submodule(site.name)
    behind = behind[1] if isinstance(behind, nn.Sequential) else behind
    return behind.inverse if isinstance(behind, ChannelGather) else torch.arange(site.out_channels)


def ghost_module(model: nn.Module, name: str) -> GhostModule:
    """The Ghost module at a site, looked up through the gather that may stand behind it."""
    module = model.get_submodule(name)
    module = module[0] if isinstance(module, nn.Sequential) else module
    assert isinstance(module, GhostModule)
    return module


def _pad(rows: Tensor, total: int) -> Tensor:
    """Zero rows for the ghosts that are computed and cut off."""
    return torch.cat([rows, rows.new_zeros(total - len(rows), *rows.shape[1:])])


def _error(made: Tensor, wanted: Tensor, *, relu: bool) -> float:
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
    weight, _ = merged(start, norm)
    if site.norm is None:
        _fit_plain_(conv, flat, sample.wanted, weight.flatten(1), relu=site.relu)
        return
    fitted, bias = fit_primary(flat, sample.wanted, weight.flatten(1), relu=site.relu)
    _write_(nn.Sequential(conv, student.get_submodule(site.norm)), fitted, flat @ fitted.T + bias, bias)


def _refit_linear_(walk: Walk, node: fx.Node) -> None:
    """The classifier, fitted to the original's logits; all images are its rows."""
    original, student = (network.get_submodule(str(node.target)) for network in walk.networks)
    assert isinstance(original, nn.Linear)
    assert isinstance(student, nn.Linear)
    source = node.all_input_nodes[0]
    pairs = [(env[source], teacher[node]) for teacher, env in walk.visit([source], [node])]
    seen, wanted = (torch.cat(part) for part in zip(*pairs, strict=True))
    _fit_plain_(student, seen, wanted, original.weight.detach(), relu=False, ridge=1e-2)


@torch.no_grad()
def _fit_plain_(
    layer: nn.Conv2d | nn.Linear, rows: Tensor, wanted: Tensor, start: Tensor, *, relu: bool, ridge: float = RIDGE
) -> None:
    """A layer without a norm. Without a bias too, every row is fitted with its opposite as well: the mean is then 0."""
    if layer.bias is None:
        fitted, _ = fit_primary(torch.cat([rows, -rows]), torch.cat([wanted, -wanted]), start, relu=False, ridge=ridge)
    else:
        fitted, bias = fit_primary(rows, wanted, start, relu=relu, ridge=ridge)
        layer.bias.copy_(bias)
    layer.weight.copy_(fitted.view_as(layer.weight))


@torch.no_grad()
def _write_(branch: nn.Sequential, weight: Tensor, made: Tensor, bias: Tensor) -> None:
    """Filters into the convolution, and the norm set so that it adds ``bias`` and nothing else.

    The norm's statistics are those of its real input (``made`` without the bias): with mean 0 and variance 1
    written instead, the first step in train mode would rescale every map.
    """
    conv, norm = branch[0], branch[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.affine:
        plain = made - bias
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(plain.mean(0) + (0 if conv.bias is None else conv.bias))
        norm.running_var.copy_(plain.var(0, unbiased=False).clamp_min(1e-8))
    set_merged_(conv, norm, weight, bias)
