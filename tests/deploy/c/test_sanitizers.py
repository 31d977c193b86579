# SPDX-License-Identifier: Apache-2.0
"""No program reads or writes beside its memory, does what C leaves undefined, or races with itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import drawn
import tiny
from ghostnets.deploy.c import generation, lower
from ghostnets.deploy.c.choice import sizes_in_lines
from ghostnets.deploy.c.generation import Generated, Options, from_graph, generated
from ghostnets.deploy.c.schedule import scheduled
from ghostnets.deploy.graph import Conv
from ghostnets.deploy.reference import outputs
from ghostnets.models.catalog import create_model
from graphs import lively, truth
from programs import COMPILERS, INSTRUCTIONS, MEMORY, NEAR, error, needs_compiler, run, tolerance, works

pytestmark = needs_compiler

HARNESS = r"""
#include "model.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *contents(const char *path, size_t *size) { /* in memory of exactly that size */
  FILE *file = fopen(path, "rb");
  if (!file) exit(3);
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  void *bytes = NULL;
  if (posix_memalign(&bytes, 64, *size) || fread(bytes, 1, *size, file) != *size) exit(3);
  fclose(file);
  return bytes;
}

/* Full of NaN before each of two runs, so that what is left over is met. */
int main(int argc, char **argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 1;
  size_t size, image;
  void *weights = contents("model.weights", &size), *in = contents("image", &image), *arena = malloc(model_arena_bytes(threads));
  float *out = malloc(MODEL_OUT * sizeof *out);
  if (!arena || !out || image != MODEL_IN * sizeof(MODEL_INPUT)) return 3;
  for (int i = 0; i < 2; i++) {
    model m;
    memset(arena, 0xff, model_arena_bytes(threads));
    memset(out, 0xff, MODEL_OUT * sizeof *out);
    const int code = model_init_from(&m, weights, size, arena, threads);
    if (code) { puts(model_message(code)); return 4; }
    model_run(&m, in, out);
    model_free(&m);
  }
  fwrite(out, sizeof *out, MODEL_OUT, stdout);
  free(weights);
  free(in);
  free(arena);
  free(out);
  return 0;
}
"""

FOUND = 99
"""Exit status of a sanitizer that found something."""


def sanitized(program: Generated, image: np.ndarray, folder: Path, compiler: str, kind: str, threads: int = 1) -> np.ndarray:  # fmt: skip
    """The answer of a program under a sanitizer that ends it at the first finding."""
    if reason := works(compiler, kind, folder):
        pytest.skip(reason)
    program.save(folder)
    (folder / "harness.c").write_text(HARNESS)
    (folder / "image").write_bytes(np.ascontiguousarray(image).tobytes())
    done = run(
        [
            compiler, "-std=gnu11", "-O1", "-g",
            "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror", f"-fsanitize={kind}",
            "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-pthread", "-DMODEL_THREADS", "-D_GNU_SOURCE",
            *program.options.instructions.flags, "harness.c", "model.c", "-o", "harness", "-lm",
        ],
        folder,
    )  # fmt: skip
    assert not done.returncode, done.stderr[:3000]
    options = f"exitcode={FOUND}"
    done = run(
        ["sh", "-c", f"./harness {threads} > answer"], folder, ASAN_OPTIONS=f"{options}:detect_leaks=0",
        UBSAN_OPTIONS=f"{options}:print_stacktrace=1", TSAN_OPTIONS=options,
    )  # fmt: skip
    assert not done.returncode, done.stderr[:3000]
    return np.fromfile(folder / "answer", np.float32)


def close(program: Generated, found: np.ndarray, image: np.ndarray) -> bool:
    graph = program.graphs[-2][1]
    return error(found, outputs(graph, image)[graph.output].ravel()) <= tolerance(graph)


NETWORKS = {"ghost_resnet20": 32, "ghostnet_050": 33, "resnet20": 32}
"""Of odd size where they take any."""


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_small_network_stays_within_its_memory(compiler: str, tmp_path: Path) -> None:
    model, x = tiny.build().eval(), torch.randn(1, 1, 13, 11)
    found = sanitized(generated(model, x), x.numpy(), tmp_path, compiler, MEMORY)
    assert error(found, truth(model, x)) <= NEAR


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "compiler"),
    [(name, compiler) for name in NETWORKS for compiler in COMPILERS],
)
def test_networks_stay_within_their_memory(name: str, compiler: str, tmp_path: Path) -> None:
    model = lively(create_model(name))
    x = torch.randn(1, 3, NETWORKS[name], NETWORKS[name])
    found = sanitized(generated(model, x), x.numpy(), tmp_path, compiler, MEMORY)
    assert error(found, truth(model, x)) <= NEAR


def test_bytes_come_in_within_their_memory(tmp_path: Path) -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 9, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(9, 5, (4, 5))))
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    options = Options(layout="nhwc-uint8")
    found = sanitized(generated(model, torch.zeros(1, 3, 7, 9), options), image, tmp_path, COMPILERS[0], MEMORY)
    planes = ((image / 255 - options.mean) / options.std).transpose(2, 0, 1)
    assert error(found, truth(model, torch.from_numpy(planes)[None]).ravel()) <= NEAR


LAYOUTS = {
    "chosen": sizes_in_lines,
    "lines": lambda graph, target: frozenset(
        step.shape[1:] for step in graph.operations if isinstance(step, Conv) and target.lanes > 1
    ),
}


@pytest.mark.parametrize(
    ("target", "layout", "rings"),
    [
        pytest.param(target, layout, rings, marks=() if (target, layout, rings) in FAST else pytest.mark.slow)
        for FAST in [{(INSTRUCTIONS[0], "lines", True), ("scalar", "chosen", True)}]
        for target in INSTRUCTIONS
        for layout in LAYOUTS
        for rings in (False, True)
    ],
)
def test_layers_stay_within_their_memory(
    target: str, layout: str, rings: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = drawn.example(len(target) + rings, *drawn.FAMILIES, layers=6)
    image = np.random.default_rng(0).normal(size=graph.input_shape).astype(np.float32)
    monkeypatch.setattr(lower, "sizes_in_lines", LAYOUTS[layout])
    monkeypatch.setattr(generation, "steps", lambda _graph: iter(()))
    if rings:
        monkeypatch.setattr(generation, "scheduled", partial(scheduled, ring_from=1))
    program = from_graph(graph, Options(target=target))
    assert close(program, sanitized(program, image, tmp_path, COMPILERS[0], MEMORY), image)


@pytest.mark.parametrize("threads", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_threads_do_not_race(threads: int, tmp_path: Path) -> None:
    model, x = tiny.build().eval(), torch.randn(1, 1, 32, 32)
    found = sanitized(generated(model, x), x.numpy(), tmp_path, COMPILERS[0], "thread", threads)
    assert error(found, truth(model, x)) <= NEAR


def test_the_sanitizer_would_notice(tmp_path: Path) -> None:
    program = generated(lively(nn.Conv2d(3, 8, 3)), torch.zeros(1, 3, 8, 8))
    text = program.files["model.c"].decode()
    size = f"return threads == 1 ? {program.source.arena} :"
    assert size in text
    if reason := works(COMPILERS[0], MEMORY, tmp_path):
        pytest.skip(reason)
    program.save(tmp_path)
    (tmp_path / "model.c").write_text(text.replace(size, "return threads == 1 ? 64 :"))
    (tmp_path / "harness.c").write_text(HARNESS)
    (tmp_path / "image").write_bytes(bytes(4 * 3 * 64))
    flags = program.options.instructions.flags
    done = run([COMPILERS[0], "-std=gnu11", "-O1", f"-fsanitize={MEMORY}", "-D_GNU_SOURCE", *flags, "harness.c", "model.c", "-o", "harness", "-lm"], tmp_path)  # fmt: skip
    assert not done.returncode, done.stderr
    done = run(["sh", "-c", "./harness > answer"], tmp_path, ASAN_OPTIONS=f"exitcode={FOUND}:detect_leaks=0")
    assert done.returncode == FOUND
    assert "heap-buffer-overflow" in done.stderr
