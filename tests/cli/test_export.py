# SPDX-License-Identifier: Apache-2.0
"""``ghostnets export`` as people call it: what it leaves and prints, and what careless input gets."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ghostnets
from ghostnets.cli import app
from ghostnets.deploy.c.target import native, this_machine
from ghostnets.training.data import load_dataset
from programs import needs_compiler

COMMAND = [sys.executable, "-m", "ghostnets"]

FACTORIES = """
import torch
from torch import nn

def colour():
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    network.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "input_size": (3, 9, 7)}
    return network

def depth():
    return nn.Sequential(nn.Conv2d(5, 3, 3), nn.Flatten())

def unknown():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.fft.fft2(x).abs()
    return Odd()

def endless():
    network = colour()
    nn.init.constant_(network[0].weight, float("nan"))
    return network
"""

FILES = {"model.c", "model.h", "model.weights", "main.c", "Makefile", "README.md", "export.json"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with networks of every kind. The command runs in this process: PyTorch takes seconds to load."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FACTORIES)
    return tmp_path


def export(*words: str) -> int:
    return app._run(["export", *words], debug=False)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def make(folder: Path, *words: str) -> None:
    done = subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


@needs_compiler
def test_a_program_is_left_that_make_builds_and_that_says_what_pytorch_says(tmp_path: Path) -> None:
    words = [*COMMAND, "export", "resnet20.digits", "--out", "build/digits", "--layout", "nhwc-uint8"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"build/digits: resnet20.digits in C for {native().name}, images nhwc-uint8 of 1×32×32"
    assert re.search(
        r"against PyTorch  \d.\de-0\d of the largest output at most, 8 images \(test images of digits\)", lines[-1]
    )
    folder = tmp_path / "build" / "digits"
    assert names(folder.parent) == {"digits"}
    assert names(folder) == {*FILES, "labels.txt"}
    assert (folder / "labels.txt").read_text().split() == [str(digit) for digit in range(10)]

    make(folder)
    pixels = load_dataset("digits").test.pixels[0, 0].numpy()
    Image.fromarray(pixels).convert("RGB").save(folder / "digit.ppm")
    said = subprocess.run(["./model", "digit.ppm"], cwd=folder, capture_output=True, text=True, check=True).stdout
    with torch.no_grad():
        image = (torch.from_numpy(pixels.copy())[None, None] / 255 - 0.3047) / 0.3231
        logits = ghostnets.create_model("resnet20.digits", pretrained=True).eval()(image)[0]
    best = logits.argsort(descending=True)[:5].tolist()
    assert [line.split()[1:] for line in said.splitlines()] == [[str(digit), str(digit)] for digit in best]
    told = [float(line.split()[0]) for line in said.splitlines()]
    assert told == pytest.approx(logits[best].tolist(), abs=2e-4)


@needs_compiler
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nhwc-uint8"])
def test_every_layout_takes_the_image_that_it_names(here: Path, layout: str) -> None:
    from ghostnets.deploy.c.program import Program

    assert not export("net.py:colour", "--out", "c", "--layout", layout, "--threads", "2")
    make(here / "c", "library")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    scaled = ((pixels / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.25, 0.3)).astype(np.float32)
    given = {"nchw": scaled.transpose(0, 3, 1, 2), "nhwc": scaled, "nhwc-uint8": pixels}[layout]
    found = Program(here / "c" / "libmodel.so", threads=2)(given)
    scope: dict[str, object] = {}
    exec(FACTORIES, scope)  # noqa: S102 (the file above)
    with torch.no_grad():
        expected = scope["colour"]()(torch.from_numpy(scaled).permute(0, 3, 1, 2)).numpy()  # pyright: ignore[reportCallIssue, reportIndexIssue]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_json_is_the_record_and_nothing_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not export("net.py:colour", "--out", "deep/er/c", "--json", "--seed", "3", "--check", "3", "--std", "1,1,1")
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert said.err == ""
    assert record == json.loads((here / "deep/er/c/export.json").read_text())
    assert (record["model"], record["format"], record["layout"], record["classes"]) == (
        "net.py:colour",
        "c",
        "nchw",
        None,
    )
    assert (record["input_size"], record["mean"], record["std"]) == ([3, 9, 7], [0.5, 0.4, 0.3], [1.0, 1.0, 1.0])
    assert record["macs"] == 8 * 27 * 63 + 32
    assert record["checked"]["images"] == 3
    assert record["checked"]["max_rel"] < 1e-5
    assert record["checked"]["top1_agreement"] == 100
    for file in record["files"]:
        data = (here / "deep/er/c" / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert {file["name"] for file in record["files"]} == FILES - {"export.json"}


@pytest.mark.usefixtures("here")
def test_explain_prints_every_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert not export("net.py:colour", "--out", "c", "--explain", "--check", "0", "--target", "avx2")
    lines = capsys.readouterr().out.splitlines()
    titles = [line.partition(":")[0] for line in lines if line.startswith("== ")]
    assert titles[0] == "== captured"
    assert "== activations go into what makes their map" in titles
    assert titles[-2:] == ["== schedule", "== C"]
    assert lines[-1] == "  not checked      no image was asked for"
    assert "C for avx2" in lines[-6]


def test_an_earlier_export_is_replaced_and_anything_else_is_kept(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--check", "0", "--target", "scalar")
    assert not export("net.py:colour", "--out", "c", *quick)
    (here / "c" / "model").write_text("made by make")
    assert not export("net.py:colour", "--out", "c", *quick, "--layout", "nhwc")
    assert names(here / "c") == FILES
    assert json.loads((here / "c" / "export.json").read_text())["layout"] == "nhwc"

    (here / "c" / "main.c").write_text("mine")
    capsys.readouterr()
    assert export("net.py:colour", "--out", "c", *quick) == 2
    assert "c/main.c has been changed since it was exported: choose another folder" in capsys.readouterr().err
    assert (here / "c" / "main.c").read_text() == "mine"

    assert not export("net.py:colour", "--out", "d", *quick)
    (here / "d" / "photo.ppm").write_text("mine")
    assert export("net.py:colour", "--out", "d", *quick) == 2
    assert "d holds an export and photo.ppm beside it" in capsys.readouterr().err
    assert names(here) == {"c", "d", "net.py"} | ({"__pycache__"} & names(here))


@pytest.mark.parametrize("target", ["avx512", "avx2", "neon"])
def test_what_cannot_run_here_is_written_and_said_to_be_unchecked(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    compiler = here / "cross"
    compiler.write_text("#!/bin/sh\necho riscv64-unknown-linux-gnu\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert not export("net.py:colour", "--out", "c", "--target", target)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("  not checked      ")
    assert "compiles for riscv64" in said or f"does not run {target}" in said
    assert names(here / "c") == FILES


def test_without_a_compiler_it_says_that_nothing_was_checked(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(here))
    assert not export("net.py:colour", "--out", "c")
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "  not checked      there is no C compiler (cc, gcc, clang)"


@pytest.mark.usefixtures("here")
@needs_compiler
def test_neon_is_checked_as_plain_vectors(capsys: pytest.CaptureFixture[str]) -> None:
    if this_machine() == "aarch64":
        pytest.skip("this machine has NEON")
    assert not export("net.py:colour", "--out", "c", "--target", "neon")
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"plain vectors on {this_machine()}")


@needs_compiler
def test_a_program_that_disagrees_is_not_left(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ghostnets import exporting
    from ghostnets.deploy.c.generation import Generated

    right = exporting.generated

    def wrong(model: torch.nn.Module, *more: object, **named: object) -> Generated:
        assert isinstance(model, torch.nn.Sequential)
        with torch.no_grad():
            model[4].bias += torch.tensor([0.0, 0.0, 0.0, 1e-2])  # pyright: ignore[reportIndexIssue, reportOperatorIssue]
            made = right(model, *more, **named)  # pyright: ignore[reportArgumentType]
            model[4].bias -= torch.tensor([0.0, 0.0, 0.0, 1e-2])  # pyright: ignore[reportIndexIssue, reportOperatorIssue]
        return made

    monkeypatch.setattr(exporting, "generated", wrong)
    assert export("net.py:colour", "--out", "c") == 1
    assert "the program disagrees with PyTorch, so it is not written: on 8 images" in capsys.readouterr().err
    assert names(here) - {"__pycache__"} == {"net.py"}


def test_onnx_is_left_verified_and_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    assert not export("resnet20.digits", "--format", "onnx", "--out", "o")
    assert "against PyTorch" in capsys.readouterr().out
    assert names(here / "o") == {"model.onnx", "labels.txt", "export.json"}
    session = runtime.InferenceSession(here / "o" / "model.onnx")
    image = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        expected = ghostnets.create_model("resnet20.digits", pretrained=True).eval()(image)
    (found,) = session.run(None, {"images": image.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet20.digits", "--format", "tflite"], "tflite is no format: choose c or onnx"),
        (
            ["resnet20.digits", "--target", "sse"],
            "sse is not an instruction set: choose native, avx512, avx2, neon, scalar",
        ),
        (["resnet20.digits", "--layout", "hwcn"], "hwcn is no layout of images: choose nchw, nhwc, nhwc-uint8"),
        (["resnet20.digits", "--format", "onnx", "--layout", "nhwc"], "are of C programs: leave them out for onnx"),
        (["resnet20.digits", "--format", "onnx", "--explain"], "--explain shows the passes of the C generator"),
        (["resnet20.digits", "--explain", "--json"], "--explain shows the passes of the C generator"),
        (["resnet20.digits", "--threads", "0"], "threads 0 must be 1 to 64"),
        (["resnet20.digits", "--check", "-1"], "--check -1 must be at least 0"),
        (["resnet20.digits", "--seed", "-1"], "seed -1 must be at least 0"),
        (["resnet20.digits", "--input-size", "32x32"], "--input-size '32x32' is not understood"),
        (["resnet20.digits", "--mean", "a"], "--mean 'a' is not understood"),
        (["resnet20.digits", "--std", "0"], "std 0 must be finite and above 0"),
        (["resnet20.digits", "--mean", "1,2,3"], "mean 1,2,3 has 3 figures for 1 channels"),
        (["resnet20.digits", "--weights", "w.pt"], "resnet20.digits has weights of its own: leave out --weights"),
        (["resnet20", "--weights", "w.pt"], "w.pt"),
        (
            ["resnet20", "--num-classes", "3"],
            "--num-classes 3 is for a network of the catalogue whose --weights are given",
        ),
        (["resnet99"], "there is no network 'resnet99'"),
        (["resnet20.digits", "--out", "full"], "full is not empty and holds no export (a.txt)"),
        (["resnet20.digits", "--out", "net.py"], "net.py cannot be used as a folder"),
        (["resnet20.digits", "--out", "."], ". is the folder you are in"),
        (["full"], "config.json"),
        (["gone.py:build"], "gone.py cannot be read"),
        (["net.py:unknown"], "aten.fft_fft2"),
        (["net.py:colour", "--input-size", "1,x"], "is not understood"),
        (["net.py:endless", "--target", "scalar"], "gives answers that are not finite"),
    ],
)
def test_careless_input_gets_a_sentence_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (here / "full").mkdir()
    (here / "full" / "a.txt").write_text("mine")
    assert export(*words, *(("--out", "x") if "--out" not in words else ())) == 2
    said = capsys.readouterr()
    assert message in said.err.replace("\n", " ")
    assert "Traceback" not in said.err
    assert said.out == ""
    assert names(here) - {"__pycache__"} == {"full", "net.py"}


def test_names_that_would_break_a_comment_or_a_string_do_not(here: Path) -> None:
    odd = here / 'a"b\\ */ @KEYS@'.replace("/", "_")
    odd.mkdir()
    (odd / "net.py").write_text(FACTORIES)
    (odd / "net.py").rename(odd / 'n"e*\\.py')
    assert not export(f'{odd}/n"e*\\.py:colour', "--out", "c", "--target", "scalar")
    assert json.loads((here / "c" / "export.json").read_text())["model"] == 'n"e*\\.py:colour'


def test_drawn_weights_are_named_and_those_of_a_file_are_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--check", "0", "--target", "avx2", "--input-size", "8,8")
    assert not export("resnet20", "--out", "drawn", *quick, "--seed", "5")
    said = capsys.readouterr().err
    assert "note: nobody trained the weights of resnet20, they are drawn: resnet20.cifar10 has trained ones" in said
    assert not export("resnet20", "--out", "again", *quick, "--seed", "5")
    assert not export("resnet20", "--out", "other", *quick, "--seed", "6")
    weights = {name: (here / name / "model.weights").read_bytes() for name in ("drawn", "again", "other")}
    assert weights["drawn"] == weights["again"] != weights["other"]

    network = ghostnets.create_model("resnet20", num_classes=4)
    torch.save(network.state_dict(), here / "w.pt")
    capsys.readouterr()
    assert not export("resnet20", "--weights", "w.pt", "--num-classes", "4", "--out", "own", *quick)
    assert capsys.readouterr().err == ""
    floats = np.frombuffer((here / "own" / "model.weights").read_bytes()[64:], np.float32)
    row = network.get_submodule("linear").weight[3].detach().numpy()  # pyright: ignore[reportIndexIssue]
    assert set(row.tolist()) <= set(floats.tolist())


def test_help_has_an_example_and_names_every_choice() -> None:
    done = subprocess.run([*COMMAND, "export", "--help"], capture_output=True, text=True, check=False)
    said = " ".join(done.stdout.split())
    assert "Example: ghostnets export" in said
    assert all(word in said for word in ("c or onnx", "avx512", "avx2", "neon", "scalar", "nchw", "nhwc-uint8"))
