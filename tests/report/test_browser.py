# SPDX-License-Identifier: Apache-2.0
"""The pages in a real browser: what a reader clicks, types and sees. Pictures of them are left in build/screenshots."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ghostnets.records import write_json
from ghostnets.report.page import write_report
from made_up import HOSTILE, INSPECTION, TRAINING, TRAINING_REQUEST, inspection_arrays

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCREENSHOTS = Path(os.environ.get("GHOSTNETS_SCREENSHOTS") or Path(__file__).parents[2] / "build" / "screenshots")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium here")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page that is open, and what went wrong on it."""

    page: Any
    errors: list[str] = field(default_factory=list[str])
    requests: list[str] = field(default_factory=list[str])

    def picture(self, name: str) -> bytes:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        return self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")

    def open_(path: Path) -> Seen:
        seen = Seen(context.new_page())
        seen.page.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.on("request", lambda asked: seen.requests.append(asked.url))
        seen.page.goto(path.as_uri())
        return seen

    yield open_
    context.close()


@pytest.fixture
def inspection(tmp_path: Path) -> Path:
    write_json(tmp_path / "inspection.json", INSPECTION)
    np.savez(tmp_path / "maps.npz", **inspection_arrays())  # pyright: ignore[reportArgumentType]
    return write_report(tmp_path)


@pytest.fixture
def training(tmp_path: Path) -> Path:
    write_json(tmp_path / "run" / "train.json", TRAINING)
    write_json(tmp_path / "run" / "request.json", TRAINING_REQUEST)
    return write_report(tmp_path / "run")


def quiet(seen: Seen) -> None:
    """No error was printed, and nothing was asked of anyone but the page itself."""
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("data:", seen.page.url.partition("#")[0]))] == []


def test_a_click_on_a_layer_shows_its_maps_and_pointing_at_one_its_source(opened: Any, inspection: Path) -> None:
    seen = opened(inspection)
    page = seen.page
    assert page.inner_text("#layer-name") == "one"
    assert page.locator("#maps button").count() == 4
    page.hover("#maps button:nth-child(3)")
    assert page.inner_text("#map-words") == "Map 1 and one filter explain 40.0 % of map 2."
    assert page.locator("#maps .ghost").get_attribute("aria-label") == "map 2"
    assert page.locator("#maps .source").get_attribute("aria-label") == "map 1"
    page.hover("#maps button:nth-child(4)")
    assert page.inner_text("#map-words") == "Map 3 says nothing of its own."
    page.click("#strip button:nth-child(3)")
    assert page.inner_text("#layer-name") == HOSTILE
    assert page.locator("#maps button").count() == 2
    seen.picture("inspection-light")
    quiet(seen)


def test_maps_are_shown_as_they_were_kept(opened: Any, inspection: Path) -> None:
    """Black and white maps, looked at pixel by pixel where they stand on the screen."""
    arrays = inspection_arrays()
    for k in range(4):
        arrays["layer:one"][k] = 255 * (k % 2)
    np.savez(inspection.with_name("maps.npz"), **arrays)  # pyright: ignore[reportArgumentType]
    seen = opened(write_report(inspection.parent))
    for k in range(4):
        shot = seen.page.locator(f"#maps button:nth-child({k + 1})").screenshot()
        middle = np.array(Image.open(io.BytesIO(shot)).convert("L")).astype(float)
        assert abs(middle[10:-10, 10:-10].mean() - 255 * (k % 2)) < 40


def test_the_strip_is_moved_through_with_the_arrow_keys(opened: Any, inspection: Path) -> None:
    page = opened(inspection).page
    page.focus("#strip button:nth-child(1)")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#layer-name") == "two"
    page.keyboard.press("End")
    assert page.inner_text("#layer-name") == HOSTILE
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#layer-name") == HOSTILE
    page.keyboard.press("Home")
    assert page.locator("#strip [aria-pressed=true]").get_attribute("data-layer") == "0"


def test_the_strip_is_coloured_by_redundancy_or_by_time(opened: Any, inspection: Path) -> None:
    page = opened(inspection).page

    def colours() -> list[str]:
        return page.eval_on_selector_all(
            "#strip button", "all => all.map(one => getComputedStyle(one).backgroundColor)"
        )

    before = colours()
    assert before[0] != before[1]
    page.check("input[value=second]")
    after = colours()
    assert after[0] == after[1] != after[2]  # 0.5, 0.5 and 2 ms
    assert after[0] != before[0]


