# SPDX-License-Identifier: Apache-2.0
"""The real command, as a process of its own: what it prints, how it refuses, how it can be stopped."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ghostnets.models.catalog import create_model
from ghostnets.records import is_partial
from verbs import ghostnets

TINY = Path(__file__).parents[1] / "tiny.py"
COMMAND = [sys.executable, "-c", "from ghostnets.cli.app import main; main()"]
QUICK = ["upgrade", "--ratio", "2", "--calibration-images", "16", "--recover", "none", "--threads", "1"]
STOPPABLE = [
    "upgrade", "--model", f"{TINY}:build", "--data", "digits", "--input-size", "16,16", "--ratio", "2",
    "--calibration-images", "40",
    "--recover", "blocks", "--epochs", "8", "--threads", "1", "--out", "run",
]  # fmt: skip


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=folder, capture_output=True, text=True, check=False)


def filtered(text: str) -> str:
    """Without figures, times and the width of columns, which are not the same everywhere."""
    text = re.sub(r"[−+]?\d[\d.,]*( (k|M|G|ms|s|min|h|%|points)\b)?( \d\d s)?", "#", text)
    text = re.sub(r"(fewer|more|faster|slower|as before|gained)", "~", re.sub(r"#×", "", text))
    lines = [" ".join(line.replace("─", " ").replace("%", "").split()) for line in text.splitlines()]
    return "\n".join(line for line in lines if line)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The embedded network on the embedded digits, as one types it."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, run(folder, *QUICK, "--out", "build/digits")


def test_the_embedded_default_prints_a_table_and_where_the_report_lies(
    digits: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = digits
    assert done.returncode == 0, done.stderr
    assert filtered(done.stdout) == GOLDEN
    assert (folder / "build/digits/report.html").is_file()
    assert "Traceback" not in done.stderr
    assert re.search(r"^plan: 18 of 18 sites become Ghost modules$", done.stderr, re.MULTILINE)
    assert re.search(r"^closed form: top-1 \d\d\.\d\d % after \d+\.\d s$", done.stderr, re.MULTILINE)
    assert "\x1b" not in done.stdout + done.stderr, "no colours where there is no terminal"


GOLDEN = """\
step top-# to original time epochs
closed form # # # –
resnet#digits, digits before after change
top-# # # #
MACs # # # ~
parameters # # # ~
latency # # # ~
# of # sites became Ghost modules (# at ratio #); # stay convolutions.
# ~ multiply-adds and ~, for # of accuracy.
report: build/digits/report.html"""


def test_json_is_the_record_and_nothing_else_and_nothing_is_run_again(
    digits: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = digits
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "build/digits").iterdir()}
    done = run(folder, *QUICK, "--out", "build/digits", "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (folder / "build/digits/upgrade.json").read_text()
    record = json.loads(done.stdout)
    assert list(record["before"]) == ["params", "macs", "top1", "latency_ms"]
    assert (record["before"]["params"], record["before"]["macs"]) == (269_434, 40_256_128)
    assert record["before"]["top1"] == pytest.approx(100 * 357 / 360)  # as stated where the weights are
    assert record["after"]["top1"] > 85
    assert record["environment"]["command"] == ["ghostnets", *QUICK, "--out", "build/digits"]
    assert record["environment"]["threads"] == 1
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "build/digits").iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"run.jsonl"}


def test_the_result_runs_in_a_process_that_has_only_the_folder(
    digits: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = digits
    code = (
        "import ghostnets, json; from ghostnets.measure.accuracy import top1\n"
        "from ghostnets.training.data import load_dataset, normalise\n"
        "d = load_dataset('digits'); network = ghostnets.from_pretrained('build/digits')\n"
        "print(top1(network, [(normalise(d.test.pixels, d.mean, d.std), d.test.labels)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "build/digits/upgrade.json").read_text())
    assert float(done.stdout) == pytest.approx(record["after"]["top1"])


def test_a_reader_who_has_seen_enough_is_no_error(digits: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = digits
    words = [*COMMAND, *QUICK, "--out", "build/digits", "--resume", "--json"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait() == 0
    assert "Traceback" not in said
    assert "Broken" not in said


WITHOUT_TORCH = [sys.executable, "-c", "import sys; sys.modules['torch'] = None\n" + COMMAND[2]]


def test_a_report_is_drawn_again_without_torch(digits: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = digits
    page = folder / "build/digits/report.html"
    before = page.read_bytes()
    page.unlink()
    done = subprocess.run(
        [*WITHOUT_TORCH, "report", "build/digits"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "build/digits/report.html\n", "")
    assert page.read_bytes()[:200] == before[:200]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], ["upgrade", "report", "--version", "--debug"]),
        (["upgrade", "--help"], ["Example: ghostnets upgrade", "--calibration-images", "--resume", "--json"]),
        (["report", "--help"], ["Example: ghostnets report", "DIRECTORY"]),
        (["list", "--help"], ["Example: ghostnets list", "--pretrained", "--json"]),
        (["info", "--help"], ["Example: ghostnets info", "--input-size", "--json"]),
        (["predict", "--help"], ["Example: ghostnets predict", "--top", "--json"]),
        (["--version"], ["0."]),
        ([], ["Usage: ghostnets"]),
    ],
)
def test_help_needs_no_torch(words: list[str], shown: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*WITHOUT_TORCH, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for word in shown:
        assert word in done.stdout


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., int], tuple[list[str]]]:
        return subprocess.call, (["touch", "was-run"],)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that cannot be used."""
    folder = tmp_path_factory.mktemp("inputs")
    weights = {
        name: tensor.clone() for name, tensor in create_model("resnet20.digits", pretrained=True).state_dict().items()
    }
    save_file(weights, folder / "digits.safetensors")
    weights["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, folder / "nan.safetensors")
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil()))
    for kind in ("cat", "dog"):
        (folder / "pets" / kind).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 255, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / kind / f"{number}.png")
    (folder / "small.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "def broken(): raise RuntimeError('not today')\n"
    )
    torch.save({"weight": torch.ones(3)}, folder / "other.pt")
    (folder / "full").mkdir()
    (folder / "full/thesis.tex").write_text("mine")
    (folder / "empty").mkdir()
    return folder


