# SPDX-License-Identifier: Apache-2.0
"""How long things take, compared fairly: everything that is compared runs in turns, so a drifting machine hits all."""

from __future__ import annotations

import gc
import itertools
import os
import platform
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure.modes import evaluating

QUARTILES = (25, 50, 75)

# The flags of /proc/cpuinfo (x86 "flags", ARM "Features") that decide how fast a convolution runs, and their names.
_INSTRUCTIONS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx_vnni": "AVX-VNNI", "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16", "amx_tile": "AMX", "neon": "NEON", "asimd": "NEON", "asimddp": "NEON dot product",
    "i8mm": "NEON I8MM", "sve": "SVE",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Quartiles of all timed runs in milliseconds, and how they compare to the race's first contestant."""

    median_ms: float
    lower_ms: float
    upper_ms: float
    n: int
    """Timed runs."""
    ratio: float
    """Median over the rounds of this one's time divided by the first one's in the same round: below 1 is faster."""
    ratio_lower: float
    ratio_upper: float


def race(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    seconds: float = 4.0,
    warmup: int = 3,
    seed: int = 0,
) -> dict[str, Latency]:
    """Time the callables in turns: every round runs each of them, one place further on than in the round before.

    ``warmup`` runs of each come first, at least one. From these follow the runs a turn has: as many as fill about
    ``seconds`` in all ``rounds``, at least one. A turn begins with a run that is not counted, because the others
    have emptied the caches. ``seed`` chooses who begins.
    """
    if not contestants:
        raise UserError("a race needs at least one contestant")
    if rounds < 1 or not seconds > 0 or warmup < 0:
        raise UserError(f"a race of {rounds} rounds, {seconds} seconds, {warmup} warm-up runs cannot be run")
    names = list(contestants)
    once = [min(_time(contestants[name], max(warmup, 1))) for name in names]
    runs = max(1, int(seconds / (rounds * max(sum(once), 1e-9))) - 1)
    times = np.empty((len(names), rounds, runs))
    start = int(np.random.default_rng(seed).integers(len(names)))
    with _no_garbage_collection():
        for turn in range(rounds):
            for place in range(len(names)):
                index = (start + turn + place) % len(names)
                times[index, turn] = _time(contestants[names[index]], runs + 1)[1:]
    return {name: _latency(times[index], times[0]) for index, name in enumerate(names)}


def torch_latency(
    models: Mapping[str, nn.Module],
    example: Tensor,
    *,
    threads: int = 1,
    rounds: int = 20,
    seconds: float = 4.0,
    warmup: int = 3,
    seed: int = 0,
) -> dict[str, Latency]:
    """A race of networks in PyTorch on ``example`` (N, C, H, W), which decides batch and size.

    They run in evaluation mode and come back in the modes they had; so does PyTorch's number of threads.
    """
    if threads < 1:
        raise UserError(f"{threads} threads cannot run a network: give at least 1")
    with on_threads(threads), evaluating(*models.values()), torch.inference_mode():
        contestants = {name: partial(model, example) for name, model in models.items()}
        return race(contestants, rounds=rounds, seconds=seconds, warmup=warmup, seed=seed)


@contextmanager
def on_threads(threads: int) -> Generator[None, None, None]:
    """PyTorch on so many threads while the block runs, and then on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment() -> dict[str, Any]:
    """What a measured figure depends on: versions, processor, threads. No names of machines, people or folders."""
    cpu, instructions = _processor()
    return {
        "ghostnets": _version("ghostnets"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu,
        "instructions": instructions,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "os": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _time(call: Callable[[], object], runs: int) -> list[float]:
    """Seconds of every run."""
    marks = [time.perf_counter()]
    for _ in range(runs):
        call()
        marks.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(marks)]


def _latency(own: np.ndarray, first: np.ndarray) -> Latency:
    """``own`` and ``first`` are seconds (rounds, runs)."""
    lower, median, upper = np.percentile(own * 1e3, QUARTILES)
    ratios = np.median(own, axis=1) / np.maximum(np.median(first, axis=1), 1e-9)
    ratio_lower, ratio, ratio_upper = np.percentile(ratios, QUARTILES)
    return Latency(
        median_ms=float(median),
        lower_ms=float(lower),
        upper_ms=float(upper),
        n=own.size,
        ratio=float(ratio),
        ratio_lower=float(ratio_lower),
        ratio_upper=float(ratio_upper),
    )


@contextmanager
def _no_garbage_collection() -> Generator[None, None, None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """The processor's name and the instruction sets that matter, as far as the system tells."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else {"neon"} if platform.machine() == "arm64" else set[str]()
    found = [label for flag, label in _INSTRUCTIONS.items() if flag in present]
    return name[1].strip() if name else platform.processor() or platform.machine(), list(dict.fromkeys(found))


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # used from a source folder
        return "unknown"
