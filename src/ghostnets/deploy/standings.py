# SPDX-License-Identifier: Apache-2.0
"""What the times of a race say: a row each, with its place beside the first and beside the fastest other runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ghostnets.deploy.contestant import Opened, Turn
from ghostnets.deploy.race import quartiles, ratios, times
from ghostnets.deploy.targets import Target
from ghostnets.records import BenchRow, LayerTime

TOLERANCE = {"f32": 1e-3, "bf16": 0.5}
"""Largest difference from PyTorch, as a part of its largest output, with which an answer counts as right. Float32 runtimes
differ by 1e-6 to 1e-4; bfloat16 ones by up to 0.2 where nobody trained the network; a wrong one by about 1.
"""

PREEMPTIONS = 4
"""Of a turn, beyond which it counts as disturbed; the kernel's own threads cause a few."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Who takes part: a target and the file made for it."""

    name: str
    target: Target
    file: Path


@dataclass(frozen=True, kw_only=True)
class Heat:
    """What came of the race with one number of threads."""

    threads: int
    entries: tuple[Entry, ...]
    """The first is what the others are compared with, the last the same again."""
    opened: Mapping[str, Opened]
    turns: Mapping[str, list[Turn]]
    """Of those who came through."""
    lost: Mapping[str, str]
    """Why, of the others."""
    layers: Mapping[str, list[tuple[str, int, float]]]


def again(first: Entry) -> Entry:
    """The null control: what differs between it and the first is chance."""
    return Entry(name=f"{first.name} (again)", target=first.target, file=first.file)


def rows(heat: Heat, scale: float, macs: int, peak: float | None) -> list[BenchRow]:
    """One an entry. ``scale`` is PyTorch's largest output, ``peak`` what the machine can do (10⁹ float32 operations a second)."""
    errors = {
        name: float(np.max([heat.opened[name].max_abs, *(turn.max_abs for turn in turns)])) / scale  # NaN if one is
        for name, turns in heat.turns.items()
    }
    right = {
        entry.name: entry for entry in heat.entries
        if entry.name in errors and errors[entry.name] <= TOLERANCE[entry.target.precision]
    }  # fmt: skip
    found: list[BenchRow] = []
    for entry in heat.entries:
        if entry.name in errors:
            found.append(_row(entry, heat, right, errors[entry.name], scale, macs, peak))
        else:
            found.append(_absent(entry, heat.threads, heat.lost[entry.name]))
    return found


def layer_rows(heat: Heat, peak: float | None) -> list[LayerTime]:
    """One a layer, of every target that tells."""
    return [
        LayerTime(target=target, threads=heat.threads, name=name, macs=macs, ms=ms, peak_share=share(macs, ms, peak))
        for target, layers in heat.layers.items()
        for name, macs, ms in layers
    ]


def share(macs: int, ms: float, peak: float | None) -> float | None:
    """How much of what ``peak`` (10⁹ operations a second, a multiply-add as two) could have done in that time."""
    return 2e-6 * macs / (ms * peak) if peak and ms > 0 else None


def _absent(entry: Entry, threads: int, reason: str) -> BenchRow:
    target = entry.target
    return BenchRow(
        target=entry.name, threads=threads, precision=target.precision, version=target.version, failure=reason
    )


def _row(
    entry: Entry, heat: Heat, right: Mapping[str, Entry], error: float, scale: float, macs: int, peak: float | None
) -> BenchRow:
    name, target, turns, opened = entry.name, entry.target, heat.turns[entry.name], heat.opened[entry.name]
    reference = heat.entries[0].name
    peer = _peer(entry, heat, right) if name in right else None
    own, all_ms = quartiles(times(turns)), times(turns)
    ratio = ratios(turns, heat.turns[reference]) if name in right and reference in right else None
    speedup = ratios(heat.turns[peer], turns) if peer is not None else None
    finite = math.isfinite(error)
    wrong = f"wrong: off by {error:.1e} of the largest output" if finite else "wrong: its answers are not finite"
    return BenchRow(
        target=name, threads=heat.threads, precision=target.precision, version=target.version,
        median_ms=own.median, q1_ms=own.low, q3_ms=own.high, min_ms=min(all_ms), n=len(all_ms),
        ratio=ratio and ratio.median, ratio_q1=ratio and ratio.low, ratio_q3=ratio and ratio.high,
        peer=peer, speedup=speedup and speedup.median, speedup_q1=speedup and speedup.low,
        speedup_q3=speedup and speedup.high,
        max_abs=error * scale if finite else None, max_rel=error if finite else None,
        peak_share=share(macs, own.median, peak) if target.precision == "f32" else None,
        load_s=opened.load_s, bare_mib=opened.bare_mib, peak_mib=turns[-1].peak_mib,
        disturbed=sum(turn.preempted > PREEMPTIONS for turn in turns), failure="" if name in right else wrong,
    )  # fmt: skip


def _peer(entry: Entry, heat: Heat, right: Mapping[str, Entry]) -> str | None:
    """The fastest of the other runtimes, of the same precision."""
    medians = {
        name: quartiles(times(heat.turns[name])).median for name, other in right.items()
        if other is not heat.entries[-1] and other.target.runtime != entry.target.runtime
        and other.target.precision == entry.target.precision
    }  # fmt: skip
    return min(medians, key=lambda name: medians[name]) if medians else None
