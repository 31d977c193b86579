# SPDX-License-Identifier: Apache-2.0
"""The whole upgrade: original → plan → closed form → recovery → files, figures, report.

Every step leaves a file and the next one starts from that file, also in a run that is never interrupted: so a run that was
interrupted ends with the same bits.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ghostnets.deploy.fold import fold
from ghostnets.deploy.onnx import export_onnx
from ghostnets.deploy.verify import verify_onnx
from ghostnets.errors import GhostnetsError, MissingExtra, UnsupportedLayer, UserError
from ghostnets.folder import STEPS, Event, Folder, Recover, Request, open_folder
from ghostnets.inspecting.layers import Place, layers_of, times
from ghostnets.inspecting.thumbnails import Arrays, chosen_ghosts, packed, thumbnails
from ghostnets.measure.accuracy import top1
from ghostnets.measure.cost import total_macs, total_params
from ghostnets.measure.latency import environment, torch_latency
from ghostnets.models.weights import fill, read_weights
from ghostnets.pretrained import (
    Source,
    describe,
    from_pretrained,
    image_size,
    restructured,
    save_pretrained,
    write_weights,
)  # fmt: skip
from ghostnets.records import (
    Budget,
    Cost,
    Pairing,
    Plan,
    Step,
    UpgradeRecord,
    from_json,
    read_json,
    to_json,
    write_bytes,
    write_json,
)  # fmt: skip
from ghostnets.report.page import write_report
from ghostnets.report.strip import MAPS
from ghostnets.training.augment import batches
from ghostnets.training.data import Dataset, Images, hold_out, normalise
from ghostnets.upgrading.calibration import Chunks, Progress, calibration, quiet
from ghostnets.upgrading.convert import convert, edits
from ghostnets.upgrading.plan import plan
from ghostnets.upgrading.recover import recover as recover_
from ghostnets.upgrading.sites import Anatomy, find_sites

HELD_OUT = 10
"""One training image in so many is kept from calibration and training: 5,000 of CIFAR-10's."""

TEST_PIXELS = 250 * 32 * 32
"""Of one batch, which bounds memory whatever the size of the images."""

COMPARED = 64
"""Test images on which exported files must agree with PyTorch."""

SMALL, SMALL_EPOCHS = 10_000, 4
"""So few training images are recovered on for so many epochs, where nothing was asked; more take the recovery's time."""

StepName = Literal["closed form", "blocks", "distil"]


