# SPDX-License-Identifier: Apache-2.0
"""How well every map of a network can be made from another one by a cheap filter, found from data.

Second moments are summed up image by image, in several passes where a network is too wide for one: memory does not grow
with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.inspecting.layers import Layer, Place, Stage, hooked, maps_of, run
from ghostnets.records import LayerMaps, Matches, StageMaps
from ghostnets.training.draw import generator
from ghostnets.upgrading.calibration import Chunks, Progress, quiet
from ghostnets.upgrading.fit import PairMoments, cheap_window, draw_positions, patches, values_at

ROWS = 24
"""Positions drawn of a map, an image."""

ENOUGH = 4096
"""Positions of all images together, where the maps have so many."""

SPARSE = 4
"""Positions for each weight of a filter; with fewer a small error says nothing."""

ERRORS = (0.01, 0.05, 0.1)
"""Normalised squared errors within which maps are counted."""

DEAD = 1e-10
"""Variance, as a part of the liveliest map's, up to which a map counts as constant."""

MEMORY = 10**9
"""Bytes of moments that one pass may hold."""


@dataclass(frozen=True)
class Question:
    """How well do the maps of ``target`` follow from those of ``source``, by one filter each?"""

    source: Place
    """What gives out the maps."""
    target: Place
    channels: int
    size: tuple[int, int]
    kernel: int

    def bytes(self) -> int:
        """Of its moments, and of what a chunk adds to them."""
        q = self.kernel**2 + 1
        return 12 * self.channels * q * (q + self.channels)


class Answer:
    """The moments gathered so far for one question."""

    def __init__(self, question: Question, seed: int) -> None:
        self.question, self.seed = question, seed
        self.moments = PairMoments(question.channels, question.kernel)
        self.finite = True
        self.calls = 0
        self.first: Tensor | None = None
        """Maps of the source that wait for the target's."""

    def see_(self, place: Place, maps: Tensor, rows: int) -> None:
        """Take in what a module of the question has given out."""
        if place == self.question.source:
            self.first = maps.detach().float()
        if place != self.question.target or self.first is None:
            return
        source, target, self.first = self.first, maps.detach().float(), None
        if not bool(torch.isfinite(source).all() and torch.isfinite(target).all()):
            self.finite = False
            return
        where = generator(self.seed, 0, self.calls)
        self.calls += 1
        height, width = self.question.size
        positions = draw_positions(len(target), (height, width), rows, where)
        seen = patches(source, positions, width, cheap_window(self.question.kernel))
        self.moments.add_(seen, values_at(target, positions))

    def matches(self) -> Matches:
        """For each map its best source; the layer's own question leaves the map itself out."""
        errors, variances = self.moments.residuals(), self.moments.variances().clamp_min(0)
        live = variances > DEAD * variances.max()
        if self.question.source == self.question.target:
            errors.fill_diagonal_(torch.inf)
        best = errors.min(0)
        mse = torch.where(live, best.values, 0.0)
        nmse = torch.where(live, best.values / variances.clamp_min(1e-300), 0.0).clamp_max(1.0)
        alone = ~torch.isfinite(mse)  # a layer of one map
        counted = nmse[live & ~alone]
        return Matches(
            source=tuple(torch.where(live & ~alone, best.indices, -1).tolist()),
            mse=tuple(_rounded(mse.masked_fill(alone, 0.0))),
            nmse=tuple(_rounded(nmse.masked_fill(alone, 1.0))),
            within=tuple(float((counted <= error).double().mean()) if len(counted) else 0.0 for error in ERRORS),
            dead=int((~live).sum()),
        )

    def rank(self) -> float:
        """The effective rank of the maps' covariance, exp of the entropy of its eigenvalues (Roy and Vetterli, EUSIPCO
        2007): how many maps there would be if all were alike in strength and none followed from others.
        """
        centre, count = self.question.kernel**2 // 2, self.moments.count
        mean = self.moments.total / count
        covariance = self.moments.cross[:, centre] / count - mean[:, None] * mean
        values = torch.linalg.eigvalsh((covariance + covariance.T) / 2).clamp_min(0)
        share = values / values.sum().clamp_min(1e-300)
        return float(torch.exp(-(share * share.clamp_min(1e-300).log()).sum()))


