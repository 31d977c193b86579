# SPDX-License-Identifier: Apache-2.0
"""A whole training run as one function: images, network, recipe in; a folder with the trained network out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import accelerate.tracking
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import nn

from ghostnets.errors import GhostnetsError, MissingExtra, UserError, first_line
from ghostnets.folder import append_line, check_seed, stamped
from ghostnets.hub import CONFIG
from ghostnets.measure.cost import total_macs, total_params
from ghostnets.measure.latency import environment
from ghostnets.measure.modes import evaluating
from ghostnets.models.catalog import create_model
from ghostnets.models.weights import load_weights
from ghostnets.prediction import load_classifier
from ghostnets.pretrained import build, is_file, is_saved, located, read_config, save_pretrained, save_trained_on
from ghostnets.records import SCHEMA, Quality, TrainRecord, from_json, read_json, to_json, write_json, write_text
from ghostnets.report.page import write_report
from ghostnets.training.batch import low_res, shrunk
from ghostnets.training.checkpoint import checkpoints
from ghostnets.training.data import NAMES
from ghostnets.training.feed import Share
from ghostnets.training.loop import CHECKPOINT_SECONDS, CHECKPOINTS, Progress, Run, Trained, assess, check_shares
from ghostnets.training.loop import train as run_loop
from ghostnets.training.recipe import Recipe, as_yaml
from ghostnets.training.source import Asked, Source, open_source

T = TypeVar("T")

REQUEST, RECIPE, LOG, RECORD = "request.json", "recipe.yaml", "run.jsonl", "train.json"

PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
"""In Accelerate's words."""

TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What was asked, as ``request.json`` keeps it."""

    model: str
    recipe: Recipe
    data: str
    model_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options of the catalogue's builder, such as ratio and cheap_size."""
    data_dir: str | None = None
    val_data: str | None = None
    weights: str | None = None
    """Where the network starts from: a file, or ``pretrained``."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: tuple[int, int] | None = None
    in_chans: int | None = None
    flip: bool | None = None
    hold_out: int = 0
    train_samples: int | None = None
    num_classes: int | None = None
    workers: int = 0
    max_bad: int = 0
    seed: int = 0
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("workers", "max_bad", "hold_out"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)} must not be negative")


def train(
    request: TrainRequest,
    out: str | Path,
    *,
    resume: bool = False,
    tracker: str | None = None,
    max_steps: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    log: Callable[[dict[str, Any]], None] = lambda _: None,
    progress: Progress = lambda _what, _done, _total: None,
) -> TrainRecord | None:
    """Train what is asked for into the folder ``out``; with ``resume`` go on with what is there.

    The test images are looked at once, in the end; held-out training images after every epoch. ``max_steps`` stops the run
    there, with a checkpoint, and returns None. Runs alike in one process and in many that ``torchrun`` or ``accelerate
    launch`` has started.

    Raises UserError where anything asked for does not fit or the folder holds something else.
    """
    out = Path(out)
    accelerator = make_accelerator(request.recipe, tracker, out)
    say = _Log(out, log, accelerator, tracked=tracker is not None)
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays where it is
        run, model = _prepared(request, out, accelerator, say, resume=resume)
        if tracker is not None:
            accelerator.init_trackers(out.resolve().name, config=_flat(request.recipe))
        run = replace(run, max_steps=max_steps, checkpoint_seconds=checkpoint_seconds, progress=progress)
        done = run_loop(model, request.recipe, run, accelerator)
        if not done.finished:
            say({"event": "stop", "step": max_steps})
            return None
        share = Share(accelerator.process_index, accelerator.num_processes)
        quality = assess(done.model.to(accelerator.device), run.source, accelerator, share)
    record = _record(request, run.source, done, quality, share.world)
    if accelerator.is_main_process:
        described = run.source.described()
        if is_saved(request.model):
            save_trained_on(done.model.cpu(), out, source=request.model, dataset=described)
        else:
            own = request.model if is_file(request.model) else None
            save_pretrained(done.model.cpu(), out, dataset=described, source=own)
        write_json(out / RECORD, record)
        write_report(out)
    say({"event": "end", "top1": quality.top1, "nll": quality.nll, "seconds": done.seconds})
    if tracker is not None:
        accelerator.end_training()
    return record


def _prepared(
    request: TrainRequest, out: Path, accelerator: Accelerator, say: _Log, *, resume: bool
) -> tuple[Run, nn.Module]:
    """What the loop needs, and the folder with what was asked in it: written once nothing more can be refused."""

    def found() -> tuple[Source, nn.Module, nn.Module | None]:
        if accelerator.is_main_process:
            _take(out, request, resume=resume)
        source = open_source(asked(request), told=lambda text: say({"event": "note", "text": text}))
        check_shares(len(source.train), request.recipe, accelerator.num_processes)
        model, teacher = network(request, source), teacher_of(request.recipe, source)
        for who, one in (("network", model), ("teacher", teacher)):
            if one is not None:
                _fits_small(who, one, request.recipe, source)
        return source, model, teacher

    source, model, teacher = _agreed(accelerator, found)
    for note in source.notes:
        say({"event": "note", "text": note})
    if accelerator.is_main_process:
        write_json(out / REQUEST, request)
        write_text(out / RECIPE, as_yaml(request.recipe))
    watch = request.hold_out > 0
    return Run(source=source, folder=out, seed=request.seed, teacher=teacher, watch=watch, log=say), model


def _agreed(accelerator: Accelerator, step: Callable[[], T]) -> T:
    """What ``step`` gives, in the first process (which downloads what the others find) before the others. What one process
    refuses none goes on with: one raises the error, the others end.
    """
    refusal: GhostnetsError | None = None
    result: list[T] = []
    with accelerator.main_process_first():
        try:
            result.append(step())
        except GhostnetsError as error:
            refusal = error
    refused = gather_object([refusal is not None])
    if not any(refused):
        return result[0]
    if refusal is not None and refused.index(True) == accelerator.process_index:
        raise refusal
    raise SystemExit(2)


def _record(request: TrainRequest, source: Source, done: Trained, quality: Quality, processes: int) -> TrainRecord:
    model = done.model.cpu()
    return TrainRecord(
        model=request.model, data=request.data, recipe=as_yaml(request.recipe), seed=request.seed,
        params=total_params(model), macs=total_macs(model, torch.zeros(1, *source.input_size)), epochs=done.epochs,
        seconds=done.seconds, images_per_second=done.history[-1]["images_per_second"], quality=quality,
        held_out=request.hold_out > 0, history=done.history,
        environment={**environment(), "processes": processes},
    )  # fmt: skip


def make_accelerator(recipe: Recipe, tracker: str | None = None, out: Path | None = None) -> Accelerator:
    """What the loop runs on. Raises UserError where the precision or the tracker is not to be had here."""
    if recipe.amp_dtype == "float16" and not torch.cuda.is_available():
        raise UserError("recipe: amp_dtype float16 trains on a GPU alone: write bfloat16 or float32")
    if tracker is not None and tracker not in TRACKERS:
        raise UserError(f"tracker {tracker!r} is not known: choose {', '.join(TRACKERS)}")
    if tracker is not None and tracker not in {kind.value for kind in accelerate.tracking.get_available_trackers()}:
        raise MissingExtra(f"the tracker {tracker}", tracker)  # Accelerate would go on without it
    AcceleratorState._reset_state()  # noqa: SLF001 - a second run in one process may ask for another precision
    return Accelerator(
        mixed_precision=PRECISION[recipe.amp_dtype], log_with=tracker, project_dir=out,
        dynamo_backend="inductor" if recipe.compile else "no", cpu=not torch.accelerator.is_available(),
        # Statistics are agreed on where they are used, not before every step.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )  # fmt: skip


def asked(request: TrainRequest) -> Asked:
    """The part of a request that is about images; what it leaves open, a network that has learned already says."""
    known = read_config(located(request.model)) if is_saved(request.model) else None
    mean = request.mean or (known.mean if known else None)
    std = request.std or (known.std if known else None)
    own = known is not None and request.data not in NAMES  # sets in memory have a size of their own
    size = request.input_size or (known.input_size[1:] if known is not None and own else None)
    channels = request.in_chans or (known.input_size[0] if known is not None and own else None)
    return Asked(
        data=request.data, data_dir=Path(request.data_dir) if request.data_dir else None, val_data=request.val_data,
        mean=mean, std=std, size=size, channels=channels, flip=request.flip,
        hold_out=request.hold_out, workers=request.workers, max_bad=request.max_bad,
        train_samples=request.train_samples, num_classes=request.num_classes,
    )  # fmt: skip


def network(request: TrainRequest, source: Source) -> nn.Module:
    """The network that is asked for, for these images, at its start. Its weights are drawn from the seed."""
    channels, classes = source.input_size[0], len(source.classes)
    options = dict(request.model_kwargs)
    if is_saved(request.model):
        if options or request.weights is not None or request.recipe.drop is not None:
            raise UserError(
                f"{request.model} has its weights and options: leave out --weights, --model-kwargs and --drop"
            )
        model = load_classifier(request.model).model
        _fits(model, source)
        return model
    if request.recipe.drop is not None:
        options["drop_rate"] = request.recipe.drop
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        if is_file(request.model):
            if options:
                raise UserError(
                    f"{', '.join(options)} are options of our own networks, and {request.model} is yours: leave them out"
                )
            model = build(request.model)
        else:
            model = create_model(
                request.model, request.weights == "pretrained", num_classes=classes, in_chans=channels, **options
            )
    if request.recipe.zero_init_last and request.weights is None:
        for block in model.modules():
            if callable(zero := getattr(block, "zero_init_last", None)):  # timm's blocks have it too
                zero()
    if request.weights not in {None, "pretrained"}:
        load_weights(model, Path(str(request.weights)))
    _fits(model, source)
    return model


def teacher_of(recipe: Recipe, source: Source) -> nn.Module | None:
    """The recipe's teacher, if it names one. Raises UserError where it is for other images or classes."""
    if recipe.kd_model is None:
        if recipe.kd_views:
            raise UserError(
                f"recipe: kd_views {recipe.kd_views} without a teacher only repeats itself: name a kd_model"
            )
        return None
    if is_file(recipe.kd_model):  # the user's own, weights and all; what images it is for is for the user to know
        own = build(recipe.kd_model)
        _fits(own, source)
        return own
    known = load_classifier(recipe.kd_model)
    if len(known.classes) != len(source.classes):
        raise UserError(
            f"the teacher {recipe.kd_model} tells {len(known.classes)} classes apart, and the images have {len(source.classes)}"
        )
    if (known.mean, known.std) != (source.mean, source.std):
        raise UserError(
            f"the teacher {recipe.kd_model} expects images with mean {known.mean} and std {known.std}, not "
            f"{source.mean} and {source.std}: give the same with --mean and --std"
        )
    return known.model


