# SPDX-License-Identifier: Apache-2.0
"""``train`` and ``validate`` as real commands: what they leave, how they go on, what they refuse."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ghostnets
import verbs
from ghostnets.models.catalog import create_model
from ghostnets.training.data import load_dataset, normalise

COMMAND = [sys.executable, "-m", "ghostnets"]
NET = Path(__file__).parents[1] / "tiny.py"
QUICK = [
    "train", f"{NET}:build", "--data", "digits", "--input-size", "16,16", "--recipe", "cifar10-fast",
    "--warmup-epochs", "0.5", "--lr", "0.05", "--batch-size", "64", "--amp-dtype", "float32", "--threads", "1",
]  # fmt: skip
SHORT, LONG = [*QUICK, "--epochs", "2"], [*QUICK, "--epochs", "12"]


def run(folder: Path, *words: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    command = COMMAND
    if processes > 1:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m",
            "ghostnets",
        ]  # fmt: skip
    return subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(folder, *SHORT, "--hold-out", "200", "--out", "run")


def test_a_run_leaves_its_network_its_records_and_its_recipe(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = trained
    assert done.returncode == 0, done.stderr
    assert "epoch 2, loss" in done.stderr
    assert "held-out top-1" in done.stderr
    out = folder / "run"
    assert {p.name for p in out.iterdir()} == {
        "checkpoints", "config.json", "history.csv", "history.jsonl", "model.safetensors", "recipe.yaml", "request.json",
        "report.html", "run.jsonl", "tiny.py", "train.json",
    }  # fmt: skip
    record = json.loads((out / "train.json").read_text())
    assert record["epochs"] == 2
    assert record["held_out"] is True
    assert record["quality"]["images"] == 200
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    assert [float(row["epoch"]) for row in rows] == [1, 2]
    assert float(rows[-1]["top1"]) == pytest.approx(record["history"][-1]["top1"])
    assert "epochs: 2.0" in (out / "recipe.yaml").read_text()


def test_what_it_says_of_the_network_is_so(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = trained
    record = json.loads((folder / "run" / "train.json").read_text())
    model = ghostnets.from_pretrained(folder / "run", trust_code=True)
    dataset = load_dataset("digits", size=(16, 16))
    held_out = dataset.train.subset(slice(len(dataset.train) - 200, None))
    assert held_out.labels is not None
    with torch.no_grad():
        right = model(normalise(held_out.pixels, dataset.mean, dataset.std)).argmax(1) == held_out.labels
    assert record["quality"]["top1"] == pytest.approx(100 * float(right.float().mean()))


def test_validate_agrees_with_train_and_keeps_a_table(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = trained
    words = ("validate", "resnet20.digits", "--data", "digits", "--results-file", "results.csv")
    one, two = run(folder, *words, "--json"), run(folder, *words)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    told = json.loads(one.stdout)
    assert told["top1"] == pytest.approx(99.17, abs=0.2)
    assert len(told["classes"]) == 10
    assert "calibration error" in two.stdout
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert float(rows[0]["nll"]) == pytest.approx(told["nll"])


def test_a_run_stopped_by_ctrl_c_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = run(tmp_path, *LONG, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    command = [*COMMAND, *LONG, "--out", "cut"]
    listening = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: listening() and None,  # noqa: PLW1509
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 3,"):
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "ghostnets train --resume cut goes on from the last checkpoint" in said
    again = run(tmp_path, "train", "--resume", "cut", "--threads", "1")
    assert again.returncode == 0, again.stderr
    assert re.search(r"going on from step \d+", again.stderr)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_max_steps_stops_and_resume_goes_on(tmp_path: Path) -> None:
    stopped = run(tmp_path, *SHORT, "--out", "run", "--max-steps", "30")
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped at step 30" in stopped.stdout
    assert not (tmp_path / "run" / "model.safetensors").exists()
    done = run(tmp_path, "train", "--resume", "run", "--json", "--threads", "1")
    assert json.loads(done.stdout)["epochs"] == 2, done.stderr


def test_the_same_command_runs_in_two_processes(tmp_path: Path) -> None:
    done = run(tmp_path, *SHORT, "--out", "run", "--sync-bn", "--json", processes=2)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    record = json.loads(done.stdout)
    assert record["quality"]["images"] == 360
    assert done.stderr.count("epoch 1, loss") == 1
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2
    alone = run(tmp_path, *SHORT, "--out", "alone", "--json")
    processes = [one["environment"]["processes"] for one in (record, json.loads(alone.stdout))]
    assert processes == [2, 1]
    assert record["history"][-1]["loss"] == pytest.approx(json.loads(alone.stdout)["history"][-1]["loss"], rel=1e-2)
    again = run(tmp_path, *SHORT, "--out", "run", processes=2)  # the first process alone looks at the folder
    assert again.returncode != 0
    assert again.stderr.count("ghostnets: run holds a run with another recipe") == 1
    assert again.stderr.count("Traceback") == 1  # torchrun's own, which says that its processes have ended


def test_a_folder_of_photographs_trains_with_workers_and_a_damaged_file(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 2)):
        for k, name in enumerate(("dark", "light")):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for n in range(count):
                noise = np.random.default_rng(n).integers(60 + 120 * k, size=(30, 40 + n, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{n}.png")
    (tmp_path / "set" / "train" / "dark" / "0.png").write_bytes(b"no image")
    words = [
        "train", "resnet20", "--data", "set", "--input-size", "32,32", "--recipe", "imagenet-paper", "--epochs", "2", "--lr", "0.01",
        "--batch-size", "4", "--warmup-epochs", "0", "--workers", "2", "--threads", "1", "--out", "run",
    ]  # fmt: skip
    refused = run(tmp_path, *words)
    assert refused.returncode == 2
    assert "1 images cannot be decoded, and --max-bad allows 0: set/train/dark/0.png" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = run(tmp_path, *words[:-1], "again", "--max-bad", "1")
    assert done.returncode == 0, done.stderr
    assert "note: set/train/dark/0.png cannot be decoded" in done.stderr


def test_distillation_from_a_network_of_ours(tmp_path: Path) -> None:
    done = run(
        tmp_path, "train", "resnet20", "--data", "digits", "--recipe", "cifar10-fast", "--epochs", "1", "--warmup-epochs", "0.2",
        "--kd-model", "resnet20.digits", "--kd-features", "0.1", "--out", "run", "--max-steps", "3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_finetuning_starts_from_trained_weights(tmp_path: Path) -> None:
    words = [
        "train", "resnet20.digits", "--data", "digits", "--weights", "pretrained", "--recipe", "finetune", "--epochs", "0.5",
        "--warmup-epochs", "0", "--head-epochs", "0", "--lr", "1e-5", "--out", "run", "--json",
    ]  # fmt: skip
    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["quality"]["top1"] > 98


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "MODEL, --data, --out must be given (or --resume DIR"),
        (
            ["train", "resnet20", "--data", "digits", "--out", "x", "--recipe", "cifar-fast"],
            "did you mean cifar10-fast?",
        ),
        (["train", "resnet20", "--data", "digits", "--out", "x", "--lr", "-1"], "recipe: lr -1 must lie between 0"),
        (["train", "resnet20", "--data", "digits", "--out", "x", "--epochs", "nan"], "recipe: epochs nan must lie"),
        (
            ["train", "resnt20", "--data", "digits", "--out", "x"],
            "there is no network 'resnt20': did you mean resnet20",
        ),
        (["train", "resnet20", "--data", "nowhere", "--out", "x"], "there is no data set or folder 'nowhere'"),
        (
            ["train", "resnet20", "--data", "digits", "--out", "x", "--batch-size", "5000"],
            "do not fill one batch of 5000",
        ),
        (["train", "resnet20", "--data", "digits", "--out", "x", "--hold-out", "5000"], "--hold-out 5000 must leave"),
        (["train", "resnet20", "--data", "digits", "--out", "x", "--seed", "-1"], "seed -1 must be at least 0"),
        (
            ["train", "resnet20", "--data", "digits", "--out", "full"],
            "full is not empty and holds no training run (a.txt)",
        ),
        (["train", "--resume", "full"], "full holds no training run to go on with"),
        (["train", "--resume", "full", "--lr", "1"], "goes on with what was asked there: leave out --lr"),
        (["train", "resnet20", "--resume", "full"], "goes on with what was asked there: leave out MODEL"),
        (["train", "--resume", "full", "--seed", "1", "--mean", "0.5"], "leave out --mean, --seed"),
        (["train", "--resume", "full", "--out", "x"], "goes on in that folder: leave out --out x"),
        (["train", "vgg16", "--data", "digits", "--out", "x", "--input-size", "8,8"], "does not take images of 8×8"),
        (["train", f"{NET}:build", "--data", "cifar10", "--out", "x"], "does not take images of 32×32 with 3 channels"),
        (
            ["train", "resnet20", "--data", "digits", "--out", "x", "--kd-model", "resnet20.digits", "--mean", "0.5"],
            "the teacher resnet20.digits expects images with mean",
        ),
        (["train", "resnet20", "--data", "digits", "--out", "x", "--tracker", "paper"], "tracker 'paper' is not known"),
        (["validate", "resnet110", "--data", "digits"], "resnet110 does not come trained"),
        (["validate", "resnet20.digits", "--data", "nowhere"], "there is no data set or folder 'nowhere'"),
        (["validate", "resnet20.digits", "--data", "digits", "--results-file", "a.txt"], "should end in .csv or .json"),
        (["validate", "resnet20.digits", "--data", "digits", "--results-file", "full/a.csv"], "is another table"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tmp_path: Path, words: list[str], message: str, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    if "full/a.csv" in words:
        (tmp_path / "full" / "a.csv").write_text("other,columns\n1,2\n")
    monkeypatch.setenv("GHOSTNETS_DATA", str(data_root))
    done = verbs.ghostnets(tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    done = run(tmp_path, *SHORT, "--out", "locked/run")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_a_network_may_be_trained_from_python(tmp_path: Path) -> None:
    request = ghostnets.TrainRequest(
        model="resnet20",
        data="digits",
        recipe=ghostnets.load_recipe("cifar10-fast", {"epochs": 0.1, "warmup_epochs": 0.0}),
    )
    record = ghostnets.train(request, tmp_path / "run")
    assert record is not None
    assert record.params == sum(p.numel() for p in create_model("resnet20", num_classes=10, in_chans=1).parameters())
