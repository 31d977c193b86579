# SPDX-License-Identifier: Apache-2.0
"""One contestant of a race, in a process of its own, driven by lines of JSON: ``python -m ghostnets.deploy.worker``.

The first line says what to open, each further one asks for a turn or the times of the layers; every line gets one back.
It ends when its input does. Nothing of PyTorch is loaded here but by a runtime that is PyTorch.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ghostnets.errors import first_line

Run = Callable[[np.ndarray], np.ndarray]
Say = Callable[[Mapping[str, Any]], None]


def main() -> None:
    """Serve until the input ends. Runtimes print: only a copy of standard output carries the answers."""
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: Mapping[str, Any]) -> None:
        channel.write(json.dumps(answer) + "\n")

    try:
        serve(json.loads(sys.stdin.readline()), map(json.loads, sys.stdin), say)
    except Exception as error:  # noqa: BLE001 - a runtime may raise anything, and the other end must hear of it
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {first_line(error)}"})
        sys.exit(1)


def serve(job: Mapping[str, Any], questions: Iterable[Mapping[str, Any]], say: Say) -> None:
    """Open what ``job`` names, say how that went, and answer the questions.

    ``job``: ``open`` (module:function), ``file``, ``threads``, ``options``, ``case`` (a file of the arrays ``inputs`` and
    ``expected``, the first axis counting them), ``cores`` to stay on, or null.
    """
    if job["cores"] is not None:
        os.sched_setaffinity(0, job["cores"])
    bare = peak_mib()
    with np.load(job["case"], allow_pickle=False) as case:
        inputs, expected = list(case["inputs"]), list(case["expected"])
    started = time.perf_counter()
    run = _opener(job["open"])(Path(job["file"]), job["threads"], inputs[0].shape, **job["options"])
    first = run(inputs[0])
    load = time.perf_counter() - started
    errors = [
        difference(first, expected[0]),
        *(difference(run(x), y) for x, y in zip(inputs[1:], expected[1:], strict=True)),
    ]
    say({"load_s": load, "max_abs": _largest(errors), "bare_mib": bare, "peak_mib": peak_mib()})
    for question in questions:
        say(
            layer_times(run)
            if question["ask"] == "layers"
            else turn(run, inputs, expected, question["warmup"], question["runs"])
        )


def turn(run: Run, inputs: list[np.ndarray], expected: list[np.ndarray], warmup: int, runs: int) -> dict[str, Any]:
    """``runs`` timed one by one, after ``warmup`` that are not, on the inputs in turn; the last answer is looked at."""
    count = len(inputs)
    gc.collect()
    gc.disable()
    try:
        for k in range(warmup):
            run(inputs[k % count])
        times: list[float] = []
        preempted = _preemptions()
        output = np.empty(0)
        for k in range(runs):
            x = inputs[k % count]
            started = time.perf_counter()
            output = run(x)
            times.append((time.perf_counter() - started) * 1e3)
        preempted = _preemptions() - preempted
    finally:
        gc.enable()
    error = difference(output, expected[(runs - 1) % count])
    return {"times_ms": times, "preempted": preempted, "max_abs": error, "peak_mib": peak_mib()}


def layer_times(run: object) -> dict[str, Any]:
    """What the runtime says of its own layers, where it does: ``layers()``, each with ``name``, ``macs`` and ``ms``."""
    layers = getattr(run, "layers", None)
    if layers is None:
        return {"layers": None}
    return {"layers": [[str(layer.name), int(layer.macs), float(layer.ms)] for layer in layers()]}


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute one; NaN where an answer is. Raises ValueError where there are more or fewer figures."""
    found = np.asarray(found)
    if found.size != expected.size:
        raise ValueError(f"it gives {found.shape}, and PyTorch {expected.shape}")
    return float(np.abs(found.astype(np.float64).reshape(expected.shape) - expected).max())


def peak_mib() -> float | None:
    """The most memory this process has had, in MiB; ``getrusage`` would count what its parent had when it began."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # no Linux
        return None
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM:")), None)


def _preemptions() -> int:
    """How often something else took the core."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _largest(errors: list[float]) -> float:
    return float(np.max(errors))  # of which one may be NaN, unlike Python's


def _opener(name: str) -> Callable[..., Run]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    main()
