# SPDX-License-Identifier: Apache-2.0
"""``ghostnets bench`` as people call it: what it prints and leaves, and what careless input gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ghostnets.cli import app
from ghostnets.deploy import race
from ghostnets.deploy.targets import TARGETS
from ghostnets.measure import peak
from runners import layered, target

COMMAND = [sys.executable, "-m", "ghostnets"]
NET = Path(__file__).parents[1] / "tiny.py"
KEYS = {"target", "threads", "precision", "median_ms", "q1_ms", "q3_ms", "ratio"}

DOUBLER = """
from torch import nn

def build():
    network = nn.Conv2d(3, 3, 1, groups=3, bias=False)
    nn.init.constant_(network.weight, 2.0)
    return network
"""


def run(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network that doubles, and runtimes that do, in this process: PyTorch takes seconds to load."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(DOUBLER)
    monkeypatch.setattr(race, "GAP", 0.0)
    monkeypatch.setattr(peak, "SECONDS", 0.001)
    for row in (target("double"), target("other", layered), target("absent", needs=("no_such_package",))):
        monkeypatch.setitem(TARGETS, row.name, row)
    return tmp_path


def bench(*words: str) -> int:
    return app._run(["bench", *words], debug=False)


SHORT = ("--input-size", "4,5", "--rounds", "2", "--seconds", "0.02")


def test_a_runtime_is_raced_and_a_page_is_left(tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    words = (
        "--targets",
        "onnxruntime",
        "--input-size",
        "16,16",
        "--rounds",
        "2",
        "--seconds",
        "0.2",
        "--out",
        "build/b",
    )
    done = run(tmp_path, "bench", f"{NET}:build", *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tiny.py:build: one image of 1×16×16")
    assert [line.split()[0] for line in lines if " f32 " in line] == ["onnxruntime"] * 2
    assert lines[-1] == "report: build/b/report.html"
    record = json.loads((tmp_path / "build" / "b" / "bench.json").read_text())
    assert all(row["failure"] == "" and row["max_rel"] < 1e-5 and row["median_ms"] > 0 for row in record["rows"])
    assert record["environment"]["command"][:2] == ["ghostnets", "bench"]
    first = (tmp_path / "build" / "b" / "report.html").read_bytes()
    again = run(tmp_path, "report", "build/b")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "build" / "b" / "report.html").read_bytes() == first


def test_json_is_the_record_and_nothing_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not bench("net.py:build", "--targets", "double,other,absent", *SHORT, "--seed", "3", "--json", "--layers")
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert [row["target"] for row in record["rows"]] == ["double", "other", "double (again)"]
    assert all(set(row) >= KEYS for row in record["rows"])
    assert record["rows"][0]["ratio"] == 1
    assert [layer["name"] for layer in record["layers"]] == ["first", "</script><b>"]
    assert (record["model"], record["seed"], record["rounds"]) == ("net.py:build", 3, 2)
    assert (record["input_size"], record["macs"]) == ([3, 4, 5], 60)
    assert "note: absent is left out: no_such_package is not installed (pip install no_such_package)" in said.err
    assert [path.name for path in here.iterdir() if path.name != "__pycache__"] == ["net.py"]


def test_every_number_of_threads_is_printed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ghostnets.benchmark.cores", lambda _: None)  # this machine may have one processor
    assert not bench(
        "net.py:build", "--targets", " double , other", "--threads", "2,1", *SHORT, "--out", str(here / "out")
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if " f32 " in line] == [
        ["double", "2"], ["other", "2"], ["double", "(again)"], ["double", "1"], ["other", "1"], ["double", "(again)"],
    ]  # fmt: skip
    assert "With 2 threads " in "".join(lines)
    assert "With 1 thread " in "".join(lines)
    assert {path.name for path in (here / "out").iterdir()} == {"bench.json", "report.html"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet20", "--targets", "onnx"], "there is no target 'onnx': choose from c, c-avx2, c-scalar, openvino"),
        (["resnet20", "--targets", ","], "there is no target to race"),
        (["resnet20", "--targets", "torch,torch"], "the target torch is named twice"),
        (["resnet20", "--threads", "1,x"], "--threads '1,x' is not understood"),
        (["resnet20", "--targets", "double", "--threads", "0"], "threads 0: give one or more different numbers"),
        (["resnet20", "--targets", "double", "--threads", "99999"], "99999 threads were asked"),
        (["resnet20", "--input-size", "32"], "--input-size '32' is not understood"),
        (["resnet20", "--targets", "double", "--rounds", "0"], "a race of 0 rounds"),
        (["resnet20", "--targets", "double", "--seconds", "nan"], "in nan seconds"),
        (["resnet20", "--seed", "-1"], "seed -1 must be at least 0"),
        (["resnet99", "--targets", "double"], "there is no network 'resnet99'"),
        (["resnet20", "--targets", "double", "--out", "full"], "full is not empty and holds no benchmark (a.txt)"),
        (["resnet20", "--targets", "absent"], "none of the targets is installed: pip install no_such_package"),
        (["full", "--targets", "double"], "config.json"),
        (["gone.py:build", "--targets", "double"], "gone.py cannot be read"),
    ],
)
def test_careless_input_gets_a_sentence_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (here / "full").mkdir()
    (here / "full" / "a.txt").write_text("mine")
    assert bench(*words, *(("--out", "x") if "--out" not in words else ())) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert sorted(path.name for path in here.iterdir()) == ["full", "net.py"]


def test_help_has_an_example_and_names_every_target(tmp_path: Path) -> None:
    said = " ".join(run(tmp_path, "bench", "--help").stdout.split())
    assert "Example: ghostnets bench" in said
    assert all(f"{name}," in said or f"{name} " in said for name in TARGETS)
    assert "bench.json" in run(tmp_path, "report", "--help").stdout
