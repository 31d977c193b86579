# SPDX-License-Identifier: Apache-2.0
"""The training loop: one, for one processor or many machines; Accelerate deals with the difference.

All that is random belongs to a place in the run (``draw.seed_of``), never to a generator that runs on: so a run that was
stopped goes on exactly where it was, and processes that share a batch draw what one would.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from ghostnets.compiler import NoCompiler
from ghostnets.errors import UserError
from ghostnets.measure.memory import peak_mib
from ghostnets.measure.quality import tally
from ghostnets.records import Quality, to_json
from ghostnets.training.average import Average
from ghostnets.training.batch import Batcher
from ghostnets.training.checkpoint import checkpoints, latest, save_checkpoint
from ghostnets.training.data import normalise
from ghostnets.training.draw import seed_of
from ghostnets.training.feed import Feed, MemoryFeed, Share, steps_per_epoch
from ghostnets.training.ghost_tail import quickened
from ghostnets.training.history import write_history
from ghostnets.training.losses import cross_entropy, distillation, feature_error
from ghostnets.training.optimizer import make_optimizer, parameter_groups
from ghostnets.training.pupil import Pupil, head_of, widths
from ghostnets.training.recipe import Recipe
from ghostnets.training.schedule import rate
from ghostnets.training.source import Source
from ghostnets.training.sync_norm import synchronised
from ghostnets.training.teacher import Teacher

CHECKPOINTS = "checkpoints"
CHECKPOINT_SECONDS = 60.0
TEST_BATCH = 250

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """``model`` is the average where the recipe asks for one; ``seconds`` count interrupted runs too."""

    model: nn.Module
    finished: bool
    """Or stopped at the ``max_steps`` of the run."""
    epochs: float
    seconds: float
    history: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run needs beside the network and the recipe."""

    source: Source
    folder: Path
    seed: int = 0
    teacher: nn.Module | None = None
    watch: bool = True
    """Whether the test images are looked at after every epoch: fair only where they are held-out training images."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    max_steps: int | None = None
    """Stop after so many, as if interrupted."""
    log: Callable[[dict[str, Any]], None] = lambda _: None
    progress: Progress = lambda _what, _done, _total: None


def train(network: nn.Module, recipe: Recipe, run: Run, accelerator: Accelerator) -> Trained:
    """Train a copy of ``network``; a second call with the same folder goes on from its last checkpoint.

    Raises UserError where the loss stops being finite, the images do not fill a batch, a batch cannot be shared evenly,
    or the folder's checkpoints are of another run.
    """
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        loop = _Loop(network, recipe, run, accelerator)
        loop.resume()
        for drawn in loop.batches():
            loop.step(drawn)
            ended = loop.step_count == loop.total or loop.step_count % loop.steps == 0
            if ended:
                loop.end_epoch()
            if ended or loop.due():
                loop.save()
            if loop.step_count in {loop.total, run.max_steps}:
                break
        return loop.trained()


def check_shares(images: int, recipe: Recipe, processes: int) -> None:
    """Raises UserError where the images do not fill a batch, or a batch cannot be shared evenly."""
    parts = processes * recipe.grad_accum_steps
    if recipe.batch_size % parts:
        raise UserError(
            f"batch_size {recipe.batch_size} cannot be shared by {processes} processes in {recipe.grad_accum_steps} parts "
            f"each: make it a multiple of {parts}"
        )
    if (recipe.mixup or recipe.cutmix) and processes > 1 and recipe.batch_size // processes % 2:
        raise UserError(
            f"batch_size {recipe.batch_size} leaves {processes} processes an odd share each, and images are mixed in pairs: "
            f"make it a multiple of {2 * parts}"
        )
    steps_per_epoch(images, recipe.batch_size)


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Every setting that is not the same, with both values."""
    return [f"{key} {there.get(key)}, not {value}" for key, value in asked.items() if there.get(key) != value]


