# SPDX-License-Identifier: Apache-2.0
"""A whole export as one function: a network in, a folder with files that run elsewhere out, held against PyTorch."""

from __future__ import annotations

import copy
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ghostnets.compiler import NoCompiler, command, compile_shared
from ghostnets.deploy.c.generation import Generated, Options, generated
from ghostnets.deploy.c.program import LIBRARY, MOST_THREADS, Program
from ghostnets.deploy.c.target import TARGETS, Target, machine_named, native, this_machine
from ghostnets.deploy.fold import fold
from ghostnets.deploy.onnx import export_onnx, optional
from ghostnets.deploy.verify import TOLERANCE, verify_onnx
from ghostnets.errors import GhostnetsError, UserError
from ghostnets.exported import Check, Export, listed, place, take
from ghostnets.measure.cost import layer_costs
from ghostnets.measure.latency import environment
from ghostnets.prediction import Classifier
from ghostnets.subject import Pixels
from ghostnets.training.data import normalise

LABELS = "labels.txt"


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a format makes of a network."""

    files: dict[str, bytes]
    macs: int
    weights_bytes: int
    arena_bytes: int | None = None
    checked: Check | None = None
    unchecked: str = ""
    explained: Callable[[], Iterator[str]] = field(default=lambda: iter(()))


@dataclass(frozen=True, kw_only=True)
class Done:
    """An export: its record, and what every pass of a C program made, to read."""

    record: Export
    explained: Callable[[], Iterator[str]]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every format is given: the network as it is exported, and on what it is checked, where it is."""

    network: Classifier
    example: Tensor
    name: str
    options: Options
    threads: int
    pixels: Pixels | None


def export(
    network: Classifier,
    out: str | Path,
    *,
    format: str = "c",  # noqa: A002 - as the command line says it
    target: str = "native",
    layout: str = "nchw",
    threads: int = 1,
    pixels: Pixels | None = None,
    model_name: str = "model",
    notes: tuple[str, ...] = (),
    command: list[str] | None = None,
) -> Done:
    """Write ``network`` for images of its size to the folder ``out``, whole or not at all, with ``export.json`` and, where
    classes have names, ``labels.txt``.

    With ``pixels`` the result runs here first, on ``threads``, and is held against PyTorch's float32; why it was not is
    said in the record. The network stays as it is.

    Raises UserError where the folder holds something else or the network cannot be exported, GhostnetsError where the
    answers disagree.
    """
    out = Path(out)
    take(out)
    if format not in FORMATS:
        raise UserError(f"{format} is no format: choose {' or '.join(FORMATS)}")
    options = Options(target=target, layout=layout, mean=network.mean, std=network.std)  # pyright: ignore[reportArgumentType] - checked there
    if format != "c" and (target, layout) != ("native", "nchw"):
        raise UserError(f"target {target} and layout {layout} are of C programs: leave them out for {format}")
    if not 1 <= threads <= MOST_THREADS:
        raise UserError(f"threads {threads} must be 1 to {MOST_THREADS}")
    own = replace(network, model=copy.deepcopy(network.model).cpu().float().eval())
    job = _Job(
        network=own, example=torch.zeros(1, *network.input_size), name=model_name, options=options, threads=threads,
        pixels=pixels,
    )  # fmt: skip
    made = FORMATS[format](job)
    named = {LABELS: _labels(network.classes)} if network.classes else {}
    record = Export(
        model=model_name, format=format, target=options.instructions.name if format == "c" else None, layout=layout,
        input_size=network.input_size, mean=network.mean, std=network.std, classes=len(network.classes) or None,
        macs=made.macs, weights_bytes=made.weights_bytes, threads=threads, arena_bytes=made.arena_bytes,
        files=listed(made.files | named), checked=made.checked, unchecked=made.unchecked, notes=notes,
        environment=environment() | ({"command": command} if command else {}),
    )  # fmt: skip
    place(out, made.files | named, record)
    return Done(record=record, explained=made.explained)


def _labels(classes: tuple[str, ...]) -> bytes:
    """One a line, in the order of the outputs."""
    return "".join(f"{' '.join(name.split())}\n" for name in classes).encode()


# The formats


def _c(job: _Job) -> Made:
    program = generated(job.network.model, job.example, job.options, name=job.name)
    found = _checked(program, job) if job.pixels is not None else "no image was asked for"
    return Made(
        files=program.files, macs=program.graph.macs, weights_bytes=program.source.weights.nbytes, arena_bytes=4 * program.source.arena_of(job.threads),
        checked=found if isinstance(found, Check) else None, unchecked=found if isinstance(found, str) else "",
        explained=program.explained,
    )  # fmt: skip