def test_a_row_of_the_table_leads_to_its_layer(opened: Any, inspection: Path) -> None:
    page = opened(inspection).page
    page.click("#site-2")
    assert page.inner_text("#layer-name") == "two"


def test_an_upgrade_s_page_shows_which_map_each_ghost_is_made_from(opened: Any, drawn: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(drawn, tmp_path / "upgrade"))
    pairing = next(one for one in json.loads((folder / "transfer.json").read_text()))
    plan = json.loads((folder / "plan.json").read_text())
    (place,) = [k for k, one in enumerate(plan["decisions"]) if one["name"] == pairing["name"]]
    ratio, computed = plan["decisions"][place]["ratio"], len(pairing["intrinsic"])
    maps = np.zeros((len(pairing["order"]), 8, 8), np.uint8)
    arrays = {f"layer:{pairing['name']}": maps, f"layer:{pairing['name']}#": np.arange(len(maps), dtype=np.int32)}
    np.savez(folder / "maps.npz", **arrays)  # pyright: ignore[reportArgumentType]
    seen = opened(write_report(folder))
    page = seen.page
    page.click(f"#strip button:nth-child({place + 1})")
    assert page.inner_text("#layer-name") == pairing["name"]
    page.hover(f"#maps button:nth-child({len(maps)})")
    source = (len(maps) - 1 - computed) // (ratio - 1)
    assert f"is a ghost of map {source}, made by a 3×3 filter" in page.inner_text("#map-words")
    assert page.locator("#maps .source").get_attribute("aria-label") == f"map {source}"
    page.hover("#maps button:nth-child(1)")
    assert page.inner_text("#map-words") == f"Map 0 (the original's {pairing['order'][0]}) is computed."
    assert page.locator("#maps .source").count() == 0
    seen.picture("upgrade-light")
    quiet(seen)


def test_tables_are_sorted_and_searched(opened: Any, inspection: Path) -> None:
    seen = opened(inspection)
    page = seen.page

    def names() -> list[str]:
        return page.locator("#site-table tbody tr:visible .name").all_inner_texts()

    page.click("#site-table thead button:has-text('ms')")
    assert names() == ["one", "two", HOSTILE]
    page.click("#site-table thead button:has-text('ms')")
    assert names()[0] == HOSTILE
    assert page.locator("#site-table thead [aria-sort=descending]").count() == 1
    page.fill("#search", "tw")
    assert names() == ["two"]
    assert page.inner_text("#found").startswith("1 of 3")
    page.press("#search", "Escape")
    assert len(names()) == 3
    quiet(seen)


@pytest.mark.parametrize("name", ["inspection", "training", "drawn"])
def test_every_page_is_light_or_dark_and_remembers(opened: Any, request: pytest.FixtureRequest, name: str) -> None:
    made: Path = request.getfixturevalue(name)
    path = made if made.is_file() else made / "report.html"
    seen = opened(path)
    page = seen.page

    def paper() -> str:
        return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    light = paper()
    page.click("#theme")
    dark = paper()
    assert light != dark
    seen.picture(f"{name}-dark")
    page.reload()
    assert paper() == dark
    page.click("#theme")
    page.emulate_media(color_scheme="dark")
    assert paper() == light  # what was chosen wins over what the system says
    quiet(seen)


@pytest.mark.parametrize("name", ["inspection", "training", "drawn"])
@pytest.mark.parametrize("width", [380, 800, 1600])
def test_no_page_is_wider_than_its_window(opened: Any, request: pytest.FixtureRequest, name: str, width: int) -> None:
    made: Path = request.getfixturevalue(name)
    seen = opened(made if made.is_file() else made / "report.html")
    seen.page.set_viewport_size({"width": width, "height": 800})
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 380:
        seen.picture(f"{name}-narrow")


@pytest.mark.parametrize("name", ["inspection", "training", "drawn"])
def test_every_page_prints(opened: Any, request: pytest.FixtureRequest, name: str) -> None:
    made: Path = request.getfixturevalue(name)
    seen = opened(made if made.is_file() else made / "report.html")
    seen.page.emulate_media(media="print")
    assert seen.page.locator("#theme").is_hidden()
    assert seen.page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
