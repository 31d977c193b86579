# SPDX-License-Identifier: Apache-2.0
"""A whole benchmark as one function: a network and targets in, who is how fast out, with a record and a page."""

from __future__ import annotations

import copy
import ctypes
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ghostnets.compiler import NoCompiler
from ghostnets.deploy.contestant import Contestant, Lost, Opened, cores
from ghostnets.deploy.race import PATIENCE, race
from ghostnets.deploy.standings import Entry, Heat, again, layer_rows, rows
from ghostnets.deploy.targets import Prepare, Target
from ghostnets.errors import GhostnetsError, UserError, first_line
from ghostnets.folder import check_seed
from ghostnets.measure.cost import layer_costs
from ghostnets.measure.latency import environment
from ghostnets.measure.peak import SOURCE, fp32_peak
from ghostnets.models.catalog import TRAINED
from ghostnets.prediction import load_classifier
from ghostnets.pretrained import build, is_saved
from ghostnets.records import Bench, is_partial, write_json
from ghostnets.report.page import write_report
from ghostnets.training.data import FOLDER_SIZE
from ghostnets.training.native import compiled
from ghostnets.upgrading.calibration import Progress, quiet

RECORD = "bench.json"

INPUTS = 4
"""Images that take turns, so that no run can live from the last one's answer."""

SETTLING = 8
"""Images from which untrained norms take their statistics."""


def bench(
    model: nn.Module,
    input_size: tuple[int, int, int],
    targets: Sequence[Target],
    *,
    threads: Sequence[int] = (1,),
    rounds: int = 11,
    seconds: float = 20.0,
    layers: bool = False,
    seed: int = 0,
    model_name: str = "model",
    out: Path | None = None,
    command: list[str] | None = None,
    note: Callable[[str], None] = lambda _: None,
    progress: Progress = quiet,
) -> Bench:
    """Race ``model`` on one image (C, H, W) at a time, on every target and with every number of threads.

    Each target runs in a process of its own, the first of them in two; ``seconds`` is about what a race takes. A target
    that is not installed, cannot take the network or fails is left out, with a ``note``. ``layers`` asks those that can for
    the time of every layer. With ``out`` the record and its page are left there. The model stays as it is.

    Raises UserError where nothing can be raced or the folder holds something else, GhostnetsError where nobody comes through.
    """
    _check(threads, rounds, seconds)
    check_seed(seed)
    if out is not None:
        take(out)
    notes: list[str] = []

    def say(text: str) -> None:
        notes.append(text)
        note(text)

    installed = _installed(targets, say)
    model = copy.deepcopy(model).cpu().float().eval()
    images = torch.from_numpy(np.random.default_rng(seed).standard_normal((INPUTS, 1, *input_size), dtype=np.float32))
    expected = _answers(model, images)
    scale = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
    macs = sum(layer.macs for layer in layer_costs(model, images[0]))
    with tempfile.TemporaryDirectory(prefix="ghostnets-bench-") as name:
        folder = Path(name)
        case = folder / "case.npz"
        np.savez(case, inputs=images.numpy(), expected=expected.numpy())
        entries = _prepared(installed, model, images[0], folder, say, progress)
        peaks = dict(_peaks(threads, say))
        heats = [
            _heat(
                entries, case, n, rounds=rounds, seconds=seconds, layers=layers, seed=seed, say=say, progress=progress
            )
            for n in threads
        ]
    if not any(heat.turns for heat in heats):
        raise GhostnetsError(f"no target came through: {'; '.join(notes)}")
    if layers and not any(heat.layers for heat in heats):
        say("none of these targets tells the times of its layers, as c does")
    record = Bench(
        model=model_name, input_size=input_size, macs=macs, rounds=rounds, seed=seed, reference=entries[0].name,
        rows=tuple(row for heat in heats for row in rows(heat, scale, macs, peaks.get(heat.threads))),
        layers=tuple(row for heat in heats for row in layer_rows(heat, peaks.get(heat.threads))),
        peak_gflops={str(n): round(peak, 1) for n, peak in peaks.items()}, notes=tuple(notes),
        environment=_environment(command),
    )  # fmt: skip
    if out is not None:
        write_json(out / RECORD, record)
        write_report(out)
    return record


