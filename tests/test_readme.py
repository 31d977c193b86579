# SPDX-License-Identifier: Apache-2.0
"""What README.md and the pages of the documentation show, runs: their Python in order, command lines through the real command."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ghostnets.deploy.c.generation import Options, generated
from ghostnets.deploy.c.program import Program
from programs import COMPILERS, needs_compiler

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


PAGES = sorted((ROOT / "docs" / "networks").glob("*.md"))


def blocks(language: str, text: str = README) -> list[str]:
    return [code for kind, info, code in FENCE.findall(text) if kind == language and "no-run" not in info]


def command_lines(language: str = "bash", text: str = README) -> list[list[str]]:
    """Every command of the bash blocks; a line that ends in a backslash goes on, a comment does not."""
    lines = "\n".join(blocks(language, text)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_two_commands_come_first() -> None:
    assert [words[:2] for words in command_lines()[:2]] == [["make", "demo"], ["make", "test"]]


def test_make_targets_exist() -> None:
    named = [words[1] for words in command_lines() if words[0] == "make"]
    assert set(named) <= set(TARGETS)


ON_C = (ROOT / "docs" / "c.md").read_text(encoding="utf-8")
OURS = [words for words in [*command_lines(), *command_lines("console", ON_C)] if words[0] == "ghostnets"]


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_command_lines_parse(words: list[str], tmp_path: Path) -> None:
    from ghostnets.cli.app import app

    _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert bound.arguments, "the command line says nothing to its verb"
    verb = [sys.executable, "-c", "from ghostnets.cli.app import main; main()", words[1], "--help"]
    done = subprocess.run(verb, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # upgrades, trains and compiles
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace and one empty folder, from top to bottom, as a reader would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {"__name__": "readme"}
    code = [block for block in blocks("python") if COMPILERS or "ghostnets.compile" not in block]
    assert code
    for number, block in enumerate(code, 1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)  # noqa: S102 (our own README)


def test_the_page_on_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "training"}
    for block in blocks("python", (ROOT / "docs" / "training.md").read_text(encoding="utf-8")):
        exec(compile(block, "training.md", "exec"), namespace)  # noqa: S102 (our own page)
    assert namespace["record"].epochs == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages_of_the_networks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    offline = (
        page.read_text(encoding="utf-8").replace("pretrained=True", "pretrained=False").replace("v3_100", "v3_050")
    )
    for number, block in enumerate(blocks("python", offline), 1):
        exec(compile(block, f"{page.name}, Python block {number}", "exec"), namespace)  # noqa: S102 (our own pages)
    assert (tmp_path / "build" / "mine" / "model.safetensors").is_file()
    assert namespace["loss"] < 2.5  # ten classes alike: 2.3


@needs_compiler
def test_the_page_on_c_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python, then its C, compiled with what the Python has written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {"__name__": "c"}
    for number, block in enumerate(blocks("python", ON_C), 1):
        exec(compile(block, f"c.md, Python block {number}", "exec"), namespace)  # noqa: S102 (our own page)
    assert isinstance(namespace["fast"], Program)

    folder = tmp_path / "build" / "c"
    (code,) = blocks("c", ON_C)
    (folder / "main.c").write_text(code)
    subprocess.run(["make", "-s", "CFLAGS=-O1 -Wall -Wextra -Werror"], cwd=folder, check=True)
    said = subprocess.run(["./model"], cwd=folder, capture_output=True, text=True, check=True).stdout
    nothing = (torch.zeros(1, 1, 32, 32) - 0.3047) / 0.3231  # bytes of zero
    with torch.no_grad():
        assert float(said) == pytest.approx(float(namespace["network"](nothing)[0, 0]), abs=1e-4)


def test_what_the_page_on_c_shows_of_the_bottleneck_is_what_is_made() -> None:
    (block,) = [block for block in blocks("python", ON_C) if "def first" in block]
    namespace: dict[str, Any] = {"__name__": "c"}
    exec(compile(block, "c.md, first()", "exec"), namespace)  # noqa: S102 (our own page)
    made = generated(namespace["first"](), torch.zeros(1, 16, 112, 112), Options(target="avx2"))
    passes = set(made.explained())
    code = {line.strip() for line in made.files["model.c"].decode().splitlines()}
    shown = [block for block in blocks("text", ON_C) if block.startswith("== ")]
    excerpts = re.findall(r"^``` \{\.c \.no-run\}\n(.*?)^```$", ON_C, re.MULTILINE | re.DOTALL)
    assert (len(shown), len(excerpts)) == (3, 2)
    for known, texts in ((passes, shown), (code, excerpts)):
        lines = [line.strip() for text in texts for line in text.splitlines() if line.strip() != "…"]
        assert [line for line in lines if line not in known] == []
