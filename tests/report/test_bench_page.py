# SPDX-License-Identifier: Apache-2.0
"""The page of a benchmark and what a terminal prints of it, held against a record that nobody measured."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ghostnets.cli.app import app
from ghostnets.cli.terminal import bench_summary
from ghostnets.errors import UserError
from ghostnets.records import Bench, BenchRow, LayerTime, write_json
from ghostnets.report import bench_figure, bench_tables
from ghostnets.report.page import write_report
from made_up import HOSTILE
from pages import Tree


def row(target: str, threads: int, median: float, ratio: float | None, **more: object) -> BenchRow:
    given: dict[str, object] = {
        "q1_ms": median - 0.25, "q3_ms": median + 0.5, "min_ms": median - 0.5, "n": 40, "ratio": ratio,
        "ratio_q1": ratio and ratio - 0.125, "ratio_q3": ratio and ratio + 0.125, "max_rel": 2e-6, "max_abs": 1e-5,
        "peak_share": 0.725, "load_s": 0.25, "peak_mib": 61.4, "version": "1.2", "precision": "f32", **more,
    }  # fmt: skip
    return BenchRow(target=target, threads=threads, median_ms=median, **given)  # pyright: ignore[reportArgumentType]


RACED = {"peer": "slow", "speedup": 2.0, "speedup_q1": 1.75, "speedup_q3": 2.25}
RECORD = Bench(
    model=HOSTILE, input_size=(3, 224, 224), macs=141_200_000, rounds=11, seed=4, reference="quick",
    rows=(
        row("quick", 1, 1.5, 1.0, **RACED, disturbed=3), row("slow", 1, 3.0, 2.0, peer="quick", speedup=0.5, speedup_q1=0.4, speedup_q3=0.6),
        row("half", 1, 0.5, 0.33, precision="bf16", peak_share=None), row("odd", 1, 0.1, None, failure="wrong: off by 1.0e+00 of the largest output"),
        row("quick (again)", 1, 1.6, 1.0625),
        BenchRow(target="quick", threads=2, precision="f32", failure="its process died (signal SIGKILL)"),
        row("slow", 2, 1.75, None),
    ),
    layers=(
        LayerTime(target="quick", threads=1, name=HOSTILE, macs=1_500_000, ms=0.0125, peak_share=0.9),
        LayerTime(target="quick", threads=1, name="add", macs=0, ms=0.001, peak_share=None),
    ),
    peak_gflops={"1": 262.4, "2": 520.0}, notes=("gone is left out: gone is not installed (pip install gone)",),
    environment={"cpu": "Some Processor", "command": ["ghostnets", "bench", "a b", "--targets", "c,torch", "--threads", "1,2", "--layers"]},
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "run" / "bench.json", RECORD)
    return tmp_path / "run"


def cells(page: Tree, name: str) -> list[list[str]]:
    (table,) = page.open[0].all("table", id=name)
    return [[cell.text for cell in line.children] for line in table.all("tr")]


def test_the_page_holds_the_record_s_figures(folder: Path) -> None:
    page = Tree(write_report(folder).read_text())
    title, first, slow, half, odd, control, dead, other = cells(page, "rows")
    assert title[:3] == ["target", "threads", "precision"]
    assert "ratio to quick" in title
    assert first == [
        "quick", "1", "f32", "1.500", "1.250–2.000", "1.000", "1.000 (0.875–1.125)", "2.00 (1.75–2.25) as slow", "72",
        "2.0e-06", "0.25", "61", "",
    ]  # fmt: skip
    assert slow[6:8] == ["2.000 (1.875–2.125)", "0.50 (0.40–0.60) as quick"]
    assert (half[2], half[8]) == ("bf16", "–")
    assert (odd[6], odd[-1]) == ("–", "wrong: off by 1.0e+00 of the largest output")
    assert control[0] == "quick (again)"
    assert dead[1:] == ["2", "f32", *["–"] * 9, "its process died (signal SIGKILL)"]
    assert other[0] == "slow"
    text = page.open[0].text
    assert "one image of 3×224×224, 141.2 M multiply-adds, 11 rounds" in text
    assert "262 GFLOP/s with 1 thread, 520 GFLOP/s with 2 threads" in text
    assert "With 1 thread quick is the fastest in float32: 1.5 ms, 2.00 times as fast as slow." in text
    assert "With 2 threads slow is the fastest in float32: 1.75 ms." in text
    assert (
        "quick (again), the same file in a process of its own, has the ratio 1.062 (0.938–1.188) with 1 thread" in text
    )
    assert "In 3 of 66 turns other processes took a core." in text
    assert "Note: gone is left out: gone is not installed (pip install gone)." in text
    assert "quick 1.2, slow 1.2, half 1.2, odd 1.2" in text


def test_layers_can_be_sorted_by_their_figures(folder: Path) -> None:
    page = Tree(write_report(folder).read_text())
    title, first, second = cells(page, "site-table")
    assert title == ["#", "layer", "MACs, M", "ms", "% of peak"]
    assert first == ["1", HOSTILE, "1.500", "0.0125", "90"]
    assert second == ["2", "add", "0.000", "0.0010", "–"]
    (table,) = page.open[0].all("table", id="site-table")
    values = [cell.attrs.get("data-value") for cell in table.all("tr")[1].all("td", **{"class": "n"})]
    assert values == ["1500000", "0.0125", "0.9"]
    assert page.open[0].all("section", id="sites")


def test_without_layers_there_is_no_table_of_them(folder: Path) -> None:
    write_json(folder / "bench.json", replace(RECORD, layers=(), notes=(), peak_gflops={}, environment={}))
    page = Tree(write_report(folder).read_text())
    assert not page.open[0].all("table", id="site-table")
    assert len(page.open[0].all("section", id="sites")) == 1
    assert "peak" not in page.open[0].all("header")[0].text
    assert "To repeat it" not in page.open[0].text


def test_several_targets_layers_are_told_apart() -> None:
    more = replace(RECORD, layers=(*RECORD.layers, replace(RECORD.layers[1], threads=2)))
    assert [line[0].text for line in bench_tables.layer_rows(more)][1:] == [
        "quick, 1 thread: add",
        "quick, 2 threads: add",
    ]


def test_names_from_outside_stay_text(folder: Path) -> None:
    page = write_report(folder).read_text()
    assert "</script><b>" not in page
    assert HOSTILE in Tree(page).open[0].text


def test_bars_are_as_long_as_the_medians_and_lines_span_the_quartiles() -> None:
    rows = [one for one in RECORD.rows if one.threads == 1]
    (axes,) = bench_figure.medians(rows, first="quick", control="quick (again)", title="t").axes
    bars = {patch.get_gid(): patch for patch in axes.patches}
    assert [bars[f"bar-{k}"].get_width() for k in range(5)] == [1.5, 3.0, 0.5, 0.1, 1.6]  # pyright: ignore[reportAttributeAccessIssue]
    lines = {line.get_gid(): line for line in axes.lines}
    assert [np.asarray(lines[f"quartiles-{k}"].get_xdata()).tolist() for k in range(2)] == [[1.25, 2.0], [2.75, 3.5]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["quick", "slow", "half", "odd", "quick (again)"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    colours = [bars[f"bar-{k}"].get_facecolor() for k in range(5)]
    assert len({str(colour) for colour in colours}) == 4  # first, others, wrong, control
    assert bars["bar-3"].get_linestyle() == "--"
    assert "0.1 ms, wrong" in [text.get_text() for text in axes.texts]


def test_a_race_that_nobody_finished_has_an_empty_chart(folder: Path) -> None:
    write_json(folder / "bench.json", replace(RECORD, rows=(RECORD.rows[5],), layers=()))
    text = Tree(write_report(folder).read_text()).open[0].text
    assert "With 2 threads no float32 answer was right." in text


def test_the_command_is_understood(folder: Path) -> None:
    write_report(folder)
    page = Tree((folder / "report.html").read_text())
    (code,) = page.open[0].all("pre", **{"class": "command"})
    words = shlex.split(code.text)
    assert words[:3] == ["ghostnets", "bench", "a b"]
    _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert bound.arguments["model"] == "a b"
    assert bound.arguments["layers"] is True


def test_the_same_record_gives_the_same_page_without_torch(folder: Path) -> None:
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_a_record_that_cannot_be_read_is_refused(folder: Path) -> None:
    data = json.loads((folder / "bench.json").read_text())
    data["rows"][0]["precision"] = "f64"
    (folder / "bench.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"Bench.rows\[0\].precision should be one of 'f32', 'bf16'"):
        write_report(folder)


def test_a_terminal_gets_the_same_figures() -> None:
    text = bench_summary(replace(RECORD, model="net"), Console(width=200, highlight=False))
    lines = text.splitlines()
    assert lines[0] == "net: one image of 3×224×224, 141.2 M multiply-adds, 11 rounds"
    first = next(line for line in lines if line.strip().startswith("quick"))
    assert re.split(r" {2,}", first.strip()) == [
        "quick", "1", "f32", "1.500", "1.250–2.000", "1.000 (0.875–1.125)", "2.00 (1.75–2.25) as slow", "72", "2.0e-06", "61",
    ]  # fmt: skip
    assert any("wrong: off by 1.0e+00 of the largest output" in line for line in lines)
    assert any("0.0125" in line for line in lines)
    assert "In 3 of 66 turns other processes took a core." in text
