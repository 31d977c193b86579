# SPDX-License-Identifier: Apache-2.0
"""A race of workers: one turn at a time, in an order that changes every round, and what the times say."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ghostnets.deploy.contestant import Lost, Turn

TRIAL = 3
"""Runs of each before the race, which tell how many fill the time."""

WARMUP = 10
"""Runs at the head of a turn that are not counted, at most: the others have emptied the caches."""

WARMUP_SHARE = 5
"""One run in so many is not counted."""

GAP = 0.05
"""Seconds between turns, in which the threads of the last one stop spinning."""

PATIENCE = 60.0
"""Seconds beyond ten times what a turn should take, after which a contestant counts as hung."""

QUARTILES = (25, 50, 75)


class Racer(Protocol):
    """Whoever can be given a turn."""

    def turn(self, *, warmup: int, runs: int, seconds: float) -> Turn: ...


@dataclass(frozen=True, kw_only=True)
class Quartiles:
    """A median and what lies around it."""

    low: float
    median: float
    high: float


def race(
    racers: Mapping[str, Racer],
    *,
    rounds: int,
    seconds: float,
    seed: int,
    lost: Callable[[str, str], None],
    tell: Callable[[int, int], None],
) -> dict[str, list[Turn]]:
    """The turns of everyone who came through, one a round.

    ``seconds`` is about what all of it takes; everyone's turns are equally long. Whoever gives no more answers is told to
    ``lost``, with the reason, and the others go on; ``tell`` hears how many turns of how many are done.
    """
    turns: dict[str, list[Turn]] = {}
    once: dict[str, float] = {}
    for name, racer in racers.items():
        try:
            once[name] = min(racer.turn(warmup=1, runs=TRIAL, seconds=PATIENCE).times_ms) / 1e3
            turns[name] = []
        except Lost as reason:
            lost(name, str(reason))
    runs = {name: shares(seconds / (rounds * len(once)), each) for name, each in once.items()}
    start = int(np.random.default_rng(seed).integers(max(len(racers), 1)))
    for number in range(rounds):
        for place, name in enumerate(order(list(racers), number, start)):
            if name in turns:
                time.sleep(GAP)
                warmup, counted = runs[name]
                patience = PATIENCE + 10 * (warmup + counted) * once[name]
                try:
                    turns[name].append(racers[name].turn(warmup=warmup, runs=counted, seconds=patience))
                except Lost as reason:
                    del turns[name]
                    lost(name, str(reason))
            tell(number * len(racers) + place + 1, rounds * len(racers))
    return turns


def order(names: Sequence[str], turn: int, start: int) -> list[str]:
    """Who runs when in a round: one place further on than in the round before, and mirrored in every second cycle.

    In a cycle everyone has every place once; in two, everyone comes twice behind each of the others (in one once, where they
    are even in number): E. J. Williams, Australian Journal of Scientific Research A 2 (1949).
    """
    count = len(names)
    zigzag = ((k + 1) // 2 if k % 2 else -(k // 2) for k in range(count))
    row = [names[(start + turn + place) % count] for place in zigzag]
    return row[::-1] if turn // max(count, 1) % 2 else row


def shares(seconds: float, once: float) -> tuple[int, int]:
    """Runs of a turn of so many seconds that are not counted and that are, at least one of each; one takes ``once``."""
    fitting = int(seconds / max(once, 1e-9))
    warmup = min(max(fitting // WARMUP_SHARE, 1), WARMUP)
    return warmup, max(fitting - warmup, 1)


def quartiles(values: Sequence[float]) -> Quartiles:
    """Interpolated between neighbours."""
    low, median, high = np.percentile(values, QUARTILES)
    return Quartiles(low=float(low), median=float(median), high=float(high))


def times(turns: Sequence[Turn]) -> list[float]:
    """All that were counted, in milliseconds."""
    return [ms for turn in turns for ms in turn.times_ms]


def ratios(own: Sequence[Turn], other: Sequence[Turn]) -> Quartiles:
    """Over the rounds: the median of its turn over the median of the other's in the same round. Below 1 is faster."""
    pairs = zip(own, other, strict=True)
    return quartiles([float(np.median(a.times_ms) / np.median(b.times_ms)) for a, b in pairs])
