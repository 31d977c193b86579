# SPDX-License-Identifier: Apache-2.0
"""What the charts draw, read back from their axes and from the SVG text."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes

from ghostnets.records import UpgradeRecord, from_json, read_json
from ghostnets.report import figures
from ghostnets.report.tables import Epoch


@pytest.fixture
def record(folder: Path) -> UpgradeRecord:
    return from_json(UpgradeRecord, read_json(folder / "upgrade.json"))


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - our own chart


def points(axes: Axes, line: int = 0) -> list[list[float]]:
    return np.asarray(axes.lines[line].get_xydata()).tolist()


def heights(svg: str, pattern: str) -> list[float]:
    """The heights, in drawing units, of the bars whose id matches."""
    found: list[float] = []
    for group in parse(svg).iter("g"):
        if re.fullmatch(pattern, group.get("id", "")):
            path = next(group.iter("path")).attrib["d"]
            ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]
            found.append(max(ys) - min(ys))
    return found


def test_the_bars_are_as_tall_as_the_figures_in_the_record(record: UpgradeRecord) -> None:
    svg = figures.to_svg(figures.macs_by_site(record.sites), "m", "chart")
    before, after = heights(svg, r"m-site-\d+-before"), heights(svg, r"m-site-\d+-bar")
    unit = before[0] / record.sites[0].macs_before
    assert before == pytest.approx([d.macs_before * unit for d in record.sites], rel=1e-4)
    assert after == pytest.approx([d.macs_after * unit for d in record.sites], rel=1e-4)


def test_the_steps_and_the_original_are_drawn_where_they_belong(record: UpgradeRecord) -> None:
    (axes,) = figures.accuracy_by_step(record).axes
    lines = {line.get_gid(): line for line in axes.lines}
    assert np.asarray(lines["steps"].get_ydata()).tolist() == [s.top1 for s in record.steps]
    assert np.unique(lines["original"].get_ydata()).tolist() == [record.before.top1]
    assert lines["original"].get_linestyle() == "--"
    assert lines["steps"].get_linestyle() == "-"
    low, high = axes.get_ylim()
    assert low < min(s.top1 for s in record.steps)
    assert high > record.before.top1
    assert axes.get_title(loc="left").endswith("%")


def test_the_curve_has_a_panel_for_each_figure_that_was_noted() -> None:
    epochs = [Epoch(1, 2.0, None, None), Epoch(2, 1.0, 90.0, 300.0), Epoch(3, None, 91.0, None)]
    loss, accuracy = figures.training_curve(epochs, "distil").axes
    assert points(loss) == [[1, 2], [2, 1]]
    assert points(accuracy) == [[2, 90], [3, 91]]
    assert len(figures.training_curve([Epoch(1, 2.0, None, None)], "blocks").axes) == 1


def test_the_same_record_gives_the_same_text_and_ids_do_not_meet(record: UpgradeRecord) -> None:
    first, again = (figures.to_svg(figures.macs_by_site(record.sites), "a", "chart") for _ in range(2))
    other = figures.to_svg(figures.accuracy_by_step(record), "b", "chart")
    assert first == again

    def ids(svg: str) -> set[str]:
        return {node.attrib["id"] for node in parse(svg).iter() if "id" in node.attrib}

    assert ids(first)
    assert ids(other)
    assert not ids(first) & ids(other)
    for svg in (first, other):
        used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'<use [^>]*href="#([^"]+)"', svg))
        assert used
        assert used <= ids(svg)


def test_colours_are_the_page_s_and_nothing_is_fetched(record: UpgradeRecord) -> None:
    for figure in (figures.macs_by_site(record.sites), figures.accuracy_by_step(record)):
        svg = figures.to_svg(figure, "x", "a <label> & more")
        assert not re.findall(r"(?:fill|stroke): #", svg)
        assert "currentColor" in svg
        assert "var(--blue" in svg
        assert "var(--sans" in svg
        assert "http" not in svg
        assert "<style" not in svg
        assert parse(svg).attrib["aria-label"] == "a <label> & more"


def test_marks_differ_in_grey_too() -> None:
    def luminance(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert abs(luminance(figures.BLUE) - luminance(figures.ORANGE)) > 0.2
    assert abs(luminance(figures.ORANGE) - luminance(figures.FAINT)) > 0.2


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a$b_c$^{", "\x00\x1b[31m", "層.卷积", "x" * 300])
def test_any_layer_name_can_be_drawn(record: UpgradeRecord, name: str) -> None:
    sites = (replace(record.sites[0], name=name), *record.sites[1:3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = figures.to_svg(figures.macs_by_site(sites), "m", name.strip("\x00\x1b"), figures.site_tooltips(sites))
    assert "<script" not in svg
    root = parse(svg)
    titles = [node.text or "" for node in root.iter("title")]
    assert len(titles) == 6
    assert "\ufffd" in titles[0] or titles[0].startswith(name)
    labels = [node.text or "" for node in root.iter("text")]
    assert any(label == name or "…" in label or "\ufffd" in label for label in labels)


@pytest.mark.parametrize("count", [1, 54, 200])
def test_names_are_thinned_out_before_they_collide(record: UpgradeRecord, count: int) -> None:
    sites = tuple(replace(record.sites[0], name=f"layer{i}") for i in range(count))
    (axes,) = figures.macs_by_site(sites).axes
    assert 0 < len(axes.get_xticks()) <= figures.LABELS


def test_flat_and_single_values_can_be_drawn(record: UpgradeRecord) -> None:
    equal = replace(record, steps=(replace(record.steps[0], top1=record.before.top1),))
    low, high = figures.accuracy_by_step(equal).axes[0].get_ylim()
    assert high - low > 0.5
    free = (replace(record.sites[0], macs_before=0, macs_after=0),)
    figures.to_svg(figures.macs_by_site(free), "m", "chart")


def test_global_settings_are_left_alone(record: UpgradeRecord) -> None:
    before = dict(matplotlib.rcParams)
    figures.to_svg(figures.accuracy_by_step(record), "a", "chart")
    assert dict(matplotlib.rcParams) == before
