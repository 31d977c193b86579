# SPDX-License-Identifier: Apache-2.0
"""Our own C for training: compiled on the machine that runs it, by the compiler that is there, and kept."""

from __future__ import annotations

import ctypes
import hashlib
import os
from pathlib import Path

from torch import Tensor

from ghostnets.compiler import NoCompiler, command, compile_shared, processor
from ghostnets.download import cache_dir

FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
"""Tried one after the other: not every compiler knows them all."""


def compiled(source: Path, *defines: str) -> ctypes.CDLL:
    """The functions of a C file, which may include headers beside it. Raises NoCompiler where it cannot be compiled or kept."""
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = [*texts, *command(), *defines, processor()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    target = cache_dir() / "native" / f"{source.stem}-{key}.so"
    try:
        if not target.exists():
            compile_shared(source, target, FLAGS, defines=defines)
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise NoCompiler(f"what was compiled cannot be kept or loaded: {error.strerror or error}") from None


def address(tensor: Tensor | None) -> int | None:
    """Where its values lie, as C takes it; None is NULL."""
    return None if tensor is None else tensor.data_ptr()


def keep_memory() -> None:
    """Let this process keep the memory of tensors it frees for the next ones, where its C library is glibc: else every
    large map is asked for from the system again, page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, and no more is allowed
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
