# SPDX-License-Identifier: Apache-2.0
"""Carry the weights over, in closed form: walk through the network once, layer after layer, on a copy.

Every layer is fitted on the input it really gets, that of the already converted network, towards what the
original's layer gave; a branch's last layer before an addition also makes up for what the other branch has
lost. So the error of one layer is corrected by the next instead of adding up.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ghostnets.blocks.conv import merged, set_merged_
from ghostnets.measure.trace import Trace
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
    spread,
    values_at,
)  # fmt: skip
from ghostnets.upgrading.joint import LARGEST, fit_jointly, wide_window
from ghostnets.upgrading.layout import gather_at, ghost_at
from ghostnets.upgrading.order import intrinsic_count, source_places
from ghostnets.upgrading.sites import Anatomy, Place
from ghostnets.upgrading.walk import Walk

ROW_BYTES = 112 << 20  # of the rows of one fit, but never fewer rows than four to an unknown
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
    pairings: list[Pairing] = []
    touched = False
    walk = Walk(anatomy.trace, original, student, chunks, seed=plan.seed)
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


def _sample(
    walk: Walk, place: Place, conv: nn.Conv2d, rows: int, wide: Window | None, margin: int
) -> tuple[Sample, Sample | None, list[Tensor]]:
    """Rows of this site on the student's input; with a ``wide`` window also rows of that one, ``margin`` away from the
    border; and the positions the first were drawn at, chunk by chunk: none in a chunk that is left out.
    """
    others = _other_summands(walk, place)
    source = place.conv.all_input_nodes[0]
    high, across = walk.recorded.shapes[place.conv][2:]
    window = window_of(conv)
    wanted = _rows(rows, conv.in_channels, window)
    chosen = walk.some(wanted)
    images = sum(chosen.values())
    per_image = min(high * across, -(-wanted // images))
    inside = max(high - 2 * margin, 0), max(across - 2 * margin, 0)
    if wide is not None and (inside[0] * inside[1] == 0 or conv.in_channels * _area(wide) > LARGEST):
        wide = None
    few = 0
    if wide is not None:
        few = min(inside[0] * inside[1], -(-_rows(rows // 2, conv.in_channels, wide) // images))
    near = _empty(images * per_image, window, conv)
    far = None if wide is None else _empty(images * few, wide, conv)
    drawn: list[Tensor] = []
    seen = 0
    for number, (original, student) in enumerate(walk.visit([source, *others], [place.linear, *others])):
        if number not in chosen:
            drawn.append(torch.empty(0, per_image, dtype=torch.long))
            continue
        target = original[place.linear]
        for other in others:
            target = target + (original[other] - student[other])
        positions = draw_positions(len(target), (high, across), per_image, walk.generator)
        _put_(near, seen * per_image, patches(student[source], positions, across, window), values_at(target, positions))
        drawn.append(positions)
        if far is not None and wide is not None:
            drawn_inside = draw_positions(len(target), inside, few, walk.generator)
            y, x = torch.div(drawn_inside, inside[1], rounding_mode="floor"), drawn_inside % inside[1]
            positions = (y + margin) * across + x + margin
            _put_(far, seen * few, patches(student[source], positions, across, wide), values_at(target, positions))
        seen += len(target)
    return near, far, drawn


def _empty(rows: int, window: Window, conv: nn.Conv2d) -> Sample:
    """Filled bit by bit: a list of parts and then their concatenation would take twice the memory."""
    weight = conv.weight
    return Sample(weight.new_empty(rows, conv.in_channels, _area(window)), weight.new_empty(rows, conv.out_channels))


def _put_(sample: Sample, start: int, rows: Tensor, wanted: Tensor) -> None:
    sample.rows[start : start + len(rows)] = rows
    sample.wanted[start : start + len(rows)] = wanted


def _area(window: Window) -> int:
    return window.kernel[0] * window.kernel[1]


def _rows(most: int, channels: int, window: Window) -> int:
    """As many rows as memory allows, but never fewer than four to an unknown."""
    unknowns = channels * _area(window)
    return max(1, min(most, max(4 * unknowns, ROW_BYTES // (4 * unknowns))))


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
    module = ghost_at(student, site.name)
    assert isinstance(start, nn.Conv2d)
    norm = original.get_submodule(site.norm) if site.norm else None
    gather = gather_at(student, site.name, site.norm)
    order = torch.arange(site.out_channels) if gather is None else gather.inverse  # of the original's channels
    intrinsic = intrinsic_count(site.out_channels, ratio)
    sources = torch.from_numpy(source_places(site.out_channels, ratio))
    wide = None if site.relu else wide_window(window_of(start), kernel)
    sample, inner, drawn = _sample(walk, place, start, rows, wide, kernel // 2)
    wanted = sample.wanted[:, order]
    weight, _ = merged(start, norm)
    flat = sample.rows.flatten(1)
    primary, shift = fit_primary(flat, wanted[:, :intrinsic], weight.flatten(1)[order[:intrinsic]], relu=site.relu)
    if inner is not None:
        gram, centre = spread(flat)
        of_ghosts = inner.wanted[:, order][:, intrinsic:]
        better = fit_jointly(primary, gram, inner.rows, of_ghosts, sources, window_of(start), kernel)
        primary, shift = better, shift + (primary - better) @ centre
    made = flat @ primary.T + shift
    _write_(module.primary_conv, primary, made, shift)
    error = _error(made, wanted[:, :intrinsic], relu=site.relu)

    seen: list[Tensor] = []
    source = place.conv.all_input_nodes[0]
    few = max(1, -(-GHOST_ROWS // sum(len(positions) for positions in drawn)))
    with torch.no_grad():
        for (_, env), positions in zip(walk.visit([source], []), drawn, strict=True):
            if not len(positions):
                continue
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
    kept = [positions for positions in drawn if len(positions)]
    parts = values.split([positions.numel() for positions in kept])
    return [part.view(*positions.shape, -1) for part, positions in zip(parts, kept, strict=True)]


def _pad(rows: Tensor, total: int) -> Tensor:
    """Zero rows for the ghosts that are computed and cut off."""
    return torch.cat([rows, rows.new_zeros(total - len(rows), *rows.shape[1:])])


def _error(made: Tensor, wanted: Tensor, *, relu: bool) -> float:
    """Squared error over variance, after the activation."""
    if relu:
        made, wanted = made.relu(), wanted.relu()
    variation = (wanted - wanted.mean(0)).square().sum().clamp_min(1e-20)
    return float((made - wanted).square().sum() / variation)


def _refit_conv_(walk: Walk, site: Site, place: Place, rows: int) -> None:
    """A convolution that stays is fitted too: its input has changed."""
    original, student = walk.networks
    start, conv = original.get_submodule(site.name), student.get_submodule(site.name)
    assert isinstance(start, nn.Conv2d)
    assert isinstance(conv, nn.Conv2d)
    norm = original.get_submodule(site.norm) if site.norm else None
    sample, *_ = _sample(walk, place, start, rows, None, 0)
    flat = sample.rows.flatten(1)
    weight, _ = merged(start, norm)
    if site.norm is None:
        _fit_plain_(conv, flat, sample.wanted, weight.flatten(1), relu=site.relu)
        return
    fitted, bias = fit_primary(flat, sample.wanted, weight.flatten(1), relu=site.relu)
    _write_(nn.Sequential(conv, student.get_submodule(site.norm)), fitted, flat @ fitted.T + bias, bias)


def _refit_linear_(walk: Walk, node: fx.Node) -> None:
    """The classifier, fitted to the original's logits; images are its rows."""
    original, student = (network.get_submodule(str(node.target)) for network in walk.networks)
    assert isinstance(original, nn.Linear)
    assert isinstance(student, nn.Linear)
    source = node.all_input_nodes[0]
    chosen = walk.some(max(4 * student.in_features, ROW_BYTES // (4 * student.in_features)))
    visited = enumerate(walk.visit([source], [node]))
    pairs = [(env[source], teacher[node]) for number, (teacher, env) in visited if number in chosen]
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
