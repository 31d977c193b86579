# SPDX-License-Identifier: Apache-2.0
"""Generated programs, compiled in every way there is, run on poisoned memory, and how far they are from a graph's truth."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from ghostnets.deploy.c.generation import Generated
from ghostnets.deploy.c.program import LIBRARY, Program
from ghostnets.deploy.c.target import TARGETS, native
from ghostnets.deploy.graph import Conv, Graph, Operation
from ghostnets.deploy.reference import STEPS, outputs

NEAR = 1e-5
"""Of a value's largest number, in float32."""

COMPILERS = tuple(name for name in ("gcc", "clang") if shutil.which(name))

_ORDER = tuple(TARGETS)
INSTRUCTIONS = tuple(
    name for name in _ORDER if name in ("neon", "scalar") or _ORDER.index(name) >= _ORDER.index(native().name)
)
"""The instruction sets that run here; NEON's text is plain vectors of four, which every processor has."""

needs_compiler = pytest.mark.skipif(not COMPILERS, reason="needs gcc or clang")

MEMORY = "address,undefined"
"""Sanitizers of memory, and of what C leaves undefined."""

CANARY = 16
"""Floats behind an answer that nothing may touch."""


def works(compiler: str, kind: str, folder: Path) -> str:
    """Why a sanitizer cannot be used here, or nothing."""
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    done = run([compiler, f"-fsanitize={kind}", "empty.c", "-o", "empty"], folder)
    if done.returncode:
        return f"{compiler} has no runtime for -fsanitize={kind}"
    done = run(["./empty"], folder)
    return f"-fsanitize={kind} of {compiler} does not run here: {done.stderr[:100]}" if done.returncode else ""


def library(program: Generated, folder: Path, compiler: str = "", *flags: str) -> Path:
    """The program as a shared library in a folder, compiled without a warning."""
    program.save(folder)
    line = [
        compiler or COMPILERS[0], "-std=gnu11", "-O1", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
        "-pthread", "-DMODEL_THREADS", *program.options.instructions.flags, *flags, "model.c", "-o", LIBRARY, "-lm",
    ]  # fmt: skip
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[:3000]
    return folder / LIBRARY


def arena(program: Program, generated: Generated, *, threads: int = 1) -> np.ndarray:
    """The floats of a program's arena, where they lie."""
    count = generated.source.arena_of(threads)
    return np.ctypeslib.as_array(ctypes.cast(program._model.arena, ctypes.POINTER(ctypes.c_float)), (count,))


def answered(program: Program, generated: Generated, image: np.ndarray, *, threads: int = 1) -> np.ndarray:
    """The answer to one image, of memory in which every float was NaN, written whole and not beyond."""
    arena(program, generated, threads=threads).view(np.uint32)[:] = 0xFFFFFFFF
    size = int(np.prod(program.output_shape))
    answer = np.full(size + CANARY, np.nan, np.float32)
    answer[size:] = 77
    image = np.ascontiguousarray(image)
    program._functions.model_run(
        ctypes.byref(program._model), ctypes.c_void_p(image.ctypes.data), ctypes.c_void_p(answer.ctypes.data)
    )
    assert (answer[size:] == 77).all()
    return answer[:size].reshape(program.output_shape)


def stored(program: Program, generated: Generated) -> Iterator[tuple[str, np.ndarray]]:
    """Every value of the last graph, (C, H, W), as it lies in the arena of a debug build after a run."""
    floats = arena(program, generated)
    for operation in generated.graph.operations:
        view = generated.lowered.views[operation.output]
        buffer = generated.schedule.buffers[view.buffer]
        _, height, width = view.shape
        rows = buffer.offset + buffer.row * np.arange(height)
        places = rows[None, :, None] + view.offsets[:, None, None] + buffer.pixel * np.arange(width)
        yield operation.output, floats[places]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a part of the largest number expected; infinite where a number is none."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    difference = float(np.abs(found - expected).max())
    return difference / max(float(np.abs(expected).max()), 1e-9) if np.isfinite(difference) else float("inf")


def wrong(program: Program, generated: Generated, image: np.ndarray, *, threads: int = 1) -> list[str]:
    """What a program gets wrong for an image (C, H, W): the answer, and of a debug build every layer, given what the program
    itself made of the layers before. All beside float64.
    """
    before: Graph = generated.graphs[-2][1]
    truth = outputs(before, image)
    answer = answered(program, generated, image, threads=threads)
    found = [("the answer", answer.reshape(truth[before.output].shape), truth[before.output])]
    if generated.options.debug:
        kept = dict(stored(program, generated))
        steps = beside(before, image, kept)
        found = [*((name, value, steps[name]) for name, value in kept.items()), *found]
    lines = {operation.output: line for operation, line in zip(before.operations, before.lines(), strict=True)}
    allowed = {step.output: NEAR * _terms(step) for step in before.operations}
    allowed["the answer"] = tolerance(before)
    return [
        f"{lines.get(name, name)}: {off:.1e}"
        for name, value, expected in found
        if not (off := error(value, expected)) <= allowed[name]
    ]


@torch.no_grad()
def beside(graph: Graph, image: np.ndarray, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value of the graph in float64, computed from those that were kept: so that no layer answers for another's rounding."""
    given, made = {graph.input: torch.from_numpy(image).double()[None]}, {}
    for step in graph.operations:
        value = STEPS[type(step)](step, *(given[name] for name in step.inputs))
        made[step.output] = value[0].numpy()
        given[step.output] = torch.from_numpy(kept[step.output]).double()[None] if step.output in kept else value
    return made


def tolerance(graph: Graph) -> float:
    """How far an answer may be off."""
    return max(NEAR * _terms(step) for step in graph.operations)


def _terms(step: Operation) -> float:
    """How much rounding grows with the terms of a sum: with their root, where there are more than a network's usual."""
    return max(1.0, (step.weight[0].size / 4096) ** 0.5) if isinstance(step, Conv) else 1.0


def run(line: Sequence[str | Path], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder; what it says is kept."""
    return subprocess.run(
        [str(part) for part in line],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **more},
    )
