# SPDX-License-Identifier: Apache-2.0
"""A race among contestants that take the time we say: who runs when, how often, and what becomes of the lost."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostnets.deploy import race as room
from ghostnets.deploy.contestant import Lost, Turn
from ghostnets.deploy.race import order, quartiles, race, ratios, shares, times


def turn(*times_ms: float) -> Turn:
    return Turn(times_ms=list(times_ms), preempted=0, max_abs=0.0, peak_mib=None)


class Racer:
    """Takes ``ms`` each time, writes down its turns in a diary it shares, and is lost in its turn number ``until``."""

    def __init__(self, name: str, diary: list[tuple[str, int, int]], ms: float, until: int = 10**9) -> None:
        self.name, self.diary, self.ms, self.left = name, diary, ms, until

    def turn(self, *, warmup: int, runs: int, seconds: float) -> Turn:
        assert seconds > (warmup + runs) * self.ms / 1e3
        if not self.left:
            raise Lost("ran away")
        self.left -= 1
        self.diary.append((self.name, warmup, runs))
        return turn(*[self.ms] * runs)


@pytest.fixture(autouse=True)
def no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "GAP", 0.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
def test_everyone_has_every_place_and_every_neighbour_equally_often(count: int) -> None:
    names = [f"c{k}" for k in range(count)]
    rounds = [order(names, number, 3) for number in range(2 * count)]
    assert all(sorted(row) == names for row in rounds)
    places = Counter((place, name) for row in rounds for place, name in enumerate(row))
    assert set(places.values()) == {2}
    assert len(places) == count**2
    behind = Counter((a, b) for row in rounds for a, b in pairwise(row))
    assert set(behind.values()) <= {2}
    assert len(behind) == count * (count - 1)
    assert len({row[0] for row in rounds[:count]}) == count  # so that the order differs every round


def test_one_turn_at_a_time_in_that_order_and_the_time_is_shared() -> None:
    diary: list[tuple[str, int, int]] = []
    racers = {name: Racer(name, diary, ms) for name, ms in (("a", 1.0), ("b", 2.0), ("c", 500.0))}
    told: list[tuple[int, int]] = []
    lost: list[str] = []
    found = race(
        racers, rounds=4, seconds=1.206, seed=0, lost=lambda name, _: lost.append(name),
        tell=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    trials, turns = diary[:3], diary[3:]
    assert [name for name, _, _ in trials] == ["a", "b", "c"]
    start = next(s for s in range(3) if order(["a", "b", "c"], 0, s) == [name for name, _, _ in turns[:3]])
    assert [name for name, _, _ in turns] == [n for r in range(4) for n in order(["a", "b", "c"], r, start)]
    # 1.2 s over 4 rounds and 3 contestants: a good 100 ms each, of which at most ten runs are not counted
    assert {row for row in turns if row[0] == "a"} == {("a", 10, 90)}
    assert {row for row in turns if row[0] == "b"} == {("b", 10, 40)}
    assert {row for row in turns if row[0] == "c"} == {("c", 1, 1)}
    assert {name: len(rows) for name, rows in found.items()} == {"a": 4, "b": 4, "c": 4}
    assert told == [(k, 12) for k in range(1, 13)]
    assert not lost


def test_the_seed_decides_who_begins() -> None:
    def first(seed: int) -> str:
        diary: list[tuple[str, int, int]] = []
        racers = {name: Racer(name, diary, 1.0) for name in "abcd"}
        race(racers, rounds=1, seconds=0.01, seed=seed, lost=lambda *_: None, tell=lambda *_: None)
        return diary[4][0]

    assert first(1) == first(1)
    assert len({first(seed) for seed in range(12)}) > 1


def test_the_lost_are_told_and_the_others_go_on() -> None:
    diary: list[tuple[str, int, int]] = []
    racers = {name: Racer(name, diary, 1.0, until) for name, until in (("a", 99), ("b", 0), ("c", 3))}
    lost: dict[str, str] = {}
    found = race(
        racers,
        rounds=5,
        seconds=0.1,
        seed=0,
        lost=lambda name, reason: lost.update({name: reason}),
        tell=lambda *_: None,
    )
    assert lost == {"b": "ran away", "c": "ran away"}
    assert set(found) == {"a"}
    assert len(found["a"]) == 5
    assert race({}, rounds=2, seconds=1, seed=0, lost=lambda *_: None, tell=lambda *_: None) == {}


@given(st.floats(1e-4, 10), st.floats(1e-5, 10))
def test_a_turn_fills_its_time(seconds: float, once: float) -> None:
    warmup, runs = shares(seconds, once)
    assert warmup >= 1
    assert runs >= 1
    assert warmup <= 10
    assert (warmup + runs) * once <= max(seconds * (1 + 1e-9), 2 * once)
    assert (warmup + runs + 1) * once > seconds * (1 - 1e-9)


def test_quartiles_equal_those_of_the_standard_library() -> None:
    values = [5.0, 1.0, 2.5, 9.0, 3.0, 3.5, 8.0]
    found = quartiles(values)
    assert [found.low, found.median, found.high] == pytest.approx(statistics.quantiles(values, method="inclusive"))


def test_ratios_are_paired_by_round() -> None:
    """The machine is four times slower in the second round, and the ratio does not notice."""
    own = [turn(1, 2, 9), turn(4, 8, 36), turn(3, 3, 3)]
    other = [turn(4, 4, 5), turn(16, 16, 20), turn(1, 1, 1)]
    found = ratios(own, other)
    assert (found.low, found.median, found.high) == pytest.approx((0.5, 0.5, 1.75))  # of 2/4, 8/16 and 3/1
    assert times(own) == [1, 2, 9, 4, 8, 36, 3, 3, 3]
