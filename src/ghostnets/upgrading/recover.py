# SPDX-License-Identifier: Apache-2.0
"""Win back what the closed form could not keep, with the original as the teacher.

The output of every block is pulled towards the original's, for all blocks at once, so that a block also learns to
mend what earlier ones have lost. Neither step needs labels. ``blocks`` is minutes; ``distil`` goes on for longer, with a
slower average of the weights and with blended images. A recipe may ask for the right answers too: the labels, and the
original's where there are none. Norms stay frozen and merged (see ``frozen``).
"""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure.accuracy import top1
from ghostnets.records import Plan, write_bytes
from ghostnets.training.augment import batches, blend, random_crop_flip
from ghostnets.training.average import decay_at
from ghostnets.training.data import Dataset, Images, normalise
from ghostnets.training.draw import generator, whole
from ghostnets.upgrading.calibration import Progress, calibration, quiet
from ghostnets.upgrading.convert import reordered
from ghostnets.upgrading.descent import Descent
from ghostnets.upgrading.flat import FlatWeights
from ghostnets.upgrading.frozen import fast_dtype, frozen_view, norm_behind
from ghostnets.upgrading.lesson import NO_LABEL, Lesson
from ghostnets.upgrading.norms import refresh_norms_
from ghostnets.upgrading.sites import find_sites