def read_request(out: Path) -> TrainRequest:
    """What a run in ``out`` was asked for. Raises UserError where there is none."""
    if not (out / REQUEST).is_file():
        raise UserError(f"{out} holds no training run to go on with (there is no {REQUEST})")
    return from_json(TrainRequest, read_json(out / REQUEST))


def _answer(model: nn.Module, images: torch.Tensor, refusal: str, remedy: str = "") -> Any:
    """What the network says of images. Raises UserError, with its reason between the two, where it does not take them."""
    try:
        with evaluating(model), torch.no_grad():
            return model(images)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{refusal}: {first_line(error)}{remedy}") from error


def _fits_small(who: str, model: nn.Module, recipe: Recipe, source: Source) -> None:
    """Raises UserError where the network does not take the images in every size that the recipe shows them in."""
    for share in sorted({low_res(recipe, epoch) for epoch in range(math.ceil(recipe.epochs))} - {1.0}):
        images = shrunk(torch.zeros(1, *source.input_size), share)
        height, width = images.shape[2:]
        made = f"recipe: low_res {recipe.low_res:g} makes images of {height}×{width}"
        _answer(model, images, f"{made}, and the {who} does not take them", ": write low_res 1")


def _fits(model: nn.Module, source: Source) -> None:
    """Raises UserError where the network does not take the images or tells other classes apart."""
    channels, height, width = source.input_size
    refusal = f"the network does not take images of {height}×{width} with {channels} channels"
    logits = _answer(model, torch.zeros(1, *source.input_size), refusal)
    classes = len(source.classes)
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"the network gives {shape} for one image, and the images have {classes} classes")


def _take(out: Path, request: TrainRequest, *, resume: bool) -> None:
    """Make sure that the folder is this run's."""
    try:
        found = sorted(path.name for path in out.iterdir()) if out.exists() else []
    except OSError as error:
        raise UserError(f"{out} cannot be used as a folder: {error.strerror or error}") from None
    if not found:
        return
    if REQUEST not in found:
        raise UserError(f"{out} is not empty and holds no training run ({found[0]}): choose another folder")
    there = read_request(out)
    odd = [f.name for f in dataclasses.fields(TrainRequest) if getattr(there, f.name) != getattr(request, f.name)]
    if odd:
        raise UserError(
            f"{out} holds a run with another {' and '.join(odd)}: go on with ghostnets train --resume {out}, or choose another folder"
        )
    if not resume and (checkpoints(out / CHECKPOINTS) or CONFIG in found):
        raise UserError(f"{out} holds a run already: go on with --resume {out}, or choose another folder")


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Knobs as trackers take them."""
    return {
        k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in to_json(recipe).items() if v is not None
    }


class _Log:
    """``run.jsonl``, the tracker, and whoever listens; only the first process of a run speaks."""

    def __init__(
        self, out: Path, listen: Callable[[dict[str, Any]], None], accelerator: Accelerator, *, tracked: bool
    ) -> None:
        self.path, self.listen, self.accelerator, self.tracked = out / LOG, listen, accelerator, tracked

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self.tracked and event["event"] in {"epoch", "end"}:
            prefix = "test/" if event["event"] == "end" else ""
            figures = {f"{prefix}{key}": value for key, value in event.items() if isinstance(value, int | float)}
            self.accelerator.log(figures, step=event.get("step"))
        if not self.accelerator.is_main_process:
            return
        line = stamped(event)
        if self.path.parent.is_dir():
            append_line(self.path, json.dumps(line))
        self.listen(line)
