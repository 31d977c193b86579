# SPDX-License-Identifier: Apache-2.0
"""The page of an inspection, held against the record and the maps it was drawn from."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ghostnets.errors import UserError
from ghostnets.records import write_json
from ghostnets.report.page import write_report
from made_up import HOSTILE, INSPECTION, inspection_arrays
from pages import Tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "inspection.json", INSPECTION)
    np.savez(tmp_path / "maps.npz", **inspection_arrays())  # pyright: ignore[reportArgumentType]
    return tmp_path


def layers_in(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="layers">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_strip_has_a_bar_a_layer(folder: Path) -> None:
    page = Tree(write_report(folder).read_text()).open[0]
    (strip,) = page.all("div", id="strip")
    bars = strip.all("button")
    assert [bar.attrs["data-layer"] for bar in bars] == ["0", "1", "2"]
    styles = [bar.attrs["style"] for bar in bars]
    assert styles[0] == "--first: 0.6000; --second: 0.2500"  # 1 less the mean of 0.2, 0.4 and 0.6; 0.5 of 2 ms
    assert styles[1] == "--first: 0.0000; --second: 0.2500"
    assert "explained 60 %" in str(bars[0].attrs["title"])
    assert "NaN or infinite" in str(bars[1].attrs["title"])


def test_the_script_gets_every_map_and_its_source(folder: Path) -> None:
    found = layers_in(write_report(folder).read_text())
    assert [one["name"] for one in found] == ["one", "two", HOSTILE]
    assert [(row["map"], row["from"]) for row in found[0]["maps"]] == [(0, 1), (1, 0), (2, 1), (3, -1)]
    assert found[0]["maps"][2]["words"] == "Map 1 and one filter explain 40.0 % of map 2."
    assert found[1]["maps"][0] == {"map": 0, "from": -1, "words": "Map 0 says nothing of its own."}
    kind, _, data = found[0]["sprite"].partition(",")
    assert kind == "data:image/webp;base64"
    sheet = np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")).astype(float)
    assert sheet.shape == (8, 8 * 6)
    wanted = np.concatenate([*inspection_arrays()["layer:one"], np.zeros((8, 24))], 1)
    assert np.abs(sheet - wanted).mean() < 30  # noise is the worst that WebP can be given
    assert np.corrcoef(sheet.ravel(), wanted.ravel())[0, 1] > 0.9


def test_the_tables_hold_the_record_s_figures(folder: Path) -> None:
    page = Tree(write_report(folder).read_text()).open[0]
    (table,) = page.all("table", id="site-table")
    rows = [[cell.text for cell in row.children] for row in table.all("tr")]
    assert rows[1] == [
        "1",
        "one",
        "4",
        "8×6",
        "60 %",
        "25 %",
        "50 %",
        "75 %",
        "2.5",
        "1.500",
        "0.50",
        "1 of its maps are constant",
    ]
    assert rows[2][4:9] == ["–"] * 5
    assert page.all("td", **{"data-value": "0.6"})
    assert "map 0 from map 1 0.5 (25.0 %) 0.4 (20.0 %)" in page.text
    assert "stage (3 blocks) 2 4×4 80 %" in page.text


def test_the_look_alikes_are_a_picture(folder: Path) -> None:
    (picture,) = Tree(write_report(folder).read_text()).open[0].all("img")
    kind, _, data = str(picture.attrs["src"]).partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).width > 400


def test_names_from_outside_stay_text(folder: Path) -> None:
    page = write_report(folder).read_text()
    assert "</script><b>" not in page
    Tree(page)


def test_the_same_records_give_the_same_bytes(folder: Path) -> None:
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_without_maps_the_figures_are_still_drawn(folder: Path) -> None:
    (folder / "maps.npz").unlink()
    page = write_report(folder).read_text()
    assert "its maps were not kept" in layers_in(page)[0]["words"]
    assert "<img" not in page
    assert Tree(page).open[0].all("table", id="site-table")


def test_an_inspection_of_which_nothing_can_be_said(folder: Path) -> None:
    nothing = replace(INSPECTION, layers=INSPECTION.layers[1:2], stages=(), pairs=())
    write_json(folder / "inspection.json", nothing)
    page = Tree(write_report(folder).read_text()).open[0]
    assert "Nothing can be said of its maps" in page.text


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 cut off"])
def test_damaged_maps_are_named(folder: Path, content: bytes) -> None:
    (folder / "maps.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"maps\.npz cannot be read: .*; delete it to draw the page without maps"):
        write_report(folder)
    assert not (folder / "report.html").exists()