def _onnx(job: _Job) -> Made:
    model = job.network.model
    folded = fold(model, job.example)
    with tempfile.TemporaryDirectory(prefix="ghostnets-export-") as name:
        path = export_onnx(model, job.example, Path(name) / "model.onnx")
        checked = None
        if job.pixels is not None:
            optional("onnxruntime", "checking an ONNX file (--check 0 leaves it out)")
            found = verify_onnx(model, path, normalise(job.pixels.values, job.network.mean, job.network.std))
            checked = Check(
                images=found.n, of=job.pixels.of, max_abs=found.max_abs, max_rel=found.max_rel,
                top1_agreement=found.top1_agreement, runtime=found.runtime,
            )  # fmt: skip
        data = path.read_bytes()
    return Made(
        files={path.name: data}, macs=sum(layer.macs for layer in layer_costs(folded, job.example)),
        weights_bytes=sum(p.nbytes for p in folded.parameters()), checked=checked,
        unchecked="" if checked else "no image was asked for",
    )  # fmt: skip


FORMATS: dict[str, Callable[[_Job], Made]] = {"c": _c, "onnx": _onnx}


# The check of a C program


def _checked(program: Generated, job: _Job) -> Check | str:
    """How far the compiled program and PyTorch are apart, or why nothing can be said of it here.

    Raises GhostnetsError where they disagree.
    """
    target = program.options.instructions
    if not runs_here(target):
        return f"this machine does not run {target.name}"
    try:
        compiler = command()
        runtime, machine = _said(compiler, "--version"), _said(compiler, "-dumpmachine").partition("-")[0]
    except NoCompiler as reason:
        return str(reason)
    if machine_named(machine) not in {"", this_machine()}:
        return f"{compiler[0]} compiles for {machine}, and this machine is another"
    assert job.pixels is not None
    images = normalise(job.pixels.values, job.network.mean, job.network.std).contiguous()
    with torch.inference_mode():
        expected = job.network.model(images).double().numpy()
    if not np.isfinite(expected).all():
        raise UserError(f"{job.name} gives answers that are not finite, so none can be told right or wrong")
    with tempfile.TemporaryDirectory(prefix="ghostnets-export-") as name:
        folder = Path(name)
        program.save(folder)
        try:  # as its Makefile does
            flags = ("-std=gnu11", "-pthread", *target.flags)
            compile_shared(folder / "model.c", folder / LIBRARY, [flags], defines=["MODEL_THREADS"])
        except NoCompiler as reason:
            raise GhostnetsError(f"the program is not written, because it cannot be compiled: {reason}") from None
        run = Program(folder / LIBRARY, threads=job.threads)
        found = run(_as_laid_out(job.pixels.values, images, program.options.layout)).astype(np.float64)
    plain = "" if target.machine in {None, this_machine()} else f", plain vectors on {this_machine()}"
    return _compared(expected, found, of=job.pixels.of, runtime=f"{runtime or compiler[0]}{plain}")


def runs_here(target: Target) -> bool:
    """Whether a program for these instructions runs on this machine too: it has them, or the program is written in plain
    vectors, which any compiler knows.
    """
    rows, best = list(TARGETS.values()), native()  # the richer ones of a machine come first
    own = target.machine in {None, this_machine()} and rows.index(target) >= rows.index(best)
    return own or not target.flags


def _as_laid_out(pixels: Tensor, images: Tensor, layout: str) -> np.ndarray:
    """The images as a program of that layout takes them."""
    chosen = pixels if layout == "nhwc-uint8" else images
    ordered = chosen if layout == "nchw" else chosen.permute(0, 2, 3, 1)
    return ordered.contiguous().numpy()


def _compared(expected: np.ndarray, found: np.ndarray, *, of: str, runtime: str) -> Check:
    max_abs = float(np.abs(expected - found).max())
    max_rel = max_abs / max(float(np.abs(expected).max()), np.finfo(np.float64).tiny)
    if not max_rel <= TOLERANCE:  # so that NaN is refused, too
        raise GhostnetsError(
            f"the program disagrees with PyTorch, so it is not written: on {len(expected)} images ({of}) its answers differ "
            f"by up to {max_abs:g}, {max_rel:.2g} of the largest, and {TOLERANCE:g} is allowed ({runtime})"
        )
    places = [values.reshape(len(values), -1).argmax(1) for values in (expected, found)]
    return Check(
        images=len(expected), of=of, max_abs=max_abs, max_rel=max_rel,
        top1_agreement=float((places[0] == places[1]).mean() * 100), runtime=runtime,
    )  # fmt: skip


def _said(compiler: list[str], question: str) -> str:
    """The first line of what a compiler says of itself."""
    try:
        said = subprocess.run([*compiler, question], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 - the user's
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"{' '.join(compiler)} cannot be run: {error}") from None
    return said.stdout.partition("\n")[0]
