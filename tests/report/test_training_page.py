# SPDX-License-Identifier: Apache-2.0
"""The page of a training run, held against its record."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from ghostnets.cli.app import app
from ghostnets.records import write_json
from ghostnets.report import training_page
from ghostnets.report.page import write_report
from made_up import HOSTILE, TRAINING, TRAINING_REQUEST
from pages import Tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "run" / "train.json", TRAINING)
    write_json(tmp_path / "run" / "request.json", TRAINING_REQUEST)
    return tmp_path / "run"


def test_the_page_holds_the_record_s_figures(folder: Path) -> None:
    page = Tree(write_report(folder).read_text()).open[0]
    assert "92.50 % of 1,000 test images recognised after 2 epochs" in page.text
    cards = [" ".join(card.text.split()) for card in page.all("li", **{"class": "card"})]
    assert cards[0] == "Top-1 92.50 % top-5: 99.75 %"
    assert cards[1] == "Log-likelihood -0.250 nats an image; calibration error 0.013"
    assert cards[2] == "Parameters 0.438 M 63.0 M multiply-adds on one image"
    (table,) = page.all("table", id="site-table")
    rows = [[cell.text for cell in row.children] for row in table.all("tr")[1:]]
    assert rows == [["1", "cat", "600", "90.00 %", "95.50 %"], ["2", HOSTILE, "0", "no image", "never said"]]
    assert "opt: sgd <b>" in page.text


def test_the_curve_is_of_the_history(folder: Path) -> None:
    page = write_report(folder).read_text()
    assert "held-out images" in page
    assert "2 epochs, 512 images/s." in page
    without = replace(
        TRAINING, history=tuple({k: v for k, v in row.items() if k != "top1"} for row in TRAINING.history)
    )
    write_json(folder / "train.json", without)
    assert "held-out images" not in write_report(folder).read_text()
    write_json(folder / "train.json", replace(TRAINING, history=()))
    assert "The run noted no epochs" in write_report(folder).read_text()


def test_the_command_is_understood_and_asks_for_the_same(folder: Path) -> None:
    words = shlex.split(training_page.command(TRAINING_REQUEST, folder.name))
    assert words[:2] == ["ghostnets", "train"]
    _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    asked = bound.arguments
    assert asked["model"] == "ghost_resnet20"
    assert (asked["data"], asked["recipe"], asked["hold_out"], asked["seed"]) == ("cifar10", "run/recipe.yaml", 5000, 0)
    assert (asked["mean"], asked["no_flip"], asked["model_kwargs"]) == ("0.5,0.5,0.25", True, ("ratio=4",))
    assert "input_size" not in asked
    assert str(asked["out"]) == "run-again"


def test_without_the_request_there_is_no_command(folder: Path) -> None:
    (folder / "request.json").unlink()
    assert "To repeat it" not in write_report(folder).read_text()


def test_names_from_outside_stay_text(folder: Path) -> None:
    assert "</script><b>" not in write_report(folder).read_text()
