# SPDX-License-Identifier: Apache-2.0
"""C that is compiled where it runs: once, for this machine, or not at all with a reason."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from ghostnets.compiler import NoCompiler
from ghostnets.training.native import compiled, keep_memory

ANSWER = "int answer(void) { return 42; }\n"

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache" / "ghostnets" / "native"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "answer.c").write_text(ANSWER)
    return tmp_path / "answer.c"


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_it_is_compiled_once(source: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", script(tmp_path / "count", f'echo >> {tmp_path}/calls; exec cc "$@"'))
    assert [compiled(source).answer() for _ in range(3)] == [42] * 3
    assert len((tmp_path / "calls").read_text()) == 1
    assert [path.suffix for path in kept.iterdir()] == [".so"]


@needs_compiler
def test_other_source_or_other_words_are_another_file(source: Path, kept: Path) -> None:
    compiled(source)
    source.write_text(ANSWER.replace("42", "NUMBER"))
    assert compiled(source, "NUMBER=7").answer() == 7
    assert compiled(source, "NUMBER=8").answer() == 8
    assert len(list(kept.iterdir())) == 3


@needs_compiler
def test_another_header_is_another_file(source: Path, kept: Path) -> None:
    header = source.with_name("number.h")
    source.write_text('#include "number.h"\n' + ANSWER.replace("42", "NUMBER"))
    for number in (3, 4):
        header.write_text(f"#define NUMBER {number}\n")
        assert compiled(source).answer() == number
    assert len(list(kept.iterdir())) == 2


@needs_compiler
def test_flags_that_the_compiler_does_not_know_are_left_out(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = (
        'for x; do case "$x" in -march*|-fopenmp) echo "error: unknown $x" >&2; exit 1;; esac; done; exec cc "$@"'
    )
    monkeypatch.setenv("CC", script(tmp_path / "old", refusing))
    assert compiled(source).answer() == 42


@needs_compiler
def test_a_source_with_a_mistake_is_told_and_leaves_nothing(source: Path, kept: Path) -> None:
    source.write_text("int answer(void) { return 42 }\n")
    with pytest.raises(NoCompiler, match=r"cannot compile answer\.c: .*error"):
        compiled(source)
    assert not list(kept.iterdir())


@pytest.mark.parametrize("named", ["/nowhere/cc", "false"])
def test_a_compiler_that_is_none_is_told(source: Path, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", named)
    with pytest.raises(NoCompiler, match=named):
        compiled(source)


@needs_compiler
def test_a_cache_that_is_a_file_is_told(source: Path, kept: Path) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_text("")
    with pytest.raises(NoCompiler, match="cannot be kept or loaded"):
        compiled(source)


def test_keeping_memory_does_no_harm() -> None:
    keep_memory()
    keep_memory()