@dataclass(frozen=True)
class Upgraded:
    """The Ghost network, in evaluation mode, and all that is known of how it came about."""

    model: nn.Module
    record: UpgradeRecord
    plan: Plan
    pairings: tuple[Pairing, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every step needs."""

    original: nn.Module
    dataset: Dataset
    train: Images
    held_out: Images
    request: Request
    folder: Folder
    anatomy: Anatomy
    progress: Progress

    @property
    def example(self) -> Tensor:
        """One test image, (1, C, H, W)."""
        return self._test_images(1)

    @property
    def compared(self) -> Tensor:
        """A few test images."""
        return self._test_images(COMPARED)

    def _test_images(self, count: int) -> Tensor:
        return normalise(self.dataset.test.pixels[:count], self.dataset.mean, self.dataset.std)


def ignore(_event: Event) -> None:
    """Listen to nothing."""


def upgrade(
    model: nn.Module,
    *,
    dataset: Dataset,
    budget: Budget,
    out: str | Path | None = None,
    model_name: str | None = None,
    recover: Recover = Request.recover,
    epochs: float | None = None,
    minutes: float | None = None,
    calibration_images: int = Request.calibration_images,
    order: Literal["own", "agreed"] = Request.order,
    ignored_layers: Collection[str] = (),
    seed: int = 0,
    resume: bool = False,
    command: Sequence[str] = (),
    progress: Progress = quiet,
    listen: Callable[[Event], None] = ignore,
) -> Upgraded:
    """Turn a trained classifier into a Ghost network within ``budget``; ``model`` itself is untouched.

    ``out`` is the folder for the records (None keeps none); with ``resume`` an unfinished upgrade there goes on.
    ``model_name`` is a name of the catalogue or ``file.py:factory``: then ``from_pretrained`` can build the network
    again. ``epochs`` and ``minutes`` bound the last recovery. ``command`` is noted in the record; ``progress`` and
    ``listen`` hear how far a step is, and every line of the log.

    Raises UserError where the network, the data, the budget or the folder cannot be used.
    """
    original = copy.deepcopy(model).cpu().float().eval()
    source = _check(original, dataset, model_name)
    request = Request(
        model=model_name or type(model).__name__,
        data=dataset.name,
        budget=budget,
        recover=recover,
        epochs=epochs,
        minutes=minutes,
        calibration_images=calibration_images,
        order=order,
        ignored_layers=tuple(sorted(ignored_layers)),
        seed=seed,
        weights=hashlib.sha256(save(_plain(original))).hexdigest(),
        images=_fingerprint(dataset),
    )
    anatomy = find_sites(original, torch.zeros(1, *image_size(dataset)), ignored_layers=ignored_layers)
    train, held_out = hold_out(dataset.train, max(1, len(dataset.train) // HELD_OUT), seed=0)
    with tempfile.TemporaryDirectory(prefix="ghostnets-") if out is None else nullcontext(str(out)) as path:
        run = Run(
            original=original,
            dataset=dataset,
            train=train,
            held_out=held_out,
            request=request,
            folder=open_folder(Path(path), request, resume=resume, listen=listen),
            anatomy=anatomy,
            progress=progress,
        )
        with torch.random.fork_rng(devices=[]):  # fresh modules draw weights that are overwritten
            try:
                return _steps(run, model_name if source.class_name is None else None, command)
            except UserError:
                if run.folder.fresh and run.folder.finished("plan") is None:
                    run.folder.discard()  # what was asked cannot be: it may be asked otherwise, in the same folder
                raise


def _steps(run: Run, source: str | None, command: Sequence[str]) -> Upgraded:
    before = _original(run)
    planned = _plan(run)
    student = _closed_form(run, planned)
    if any(d.decision == "ghost" for d in planned.decisions):  # else there is nothing to win back
        if run.request.recover in ("blocks", "distil"):
            student = _recover(run, student, planned, "blocks")
        if run.request.recover == "distil":
            student = _recover(run, student, planned, "distil")
    _save(run, student, planned, source)
    _onnx(run, student)
    record = _record(run, student, planned, before, command)
    pairings = tuple(from_json(Pairing, item) for item in read_json(run.folder / "transfer.json"))
    return Upgraded(student, record, planned, pairings)


def _check(model: nn.Module, dataset: Dataset, name: str | None) -> Source:
    """Whether the network can be used at all, and where it comes from."""
    for key, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{key} of the network holds NaN or infinite values: train it again or take another checkpoint"
            )
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    size = image_size(dataset)
    shown = f"{dataset.name}'s images of {'×'.join(map(str, size))}"
    if first is not None and first.in_channels != size[0]:
        raise UserError(f"the network reads {first.in_channels} channels, which does not fit {shown}")
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *size))
    except Exception as error:  # any user code may run here
        raise UserError(f"the network does not run on {shown}: {str(error).strip().partition(chr(10))[0]}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError("the network must return one tensor of logits (N, classes)")
    if logits.shape[1] != len(dataset.classes):
        raise UserError(
            f"the network tells {logits.shape[1]} classes apart, and {dataset.name} has {len(dataset.classes)}"
        )
    return describe(name, model, dataset)


def _original(run: Run) -> float:
    known = run.folder.finished("original")
    if known is None:
        run.folder.log({"step": "original", "event": "begin"})
        known = run.folder.finish("original", top1=_accuracy(run, run.original, "original"))
    return known["top1"]


def _plan(run: Run) -> Plan:
    path = run.folder / "plan.json"
    if run.folder.finished("plan") is None:
        started = _begin(run, "plan")
        chunks = _calibration(run)
        if run.anatomy.refused:
            run.folder.log({"step": "plan", "event": "left alone", "layers": dict(run.anatomy.refused)})
        _warn_of_few_images(run)
        planned = plan(
            run.original,
            chunks,
            run.request.budget,
            ignored_layers=run.request.ignored_layers,
            order=run.request.order,
            seed=run.request.seed,
            progress=run.progress,
        )
        write_json(path, planned)
        ghosts = sum(d.decision == "ghost" for d in planned.decisions)
        run.folder.finish("plan", seconds=_since(started), sites=len(planned.decisions), ghosts=ghosts)
    return from_json(Plan, read_json(path))


def _closed_form(run: Run, planned: Plan) -> nn.Module:
    path = _weights_after(run, "closed form")
    if run.folder.finished("closed form") is None:
        started = _begin(run, "closed form")
        converted = convert(
            run.original, planned, _calibration(run), ignored_layers=run.request.ignored_layers, progress=run.progress
        )
        spent = _since(started)
        write_json(run.folder / "transfer.json", [to_json(pairing) for pairing in converted.pairings])
        write_weights(path, converted.model)
        plan_seconds = (run.folder.finished("plan") or {}).get("seconds", 0.0)
        _finish(run, planned, "closed form", seconds=plan_seconds + spent, epochs=0.0)
    return _read(run, planned, path)


def _recover(run: Run, student: nn.Module, planned: Plan, mode: Literal["blocks", "distil"]) -> nn.Module:
    path = _weights_after(run, mode)
    checkpoints = run.folder / STEPS / f"{mode}.checkpoints"
    epochs, minutes = _length(run, mode)
    if run.folder.finished(mode) is None:
        _begin(run, mode)
        recovered = recover_(
            student,
            run.original,
            planned,
            run.dataset,
            images=run.train,
            held_out=run.held_out,
            mode=mode,
            epochs=epochs,
            minutes=minutes,
            seed=run.request.seed,
            folder=checkpoints,
            log=run.folder.log,
            progress=run.progress,
        )
        write_weights(path, recovered.model)
        _finish(run, planned, mode, seconds=recovered.seconds, epochs=recovered.epochs)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return _read(run, planned, path)


def _length(run: Run, mode: str) -> tuple[float | None, float | None]:
    """Epochs and minutes: what was asked is for the last recovery."""
    asked = (run.request.epochs, run.request.minutes) if run.request.recover == mode else (None, None)
    return (SMALL_EPOCHS, None) if asked == (None, None) and len(run.train) <= SMALL else asked


def _finish(run: Run, planned: Plan, step: StepName, **known: float) -> None:
    accuracy = _accuracy(run, _read(run, planned, _weights_after(run, step)), step)
    run.folder.finish(step, top1=accuracy, **known)


def _save(run: Run, student: nn.Module, planned: Plan, source: str | None) -> None:
    """The network's own files, and the proof that they give the network back."""
    if run.folder.finished("save") is not None:
        return
    save_pretrained(student, run.folder.path, original=run.original, plan=planned, dataset=run.dataset, source=source)
    again = from_pretrained(run.folder.path, base=run.original)
    with torch.no_grad():
        if not torch.equal(again(run.compared), student(run.compared)):
            raise GhostnetsError("the saved network gives other logits than the one that was saved")
    run.folder.finish("save")


def _onnx(run: Run, student: nn.Module) -> None:
    """``model.onnx`` where the extra is installed; it appears only after it agreed with PyTorch."""
    if run.folder.finished("onnx") is not None:
        return
    partial = run.folder / STEPS / "model.onnx"
    run.progress("ONNX", 0, 0)
    try:
        export_onnx(student, run.example, partial)
        checked = to_json(verify_onnx(student, partial, run.compared))
        partial.replace(run.folder / "model.onnx")
    except MissingExtra as missing:
        checked = {"skipped": str(missing)}
    except GhostnetsError as error:
        checked = {"skipped": str(error)}
        run.folder.log({"step": "onnx", "event": "note", "text": f"no model.onnx: {error}"})
    finally:
        partial.unlink(missing_ok=True)
    run.folder.finish("onnx", **checked)


def _record(run: Run, student: nn.Module, planned: Plan, before: float, command: Sequence[str]) -> UpgradeRecord:
    path = run.folder / "upgrade.json"
    if run.folder.finished("report") is not None:
        return from_json(UpgradeRecord, read_json(path))
    steps = tuple(_done_steps(run))
    run.progress("latency", 0, 0)
    latency = torch_latency(_folded(run, before=run.original, after=student), run.example, threads=1)
    costs = {
        name: Cost(
            params=total_params(network),
            macs=total_macs(network, run.example),
            top1=accuracy,
            latency_ms=latency[name].median_ms,
        )
        for name, network, accuracy in (("before", run.original, before), ("after", student, steps[-1].top1))
    }
    record = UpgradeRecord(
        model=run.request.model,
        data=run.request.data,
        budget=run.request.budget.as_dict(),
        seed=run.request.seed,
        before=costs["before"],
        after=costs["after"],
        steps=steps,
        sites=tuple(decision.outcome() for decision in planned.decisions),
        environment={**environment(), **({"command": list(command)} if command else {})},
    )
    write_json(path, record)
    raced = {name: to_json(found) for name, found in latency.items()}
    run.folder.log({"step": "latency", "event": "end", **raced, "sites": _site_times(run, student, planned)})
    write_bytes(run.folder / MAPS, packed(_maps(run, student, planned)))
    write_report(run.folder.path)
    run.folder.finish("report")
    return record


def _site_times(run: Run, student: nn.Module, planned: Plan) -> dict[str, dict[str, float]]:
    """Milliseconds that each site takes on one image, with its norm and activation, before and after."""
    before = {layer.name: layer.end for layer in layers_of(run.original, run.example)}
    ends = _ends(student, planned, run.example)
    own = times(run.original, {name: before[name] for name in ends}, run.example)
    new = times(student, ends, run.example)
    return {name: {"before_ms": round(own[name], 4), "after_ms": round(new[name], 4)} for name in ends}


def _maps(run: Run, student: nn.Module, planned: Plan) -> Arrays:
    """What the upgraded network's layers make of one training image, small and grey, for the page."""
    image = normalise(run.train.pixels[:1], run.dataset.mean, run.dataset.std)
    ends = _ends(student, planned, image)
    places = {
        f"layer:{decision.name}": (ends[decision.name], chosen_ghosts(site.out_channels, decision.ratio))
        for decision, site in zip(planned.decisions, run.anatomy.sites, strict=True)
    }
    return thumbnails(student, image, places)


def _ends(student: nn.Module, planned: Plan, image: Tensor) -> dict[str, Place]:
    """Who gives out the maps of each site of the upgraded network."""
    ends = {layer.name: layer.end for layer in layers_of(student, image)}
    return {
        decision.name: Place(decision.name) if decision.decision == "ghost" else ends[decision.name]
        for decision in planned.decisions
    }


def _folded(run: Run, **networks: nn.Module) -> dict[str, nn.Module]:
    """All of them folded, or where one cannot be, all as they are: a race has one rule."""
    try:
        return {name: fold(network, run.example) for name, network in networks.items()}
    except UnsupportedLayer as error:
        run.folder.log({"step": "latency", "event": "note", "text": f"timed with its norms, not folded: {error}"})
        return dict(networks)


def _done_steps(run: Run) -> Iterator[Step]:
    names: tuple[StepName, ...] = ("closed form", "blocks", "distil")
    for name in names:
        known = run.folder.finished(name)
        if known is not None:
            yield from_json(Step, {"name": name, **known})


def _begin(run: Run, step: str) -> float:
    run.folder.log({"step": step, "event": "begin"})
    return time.monotonic()


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _weights_after(run: Run, step: StepName) -> Path:
    return run.folder / STEPS / f"{step.replace(' ', '_')}.safetensors"


def _read(run: Run, planned: Plan, path: Path) -> nn.Module:
    """The network after a step, from the step's file."""
    model = restructured(run.original, edits(run.anatomy, planned.decisions))
    fill(model, read_weights(path), str(path))
    return model.eval()


def _calibration(run: Run) -> Chunks:
    return calibration(run.dataset, run.train, run.request.calibration_images, seed=run.request.seed)


def _warn_of_few_images(run: Run) -> None:
    """Say where a filter has more numbers than the calibration images have places to fit them on."""
    count = min(run.request.calibration_images, len(run.train))
    needs = {s.name: s.in_channels * s.kernel_size[0] * s.kernel_size[1] + 1 for s in run.anatomy.sites}
    has = {s.name: count * s.out_size[0] * s.out_size[1] for s in run.anatomy.sites}
    short = [name for name in needs if has[name] < needs[name]]
    if short:
        name = max(short, key=lambda name: needs[name] / has[name])
        text = (
            f"{count} calibration images are too few for {len(short)} of {len(needs)} layers ({name}: {has[name]} places "
            f"for {needs[name]} numbers), so their fits lean on the original weights"
        )
        run.folder.log({"step": "plan", "event": "note", "text": text})


def _accuracy(run: Run, model: nn.Module, step: str) -> float:
    """Top-1 on all test images; they serve for nothing else."""
    images = run.dataset.test
    size = max(1, TEST_PIXELS // images.pixels[0, 0].numel())
    wide = copy.deepcopy(model).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def normalised() -> Iterator[tuple[Tensor, Tensor]]:
        for number, (pixels, labels) in enumerate(batches(images, batch_size=size, shuffle=False)):
            yield normalise(pixels, run.dataset.mean, run.dataset.std), labels
            run.progress(f"{step}: test images", min((number + 1) * size, len(images)), len(images))

    return top1(wide, normalised())


def _plain(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256(repr((dataset.mean, dataset.std, dataset.classes, dataset.augment)).encode())
    for images in (dataset.train, dataset.test):
        images.feed_(digest)
    return digest.hexdigest()