Mode = Literal["blocks", "distil"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every knob of a recovery. Loss = blocks · mean block error + answers · divergence from the right answers."""

    blocks: float
    """Weight of the squared error of block outputs, each over the original's variance."""
    answers: float
    """Weight of the answers' divergence (``lesson.divergence``). Its gradient is some 200 times larger than the blocks',
    and much noisier: more than a few hundredths undo what these have won."""
    blended: float
    """Share of every batch that is mixed with other images: on those the original is not sure of itself, as it is on
    images it was trained on."""
    learning_rate: float
    """Peak; the schedule is a linear warm-up and a cosine to zero."""
    warmup: int
    """Steps."""
    averaging: float
    """Decay of the weights' moving average, which is what is returned."""
    minutes: float
    """How long, where neither epochs nor minutes are asked for."""


# Chosen on held-out training images, ResNet-56 on CIFAR-10; benchmarks/upgrade_cifar.py measures what they reach.
RECIPES: Mapping[Mode, Recipe] = {
    "blocks": Recipe(blocks=1.0, answers=0.0, blended=0.0, learning_rate=1e-3, warmup=50, averaging=0.99, minutes=2),
    "distil": Recipe(blocks=1.0, answers=0.0, blended=0.5, learning_rate=1e-3, warmup=50, averaging=0.998, minutes=20),
}

TIMED_STEPS = (5, 25)  # the steps whose speed turns minutes into a number of steps; inside every warm-up
SAFETY = 0.95  # of the minutes asked for: evaluation and checkpoints take the rest
CHECKPOINT_SECONDS = 60.0
WATCHED = 2000  # held-out images looked at after every epoch
BATCH, SMALLEST_BATCH = 64, 16
PIXELS = 64 * 64 * 64  # of a batch, so that large images do not take more memory than small ones


@dataclass(frozen=True)
class Recovered:
    """A recovered network; ``epochs`` and ``seconds`` count interrupted runs too."""

    model: nn.Module
    epochs: float
    seconds: float


def recover(
    student: nn.Module,
    original: nn.Module,
    plan: Plan,
    dataset: Dataset,
    *,
    images: Images,
    held_out: Images,
    mode: Mode,
    epochs: float | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    recipe: Recipe | None = None,
    log: Callable[[dict[str, Any]], None] = lambda _: None,
    progress: Progress = quiet,
) -> Recovered:
    """Train a copy of the converted ``student`` to do on ``images`` what ``original`` does.

    ``batch_size`` None is 64, of large images fewer. ``held_out`` images are only watched. With a ``folder`` the state is kept there every minute and a second
    call goes on from it; with ``epochs`` it ends at the same weights as if it had never stopped.

    Raises UserError where the loss stops being finite, there are fewer than two images, both ``epochs`` and
    ``minutes`` are given, or there is no such ``mode``.
    """
    if mode not in RECIPES:
        raise UserError(f"recovery {mode!r} is not known: choose {' or '.join(RECIPES)}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch size {batch_size} must be at least 1")
    if epochs is not None and minutes is not None:
        raise UserError(f"epochs {epochs:g} and minutes {minutes:g} both say how long to train: give one of them")
    if len(images) < 2:
        raise UserError(f"{len(images)} training images are too few to recover with")
    batch_size = min(batch_size or _fitting(images, BATCH, SMALLEST_BATCH), len(images))
    recipe = recipe or RECIPES[mode]
    if images.labels is None:
        images = Images(pixels=images.pixels, labels=torch.full((len(images),), NO_LABEL))
    example = next(iter(calibration(dataset, images, 1, seed=seed)()))
    anatomy = find_sites(copy.deepcopy(original).eval(), example)
    norms, dtype = norm_behind(anatomy.trace), fast_dtype()
    weights = FlatWeights(copy.deepcopy(student), norms, dtype)
    first = next(iter(calibration(dataset, images, batch_size, seed=seed)()))  # the same one after a stop
    teacher = frozen_view(reordered(original, plan, anatomy), norms, dtype)
    lesson = Lesson(anatomy.trace, teacher, first.to(dtype), blocks=recipe.blocks, answers=recipe.answers)
    state = _State(weights, folder and folder / f"{mode}.ckpt")
    steps_per_epoch = max(1, len(images) // batch_size)
    if epochs is not None:
        state.total = max(1, round(epochs * steps_per_epoch))
    allowed = recipe.minutes if minutes is None else minutes

    started = time.perf_counter() - state.seconds
    for epoch, step, drawn, labels in _endless(images, batch_size, seed, state.step, steps_per_epoch):
        if state.total is not None and state.step >= state.total:
            break
        place = generator(seed, 1, epoch, step)
        shift = dataset.augment
        pixels = random_crop_flip(drawn, padding=shift.padding, flip=shift.flip, draw=whole(place, len(drawn)))
        x = blend(normalise(pixels, dataset.mean, dataset.std), recipe.blended, generator=place)
        labels[: round(recipe.blended * len(x))] = NO_LABEL
        x = x.contiguous(memory_format=torch.channels_last)
        loss = lesson.loss(weights.view, x.to(dtype), labels, state.step)
        if not math.isfinite(float(loss.detach())):
            raise UserError(f"{mode}: the loss is {float(loss.detach())} at step {state.step}: lower the learning rate")
        state.update(loss, recipe)
        state.seconds = time.perf_counter() - started
        if state.total is None:
            state.total = _budgeted(state, allowed)
        _report(progress, mode, state, allowed)
        if (step + 1) % steps_per_epoch == 0 or state.step == state.total:
            log(_epoch_record(mode, state, steps_per_epoch, batch_size, dataset, held_out))
        state.save_now_and_then()
    result = state.averaged()
    refresh_norms_(result, calibration(dataset, images, 500, seed=seed))
    return Recovered(result, state.step / steps_per_epoch, state.seconds)


def _fitting(images: Images, most: int, least: int) -> int:
    """As many images at a time as ``PIXELS`` allows."""
    return max(least, min(most, PIXELS // images.pixels[0, 0].numel()))


def _endless(
    images: Images, batch_size: int, seed: int, start: int, steps_per_epoch: int
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(epoch, step in it, pixels, labels), from the ``start``-th batch of the run on."""
    epoch, skip = divmod(start, steps_per_epoch)
    while True:
        drawn = batches(images, batch_size=batch_size, shuffle=True, drop_last=True, seed=seed, epoch=epoch, start=skip)
        for step, (pixels, labels) in enumerate(drawn, start=skip):
            yield epoch, step, pixels, labels
        epoch, skip = epoch + 1, 0


class _State:
    """What a run has come to: weights, their average, the optimiser's moments, step and time; kept in one file."""

    def __init__(self, weights: FlatWeights, path: Path | None) -> None:
        self.weights = weights
        self.path = path
        self.average = weights.value.clone()
        self.descent = Descent(weights)
        self.step = 0
        self.total: int | None = None
        self.seconds = 0.0
        self.saved = time.perf_counter()
        self.losses: list[float] = []
        self.rate = 0.0
        self.timed = 0.0
        if path is not None and path.exists():
            self._load(path)

    def update(self, loss: Tensor, recipe: Recipe) -> None:
        """One step down the loss, one step of the average."""
        warm = min(1.0, (self.step + 1) / recipe.warmup)
        cooled = 0.5 * (1 + math.cos(math.pi * self.step / self.total)) if self.total else 1.0
        self.rate = recipe.learning_rate * warm * cooled
        self.descent.step_(self.weights.gradient(loss), self.rate)
        self.weights.publish_()
        self.step += 1
        self.average.lerp_(self.weights.value, 1 - decay_at(recipe.averaging, self.step))
        self.losses.append(float(loss.detach()))
        if self.step == TIMED_STEPS[0]:
            self.timed = time.perf_counter()

    def averaged(self) -> nn.Module:
        """A copy of the network with the averaged weights."""
        return self.weights.written(self.average)

    def save_now_and_then(self) -> None:
        """Keep the state where a minute has passed, and as soon as the length of the run is known."""
        just_known = self.step == TIMED_STEPS[1]
        known = self.total is not None  # before, a second start would have to time the steps anew
        if self.path is not None and known and (just_known or time.perf_counter() - self.saved > CHECKPOINT_SECONDS):
            self._save(self.path)
            self.saved = time.perf_counter()

    def _save(self, path: Path) -> None:
        state = {
            "value": self.weights.value, "average": self.average, "descent": self.descent.state_dict(),
            "step": self.step, "total": self.total, "seconds": self.seconds,
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(path, buffer.getvalue())

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.weights.value.copy_(state["value"])
        self.weights.publish_()
        self.average = state["average"]
        self.descent.load_state_dict(state["descent"])
        self.step, self.total, self.seconds = state["step"], state["total"], state["seconds"]


def _budgeted(state: _State, minutes: float) -> int | None:
    """The number of steps that fit, once enough of them have been timed."""
    first, last = TIMED_STEPS
    if state.step < last:
        return state.step if state.seconds > minutes * 60 else None
    each = (time.perf_counter() - state.timed) / (last - first)
    return max(state.step, round(SAFETY * minutes * 60 / each))


def _report(progress: Progress, mode: Mode, state: _State, minutes: float) -> None:
    if state.total is None:
        progress(mode, round(state.seconds), round(minutes * 60))
    else:
        progress(mode, state.step, state.total)


def _epoch_record(
    mode: Mode, state: _State, steps_per_epoch: int, batch_size: int, dataset: Dataset, held_out: Images
) -> dict[str, Any]:
    recent = state.losses[-steps_per_epoch:]
    state.losses = []
    watched = held_out.subset(slice(0, WATCHED))
    accuracy = top1(state.averaged(), _normalised(watched, dataset)) if watched.labels is not None else None
    return {
        "step": mode, "event": "epoch", "epoch": state.step / steps_per_epoch, "loss": sum(recent) / len(recent),
        "held_out_top1": accuracy, "images_per_second": state.step * batch_size / max(state.seconds, 1e-9),
        "lr": state.rate,
    }  # fmt: skip


def _normalised(images: Images, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    size = _fitting(images, most=250, least=1)
    for pixels, labels in batches(images, batch_size=size, shuffle=False, drop_last=False, seed=0, epoch=0):
        x = normalise(pixels, dataset.mean, dataset.std).contiguous(memory_format=torch.channels_last)
        yield x, labels
