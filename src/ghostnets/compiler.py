# SPDX-License-Identifier: Apache-2.0
"""The C compiler of the machine that the package runs on, and what it has compiled here before."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ghostnets.errors import GhostnetsError

COMPILERS = ("cc", "gcc", "clang")

SECONDS = 300
"""After which a compiler counts as hung."""


class NoCompiler(GhostnetsError):
    """There is nothing that could compile here; the message says why, in the middle of a sentence."""


def command() -> list[str]:
    """How the compiler is called: the variable CC, or the first that is there. Raises NoCompiler."""
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named
    found = next((path for path in map(shutil.which, COMPILERS) if path is not None), None)
    if found is None:
        raise NoCompiler(f"there is no C compiler ({', '.join(COMPILERS)})")
    return [found]


def compile_shared(
    source: Path, target: Path, choices: Sequence[Sequence[str]], *, defines: Sequence[str] = ()
) -> None:
    """Compile a file to a library, whole or not at all, with the first of several choices of flags that the compiler
    knows. Raises NoCompiler where none works or the library cannot be kept.
    """
    line = [*command(), *(f"-D{name}" for name in defines)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            _compile(line, source, made, choices)
            made.replace(target)
    except OSError as error:
        raise NoCompiler(f"what was compiled cannot be kept or loaded: {error.strerror or error}") from None


def _compile(line: list[str], source: Path, target: Path, choices: Sequence[Sequence[str]]) -> None:
    said = ""
    for flags in choices:
        whole = [*line, "-O3", "-ffp-contract=fast", "-fPIC", "-shared", *flags, str(source), "-o", str(target), "-lm"]
        try:
            done = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=SECONDS)  # noqa: S603 - the user's
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoCompiler(f"{shlex.join(line)} cannot be run: {error}") from None
        if done.returncode == 0:
            return
        said = next((text for text in done.stderr.splitlines() if "error" in text), done.stderr.strip())
    raise NoCompiler(f"{shlex.join(line)} cannot compile {source.name}: {said}")


def processor() -> str:
    """What code for this machine may use: a cache may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.platform()} {features}"