REFUSED = {
    "unknown model": ("--model resnet65", "there is no network 'resnet65': did you mean resnet56"),
    "no weights": (
        "--model resnet56 --data cifar10",
        "resnet56 comes without weights: name a file of them with --weights",
    ),
    "missing weights": ("--weights nothing.pt", "weights nothing.pt do not exist"),
    "foreign weights": (
        "--model resnet32 --data digits --weights digits.safetensors",
        r"digits.safetensors does not fit CifarResNet: 60 missing \(layer1.3.conv1.weight, .* and 55 more\)",
    ),
    "weights of something else": (
        "--weights other.pt",
        r"other.pt does not fit CifarResNet: .* missing \(conv1.weight, .*; 1 unexpected \(weight\)",
    ),
    "a pickle with code": (
        "--weights evil.pt",
        "evil.pt is refused: it holds more than tensors, and opening that could run code;",
    ),
    "NaN weights": ("--weights nan.safetensors", "nan.safetensors: layer2.0.conv1.weight holds NaN or infinite values"),
    "unknown data": ("--data digit", r"there is no data set or folder 'digit': .* \(did you mean 'digits'\?\)"),
    "data of other classes": ("--data pets --input-size 32,32", "the network tells 10 classes apart, and pets has 2"),
    "data without a name": (
        "--model resnet20 --weights digits.safetensors",
        r"it is not known what images resnet20 is for: name them with --data \(digits, cifar10 or a folder\)",
    ),
    "mean of another length": ("--mean 0.1,0.2", "mean 0.1,0.2 has 2 figures for 1 channels: give 1"),
    "mean of words": ("--mean grey", "--mean 'grey' is not understood: .*"),
    "size in two words": (
        "--input-size 64 64",
        r"no place for '64': a list is one word with commas \(--input-size 224,224\), and ghostnets upgrade --help .*",
    ),
    "size of words": ("--input-size big", "--input-size 'big' is not understood: .* 224,224"),
    "nothing to upgrade": (
        "--model small.py:build --data digits",
        r"Sequential has nothing to upgrade \(0: the first convolution \(1 input channels\) is left alone\)",
    ),
    "a factory that fails": (
        "--model small.py:broken --data digits",
        "small.py:broken fails with RuntimeError: not today",
    ),
    "a file without the factory": ("--model small.py:make --data digits", "small.py has no function 'make'"),
    "unreachable budget": (
        f"--model {TINY}:build --data digits --budget macs=0.05 --calibration-images 8",
        r"budget of .* is below what is reachable: the least is [\d.]+ M \(macs=0\.\d+\)",
    ),
    "budget of words": ("--budget half", "budget 'half' is not understood: write macs=0.5 for half the multiply-adds"),
    "negative budget": ("--budget macs=-1", "budget macs=-1.0 must be above 0"),
    "two budgets": ("--budget macs=0.5 --ratio 2", "a budget names either macs or ratio, not both and not neither"),
    "ratio 1": ("--ratio 1", "ratio 1 must be at least 2: a ratio of 1 leaves a convolution as it is"),
    "even kernel": ("--ratio 2 --kernel 2", "kernel 2 must be odd and positive"),
    "negative minutes": ("--minutes -1", r"minutes -1 must be above 0 .*"),
    "no epochs": ("--epochs 0", r"epochs 0 must be above 0 .*"),
    "no images": ("--calibration-images 0", "calibration images 0 must be at least 1"),
    "no threads": ("--threads 0", "threads 0 must be at least 1"),
    "an unknown layer": ("--ignored-layers conv9", "ignored layer 'conv9' does not exist in CifarResNet"),
    "a file for a folder": ("--out small.py/out", "small.py/out can.*: Not a directory"),
    "a foreign folder": ("--out full", r"full is not empty and holds no upgrade \(thesis.tex\): choose another folder"),
    "an unknown option": ("--budgets macs=0.5", "Unknown option: .*--budgets.*"),
    "an unknown recovery": (
        "--recover pray",
        'Invalid value "pray" for --recover. Choose from: "none", "blocks", "distil".',
    ),
    "a word for a number": ("--seed lucky", 'Invalid value for --seed: unable to convert "lucky" into int.'),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_sentence_and_leaves_nothing(words: str, message: str, inputs: Path) -> None:
    before = {path for path in inputs.rglob("*") if path.name != "__pycache__"}
    out = [] if "--out" in words else ["--out", "out"]
    done = ghostnets(inputs, "upgrade", *words.split(), *out)
    lines = done.stderr.splitlines()
    assert re.fullmatch(f"ghostnets: {message}.*", lines[-1]), done.stderr
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    made = {path.name for path in {*inputs.rglob("*")} - before if path.name != "__pycache__" and path.suffix != ".pyc"}
    assert not made
    assert not (inputs / "was-run").exists()


def test_a_folder_without_a_record_has_no_report(tmp_path: Path) -> None:
    done = run(tmp_path, "report", ".")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ghostnets: . holds no record that a page could be drawn from: upgrade.json, ")
    done = run(tmp_path, "report")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ghostnets: ")
    assert len(done.stderr.splitlines()) == 1


def test_debug_shows_where_it_came_from(tmp_path: Path) -> None:
    done = run(tmp_path, "upgrade", "--ratio", "1", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert (
        done.stderr.splitlines()[-1]
        == "ghostnets: ratio 1 must be at least 2: a ratio of 1 leaves a convolution as it is"
    )


def stop(
    folder: Path, kill: signal.Signals, seen: Callable[[list[dict[str, Any]]], bool], *words: str
) -> tuple[int, str]:
    """Start the upgrade and stop it as soon as its log shows what is waited for; its exit code and what it said."""
    process = subprocess.Popen(
        [*COMMAND, *STOPPABLE, *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,  # noqa: PLW1509
    )
    already = len(log(folder))
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if seen(log(folder)[already:]):
            process.send_signal(kill)
            break
        time.sleep(0.002)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run/run.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def at(step: str, event: str) -> Callable[[list[dict[str, Any]]], bool]:
    return lambda lines: any((line["step"], line["event"]) == (step, event) for line in lines)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_stopped_again_and_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = run(whole, *STOPPABLE)
    assert done.returncode == 0, done.stderr

    code, said = stop(broken, signal.SIGINT, at("plan", "begin"))
    assert code == 130, said
    assert said.splitlines()[-1].startswith("ghostnets: interrupted; ghostnets upgrade --model ")
    assert said.splitlines()[-1].endswith(" --resume goes on from the last finished step")
    assert "Traceback" not in said
    assert not [path for path in broken.rglob("*") if is_partial(path)]

    refused = ghostnets(broken, *STOPPABLE)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "ghostnets: run holds an upgrade already: go on with resume (--resume), or choose another folder\n"
    )
    moments = [("closed form", "begin"), ("blocks", "epoch"), ("save", "end")]
    for moment in moments:
        code, said = stop(broken, signal.SIGKILL, at(*moment), "--resume")
        assert code == -signal.SIGKILL, (moment, said)
    done = run(broken, *STOPPABLE, "--resume")
    assert done.returncode == 0, done.stderr

    assert not [path for path in broken.rglob("*") if is_partial(path)]
    for name in ("plan.json", "transfer.json", "config.json", "model.safetensors"):
        one, other = (hashlib.sha256((folder / "run" / name).read_bytes()).hexdigest() for folder in (whole, broken))
        assert one == other, name
    one, other = (json.loads((folder / "run/upgrade.json").read_text()) for folder in (whole, broken))
    assert one["after"]["top1"] == other["after"]["top1"]
    assert [step["epochs"] for step in other["steps"]] == [0.0, 8.0]
    assert {path.name for path in (whole / "run").iterdir()} == {path.name for path in (broken / "run").iterdir()}
