# SPDX-License-Identifier: Apache-2.0
"""Our own C: compiled on the machine that runs it, by the compiler that is there, and kept."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from ghostnets.download import cache_dir
from ghostnets.errors import GhostnetsError

COMPILERS = ("cc", "gcc", "clang")

FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
"""Tried one after the other: not every compiler knows them all."""

SECONDS = 120
"""After which a compiler counts as hung."""


class NoCompiler(GhostnetsError):
    """There is nothing that could compile here; the message says why, in the middle of a sentence."""


def compiled(source: Path, *defines: str) -> ctypes.CDLL:
    """The functions of a C file. Raises NoCompiler where it cannot be compiled or kept."""
    command = _compiler()
    key = hashlib.sha256("\n".join([source.read_text(), *command, *defines, _processor()]).encode()).hexdigest()[:16]
    target = cache_dir() / "native" / f"{source.stem}-{key}.so"
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                made = Path(folder) / target.name
                _compile([*command, *(f"-D{name}" for name in defines)], source, made)
                made.replace(target)
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise NoCompiler(f"what was compiled cannot be kept or loaded: {error.strerror or error}") from None


def keep_memory() -> None:
    """Let this process keep the memory of tensors it frees for the next ones, where its C library is glibc: else every
    large map is asked for from the system again, page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, and no more is allowed
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named
    found = next((path for path in map(shutil.which, COMPILERS) if path is not None), None)
    if found is None:
        raise NoCompiler(f"there is no C compiler ({', '.join(COMPILERS)})")
    return [found]


def _compile(command: list[str], source: Path, target: Path) -> None:
    said = ""
    for flags in FLAGS:
        line = [
            *command,
            "-O3",
            "-ffp-contract=fast",
            "-fPIC",
            "-shared",
            *flags,
            str(source),
            "-o",
            str(target),
            "-lm",
        ]
        try:
            done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=SECONDS)  # noqa: S603 - the user's
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoCompiler(f"{shlex.join(command)} cannot be run: {error}") from None
        if done.returncode == 0:
            return
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
    raise NoCompiler(f"{shlex.join(command)} cannot compile {source.name}: {said}")


def _processor() -> str:
    """What code for this machine may use: a cache may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.platform()} {features}"