class _Loop:
    """One run: what it is made of, and what it has come to."""

    def __init__(self, network: nn.Module, recipe: Recipe, run: Run, accelerator: Accelerator) -> None:
        self.recipe, self.run, self.accelerator = recipe, run, accelerator
        self.share = Share(accelerator.process_index, accelerator.num_processes)
        check_shares(len(run.source.train), recipe, accelerator.num_processes)
        self.feed: Feed = run.source.train
        self.steps = steps_per_epoch(len(self.feed), recipe.batch_size)
        self.total = max(1, round(recipe.epochs * self.steps))
        self.given = network
        self.network = self._own(network)
        self.network.train()
        self.average = Average(self.network, recipe.model_ema_decay) if recipe.model_ema_decay is not None else None
        self.head = head_of(self.network)
        device = accelerator.device
        compared = recipe.kd_features > 0
        repeats = 0 < recipe.kd_views < recipe.epochs
        self.teacher = Teacher(run.teacher, remembers=repeats, features=compared) if run.teacher is not None else None
        both = (
            widths(self.network, self.teacher.network, run.source.input_size)
            if self.teacher is not None and compared
            else None
        )
        torch.manual_seed(seed_of(run.seed, 6))  # of the adapter's first weights
        self.pupil = Pupil(self.network, both)
        if recipe.channels_last:
            self.pupil.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.teacher is not None:
            self.teacher.network.to(device)
        groups = parameter_groups(self.network, self.head, recipe)
        groups += parameter_groups(self.pupil.adapter, self.pupil.adapter, recipe)
        self.pupil.to(device)
        self.ready: Any
        self.optimizer: Any
        with warnings.catch_warnings():  # Accelerate has no newer word for it
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            self.ready, self.optimizer = accelerator.prepare(self.pupil, make_optimizer(groups, recipe))
        if self.average is not None:
            self.average.model.to(device)
        self.batcher = Batcher(
            recipe, self.feed.augment, run.source.mean, run.source.std, len(run.source.classes), self.share, run.seed,
            in_memory=isinstance(self.feed, MemoryFeed),
        )  # fmt: skip
        self.step_count = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.identity = self._identity()
        self.started = self.saved = time.perf_counter()

    def _own(self, network: nn.Module) -> nn.Module:
        """A copy that trains as the recipe says."""
        recipe = self.recipe
        if recipe.sync_bn:
            return synchronised(network)
        if recipe.native and recipe.channels_last and not recipe.compile and self.accelerator.device.type == "cpu":
            try:
                return quickened(network)
            except NoCompiler as error:
                self.run.log(
                    {"event": "note", "text": f"Ghost modules train by PyTorch's own functions, slower: {error}"}
                )
        return copy.deepcopy(network)

    # --- one step

    def batches(self) -> Iterator[Any]:
        """Drawn images from where the run is."""
        if self.step_count >= self.total:
            return iter(())
        return self.feed.training(self.recipe, self.share, seed=self.run.seed, start=self.step_count)

    def step(self, drawn: Any) -> None:
        """Forward and backward over the parts of the batch, then the weights and their average move."""
        recipe = self.recipe
        epoch = self.step_count / self.steps
        torch.manual_seed(seed_of(self.run.seed, 2, self.step_count, self.share.rank))
        if recipe.head_epochs:
            self._set_modes(epoch)
        x, wanted = self.batcher(drawn)
        for group in self.optimizer.param_groups:
            frozen = epoch < recipe.head_epochs and not group["head"]
            group["lr"] = 0.0 if frozen else rate(recipe, epoch) * group["scale"]
        parts = list(zip(x.chunk(recipe.grad_accum_steps), wanted.chunk(recipe.grad_accum_steps), strict=True))
        sight = self.batcher.sight(drawn)
        total = 0.0
        for k, (images, answers) in enumerate(parts):
            last = k == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.ready):
                loss = self._loss(images, answers, (k, *sight))
                self.accelerator.backward(loss / len(parts))
            total += float(loss.detach()) / len(parts)
        self._check(total)
        self._keep_frozen(epoch)
        if recipe.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.ready.parameters(), recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_count += 1
        if self.average is not None:
            self.average.update_(self.step_count)
        self.losses.append(total)
        self.run.progress("training", self.step_count, self.total)

    def _loss(self, images: Tensor, answers: Tensor, sight: tuple[Any, ...]) -> Tensor:
        recipe = self.recipe
        images, answers = images.to(self.accelerator.device), answers.to(self.accelerator.device)
        if recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits, read = self.ready(images)
        loss = cross_entropy(logits, answers)
        if self.teacher is None:
            return loss
        with self.accelerator.autocast():
            said, wanted = self.teacher(images, sight)
        loss = (1 - recipe.kd_alpha) * loss + recipe.kd_alpha * distillation(logits, said, recipe.kd_temperature)
        if read is not None:
            loss = loss + recipe.kd_features * feature_error(read, wanted)
        return loss

    def _set_modes(self, epoch: float) -> None:
        """While the classifier learns alone, what it reads is what a trained network would give: norms as they are."""
        self.network.train()
        if epoch < self.recipe.head_epochs:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the kinds of all dimensions
                    module.eval()

    def _keep_frozen(self, epoch: float) -> None:
        """Where the classifier learns alone, no momentum gathers for the rest."""
        if epoch < self.recipe.head_epochs:
            for group in self.optimizer.param_groups:
                if not group["head"]:
                    for parameter in group["params"]:
                        parameter.grad = None

    def _check(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        kept = checkpoints(self.run.folder / CHECKPOINTS)
        last = f"the last good checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
        raise UserError(
            f"the loss is {loss} at step {self.step_count} (epoch {self.step_count / self.steps:.2f}): lower lr "
            f"{self.recipe.lr:g}, or clip the gradient; {last}"
        )

    # --- epochs and checkpoints

    def end_epoch(self) -> None:
        """Write down what the epoch was like."""
        self.seconds += time.perf_counter() - self.started
        self.started = time.perf_counter()
        mean = torch.tensor(sum(self.losses) / len(self.losses), dtype=torch.float64)
        if self.share.world > 1:
            mean = self.accelerator.reduce(mean.to(self.accelerator.device), reduction="mean")
        row: dict[str, Any] = {
            "epoch": self.step_count / self.steps,
            "step": self.step_count,
            "lr": rate(self.recipe, (self.step_count - 1) / self.steps),
            "loss": float(mean),  # pyright: ignore[reportArgumentType] - a tensor came in, so one comes out
        }
        self.losses = []
        if self.run.watch:
            found = assess(self._result(), self.run.source, self.accelerator, self.share, precise=False)
            row |= {"top1": found.top1, "nll": found.nll}
        row |= {
            "images_per_second": round(self.step_count * self.recipe.batch_size / max(self.seconds, 1e-9), 1),
            "seconds": round(self.seconds, 1),
            "memory_mib": peak_mib(),
        }
        self.history.append(row)
        if self.accelerator.is_main_process:
            write_history(self.run.folder, self.history)
        self.run.log({"event": "epoch", **row})

    def due(self) -> bool:
        """Whether enough time has passed since the state was kept, or the run is about to stop."""
        late = time.perf_counter() - self.saved > self.run.checkpoint_seconds
        return late or self.step_count == self.run.max_steps

    def save(self) -> None:
        """Write a checkpoint; every process calls this, and the first one writes."""
        self.saved = time.perf_counter()
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "run": self.identity, "step": self.step_count, "pupil": self.pupil.state_dict(),
            "average": self.average.model.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler is not None else None,
            "losses": self.losses, "history": self.history,
            "seconds": self.seconds + time.perf_counter() - self.started,
        }  # fmt: skip
        save_checkpoint(self.run.folder / CHECKPOINTS, self.step_count, state)

    def resume(self) -> None:
        """Go on from the last checkpoint, where there is one. Raises UserError where it is another run's."""
        state, refused = latest(self.run.folder / CHECKPOINTS)
        for sentence in refused:
            self.run.log({"event": "note", "text": f"{sentence}; going on from the one before it"})
        if state is None:
            return
        there = {**to_json(Recipe()), **state["run"]}  # what came later was what it is unless it is set
        if odd := differences(there, self.identity):
            raise UserError(
                f"{self.run.folder} holds another run ({'; '.join(odd)}): go on with what was asked there, or choose "
                "another folder"
            )
        self.pupil.load_state_dict(state["pupil"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step_count, self.seconds = state["step"], state["seconds"]
        self.losses, self.history = state["losses"], state["history"]
        if self.accelerator.is_main_process and self.history:
            write_history(self.run.folder, self.history)
        self.started = time.perf_counter()
        self.run.log({"event": "resume", "step": self.step_count})
        self.run.progress("training", self.step_count, self.total)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be gone on with."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}
        return {
            **to_json(self.recipe), "network": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
            "data": self.run.source.fingerprint(self.share.world), "seed": self.run.seed,
        }  # fmt: skip

    def _result(self) -> nn.Module:
        """What has come of it so far, with the first process's statistics in all of them."""
        found = self.average.model if self.average is not None else self.network
        broadcast([*found.buffers()])
        return found

    def trained(self) -> Trained:
        """What has come of it."""
        self.accelerator.wait_for_everyone()
        model = copy.deepcopy(self.given)  # with plain norms, and without a hook
        model.load_state_dict({name: tensor.cpu() for name, tensor in self._result().state_dict().items()})
        return Trained(
            model=model.eval(), finished=self.step_count >= self.total, epochs=self.step_count / self.steps, seconds=self.seconds,
            history=tuple(self.history),
        )  # fmt: skip


def assess(
    network: nn.Module, source: Source, accelerator: Accelerator, share: Share, *, precise: bool = True
) -> Quality:
    """The figures of ``network`` over all test images, each process taking its share of them; in float32, or where
    that is not asked for in the precision it trains in.
    """
    tested = source.test.testing(TEST_BATCH, share)
    batches = ((normalise(pixels, source.mean, source.std).to(accelerator.device), labels) for pixels, labels in tested)
    with nullcontext() if precise else accelerator.autocast():
        found = tally(network, batches, len(source.classes))
    if share.world > 1:
        found.take_(accelerator.reduce(found.vector().to(accelerator.device), reduction="sum"))  # pyright: ignore[reportArgumentType]
    return found.quality(source.classes)