def redundancy(
    model: nn.Module,
    chunks: Chunks,
    layers: Sequence[Layer],
    stages: Sequence[Stage] = (),
    *,
    images: int,
    kernel: int = 3,
    seed: int = 0,
    milliseconds: Mapping[str, float] | None = None,
    progress: Progress = quiet,
) -> tuple[tuple[LayerMaps, ...], tuple[StageMaps, ...]]:
    """For each map of each layer the other map that predicts it best through one ``kernel``×``kernel`` filter and a bias,
    and for the last block's maps of each stage the same from the first block's.

    Raises UserError where there is no image, or the network does not take them.
    """
    if images < 1:
        raise UserError("there is no image to look at")
    if kernel < 1 or kernel % 2 == 0:
        raise UserError(f"kernel {kernel} of the cheap filters must be odd and positive")
    of_layers = [_question(layer.end, layer.end, layer.channels, layer.size, kernel) for layer in layers]
    of_stages = [
        _question(Place(stage.blocks[0]), Place(stage.blocks[-1]), stage.channels, stage.size, kernel)
        for stage in stages
    ]
    groups = list(_groups([*of_layers, *of_stages]))
    rows = max(ROWS, -(-ENOUGH // images))
    done: dict[Question, tuple[Matches | None, float, str]] = {}
    for number, group in enumerate(groups):
        answers = [Answer(question, seed) for question in group]
        seen = 0
        for chunk in chunks():
            _ask(model, chunk, answers, rows)
            seen += len(chunk)
            progress("redundancy", number * images + seen, images * len(groups))
        done |= {answer.question: _concluded(answer) for answer in answers}
    took = milliseconds or {}
    return (
        tuple(_layer(layer, took.get(layer.name), *done[question]) for layer, question in zip(layers, of_layers, strict=True)),
        tuple(_stage(stage, *done[question]) for stage, question in zip(stages, of_stages, strict=True)),
    )  # fmt: skip


def matches_of(
    model: nn.Module, chunks: Chunks, module: str, example: Tensor, *, images: int, kernel: int = 3, seed: int = 0
) -> Matches | None:
    """The same for any module that gives out maps; None where they say nothing."""
    shape = maps_of(model, module, example).shape
    answer = Answer(_question(Place(module), Place(module), shape[1], (shape[2], shape[3]), kernel), seed)
    for chunk in chunks():
        _ask(model, chunk, [answer], max(ROWS, -(-ENOUGH // images)))
    return _concluded(answer)[0]


def _question(source: Place, target: Place, channels: int, size: tuple[int, int], kernel: int) -> Question:
    """A map of one pixel has no neighbourhood to look at."""
    return Question(source, target, channels, size, 1 if size == (1, 1) else kernel)


def _groups(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """As many at a time as fit into memory; one, where even that does not."""
    group: list[Question] = []
    for question in dict.fromkeys(questions):
        if group and sum(one.bytes() for one in group) + question.bytes() > MEMORY:
            yield group
            group = []
        group.append(question)
    if group:
        yield group


def _ask(model: nn.Module, chunk: Tensor, answers: Sequence[Answer], rows: int) -> None:
    """Let the network look at the images once, and every answer at its maps."""
    readers: dict[Place, list[Answer]] = {}
    for answer in answers:
        for place in {answer.question.source, answer.question.target}:
            readers.setdefault(place, []).append(answer)

    def see(place: Place, _inputs: tuple[Any, ...], output: Any) -> None:
        for answer in readers.get(place, ()):
            answer.see_(place, output, rows)

    with hooked(model, [place.module for place in readers], see):
        run(model, chunk)


def _concluded(answer: Answer) -> tuple[Matches | None, float, str]:
    """Matches, effective rank, and what must be said of them."""
    question, count = answer.question, answer.moments.count
    if not answer.finite:
        return None, 0.0, "some of its maps are NaN or infinite"
    if count < SPARSE * (question.kernel**2 + 1):
        return None, 0.0, f"{count} positions are too few to tell: look at more images, or larger ones"
    matches = answer.matches()
    notes = ["its maps are single values, compared as they are"] if question.size == (1, 1) else []
    if matches.dead:
        notes.append(f"{matches.dead} of its maps are constant")
    if question.channels == 1:
        notes.append("it has only one map")
    return matches, answer.rank(), "; ".join(notes)


def _layer(layer: Layer, took: float | None, matches: Matches | None, rank: float, note: str) -> LayerMaps:
    return LayerMaps(
        name=layer.name, end=str(layer.end), channels=layer.channels, size=layer.size, kernel_size=_pair(layer.module.kernel_size),
        stride=_pair(layer.module.stride), groups=layer.module.groups, macs=layer.macs, milliseconds=took,
        matches=matches, rank=rank, note=note,
    )  # fmt: skip


def _stage(stage: Stage, matches: Matches | None, _rank: float, note: str) -> StageMaps:
    return StageMaps(
        name=stage.name, blocks=stage.blocks, channels=stage.channels, size=stage.size, matches=matches, note=note
    )


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[-1]


def _rounded(values: Tensor) -> Iterator[float]:
    """To four figures, which is more than the drawing of positions leaves certain."""
    return (float(f"{value:.4g}") for value in values.tolist())