def opened(
    source: str, *, size: tuple[int, int] | None = None, trust_code: bool = False, seed: int = 0
) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network that is saved in a folder or on the hub, that comes trained under this name, or that the catalogue or a
    file of the user's builds; and (C, H, W) of its images, (H, W) as given. Weights that nobody trained are drawn.

    Raises UserError where there is none.
    """
    if is_saved(source) or source in TRAINED:
        known = load_classifier(source, trust_code=trust_code)
        channels, *own = known.input_size
        height, width = size or own
        return known.model, (channels, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(source)
    channels = next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), 3)
    height, width = size or getattr(model, "input_size", FOLDER_SIZE)
    return settled(model, (channels, height, width), seed), (channels, height, width)


def settled(model: nn.Module, input_size: tuple[int, int, int], seed: int) -> nn.Module:
    """A copy in evaluation mode; where no norm has seen an image, they get scales, shifts and the statistics of what reaches
    them, without which the maps of an untrained network die or grow from layer to layer.
    """
    model = copy.deepcopy(model).eval()
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.affine]
    if not norms or not all(_untouched(norm) for norm in norms):
        return model
    momenta = [norm.momentum for norm in norms]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            norm.momentum = 1.0  # one batch decides
            norm.train()
        _run(model, torch.randn(SETTLING, *input_size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def take(out: Path) -> None:
    """Raises UserError where the folder cannot be used, or holds something that no benchmark has left."""
    try:
        found = sorted(path.name for path in out.iterdir() if not is_partial(path)) if out.exists() else []
    except OSError as error:
        raise UserError(f"{out} cannot be used as a folder: {error.strerror or error}") from None
    if found and RECORD not in found:
        raise UserError(f"{out} is not empty and holds no benchmark ({found[0]}): choose another folder")


def _check(threads: Sequence[int], rounds: int, seconds: float) -> None:
    if rounds < 1 or not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"a race of {rounds} rounds in {seconds:g} seconds cannot be run: both must be above 0")
    if not threads or len(set(threads)) < len(threads) or min(threads) < 1:
        raise UserError(f"threads {', '.join(map(str, threads))}: give one or more different numbers, at least 1")
    cores(max(threads))


def _installed(targets: Sequence[Target], say: Callable[[str], None]) -> list[Target]:
    if not targets:
        raise UserError("there is no target to race")
    found: list[Target] = []
    for target in targets:
        missing = " and ".join(target.missing)
        if missing:
            verb = "is" if len(target.missing) == 1 else "are"
            say(f"{target.name} is left out: {missing} {verb} not installed (pip install {' '.join(target.missing)})")
        else:
            found.append(target)
    if not found:
        lacking = " ".join(dict.fromkeys(name for target in targets for name in target.missing))
        raise UserError(f"none of the targets is installed: pip install {lacking}")
    return found


def _untouched(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return mean is not None and variance is not None and not bool(mean.any()) and bool((variance == 1).all())


def _run(model: nn.Module, images: Tensor) -> Tensor:
    size = "×".join(map(str, images.shape[1:]))
    try:
        found = model(images)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{type(model).__name__} does not run on images of {size}: {first_line(error)}") from error
    if not isinstance(found, Tensor):
        raise UserError(f"{type(model).__name__} gives {type(found).__name__}, and only one tensor can be compared")
    return found


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    """(INPUTS, 1, …) of PyTorch's eager float32."""
    with torch.inference_mode():
        found = torch.stack([_run(model, image) for image in images])
    if not bool(torch.isfinite(found).all()):
        raise UserError(f"{type(model).__name__} gives answers that are not finite, so none can be told right or wrong")
    return found


def _prepared(
    targets: Sequence[Target], model: nn.Module, example: Tensor, folder: Path, say: Callable[[str], None],
    progress: Progress,
) -> tuple[Entry, ...]:  # fmt: skip
    """Each target that can take the network, with its file, which targets that want the same kind share; the first one again."""
    made: dict[Prepare, Path | str] = {}
    found: list[Entry] = []
    for done, target in enumerate(targets):
        progress("preparing", done, len(targets))
        if target.prepare not in made:
            try:
                made[target.prepare] = target.prepare(model, example, folder)
            except Exception as error:  # noqa: BLE001 - a runtime's converter may raise anything, and the others go on
                kind = "" if isinstance(error, GhostnetsError) else f"{type(error).__name__}: "
                made[target.prepare] = f"{kind}{first_line(error)}"
        file = made[target.prepare]
        if isinstance(file, Path):
            found.append(Entry(name=target.name, target=target, file=file))
        else:
            say(f"{target.name} is left out: {file}")
    if not found:
        reasons = "; ".join(dict.fromkeys(str(reason) for reason in made.values()))
        raise UserError(f"no target can take this network: {reasons}")
    return *found, again(found[0])


def _peaks(threads: Sequence[int], say: Callable[[str], None]) -> Iterator[tuple[int, float]]:
    try:
        functions: ctypes.CDLL = compiled(SOURCE)
    except NoCompiler as reason:
        say(f"nothing is said of the machine's peak: {reason}")
        return
    for n in threads:
        yield n, fp32_peak(functions, cores(n) or [None] * n)


def _heat(
    entries: Sequence[Entry], case: Path, threads: int, *, rounds: int, seconds: float, layers: bool, seed: int,
    say: Callable[[str], None], progress: Progress,
) -> Heat:  # fmt: skip
    words = f"{threads} thread{'s' if threads > 1 else ''}"
    begun: dict[str, Opened] = {}
    lost: dict[str, str] = {}
    told: dict[str, list[tuple[str, int, float]]] = {}

    def lose(name: str, reason: str) -> None:
        lost[name] = reason
        say(f"{name} with {words}: {reason}")

    with ExitStack() as stack:
        racers: dict[str, Contestant] = {}
        for done, entry in enumerate(entries):
            progress(f"opening, {words}", done, len(entries))
            log = case.with_name(f"{done}-{threads}.log")
            racer = Contestant(entry.target, file=entry.file, case=case, log=log, threads=threads, cores=cores(threads))
            stack.callback(racer.close)
            try:
                begun[entry.name] = racer.open()
                racers[entry.name] = racer
            except Lost as reason:
                lose(entry.name, str(reason))
        turns = race(
            racers, rounds=rounds, seconds=seconds, seed=seed, lost=lose,
            tell=lambda done, total: progress(f"racing, {words}", done, total),
        )  # fmt: skip
        for entry in entries[:-1] if layers else ():
            if entry.name in turns:
                try:
                    found = racers[entry.name].layers(PATIENCE)
                except Lost as reason:
                    say(f"the layers of {entry.name} with {words}: {reason}")
                else:
                    told |= {entry.name: found} if found is not None else {}
    return Heat(threads=threads, entries=tuple(entries), opened=begun, turns=turns, lost=lost, layers=told)


def _environment(command: list[str] | None) -> dict[str, Any]:
    own = {key: value for key, value in environment().items() if key != "threads"}  # each row has its own
    return {**own, **({"command": command} if command else {})}
