# SPDX-License-Identifier: Apache-2.0
"""``ghostnets inspect`` as people call it: what it prints and leaves, and what careless input gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from verbs import ghostnets

COMMAND = [sys.executable, "-m", "ghostnets"]
NET = Path(__file__).parents[1] / "tiny.py"


def run(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=cwd, capture_output=True, text=True, check=False)


def test_a_network_that_comes_trained(tmp_path: Path) -> None:
    done = run(tmp_path, "inspect", "resnet20.digits", "--data", "digits", "--count", "32", "--out", "build/x")
    assert done.returncode == 0, done.stderr
    assert "layer3.2.conv2" in done.stdout
    assert "stage: last block from first" in done.stdout
    assert "One other map and a 3×3 filter explain" in done.stdout
    assert done.stdout.endswith("report: build/x/report.html\n")
    left = {path.name for path in (tmp_path / "build" / "x").iterdir()}
    assert left == {"inspection.json", "maps.npz", "look-alikes.png", "look-alikes.svg", "report.html"}
    first = (tmp_path / "build" / "x" / "report.html").read_bytes()
    again = run(tmp_path, "report", "build/x")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "build" / "x" / "report.html").read_bytes() == first


def test_a_network_and_photographs_of_one_s_own(tmp_path: Path) -> None:
    for k in range(3):
        pixels = np.random.default_rng(k).integers(256, size=(40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    words = ["--input-size", "32,32", "--kernel", "1", "--layer", "conv2", "--json", "--out", "out"]
    done = run(tmp_path, "inspect", f"{NET}:build", "0.png", "1.png", "2.png", "bad.png", *words)
    assert done.returncode == 0, done.stderr
    assert "note: bad.png is no image, or cut short, and is left out" in done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert (record["model"], record["images"], record["kernel"], record["shown"]) == ("tiny.py:build", 3, 1, "conv2")
    assert [layer["name"] for layer in record["layers"]] == ["stem.0", "conv1", "conv2", "down"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet20.digits", "--out", "x"], "name either image files or --data"),
        (["resnet20.digits", "--data", "digits", "--count", "0", "--out", "x"], "--count 0 must be at least 1"),
        (
            ["resnet20.digits", "--data", "digits", "--kernel", "2", "--out", "x"],
            "kernel 2 of the cheap filters must be odd",
        ),
        (
            ["resnet20.digits", "--data", "digits", "--layer", "conv", "--out", "x"],
            "has no module 'conv' (did you mean conv1?)",
        ),
        (["resnet20.digits", "--data", "digits", "--out", "full"], "full is not empty and holds no inspection (a.txt)"),
        (["resnet20.digits", "a.png", "--out", "x"], "a.png does not exist"),
        (["resnet110", "--data", "digits", "--out", "x"], "resnet110 does not come trained"),
        (["resnet99", "--data", "digits", "--out", "x"], "resnet99"),
        (["resnet20.digits", "--data", "digits", "--data-dir", "x", "--out", "x"], "data_dir x is where CIFAR lies"),
        (["resnet20.digits", "--data", "digits", "--seed", "-1", "--out", "x"], "seed -1 must be at least 0"),
    ],
)
def test_careless_input_gets_a_sentence_and_leaves_nothing(tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    done = ghostnets(tmp_path, "inspect", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "x").exists()


def test_help_has_an_example(tmp_path: Path) -> None:
    assert "Example: ghostnets inspect" in run(tmp_path, "inspect", "--help").stdout
