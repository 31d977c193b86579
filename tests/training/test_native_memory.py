# SPDX-License-Identifier: Apache-2.0
"""The C for training reads and writes its own memory alone, whatever the shape, and does nothing that C leaves undefined."""

from __future__ import annotations

from pathlib import Path

import pytest

import ghostnets.training
from programs import COMPILERS, MEMORY, needs_compiler, run, works

pytestmark = needs_compiler

FOLDER = Path(ghostnets.training.__file__).parent

HARNESS = r"""
#include SOURCE
#include <stdio.h>

static uint64_t state = 1;
static int64_t drawn(int64_t least, int64_t most) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return least + (int64_t)((state >> 33) % (uint64_t)(most - least + 1));
}
static void *room(int64_t count, size_t size) { /* of exactly that size, with small numbers in it */
  char *p = malloc((size_t)count * size);
  for (size_t i = 0; i < (size_t)count * size; i++) p[i] = (char)drawn(0, 50);
  return p;
}
#define MAPS(count) room(count, sizeof(map_t))
#define FIGURES_OF(count) room(count, sizeof(float))

int main(void) {
  for (int turn = 0; turn < 60; turn++) {
    int64_t n = drawn(1, 10), h = drawn(1, 9), w = drawn(1, 37), pixels = n * h * w;
#ifdef TAIL
    int64_t c = drawn(1, 12), ghosts = drawn(1, 5), out = drawn(c + 1, c + c * ghosts), side = 2 * drawn(0, 3) + 1;
    int64_t filters = ghosts * side * side * c, affine = 2 * (1 + ghosts) * c;
    map_t *z = MAPS(pixels * c), *r = MAPS(ghosts * pixels * c), *y = MAPS(pixels * out), *dy = MAPS(pixels * out);
    map_t *plus = MAPS(pixels * out), *dplus = MAPS(pixels * out), *dz = MAPS(pixels * c);
    float *filter = FIGURES_OF(filters), *dfilter = FIGURES_OF(filters), *a = FIGURES_OF(affine), *da = FIGURES_OF(affine);
    float *norms = FIGURES_OF((1 + ghosts) * FIGURES * c);
    int joined = turn % 2;
    ghost_forward(z, n, h, w, c, ghosts, out, (int)side, filter, a, 1e-5f, 1e-5f, 1, joined, joined ? plus : NULL, r, y, norms);
    ghost_backward(z, r, joined ? y : NULL, dy, n, h, w, c, ghosts, out, (int)side, filter, norms, 1, joined, dz,
                   joined ? dplus : NULL, dfilter, da);
    free(z), free(r), free(y), free(dy), free(plus), free(dplus), free(dz);
    free(filter), free(dfilter), free(a), free(da), free(norms);
#else
    if (!primary_pays()) return 77;
#ifdef OUTPUTS
    int64_t in = drawn(1, 40), out = drawn(1, 20);
    map_t *x = MAPS(pixels * in), *weight = MAPS(out * 9 * in), *z = MAPS(pixels * out), *dx = MAPS(pixels * in);
    float *dweight = FIGURES_OF(out * 9 * in);
    if (out <= 8 && in % 2 == 0) primary_forward(x, weight, n, h, w, in, out, z);
    primary_backward(x, weight, z, n, h, w, in, out, turn % 3 ? dx : NULL, dweight);
    free(x), free(weight), free(z), free(dx), free(dweight);
#endif
#endif
  }
  puts("clean");
  return 0;
}
"""

PROGRAMS = {
    "tail, float32": ("ghost_tail.c", ["-DTAIL"]),
    "tail, bfloat16": ("ghost_tail.c", ["-DTAIL", "-DBF16"]),
    "primary": ("ghost_primary.c", []),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_stays_within_its_memory(name: str, tmp_path: Path) -> None:
    if reason := works(COMPILERS[0], MEMORY, tmp_path):
        pytest.skip(reason)
    file, defines = PROGRAMS[name]
    (tmp_path / "main.c").write_text(HARNESS)
    source = f'-DSOURCE="{FOLDER / file}"'
    flags = ["-O1", "-g", "-march=native", f"-fsanitize={MEMORY}", "-fno-sanitize-recover=all", "-Wno-psabi"]
    done = run([COMPILERS[0], *flags, source, *defines, "main.c", "-o", "main", "-lm"], tmp_path)
    assert not done.returncode, done.stderr[:3000]
    done = run(["./main"], tmp_path)
    if done.returncode == 77:
        pytest.skip("this processor does not multiply pairs of bfloat16, or has tiles")
    assert done.stderr == ""
    assert done.stdout == "clean\n"
