# SPDX-License-Identifier: Apache-2.0
"""Rows worked out by hand from times that nobody measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ghostnets.deploy.contestant import Opened, Turn
from ghostnets.deploy.standings import Entry, Heat, again, layer_rows, rows
from ghostnets.records import BenchRow
from runners import target

OPENED = Opened(load_s=0.5, max_abs=0.0, bare_mib=25.0, peak_mib=90.0)


def turns(*rounds: list[float], max_abs: float = 0.0, preempted: int = 0) -> list[Turn]:
    return [Turn(times_ms=row, preempted=preempted, max_abs=max_abs, peak_mib=100.0) for row in rounds]


def entry(name: str, **more: Any) -> Entry:
    return Entry(name=name, target=target(name, **more), file=Path("file"))


FIRST = entry("first")
HEAT = Heat(
    threads=2,
    entries=(FIRST, entry("second"), entry("slow"), entry("low", precision="bf16"), entry("gone"), again(FIRST)),
    opened=dict.fromkeys(("first", "second", "slow", "low", "first (again)"), OPENED),
    turns={
        "first": turns([2.0, 2.0, 3.0], [4.0, 4.0, 8.0]),
        "second": turns([4.0, 5.0, 3.0], [2.0, 2.0, 2.0], preempted=5),
        "slow": turns([20.0], [40.0]),
        "low": turns([1.0, 1.0], [1.0, 1.0], max_abs=0.4),
        "first (again)": turns([2.0, 2.0, 2.0], [4.0, 5.0, 6.0]),
    },
    lost={"gone": "ran away"},
    layers={"first": [("conv", 1_000_000, 0.02), ("add", 0, 0.01)]},
)


def by_name(heat: Heat, **more: Any) -> dict[str, BenchRow]:
    given: dict[str, Any] = {"scale": 2.0, "macs": 50_000_000, "peak": 100.0, **more}
    return {row.target: row for row in rows(heat, **given)}


def test_a_row_is_what_the_times_say() -> None:
    row = by_name(HEAT)["second"]
    assert (row.median_ms, row.q1_ms, row.q3_ms, row.min_ms, row.n) == (2.5, 2.0, 3.75, 2.0, 6)
    assert row.ratio == pytest.approx((4 / 2 + 2 / 4) / 2)
    assert (row.ratio_q1, row.ratio_q3) == pytest.approx((0.875, 1.625))
    assert (row.threads, row.precision, row.disturbed, row.failure) == (2, "f32", 2, "")
    assert (row.load_s, row.bare_mib, row.peak_mib) == (0.5, 25.0, 100.0)
    assert row.peak_share == pytest.approx(100e6 / (100e9 * 2.5e-3))
    assert by_name(HEAT, peak=None)["second"].peak_share is None


def test_the_fastest_other_runtime_of_the_same_precision_is_the_peer() -> None:
    found = by_name(HEAT)
    assert (found["first"].peer, found["second"].peer, found["slow"].peer) == ("second", "first", "second")
    assert found["first"].speedup == pytest.approx((4 / 2 + 2 / 4) / 2)
    assert found["first (again)"].peer == "second"  # and never its own runtime, nor anyone's null control
    assert (found["low"].peer, found["low"].speedup) == (None, None)
    assert found["low"].ratio == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["low"].peak_share is None  # the peak is float32's
    same = replace(HEAT, entries=(FIRST, entry("second", runtime="first"), *HEAT.entries[2:]))
    assert by_name(same)["first"].peer == "slow"


def test_the_null_control_is_compared_like_any_other() -> None:
    row = by_name(HEAT)["first (again)"]
    assert row.ratio == pytest.approx((1 + 5 / 4) / 2)
    assert by_name(HEAT)["first"].ratio == 1


@pytest.mark.parametrize(
    ("where", "error", "right"),
    [("opened", 2.1e-3, False), ("turn", 2.1e-3, False), ("turn", 1.9e-3, True), ("opened", math.nan, False), ("turn", math.inf, False)],
)  # fmt: skip
def test_a_wrong_answer_is_shown_and_compared_with_nothing(where: str, error: float, right: bool) -> None:
    opened, raced = dict(HEAT.opened), dict(HEAT.turns)
    if where == "opened":
        opened["second"] = replace(OPENED, max_abs=error)
    else:
        raced["second"] = turns([1.0], [1.0], max_abs=error)
    found = by_name(replace(HEAT, opened=opened, turns=raced))
    row = found["second"]
    assert row.median_ms is not None
    assert (row.ratio is not None, row.speedup is not None, row.failure == "") == (right,) * 3
    assert found["first"].peer == ("second" if right else "slow")
    if math.isfinite(error):
        assert row.max_rel == pytest.approx(error / 2)
        assert row.max_abs == pytest.approx(error)
    else:
        assert (row.max_rel, row.max_abs) == (None, None)
        assert row.failure == "wrong: its answers are not finite"


def test_where_the_first_is_wrong_there_are_no_ratios_but_peers() -> None:
    found = by_name(replace(HEAT, opened={**HEAT.opened, "first": replace(OPENED, max_abs=2.0)}))
    assert found["first"].failure == "wrong: off by 1.0e+00 of the largest output"
    assert all(row.ratio is None for row in found.values())
    assert found["second"].peer == "slow"


def test_the_lost_have_a_reason_and_no_figures() -> None:
    row = by_name(HEAT)["gone"]
    assert row.failure == "ran away"
    assert (row.median_ms, row.ratio, row.max_rel, row.peak_mib, row.n) == (None, None, None, None, 0)
    assert list(by_name(HEAT)) == ["first", "second", "slow", "low", "gone", "first (again)"]


def test_layers_have_their_share_of_the_peak() -> None:
    conv, add = layer_rows(HEAT, 100.0)
    assert (conv.target, conv.threads, conv.name, conv.macs, conv.ms) == ("first", 2, "conv", 1_000_000, 0.02)
    assert conv.peak_share == pytest.approx(1.0)
    assert add.peak_share == 0
