# SPDX-License-Identifier: Apache-2.0
"""The page as a browser's parser sees it, held against the records it was drawn from."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ghostnets
from ghostnets.errors import UserError
from ghostnets.report.page import write_report
from pages import Node, Tree


def look(folder: Path) -> Node:
    return Tree((folder / "report.html").read_text(encoding="utf-8")).open[0]


def draw(folder: Path) -> Node:
    return look(write_report(folder).parent)


def edit(folder: Path, name: str, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))


def body_rows(page: Node) -> list[Node]:
    (table,) = page.all("table", id="site-table")
    return table.all("tbody")[0].all("tr")


def test_the_page_is_well_formed_and_has_its_parts(drawn: Path) -> None:
    page = look(drawn)
    assert [h.text for h in page.all("h1")] == ["resnet56"]
    assert [h.text for h in page.all("h2")] == [
        "Accuracy after each step",
        "Where the multiply-adds went",
        "Layer by layer",
        "Training",
        "Environment",
    ]
    assert len(page.all("main")) == len(page.all("header")) == len(page.all("footer")) == 1
    assert len(page.all("svg", role="img")) == 4  # accuracy, MACs, and a curve for each of two steps
    ids = [node.attrs["id"] for node in page.everything() if "id" in node.attrs]
    assert len(ids) == len(set(ids))
    assert "ghostnets upgrade --model resnet56" in page.all("pre")[0].text
    assert "2024-05-01 12:24:30" in page.all("header")[0].text


def test_nothing_is_fetched_from_anywhere(drawn: Path) -> None:
    page = look(drawn)
    for node in page.everything():
        for name, value in node.attrs.items():
            assert (
                node.tag == "a"
                or name not in {"src", "href", "data", "action"}
                or (value or "").startswith(("#", "data:"))
            )
            assert not name.startswith("on"), "no handlers in attributes: the policy would stop them"
    text = (drawn / "report.html").read_text(encoding="utf-8")
    inside = ("#", "${sprite}")  # the script puts the page's own pictures in: test_inspection_page looks at them
    assert all(target.startswith(inside) for target in re.findall(r"url\(\s*['\"]?([^)]*)\)", text))
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text


def test_the_policy_allows_exactly_the_script_of_the_page(drawn: Path) -> None:
    page = look(drawn)
    (script,) = page.all("script")
    (meta,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    digest = base64.b64encode(hashlib.sha256(script.own.encode()).digest()).decode()
    policy = meta.attrs["content"] or ""
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_table_has_a_row_a_site_with_the_plan_s_figures(drawn: Path) -> None:
    decisions = json.loads((drawn / "plan.json").read_text())["decisions"]
    rows = body_rows(look(drawn))
    assert len(rows) == len(decisions) == 54
    for row, decision in zip(rows, decisions, strict=True):
        assert row.all("th")[0].text == decision["name"]
        values = [float(cell.attrs["data-value"] or "nan") for cell in row.all("td") if "data-value" in cell.attrs]
        assert decision["macs_before"] in values
        assert decision["macs_after"] in values
        assert decision["reason"] in row.text


def test_every_numeric_cell_can_be_sorted_by_number(drawn: Path) -> None:
    page = look(drawn)
    (table,) = page.all("table", id="site-table")
    heads = table.all("thead")[0].all("th")
    numeric = {i for i, head in enumerate(heads) if "n" in (head.attrs.get("class") or "").split()}
    assert len(heads) == 13
    assert len(numeric) == 9
    for row in body_rows(page):
        assert len(row.children) == len(heads)
        for i, cell in enumerate(row.children):
            assert ("data-value" in cell.attrs) == (i in numeric and cell.text != "–")
            float(cell.attrs.get("data-value") or 0)
    for foot in table.all("tfoot")[0].all("tr"):
        assert len(foot.children) == len(heads)


def test_the_cards_and_the_foot_equal_sums_over_the_plan(drawn: Path) -> None:
    plan = json.loads((drawn / "plan.json").read_text())
    page = look(drawn)
    others = plan["macs_before"] - sum(d["macs_before"] for d in plan["decisions"])
    before = others + sum(d["macs_before"] for d in plan["decisions"])
    after = others + sum(d["macs_after"] for d in plan["decisions"])
    (macs,) = page.all("li", id="card-2")
    assert macs.all("span")[0].text == f"{after / 1e6:.1f} M"
    assert f"before: {before / 1e6:.1f} M" in macs.text
    assert f"−{(1 - after / before) * 100:.1f} % · {before / after:.2f}× fewer" in macs.text
    (params,) = page.all("li", id="card-3")
    spared = sum(d["params_before"] - d["params_after"] for d in plan["decisions"])
    assert params.all("span")[0].text == f"{(plan['params_before'] - spared) / 1e6:.3f} M"
    network = page.all("tfoot")[0].all("tr")[-1]
    assert network.text == f"network {before / 1e6:.3f} {after / 1e6:.3f} −{(1 - after / before) * 100:.1f} %"
    (bar,) = macs.all("i")
    assert bar.attrs["style"] == f"width: {after / before * 100:.2f}%"


def test_redrawing_gives_the_same_bytes(drawn: Path, folder: Path) -> None:
    assert write_report(folder).read_bytes() == (drawn / "report.html").read_bytes()


def test_hostile_words_stay_words(folder: Path) -> None:
    hostile = '</title></script><script>alert(1)</script><img src=x onerror="alert(2)">\'"{{ 7 * 7 }}'

    def poison(data: dict[str, object]) -> None:
        data.update(model=hostile, data=hostile, environment={"command": hostile, hostile: {hostile: [hostile]}})
        sites = data["sites"]
        assert isinstance(sites, list)
        sites[0].update(name=hostile, reason=hostile)
        sites[1].update(name="javascript:alert(3)", reason="$x^2$ \x00 層")

    edit(folder, "upgrade.json", poison)
    run = folder / "run.jsonl"
    run.write_text(
        run.read_text() + json.dumps({"step": hostile, "event": "epoch", "epoch": 1, "loss": 1, "time": hostile})
    )
    page = draw(folder)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert page.all("h1")[0].own == hostile
    assert body_rows(page)[0].all("th")[0].own == hostile
    assert "49" not in page.all("h1")[0].text


def test_what_is_missing_is_left_out_and_said(folder: Path) -> None:
    for name in ("plan.json", "transfer.json", "run.jsonl"):
        (folder / name).unlink()
    page = draw(folder)
    assert len(page.all("svg", role="img")) == 2
    heads = [head.text for head in page.all("thead")[1].all("th")]
    assert not {"ghost error", "KL, nats", "order"} & set(heads)
    assert "reason" in heads
    main = page.all("main")[0].text
    assert "There is no run.jsonl" in main
    assert "There is no transfer.json" in main
    assert "Date" not in page.all("header")[0].text


def test_a_record_without_sites_steps_or_environment_still_has_a_page(folder: Path) -> None:
    edit(folder, "upgrade.json", lambda data: data.update(sites=[], steps=[], environment={}))
    main = draw(folder).all("main")[0].text
    assert "No step was recorded." in main
    assert "The network has no site" in main


def test_a_plan_edited_afterwards_is_pointed_out(folder: Path, drawn: Path) -> None:
    def swap(data: dict[str, object]) -> None:
        decisions = data["decisions"]
        assert isinstance(decisions, list)
        decisions[0]["ratio"] = 8

    assert "differs from what was done" not in look(drawn).text
    assert "KL, nats" in look(drawn).text
    edit(folder, "plan.json", swap)
    page = draw(folder)
    assert "differs from what was done" in page.text
    assert "KL, nats" not in page.text  # that is the plan's, and the plan is another one now


def test_the_log_of_a_killed_run_is_read_as_far_as_it_goes(folder: Path) -> None:
    run = folder / "run.jsonl"
    run.write_text(run.read_text() + '{"step": "distil", "event": "ep')
    page = draw(folder)
    assert "1 line of run.jsonl could not be read and is left out." in page.text
    assert len(page.all("svg", role="img")) == 4


@pytest.mark.parametrize("name", ["upgrade.json", "plan.json", "transfer.json"])
@pytest.mark.parametrize("content", ["{", "[3]", '{"schema": 1}'])
def test_a_record_that_cannot_be_read_is_refused_by_name(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_folder_without_any_record_is_refused_with_their_names(tmp_path: Path) -> None:
    names = r"upgrade\.json, inspection\.json, train\.json or bench\.json"
    with pytest.raises(UserError, match=rf"holds no record that a page could be drawn from: {names}$"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_drawn_without_torch(folder: Path, drawn: Path) -> None:
    source = Path(ghostnets.__file__).parents[1]
    code = (
        f"import sys; sys.modules['torch'] = None; sys.path.insert(0, {str(source)!r})\n"
        "from pathlib import Path\n"
        "from ghostnets.report.page import write_report\n"
        f"write_report(Path({str(folder)!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Another process, with hashes of its own, draws the same bytes.
    assert (folder / "report.html").read_bytes() == (drawn / "report.html").read_bytes()


def test_what_each_layer_takes_stands_in_the_table(folder: Path) -> None:
    names = [site["name"] for site in json.loads((folder / "upgrade.json").read_text())["sites"]]
    run, before = folder / "run.jsonl", draw(folder)
    assert "ms after" not in before.text
    sites: dict[str, object] = {name: {"before_ms": 2 + place, "after_ms": 1.5} for place, name in enumerate(names[1:])}
    event = {"step": "latency", "event": "end", "sites": {**sites, names[0]: "long", "gone": {"before_ms": 1}}}
    run.write_text(run.read_text() + json.dumps(event) + "\n")
    page = draw(folder)
    assert "ms after" in page.text
    rows = [row.text for row in body_rows(page)]
    assert "1.500" not in rows[0]
    assert all(f"{2 + place:.3f} 1.500" in row for place, row in enumerate(rows[1:]))
