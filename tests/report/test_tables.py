# SPDX-License-Identifier: Apache-2.0
"""Rows against the records they come from, and figures that can be read back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostnets.records import Pairing, UpgradeRecord, from_json, read_json
from ghostnets.report import tables

UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


def read_back(text: str) -> tuple[float, float]:
    """The number that a printed figure says, and half of its last digit."""
    digits, _, unit = text.replace(tables.MINUS, "-").partition(" ")
    scale = UNITS.get(unit, 1.0)
    return float(digits) * scale, 0.5 * 10 ** -len(digits.partition(".")[2]) * scale


@given(st.integers(0, 10**12))
def test_a_count_reads_back_within_its_last_digit(number: int) -> None:
    said, half = read_back(tables.count(number))
    assert abs(said - number) <= half * (1 + 1e-9)
    assert half <= 0.5 or half <= 0.006 * number  # never fewer than three digits, or the last of a whole number


@given(st.floats(-100, 100))
def test_percent_and_points_read_back(value: float) -> None:
    for text in (tables.percent(value).removesuffix(" %"), tables.points(value).removesuffix(" points")):
        said, half = read_back(text)
        assert abs(said - value) <= half * (1 + 1e-9)
        assert not (said == 0 and text[0] in "+-" + tables.MINUS)  # zero has no sign


@given(st.floats(1e-3, 1e5))
def test_milliseconds_read_back(value: float) -> None:
    said, half = read_back(tables.milliseconds(value).removesuffix(" ms"))
    assert abs(said - value) <= half * (1 + 1e-9)


@given(st.floats(0, 1e6))
def test_a_duration_reads_back_within_its_unit(seconds: float) -> None:
    words = tables.duration(seconds).split()
    units = dict(zip(words[1::2], words[::2], strict=True))
    said = sum(float(units.get(unit, 0)) * scale for unit, scale in (("s", 1), ("min", 60), ("h", 3600)))
    smallest = 0.05 if set(units) == {"s"} else 0.5 if "s" in units else 30.5
    assert abs(said - seconds) <= smallest + 1e-6
    assert float(units.get("s", 0)) < 60
    assert float(units.get("min", 0)) < 60


@given(st.floats(0.1, 1e9), st.floats(0.1, 1e9))
def test_change_and_factor_agree(before: float, after: float) -> None:
    percent = read_back(tables.change(before, after).removesuffix(" %"))[0]
    assert math.isclose(before * (1 + percent / 100), after, rel_tol=1e-6, abs_tol=0.0006 * before)
    words = tables.factor(before, after, "fewer", "more")
    if words != "as before":
        times, direction = words.split("× ")
        assert direction == ("fewer" if after < before else "more")
        assert abs(float(times) - max(before / after, after / before)) <= 0.0051


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (tables.count(125_485_706), "125.5 M"),
        (tables.count(853_018), "0.853 M"),
        (tables.count(65_300_000), "65.3 M"),
        (tables.count(4_089_000_000), "4.09 G"),
        (tables.count(999_970_000), "1.00 G"),
        (tables.count(73_728), "73.7 k"),
        (tables.count(810), "810"),
        (tables.percent(93.39), "93.39 %"),
        (tables.percent(math.nan), "–"),
        (tables.milliseconds(12.34), "12.3 ms"),
        (tables.milliseconds(0.8534), "0.853 ms"),
        (tables.change(125.5, 65.26), "−48.0 %"),
        (tables.change(0, 5), "–"),
        (tables.change(5, 5), "0.0 %"),
        (tables.points(-0.001), "0.00 points"),
        (tables.factor(12.0, 8.0, "faster", "slower"), "1.50× faster"),
        (tables.factor(8.0, 12.0, "faster", "slower"), "1.50× slower"),
        (tables.factor(8.0, 8.001, "faster", "slower"), "as before"),
        (tables.duration(96.2), "1 min 36 s"),
        (tables.duration(59.97), "1 min 00 s"),
        (tables.duration(7500), "2 h 05 min"),
        (tables.asked({"macs": 0.5}), "at most 50 % of the MACs"),
        (tables.asked({"macs": 65_300_000}), "at most 65.3 M MACs"),
        (tables.asked({"ratio": 2, "kernel": 3}), "ratio 2, kernel 3 at every site"),
    ],
)
def test_the_words_for_figures(text: str, expected: str) -> None:
    assert text == expected


@pytest.fixture
def record(folder: Path) -> UpgradeRecord:
    return from_json(UpgradeRecord, read_json(folder / "upgrade.json"))


def test_the_summary_says_what_the_record_holds(record: UpgradeRecord) -> None:
    rows = {row.figure: row for row in tables.summary_rows(record)}
    assert (rows["top-1"].before, rows["top-1"].after, rows["top-1"].change) == ("93.39 %", "92.31 %", "−1.08 points")
    assert rows["latency"].note == "1.53× faster"
    assert rows["MACs"].share == record.after.macs / record.before.macs


@pytest.mark.parametrize(
    ("top1", "latency", "end"),
    [
        (92.31, 8.07, "1.53× faster, for 1.08 points of accuracy."),
        (93.394, 24.68, "2.00× slower, with the accuracy unchanged."),
        (93.89, 12.34, "latency as before, with 0.50 points of accuracy gained."),
        (92.39, math.nan, "fewer multiply-adds, for 1.00 points of accuracy."),
    ],
)
def test_the_verdict_is_a_sentence_in_every_case(record: UpgradeRecord, top1: float, latency: float, end: str) -> None:
    changed = replace(record, after=replace(record.after, top1=top1, latency_ms=latency))
    assert tables.verdict(changed).endswith(end)


def test_site_rows_keep_order_and_numbers(record: UpgradeRecord) -> None:
    rows = tables.site_rows(record.sites)
    assert [row.name.text for row in rows] == [d.name for d in record.sites]
    assert [row.macs_after.value for row in rows] == [d.macs_after for d in record.sites]
    kept = rows[4]
    assert (kept.decision.text, kept.ratio.text, kept.order.text) == ("keep", "–", "–")
    assert tuple(tables.SITE_COLUMNS) == tables.SiteRow._fields


def test_columns_that_say_nothing_are_left_out(record: UpgradeRecord) -> None:
    bare = tables.filled_columns(tables.site_rows(record.sites))
    assert not {"primary_error", "ghost_error"} & set(bare)
    pairing = Pairing(
        name=record.sites[0].name, intrinsic=(0,), source=(0,), order=(0, 1), primary_error=0.0, ghost_error=0.5
    )
    full = tables.filled_columns(tables.site_rows(record.sites, [pairing]))
    assert set(full) - set(bare) == {"primary_error", "ghost_error"}


def test_totals_add_up(record: UpgradeRecord) -> None:
    sites, others, network = tables.totals(record)
    assert (sites.before + others.before, sites.after + others.after) == (network.before, network.after)
    assert others.before == others.after  # what is no site was not touched


def test_a_resumed_epoch_counts_once_and_broken_figures_not_at_all() -> None:
    def line(epoch: object, loss: object) -> dict[str, object]:
        return {"event": "epoch", "step": "distil", "epoch": epoch, "loss": loss}

    rows = tables.epoch_rows(
        [line(2, 0.5), line(1, 1.0), line(1, 0.9), line("x", 1), line(3, math.nan), {"event": "done"}]
    )
    assert [(e.epoch, e.loss) for e in rows["distil"]] == [(1, 0.9), (2, 0.5), (3, None)]


def test_the_command_can_be_pasted() -> None:
    assert (
        tables.command({"command": ["ghostnets", "upgrade", "--out", "my run"]}) == "ghostnets upgrade --out 'my run'"
    )
    assert tables.command({"command": "make demo"}) == "make demo"
    assert tables.command({}) is None


def test_the_environment_is_flat_and_without_the_command() -> None:
    rows = tables.environment_rows({"command": "x", "cpu_name": "made up", "versions": {"a": "1", "b": [2, None]}})
    assert rows == [("cpu name", "made up"), ("versions", "a 1, b 2, null")]
