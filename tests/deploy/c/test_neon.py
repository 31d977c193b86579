# SPDX-License-Identifier: Apache-2.0
"""Programs for 64-bit Arm, compiled by a cross compiler and run in an emulator, give what PyTorch gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import drawn
from ghostnets.deploy.c import generation, lower
from ghostnets.deploy.c.generation import Generated, Options, from_graph, generated
from ghostnets.deploy.graph import Conv
from ghostnets.deploy.reference import outputs
from ghostnets.models.catalog import create_model
from graphs import lively, truth
from programs import NEAR, error, run, tolerance

COMPILER, EMULATOR, LIBRARIES = "aarch64-linux-gnu-gcc", "qemu-aarch64", Path("/usr/aarch64-linux-gnu")
"""Debian's packages gcc-aarch64-linux-gnu and libc6-dev-arm64-cross, and qemu-user."""

MISSING = [name for name in (COMPILER, EMULATOR) if not shutil.which(name)] + [str(LIBRARIES)] * (
    not LIBRARIES.is_dir()
)

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

PRINTING = r"""
#include "model.h"
#include <stdio.h>

static MODEL_INPUT in[MODEL_IN];
static float out[MODEL_OUT];

int main(void) {
  model m;
  FILE *file = fopen("image", "rb");
  if (!file || fread(in, sizeof *in, MODEL_IN, file) != MODEL_IN) return 3;
  const int code = model_init(&m, "model.weights", 2);
  if (code) { puts(model_message(code)); return 4; }
  model_run(&m, in, out);
  fwrite(out, sizeof *out, MODEL_OUT, stdout);
  model_free(&m);
  return 0;
}
"""


def emulated(program: Generated, image: np.ndarray, folder: Path) -> np.ndarray:
    """What the program answers on another processor, on two threads, compiled as its Makefile says."""
    program.save(folder)
    (folder / "main.c").write_text(PRINTING)
    (folder / "image").write_bytes(np.ascontiguousarray(image).tobytes())
    done = run(["make", f"CC={COMPILER}", "CFLAGS=-O2 -Wall -Wextra -Werror"], folder)
    assert not done.returncode, done.stderr[:3000]
    done = run(["sh", "-c", f"{EMULATOR} -L {LIBRARIES} ./model > answer"], folder)
    assert not done.returncode, done.stderr
    return np.fromfile(folder / "answer", np.float32)


@pytest.mark.parametrize(
    ("name", "side"), [("ghost_resnet20", 32), pytest.param("ghostnet_050", 64, marks=pytest.mark.slow)]
)
def test_networks(name: str, side: int, tmp_path: Path) -> None:
    model = lively(create_model(name))
    x = torch.randn(1, 3, side, side)
    found = emulated(generated(model, x, Options(target="neon")), x.numpy(), tmp_path)
    assert error(found, truth(model, x)) <= NEAR


@pytest.mark.parametrize(
    ("lines", "seed"),
    [(True, 1), (False, 2), *(pytest.param(True, seed, marks=pytest.mark.slow) for seed in range(3, 9))],
)
def test_layers(lines: bool, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = drawn.example(seed, *drawn.FAMILIES, layers=8)
    if lines:
        sizes = frozenset(step.shape[1:] for step in graph.operations if isinstance(step, Conv))
        monkeypatch.setattr(lower, "sizes_in_lines", lambda _graph, _target: sizes)
    monkeypatch.setattr(generation, "steps", lambda _graph: iter(()))
    image = np.random.default_rng(0).normal(size=graph.input_shape).astype(np.float32)
    found = emulated(from_graph(graph, Options(target="neon")), image, tmp_path)
    assert error(found, outputs(graph, image)[graph.output].ravel()) <= tolerance(graph)
